"""DFT and STFT on every rung against the sums of the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.native_call import run_definition, run_native, same_bits

F32 = np.float32
EPS = float(np.finfo(F32).eps)
PRIMES = (67, 127, 499)  # no factor that is small enough: convolved with a chirp
LENGTHS = (*range(1, 40), 45, 61, 63, 64, 65, 100, 122, 127, 128, 134, 210, 256, 400, 499, 512, 1000, 1023)


def spectrum(x: np.ndarray, n: int, sign: int = -1) -> np.ndarray:
    """Σ_j x[..., j] e^(±2πi jk / n) of x padded or cut to n points, from angles that are exact multiples."""
    padded = np.zeros((*x.shape[:-1], n), np.complex128)
    padded[..., : min(n, x.shape[-1])] = x[..., :n]
    k = np.arange(n)
    return padded @ np.exp(sign * 2j * np.pi * (np.outer(k, k) % n) / n)


def factors(n: int) -> list[int]:
    found, f = [], 2
    while n > 1:
        while n % f == 0:
            found.append(f)
            n //= f
        f += 1
    return found


def bound(x: np.ndarray, n: int) -> np.ndarray:
    """Of each transform along the last axis: what dft.h states, or for a chirp that of three transforms in a chain."""
    sums = np.abs(x).sum(-1, keepdims=True)
    if max(factors(n), default=1) <= 61:
        return EPS * (sum(f + 4 for f in factors(n)) + 1) * sums
    length = 1 << (2 * n - 2).bit_length()
    return EPS * (3 * 8 * np.log2(length) + 8) * np.sqrt(n * (np.abs(x) ** 2).sum(-1, keepdims=True))


def pairs(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1).astype(F32)


def assert_close(got: np.ndarray, want: np.ndarray, bounds: np.ndarray) -> None:
    assert got.shape == (*want.shape, 2)
    assert got.dtype == F32
    assert (np.abs(got[..., 0] + 1j * got[..., 1] - want) <= bounds + 1e-300).all()


def signals(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(F32)


@pytest.mark.parametrize("n", LENGTHS)
def test_forward_and_back(rung: str, n: int) -> None:
    x = signals(5, n, 2, seed=n)
    z = x[..., 0] + 1j * x[..., 1].astype(np.float64)
    forward = run_native("DFT", [x, None, np.asarray(1, np.int64)])
    inverse = run_native("DFT", [x, None, np.asarray(1, np.int64)], inverse=1)
    real = run_native("DFT", [x[..., :1], None, np.asarray(-2, np.int64)], onesided=1)
    assert forward is not None
    assert inverse is not None
    assert real is not None
    assert_close(forward[0], spectrum(z, n), bound(z, n))
    assert_close(inverse[0], spectrum(z, n, +1) / n, (bound(z, n) + EPS * np.abs(z).sum(-1, keepdims=True)) / n)
    assert_close(real[0], spectrum(x[..., 0], n)[:, : n // 2 + 1], bound(x[..., 0], n))
    assert not real[0][:, 0, 1].any()
    assert n % 2 or not real[0][:, n // 2, 1].any()  # the highest frequency of real numbers is real


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 61, 67, 100])
@pytest.mark.parametrize("bins", [1, 2, 5, 51])
def test_half_a_spectrum_gives_a_real_signal(rung: str, n: int, bins: int) -> None:
    x = signals(3, bins, 2, seed=n + bins)
    got = run_native("DFT", [x, np.asarray(n, np.int64), np.asarray(1, np.int64)], inverse=1, onesided=1)
    assert got is not None
    assert got[0].shape == (3, n, 1)
    want = np.fft.irfft(x[..., 0].astype(np.float64) + 1j * x[..., 1], n, 1)
    used = x[:, : n // 2 + 1, 0] + 1j * x[:, : n // 2 + 1, 1]
    assert (
        np.abs(got[0][..., 0] - want) <= 3 * (bound(np.concatenate([used, used], 1), n) + EPS * np.abs(used).sum(1, keepdims=True)) / n
    ).all()


@pytest.mark.parametrize("given", [1, 7, 16, 40])
@pytest.mark.parametrize("n", [1, 5, 16, 67])
def test_points_are_cut_or_zeros(given: int, n: int) -> None:
    x = signals(2, given, 3, 1)
    got = run_native("DFT", [x, np.asarray(n, np.int64), np.asarray(-3, np.int64)])
    assert got is not None
    want = np.moveaxis(spectrum(np.moveaxis(x[..., 0], 1, -1), n), -1, 1)
    assert_close(got[0], want, bound(np.ones(given), n) * np.abs(x).max())


def test_axes_and_versions() -> None:
    x = signals(3, 4, 5, 6, 2)
    z = x[..., 0] + 1j * x[..., 1].astype(np.float64)
    for axis in (0, 1, 2, 3, -2, -5):
        along = axis if axis >= 0 else axis + 5
        want = np.moveaxis(spectrum(np.moveaxis(z, along, -1), x.shape[along]), -1, along)
        limit = bound(np.full(x.shape[along], np.abs(z).max()), x.shape[along])
        for version, inputs, options in ((20, [x, None, np.asarray(axis)], {}), (17, [x], {"axis": axis})):
            got = run_native("DFT", inputs, version=version, **options)
            assert got is not None
            assert_close(got[0], want, limit)
    default = run_native("DFT", [x])
    assert default is not None
    same_bits(default[0], (run_native("DFT", [x, None, np.asarray(3)]) or [x])[0])
    same_bits((run_native("DFT", [x], version=17) or [x])[0], (run_native("DFT", [x, None, np.asarray(1)]) or [default[0]])[0])


@pytest.mark.parametrize("n", [1, 16, 30, 67, 300])
def test_a_signal_alone_has_the_same_bits(rung: str, n: int) -> None:
    """One, two (one by one), many (side by side), at any place among them, on any number of threads."""
    x = signals(40, n, 2, seed=n)
    (batch,) = run_native("DFT", [x, None, np.asarray(1)]) or [x]
    for i in (0, 1, 15, 16, 39):
        same_bits((run_native("DFT", [x[i : i + 1], None, np.asarray(1)]) or [x])[0], batch[i : i + 1])
    same_bits((run_native("DFT", [x[3:20], None, np.asarray(1)]) or [x])[0], batch[3:20])
    for threads in (2, 3):
        same_bits((run_native("DFT", [np.repeat(x, 9, 0), None, np.asarray(1)], num_threads=threads) or [x])[0], np.repeat(batch, 9, 0))
    frames = signals(1, n * 30, 1, seed=n)
    (all_frames,) = run_native("STFT", [frames, np.asarray(n, np.int64), None, np.asarray(n, np.int64)], version=17) or [x]
    (one,) = run_native("STFT", [frames[:, n * 7 : n * 8], np.asarray(n, np.int64), None, np.asarray(n, np.int64)], version=17) or [x]
    same_bits(all_frames[:, 7:8], one)


@pytest.mark.parametrize("n", [16, 45, 67])
def test_odd_numbers_stay_in_their_signal(rung: str, n: int) -> None:
    x = signals(20, n, 1)
    (clean,) = run_native("DFT", [x]) or [x]
    x[3, 2], x[7, 0] = np.nan, np.inf
    (odd,) = run_native("DFT", [x]) or [x]
    others = [i for i in range(20) if i not in (3, 7)]
    same_bits(odd[others], clean[others])
    assert np.isnan(odd[3]).any(-1).all()  # the imaginary part of the mean of real numbers is 0
    assert not np.isfinite(odd[7]).all(-1).any()


@pytest.mark.parametrize("length", [1, 2, 16, 67, 100, 400])
@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("parts", [0, 1, 2])
def test_short_time(rung: str, length: int, onesided: int, parts: int) -> None:
    x = signals(2, 1000, max(parts, 1), seed=length)
    window = np.hanning(length + 2)[1:-1].astype(F32)
    step = max(1, length // 3)
    inputs = [x if parts else x[..., 0], np.asarray(step, np.int64), window, None if length == 16 else np.asarray(length, np.int64)]
    got = run_native("STFT", inputs, version=17, onesided=onesided)
    assert got is not None
    z = x[..., 0] if parts < 2 else x[..., 0] + 1j * x[..., 1]
    frames = 1 + (1000 - length) // step
    pieces = np.stack([z[:, f * step : f * step + length] * window for f in range(frames)], 1)
    want = spectrum(pieces, length)
    limit = bound(pieces, length) + EPS * np.abs(pieces).sum(-1, keepdims=True)
    assert_close(got[0], want[..., : length // 2 + 1] if onesided else want, limit)
    assert got[0].shape == run_definition("STFT", inputs, version=17, onesided=onesided)[0].shape


def test_what_the_definition_judges() -> None:
    x, one = signals(2, 8, 2), np.asarray(1, np.int64)
    assert run_native("DFT", [x, np.asarray(0, np.int64)]) is None  # no point
    assert run_native("DFT", [x, None, np.asarray(2)]) is None  # the axis of the parts
    assert run_native("DFT", [x], onesided=1) is None  # complex
    assert run_native("DFT", [signals(2, 8, 3)]) is None
    assert run_native("DFT", [x.astype(np.float64)]) is None
    assert run_native("DFT", [signals(2, 0, 2), np.asarray(4)]) is None
    assert run_native("STFT", [x, np.asarray(0, np.int64), None, np.asarray(4, np.int64)], version=17) is None
    assert run_native("STFT", [x, one, None, np.asarray(9, np.int64)], version=17) is None
    assert run_native("STFT", [x, one, np.ones(3, F32), np.asarray(4, np.int64)], version=17) is None
    empty = run_native("DFT", [signals(0, 8, 2)])
    assert empty is not None
    assert empty[0].shape == (0, 8, 2)
