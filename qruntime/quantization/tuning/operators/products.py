"""Products of matrices, and attention, which is two of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from qruntime.ir import Node
from qruntime.quantization.tuning.gemm import multiplied


class Scaled(NamedTuple):
    """A weight `units` · `scale`, of which the scale alone is learned.

    Where each output has one scale a product is x (units · scale) = (x units) · scale: nothing of the size of the weight is made for
    each step, and the gradient of a scale is a sum over what its output makes.
    """

    units: Any
    scale: Any

    def detach(self) -> Any:
        return self.tensor().detach()

    def tensor(self) -> Any:
        return self.units * self.scale

    def is_of_outputs(self, node: Node, place: int) -> bool:
        """Whether a node multiplies with it so."""
        turned = node.is_op("Gemm") and bool(node.attr("transB", 0))
        return node.is_op("MatMul", "Gemm") and place == 1 and self.units.ndim == 2 and self.scale.shape[int(turned)] == 1


def operators() -> dict[str, Callable[..., Any]]:
    import torch

    def product(a: Any, b: Any) -> Any:
        return multiplied(a, b.units) * b.scale if isinstance(b, Scaled) else multiplied(a, b)

    def turned(b: Any) -> Any:
        return Scaled(b.units.T, b.scale.T) if isinstance(b, Scaled) else b.T

    def gemm(node: Node, a: Any, b: Any, c: Any = None) -> Any:
        y = product(a.T if node.attr("transA", 0) else a, turned(b) if node.attr("transB", 0) else b)
        y = y * node.attr("alpha", 1.0) if node.attr("alpha", 1.0) != 1 else y
        return y if c is None else y + c * node.attr("beta", 1.0)

    def fused_matmul(node: Node, a: Any, b: Any) -> Any:
        a, b = a.mT if node.attr("transA", 0) else a, b.mT if node.attr("transB", 0) else b
        return multiplied(a, b) * node.attr("alpha", 1.0)

    def split_heads(x: Any, heads: int) -> Any:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    def attention(node: Node, q: Any, k: Any, v: Any, mask: Any = None, past_key: Any = None, past_value: Any = None, *rest: Any) -> Any:
        unread = any(one is not None for one in rest), node.attr("left_window_size", -1) >= 0, node.attr("right_window_size", -1) >= 0
        if any(unread) or node.attr("qk_matmul_output_mode", 0):
            raise ValueError("lengths of sequences, windows and scores as an output have no gradient here")
        is_packed = q.ndim == 3
        if is_packed:
            q, k, v = (split_heads(x, node.attr(f"{name}_num_heads")) for x, name in ((q, "q"), (k, "kv"), (v, "kv")))
        offset = 0 if past_key is None else past_key.shape[2]
        if past_key is not None:
            k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        repeats, root = q.shape[1] // k.shape[1], math.sqrt(node.attr("scale", 1 / math.sqrt(q.shape[3])))
        all_k, all_v = (x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (k, v))
        scores = multiplied(q * root, (all_k * root).mT)
        if node.attr("softcap", 0.0):
            scores = (scores / node.attr("softcap")).tanh() * node.attr("softcap")
        bias = torch.zeros(()) if mask is None else mask
        if bias.dtype == torch.bool:
            bias = torch.where(bias, 0.0, -math.inf)
        if bias.ndim and 1 < bias.shape[-1] < scores.shape[-1]:
            bias = torch.nn.functional.pad(bias, (0, scores.shape[-1] - bias.shape[-1]), value=-math.inf)
        if node.attr("is_causal", 0):
            bias = bias + torch.full(scores.shape[-2:], -math.inf).triu(offset + 1)
        sees_nothing = torch.isneginf(bias.expand(scores.shape)).all(-1, keepdim=True)  # such a row is 0
        weights = (scores + bias).masked_fill(sees_nothing, 0.0).softmax(-1).masked_fill(sees_nothing, 0.0)
        y = multiplied(weights, all_v)
        return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1) if is_packed else y, k, v

    return {
        "MatMul": lambda node, a, b: product(a, b),
        "Gemm": gemm,
        "Einsum": lambda node, *x: torch.einsum(node.attr("equation").replace(" ", ""), *x),
        "Attention": attention,
        "com.microsoft/FusedMatMul": fused_matmul,
    }
