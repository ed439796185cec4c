"""Calls of `quantize` that take long: what they say meanwhile, that a seed repeats them, and what an interrupt leaves behind."""

from __future__ import annotations

import gc
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import qruntime
from qruntime.display import progress
from qruntime.errors import QuantizationError
from qruntime.quantization.methods import RECIPES
from tests.quantization.test_report import DATA, chain

UNTUNED = [name for name, recipe in RECIPES.items() if not recipe.has_gradients]
FEEDS = [{"x": DATA[0]["x"][at : at + 50]} for at in range(0, 200, 50)]


@pytest.mark.parametrize("recipe", UNTUNED)
def test_progress_counts_up_to_all_layers(recipe: str) -> None:
    said: list[tuple[int, int, str]] = []
    chain().quantize(recipe, scheme="W4A16" if recipe == "GPTQ" else None, data=FEEDS, progress=lambda *one: said.append(one))
    stages = defaultdict(list)
    for done, total, what in said:
        assert total == 6
        stages[what].append(done)
    assert stages
    for counts in stages.values():
        assert counts == sorted(set(counts))
        assert 0 < counts[0] <= counts[-1] == 6


def test_true_prints_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    chain().quantize("GPTQ", data=FEEDS, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "quantize: 6 of 6"
    chain().quantize("GPTQ", data=FEEDS)
    assert capsys.readouterr() == ("", "")


def test_true_is_a_bar_on_a_terminal_with_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.shown(True) as advance:
        assert advance is not None
        advance(1, 2, "quantize")
    assert "1 of 2" not in capsys.readouterr().err


def test_progress_that_is_none() -> None:
    with pytest.raises(QuantizationError, match="progress must be True, False or a function"):
        chain().quantize("GPTQ", data=FEEDS, progress=3)  # type: ignore[arg-type]


def codes(model: qruntime.Model) -> bytes:
    return b"".join(value.stored.decoded().tobytes() for value in model.graph.stored_constants())


@pytest.mark.parametrize("recipe", UNTUNED)
def test_the_same_seed_gives_the_same_bits(recipe: str) -> None:
    x = DATA[0]["x"][:7]
    made = [chain().quantize(recipe, data=FEEDS, seed=seed) for seed in (5, 5)]
    assert codes(made[0]) == codes(made[1])
    np.testing.assert_array_equal(made[0](x), made[1](x))
    assert made[0].report == made[1].report


def spilled(folder: Path) -> bool:
    """Whether this process holds a file in `folder` open or mapped; such files have no name there."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.islink(link)]
    return any(str(folder) in target for target in (*targets, Path("/proc/self/maps").read_text()))


def feeds_that_stop() -> Iterator[dict[str, np.ndarray]]:
    yield from FEEDS[:2]
    raise KeyboardInterrupt


def stops_at(stage: str, count: int) -> Callable[[int, int, str], None]:
    def say(done: int, total: int, what: str) -> None:
        if what == stage and done >= count:
            raise KeyboardInterrupt

    return say


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux to see what a process has open")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"data": feeds_that_stop},
        {"data": FEEDS, "progress": stops_at("observe", 2)},
        {"data": FEEDS, "progress": stops_at("quantize", 3)},
        {"data": FEEDS, "progress": stops_at("quantize", 6)},
    ],
    ids=["data", "observe", "quantize", "last"],
)
def test_an_interrupt_leaves_the_model_as_it_was(options: dict, inplace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[bool] = []
    chain().quantize("GPTQ", data=FEEDS, calibration_bytes=0, progress=lambda *_: seen.append(spilled(tmp_path)))
    assert any(seen)
    model = chain()
    x = DATA[0]["x"][:9]
    before, report, shown = model(x), model.report, str(model)
    with pytest.raises(KeyboardInterrupt):
        model.quantize(["SmoothQuant", "GPTQ"], scheme="W4A8", calibration_bytes=0, inplace=inplace, **options)
    np.testing.assert_array_equal(model(x), before)
    assert (model.report, str(model)) == (report, shown)
    assert not any(value.stored for value in model.graph.constants())
    assert os.listdir(tmp_path) == []
    gc.collect()
    assert not spilled(tmp_path)
    assert model.quantize("GPTQ", scheme="W4A8", data=FEEDS, inplace=inplace).report.layers
