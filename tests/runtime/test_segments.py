"""Parts of graphs: the bits of a whole run, from known values, with nothing held that nobody will read."""

from __future__ import annotations

import gc
import itertools
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.errors import InputError
from qruntime.ir import Graph, Node, Value, clone, clone_part, constant
from qruntime.onnx_io.importer import load_graph
from qruntime.passes import pipeline
from qruntime.runtime.plan import Planner
from qruntime.runtime.segments import Frontier, Segment, fed_values
from qruntime.runtime.spilling import Spilling
from tests.small_models import FLOAT, assert_same_bits, encoder_bytes, model_bytes, random

FEEDS = [{"x": random(2, 5, 32)}, {"x": random(1, 9, 32, seed=1)}, {"x": random(3, 1, 32, seed=2)}]


def canonical(data: bytes) -> Graph:
    return pipeline.canonical(load_graph(data)[0])


def whole(graph: Graph, feed: dict[str, np.ndarray], outputs: Sequence[Value] | None = None) -> list[np.ndarray]:
    """A run of all of `graph` as it is."""
    return Planner(graph, num_threads=1).plan(outputs).executable.run([feed[value.name] for value in graph.inputs])


def value_named(graph: Graph, name: str) -> Value:
    return next(v for node in graph.nodes for v in (*node.inputs, *node.outputs) if v is not None and v.name == name)


def layers_of(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.is_op("MatMul") and node.inputs[1].data is not None]


def branching_bytes() -> bytes:
    """z = a if c else a @ w, y = z + b with a = exp(x), b = sqrt(a): the branches capture what a node makes, and a weight."""
    t, e = (helper.make_tensor_value_info(name, FLOAT, None) for name in "te")
    then = helper.make_graph([helper.make_node("Identity", ["a"], ["t"])], "then", [], [t])
    other = helper.make_graph([helper.make_node("MatMul", ["a", "w"], ["e"])], "else", [], [e])
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("Sqrt", ["a"], ["b"]),
        helper.make_node("If", ["c"], ["z"], then_branch=then, else_branch=other, name="choice"),
        helper.make_node("Add", ["z", "b"], ["y"]),
    ]
    return model_bytes(nodes, [("x", FLOAT, ["n", 4]), ("c", TensorProto.BOOL, [])], [("y", FLOAT, None)], {"w": random(4, 4)})


@pytest.mark.parametrize("lowered", [False, True])
def test_every_cut_of_an_encoder_gives_the_bits_of_a_whole_run(lowered: bool) -> None:
    graph = canonical(encoder_bytes())
    if lowered:
        graph = pipeline.lowered(graph)
    (expected,) = whole(graph, FEEDS[0])
    start = graph.inputs[0]
    for node in graph.nodes:
        later = graph.nodes[graph.nodes.index(node) :]
        made = {v for n in later for v in n.outputs}
        cut = list(dict.fromkeys(v for n in later for v in n.inputs if v and v not in made and not v.is_constant))
        known = Segment(graph, [start], cut, num_threads=1).run({start: FEEDS[0]["x"]})
        second = Segment(graph, cut, graph.outputs, num_threads=1)
        assert_same_bits(second.run(known)[graph.outputs[0]], expected)


def test_a_segment_runs_nothing_but_what_is_wanted() -> None:
    graph = canonical(encoder_bytes(layers=2))
    start, wanted = value_named(graph, "l0.norm1"), value_named(graph, "l0.gelu")
    part = clone_part(graph, [start], [wanted])
    assert {node.op_type for node in part.nodes} == {"MatMul", "Add", "Div", "Erf", "Mul"}
    assert all("l0.up" in node.name or "l0.g" in node.name for node in part.nodes)
    part.check()
    graph.check()  # which it leaves alone


def test_lowered_parts_use_the_kernels_of_a_whole_model() -> None:
    graph = canonical(encoder_bytes())
    start, wanted = value_named(graph, "l0.norm1"), value_named(graph, "l0.norm2")
    x = random(2, 5, 32)
    plain = Segment(graph, [start], [wanted], num_threads=1).run({start: x})[wanted]
    lowered = Segment(graph, [start], [wanted], num_threads=1, lower=True).run({start: x})[wanted]
    # Layer norm divides by the deviation of sums of 128 products, each within half an ulp.
    np.testing.assert_allclose(lowered, plain, rtol=0, atol=128 * np.finfo(np.float32).eps * np.abs(plain).max())


