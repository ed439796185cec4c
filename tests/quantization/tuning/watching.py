"""Steps with gradients, watched while they go through a model."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np

import qruntime
from qruntime.passes import pipeline
from qruntime.passes.attention_precision import attend_in_int16
from tests.small_models import encoder_bytes, random

SMALL = {"steps": 4}


def feeds(count: int = 6) -> list[dict[str, np.ndarray]]:
    """For `models.encoder`."""
    return [{"x": random(4, 6, 32, seed=10 + i)} for i in range(count)]


class Watched:
    """`step`, and `look(part, tuned)` before what it learned of a part is put in place; its results are in `seen`."""

    def __init__(self, step: Any, look: Any):
        self.step, self.look, self.seen = step, look, []
        self.requires, self.follows_codes = step.requires, step.follows_codes

    def tune(self, part: Any) -> Any:
        tuned = self.step.tune(part)
        self.seen.append(self.look(part, tuned))
        return tuned


def as_trained(part: Any, tuned: Any) -> np.ndarray:
    """What torch makes of the first feed with what was learned, rounded as in training."""
    from qruntime.quantization.tuning.fake_quantization import with_parameters
    from qruntime.quantization.tuning.student import rounded

    torch = __import__("torch")
    tensors = {name: torch.from_numpy(np.array(data)) for name, data in tuned.constants.items()}
    weights = {name: rounded(part.parameters[name], one) for name, one in tensors.items() if part.parameters[name].args is not None}
    for name, grids in tuned.grids.items():
        one = part.parameters[name]
        on_grid = [torch.from_numpy(np.array(scale)) for scale, _ in grids]
        zeros = [None if zero is None else torch.from_numpy(np.array(zero)) for _, zero in grids]
        matrices = one.matrices(tensors.get(name, one.tensor()))
        weights[name] = one.joined([with_parameters(m, one.args, s, z) for m, s, z in zip(matrices, on_grid, zeros, strict=True)])
    return part.run(0, tensors, weights=weights).detach().numpy()


def assert_what_is_learned_runs(step: Any, scheme: str) -> None:
    """The last block of an encoder gives when it runs what it gave in training.

    Where ranges belong to tokens, one activation that lies between two codes may become the other, and a little moves with it. Attention
    of quantized encoders is computed on codes of 16 bits, which training does not imitate and which moves many: it is left out.
    """
    watched = Watched(step, as_trained)
    with patch.object(pipeline, "LOWERED", [one for one in pipeline.LOWERED if one is not attend_in_int16]):
        model = qruntime.load(encoder_bytes(layers=2)).quantize([watched], scheme=scheme, data=feeds())
        runs = model.run(feeds()[0])["y"]
    most, apart = np.abs(runs).max(), np.abs(watched.seen[-1] - runs)
    has_ranges_of_tokens = "A16" not in scheme and "static" not in scheme
    assert np.quantile(apart, 0.5 if has_ranges_of_tokens else 1) <= 1e-4 * most
    assert apart.max() <= 0.01 * most


def block_losses(model: qruntime.Model, after: str, before: str) -> list[tuple[float, float]]:
    """Of each block, once."""
    found = {(facts[after], facts[before]): None for row in model.report.layers for facts in row.facts if after in facts}
    return list(found)


def codes(model: qruntime.Model) -> list[tuple[np.ndarray, ...]]:
    """Of each weight that is stored: codes, scales and zero points."""
    parts = []
    for value in model.graph.stored_constants():
        stored = value.stored
        zero = np.zeros(1) if stored.zero_point is None else stored.zero_point
        parts.append((stored.unpacked(), np.asarray(stored.scale), np.asarray(zero)))
    return parts


def same_codes(one: qruntime.Model, other: qruntime.Model) -> bool:
    pairs = list(zip(codes(one), codes(other), strict=True))
    assert pairs
    return all(np.array_equal(a, b) for first, second in pairs for a, b in zip(first, second, strict=True))


def floats(model: qruntime.Model) -> dict[str, np.ndarray]:
    """Constants that are not stored, by node and place."""
    found = {}
    for node in model.graph.nodes:
        for place, value in enumerate(node.inputs):
            if value is not None and value.data is not None:
                found[f"{node.name}.{place}"] = value.data
    return found
