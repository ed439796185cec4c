"""Models of one node, for tests of single operators."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import qruntime

RNG = np.random.default_rng(11)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def run(op, inputs, *, constants=(), outputs=1, domain="com.microsoft", opset=17, **attributes):
    """Outputs of one node; inputs whose positions are in `constants` are initializers."""
    names = ["" if x is None else f"i{i}" for i, x in enumerate(inputs)]
    given = {f"i{i}": np.asarray(x) for i, x in enumerate(inputs) if x is not None}
    fixed = {f"i{i}" for i in constants}
    graph = helper.make_graph(
        [helper.make_node(op, names, [f"o{i}" for i in range(outputs)], domain=domain, **attributes)],
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items() if n not in fixed],
        [helper.make_tensor_value_info(f"o{i}", TensorProto.UNDEFINED, None) for i in range(outputs)],
        [numpy_helper.from_array(a, n) for n, a in given.items() if n in fixed],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    loaded = qruntime.load(helper.make_model(graph, opset_imports=opsets).SerializeToString(), threads=1)
    found = list(loaded.run({n: a for n, a in given.items() if n not in fixed}).values())
    return found[0] if outputs == 1 else found


def close(found, expected, atol=2e-6, rtol=2e-5):
    np.testing.assert_allclose(found, expected, atol=atol, rtol=rtol)