@pytest.mark.parametrize("condition", [False, True])
def test_subgraphs_capture_from_the_start_values(condition: bool) -> None:
    graph = canonical(branching_bytes())
    x, c = graph.inputs
    feed = {"x": random(3, 4), "c": np.array(condition)}
    (expected,) = whole(graph, feed)
    a = value_named(graph, "a")
    known = Segment(graph, [x], [a], num_threads=1).run({x: feed["x"]}) | {c: feed["c"]}
    assert_same_bits(Segment(graph, [a, c], graph.outputs, num_threads=1).run(known)[graph.outputs[0]], expected)
    (walked,) = Frontier(graph, [fed_values(graph, feed)], num_threads=1).finish()
    assert_same_bits(walked[0], expected)


def test_what_is_wanted_may_be_given_or_constant() -> None:
    graph = canonical(encoder_bytes())
    start, weight = graph.inputs[0], value_named(graph, "l0.q.w")
    x = random(1, 2, 32)
    found = Segment(graph, [start], [weight, start], num_threads=1).run({start: x})
    assert list(found) == [weight, start]
    assert_same_bits(found[start], x)
    assert not np.shares_memory(found[start], x)
    assert_same_bits(found[weight], weight.data)
    assert Segment(graph, [], [], num_threads=1).run({}) == {}
    assert list(Segment(graph, [], [weight], num_threads=1).run({})) == [weight]


def test_a_start_takes_the_place_of_a_constant() -> None:
    graph = canonical(encoder_bytes())
    start, weight = graph.inputs[0], value_named(graph, "l0.q.w")
    product = value_named(graph, "l0.q.product")
    other = random(32, 32, seed=9)
    found = Segment(graph, [start, weight], [product], num_threads=1).run({start: FEEDS[0]["x"], weight: other})
    node = product.producer
    assert node is not None
    node.set_input(1, constant("other", other))
    assert_same_bits(found[product], whole(graph, FEEDS[0], [product])[0])


def test_a_known_output_of_a_node_stays_what_it_is() -> None:
    nodes = [helper.make_node("Split", ["x"], ["a", "b"], axis=0), helper.make_node("Sub", ["a", "b"], ["y"])]
    graph = canonical(model_bytes(nodes, [("x", FLOAT, [4])], [("y", FLOAT, None)]))
    x, a = graph.inputs[0], value_named(graph, "a")
    given = {x: np.float32([1, 2, 3, 4]), a: np.float32([10, 20])}
    assert_same_bits(Segment(graph, [x, a], graph.outputs, num_threads=1).run(given)[graph.outputs[0]], np.float32([7, 16]))


def test_what_cannot_be_computed_is_named() -> None:
    graph = canonical(branching_bytes())
    a = value_named(graph, "a")
    with pytest.raises(InputError, match=r"If 'choice' needs 'c', which is not computed from 'a'; start from it too"):
        Segment(graph, [a], graph.outputs, num_threads=1)
    with pytest.raises(InputError, match=r"needs 'x', which is not computed from nothing"):
        Segment(graph, [], [a], num_threads=1)
    with pytest.raises(InputError, match="the part needs 'x'"):
        Segment(graph, [], [graph.inputs[0]], num_threads=1)
    with pytest.raises(InputError, match="starts from 'a', which is not given"):
        Segment(graph, [a], [value_named(graph, "b")], num_threads=1).run({})


@pytest.mark.parametrize("lower", [False, True])
def test_walking_changes_no_bit(lower: bool) -> None:
    graph = canonical(encoder_bytes())
    walk = Frontier(graph, [fed_values(graph, feed) for feed in FEEDS], num_threads=1, lower=lower)
    for layer in layers_of(graph):
        observed = walk.reach(layer)
        for feed, (x, weight) in zip(FEEDS, observed, strict=True):
            assert weight is None
            if not lower:
                assert_same_bits(x, whole(graph, feed, [layer.inputs[0]])[0])
    for feed, outputs in zip(FEEDS, walk.finish(), strict=True):
        (expected,) = whole(graph, feed)
        if lower:
            np.testing.assert_allclose(outputs[0], expected, rtol=0, atol=1e-4)
        else:
            assert_same_bits(outputs[0], expected)


