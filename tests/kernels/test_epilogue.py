"""Elementwise kernels as activations of layers: the bits of the layer, then the kernel, then the residual."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.ops.epilogue import ELEMENTWISE, activate, activation_code

Array = np.ndarray
PARAMETERS: dict[str, tuple[float, ...]] = {
    "leaky_relu": (0.125,), "elu": (1.5,), "celu": (0.75,), "selu": (1.5, 1.25), "thresholded_relu": (0.5,),
    "hard_sigmoid": (0.25, 0.5), "hard_swish": (), "softplus": (), "softsign": (), "mish": (), "quick_gelu": (1.75,),
    "clip": (0.0, 6.0),
}  # fmt: skip


def data(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def node(name: str, inputs: Sequence[Array], ints: Sequence[int], **options: object) -> Array:
    outputs = _kernels.call_node(name, list(inputs), ints, **options)
    assert outputs is not None, "the kernel declined"
    return outputs[0]


def after(name: str, y: Array, residual: Array | None = None) -> Array:
    y = node("unary", [y], [_kernels.UNARY[name]], floats=PARAMETERS[name])
    return y if residual is None else y + residual


def test_every_one_is_tested() -> None:
    assert PARAMETERS.keys() == ELEMENTWISE.keys()


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_linear(rung: str, name: str) -> None:
    code, floats = activation_code(name), [*PARAMETERS[name], 0.0, 0.0][:2]
    for m, k, n in ((1, 5, 3), (4, 40, 65), (23, 700, 50), (150, 33, 130), (3, 0, 20), (0, 4, 5)):
        x, residual = data(m, k), data(m, n)
        packed = _kernels.PackedF32(data(k, n), data(n))
        codes = np.random.default_rng(k).integers(-127, 128, (k, n)).astype(np.int8)
        quantized = _kernels.PackedQ8(codes, np.float32([0.01]), None, data(n))
        for weights in (packed, quantized):
            plain = node("linear", [x], [0, 0], packed=[weights])
            for threads in (1, 3):
                options = {"floats": floats, "packed": [weights], "num_threads": threads}
                np.testing.assert_array_equal(node("linear", [x], [code, 0], **options), after(name, plain))
                found = node("linear", [x, residual], [code, 0], **options)
                np.testing.assert_array_equal(found, after(name, plain, residual))
                for row in (residual[:1], residual[:1].reshape(-1)) if m else ():
                    np.testing.assert_array_equal(node("linear", [x, row], [code, 0], **options), after(name, plain, row))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_layers_side_by_side_have_their_own(rung: str, name: str) -> None:
    x, floats = data(9, 16), [*PARAMETERS[name], 0.0, 0.0][:2]
    codes = np.random.default_rng(0).integers(-127, 128, (16, 70)).astype(np.int8)
    weights = [_kernels.PackedQ8(codes[:, :n], np.float32([0.01]), None, None) for n in (70, 33)]
    found = _kernels.call_node(
        "linear", [x], [activation_code(name), activation_code("leaky_relu"), 0], floats=[*floats, 0.125, 0.0], packed=weights,
        num_outputs=2,
    )  # fmt: skip
    assert found is not None
    for y, w, own in zip(found, weights, (name, "leaky_relu"), strict=True):
        np.testing.assert_array_equal(y, after(own, node("linear", [x], [0, 0], packed=[w])))


@pytest.mark.parametrize("name", ["leaky_relu", "clip", "mish"])
def test_convolutions(rung: str, name: str) -> None:
    code, floats = activation_code(name), [*PARAMETERS[name], 0.0, 0.0][:2]
    for channels, group, size, window in ((3, 1, 20, 3), (4, 4, 20, 3), (8, 2, 5, 3), (6, 1, 9, 1), (6, 1, 3, 3)):
        x, w, b = data(2, channels, size, size), data(8, channels // group, window, window), data(8)
        geometry = [1, 1, 0, 0, 0, 0, 1, 1]
        packed = [_kernels.PackedF32(w.reshape(8, -1).T)] if group == 1 else []
        plain = node("conv", [x, w, b], [2, group, 0, 0, *geometry], packed=packed)
        for threads in (1, 3):
            options = {"floats": floats, "packed": packed, "num_threads": threads}
            np.testing.assert_array_equal(node("conv", [x, w, b], [2, group, code, 0, *geometry], **options), after(name, plain))


def test_codes_are_those_of_the_kernels() -> None:
    """Registers first, in the order of the header; one beyond the last elementwise kernel is refused."""
    assert [activation_code(name) for name in _kernels.ACTIVATION] == list(range(len(_kernels.ACTIVATION)))
    packed = [_kernels.PackedF32(data(3, 4))]
    for code in (-1, len(_kernels.ACTIVATION) + len(_kernels.UNARY)):
        assert _kernels.call_node("linear", [data(2, 3)], [code, 0], packed=packed) is None
    y = node("linear", [data(2, 3)], [len(_kernels.ACTIVATION) + _kernels.UNARY["relu"], 0], packed=packed)
    np.testing.assert_array_equal(y, node("linear", [data(2, 3)], [activation_code("relu"), 0], packed=packed))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_definition_is_the_kernel(name: str) -> None:
    x = data(5, 40) * 3
    np.testing.assert_allclose(activate(x, name, PARAMETERS[name]), after(name, x), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["none", "relu", "gelu", "leaky_relu", "clip"])
def test_an_addend_is_added_before_the_activation(rung: str, name: str) -> None:
    """The bits of the layer, an addition, the activation, an addition; of an activation in registers those of the layer alone."""
    code, floats = activation_code(name), [*PARAMETERS.get(name, ()), 0.0, 0.0][:2]
    for m, k, n in ((1, 8, 33), (4, 16, 65), (23, 700, 50), (150, 3, 130), (3, 0, 20), (0, 4, 5)):
        x, addend, residual = data(m, k), data(m, n) + 1, data(m, n)
        codes = np.random.default_rng(k).integers(0, 16, (n, k)).astype(np.uint8)
        few_bits = _kernels.PackedNBits(codes, np.full((n, -(-k // 32)), 0.01, np.float32), bits=4, group=32)
        for weights in (_kernels.PackedF32(data(k, n), data(n)), *([few_bits] if k else [])):
            plain = node("linear", [x], [0, 0], packed=[weights])
            for threads in (1, 3):
                options = {"floats": floats, "packed": [weights], "num_threads": threads}
                for added in (addend, *((addend[:1], addend[0]) if m else ())):
                    total = plain + added
                    activated = after(name, total) if name in PARAMETERS else node("linear", [total], [code, 0], packed=[_identity(n)])
                    np.testing.assert_array_equal(node("linear", [x, None, added], [code, 0], **options), activated)
                    both = node("linear", [x, residual, added], [code, 0], **options)
                    np.testing.assert_array_equal(both, activated + residual)


def _identity(n: int) -> _kernels.PackedF32:
    """A layer that leaves its input as it is: sums of one number and zeros are exact."""
    return _kernels.PackedF32(np.eye(n, dtype=np.float32))


def test_an_addend_that_does_not_fit_is_declined() -> None:
    x, packed = data(3, 4), _kernels.PackedF32(data(4, 5))
    quantized = _kernels.PackedQ8(np.ones((4, 5), np.int8), np.ones(1, np.float32))
    assert node("linear", [x, None, data(3, 5)], [0, 0], packed=[packed]).shape == (3, 5)
    assert _kernels.call_node("linear", [x, None, data(3, 5)], [0, 0], packed=[quantized]) is None
    for addend in (data(3, 4), data(2, 5), data(1), data(1, 3, 5), data(3, 5).astype(np.float64)):
        assert _kernels.call_node("linear", [x, None, addend], [0, 0], packed=[packed]) is None
