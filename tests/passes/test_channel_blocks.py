"""Islands of channels in blocks: which there are, and that they compute what the operators one by one do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ir import clone
from qruntime.passes import pipeline
from qruntime.runtime.plan import Planner
from tests.passes.lowering import as_loaded, reasons

F32 = np.float32
PADS = {"pads": [1, 1, 1, 1]}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Such that a convolution keeps the size of what it reads."""
    depth = max(1, int(np.prod(shape[1:])))
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) / np.sqrt(depth)).astype(F32)


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(F32)


def loaded(nodes, x, constants, outputs=("y",), opset=17):
    code = helper.np_dtype_to_tensor_dtype(x.dtype)
    used = {name for _, ins, _, _ in nodes for name in ins}
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "g",
        [helper.make_tensor_value_info("x", code, [None] * x.ndim)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for name in graph.output:
        name.type.tensor_type.elem_type = TensorProto.INT64 if name.name.startswith("shape") else code
    return qruntime.load(model.SerializeToString())


def compared(nodes, x, constants, outputs=("y",), opset=17, tolerance=2e-5):
    """Operators of the lowered graph, once it gives what the operators as loaded give by themselves."""
    model = loaded(nodes, x, constants, outputs, opset)
    plain = Planner(as_loaded(model.graph), num_threads=1).plan()
    graph = pipeline.lowered(clone(model.graph))
    graph.check()
    plan = Planner(graph, num_threads=1).plan()
    for wanted, got in zip(plain.executable.run([x]), plan.executable.run([x]), strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        # Sums of other orders differ by a share of what is added, which a sum may be far below.
        largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * max(1.0, float(largest)))
    return Counter(node.op_type for node in graph.walk_nodes())


def conv(x: str, w: str, y: str, **attributes: Any) -> tuple[str, list[str], list[str], dict[str, Any]]:
    return ("Conv", [x, w], [y], {**PADS, **attributes})


C = {f"w{i}": numbers(32, 32, 3, 3, seed=i) for i in range(4)} | {
    "one": numbers(32, 32, 1, 1), "few": numbers(4, 32, 3, 3), "first": numbers(32, 3, 3, 3), "depthwise": numbers(32, 1, 3, 3),
    "down": numbers(8, 32, 1, 1), "up": numbers(32, 8, 1, 1), "seventeen": numbers(17, 32, 3, 3), "grouped": numbers(40, 16, 3, 3),
    "halves": numbers(64, 16, 3, 3),
    "small": numbers(32, 4, 3, 3), "of eight": numbers(32, 8, 3, 3), "wide": numbers(32, 4, 5, 5),
    "k": image(32, 1, 1), "slopes": image(32, 1, 1), "number": np.float32(0.5), "plane": image(1, 1, 9, 8), "whole": image(2, 32, 9, 8),
    "scales": np.asarray([1, 1, 2, 2], F32),
}  # fmt: skip
X = image(2, 32, 9, 8)


def relu(x: str, y: str) -> tuple[str, list[str], list[str], dict[str, Any]]:
    return ("Relu", [x], [y], {})


@pytest.mark.parametrize(
    ("between", "left"),
    [
        ([relu("h", "i")], {}),
        ([("Tanh", ["h"], ["i"], {})], {}),
        ([("Add", ["h", "k"], ["i"], {})], None),
        ([relu("h", "g"), ("Mul", ["g", "k"], ["i"], {})], {"Mul": 1}),
        ([relu("h", "g"), ("Sub", ["number", "g"], ["i"], {})], {"Sub": 1}),
        ([relu("h", "g"), ("Add", ["g", "plane"], ["i"], {})], {"Add": 1}),
        ([relu("h", "g"), ("Add", ["whole", "g"], ["i"], {})], {"Add": 1}),
        ([("PRelu", ["h", "slopes"], ["i"], {})], {"PRelu": 1}),
        ([("MaxPool", ["h"], ["i"], {"kernel_shape": [2, 2], "strides": [2, 2]})], {"BlockedMaxPool": 1}),
        ([("AveragePool", ["h"], ["i"], {"kernel_shape": [3, 3], **PADS})], {"BlockedAveragePool": 1}),
        ([("GlobalAveragePool", ["h"], ["i"], {})], {"BlockedGlobalAveragePool": 1}),
        ([("ReduceMean", ["h"], ["i"], {"axes": [-1, 2]})], {"BlockedGlobalAveragePool": 1}),
        ([("Resize", ["h", "", "scales"], ["i"], {"mode": "linear"})], {"Resize": 1}),
        ([conv("h", "depthwise", "i", group=32, strides=[2, 2])], {}),
    ],
)  # fmt: skip
def test_operators_between_convolutions_stay_in_blocks(between, left) -> None:
    nodes = [conv("x", "w0", "h"), *between, conv("i", "w1", "y")]
    ops = compared(nodes, X, C)
    assert (ops["BlockChannels"], ops["UnblockChannels"], ops["Conv"]) == (1, 1, 0)
    assert ops["BlockedConv"] == 2 + sum(op == "Conv" for op, *_ in between)
    if left is not None:
        assert sum(ops.values()) == 2 + ops["BlockedConv"] + sum(left.values())
        assert left.items() <= ops.items()


def test_a_residual_block_is_one_island() -> None:
    nodes = [
        conv("x", "w0", "a"), relu("a", "b"), conv("b", "w1", "c"), ("Add", ["c", "b"], ["d"], {}), relu("d", "e"), conv("e", "w2", "f"),
        conv("e", "one", "g", pads=[0] * 4), ("Add", ["f", "g"], ["h"], {}), ("GlobalAveragePool", ["h"], ["y"], {}),
    ]  # fmt: skip
    assert compared(nodes, X, C) == {"BlockChannels": 1, "BlockedConv": 4, "BlockedGlobalAveragePool": 1, "UnblockChannels": 1}


def test_a_gate_of_each_channel() -> None:
    nodes = [
        conv("x", "w0", "a"), relu("a", "b"), ("GlobalAveragePool", ["b"], ["m"], {}), conv("m", "down", "n", pads=[0] * 4),
        relu("n", "o"), conv("o", "up", "p", pads=[0] * 4), ("Sigmoid", ["p"], ["q"], {}), ("Mul", ["b", "q"], ["r"], {}),
        conv("r", "w1", "y"),
    ]  # fmt: skip
    ops = compared(nodes, X, C)
    assert (ops["BlockedConv"], ops["BlockChannels"], ops["UnblockChannels"]) == (4, 1, 1)


@pytest.mark.parametrize("added", [["c", "n"], ["n", "c"]])
def test_a_number_of_each_channel_is_no_residual(added: list[str]) -> None:
    """Nor is an image one of such numbers: a kernel that takes residuals of its size would decline every run."""
    nodes = [
        conv("x", "w0", "a"), relu("a", "b"), ("GlobalAveragePool", ["b"], ["m"], {}), conv("m", "one", "l", pads=[0] * 4),
        ("Add", ["l", "m"], ["n"], {}), conv("b", "w1", "c"), ("Add", added, ["y"], {}),
    ]  # fmt: skip
    ops = compared(nodes, X, C)
    assert (ops["BlockedConv"], ops["Add"]) == (3, 1)  # that of l and m is a residual


def test_an_image_of_few_channels_is_read_as_it_is() -> None:
    assert compared([conv("x", "first", "h"), relu("h", "i"), conv("i", "w0", "y")], image(2, 3, 9, 8), C) == {
        "BlockedConv": 2,
        "UnblockChannels": 1,
    }


@pytest.mark.parametrize("maps", [1, 4, 7])
def test_few_outputs_of_one_product_for_each_number_stay_in_blocks(maps: int) -> None:
    constants = {**C, "last": numbers(maps, 32, 1, 1), "bias": numbers(maps)}
    ops = compared([conv("x", "w0", "h"), relu("h", "i"), ("Conv", ["i", "last", "bias"], ["y"], {})], X, constants)
    assert (ops["BlockedConv"], ops["Conv"], ops["UnblockChannels"]) == (2, 0, 1)
    alone = compared([("Conv", ["x", "last", "bias"], ["y"], {})], X, constants)
    assert (alone["BlockedConv"], alone["Conv"]) == (0, 1)


@pytest.mark.parametrize(
    "between",
    [
        [conv("h", "halves", "g", group=2), conv("g", "back", "i")],
        [conv("h", "small", "i", group=8)],
        [conv("h", "small", "i", group=8, strides=[2, 2], pads=[9, 2, 9, 2])],
        [conv("h", "small", "i", group=8, auto_pad="SAME_UPPER", pads=())],
        [conv("h", "of eight", "g", group=4), relu("g", "i")],
    ],
)
def test_groups_stay_in_blocks(between) -> None:
    between = [(op, ins, outs, {k: v for k, v in attributes.items() if v != ()}) for op, ins, outs, attributes in between]
    ops = compared([conv("x", "w0", "h"), *between, conv("i", "w1", "y")], X, {**C, "back": numbers(32, 64, 3, 3)})
    assert (ops["BlockChannels"], ops["UnblockChannels"], ops["Conv"]) == (1, 1, 0)


def transposed(x: str, w: str, y: str, **attributes: Any) -> tuple[str, list[str], list[str], dict[str, Any]]:
    return ("ConvTranspose", [x, w], [y], {"strides": [2, 2], **attributes})


T = {
    "t2": numbers(32, 32, 2, 2), "t4": numbers(32, 48, 4, 4), "t3": numbers(48, 32, 3, 3), "few outputs": numbers(32, 3, 2, 2),
    "t of groups": numbers(32, 16, 2, 2), "t of odd groups": numbers(32, 10, 2, 2),
}  # fmt: skip


def test_transposed_convolutions_stay_in_blocks() -> None:
    nodes = [
        conv("x", "w0", "a"), relu("a", "b"), transposed("b", "t4", "c", pads=[1, 1, 1, 1]), relu("c", "d"),
        transposed("d", "t3", "e", pads=[1, 1, 1, 1], output_padding=[1, 1]), ("Tanh", ["e"], ["f"], {}), conv("f", "w1", "y"),
    ]  # fmt: skip
    ops = compared(nodes, X, {**C, **T})
    assert ops == {"BlockChannels": 1, "BlockedConv": 2, "BlockedConvTranspose": 2, "UnblockChannels": 1}


def test_transposed_convolutions_of_one_weight_share_it() -> None:
    nodes = [transposed("x", "t2", "a"), transposed("x", "t2", "b", dilations=[1, 1]), relu("b", "c"), ("Add", ["a", "c"], ["y"], {})]
    model = loaded(nodes, X, T)
    graph = pipeline.lowered(clone(model.graph))
    made = [node for node in graph.nodes if node.op_type == "BlockedConvTranspose"]
    assert len(made) == 2
    assert made[0].input(1) is made[1].input(1)
    assert compared(nodes, X, T) == {"BlockChannels": 1, "BlockedConvTranspose": 2, "UnblockChannels": 1}


def test_a_decoder_joins_what_the_encoder_made() -> None:
    """Its image goes through item by item as well: one alone gives the bits that it gives in the batch."""
    nodes = [
        conv("x", "w0", "a"), relu("a", "b"), ("MaxPool", ["b"], ["c"], {"kernel_shape": [2, 2], "strides": [2, 2]}), conv("c", "w1", "d"),
        transposed("d", "t of groups", "e", group=2), ("Concat", ["b", "e"], ["f"], {"axis": 1}), conv("f", "both", "y"),
    ]  # fmt: skip
    constants = {**C, **T, "both": numbers(32, 64, 3, 3)}
    x = image(3, 32, 12, 8)
    ops = compared(nodes, x, constants)
    assert ops == {"BlockChannels": 1, "BlockedConv": 3, "BlockedMaxPool": 1, "BlockedConvTranspose": 1, "UnblockChannels": 1}
    model = loaded(nodes, x, constants)
    np.testing.assert_array_equal(model(x)[1:2], model(x[1:2]))


_GROUPS = "{} groups that are neither single channels nor whole blocks, nor small enough"


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (("Conv", ["h", "few"], ["y"], PADS), "4 outputs fill too little of a block"),
        (("Conv", ["h", "grouped"], ["y"], {**PADS, "group": 2}), _GROUPS.format(2)),
        (("Conv", ["h", "small"], ["y"], {**PADS, "group": 8, "dilations": [1, 2]}), _GROUPS.format(8)),
        (("Conv", ["h", "small"], ["y"], {**PADS, "group": 8, "strides": [3, 3]}), _GROUPS.format(8)),
        (("Conv", ["h", "small"], ["y"], {"pads": [0, 3, 0, 0], "group": 8}), _GROUPS.format(8)),
        (("Conv", ["h", "small"], ["y"], {"pads": [0, 0, 0, 3], "group": 8}), _GROUPS.format(8)),
        (("Conv", ["h", "wide"], ["y"], {**PADS, "group": 8}), _GROUPS.format(8)),
        (("Conv", ["h", "infinite"], ["y"], PADS), "a weight is not finite"),
        (transposed("h", "few outputs", "y"), "3 outputs fill too little of a block"),
        (transposed("h", "t of odd groups", "y", group=2), "2 groups that are no whole blocks"),
        (("MaxPool", ["h"], ["y", "z"], {"kernel_shape": [2, 2]}), "its input is not in blocks, or it does more than pool its pixels"),
        (("ReduceMean", ["h"], ["y"], {"axes": [2]}), "it is no mean of all pixels"),
        (("ReduceMean", ["h"], ["y"], {"axes": [2, 3], "keepdims": 0}), "it is no mean of all pixels"),
        (("Concat", ["h", "h"], ["y"], {"axis": 2}), "it does not join whole blocks"),
        (("Concat", ["h", "x"], ["y"], {"axis": 1}), "an input is not in blocks"),
        (("Add", ["h", "x"], ["y"], {}), "an operand is neither such an image nor a constant that fits it"),
        (("Split", ["h", "s"], ["y", "z"], {"axis": 1}), "it does not split whole blocks"),
        (("Split", ["h", "s"], ["y", "z"], {"axis": 0}), "its input is not in blocks, or it does not split channels"),
        (("Slice", ["h", "t", "e", "a"], ["y"], {}), "it does not take whole blocks"),
        (("Resize", ["h", "", "twice"], ["y"], {}), "its scales are no constants, or not those of pixels alone"),
        (("Resize", ["h", "", "", "sizes"], ["y"], {}), "its scales are no constants, or not those of pixels alone"),
    ],
)
def test_reasons_to_decline(last, reason, capsys, monkeypatch) -> None:
    infinite = C["w1"].copy()
    infinite[0, 0, 0, 0] = np.inf
    more = {
        "infinite": infinite, "s": np.asarray([1, 1] if last[-1].get("axis") == 0 else [10, 22]), "t": np.asarray([8]),
        "e": np.asarray([32]), "a": np.asarray([1]), "twice": np.asarray([1, 2, 2, 2], F32), "sizes": np.asarray([2, 32, 5, 5]),
    }  # fmt: skip
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    more.update(T)
    model = loaded([conv("x", "w0", "h"), last], X, {**C, **more})
    capsys.readouterr()
    graph = pipeline.lowered(clone(model.graph))
    said = [line for line in reasons(capsys) if line.startswith("keep_channel_blocks")]
    assert any(line.endswith(f": {reason}") for line in said), said
    assert any(node.op_type == last[0] for node in graph.nodes)
    monkeypatch.delenv("QRUNTIME_TRACE")
    with np.errstate(all="ignore"):
        compared([conv("x", "w0", "h"), last], X, {**C, **more})


