"""What steps found, over all layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from qruntime.display.facts import counted_texts, fact_lines
from qruntime.quantization.report import QuantizedLayer, Report
from tests.quantization.test_report import DATA, chain


def report(*facts: dict[str, Any] | tuple[dict[str, Any], ...]) -> Report:
    rows = [one if isinstance(one, tuple) else (one,) for one in facts]
    return Report(
        tuple(QuantizedLayer(str(i), "MatMul", "Linear", (2, 2), "int8", 16, 4, 40.0, facts=row) for i, row in enumerate(rows)), ()
    )


def test_numbers_are_a_spread_and_texts_a_count() -> None:
    found = report(
        {"ratio": 0.25, "mode": "static"}, {"ratio": np.float32(0.5), "mode": "static"}, {"ratio": 0.75, "mode": "per token", "rank": 8}, {}
    )
    assert fact_lines(found) == [
        "",
        "What the steps found:",
        "  ratio: 0.25 to 0.75, median 0.5 (3 layers)",
        "  mode: static ×2; per token ×1",
        "  rank: 8 (1 layer)",
    ]
    assert fact_lines(report({}, ())) == []


def test_a_layer_of_several_matrices_counts_once() -> None:
    found = report(({"rank": 4}, {"rank": 6, "outliers": 0.01}))
    assert fact_lines(found)[2:] == ["  rank: 4 (1 layer)", "  outliers: 0.01 (1 layer)"]


def test_texts_that_differ_in_numbers_count_together() -> None:
    texts = [f"the range {at}.5 is not between 15 and 150" for at in range(3)]
    assert counted_texts([*texts, "float"]) == "the range … is not between 15 and 150 ×3; float ×1"
    assert counted_texts(texts[:1]) == "the range 0.5 is not between 15 and 150 ×1"
    assert counted_texts(["int4 g64", "int4 g128", "int8 g64", "moved by 1.2e-04", "moved by 3e+02"]) == (
        "moved by … ×2; int4 g64 ×1; int4 g128 ×1; int8 g64 ×1"
    )
    assert counted_texts(list("abcdef")) == "a ×1; b ×1; c ×1; d ×1; 2 others"
    assert counted_texts(["\x1b[2J"]) == "\\x1b[2J ×1"


def test_summaries_hold_them() -> None:
    summary = chain().quantize("AWQ", data=DATA).summary()
    assert "What the steps found:" in summary
    assert "\n  ratio: 0" in summary
    header = next(line for line in summary.splitlines() if line.startswith("layer "))
    assert header.split()[-2:] == ["error", "RTN"]
    mixed = chain().quantize(scheme="W4A16", overrides={"fc1": "W8A8"}).summary()
    assert "schemes: uint4 channel affine ×5; per_channel_affine ×1" in mixed
    assert "schemes:" not in summary
    assert "error" not in chain().quantize(scheme="W4A16").summary()
