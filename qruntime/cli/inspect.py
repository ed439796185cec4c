"""`qruntime inspect`: what a model file holds and how it runs here."""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from typing import Any

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import Subparsers, add_command, add_inputs, add_json, in_flags
from qruntime.cli.run_share import RunShare, run_share
from qruntime.display.summary import cache_lines, held_lines, node_lines, outlying_lines, quantized_lines
from qruntime.display.text import printable, table
from qruntime.errors import counted
from qruntime.ir import Value
from qruntime.onnx_io.model_files import size_on_disk
from qruntime.runtime.plan import PlannedNode


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "inspect",
        "show a model's inputs, outputs, operators, quantized layers, how its nodes run here, and which share of a run took what",
        "qruntime inspect model.onnx --nodes --weights",
    )
    parser.add_argument("model", help="an ONNX model, float or quantized")
    parser.add_argument("--nodes", action="store_true", help="list the nodes as they run here, with the kernel chosen")
    parser.add_argument("--weights", action="store_true", help="list the constants with type, shape and bytes")
    add_inputs(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    with terminal.progress(f"Loading {arguments.model}"):
        model = qruntime.load(arguments.model)
    with terminal.progress(f"Running {arguments.model}"):
        share = run_share(model, arguments)
        planned = [call for plan in model._tried().walk() for call in plan.as_run()]
    if arguments.json:
        terminal.json_result("inspect", _fields(arguments, model, planned, share))
    else:
        terminal.result(_lines(arguments, model, planned, share))
    return 0


def _weights(model: qruntime.Model) -> list[Value]:
    """Constants with more than one element: those with fewer are settings, not parameters."""
    constants = (*model.graph.constants(), *model.graph.stored_constants())
    return [value for value in constants if value.shape is not None and math.prod(value.shape) > 1]


def _operators(model: qruntime.Model) -> Counter[str]:
    return Counter(_operator(node.domain, node.op_type) for node in model.graph.walk_nodes())


def _operator(domain: str, op_type: str) -> str:
    return f"{domain}.{op_type}" if domain else op_type


_FOREIGN = re.compile(r"(com\.microsoft\.)?(QLinear\w+|QGemm|QAttention|\w+Integer(ToFloat)?|DynamicQuantize\w+|\w+NBits)")


def _foreign(model: qruntime.Model) -> dict[str, int]:
    """Integer operators that another tool put into the model."""
    return {op: n for op, n in _operators(model).items() if _FOREIGN.fullmatch(op)}


def _parameters(model: qruntime.Model) -> int:
    """Numbers that training chose: neither integers that steer operators nor scales and zero points."""
    weights = [value for value in _weights(model) if not _is_scale(value)]
    return sum(math.prod(v.shape or ()) for v in weights if v.stored is not None or v.arrays()[0].dtype.itemsize < 8)


def _element_type(value: Value) -> str:
    return value.stored.format.name if value.stored is not None else value.arrays()[0].dtype.name


def _is_scale(value: Value) -> bool:
    return bool(value.uses) and all(node.is_op("DequantizeLinear") and index > 0 for node, index in value.uses)


def _fields(arguments: argparse.Namespace, model: qruntime.Model, planned: list[PlannedNode], share: RunShare) -> dict[str, Any]:
    info, report = model.info, model.report.to_dict()
    fields: dict[str, Any] = {
        "model": arguments.model,
        "file_bytes": size_on_disk(arguments.model),
        "ir_version": info.ir_version,
        "opset": info.opset_imports,
        "producer": {"name": info.producer_name, "version": info.producer_version},
        "metadata": info.metadata,
        "inputs": [tensor._asdict() for tensor in model.inputs],
        "overridable": [tensor._asdict() for tensor in model.overridable],
        "outputs": [tensor._asdict() for tensor in model.outputs],
        "parameters": _parameters(model),
        "operators": dict(_operators(model).most_common()),
        "isa": qruntime.isa(),
        "runs": dict(Counter(call.source for call in planned)),
        "run": share.fields(),
        "quantized_by_others": _foreign(model),
        "quantized": report["layers"],
        "stored_by_others": report["held"],
        "caches": report["caches"],
    }
    if arguments.nodes:
        fields["nodes"] = [
            {
                "name": call.node.name,
                "operator": _operator(call.node.domain, call.node.op_type),
                "source": call.source,
                "kernel": call.kernel,
                "inputs": [None if v is None else v.name for v in call.node.inputs],
                "outputs": [v.name for v in call.node.outputs],
            }
            for call in planned
        ]
    if arguments.weights:
        fields["weights"] = [
            {"name": v.name, "dtype": _element_type(v), "shape": v.shape, "bytes": sum(array.nbytes for array in v.arrays())}
            for v in _weights(model)
        ]
    return fields


def _lines(arguments: argparse.Namespace, model: qruntime.Model, planned: list[PlannedNode], share: RunShare) -> list[str]:
    info = model.info
    opsets = ", ".join(f"{printable(domain) or 'onnx'} {version}" for domain, version in info.opset_imports.items())
    producer = printable(f"{info.producer_name} {info.producer_version}".strip()) or "unknown"
    operators = _operators(model)
    lines = [
        terminal.heading(printable(arguments.model)),
        f"  size        {terminal.size(size_on_disk(arguments.model))}",
        f"  parameters  {_parameters(model):,}",
        f"  producer    {producer}",
        f"  opset       {opsets} (IR version {info.ir_version})",
    ]
    for key, text in info.metadata.items():
        lines.append(f"  metadata    {printable(key, 40)} = {printable(text, 60)}")
    lines += ["", *_tensors("inputs", model.inputs)]
    if model.overridable:
        lines.append(f"  {counted(len(model.overridable), 'weight')} listed as inputs too: may be fed, need not be")
    lines += _tensors("outputs", model.outputs)
    lines += ["", terminal.heading(f"operators ({sum(operators.values())}):")]
    lines.append("  " + (", ".join(f"{printable(op)} ×{n}" for op, n in operators.most_common()) or "none"))
    lines += [
        "",
        terminal.heading(f"as it runs here ({qruntime.isa()}):"),
        *(f"  {line}" for line in node_lines(planned)),
        *(f"  {line}" for line in share.lines()),
    ]
    foreign = _foreign(model)
    if foreign:
        listed = ", ".join(f"{printable(op)} ×{n}" for op, n in foreign.items())
        lines += ["", terminal.heading("quantized by another tool:"), f"  {listed}"]
    held = held_lines(model.report._replace(layers=()))
    if held:
        lines += ["", terminal.heading("stored by another tool:"), *(f"  {line}".rstrip() for line in held)]
    caches = cache_lines(model.report._replace(layers=(), held=()))
    if caches:
        lines += ["", terminal.heading("caches:"), *(f"  {line}".rstrip() for line in caches)]
    if model.report.layers or not (foreign or held or caches):
        layers = [*quantized_lines(model.report), *map(in_flags, outlying_lines(model.report))]
        lines += ["", terminal.heading("quantized layers:"), *(f"  {line}".rstrip() for line in layers)]
    if arguments.nodes:
        lines += ["", terminal.heading("nodes:"), *(f"  {line}" for line in _node_table(planned))]
    if arguments.weights:
        lines += ["", terminal.heading("weights:"), *(f"  {line}" for line in _weight_table(model))]
    return lines


def _node_table(planned: list[PlannedNode]) -> list[str]:
    rows = [("node", "operator", "runs as", "kernel")]
    for call in planned:
        name = call.node.name or (call.node.outputs[0].name if call.node.outputs else "")
        kernel = call.kernel or "-"
        rows.append((name, _operator(call.node.domain, call.node.op_type), call.source, kernel))
    return table(rows, left=range(4))


def _weight_table(model: qruntime.Model) -> list[str]:
    rows = [("weight", "dtype", "shape", "bytes")]
    for value in _weights(model):
        shape = "×".join(map(str, value.shape or ()))
        rows.append((value.name, _element_type(value), shape, f"{sum(array.nbytes for array in value.arrays()):,}"))
    return table(rows, left=range(3))


def _tensors(title: str, tensors: tuple[qruntime.TensorInfo, ...]) -> list[str]:
    return [terminal.heading(f"{title}:"), *(f"  {printable(str(tensor), 200)}" for tensor in tensors)]
