"""Mixtures of experts with float and integer weights, and the router of groups."""

from __future__ import annotations

import numpy as np

from qruntime.ops.attention import masked_softmax
from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.contrib.matmul_nbits import unpacked
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator

_ACTIVATIONS = ("relu", "gelu", "silu", "swiglu", "identity")


class Activation:
    """What stands between the two layers of an expert, with the parameters of SwiGLU."""

    def __init__(self, name: str, alpha: float, beta: float, limit: float | None, fusion: int, after: int):
        if name not in _ACTIVATIONS:
            raise ValueError(f"activation_type must be one of {', '.join(_ACTIVATIONS)}, got {name!r}")
        if fusion not in (0, 1, 2):
            raise ValueError(f"swiglu_fusion must be 0, 1 or 2, got {fusion}")
        if after:
            raise ValueError("swiglu_limit_after_activation must be 0: the other order is not supported")
        self.name, self.alpha, self.beta, self.limit = name, alpha, beta, limit
        self.fusion = fusion if name == "swiglu" else 0

    @property
    def width(self) -> int:
        """Outputs of the first layer for each value of the hidden one."""
        return 2 if self.fusion else 1

    def __call__(self, first: np.ndarray, gate: np.ndarray | None) -> np.ndarray:
        """`first` is what the first layer gives; `gate` what a third one gives from the same input."""
        if self.name == "swiglu":
            if self.fusion == 1:
                first, gate = first[..., 0::2], first[..., 1::2]
            elif self.fusion == 2:
                first, gate = np.split(first, 2, axis=-1)
            if gate is None:
                raise ValueError("swiglu with swiglu_fusion 0 needs the weights of a third layer")
            return self._swiglu(first, gate)
        y = self._simple(first)
        return y if gate is None else y * gate

    def _simple(self, x: np.ndarray) -> np.ndarray:
        if self.name == "relu":
            return np.maximum(x, 0)
        if self.name == "gelu":
            return standard("Gelu", x, approximate="tanh")
        return x * standard("Sigmoid", x) if self.name == "silu" else x

    def _swiglu(self, gate: np.ndarray, linear: np.ndarray) -> np.ndarray:
        if self.limit is not None:
            gate, linear = np.minimum(gate, gate.dtype.type(self.limit)), np.clip(linear, -self.limit, self.limit)
        opened = standard("Sigmoid", gate * gate.dtype.type(self.alpha))
        return gate * opened * (linear + linear.dtype.type(self.beta))


class Layer:
    """One layer of every expert: weights [E, out, in] and bias [E, out] or None."""

    def __init__(self, name: str, weight: np.ndarray, bias: np.ndarray | None, experts: int, outputs: int | None, inputs: int):
        require_rank(f"the weights of {name}", weight, 3)
        outputs = weight.shape[1] if outputs is None else outputs
        require_shape(f"the weights of {name}", weight, (experts, outputs, inputs))
        require_shape(f"the bias of {name}", bias, (experts, outputs))
        self.weight, self.bias, self.outputs = weight, bias, outputs

    def __call__(self, expert: int, x: np.ndarray) -> np.ndarray:
        y = matmul(x, self.weight[expert].astype(x.dtype, copy=False).T)
        return y if self.bias is None else y + self.bias[expert].astype(x.dtype, copy=False)


def _chosen(router: np.ndarray, weights: np.ndarray | None, k: int, normalize: bool | int) -> tuple[np.ndarray, np.ndarray]:
    """The k experts of every row [rows, k], the best first, and their shares."""
    experts = router.shape[1]
    if not 1 <= k <= experts:
        raise ValueError(f"k must lie in [1, {experts}], the number of experts, got {k}")
    order = np.argsort(-router, axis=1, kind="stable")[:, :k]
    if weights is not None:
        shares = np.take_along_axis(weights.astype(np.float32), order, axis=1)
        if normalize:
            total = shares.sum(axis=1, keepdims=True)
            shares = shares / np.where(total == 0, np.float32(1), total)
        return order, shares
    shares = masked_softmax(router.astype(np.float32))
    if normalize:
        return order, masked_softmax(np.take_along_axis(router.astype(np.float32), order, axis=1))
    return order, np.take_along_axis(shares, order, axis=1)


