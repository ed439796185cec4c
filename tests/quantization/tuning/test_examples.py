"""The examples that train do what they say, on a small budget; what the pages on training show works."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

EXAMPLES = Path(__file__).parents[3] / "examples"


def example(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as a module; it may change the path where modules are looked for, as it does when it runs."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_at_two_bits_wins_back_what_rounding_loses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    right = example("digits/qat.py", monkeypatch).main(["--pictures", "768", "--epochs", "5"])
    exact, rounded = right["float"], right["2 bits, rounded to nearest"]
    assert exact > 0.94
    assert rounded < 0.6
    assert right["2 bits, QAT"] > rounded + 0.2
    assert right["2 bits, QAT with learned steps"] > exact - 0.05
    assert f"{right['2 bits, QAT with learned steps']:.1%} right, without torch" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "parameters"), [("PEQA", "33,993 parameters in 3 layers"), ("QLoRA", "5,648 parameters in 1 layer")])
def test_what_an_adapter_learned_comes_off_again(
    method: str, parameters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    text = tmp_path / "text.txt"
    text.write_text((EXAMPLES.parent / "LICENSE").read_text())
    found = example("shakespeare/finetune.py", monkeypatch).main(["--text", str(text), "--steps", "8", "--methods", method])[method]
    assert found["learned"] < found["before"] - 0.2
    assert found["after"] == found["before"]
    assert parameters in capsys.readouterr().out


@pytest.mark.parametrize("page", ["training", "fine_tuning"])
def test_what_the_pages_show_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (shown,) = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / f"docs/{page}.md").read_text(), re.DOTALL)
    assert shown.count("assert") >= 3
    exec(compile(shown, f"docs/{page}.md", "exec"), {})
