"""ZeroQuant-FP: scales held to powers of two, inside GPTQ and not after it."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.ir.formats import FP8
from qruntime.quantization.methods.gptq import GPTQ
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.methods.zeroquant_fp import PowerOfTwoScales
from qruntime.quantization.scheme import QArgs, Scheme, parse
from qruntime.quantization.statistics import output_error
from qruntime.quantization.steps import Choose
from tests.quantization.methods.layers_made import correlated

FREE = "Wfp4Afp8-g32"


def args_of(constraint: str | None, scheme: str = FREE) -> QArgs:
    made = parse(scheme)
    if constraint is not None:
        made, _ = PowerOfTwoScales(constraint).scheme("layer", np.zeros((1, 1)), made, None)
    assert made.weights is not None
    return made.weights


def test_scales_are_what_the_constraints_say() -> None:
    weight = correlated(64, 256).weight * np.geomspace(1e-3, 1, 256, dtype=np.float32)
    free, first, second = (np.asarray(RTN().solve(weight, args_of(one)).rounded.stored.scale) for one in (None, "M1", "M2"))
    assert np.all(np.frexp(first)[0] == 0.5)
    assert np.all((first >= free) & (first < 2 * free))
    largest = second.max(axis=1, keepdims=True)
    np.testing.assert_array_equal(largest[:, 0], free.max(axis=1))
    assert np.all(np.frexp(second / largest)[0] == 0.5)
    halvings = -np.log2(second / largest)
    assert halvings.max() == 8
    assert np.all(second >= free)
    assert np.all((second < 2 * free) | (halvings == 8))


def test_weights_cast_to_fp8_are_exact() -> None:
    """One scale a row is left: entries times 2⁻ⁿ are entries of E4M3."""
    weight = correlated(64, 256).weight * np.geomspace(1e-3, 1, 256, dtype=np.float32)
    stored = RTN().solve(weight, args_of("M2")).rounded.stored
    scale = stored.expanded(np.asarray(stored.scale))
    cast = stored.values() * scale / scale.max(axis=1, keepdims=True)
    assert np.isin(cast, FP8.values).all()


@pytest.mark.parametrize("step", [RTN(), GPTQ()], ids=["RTN", "GPTQ"])
@pytest.mark.parametrize("seed", range(2))
def test_the_freer_the_scales_the_less_is_lost(step: RTN | GPTQ, seed: int) -> None:
    made = correlated(96, 256, seed)
    errors = []
    for constraint in (None, "M2", "M1"):
        stored = step.solve(made.weight, args_of(constraint), made.statistics, None).rounded.stored
        if isinstance(step, RTN):
            errors.append(float(np.mean((made.weight - stored.decoded()) ** 2)))
        else:
            errors.append(output_error(made.weight, stored.decoded(), made.statistics))
    free, second, first = errors
    assert free <= second <= first <= 1.8 * free


@pytest.mark.parametrize("constraint", [None, "M1", "M2"])
def test_gptq_rounds_to_constrained_scales_inside_its_loop(constraint: str | None) -> None:
    made, args = correlated(96, 256), args_of(constraint)
    rtn, gptq = (step.solve(made.weight, args, made.statistics, None).rounded.stored for step in (RTN(), GPTQ()))
    np.testing.assert_array_equal(np.asarray(rtn.scale), np.asarray(gptq.scale))
    errors = [output_error(made.weight, stored.decoded(), made.statistics) for stored in (rtn, gptq)]
    assert errors[1] <= 0.6 * errors[0]
    free = GPTQ().solve(made.weight, args_of(None), made.statistics).rounded.stored
    if constraint is not None:  # the codes of free scales under constrained ones, as if the constraint came after
        after = free.values() * gptq.expanded(np.asarray(gptq.scale))
        assert errors[1] < 0.1 * output_error(made.weight, after, made.statistics)


def test_groups_of_zeros_and_rows_of_zeros() -> None:
    weight = np.zeros((3, 64), np.float32)
    weight[1, :32] = 1e-3
    weight[2] = 5
    for constraint in ("M1", "M2"):
        stored = RTN().solve(weight, args_of(constraint)).rounded.stored
        np.testing.assert_allclose(stored.decoded(), weight, rtol=0.2)
        assert not stored.decoded()[weight == 0].any()
        assert np.isfinite(np.asarray(stored.scale)).all()
    stored = RTN().solve(weight, args_of("M2", "Wfp4Afp8")).rounded.stored
    np.testing.assert_array_equal(stored.decoded()[2], weight[2])


def test_layers_that_stay_float_stay_so() -> None:
    assert isinstance(PowerOfTwoScales(), Choose)
    assert PowerOfTwoScales().scheme("layer", np.zeros((1, 1)), Scheme(None), None) == (Scheme(None), {})
    with pytest.raises(ValueError, match="M1, M2"):
        PowerOfTwoScales("M3")
