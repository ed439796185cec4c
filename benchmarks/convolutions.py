"""Speed of float convolutions in blocks of channels on one thread, each alone, and their share of the peak.

    python benchmarks/convolutions.py [--only 3×3 first] [--batch 1 8] [--isa avx2] [--seconds 0.1] [--json]

The least time of many repetitions of one node, whose image is in blocks already, as it is within a network. With Winograd's products
(3×3 without strides, unless a model is loaded with exact=True) GFLOPS are those that the definition would take: more than the peak is
possible there. The peak is what `peak.c` measures before and after; without a C compiler the share is left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from kernels import least_seconds, measured_peaks
from report import emit

from qruntime import _kernels
from qruntime.ir import QRUNTIME, Node, Value
from qruntime.ops import channel_blocks
from qruntime.passes.rewriting import as_attribute

COLUMNS = {"what": "convolution", "batch": "images", "us": "µs", "gflops": "GFLOPS", "share": "share", "winograd": "Winograd, as if GFLOPS"}
LEAST_WINOGRAD, FEW_CHANNELS = 32, 4
"""Channels from which on passes choose Winograd's products, and to which they read an image as it is."""


@dataclass(frozen=True)
class Case:
    """A convolution that keeps the size of its image but for strides."""

    name: str
    channels: int
    maps: int
    image: tuple[int, ...]
    window: tuple[int, ...]
    stride: int = 1
    dilation: int = 1
    group: int = 1
    transposed: bool = False

    @property
    def pads(self) -> list[int]:
        total = [(k - 1) * self.dilation + 1 - (self.stride if self.transposed else 1) for k in self.window]
        return [t // 2 for t in total] + [t - t // 2 for t in total]

    @property
    def kind(self) -> str:
        if self.group == self.channels > 1:
            return "depthwise"
        if self.group > 1 and self.channels // self.group < channel_blocks.BLOCK:
            return "grouped"
        return "columns" if self.channels <= FEW_CHANNELS else "blocks"

    @property
    def has_winograd(self) -> bool:
        plain = (self.stride, self.dilation, self.group) == (1, 1, 1)
        return plain and self.window == (3, 3) and min(self.channels, self.maps) >= LEAST_WINOGRAD

    @property
    def operations(self) -> float:
        """Two for each multiply-add of an image, those with padding too."""
        positions = math.prod(self.image if self.transposed else [-(-size // self.stride) for size in self.image])
        return 2.0 * positions * self.maps * self.channels / self.group * math.prod(self.window)

    def __str__(self) -> str:
        image, window = ("×".join(map(str, sizes)) for sizes in (self.image, self.window))
        parts = [f"{self.name} {window}" if self.name else window, f"{self.channels}→{self.maps} on {image}"]
        parts += [f"stride {self.stride}"] * (self.stride > 1) + [f"dilation {self.dilation}"] * (self.dilation > 1)
        return ", ".join(parts + [f"{self.group} groups"] * (1 < self.group < self.channels))


POINTWISE = [
    (64, 64, 56), (64, 256, 56), (256, 64, 56), (256, 128, 56), (128, 512, 28), (512, 128, 28), (256, 1024, 14), (1024, 256, 14),
    (512, 2048, 7), (2048, 512, 7), (48, 32, 80), (96, 64, 40), (192, 128, 20), (384, 256, 10), (128, 80, 40),
]  # fmt: skip
POINTWISE_APART = [(256, 512, 56), (512, 1024, 28), (1024, 2048, 14)]
THREES = [(16, 80), (32, 80), (64, 56), (128, 28), (256, 14), (512, 7)]
THREES_APART = [(16, 32, 160), (32, 64, 80), (64, 128, 40), (128, 128, 56), (256, 256, 28), (512, 512, 14)]
GROUPS = [(128, 32, 56), (256, 32, 28), (512, 32, 14), (128, 8, 28), (256, 16, 28), (256, 8, 28)]
DEPTHWISE = [(96, 112, 3, 2), (144, 56, 3, 1), (192, 28, 3, 1), (576, 14, 3, 1), (960, 7, 3, 1), (240, 28, 5, 1), (384, 14, 7, 1)]
CASES = [
    *(Case("", c, m, (size, size), (1, 1)) for c, m, size in POINTWISE),
    *(Case("", c, m, (size, size), (1, 1), stride=2) for c, m, size in POINTWISE_APART),
    *(Case("", c, c, (size, size), (3, 3)) for c, size in THREES),
    *(Case("", c, m, (size, size), (3, 3), stride=2) for c, m, size in THREES_APART),
    Case("", 32, 64, (28, 28), (5, 5)),
    Case("", 128, 128, (14, 14), (5, 5)),
    Case("first", 3, 64, (224, 224), (7, 7), stride=2),
    Case("first", 3, 32, (224, 224), (3, 3), stride=2),
    Case("first", 3, 16, (320, 320), (3, 3), stride=2),
    Case("dilated", 128, 128, (28, 28), (3, 3), dilation=2),
    Case("dilated", 256, 256, (28, 28), (3, 3), dilation=4),
    Case("1-D", 64, 64, (512,), (1,)),
    Case("1-D", 64, 64, (512,), (3,)),
    Case("1-D", 64, 64, (512,), (3,), dilation=16),
    Case("1-D", 128, 128, (1000,), (9,)),
    Case("1-D", 512, 512, (400,), (3,), stride=2),
    Case("1-D", 256, 256, (300,), (5,)),
    Case("3-D", 64, 64, (8, 28, 28), (3, 3, 3)),
    Case("3-D", 32, 64, (16, 28, 28), (3, 3, 3), stride=2),
    Case("transposed", 128, 64, (28, 28), (2, 2), stride=2, transposed=True),
    Case("transposed", 256, 128, (14, 14), (4, 4), stride=2, transposed=True),
    Case("transposed", 64, 64, (28, 28), (3, 3), stride=2, transposed=True),
    *(Case("grouped", c, c, (size, size), (3, 3), group=group) for c, group, size in GROUPS),
    *(Case("depthwise", c, c, (size, size), (k, k), stride=stride, group=c) for c, size, k, stride in DEPTHWISE),
    *(Case("depthwise", 256, 256, (400,), (k,), dilation=d, group=256) for k, d in [(3, 1), (9, 1), (15, 1), (31, 1), (3, 8)]),
]
"""Those of ResNet-50, YOLO-n, temporal networks, U-Nets, ResNeXt and mobile nets."""


def one_node(case: Case, kind: str, batch: int) -> Callable[[], object]:
    """A plan of the convolution alone, on one thread."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, case.channels, *case.image), dtype=np.float32)
    ends = (case.channels, case.maps) if case.transposed else (case.maps, case.channels // case.group)
    w = rng.standard_normal((*ends, *case.window), dtype=np.float32) * np.float32(0.1)
    strides, dilations = ([size] * len(case.window) for size in (case.stride, case.dilation))
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads": case.pads, "group": case.group, "activation": "relu"}
    operator = channel_blocks.blocked_conv_transpose if case.transposed else channel_blocks.blocked_conv
    if case.transposed:
        w = channel_blocks.weights_by_phase(w, 1, strides, dilations)
    else:
        attributes["kind"] = kind
    inputs = [Value("x"), Value("w", data=w), Value("b", data=rng.standard_normal(case.maps, dtype=np.float32))]
    made = {name: as_attribute(value) for name, value in attributes.items()}
    assert operator.binder is not None
    call = operator.binder(Node(operator.op_type, inputs, [Value("y")], made, domain=QRUNTIME))
    assert call is not None
    assert call.inputs is not None
    slots = [0 if i == 0 else -1 for i in call.inputs]
    step = _kernels.Step(str(case), 1, kernel=call.kernel, ints=call.ints, floats=call.floats, packed=call.packed, inputs=slots)
    plan = _kernels.Executable(2, [(0, x if kind == "columns" else channel_blocks.in_blocks(x))], [], [1], [step], set(), [], 1)
    return lambda: plan.run(())


def float_peak(isa: str, peaks: list[dict[str, float]]) -> float | None:
    """The greater of what was measured for the vectors of a rung."""
    name = f"float {'avx512' if isa.startswith(('avx512', 'amx')) else 'avx2' if isa.startswith('avx') else isa}"
    return max((found[name] for found in peaks if name in found), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="what rows begin with")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--isa", choices=_kernels.available_isas(), default=_kernels.available_isas()[-1])
    parser.add_argument("--seconds", type=float, default=0.1, help="for each measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    _kernels.set_isa(options.isa)
    peaks, rows = [measured_peaks()], []
    for case in (case for case in CASES if str(case).startswith(tuple(options.only))):
        for batch in options.batch:
            seconds = least_seconds(one_node(case, case.kind, batch), options.seconds)
            rate = 1e-9 * batch * case.operations
            row: dict[str, Any] = {"what": str(case), "batch": batch, "us": 1e6 * seconds, "gflops": rate / seconds}
            if case.has_winograd:
                row["winograd"] = rate / least_seconds(one_node(case, "winograd", batch), options.seconds)
            rows.append(row)
    peak = float_peak(options.isa, [*peaks, measured_peaks()])
    for row in rows:
        row["peak"], row["share"] = peak, row["gflops"] / peak if peak else None
    if peak and not options.json:
        print(f"peak {peak:.0f} GFLOPS")
    emit("convolutions", rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
