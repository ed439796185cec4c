"""Gates, mixes and experts of language models."""

from __future__ import annotations

from typing import Any

import numpy as np

from contrib_cases.case import Case, Rng, draws, floats, maybe, packed, pick


@draws("GatedRMSNorm")
def _(r: Rng, n: int) -> Case:
    return Case([floats(r, 2, 3, 8), floats(r, pick(r, 4, 8)), floats(r, 2, 3, 8)], {"activation": pick(r, "silu", "swish", "sigmoid")})


@draws("BranchwiseRMSNorm")
def _(r: Rng, n: int) -> Case:
    scale = pick(r, None, floats(r, 8), floats(r, 4, 8), floats(r, 32))
    return Case([floats(r, 2, 3, 32), scale], {"num_branches": 4}) if n % 2 else Case([floats(r, 2, 3, 4, 8), scale], {})


@draws("ScaledSiLU")
def _(r: Rng, n: int) -> Case:
    return Case([floats(r, 3, 4), maybe(r, np.array(0.7, np.float32))], {"alpha": 1.3})


@draws("GatedAdd")
def _(r: Rng, n: int) -> Case:
    return Case([floats(r, 2, 3, 4), floats(r, 2, 3, 4), floats(r, 2, 3, 1)], {})


@draws("HyperConnectionPreMix")
def _(r: Rng, n: int) -> Case:
    mix = floats(r, *pick(r, (2, 3, 4), (2, 3, 4, 1), (2, 3, 4, 8)))
    streams, attributes = (floats(r, 2, 3, 32), {"num_branches": 4}) if n % 2 else (floats(r, 2, 3, 4, 8), {})
    return Case([streams, mix], attributes | {"reduction_scale": 0.3})


@draws("HyperConnectionPostMix")
def _(r: Rng, n: int) -> Case:
    mix = floats(r, *pick(r, (2, 3, 4), (2, 3, 4, 1), (2, 3, 4, 8)))
    streams, attributes = (floats(r, 2, 3, 32), {"num_branches": 4}) if n % 2 else (floats(r, 2, 3, 4, 8), {})
    return Case([streams, floats(r, 2, 3, 8), mix, maybe(r, floats(r, 2, 3, 4, 4))], attributes)


@draws("EngramGate")
def _(r: Rng, n: int) -> Case:
    inputs = [floats(r, 2, 3, 4, 8), floats(r, 2, 3, 4, 8), floats(r, 2, 3, 8), floats(r, 4, 8), floats(r, 4, 8), floats(r, 4, 8)]
    return Case(inputs, {}, outputs=2)


def _experts(r: Rng) -> tuple[int, int, int, dict[str, Any]]:
    """Experts, rows, outputs of the first layer for each of the second, attributes."""
    experts = int(r.integers(2, 6))
    attributes: dict[str, Any] = {
        "activation_type": pick(r, "relu", "gelu", "silu", "swiglu", "identity"), "k": int(r.integers(1, min(experts, 3) + 1)),
        "normalize_routing_weights": int(r.integers(0, 2)),
    }  # fmt: skip
    swiglu = attributes["activation_type"] == "swiglu"
    if swiglu:
        attributes |= {"swiglu_fusion": 1, "activation_alpha": 1.7, "activation_beta": 1.0} | pick(r, {}, {"swiglu_limit": 0.5})
    return experts, int(r.integers(1, 6)), 2 if swiglu else 1, attributes


@draws("MoE")
def _(r: Rng, n: int) -> Case:
    experts, rows, width, attributes = _experts(r)
    step = np.float32(0.2)
    inputs = [
        floats(r, rows, 32), floats(r, rows, experts), floats(r, experts, width * 16, 32) * step, maybe(r, floats(r, experts, width * 16)),
        floats(r, experts, 32, 16) * step, maybe(r, floats(r, experts, 32)),
    ]  # fmt: skip
    return Case(inputs, attributes, tolerance=1e-4)


@draws("QMoE")
def _(r: Rng, n: int) -> Case:
    """Without blocks: with them ONNX Runtime rounds activations to 8 bits."""
    experts, rows, width, attributes = _experts(r)
    bits = pick(r, 2, 4, 8)
    has_zero_points = bool(r.integers(0, 2))

    def layer(outputs: int, inputs: int) -> list[Any]:
        weight = packed(r.integers(0, 1 << bits, (experts, outputs, inputs)), bits)
        zero = packed(r.integers(0, 1 << bits, (experts, outputs)), bits) if has_zero_points else None
        return [weight, (r.random((experts, outputs)) / (1 << bits)).astype(np.float32), zero]

    first, second = layer(width * 32, 32), layer(32, 32)
    inputs = [
        floats(r, rows, 32), floats(r, rows, experts), *first[:2], maybe(r, floats(r, experts, width * 32)), *second[:2],
        maybe(r, floats(r, experts, 32)), None, None, None, first[2], second[2], None,
        maybe(r, r.random((rows, experts)).astype(np.float32)),
    ]  # fmt: skip
    return Case(inputs, attributes | {"expert_weight_bits": bits}, constants=(2, 3, 5, 6), tolerance=2e-2 if bits == 4 else 1e-4)


@draws("MoEGroupRouter")
def _(r: Rng, n: int) -> Case:
    groups = pick(r, 1, 2, 4)
    kept = int(r.integers(1, groups + 1))
    attributes = {"n_group": groups, "topk_group": kept, "top_k": int(r.integers(1, min(4, 8 // groups * kept) + 1)), "group_topk": 2}
    return Case([floats(r, 2, 3, 8), floats(r, 8)], attributes)