def _mixed(
    x: np.ndarray,
    router: np.ndarray,
    router_weights: np.ndarray | None,
    first: Layer,
    second: Layer,
    third: Layer | None,
    activation: Activation,
    k: int,
    normalize: bool | int,
) -> np.ndarray:
    rows = x.reshape(-1, x.shape[-1]).astype(working_dtype(x.dtype), copy=False)
    require_shape("router_probs", router, (rows.shape[0], first.weight.shape[0]))
    require_shape("router_weights", router_weights, router.shape)
    order, shares = _chosen(router, router_weights, k, normalize)
    y = np.zeros((rows.shape[0], second.outputs), rows.dtype)
    # Row by row: what a row gets does not depend on which others meet the same expert.
    for row, total in enumerate(y):
        for expert, share in zip(order[row], shares[row], strict=True):
            one = rows[row : row + 1]
            hidden = activation(first(expert, one), None if third is None else third(expert, one))
            total += share.astype(rows.dtype) * second(expert, hidden)[0]
    return y.reshape(x.shape).astype(x.dtype, copy=False)


@operator("MoE", domain=MICROSOFT)
def mixture_of_experts(
    x: np.ndarray,
    router_probs: np.ndarray,
    fc1_weights: np.ndarray,
    fc1_bias: np.ndarray | None,
    fc2_weights: np.ndarray,
    fc2_bias: np.ndarray | None = None,
    fc3_weights: np.ndarray | None = None,
    fc3_bias: np.ndarray | None = None,
    *,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    activation_type: str = "relu",
    k: int = 1,
    normalize_routing_weights: int = 0,
    swiglu_fusion: int = 0,
    swiglu_limit: float | None = None,
    swiglu_limit_after_activation: int = 0,
    use_sparse_mixer: int = 0,
) -> np.ndarray:
    """Rows of x [..., H] through the k experts with the largest router_probs [rows, E], which are logits.

    Expert e is fc2[e] · act(fc1[e] · x), or act(fc1[e] · x) · (fc3[e] · x) inside; weights are [E, out, in]. The results are
    added by the softmax over all experts, or over the chosen ones with normalize_routing_weights.
    """
    _refuse_sparse_mixer(use_sparse_mixer)
    activation = Activation(activation_type, activation_alpha, activation_beta, swiglu_limit, swiglu_fusion, swiglu_limit_after_activation)
    require_rank("the input", x, 2, 3)
    require_rank("the weights of fc2", fc2_weights, 3)
    experts, inner = fc2_weights.shape[0], fc2_weights.shape[2]
    first = Layer("fc1", fc1_weights, fc1_bias, experts, inner * activation.width, x.shape[-1])
    second = Layer("fc2", fc2_weights, fc2_bias, experts, x.shape[-1], inner)
    third = None if fc3_weights is None else Layer("fc3", fc3_weights, fc3_bias, experts, inner, x.shape[-1])
    return _mixed(x, router_probs, None, first, second, third, activation, k, normalize_routing_weights)


def _refuse_sparse_mixer(use_sparse_mixer: int) -> None:
    if use_sparse_mixer:
        raise ValueError("use_sparse_mixer must be 0: that way of choosing experts is not supported")


