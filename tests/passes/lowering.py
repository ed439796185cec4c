"""Run a hand-built graph as it is and lowered, and say what the lowered one is made of."""

from collections import Counter

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ir import clone
from qruntime.passes import pipeline
from qruntime.passes.stored import decode_what_is_left
from qruntime.runtime.plan import Planner

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
_CODES = {"f": FLOAT, "b": BOOL, "i": INT64}


def model(nodes, inputs, outputs, constants=None, opset=17):
    """`nodes` are (op, inputs, outputs, attributes); inputs and outputs are names, typed by a dict {name: array}."""
    made = [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(n, _CODES[a.dtype.kind], [None] * a.ndim) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return qruntime.load(proto.SerializeToString())


def as_loaded(graph):
    """A copy of a canonical graph whose definitions can run: stored constants are the numbers they stand for."""
    graph = clone(graph)
    decode_what_is_left(graph)
    return graph


def lowered_ops(loaded, inputs, atol=2e-6):
    """Operators of the lowered graph, after checking that it computes what the graph as loaded computes.

    No native node may have declined, so that what is compared are the kernels.
    """
    plain = Planner(as_loaded(loaded.graph), num_threads=1).plan()
    graph = pipeline.lowered(clone(loaded.graph))
    graph.check()
    plan = Planner(graph, num_threads=1).plan()
    values = [inputs[v.name] for v in loaded.graph.inputs]
    expected, found = plain.executable.run(values), plan.executable.run(values)
    for e, f in zip(expected, found, strict=True):
        assert e.shape == f.shape
        assert e.dtype == f.dtype
        np.testing.assert_allclose(f, e, rtol=2e-5, atol=atol)
    declined = [c.node.label for c, d in zip(plan.nodes, plan.executable.declined, strict=True) if d]
    assert not declined
    return Counter(node.op_type for node in graph.nodes)


def attributes_of(loaded, op_type):
    graph = pipeline.lowered(clone(loaded.graph))
    return [{k: a.value for k, a in n.attributes.items()} for n in graph.nodes if n.op_type == op_type]
