"""Fourier transforms, windows and the mel scale."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qruntime.ir import Node
from qruntime.ir.dtypes import numpy_dtype
from qruntime.ops.checks import limit_shape, normalize_axis, same_dtype, scalar
from qruntime.ops.elementwise import widen
from qruntime.ops.registry import NativeCall, operator


def _to_complex(x: np.ndarray) -> np.ndarray:
    """The last dimension holds the real part, or real and imaginary part."""
    if x.ndim < 2 or x.shape[-1] not in (1, 2):
        raise ValueError(f"the last dimension must be 1 (real) or 2 (complex), got shape {x.shape}")
    wide = widen(x)
    if x.shape[-1] == 1:
        return wide[..., 0]
    signal = np.empty(x.shape[:-1], np.result_type(wide.dtype, np.complex64))
    signal.real, signal.imag = wide[..., 0], wide[..., 1]
    return signal


def _to_pairs(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.stack([x.real, x.imag], axis=-1).astype(dtype)


def _dft(x: np.ndarray, length: np.ndarray | None, axis: int, inverse: int, onesided: int) -> np.ndarray:
    signal = _to_complex(x)
    axis = normalize_axis(axis, x.ndim)
    if axis == x.ndim - 1:
        raise ValueError(f"axis must not be the last, which holds real and imaginary parts; shape {x.shape}")
    if length is not None:
        points = int(scalar(length, "dft_length"))
    else:
        points = 2 * (x.shape[axis] - 1) if inverse and onesided else x.shape[axis]
    if points < 1:
        raise ValueError(f"at least one point is needed, got dft_length {points} for shape {x.shape}")
    limit_shape([points if i == axis else d for i, d in enumerate(x.shape)])
    if inverse:
        if onesided:
            return np.fft.irfft(signal, points, axis)[..., None].astype(x.dtype)
        return _to_pairs(np.fft.ifft(signal, points, axis), x.dtype)
    if onesided:
        if np.iscomplexobj(signal):
            raise ValueError(f"onesided needs a real signal, got shape {x.shape}")
        return _to_pairs(np.fft.rfft(signal, points, axis), x.dtype)
    return _to_pairs(np.fft.fft(signal, points, axis), x.dtype)


@operator("DFT", since=20, shape_inputs=(1, 2))
def dft(
    x: np.ndarray,
    length: np.ndarray | None = None,
    axis: np.ndarray | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> np.ndarray:
    """Discrete Fourier transform along one axis; with inverse and onesided a real signal comes out."""
    return _dft(x, length, -2 if axis is None else int(scalar(axis, "axis")), inverse, onesided)


@operator("DFT", since=17, shape_inputs=(1,))
def dft_17(x: np.ndarray, length: np.ndarray | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> np.ndarray:
    return _dft(x, length, axis, inverse, onesided)


def _dft_call(default_axis: int) -> Callable[[Node], NativeCall]:
    def bind(node: Node) -> NativeCall:
        return NativeCall("dft", ints=[node.attr("inverse", 0), node.attr("onesided", 0), node.attr("axis", default_axis)])

    return bind


dft.native(_dft_call(-2))
dft_17.native(_dft_call(1))


@operator("STFT", since=17, shape_inputs=(1, 3))
def stft(
    x: np.ndarray,
    frame_step: np.ndarray,
    window: np.ndarray | None = None,
    frame_length: np.ndarray | None = None,
    *,
    onesided: int = 1,
) -> np.ndarray:
    """Transforms of overlapping windows: [batch, samples, 1 or 2] → [batch, frames, bins, 2]."""
    if x.ndim == 2:
        x = x[..., None]
    signal = _to_complex(x)
    if x.ndim != 3:
        raise ValueError(f"a signal [batch, samples, 1 or 2] is needed, got shape {x.shape}")
    step = int(scalar(frame_step, "frame_step"))
    if frame_length is not None:
        length = int(scalar(frame_length, "frame_length"))
    else:
        length = x.shape[1] if window is None else window.size
    if step < 1 or not 1 <= length <= x.shape[1]:
        raise ValueError(f"frame_step {step} and frame_length {length} do not fit {x.shape[1]} samples")
    if window is not None:
        same_dtype(x, window)
        if window.shape != (length,):
            raise ValueError(f"window must have shape ({length},), got {window.shape}")
    frames = 1 + (x.shape[1] - length) // step
    limit_shape([x.shape[0], frames, length])
    pieces = signal[:, np.arange(frames)[:, None] * step + np.arange(length)]
    if window is not None:
        pieces = pieces * widen(window)
    bins = np.fft.fft(pieces, axis=-1)
    return _to_pairs(bins[..., : length // 2 + 1] if onesided else bins, x.dtype)


@stft.native
def _(node: Node) -> NativeCall:
    return NativeCall("stft", ints=[node.attr("onesided", 1)])


def _register_window(name: str, coefficients: tuple[float, ...]) -> None:
    """Σ (−1)^k · coefficients[k] · cos(2πkn / N), N one less when the window is symmetric."""

    @operator(name, since=17, shape_inputs=(0,))
    def definition(size: np.ndarray, *, output_datatype: int = 1, periodic: int = 1) -> np.ndarray:
        (length,) = limit_shape([int(scalar(size, "size"))])
        if length == 1 and not periodic:
            return np.ones(1, numpy_dtype(output_datatype))  # N − 1 = 0: the peak
        angle = 2 * np.pi * np.arange(length) / max(length if periodic else length - 1, 1)
        terms = ((-1) ** k * c * np.cos(k * angle) for k, c in enumerate(coefficients))
        return np.asarray(sum(terms)).astype(numpy_dtype(output_datatype))


_register_window("HannWindow", (0.5, 0.5))
_register_window("HammingWindow", (25 / 46, 21 / 46))
_register_window("BlackmanWindow", (0.42, 0.5, 0.08))


@operator("MelWeightMatrix", since=17, shape_inputs=(0, 1))
def mel_weight_matrix(
    num_mel_bins: np.ndarray,
    dft_length: np.ndarray,
    sample_rate: np.ndarray,
    lower_edge_hertz: np.ndarray,
    upper_edge_hertz: np.ndarray,
    *,
    output_datatype: int = 1,
) -> np.ndarray:
    """Triangular filters [dft_length / 2 + 1, num_mel_bins], equally spaced on the mel scale."""
    bands = int(scalar(num_mel_bins, "num_mel_bins"))
    points = int(scalar(dft_length, "dft_length"))
    rate = float(scalar(sample_rate, "sample_rate"))
    edges = np.array([float(scalar(e, "edge")) for e in (lower_edge_hertz, upper_edge_hertz)])
    if bands < 1 or points < 1 or not rate > 0 or not (0 <= edges[0] < edges[1] <= rate / 2):
        raise ValueError(
            f"positive sizes and 0 ≤ lower < upper ≤ rate / 2 are needed, got {bands} bands, {points} points, "
            f"edges {edges.tolist()} at rate {rate}"
        )
    rows, _ = limit_shape([points // 2 + 1, bands])
    low, high = 2595 * np.log10(1 + edges / 700)
    mels = low + np.arange(bands + 2) * ((high - low) / (bands + 2))
    centers = np.floor((points + 1) * (700 * (10 ** (mels / 2595) - 1)) / rate)
    left, center, right = centers[:-2], centers[1:-1], centers[2:]
    bins = np.arange(rows, dtype=np.float64)[:, None]
    with np.errstate(all="ignore"):
        rising = np.where((bins >= left) & (bins <= center), (bins - left) / (center - left), 0)
        falling = np.where((bins >= center) & (bins < right), (right - bins) / (right - center), 0)
    rising = np.where((center == left) & (bins == center), 1, np.where(center == left, 0, rising))
    weights = np.where((bins >= center) & (right > center), falling, rising)
    return weights.astype(numpy_dtype(output_datatype))