def _dequantized(
    name: str,
    codes: np.ndarray,
    scales: np.ndarray | None,
    zero_points: np.ndarray | None,
    bits: int,
    block_size: int,
    inputs: int,
) -> np.ndarray:
    """Weights [E, out, in] of packed codes [E, out, in · bits / 8], with a scale per row or per block of it."""
    require_rank(f"the weights of {name}", codes, 3)
    if codes.dtype != np.uint8 or inputs * bits % 8 or codes.shape[2] != inputs * bits // 8 or scales is None:
        raise ValueError(
            f"the weights of {name} must be uint8 [experts, outputs, {inputs * bits / 8:g}] and have scales, "
            f"got {codes.dtype} of shape {codes.shape}"
        )
    experts, outputs = codes.shape[:2]
    limit_shape((experts, outputs, inputs), f"the weights of {name}")
    blocks = inputs // block_size if block_size else 1
    allowed = ((experts, outputs, blocks),) if block_size else ((experts, outputs), (experts, outputs, 1))
    if scales.shape not in allowed:
        raise ValueError(f"the scales of {name} must have the shape {allowed[0]}, got {scales.shape}")
    scale = scales.reshape(experts, outputs, blocks).astype(np.float32)
    zero = np.float32(1 << (bits - 1))
    if zero_points is not None:
        packed = (experts, outputs, -(-blocks * bits // 8)) if block_size else (experts, -(-outputs * bits // 8))
        require_shape(f"the zero points of {name}", zero_points, packed)
        flat = unpacked(zero_points, bits)
        flat = flat[..., :blocks] if block_size else flat[:, :outputs, None]
        zero = np.repeat(flat.astype(np.float32), inputs // blocks, axis=2)
    return (unpacked(codes, bits).astype(np.float32) - zero) * np.repeat(scale, inputs // blocks, axis=2)


@operator("QMoE", domain=MICROSOFT)
def quantized_mixture_of_experts(
    x: np.ndarray,
    router_probs: np.ndarray,
    fc1_weights: np.ndarray,
    fc1_scales: np.ndarray | None,
    fc1_bias: np.ndarray | None,
    fc2_weights: np.ndarray,
    fc2_scales: np.ndarray | None,
    fc2_bias: np.ndarray | None = None,
    fc3_weights: np.ndarray | None = None,
    fc3_scales: np.ndarray | None = None,
    fc3_bias: np.ndarray | None = None,
    fc1_zero_points: np.ndarray | None = None,
    fc2_zero_points: np.ndarray | None = None,
    fc3_zero_points: np.ndarray | None = None,
    router_weights: np.ndarray | None = None,
    *further: np.ndarray | None,
    accuracy_level: int = 0,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    activation_type: str = "relu",
    block_size: int = 0,
    expert_weight_bits: int = 4,
    fc1_expert_weight_bits: int = 0,
    fc2_expert_weight_bits: int = 0,
    fc3_expert_weight_bits: int = 0,
    k: int = 1,
    normalize_routing_weights: int = 0,
    quant_type: str = "int",
    swiglu_fusion: int = 0,
    swiglu_limit: float | None = None,
    swiglu_limit_after_activation: int = 0,
    use_sparse_mixer: int = 0,
    weights_prepacked: int = -1,
) -> np.ndarray:
    """MoE with weights of 2, 4 or 8 bits, packed along the inputs, and a scale per output or per block of inputs.

    With router_weights those are the shares, while router_probs choose; without them the shares are the softmax over the
    chosen experts, as ONNX Runtime has it on CPUs whatever normalize_routing_weights says. `accuracy_level` is a hint
    that needs no heed.
    """
    _refuse_sparse_mixer(use_sparse_mixer)
    if quant_type != "int" or any(extra is not None for extra in further):
        raise ValueError(f"quant_type must be int, without global and activation scales, got {quant_type!r}")
    if weights_prepacked not in (-1, 0):
        raise ValueError(f"weights packed for one machine (weights_prepacked={weights_prepacked}) cannot be read")
    bits = [own or expert_weight_bits for own in (fc1_expert_weight_bits, fc2_expert_weight_bits, fc3_expert_weight_bits)]
    if any(b not in (2, 4, 8) for b in bits) or block_size < 0 or (block_size and (block_size < 16 or block_size & (block_size - 1))):
        raise ValueError(f"needs weights of 2, 4 or 8 bits and block_size 0 or a power of two from 16 on, got {bits} and {block_size}")
    activation = Activation(activation_type, activation_alpha, activation_beta, swiglu_limit, swiglu_fusion, swiglu_limit_after_activation)
    require_rank("the input", x, 2, 3)
    require_rank("the weights of fc1", fc1_weights, 3)
    experts, width, size = fc1_weights.shape[0], fc1_weights.shape[1], x.shape[-1]
    inner = width // activation.width
    if width % activation.width or (block_size and (size % block_size or inner % block_size)):
        raise ValueError(f"block_size {block_size} must divide the hidden size {size} and the inner size {inner} of an expert")
    w1 = _dequantized("fc1", fc1_weights, fc1_scales, fc1_zero_points, bits[0], block_size, size)
    w2 = _dequantized("fc2", fc2_weights, fc2_scales, fc2_zero_points, bits[1], block_size, inner)
    first = Layer("fc1", w1, fc1_bias, experts, width, size)
    second = Layer("fc2", w2, fc2_bias, experts, size, inner)
    third = None
    if fc3_weights is not None:
        w3 = _dequantized("fc3", fc3_weights, fc3_scales, fc3_zero_points, bits[2], block_size, size)
        third = Layer("fc3", w3, fc3_bias, experts, inner, size)
    normalize = router_weights is None or normalize_routing_weights
    return _mixed(x, router_probs, router_weights, first, second, third, activation, k, normalize)


@operator("MoEGroupRouter", domain=MICROSOFT)
def moe_group_router(
    logits: np.ndarray,
    expert_bias: np.ndarray,
    projection_weight: np.ndarray | None = None,
    *,
    top_k: int,
    group_topk: int = 2,
    n_group: int = 1,
    router_sentinel: float = -10000.0,
    topk_group: int = 1,
    num_outputs: int = 1,
) -> np.ndarray:
    """ln of the sigmoid of logits [..., E] at the top_k experts of the topk_group best groups, the sentinel elsewhere [rows, E].

    Experts are compared by sigmoid plus expert_bias [E], groups by the sum of their group_topk best.
    """
    if projection_weight is not None or num_outputs > 1:
        raise ValueError("projection_weight and the outputs selection_scores and router_weights are not supported")
    require_rank("logits", logits, 1, -1)
    experts = logits.shape[-1]
    require_shape("expert_bias", expert_bias, (experts,))
    counts = (top_k, group_topk, n_group, topk_group)
    if min(counts) < 1 or experts % n_group or topk_group > n_group or top_k > experts // n_group * topk_group:
        raise ValueError(
            f"n_group must divide the {experts} experts, topk_group lie in [1, n_group] and top_k in [1, the experts of "
            f"those groups], got n_group={n_group}, topk_group={topk_group}, group_topk={group_topk} and top_k={top_k}"
        )
    shares = standard("Sigmoid", logits.reshape(-1, experts).astype(np.float32))
    scores = shares + expert_bias.astype(np.float32)
    grouped = scores.reshape(len(scores), n_group, -1)
    best = -np.sort(-grouped, axis=2)[:, :, : min(group_topk, grouped.shape[2])].sum(axis=2)
    kept = np.argsort(-best, axis=1, kind="stable")[:, :topk_group]
    active = np.zeros(best.shape, bool)
    np.put_along_axis(active, kept, True, axis=1)
    eligible = np.where(np.repeat(active, grouped.shape[2], axis=1), scores, np.float32(-np.inf))
    order = np.argsort(-eligible, axis=1, kind="stable")[:, :top_k]
    y = np.full(shares.shape, router_sentinel, np.float32)
    chosen = np.log(np.maximum(np.take_along_axis(shares, order, axis=1), np.float32(1e-20)))
    np.put_along_axis(y, order, chosen, axis=1)
    return y.astype(logits.dtype)
