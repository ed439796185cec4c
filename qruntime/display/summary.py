"""The lines of `summary()`: what is quantized, what is not and why, and how the nodes run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from qruntime.display.facts import counted_texts, fact_lines
from qruntime.display.text import printable, table
from qruntime.quantization.ranges import FLOOR_DB
from qruntime.quantization.reasons import Stored, Unobserved
from qruntime.quantization.report import QuantizedLayer, Report
from qruntime.runtime.plan import PlannedNode

MOST_OUTLYING = 8


def summary(report: Report, planned: Sequence[PlannedNode]) -> str:
    """Tables: quantized layers, skipped candidates, and how nodes run here."""
    said = (
        quantized_lines, held_lines, cache_lines, fact_lines, outlying_lines, reason_lines, source_lines, kept_lines, skipped_lines,
        slower_lines, idle_lines,
    )  # fmt: skip
    return "\n".join([*(line for lines in said for line in lines(report)), "", *node_lines(planned)])


def quantized_lines(report: Report) -> list[str]:
    """The table of quantized layers and their total."""
    if not report.layers:
        return [] if report.held or report.caches else ["No layer is quantized."]
    count = f"{len(report.layers)} layer{'s' if len(report.layers) > 1 else ''}"
    ratio = report.bytes_before / max(1, report.bytes_after)
    total = f"{count}: {report.bytes_before:,} → {report.bytes_after:,} bytes ({ratio:.2f}× smaller)"
    schemes = [layer.scheme for layer in report.layers]
    return [*layer_table(report.layers), "", total, *([f"schemes: {counted_texts(schemes)}"] if len(set(schemes)) > 1 else [])]


def layer_table(layers: Sequence[QuantizedLayer]) -> list[str]:
    """Also errors of outputs where data were there to tell."""
    measured = any(layer.error is not None for layer in layers)
    rows = [("layer", "kind", "shape", "scheme", "bits", "bytes", "bytes now", "SNR dB", *(("error", "RTN") if measured else ()))]
    for layer in layers:
        shape = "×".join(map(str, layer.shape))
        before, after = ("shared", "shared") if layer.shared else (f"{layer.bytes_before:,}", f"{layer.bytes_after:,}")
        snr = "exact" if layer.snr_db == math.inf else "?" if layer.snr_db != layer.snr_db else f"{layer.snr_db:.1f}"
        bits = "?" if layer.bits_per_weight != layer.bits_per_weight else f"{layer.bits_per_weight:.2f}"
        errors = [_error(layer.error), _error(layer.rtn_error)] if measured else []
        rows.append((layer.name, layer.kind, shape, layer.scheme, bits, before, after, snr, *errors))
    note = ["error: of outputs on the data, ‖XWᵀ − XQᵀ‖² / ‖XWᵀ‖²; RTN: the same of weights rounded to nearest"] if measured else []
    return [*table(rows, left=range(4)), *note]


def _error(error: float | None) -> str:
    return "" if error is None else "?" if error != error else f"{error:.3g}"


def outlying_lines(report: Report) -> list[str]:
    """Layers whose error is out of line with the rest, the worst first, and what usually helps."""
    found = report.outlying
    if not found:
        return []
    count = f"{len(found)} layers have" if len(found) > 1 else "1 layer has"
    lines = ["", f"{count} lost far more than others of as many bits:"]
    for one in sorted(found, key=lambda one: -one.error if one.error is not None else one.snr_db or 0.0)[:MOST_OUTLYING]:
        lost = f"weights at {one.snr_db:.1f} dB" if one.error is None else f"error of outputs {one.error:.3g}"
        usual = f"{one.usual:.1f} dB" if one.error is None else f"{one.usual:.3g}"
        lines.append(f"  {printable(one.name)}: {lost}, where {usual} are usual")
    if len(found) > MOST_OUTLYING:
        lines.append(f"  and {len(found) - MOST_OUTLYING} more")
    return [*lines, f"  what usually helps: {_remedy(report)}"]


def _remedy(report: Report) -> str:
    names = {one.name for one in report.outlying}
    if any("tensor" in layer.scheme for layer in report.layers if layer.name in names):
        return "scales per channel or per group, or exclude= for these layers"
    return "smaller groups or more bits for these layers, or exclude="


def held_lines(report: Report) -> list[str]:
    """The table of weights that another tool stored in few bits, and their total."""
    if not report.held:
        return []
    rows = [("layer", "operator", "weights", "stored as", "bits", "bytes")]
    for held in report.held:
        rows.append((held.name, held.op_type, f"{held.numbers:,}", held.scheme, f"{held.bits:.2f}", f"{held.bytes:,}"))
    count = f"{len(report.held)} weight{'s' if len(report.held) > 1 else ''}"
    total = f"{count} stored by another tool: {sum(held.bytes for held in report.held):,} bytes"
    return [*([""] if report.layers else []), *table(rows, left=(0, 1, 3)), "", total]


def cache_lines(report: Report) -> list[str]:
    """The table of caches that hold codes, and what a token takes in all of them."""
    if not report.caches:
        return []
    rows = [("cache", "parts", "codes", "clusters", "bytes a token", "bytes now")]
    for cache in report.caches:
        numbers = f"{cache.bytes_before:,}", f"{cache.bytes_after:,}"
        rows.append((cache.name, str(cache.parts), cache.format, str(cache.clusters), *numbers))
    before, after = sum(cache.bytes_before for cache in report.caches), sum(cache.bytes_after for cache in report.caches)
    count = f"{len(report.caches)} cache{'s hold' if len(report.caches) > 1 else ' holds'} codes"
    total = f"{count}: {before:,} → {after:,} bytes a token ({before / max(1, after):.2f}× smaller)"
    return [*([""] if report.layers or report.held else []), *table(rows, left=(0, 2)), "", total]


def reason_lines(report: Report) -> list[str]:
    """Layers that are stored otherwise than was preferred, one line for each way."""
    ways = {
        "per_channel_affine": f"one scale per channel, as one for the tensor holds less than {FLOOR_DB:.0f} dB of a channel",
        "float16": "weights that float16 does not reach",
    }
    lines = []
    for scheme, way in ways.items():
        named = [layer for layer in report.layers if layer.reason and layer.scheme == scheme and not isinstance(layer.reason, Unobserved)]
        if named:
            layers, first = (f"{len(named)} layers have", "first ") if len(named) > 1 else ("1 layer has", "")
            lines += ["", f"{layers} {way} ({first}{printable(named[0].name)}: {printable(named[0].reason)})"]
    unseen = [layer for layer in report.layers if isinstance(layer.reason, Unobserved)]
    for reason in dict.fromkeys(layer.reason for layer in unseen):
        names = [layer.name for layer in unseen if layer.reason == reason]
        layers, first = (f"{len(names)} layers are", "first ") if len(names) > 1 else ("1 layer is", "")
        lines += ["", f"{layers} {printable(reason, limit=200)} ({first}{printable(names[0])})"]
    return lines


def skipped_lines(report: Report) -> list[str]:
    """Candidates left alone, one line for each reason."""
    lines = []
    for is_stored, left in ((False, "left as float"), (True, "left as stored before")):
        groups = {why: found for why, found in report.skipped_by_reason().items() if isinstance(why, Stored) is is_stored}
        count = sum(map(len, groups.values()))
        if not count:
            continue
        lines += ["", f"{count} candidate{'s are' if count > 1 else ' is'} {left}:"]
        for reason, layers in groups.items():
            counted = Counter(layer.op_type for layer in layers)
            ops = ", ".join(f"{op} ×{n}" for op, n in counted.most_common())
            first = printable(layers[0].name)
            lines.append(f"  {printable(reason, limit=200)}: {ops} ({'first ' if len(layers) > 1 else ''}{first})")
    return lines


def source_lines(report: Report) -> list[str]:
    """Layers whose codes were made from other codes."""
    lines = []
    for source in dict.fromkeys(layer.source for layer in report.layers if layer.source != "float"):
        names = [layer.name for layer in report.layers if layer.source == source]
        layers = f"{len(names)} layers are" if len(names) > 1 else "1 layer is"
        which = f"first {printable(names[0])}" if len(names) > 1 else printable(names[0])
        lines += ["", f"{layers} quantized from {printable(source)} ({which}): what the weights had lost stays lost"]
    return lines


def kept_lines(report: Report) -> list[str]:
    """Layers of earlier calls that the last call left as they were."""
    if not report.kept:
        return []
    count, first = len(report.kept), printable(report.kept[0])
    return ["", f"{count} layer{'s were' if count > 1 else ' was'} quantized before and left so ({'first ' if count > 1 else ''}{first})"]


def slower_lines(report: Report) -> list[str]:
    """Quantized layers that int8 should not make faster."""
    if not report.slower:
        return []
    count, first = len(report.slower), printable(report.slower[0])
    layers = f"{count} quantized layers are" if count > 1 else "1 quantized layer is"
    which = f"first {first}" if count > 1 else first
    return ["", f"{layers} too small for int8 to be faster than float ({which}); faster_only=True leaves such layers float"]


def idle_lines(report: Report) -> list[str]:
    """Names and kinds that were asked for and are not in the model."""
    if not report.idle:
        return []
    return [f"nothing in the model is selected by: {', '.join(printable(repr(pattern)) for pattern in report.idle)}"]


def node_lines(planned: Sequence[PlannedNode]) -> list[str]:
    """How many nodes run natively, by their numpy definition or by onnx.reference, and which are not native."""
    sources = Counter(call.source for call in planned)
    counted = ", ".join(f"{sources[s]} {s}" for s in ("native", "numpy", "reference") if sources[s])
    lines = [f"nodes: {counted or 'none'}"]
    slow = Counter(call.node.op_type for call in planned if call.source != "native")
    if slow:
        lines.append("  not native: " + ", ".join(f"{printable(op)} ×{n}" for op, n in slow.most_common()))
    return lines