def test_layers_see_what_replaced_weights_made() -> None:
    graph, other = (canonical(encoder_bytes()) for _ in range(2))
    walk = Frontier(graph, [fed_values(graph, feed) for feed in FEEDS], num_threads=1)
    for layer, twin in zip(layers_of(graph), layers_of(other), strict=True):
        observed = walk.reach(layer)
        for feed, (x, _) in zip(FEEDS, observed, strict=True):
            assert_same_bits(x, whole(other, feed, [twin.inputs[0]])[0])
        for node in (layer, twin):
            node.set_input(1, constant("coarse", np.round(node.inputs[1].data * 8) / 8))
    for feed, outputs in zip(FEEDS, walk.finish(), strict=True):
        assert_same_bits(outputs[0], whole(other, feed)[0])


def test_nodes_may_be_inserted_before_a_stop() -> None:
    graph = canonical(encoder_bytes(layers=1))
    layer = layers_of(graph)[3]
    walk = Frontier(graph, [fed_values(graph, FEEDS[0])], num_threads=1)
    ((x, _),) = walk.reach(layer)
    scaled = Value("scaled")
    graph.insert_before(layer, Node("Mul", [layer.inputs[0], constant("two", np.float32(2))], [scaled], version=17))
    layer.set_input(0, scaled)
    ((doubled, _),) = walk.reach(layer)
    assert_same_bits(doubled, x * 2)
    assert_same_bits(walk.finish()[0][0], whole(graph, FEEDS[0])[0])


def test_only_what_will_be_read_is_held() -> None:
    graph = canonical(encoder_bytes(layers=2))
    walk = Frontier(graph, [fed_values(graph, feed) for feed in FEEDS], num_threads=1)
    layers = layers_of(graph)
    released = []
    for layer in layers:
        ((x, _), *_) = walk.reach(layer)
        released.append(weakref.ref(x if x.base is None else x.base))
        later = graph.nodes[graph.nodes.index(layer) :]
        read = {v for node in later for v in node.inputs if v is not None and not v.is_constant}
        made = {v for node in later for v in node.outputs}
        assert all(batch.keys() == read - made for batch in walk.held)
    gc.disable()
    try:
        del x
        walk.finish()
        assert not any(ref() is not None for ref in released[3:])  # query, key and value of the first read what was fed
        assert all(batch.keys() == set(graph.outputs) for batch in walk.held)
    finally:
        gc.enable()


def test_a_segment_gives_its_constants_back_at_once() -> None:
    graph = canonical(encoder_bytes())
    layer = layers_of(graph)[0]
    ours = constant("ours", random(32, 32))
    layer.set_input(1, ours)
    gc.disable()
    try:
        segment = Segment(graph, [layer.inputs[0]], layer.outputs, num_threads=1, lower=True)
        segment.run({layer.inputs[0]: FEEDS[0]["x"]})
        data, ours.data = weakref.ref(ours.data), random(32, 32)
        del segment
        assert data() is None
    finally:
        gc.enable()


def test_an_observer_cannot_change_what_follows() -> None:
    graph = canonical(encoder_bytes())
    feed = {"x": FEEDS[0]["x"].copy()}
    walk = Frontier(graph, [fed_values(graph, feed)], num_threads=1)
    for layer in layers_of(graph)[::6]:
        ((x, _),) = walk.reach(layer)
        with pytest.raises(ValueError, match="read-only"):
            x[:] = 0
    feed["x"][:] = 1  # the array that was fed stays the caller's


def test_stops_are_in_running_order_and_in_the_graph() -> None:
    graph = canonical(encoder_bytes())
    layers = layers_of(graph)
    walk = Frontier(graph, [fed_values(graph, FEEDS[0])], num_threads=1)
    first = walk.reach(layers[2])
    assert_same_bits(walk.reach(layers[2])[0][0], first[0][0])  # once more is fine
    with pytest.raises(InputError, match=r"cannot stop before MatMul '/l0.q.product/MatMul': it has run already"):
        walk.reach(layers[0])
    with pytest.raises(InputError, match="it lies in another graph"):
        walk.reach(layers_of(clone(graph))[0])
    gone = Node("Exp", [graph.inputs[0]], [Value("nobody's")], version=17)
    with pytest.raises(InputError, match="it is in no graph"):
        walk.reach(gone)
    branching = canonical(branching_bytes())
    inner = next(node for node in branching.walk_nodes() if node.is_op("MatMul"))
    feed = fed_values(branching, {"x": random(2, 4), "c": np.array(False)})
    with pytest.raises(InputError, match="a subgraph runs as a whole"):
        Frontier(branching, [feed], num_threads=1).reach(inner)


