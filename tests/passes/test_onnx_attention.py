"""ONNX's own Attention: the kernel against the definition."""

import numpy as np
import pytest

from qruntime.ops.registry import find
from tests.passes.lowering import model


def rng(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def attend(inputs, outputs=("y",), **attributes):
    """(outputs, whether the kernel declined)."""
    names = [n if n in inputs else "" for n in ("q", "k", "v", "mask", "past_k", "past_v")]
    while not names[-1]:
        names.pop()
    loaded = model([("Attention", names, list(outputs), attributes)], inputs, [o for o in outputs if o], opset=23)
    found = loaded.run(inputs)
    plan = loaded._plan(tuple(loaded.graph.output_names))
    return found, plan.nodes[0].source != "native" or any(plan.executable.declined)


def check(inputs, native=True, **attributes):
    found, declined = attend(inputs, **attributes)
    arguments = [inputs.get(n) for n in ("q", "k", "v", "mask")]
    (expected, *_) = find("", "Attention", 23)(*arguments, **attributes)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=2e-6)
    assert declined is not native


def heads(b, h, kv, sq, sk, d, dv):
    return {"q": rng(b, h, sq, d), "k": rng(b, kv, sk, d, seed=1), "v": rng(b, kv, sk, dv, seed=2)}


def rows(b, h, kv, sq, sk, d, dv):
    return {n: x.transpose(0, 2, 1, 3).reshape(b, x.shape[2], -1) for n, x in heads(b, h, kv, sq, sk, d, dv).items()}


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 1, 1), (2, 4, 2, 5, 7, 8, 6), (1, 6, 1, 33, 17, 16, 16)])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("scale", [{}, {"scale": 0.3}])
def test_both_layouts(shape, causal, scale):
    check(heads(*shape), is_causal=causal, **scale)
    check(rows(*shape), is_causal=causal, q_num_heads=shape[1], kv_num_heads=shape[2], **scale)


@pytest.mark.parametrize("causal", [0, 1])
def test_masks(causal):
    inputs = heads(2, 2, 2, 5, 7, 4, 4)
    check({**inputs, "mask": rng(5, 7)}, is_causal=causal)
    check({**inputs, "mask": rng(2, 1, 5, 7, seed=3)}, is_causal=causal)
    check({**inputs, "mask": rng(5, 7) > -0.5}, is_causal=causal)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("boolean", [False, True])
def test_rows_that_see_nothing_are_zero(causal, boolean):
    inputs = heads(2, 2, 2, 5, 7, 4, 4)
    seen = np.ones((5, 7), bool)
    seen[2] = False
    seen[3, :5] = False  # all that causality leaves of it
    mask = seen if boolean else np.where(seen, np.float32(0), np.float32(-np.inf))
    check({**inputs, "mask": mask}, is_causal=causal)
    assert not attend({**inputs, "mask": mask}, is_causal=causal)[0]["y"][:, :, 2].any()


def test_a_nan_stays_in_its_row():
    inputs = heads(1, 2, 2, 5, 7, 4, 4)
    inputs["q"][0, 1, 3, 0] = np.nan
    inputs["mask"] = np.ones((5, 7), bool)
    check(inputs)
    assert np.isnan(attend(inputs)[0]["y"][0, 1, 3]).all()


def test_heads_named_for_four_dimensions():
    inputs = heads(2, 2, 2, 2, 2, 4, 4)
    check(inputs, native=False, q_num_heads=2, kv_num_heads=2)


def test_what_the_kernel_lacks():
    inputs = heads(2, 2, 2, 5, 7, 4, 4)
    check(inputs, native=False, softcap=2.0)
    check({**inputs, "mask": rng(5, 4)}, native=False)  # short masks hide the rest
    _, declined = attend(inputs, outputs=("y", "present_k"))
    assert declined
