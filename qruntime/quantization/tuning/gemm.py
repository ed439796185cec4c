"""Products of tensors by our own GEMM, with gradients.

For a b the gradients are g bᵀ and aᵀ g, products of the same kind. A row of a product has the same bits whatever the other rows and
however many threads there are.
"""

from __future__ import annotations

import functools
from typing import Any

from qruntime import _kernels

_MOST_DIMS = 8
"""Of tensors that kernels take."""


def multiplied(a: Any, b: Any) -> Any:
    """a @ b of tensors [..., M, K] and [..., K, N] as torch broadcasts them, on as many threads as torch may use. Vectors and what is not
    float32 in the memory of the CPU torch multiplies itself."""
    import torch

    is_ours = all(x.ndim > 1 and x.dtype == torch.float32 and x.device.type == "cpu" for x in (a, b)) and max(a.ndim, b.ndim) <= _MOST_DIMS
    return _product().apply(a, b) if is_ours else a @ b


@functools.cache
def _product() -> Any:
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Any, b: Any) -> Any:
            ctx.save_for_backward(a, b)
            left, right = a.detach().contiguous().numpy(), b.detach()
            is_turned = not right.is_contiguous() and right.mT.is_contiguous()
            right = (right.mT if is_turned else right.contiguous()).numpy()
            y = _kernels.matmul(left, right, is_turned, torch.get_num_threads())
            return a @ b if y is None else torch.from_numpy(y)  # which says what does not fit

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            a, b = ctx.saved_tensors
            of_a, of_b = ctx.needs_input_grad
            rows = (a.flatten(0, -2), grad.flatten(0, -2)) if b.ndim == 2 else (a, grad)
            return (
                multiplied(grad, b.mT).sum_to_size(a.shape) if of_a else None,
                _turned_times(*rows).sum_to_size(b.shape) if of_b else None,
            )

    return Product


def _turned_times(a: Any, b: Any) -> Any:
    """aᵀ b, where the smaller of the two is copied to be turned: bᵀ a is the same, turned."""
    return multiplied(a.mT, b) if a.numel() <= b.numel() else multiplied(b.mT, a).mT
