"""examples/shakespeare/demo.py runs from any folder and shows what it claims."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import SHAKESPEARE


def test_demo(tmp_path: Path) -> None:
    demo = SHAKESPEARE.parent / "demo.py"
    done = subprocess.run([sys.executable, str(demo)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "(lstm): DynamicQuantizedLSTM(64, 288, num_layers=2)" in done.stdout
    found = re.search(r"bits per character, held out +([\d.]+) +([\d.]+)", done.stdout)
    assert found is not None
    before, after = map(float, found.groups())
    assert abs(before - 2.386) < 0.002
    assert abs(after - before) < 0.01
    assert "3.83× smaller" in done.stdout
    lines = done.stdout.partition("PROSPERO:\n")[2].splitlines()
    assert len(lines) >= 5
    assert list(tmp_path.iterdir()) == []