def test_a_lone_pointwise_convolution_stays_as_it_is() -> None:
    ops = compared([conv("x", "one", "h", pads=[0] * 4), relu("h", "y")], X, C)
    assert ops == {"Conv": 1}
    assert compared([conv("x", "w0", "h"), relu("h", "y")], X, C) == {"BlockChannels": 1, "BlockedConv": 1, "UnblockChannels": 1}


def test_values_inside_may_be_read_outside() -> None:
    nodes = [
        conv("x", "w0", "a"), relu("a", "b"), conv("b", "seventeen", "c"), ("Shape", ["c"], ["shape"], {"start": 1}),
        ("Transpose", ["b"], ["t"], {"perm": [0, 2, 3, 1]}), ("Softmax", ["c"], ["s"], {"axis": 1}),
    ]  # fmt: skip
    ops = compared(nodes, X, C, ("a", "b", "c", "t", "s", "shape"))
    assert ops["BlockedConv"] == 2
    assert ops["BlockedShape"] == 1


def test_concat_and_split_of_whole_blocks() -> None:
    nodes = [
        conv("x", "w0", "a"), conv("x", "seventeen", "b"), ("Concat", ["a", "b"], ["c"], {"axis": -3}), relu("c", "d"),
        ("Split", ["d", "parts"], ["e", "f"], {"axis": 1}), conv("e", "w1", "g"), ("Slice", ["g", "zero", "half", "axis"], ["h"], {}),
    ]  # fmt: skip
    more = {"parts": np.asarray([32, 17]), "zero": np.asarray([-16]), "half": np.asarray([2**62]), "axis": np.asarray([-3])}
    ops = compared(nodes, X, {**C, **more}, ("f", "h"))
    assert (ops["BlockChannels"], ops["UnblockChannels"]) == (1, 2)