def test_a_walk_towards_some_values_runs_nothing_else() -> None:
    graph = canonical(encoder_bytes(layers=2))
    target = value_named(graph, "l0.norm1")
    walk = Frontier(graph, [fed_values(graph, FEEDS[0])], outputs=[target], num_threads=1)
    with pytest.raises(InputError, match="nothing that the walk is for needs it"):
        walk.reach(layers_of(graph)[-1])
    assert_same_bits(walk.finish()[0][0], whole(graph, FEEDS[0], [target])[0])


def test_a_walk_may_start_behind_the_inputs() -> None:
    graph = canonical(encoder_bytes(layers=2))
    start = value_named(graph, "l0.norm2")
    batches = [{start: whole(graph, feed, [start])[0]} for feed in FEEDS]
    for feed, outputs in zip(FEEDS, Frontier(graph, batches, num_threads=1).finish(), strict=True):
        assert_same_bits(outputs[0], whole(graph, feed)[0])
    with pytest.raises(InputError, match="batch 1 and batch 0 start from different values"):
        Frontier(graph, [batches[0], {}], num_threads=1)


def test_no_batches_and_empty_ones() -> None:
    graph = canonical(encoder_bytes())
    walk = Frontier(graph, [], num_threads=1)
    assert walk.reach(layers_of(graph)[1]) == []
    assert walk.finish() == []
    feed = {"x": np.zeros((0, 5, 32), np.float32)}
    walk = Frontier(graph, [fed_values(graph, feed)], num_threads=1)
    assert walk.reach(layers_of(graph)[1])[0][0].shape == (0, 5, 32)
    assert walk.finish()[0][0].shape == (0, 5, 32)


def test_outputs_that_are_inputs_or_constants() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    data = model_bytes(nodes, [("x", FLOAT, ["n"])], [("y", FLOAT, None), ("x", FLOAT, ["n"]), ("w", FLOAT, None)], {"w": random(3)})
    graph = canonical(data)
    x = np.float32([-1, 2])
    ((y, same, w),) = Frontier(graph, [fed_values(graph, {"x": x})], num_threads=1).finish()
    assert_same_bits(y, np.float32([0, 2]))
    assert_same_bits(same, x)
    assert_same_bits(w, random(3))


def test_values_that_are_no_native_tensors() -> None:
    """Strings, sequences and bfloat16 pass from one segment to the next."""
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node("SequenceConstruct", ["half", "half"], ["pair"]),
        helper.make_node("SequenceAt", ["pair", "one"], ["back"]),
        helper.make_node("Cast", ["back"], ["wide"], to=FLOAT),
        helper.make_node("Cast", ["wide"], ["text"], to=TensorProto.STRING),
    ]
    graph = canonical(model_bytes(nodes, [("x", FLOAT, ["n"])], [("text", TensorProto.STRING, None)], {"one": np.int64(1)}))
    walk = Frontier(graph, [fed_values(graph, {"x": np.float32([1, 2.5])})], num_threads=1)
    for node in list(graph.nodes):
        walk.reach(node)
    ((text,),) = walk.finish()
    assert list(text) == list(whole(graph, {"x": np.float32([1, 2.5])})[0])


def test_feeds_are_checked() -> None:
    graph = canonical(encoder_bytes())
    with pytest.raises(InputError, match="missing input 'x'"):
        fed_values(graph, {})
    with pytest.raises(InputError, match=r"unknown input 'z'; the inputs are: x"):
        fed_values(graph, {"x": FEEDS[0]["x"], "z": 1})
    with pytest.raises(InputError, match=r"input 'x': needs float32"):
        fed_values(graph, {"x": np.zeros((1, 2, 32), np.int64)})


def test_quantized_layers_run_in_parts() -> None:
    model = qruntime.load(encoder_bytes(), threads=1).quantize_dynamic()
    graph = pipeline.lowered(clone(model.graph))
    expected = model.run(FEEDS[1])["y"]
    walk = Frontier(graph, [fed_values(graph, FEEDS[1])], num_threads=1)
    for node in list(graph.nodes):
        walk.reach(node)
    assert_same_bits(walk.finish()[0][0], expected)


