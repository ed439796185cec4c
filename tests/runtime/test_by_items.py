"""Batches item by item: the bits of whole batches, whatever lies between."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import qruntime
from tests.small_models import assert_same_bits

F32 = np.float32
Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]
PADS = {"pads": [1, 1, 1, 1]}


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(F32)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return image(*shape, seed=seed) / F32(np.sqrt(np.prod(shape[1:])))


def model_of(nodes: Nodes, constants: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",), threads: int = 1) -> qruntime.Model:
    used = {name for _, ins, _, _ in nodes for name in ins}
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * 4)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in used],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return qruntime.load(model.SerializeToString(), threads=threads)


def steps_by_items(model: qruntime.Model) -> int:
    return model._plan(tuple(model.graph.output_names)).executable.by_items


C = {
    "first": weight(32, 3, 3, 3), "w": weight(32, 32, 3, 3), "v": weight(32, 32, 3, 3, seed=1), "one": weight(48, 32, 1, 1),
    "d": weight(32, 1, 3, 3), "heavy": weight(640, 32, 3, 3), "back": weight(32, 640, 1, 1), "down": weight(8, 32, 1, 1),
    "up": weight(32, 8, 1, 1), "channels": image(32, 1, 1), "each": image(6, 32, 1, 1), "scales": np.asarray([1, 1, 2, 2], F32),
    "zero": np.asarray([0]), "half": np.asarray([16]), "axis": np.asarray([1]), "parts": np.asarray([16, 16]),
}  # fmt: skip
START: Nodes = [("Conv", ["x", "first"], ["a"], PADS), ("Relu", ["a"], ["b"], {})]
NETWORKS: dict[str, tuple[Nodes, tuple[str, ...]]] = {
    "a chain": ([("Conv", ["b", "w"], ["c"], PADS), ("Conv", ["c", "v"], ["y"], PADS)], ("y",)),
    "a residual": ([("Conv", ["b", "w"], ["c"], PADS), ("Add", ["c", "b"], ["d1"], {}), ("Tanh", ["d1"], ["y"], {})], ("y",)),
    "a depthwise pair": (
        [("Conv", ["b", "d"], ["c"], {**PADS, "group": 32, "strides": [2, 2]}), ("Conv", ["c", "one"], ["y"], {})],
        ("y",),
    ),
    "many outputs": (
        [("Conv", ["b", "w"], ["c"], PADS), ("Sigmoid", ["b"], ["s"], {}), ("Conv", ["c", "v"], ["y"], PADS)],
        ("b", "s", "y"),
    ),
    "a gate": (
        [
            ("GlobalAveragePool", ["b"], ["m"], {}), ("Conv", ["m", "down"], ["n"], {}), ("Relu", ["n"], ["o"], {}),
            ("Conv", ["o", "up"], ["p"], {}), ("HardSigmoid", ["p"], ["q"], {}), ("Mul", ["q", "b"], ["r"], {}),
            ("Conv", ["r", "w"], ["y"], PADS),
        ],
        ("y",),
    ),
    "parts": (
        [
            ("Split", ["b", "parts"], ["e", "f"], {"axis": 1}), ("Slice", ["b", "zero", "half", "axis"], ["g"], {}),
            ("MaxPool", ["g"], ["h"], {"kernel_shape": [3, 3], **PADS}), ("Concat", ["f", "h"], ["i"], {"axis": 1}),
            ("Conv", ["i", "w"], ["j"], PADS), ("Resize", ["j", "", "scales"], ["y"], {"mode": "nearest"}),
        ],
        ("e", "y"),
    ),
    "constants": (
        [
            ("Mul", ["b", "channels"], ["c"], {}), ("Add", ["c", "each"], ["e"], {}), ("Conv", ["e", "w"], ["f"], PADS),
            ("Add", ["f", "e"], ["y"], {}),
        ],
        ("y",),
    ),
    "heavy weights": (
        [
            ("Conv", ["b", "w"], ["c"], PADS), ("Conv", ["c", "heavy"], ["g"], PADS), ("Conv", ["g", "back"], ["h"], {}),
            ("Conv", ["h", "v"], ["y"], PADS),
        ],
        ("y",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_has_the_bits_of_its_items(name: str, threads: int) -> None:
    nodes, outputs = NETWORKS[name]
    if name == "constants":  # an item of them cannot be told from one of another batch
        nodes = [n if n[1] != ["c", "each"] else ("Add", ["c", "channels"], ["e"], {}) for n in nodes]
    model = model_of([*START, *nodes], C, outputs, threads)
    x = image(7, 3, 48, 40)
    for _ in range(2):
        together = model.run({"x": x})
        assert steps_by_items(model) >= 2
    for i in range(len(x)):
        alone = model.run({"x": x[i : i + 1]})
        assert steps_by_items(model) == 0
        for output in outputs:
            assert_same_bits(together[output][i : i + 1], alone[output])


@pytest.mark.parametrize("name", ["a chain", "a residual", "a depthwise pair", "a gate"])
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_of_quantized_networks(name: str, threads: int) -> None:
    nodes, outputs = NETWORKS[name]
    model = model_of([*START, *nodes], C, outputs, threads).quantize_dynamic({"Conv"})
    x = image(7, 3, 48, 40)
    together = model.run({"x": x})
    assert steps_by_items(model) >= 2
    for i in range(len(x)):
        alone = model.run({"x": x[i : i + 1]})
        for output in outputs:
            assert_same_bits(together[output][i : i + 1], alone[output])


def code_network(dtype: type) -> tuple[Nodes, dict[str, np.ndarray]]:
    """Layers, sums, pools, tables and parts of images of codes; all scales are one."""
    rng = np.random.default_rng(5)
    nodes: Nodes = []
    constants = {k: v for k, v in C.items() if k in ("zero", "half", "axis")} | {
        "s": np.float32(0.05),
        "z": dtype(3),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
    }

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        domain = "com.microsoft" if op in ("QLinearAdd", "QLinearGlobalAveragePool", "QLinearMul") else ""
        nodes.append((op, inputs, [output], {**attributes, "domain": domain}))
        return output

    def conv(x: str, output: str, maps: int, channels: int, k: int, **attributes: Any) -> str:
        constants[f"w_{output}"] = rng.integers(-90, 90, (maps, channels, k, k)).astype(np.int8)
        return add("QLinearConv", [x, "s", "z", f"w_{output}", "ws", "wz", "s", "z"], output, pads=[k // 2] * 4, **attributes)

    scaled = ["s", "z"]
    conv(add("QuantizeLinear", ["x", *scaled], "q"), "a", 64, 3, 3)
    add("QuantizeLinear", [add("Sigmoid", [add("DequantizeLinear", ["a", *scaled], "a1")], "a2"), *scaled], "a3")
    add("QLinearAdd", [conv("a3", "b", 64, 64, 3), *scaled, "a3", *scaled, *scaled], "c")
    add("MaxPool", [conv("c", "d", 64, 1, 3, group=64)], "e", kernel_shape=[3, 3], pads=[1] * 4)
    add("Concat", [add("Slice", ["e", "zero", "half", "axis"], "f"), "c"], "g", axis=1)
    add("QLinearGlobalAveragePool", ["g", *scaled, *scaled], "h")
    add("QLinearMul", [conv("h", "i", 80, 80, 1), *scaled, "g", *scaled, *scaled], "j")
    add("DequantizeLinear", ["j", *scaled], "y")
    return nodes, constants


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_of_codes(dtype: type, threads: int) -> None:
    nodes, constants = code_network(dtype)
    model, x = model_of(nodes, constants, threads=threads), image(7, 3, 48, 40)
    together = model.run({"x": x})["y"]
    assert steps_by_items(model) >= 8
    for i in range(len(x)):
        assert_same_bits(together[i : i + 1], model.run({"x": x[i : i + 1]})["y"])


def test_constants_with_an_item_for_each_of_the_batch_end_it() -> None:
    nodes, outputs = NETWORKS["constants"]
    model, x = model_of([*START, *nodes], C, outputs), image(6, 3, 48, 48)
    got = model.run({"x": x})["y"]
    assert steps_by_items(model) == 2
    for i in range(6):
        alone = model_of([*START, *nodes], {**C, "each": C["each"][i : i + 1]}, outputs)
        assert_same_bits(got[i : i + 1], alone.run({"x": x[i : i + 1]})["y"])


def test_heavy_weights_are_read_once() -> None:
    nodes, outputs = NETWORKS["heavy weights"]
    model = model_of([*START, *nodes], C, outputs)
    model.run({"x": image(8, 3, 40, 40)})
    assert steps_by_items(model) < 4  # 737 kB of weights for 205 kB of pixels
    model.run({"x": image(8, 3, 80, 80)})
    assert steps_by_items(model) == 6


def test_few_items_are_shared_by_all_threads() -> None:
    nodes, outputs = NETWORKS["a chain"]
    model = model_of([*START, *nodes], C, outputs, threads=4)
    model.run({"x": image(3, 3, 96, 96)})
    assert steps_by_items(model) == 0


def test_small_batches_stay_together() -> None:
    nodes, outputs = NETWORKS["a chain"]
    model = model_of([*START, *nodes], C, outputs)
    model.run({"x": image(4, 3, 9, 9)})
    assert steps_by_items(model) == 0


def test_what_a_kernel_declines_is_reported_as_before() -> None:
    nodes: Nodes = [*START, ("Conv", ["b", "w"], ["c"], PADS), ("Conv", ["b", "v"], ["e"], {}), ("Add", ["c", "e"], ["y"], {})]
    with pytest.raises(qruntime.RunError, match="46"):
        model_of(nodes, C).run({"x": image(4, 3, 48, 48)})


def test_memory_of_items_is_counted() -> None:
    nodes, outputs = NETWORKS["a chain"]
    peaks, x = [], image(16, 3, 64, 64)
    for batch in (4, 16):
        model = model_of([*START, *nodes], C, outputs)
        model.run({"x": x[:batch]})
        peak, kept, _ = model._plan(outputs).executable.last_run()
        assert kept > 0
        peaks.append(peak)
    of_item = 32 * 64 * 64 * 4
    assert peaks[0] > 4 * of_item  # what is given out, and an item under way
    assert peaks[1] < 3 * 16 * of_item


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_network_has_the_bits_of_its_items(data: st.DataObject) -> None:
    """Each operator reads any of those made before it."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    made, nodes, constants = [("b", 32)], list(START), dict(C)
    for at in range(data.draw(st.integers(2, 9))):
        name, channels = made[int(rng.integers(len(made)))]
        new = f"v{at}"
        match data.draw(st.sampled_from(["conv", "conv", "depthwise", "unary", "binary", "gate", "concat", "slice"])):
            case "conv":
                maps, k = int(rng.choice([16, 32, 40])), int(rng.choice([1, 3]))
                constants[f"c{at}"] = weight(maps, channels, k, k, seed=at)
                nodes.append(("Conv", [name, f"c{at}"], [new], {"pads": [k // 2] * 4}))
                made.append((new, maps))
            case "depthwise":
                constants[f"c{at}"] = weight(channels, 1, 3, 3, seed=at)
                nodes.append(("Conv", [name, f"c{at}"], [new], {**PADS, "group": channels}))
                made.append((new, channels))
            case "unary":
                nodes.append((str(rng.choice(["Relu", "HardSwish", "Sigmoid", "Abs"])), [name], [new], {}))
                made.append((new, channels))
            case "binary":
                other = str(rng.choice([n for n, c in made if c == channels]))
                nodes.append((str(rng.choice(["Add", "Mul", "Sub"])), [name, other], [new], {}))
                made.append((new, channels))
            case "gate":
                nodes += [("GlobalAveragePool", [name], [f"m{at}"], {}), ("Mul", [name, f"m{at}"], [new], {})]
                made.append((new, channels))
            case "concat":
                other, more = made[int(rng.integers(len(made)))]
                nodes.append(("Concat", [name, other], [new], {"axis": 1}))
                made.append((new, channels + more))
            case "slice" if channels > 16:
                nodes.append(("Slice", [name, "zero", "half", "axis"], [new], {}))
                made.append((new, 16))
    outputs = tuple(dict.fromkeys([made[-1][0], *(name for name, _ in made if rng.random() < 0.2)]))
    threads = data.draw(st.integers(1, 3))
    model, x = model_of(nodes, constants, outputs, threads), image(5, 3, 30, 34)
    together = model.run({"x": x})
    for i in range(len(x)):
        alone = model.run({"x": x[i : i + 1]})
        for output in outputs:
            assert_same_bits(together[output][i : i + 1], alone[output])


def test_an_interrupt_ends_a_batch_between_items():
    chain = [("Conv", ["b", "w"], ["c"], PADS), ("Conv", ["c", "v"], ["d1"], PADS), ("Conv", ["d1", "w"], ["e"], PADS)]
    nodes = [*START, *chain, ("GlobalAveragePool", ["e"], ["y"], {})]
    model = model_of(nodes, C)
    x = image(200, 3, 96, 96)
    model.run({"x": x[:8]})
    assert steps_by_items(model) > 0
    whole = min(_interrupted_after(model, x, None) for _ in range(2))
    main = threading.get_ident()
    taken: list[float] = []
    for _ in range(3):
        timer = threading.Timer(whole / 8, signal.pthread_kill, (main, signal.SIGINT))
        taken.append(_interrupted_after(model, x, timer))
    assert min(taken) < whole / 2
    small = model.run({"x": x[:8]})["y"]
    assert_same_bits(small, model_of(nodes, C).run({"x": x[:8]})["y"])


def _interrupted_after(model: qruntime.Model, x: np.ndarray, timer: threading.Timer | None) -> float:
    """Seconds until the run ended, by itself or by an interrupt."""
    start = time.perf_counter()
    if timer is None:
        model.run({"x": x})
    else:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            model.run({"x": x})
    return time.perf_counter() - start