def test_an_image_of_other_channels_is_reported() -> None:
    """Also where they fill as many blocks as those of the weight do."""
    model = loaded([conv("x", "w0", "h"), relu("h", "y")], X, C)
    for channels in (17, 31, 33, 48):
        with pytest.raises(qruntime.RunError, match="32 channels"):
            model.run({"x": image(2, channels, 9, 8)})


@pytest.mark.parametrize(
    "last",
    [
        ("Slice", ["h", "zero", "ends", "one_axis", "zero"], ["y"], {}),
        ("Slice", ["h", "zero", "ends", "bad"], ["y"], {}),
        ("Slice", ["h", "zero", "ends", "two"], ["y"], {}),
        ("Split", ["h", "more"], ["y", "z"], {"axis": 1}),
        ("Split", ["h"], ["y", "z"], {"axis": 5}),
        ("Concat", ["h", "h"], ["y"], {"axis": 5}),
        ("ReduceMean", ["h"], ["y"], {"axes": [2, 7]}),
    ],
)
def test_what_is_wrong_is_reported_as_before(last) -> None:
    more = {"zero": [0], "ends": [16], "one_axis": [1], "bad": [5], "two": [1, 2], "more": [16, 20]}
    constants = {**C, **{name: np.asarray(value) for name, value in more.items()}}
    with pytest.raises(qruntime.RunError, match=last[0]):
        loaded([conv("x", "w0", "h"), last], X, constants).run({"x": X})


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
def test_opsets(opset: int) -> None:
    nodes = [
        conv("x", "w0", "h"),
        relu("h", "i"),
        ("Add", ["i", "k"], ["j"], {}),
        ("MaxPool", ["j"], ["l"], {"kernel_shape": [2, 2]}),
        conv("l", "w1", "y"),
    ]
    ops = compared(nodes, X, C, opset=opset)
    assert (ops["BlockedConv"], ops["BlockChannels"], ops["UnblockChannels"]) == (2, 1, 1)