def test_a_walk_towards_stops_holds_what_they_need_and_no_more() -> None:
    graph = canonical(encoder_bytes(layers=2))
    layers = layers_of(graph)[:4]
    walk = Frontier(graph, [fed_values(graph, FEEDS[0])], stops=layers, num_threads=1)
    for layer in layers:
        ((x, _),) = walk.reach(layer)
        assert_same_bits(x, whole(graph, FEEDS[0], [layer.inputs[0]])[0])
    assert set(walk.held[0]) == {layers[-1].inputs[0]}
    with pytest.raises(InputError, match="it has run already, or nothing that the walk is for needs it"):
        walk.reach(layers[0])
    with pytest.raises(InputError, match="nothing that the walk is for needs it"):
        walk.reach(layers_of(graph)[-1])


def test_a_walk_holds_more_for_a_stop_where_it_is_told_to() -> None:
    graph = canonical(encoder_bytes(layers=2))
    first, second = layers_of(graph)[:2]
    more = graph.inputs[0]
    walk = Frontier(graph, [fed_values(graph, FEEDS[0])], stops=[first, second], holds={second: [more]}, num_threads=1)
    walk.reach(second)
    assert set(walk.held[0]) == {second.inputs[0], more}
    assert_same_bits(walk.held[0][more], fed_values(graph, FEEDS[0])[more])


def test_what_is_known_as_codes_too_is_made_of_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that kernels that multiply codes have them; while a walk stands before a node, it has the numbers."""
    k, scale, zero = 64, np.float32([0.1, 0.3])[np.arange(64) % 2], np.uint8([3, 100])[np.arange(64) % 2]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["codes"], axis=-1),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["r"], axis=-1),
        *(helper.make_node("MatMul", [x, w], [y]) for x, w, y in (("r", "w", "a"), ("r", "v", "b"), ("a", "u", "c"))),
        helper.make_node("Add", ["c", "b"], ["y"]),
    ]
    weights = {"s": scale, "z": zero, "w": random(k, k), "v": random(k, k, seed=1), "u": random(k, k, seed=2)}
    made = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", k])], [("y", FLOAT, ["m", k])], weights, opset=21)).quantize(scheme="W4A16")
    graph, feed = made.graph, {"x": random(5, k)}
    first, _, last = (node for node in graph.nodes if node.op_type == "MatMul")
    rounded, codes = first.inputs[0], value_named(graph, "codes")
    lowered, seen = pipeline.lowered, []
    monkeypatch.setattr(pipeline, "lowered", lambda part: seen.append([node.op_type for node in lowered(part).nodes]) or part)
    walk = Frontier(graph, [fed_values(graph, feed)], stops=[first, last], holds={first: [codes]}, num_threads=1, lower=True)
    ((reached, _),) = walk.reach(first)
    assert set(walk.held[0]) == {rounded, codes}
    before = walk.held
    walk.reach(last)
    assert seen == [["QuantizeLinear", "DequantizeLinear"], ["Gather", "ClusteredLinear"]]
    assert set(walk.held[0]) == {last.inputs[0]}  # b is needed by nothing that the walk is for
    assert_same_bits(before[0][rounded], reached)
    part = lowered(clone_part(graph, graph.inputs, [last.inputs[0]]))
    assert_same_bits(walk.held[0][last.inputs[0]], whole(part, feed)[0])


def test_what_others_computed_is_not_run_again() -> None:
    graph = canonical(encoder_bytes())
    first, *_, last = layers_of(graph)
    walk = Frontier(graph, [fed_values(graph, feed) for feed in FEEDS], stops=[first, last], num_threads=1)
    walk.reach(first)
    made = last.inputs[0]
    known = [random(*feed["x"].shape[:2], 4 * 32, seed=9) for feed in FEEDS]
    walk.know([{made: array} for array in known])
    for (seen, _), array in zip(walk.reach(last), known, strict=True):
        assert np.shares_memory(seen, array)
        assert not seen.flags.writeable
    assert all(set(held) == {made} for held in walk.held)


def test_the_last_stop_may_stand_before_nothing() -> None:
    graph = canonical(encoder_bytes())
    last = graph.nodes[-1]
    walk = Frontier(graph, [fed_values(graph, FEEDS[0])], stops=[last], num_threads=1)
    read = [value for value in last.inputs if value is not None and not value.is_constant]
    assert set(walk.held[0]) == set(graph.inputs)
    walk.reach(last)
    assert set(walk.held[0]) == set(read)


@pytest.mark.parametrize("lower", [False, True])
def test_batches_side_by_side_give_the_bits_of_one_after_the_other(lower: bool) -> None:
    graph = canonical(encoder_bytes())
    feeds = [{name: array[:, : 3 + i % 4] for name, array in FEEDS[0].items()} for i in range(23)]
    walks = [Frontier(graph, [fed_values(graph, feed) for feed in feeds], num_threads=n, lower=lower) for n in (1, 3)]
    for layer in layers_of(graph):
        for one, other in zip(*(walk.reach(layer) for walk in walks), strict=True):
            for left, right in zip(one, other, strict=True):
                assert (left is None) == (right is None)
                assert left is None or np.array_equal(left, right)
    for one, other in zip(*(walk.finish() for walk in walks), strict=True):
        assert all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))


def test_batches_side_by_side_do_not_run_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made and is not spilled yet lies in memory."""
    graph, begun, ahead = canonical(encoder_bytes()), [], []
    run, take = Segment.run, Spilling.take

    def counted(segment: Segment, known: Any) -> Any:
        begun.append(segment)
        return run(segment, known)

    def slow(spilling: Spilling, batch: Any) -> None:
        time.sleep(0.005)
        taken.append(batch)
        ahead.append(len(begun) - len(taken))
        take(spilling, batch)

    taken: list[Any] = []
    monkeypatch.setattr(Segment, "run", counted)
    monkeypatch.setattr(Spilling, "take", slow)
    Frontier(graph, [fed_values(graph, FEEDS[0]) for _ in range(20)], num_threads=2).finish()
    assert len(taken) == len(begun) == 20
    assert {segment.num_threads for segment in begun} == {1}
    assert max(ahead) <= 3


