"""Numbers rounded to codes and back, with the very arithmetic of StoredTensor and the kernels, straight through for gradients.

With r = x / s, q = clip(round(r) + z, low, high), x̂ = s (q − z) and M = 1 where nothing was clipped:

    ∂x̂/∂x = M,     ∂x̂/∂s = (q − z) − M r,     ∂x̂/∂z = −s (1 − M)

Bengio et al. (2013) for x, Esser et al., LSQ (2020) for s. Where a range covers what it is made of, M is 1 everywhere and s no
variable. Rounding is half to even, ranges hold 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import LayerMark
from qruntime.ir.formats import FP8, Format
from qruntime.ir.marks import PER_TOKEN
from qruntime.ir.stored import numbers
from qruntime.ops.cache_codes import PARTS
from qruntime.quantization import grid
from qruntime.quantization.scheme import BILEVEL, GROUP, TOKEN, Inputs, QArgs

Rounding = Callable[[Any], Any]
"""Of rows that a layer reads, what they become: a tensor of that shape."""


def parameters(weight: Any, args: QArgs) -> tuple[Any, Any | None]:
    """Scale and zero point (None of symmetric grids) [N or 1, groups] float32 that cover every number of `weight` [N, K]: those of
    rounding to nearest, as the scheme stores them, without gradients. ValueError for NaN and infinity."""
    import torch

    if args.format.is_float:
        return torch.ones((1, 1)), None
    scale, zero_point = grid.parameters(weight.detach().numpy(), args)
    made = [None if part is None else torch.from_numpy(np.asarray(numbers(part), np.float32)) for part in (scale, zero_point)]
    return made[0], made[1]


def nearest(weight: Any, args: QArgs) -> Any:
    """`weight` [N, K] as `RTN` stores it, bit for bit. The gradient is that of the identity: ranges cover all numbers."""
    return with_parameters(weight, args, *parameters(weight, args), clips=False)


def with_parameters(weight: Any, args: QArgs, scale: Any, zero_point: Any | None = None, *, clips: bool = True) -> Any:
    """`weight` [N, K] rounded to the grid of `args` with `scale` and `zero_point` [N or 1, groups], all of them variables.

    What it gives is what codes made by `grid.nearest_for` with the same parameters stand for. Without `clips` M counts as 1.
    """
    size, columns = args.granularity.size, weight.shape[1]
    if args.granularity.kind == GROUP:
        missing = -columns % size
        padded = weight if not missing else _functional().pad(weight, (0, missing))
        parts = [None if part is None else part[..., None] for part in (scale, zero_point)]
        made = _on_grid(padded.unflatten(1, (-1, size)), args, *parts, clips=clips)
        return made.flatten(1)[:, :columns]
    return _on_grid(weight, args, scale, zero_point, clips=clips)


def _on_grid(weight: Any, args: QArgs, scale: Any, zero_point: Any | None, *, clips: bool) -> Any:
    form = args.format
    if form.is_float:
        return _functions().Half.apply(weight)
    if form.table is not None:
        _, middles, codes = grid.finite_entries(form)
        return _functions().Table.apply(weight, scale, *_tensors(form.values[codes], middles))
    if not form.is_integer:
        raise QuantizationError(f"{form} weights have no gradient: those of integers, tables and float16 have")
    low = form.qmin if zero_point is not None else -form.qmax
    return _functions().Integers.apply(weight, scale, zero_point, low, form.qmax, clips, args.scales.kind == BILEVEL, False)


def with_scaled_gradient(x: Any, factor: Any) -> Any:
    """`x` itself, whose gradient counts `factor` times, a number or a tensor of its shape."""
    return _functions().ScaledGradient.apply(x, factor)


def with_values(x: Any, values: Any) -> Any:
    """`values`, whose gradient is that of `x`."""
    return _functions().Values.apply(x, values)


def straight_through_round(x: Any) -> Any:
    """Rounded half to even; the gradient is that of the identity."""
    return _functions().Round.apply(x)


def rounded_rows(x: Any, bits: int = 8) -> Any:
    """Each row of `x` [..., K] as codes 0 … 2^bits − 1 of its own range stand for it (kernels/codes_q8.h)."""
    return _rounded(x, (1 << bits) - 1, lambda end: end(x.detach(), -1))


def rounded_tensor(x: Any, bits: int = 8) -> Any:
    """Likewise with one range for all of `x`."""
    return _rounded(x, (1 << bits) - 1, lambda end: end(x.detach()))


def rounded_in_range(x: Any, scale: Any, zero_point: Any, most: int) -> Any:
    """In a range that is known: what QuantizeLinear and DequantizeLinear make of it with codes 0 … `most`."""
    return _functions().Integers.apply(x, scale, zero_point, 0, most, True, False, False)


def rounded_to_float8(x: Any) -> Any:
    """Each row of `x` [..., K] in E4M3 times max|row| / 448."""
    import torch

    largest = x.detach().abs().amax(-1, keepdim=True)
    scale = (largest.double() / 448).float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale.clamp(min=torch.finfo(torch.float32).tiny))
    return _functions().Float8.apply(x, scale)


def rounded_for_cache(x: Any, bits: int) -> Any:
    """Each row of `x` [..., channels] as a cache holds it in codes (ops/cache_codes.py). Ranges hold what they are made of: M is 1."""
    import torch

    if x.numel() == 0:
        return x
    rows, top = x.detach().float(), (1 << bits) - 1
    low = rows.amin(-1, keepdim=True) + 0.0
    scale = (rows.amax(-1, keepdim=True) - low) / top
    counts = (scale > 0) & (scale < math.inf)
    shares = torch.where(counts, (rows - low) / torch.where(counts, scale, 1.0), 0.0)
    codes = shares.round().clamp_(0, top)
    scale, low = _fitted_to(codes.double(), ((shares - codes) * PARTS).round_().double(), scale, low)
    return with_values(x, (codes * scale + low).to(x.dtype))


def _fitted_to(codes: Any, errors: Any, scale: Any, low: Any) -> tuple[Any, Any]:
    """What FitCache makes of `scale` and `low` [..., 1]; `errors` are those of codes in parts of a step. All sums are whole numbers."""
    import torch

    def total(numbers: Any) -> Any:
        return numbers.sum(-1, keepdim=True)

    count, of_code, of_error = codes.shape[-1], total(codes), total(errors)
    spread = count * total(codes * codes) - of_code * of_code
    slope = (count * total(codes * errors) - of_code * of_error) / spread
    wide = scale.double()
    fitted = wide + wide * (slope / PARTS), low.double() + wide * ((of_error - slope * of_code) / (PARTS * count))
    new_scale, new_low = (torch.where(spread > 0, new.float(), old) for new, old in zip(fitted, (scale, low), strict=True))
    return new_scale, new_low


def _rounded(x: Any, most: int, extreme: Callable[[Callable[..., Any]], Any]) -> Any:
    import torch

    def ends(function: Callable[..., Any]) -> Any:
        return extreme(lambda rows, *axis: function(rows, *axis, keepdim=True) if axis else function(rows))

    if x.numel() == 0:
        return x
    low, high = ends(torch.amin).clamp(max=0), ends(torch.amax).clamp(min=0)
    scale = ((high.double() - low.double()) / most).float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale.clamp(min=torch.finfo(torch.float32).tiny))
    zero_point = (-low / scale).round().clamp(0, most)
    return _functions().Integers.apply(x, scale, zero_point, 0, most, False, False, True)


def rounding_of(inputs: Inputs | None) -> Rounding | None:
    """How layers round what they read at every run; None where they do not."""
    if inputs is None or inputs.is_static:
        return None
    if inputs.format is FP8:
        return rounded_to_float8
    return functools.partial(rounded_rows if inputs.granularity == TOKEN else rounded_tensor, bits=inputs.format.bits)


def rounding_of_mark(mark: LayerMark) -> Rounding | None:
    """Likewise, of a layer that is quantized."""
    if mark.rounds_to_float8:
        return rounded_to_float8
    if not mark.multiplies_codes:
        return None
    return functools.partial(rounded_rows if mark.activations == PER_TOKEN else rounded_tensor, bits=mark.bits)


class MovingRange:
    """The range of a static activation: a moving average of the extremes of batches."""

    def __init__(self, form: Format, momentum: float = 0.99):
        self.format, self.momentum = form, momentum
        self.low: float | None = None
        self.high: float | None = None

    def see(self, x: Any) -> None:
        """Take the extremes of one batch into account."""
        low, high = min(0.0, float(x.detach().amin())), max(0.0, float(x.detach().amax()))
        first = self.low is None or self.high is None
        self.low = low if first else self.momentum * self.low + (1 - self.momentum) * low  # type: ignore[operator]
        self.high = high if first else self.momentum * self.high + (1 - self.momentum) * high  # type: ignore[operator]

    def rounded(self, x: Any) -> Any:
        """`x` in the range that is known now."""
        from qruntime.quantization.static_ranges import parameters as of_range
        from qruntime.quantization.steps import InputRange

        if self.low is None or self.high is None:
            raise ValueError("the range of static activations is not known before a batch was seen in training mode")
        scale, zero_point = of_range(InputRange(np.float32(self.low), np.float32(self.high)), self.format)
        scale, zero_point = _tensors(scale, zero_point.astype(np.float32))
        return rounded_in_range(x, scale, zero_point, self.format.qmax)


def _tensors(*arrays: np.ndarray) -> list[Any]:
    import torch

    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def _functional() -> Any:
    import torch

    return torch.nn.functional


@functools.cache
def _functions() -> SimpleNamespace:
    """The operations with gradients of their own."""
    import torch

    class Integers(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, scale: Any, zero_point: Any, *how: Any) -> Any:
            """`how`: the least and greatest code, whether M counts, whether zero points are added before rounding, and whether
            numbers are multiplied with 1 / s."""
            ctx.how, (low, high, clips, shifts_first, inverts) = how, how
            ctx.is_identity = not (clips or any(ctx.needs_input_grad[1:3]))
            if not ctx.is_identity:
                ctx.save_for_backward(x, scale, zero_point)
            codes, _, _ = rounded(x, scale, zero_point, low, high, shifts_first, inverts)
            codes = codes.add_(0.0) if zero_point is None or shifts_first else codes  # −0 is no code
            return (codes if zero_point is None else codes.sub_(zero_point)).mul_(scale)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            if ctx.is_identity:
                return grad, None, None, None, None, None, None, None
            (x, scale, zero_point), (low, high, clips, shifts_first, inverts) = ctx.saved_tensors, ctx.how
            of_x, of_scale, of_zero = ctx.needs_input_grad[:3]
            codes, ratios, before = rounded(x, scale, zero_point, low, high, shifts_first, inverts)
            inside = (codes == before).to(grad.dtype) if clips else torch.ones((), dtype=grad.dtype)
            units = codes if zero_point is None else codes - zero_point
            return (
                grad * inside if of_x else None,
                (grad * (units - inside * ratios)).sum_to_size(scale.shape) if of_scale else None,
                (grad * (inside - 1) * scale).sum_to_size(zero_point.shape) if of_zero else None,
                None, None, None, None, None,
            )  # fmt: skip

    def rounded(x: Any, scale: Any, zero_point: Any, low: int, high: int, shifts_first: bool, inverts: bool) -> tuple[Any, Any, Any]:
        """Codes, the numbers in units of the scale, and the codes before they were clipped."""
        ratios = x * (1 / scale) if inverts else x / torch.where(scale > 0, scale, torch.ones_like(scale))
        if zero_point is None:
            before = ratios.round()
        else:
            before = (ratios + zero_point).round_() if shifts_first else ratios.round().add_(zero_point)
        return before.clamp(low, high), ratios, before

    class Table(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, scale: Any, entries: Any, middles: Any) -> Any:
            ctx.save_for_backward(x, scale, entries, middles)
            return entries[torch.bucketize((x / torch.where(scale > 0, scale, torch.ones_like(scale))).contiguous(), middles)].mul_(scale)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x, scale, entries, middles = ctx.saved_tensors
            of_scale = None
            if ctx.needs_input_grad[1]:
                ratios = x / torch.where(scale > 0, scale, torch.ones_like(scale))
                inside = ((ratios >= entries[0]) & (ratios <= entries[-1])).to(grad.dtype)
                of_scale = (grad * (entries[torch.bucketize(ratios.contiguous(), middles)] - inside * ratios)).sum_to_size(scale.shape)
            return grad, of_scale, None, None

    class Float8(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, scale: Any) -> Any:
            shares = (x * (1 / scale)).clamp(-448, 448)
            step = torch.ldexp(torch.ones_like(shares), torch.frexp(shares)[1].sub(1).clamp(min=-6) - 3)
            return ((shares / step).round() * step + 0) * scale

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad, None

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clamp(-65504, 65504).half().float()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.round()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad

    class Values(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, values: Any) -> Any:
            return values.clone()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad, None

    class ScaledGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, factor: Any) -> Any:
            ctx.factor = factor
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad * ctx.factor, None

    return SimpleNamespace(
        Integers=Integers, Table=Table, Float8=Float8, Round=Round, Half=Half, Values=Values, ScaledGradient=ScaledGradient
    )