def test_float16_and_weights_of_run_time_are_left() -> None:
    half = {name: value.astype(np.float16) for name, value in C.items()}
    compared([conv("x", "w0", "h"), relu("h", "y")], X.astype(np.float16), half, tolerance=2e-2)
    nodes = [
        ("ReduceMean", ["x"], ["m"], {"axes": [0, 1, 2, 3], "keepdims": 0}),
        ("Mul", ["w0", "m"], ["w"], {}),
        conv("x", "w", "h"),
        relu("h", "y"),
    ]
    assert not compared(nodes, X, C)["BlockedConv"]


def test_images_without_pixels() -> None:
    nodes = [conv("x", "w0", "h", pads=[0] * 4, auto_pad="SAME_UPPER"), relu("h", "i"), conv("i", "w1", "y")]
    nodes[0][3].pop("pads")
    compared([nodes[0], relu("h", "y")], image(2, 32, 0, 8), C)
    assert compared([conv("x", "w0", "h"), relu("h", "y")], image(0, 32, 4, 8), C)["BlockedConv"] == 1


def test_a_body_reads_a_value_of_an_island() -> None:
    inner = helper.make_graph(
        [helper.make_node("Conv", ["b", "w1"], ["c"], **PADS), helper.make_node("Relu", ["c"], ["r"])],
        "then", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["n"])], "else", [], [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)]
    )
    nodes = [
        conv("x", "w0", "a"), relu("a", "b"), conv("b", "w2", "y"), ("ReduceMean", ["x"], ["m"], {"axes": [0, 1, 2, 3], "keepdims": 0}),
        ("Cast", ["m"], ["yes"], {"to": TensorProto.BOOL}), ("If", ["yes"], ["z"], {"then_branch": inner, "else_branch": other}),
        ("Mul", ["w1", "number"], ["unused"], {}),
    ]  # fmt: skip
    for x in (X, X * 0):
        assert compared(nodes, x, C, ("y", "z"))["BlockedConv"] == 3


