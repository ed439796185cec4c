"""Every pass runs in its place, none twice, and with QRUNTIME_CHECK one that breaks the graph is named."""

from __future__ import annotations

from pathlib import Path

import pytest

import qruntime
from qruntime.errors import InvalidModel
from qruntime.ir import QRUNTIME, Value, clone
from qruntime.passes import pipeline
from tests.small_models import assert_same_bits, encoder_bytes, random

X = {"x": random(2, 3, 32)}


def test_a_pass_is_listed_once_and_says_what_it_does():
    for passes in (pipeline.CANONICAL, pipeline.LOWERED):
        names = [one.__name__ for one in passes if one is not pipeline.remove_dead_nodes]
        assert len(names) == len(set(names))
        assert all(one.__doc__ for one in passes)
    assert pipeline.CANONICAL[-1] is pipeline.LOWERED[-1] is pipeline.remove_dead_nodes


def test_canonical_graphs_have_no_operator_of_ours_and_stay_as_they_are():
    graph = qruntime.load(encoder_bytes()).graph
    assert not any(node.domain == QRUNTIME for node in graph.walk_nodes())
    again = pipeline.canonical(clone(graph))
    assert [n.op_type for n in again.walk_nodes()] == [n.op_type for n in graph.walk_nodes()]


def test_lowering_says_each_pass(capsys, monkeypatch):
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    pipeline.lowered(clone(qruntime.load(encoder_bytes()).graph))
    said = capsys.readouterr().err
    assert all(f"qruntime: pass {one.__name__}\n" in said for one in pipeline.LOWERED)


def test_checks_change_nothing(monkeypatch):
    expected = qruntime.load(encoder_bytes()).run(X)["y"]
    monkeypatch.setenv("QRUNTIME_CHECK", "1")
    assert_same_bits(qruntime.load(encoder_bytes()).run(X)["y"], expected)


@pytest.mark.parametrize("checked", [False, True])
def test_a_pass_that_breaks_the_graph_is_named(checked, monkeypatch):
    def break_links(graph):
        node = next(n for n in graph.nodes if n.is_op("MatMul"))
        node._inputs[0] = Value("nobody's")

    monkeypatch.setenv("QRUNTIME_CHECK", "1" if checked else "0")
    graph = clone(qruntime.load(encoder_bytes()).graph)
    if checked:
        with pytest.raises(InvalidModel, match="after pass break_links: MatMul"):
            pipeline._run([break_links], graph)
    else:
        pipeline._run([break_links], graph)


BESIDE = {
    "channels_last": "test_static_quantization.py",
    "code_tables": "test_static_quantization.py",
    "quantized_pairs": "test_static_quantization.py",
    "scaled_codes": "test_static_quantization.py",
    "convolution": "../quantization/test_convolution.py",
    "recurrent": "../quantization/test_recurrent_coverage.py",
}
"""Where passes are tested together with what they belong to; the others have a file of their name."""


def test_every_file_of_passes_has_tests():
    ours, tests = Path(pipeline.__file__).parent, Path(__file__).parent
    names = {path.stem for path in ours.glob("*.py") if path.stem != "__init__"}
    missing = [name for name in sorted(names) if not (tests / BESIDE.get(name, f"test_{name}.py")).exists()]
    assert not missing
