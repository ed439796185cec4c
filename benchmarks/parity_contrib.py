"""Whether operators that ONNX Runtime has beside the standard give here what they give there, on random nodes.

    python benchmarks/parity_contrib.py                       50 nodes of each operator, as a table
    python benchmarks/parity_contrib.py --only QMoE --cases 500
    python benchmarks/parity_contrib.py --missing             operators of ONNX Runtime's CPU provider without a definition here
    python benchmarks/parity_contrib.py --record tests/ops/contrib_vectors.npz     what tests/ops/test_contrib_vectors.py reads

Needs onnxruntime; the recorded file was made with 1.32. What the table counts as different is printed before it.
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from contrib_cases import DRAWS, Case
from onnx import ModelProto, TensorProto, helper, numpy_helper

import qruntime
from qruntime.ops import registry

RECORDED = 2
"""Nodes of each operator in the file for the tests."""


def element_type(array: np.ndarray) -> int:
    return TensorProto.STRING if array.dtype.kind in "OUT" else helper.np_dtype_to_tensor_dtype(array.dtype)


def model(op_type: str, case: Case) -> tuple[bytes, dict[str, np.ndarray]]:
    """One node as a file, and what to feed it."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(case.inputs)]
    arrays = {f"x{i}": np.asarray(x) for i, x in enumerate(case.inputs) if x is not None}
    fixed = {f"x{i}" for i in case.constants}
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(case.outputs)], domain=case.domain, **case.attributes)
    declared = [helper.make_tensor_value_info(n, element_type(a), a.shape) for n, a in arrays.items() if n not in fixed]
    # ONNX Runtime infers all types but that of the scores of an attention.
    results = [helper.make_empty_tensor_value_info(name) for name in node.output]
    if "Attention" in op_type and case.outputs == 4:
        results[3] = helper.make_tensor_value_info("y3", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(a, n) for n, a in arrays.items() if n in fixed]
    graph = helper.make_graph([node], "node", declared, results, constants)
    opsets = [helper.make_opsetid("", case.opset), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return proto.SerializeToString(), {n: a for n, a in arrays.items() if n not in fixed}


def theirs(data: bytes, feed: dict[str, np.ndarray], shared: dict[int, int] | None) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    if not shared:
        return session.run(None, feed)
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in feed.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for i, output in enumerate(session.get_outputs()):
        if i in shared:
            binding.bind_ortvalue_output(output.name, values[f"x{shared[i]}"])
        else:
            binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    return [value.numpy() for value in binding.get_outputs()]


def difference(case: Case, index: int, ours: np.ndarray, other: np.ndarray) -> str | None:
    """What is wrong with an output, None for nothing."""
    if ours.dtype != other.dtype or ours.shape != other.shape:
        return f"output {index}: {ours.dtype}{ours.shape} for {other.dtype}{other.shape}"
    if ours.dtype.kind == "O":
        return None if (ours == other).all() else f"output {index}: other strings"
    if case.specified is not None:
        meant = case.specified(index, ours.shape)
        ours, other = ours[meant], other[meant]
    a, b = ours.astype(np.float64), other.astype(np.float64)
    tolerance = (case.tolerance, case.tolerance) if ours.dtype.kind == "f" else (0, case.codes)
    if np.allclose(a, b, rtol=tolerance[0], atol=tolerance[1], equal_nan=True):
        return None
    return f"output {index}: differs by {np.nanmax(np.abs(a - b)):g}"


def compare(op_type: str, case: Case) -> tuple[str, str]:
    """One word and what to say about it."""
    data, feed = model(op_type, case)
    refusals = []
    try:
        expected = theirs(data, feed, case.shared)
    except Exception as error:  # onnxruntime raises classes of its own for every kind of failure
        refusals.append(f"ONNX Runtime: {error}")
    try:
        found = list(qruntime.load(data, threads=1).run(feed).values())
    except qruntime.QRuntimeError as error:
        refusals.append(f"here: {error}")
    if refusals:
        word = "both refuse" if len(refusals) == 2 else "only here" if refusals[0].startswith("ONNX") else "only ONNX Runtime"
        return word, "; ".join(" ".join(text.split()) for text in refusals)
    wrong = [text for i, pair in enumerate(zip(found, expected, strict=True)) if (text := difference(case, i, *pair))]
    return ("differs", "; ".join(wrong)) if wrong else ("agrees", "")


def drawn(op_type: str, count: int, seed: int) -> list[Case]:
    rng = np.random.default_rng([seed, *op_type.encode()])
    functions = DRAWS[op_type]
    return [functions[n % len(functions)](rng, n // len(functions)) for n in range(count)]


def table(op_types: list[str], count: int, seed: int) -> int:
    words = ("agrees", "only here", "both refuse", "only ONNX Runtime", "differs")
    lines, wrong = [], 0
    for op_type in op_types:
        counted: collections.Counter[str] = collections.Counter()
        for case in drawn(op_type, count, seed):
            word, text = compare(op_type, case)
            counted[word] += 1
            if word in words[3:]:
                print(f"{op_type} {case.attributes}: {text}")
        wrong += counted["differs"] + counted["only ONNX Runtime"]
        lines.append(f"| {op_type} | {' | '.join(str(counted[word]) for word in words)} |")
    print("\n| operator | " + " | ".join(words) + " |\n|---|" + "---:|" * len(words))
    print("\n".join(lines))
    return wrong


def missing() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels = {(k.domain, k.op_name) for k in state.get_all_opkernel_def() if "CPU" in k.provider}
    for domain, op_type in sorted(kernels):
        if registry.find(domain, op_type, 99) is None:
            print(f"{domain or 'ai.onnx'}.{op_type}")


def record(path: Path, seed: int) -> None:
    """Models by operator and number, each with what to feed, what came out (`y0` …), which elements of that have a meaning
    (`meant0` …) among its initializers, and with the tolerances in its metadata."""
    models: dict[str, np.ndarray] = {}
    for op_type in DRAWS:
        kept = [case for case in drawn(op_type, 50, seed) if compare(op_type, case)[0] == "agrees"][:RECORDED]
        if len(kept) < RECORDED:
            sys.exit(f"{op_type}: only {len(kept)} nodes agree, {RECORDED} are to be recorded")
        for n, case in enumerate(kept):
            data, feed = model(op_type, case)
            proto = ModelProto.FromString(data)
            found = {f"y{i}": np.asarray(y) for i, y in enumerate(theirs(data, feed, case.shared))}
            meant = {} if case.specified is None else {f"meant{y[1:]}": case.specified(int(y[1:]), a.shape) for y, a in found.items()}
            proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in {**feed, **found, **meant}.items())
            helper.set_model_props(proto, {"tolerance": str(case.tolerance), "codes": str(case.codes)})
            models[f"{op_type}/{n}"] = np.frombuffer(proto.SerializeToString(), np.uint8)
    np.savez_compressed(path, **models)
    print(f"{path}: {path.stat().st_size:,} bytes, {RECORDED} nodes of {len(DRAWS)} operators")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=sorted(DRAWS), metavar="OPERATOR")
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    if options.missing:
        missing()
        return 0
    if options.record:
        record(options.record, options.seed)
        return 0
    return 1 if table(options.only, options.cases, options.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