# ------------------------------------------------------------------------------------------- any graph


@st.composite
def networks(draw: st.DrawFn):
    """Small networks of images: each operator reads any of those made before it."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 14)), int(rng.integers(1, 14)))
    made = [("x", int(rng.choice([3, 16, 20, 32])), size)]
    start, nodes, constants = made[0], [], {}

    def add(op, ins, channels, size, **attributes):
        made.append((f"v{len(nodes)}", channels, size))
        nodes.append((op, ins, [made[-1][0]], attributes))

    def kept(value):
        constants[f"c{len(constants)}"] = np.asarray(value)
        return f"c{len(constants) - 1}"

    for _ in range(draw(st.integers(3, 12))):
        name, channels, (h, w) = made[-1] if rng.random() < 0.6 else made[int(rng.integers(len(made)))]
        what = draw(
            st.sampled_from(
                [
                    "conv",
                    "conv",
                    "conv",
                    "depthwise",
                    "unary",
                    "binary",
                    "binary",
                    "constant",
                    "pool",
                    "mean",
                    "concat",
                    "slice",
                    "split",
                    "resize",
                    "gate",
                ]
            )
        )
        if what == "conv":
            maps, k, stride = int(rng.choice([5, 8, 16, 20, 32, 40])), int(rng.choice([1, 3])), int(rng.choice([1, 1, 2]))
            ins = [name, kept(numbers(maps, channels, k, k, seed=len(nodes)))] + ([kept(image(maps))] if rng.random() < 0.5 else [])
            grown = tuple((n - 1) // stride + 1 for n in (h, w))
            add("Conv", ins, maps, grown, pads=[k // 2] * 4, strides=[stride] * 2)
        elif what == "depthwise":
            add("Conv", [name, kept(numbers(channels, 1, 3, 3, seed=len(nodes)))], channels, (h, w), group=channels, **PADS)
        elif what == "unary":
            op = str(rng.choice(["Relu", "Tanh", "Sigmoid", "HardSwish", "Neg", "Abs", "LeakyRelu"]))
            add(op, [name], channels, (h, w))
        elif what == "binary":
            fitting = [m[0] for m in made if m[1] == channels and m[2] in ((h, w), (1, 1))]
            pair = [name, str(rng.choice(fitting))]
            add(str(rng.choice(["Add", "Add", "Sub", "Mul", "Max"])), pair[:: int(rng.choice([1, -1]))], channels, (h, w))
        elif what == "constant":
            shape = [(), (1,), (channels, 1, 1), (1, channels, 1, 1), (h, w), (1, 1, h, 1)][int(rng.integers(6))]
            pair = [name, kept(image(*shape))]
            add(str(rng.choice(["Add", "Mul", "Sub", "Min"])), pair[:: int(rng.choice([1, -1]))], channels, (h, w))
        elif what == "pool" and min(h, w) > 1:
            add(
                str(rng.choice(["MaxPool", "AveragePool"])),
                [name],
                channels,
                ((h - 2) // 2 + 1, (w - 2) // 2 + 1),
                kernel_shape=[2, 2],
                strides=[2, 2],
            )
        elif what == "mean":
            add("GlobalAveragePool", [name], channels, (1, 1))
        elif what == "concat":
            fitting = [m for m in made if m[2] == (h, w)]
            other = fitting[int(rng.integers(len(fitting)))]
            add("Concat", [name, other[0]], channels + other[1], (h, w), axis=1)
        elif what == "slice" and channels > 16:
            begin, end = (16, channels) if rng.random() < 0.5 else (0, int(rng.choice([8, 16])))
            add("Slice", [name, kept([begin]), kept([end]), kept([1])], end - begin, (h, w))
        elif what == "slice":
            add("Slice", [name, kept([-1]), kept([-1000]), kept([3]), kept([-1])], channels, (h, w))
        elif what == "split" and channels > 16:
            made.append((f"v{len(nodes)}", 16, (h, w)))
            made.append((f"s{len(nodes)}", channels - 16, (h, w)))
            nodes.append(("Split", [name, kept([16, channels - 16])], [made[-2][0], made[-1][0]], {"axis": 1}))
        elif what == "resize" and h * w < 60:
            mode = str(rng.choice(["nearest", "linear"]))
            add("Resize", [name, "", kept(np.asarray([1, 1, 2, 2], F32))], channels, (2 * h, 2 * w), mode=mode)
        elif what == "gate":
            add("GlobalAveragePool", [name], channels, (1, 1))
            add("Sigmoid", [made[-1][0]], channels, (1, 1))
            add("Mul", [name, made[-1][0]], channels, (h, w))
    outputs = {made[-1][0], *(m[0] for m in made[1:] if rng.random() < 0.2)} - {"x"}
    x = np.random.default_rng(seed).standard_normal((int(rng.integers(1, 3)), start[1], *size)).astype(F32)
    return nodes, x, constants, sorted(outputs)


@settings(max_examples=150)
@given(networks())
def test_any_network_computes_what_its_operators_compute(network) -> None:
    nodes, x, constants, outputs = network
    if outputs:
        compared(nodes, x, constants, outputs, opset=16, tolerance=1e-4)