def test_a_batch_that_fails_ends_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = canonical(encoder_bytes())
    walk = Frontier(graph, [fed_values(graph, FEEDS[0]) for _ in range(12)], num_threads=2)
    run, count = Segment.run, itertools.count()

    def failing(segment: Segment, known: Any) -> Any:
        if next(count) == 7:
            raise MemoryError("the eighth")
        return run(segment, known)

    monkeypatch.setattr(Segment, "run", failing)
    with pytest.raises(MemoryError, match="the eighth"):
        walk.finish()
    assert next(count) < 12


def test_types_of_starts_come_from_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them a norm in several nodes stays several: a float16 in between would be rounded."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Mul", ["h", "h"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["m"], axes=[-1]),
        helper.make_node("Add", ["m", "eps"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["r"]),
        helper.make_node("Div", ["h", "r"], ["y"]),
    ]
    constants = {"eps": np.float32(1e-5)}
    graph = canonical(model_bytes(nodes, [("x", FLOAT, ["b", 32])], [("y", FLOAT, ["b", 32])], constants))
    h, y = value_named(graph, "h"), graph.outputs[0]
    for node in graph.nodes:
        for value in node.outputs:
            value.type = None
    seen: list[list[str]] = []
    lowered = pipeline.lowered
    monkeypatch.setattr(pipeline, "lowered", lambda part: (lowered(part), seen.append([node.op_type for node in part.nodes]))[0])
    given = random(4, 32)
    results = [Segment(graph, [h], [y], num_threads=1, lower=True, like=like).run({h: given})[y] for like in (None, {h: given})]
    assert "RMSNormalization" not in seen[0]
    assert seen[1] == ["RMSNormalization"]
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
    walk = Frontier(graph, [fed_values(graph, {"x": given})], stops=[graph.nodes[1]], num_threads=1, lower=True)
    walk.reach(graph.nodes[1])
    Frontier(graph, [{h: given}], num_threads=1, lower=True).finish()
    assert seen[-1] == ["RMSNormalization"]


def test_some_batches_go_on_to_the_outputs() -> None:
    """The others hold what stops read and no more; what those that finish put out are the bits of a whole run."""
    graph = canonical(encoder_bytes())
    layers = layers_of(graph)
    batches = [fed_values(graph, feed) for feed in FEEDS]
    wanted = [Frontier(graph, [batch], num_threads=1).finish()[0] for batch in batches]
    walk = Frontier(graph, batches, stops=layers, finishing=[2, 0], num_threads=1)
    plain = Frontier(graph, batches, stops=layers, num_threads=1)
    for layer in layers:
        for one, other in zip(walk.reach(layer), plain.reach(layer), strict=True):
            for a, b in zip(one, other, strict=True):
                assert (a is None) == (b is None) and (a is None or np.array_equal(a, b))
        assert walk.held[1].keys() == plain.held[1].keys()
    for made, number in zip(walk.finish(), [2, 0], strict=True):
        assert_same_bits(made[0], wanted[number][0])
