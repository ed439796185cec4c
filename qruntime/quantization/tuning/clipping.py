"""Ranges of weights as a share of what they hold: grids with gradients to the shares.

    high = γ max(w, 0),   low = β min(w, 0),   s = (high − low) / (2^b − 1),   z = round(−low / s)        affine
    s = γ max|w| / qmax, of tables max|w| / max|table|                                                   symmetric

Rounding of z passes gradients straight through.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qruntime.quantization.scheme import FLOAT32, GROUP, TENSOR, QArgs
from qruntime.quantization.tuning.fake_quantization import straight_through_round


def has_ranges(args: QArgs) -> bool:
    """Whether weights of `args` have grids whose ranges can be learned: float32 scales, of integers and tables."""
    return args.scales.kind == FLOAT32 and not args.format.is_paired and (args.format.is_integer or args.format.table is not None)


def is_symmetric(args: QArgs) -> bool:
    return args.symmetric or args.format.table is not None


def extremes(weight: Any, args: QArgs) -> tuple[Any, Any]:
    """The least and the greatest number of each group of `weight` [N, K], 0 among them: [N or 1, groups]."""
    import torch

    if args.granularity.kind == TENSOR:
        groups = weight.reshape(1, 1, -1)
    elif args.granularity.kind == GROUP:
        size = args.granularity.size
        groups = torch.nn.functional.pad(weight, (0, -weight.shape[1] % size)).unflatten(1, (-1, size))
    else:
        groups = weight.unsqueeze(1)
    return groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)


def grid_of(low: Any, high: Any, args: QArgs) -> tuple[Any, Any | None]:
    """Scale and zero point, None of symmetric grids, whose ranges reach from `low` to `high`: float32, of full ranges the bits of
    rounding to nearest."""
    import torch

    form, low, high = args.format, low.double(), high.double()
    if is_symmetric(args):
        top = float(np.nanmax(form.values)) if form.table is not None else form.qmax
        return _above_zero(torch.maximum(-low, high) / top).float(), None
    scale = _above_zero((high - low) / (form.qmax - form.qmin)).float()
    zero_point = straight_through_round(-low / scale) + form.qmin
    return scale, zero_point.clamp(form.qmin, form.qmax).float()


def _above_zero(scale: Any) -> Any:
    """1 where there is nothing to cover, else no less than what has a reciprocal."""
    import torch

    return torch.where(scale == 0, torch.ones_like(scale), scale.clamp(min=torch.finfo(torch.float32).tiny))
