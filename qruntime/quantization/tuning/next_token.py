"""What training makes less: functions of the outputs of a model and of the feed that they come from, both by name as tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qruntime.errors import CalibrationError, QuantizationError
from qruntime.quantization.generation import MASK, TOKENS

Loss = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""loss(outputs, feed): a tensor of one number. The feed holds what the model reads, and labels under names of their own."""


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of each token, given those before it, in nats: the mean over all tokens of a feed but the first of each row.

    `ids` names the tokens [b, s], by default the only integers of that rank or those with a usual name (input_ids, ids, tokens);
    `logits` the output [b, s, vocabulary], by default the only one of that shape; `mask` what is 0 at tokens that do not count
    [b, s], by default attention_mask where a feed has one of the shape of the tokens.
    """

    ids: str | None = None
    logits: str | None = None
    mask: str | None = None

    def __call__(self, outputs: Mapping[str, Any], feed: Mapping[str, Any]) -> Any:
        import torch

        ids = _found("ids", self.ids, feed, _tokens(feed))
        fitting = [name for name, one in outputs.items() if one.ndim == ids.ndim + 1 and one.shape[:-1] == ids.shape]
        logits = _found("logits", self.logits, outputs, fitting)
        if logits.ndim != 3 or ids.shape != logits.shape[:-1] or ids.shape[1] < 2:
            raise CalibrationError(
                "next_token needs tokens [b, s], two or more in a row, and logits [b, s, vocabulary], "
                f"got {tuple(ids.shape)} and {tuple(logits.shape)}"
            )
        if int(ids.max()) >= logits.shape[2] or int(ids.min()) < 0:
            raise CalibrationError(f"next_token needs tokens of 0 to {logits.shape[2] - 1}, as there are logits, got {int(ids.max())}")
        each = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().long(), reduction="none")
        counts = self._counts(feed, ids)
        return each.mean() if counts is None else (each * counts).sum() / counts.sum().clamp(min=1)

    def _counts(self, feed: Mapping[str, Any], ids: Any) -> Any | None:
        given = feed.get(self.mask or MASK)
        if self.mask is not None and (given is None or given.shape != ids.shape):
            raise CalibrationError(f"mask={self.mask!r} must be in every feed, of the shape of the tokens {tuple(ids.shape)}")
        if given is None or given.shape != ids.shape:
            return None
        return (given[:, 1:] != 0).flatten().float()


def _tokens(feed: Mapping[str, Any]) -> list[str]:
    found = [name for name, one in feed.items() if one.ndim == 2 and not one.dtype.is_floating_point and name != MASK]
    return found if len(found) == 1 else [name for name in TOKENS if name in found]


def _found(what: str, given: str | None, among: Mapping[str, Any], fitting: list[str]) -> Any:
    if given is not None and given not in among:
        raise CalibrationError(f"{what}={given!r} is not there; there are: {', '.join(among)}")
    if given is None and len(fitting) != 1:
        said = f"{', '.join(fitting)} fit" if fitting else f"nothing among {', '.join(among)} fits"
        raise CalibrationError(f"next_token does not know the {what}: {said}; name it: NextToken({what}=…)")
    return among[given or fitting[0]]


def loss_of(given: object) -> Loss:
    """A callable, or one by its name. QuantizationError for what is neither."""
    if given == "next_token":
        return NextToken()
    if callable(given):
        return given
    raise QuantizationError(f"loss must be 'next_token' or a function of (outputs, feed), got {given!r}")
