"""Train the character-level language model of examples/shakespeare and export it to ONNX.

The text is split in order: all but the last 5 % trains the weights, the last characters become
the bundled held-out text, and what lies between the two chooses the best epoch. Whenever an
epoch is the best so far its model is exported, so training can be interrupted at any time.

    python tools/train_shakespeare.py input.txt --output examples/shakespeare

Needs torch and onnx.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

State = tuple[Tensor, Tensor]


class CharacterModel(nn.Module):
    """Embedding, LSTM layers and a linear layer giving the logits of the next character."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, vocabulary)
        # A forget gate that starts open lets gradients reach far back from the first step on.
        for layer in range(layers):
            nn.init.ones_(getattr(self.lstm, f"bias_hh_l{layer}").data[hidden : 2 * hidden])

    def forward(self, ids: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ids [time, batch] and the state to logits [time, batch, vocabulary] and state."""
        features, (h, c) = self.lstm(self.embedding(ids), (h, c))
        return self.output(self.dropout(features)), h, c

    def initial_state(self, batch: int) -> State:
        """Return the zero state of `batch` independent streams."""
        zeros = torch.zeros(self.lstm.num_layers, batch, self.lstm.hidden_size)
        return zeros, zeros.clone()


def split(text: str, held_out: int) -> tuple[str, str, str]:
    """Split text into training, validation and held-out parts, the last two at a paragraph."""
    validation_start = text.index("\n\n", int(0.95 * len(text))) + 2
    held_out_start = text.index("\n\n", len(text) - held_out) + 2
    if held_out_start <= validation_start:
        raise ValueError("the held-out text must be shorter than 5 % of the text")
    return text[:validation_start], text[validation_start:held_out_start], text[held_out_start:]


@torch.no_grad()
def bits_per_character(model: CharacterModel, ids: Tensor) -> float:
    """Return the mean cost of each character given all those before it, from a zero state."""
    model.eval()
    logits, _, _ = model(ids[:-1, None], *model.initial_state(1))
    return functional.cross_entropy(logits[:, 0], ids[1:]).item() / math.log(2)


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Rise linearly during warm-up, then follow a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def train_epoch(
    model: CharacterModel,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    ids: Tensor,
    args: argparse.Namespace,
) -> float:
    """Read the text once as parallel streams; return the mean training bits per character."""
    model.train()
    # A new origin each epoch moves the ends of the streams and of the truncated gradients.
    ids = ids.roll(int(torch.randint(len(ids), ())))
    length = len(ids) // args.batch
    streams = ids[: args.batch * length].view(args.batch, length).t()
    steps = (length - 1) // args.time
    h, c = model.initial_state(args.batch)
    total = 0.0
    for start in range(0, steps * args.time, args.time):
        inputs = streams[start : start + args.time]
        targets = streams[start + 1 : start + args.time + 1]
        logits, h, c = model(inputs, h, c)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        schedule.step()
        total += loss.item()
        # Streams sometimes restart, so that the model also learns to begin from a zero state.
        keep = (torch.rand(args.batch, 1) >= args.restart).float()
        h, c = h.detach() * keep, c.detach() * keep
    return total / steps / math.log(2)


def export(model: CharacterModel, vocabulary: list[str], path: Path) -> None:
    """Write the model with its vocabulary, description and licence as metadata."""
    model.eval()
    torch.onnx.export(
        model,
        (torch.zeros(8, 2, dtype=torch.int64), *model.initial_state(2)),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["ids", "h", "c"],
        output_names=["logits", "h_out", "c_out"],
        dynamic_axes={
            "ids": {0: "time", 1: "batch"},
            "h": {1: "batch"},
            "c": {1: "batch"},
            "logits": {0: "time", 1: "batch"},
            "h_out": {1: "batch"},
            "c_out": {1: "batch"},
        },
    )
    exported = onnx.load(path)
    metadata = {
        "vocabulary": json.dumps(vocabulary),
        "description": "Character-level LSTM language model trained on Shakespeare's plays",
        "license": "weights: Apache-2.0; text: public domain",
    }
    onnx.helper.set_model_props(exported, metadata)
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="UTF-8 text to learn")
    parser.add_argument("--output", type=Path, default=Path("examples/shakespeare"))
    parser.add_argument("--held-out", type=int, default=40_000, help="held-out characters")
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=288)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32, help="parallel streams")
    parser.add_argument("--time", type=int, default=64, help="characters between updates")
    parser.add_argument("--restart", type=float, default=0.02, help="chance of a zero state")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, exporting the best model and reporting its bits per character."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)

    text = args.text.read_text(encoding="utf-8")
    parts = split(text, args.held_out)
    (args.output / "held_out.txt").write_text(parts[2], encoding="utf-8", newline="\n")
    vocabulary = sorted(set(text))
    index = {character: i for i, character in enumerate(vocabulary)}
    train, validation, held_out = (torch.tensor([index[c] for c in part]) for part in parts)

    model = CharacterModel(len(vocabulary), args.embedding, args.hidden, args.layers, args.dropout)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=args.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=args.weight_decay,
    )
    steps = args.epochs * ((len(train) // args.batch - 1) // args.time)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, args.warmup, steps))

    best = math.inf
    started = time.monotonic()
    for epoch in range(1, args.epochs + 1):
        trained = train_epoch(model, optimizer, schedule, train, args)
        validated = bits_per_character(model, validation)
        print(
            f"epoch {epoch}: {trained:.3f} bits per character in training, "
            f"{validated:.3f} in validation, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if validated < best:
            best = validated
            held_out_bits = bits_per_character(model, held_out)
            export(model, vocabulary, args.output / "shakespeare.onnx")
    print(f"best epoch: {held_out_bits:.3f} bits per character on the held-out text")


if __name__ == "__main__":
    main()
