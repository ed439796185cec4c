"""Run a hand-built graph as it is and lowered, and say what the lowered one is made of."""

from collections import Counter

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ir import clone
from qruntime.onnx_io.importer import load_graph
from qruntime.passes import pipeline
from qruntime.passes.stored import decode_what_is_left
from qruntime.runtime.plan import Planner

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
_CODES = {"f": FLOAT, "b": BOOL, "i": INT64}


def model(nodes, inputs, outputs, constants=None, opset=17):
    """`nodes` are (op, inputs, outputs, attributes); inputs and outputs are names, typed by a dict {name: array}."""
    return qruntime.load(model_bytes(nodes, inputs, outputs, constants, opset))


def imported(nodes, inputs, outputs, constants=None, opset=17):
    """The same as a graph that no pass has seen."""
    return load_graph(model_bytes(nodes, inputs, outputs, constants, opset))[0]


def model_bytes(nodes, inputs, outputs, constants=None, opset=17):
    made = [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(n, _CODES[a.dtype.kind], [None] * a.ndim) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("qruntime", 1)]
    return helper.make_model(graph, opset_imports=opsets).SerializeToString()


def as_loaded(graph):
    """A copy of a canonical graph whose definitions can run: stored constants are the numbers they stand for."""
    graph = clone(graph)
    decode_what_is_left(graph)
    return graph


def after(one_pass, graph, inputs, rtol=2e-5, atol=2e-6):
    """Operators of a copy of `graph` that `one_pass` has changed, after checking that it computes the same.

    With `rtol` and `atol` 0 it must be the same bits.
    """
    before, changed = as_loaded(graph), as_loaded(graph)
    one_pass(changed)
    changed.check()
    values = [inputs[v.name] for v in graph.inputs]
    expected, found = (Planner(g, num_threads=1).plan().executable.run(values) for g in (before, changed))
    for e, f in zip(expected, found, strict=True):
        assert e.shape == f.shape
        assert e.dtype == f.dtype
        if e.dtype.kind == "f" and (rtol or atol):
            np.testing.assert_allclose(f, e, rtol=rtol, atol=atol)
        else:
            assert e.tobytes() == f.tobytes()
    return Counter(node.op_type for node in changed.walk_nodes())


def reasons(capsys):
    """What the passes said since the last call; they speak with QRUNTIME_TRACE=passes."""
    return [line.removeprefix("qruntime: ") for line in capsys.readouterr().err.splitlines() if " declines at " in line]


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
