"""Pieces are standard nodes with the name and origin of what they replace, and leave no trace when withdrawn."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, Node, TypeInfo, Value
from qruntime.ops.contrib.domain import MICROSOFT, NEWEST
from qruntime.passes.pieces import Pieces
from qruntime.passes.rewriting import splice
from qruntime.runtime.plan import Planner


def fused():
    x = Value("x", TypeInfo("tensor", 1, (None,)))
    return x, Node("Fused", [x], [Value("y")], domain=MICROSOFT, version=1, name="there")


def test_pieces_are_standard_nodes_of_one_opset():
    x, node = fused()
    op = Pieces(node)
    op.Mul(x, op.Sigmoid(x))
    assert [(n.op_type, n.domain, n.version) for n in op.builder.nodes] == [("Sigmoid", "", NEWEST), ("Mul", "", NEWEST)]
    assert {n.name for n in op.builder.nodes} == {"there"}
    assert all(node.label in n.label for n in op.builder.nodes)
    older = Pieces(node, opset=12).Relu(x).producer
    assert older is not None
    assert older.version == 12


def test_several_outputs_and_numbers_run():
    x, node = fused()
    graph = Graph([x], node.outputs, [node])
    op = Pieces(node)
    a, b = op.several(2, "Split", x, axis=0, num_outputs=2)
    assert a.producer is b.producer
    graph.replace_uses(node.outputs[0], op.Mul(op.Sub(a, b), op.number(0.5)))
    splice(graph, {node: op.builder.nodes})
    graph.check()
    (y,) = Planner(graph, num_threads=1).plan().executable.run([np.float32([5, 6, 1, 3])])
    assert y.tolist() == [2.0, 1.5]


def test_what_is_withdrawn_reads_nothing():
    x, node = fused()
    op = Pieces(node)
    op.Mul(op.Relu(x), x)
    assert len(x.uses) == 3
    op.withdraw()
    assert list(x.uses) == [(node, 0)]
