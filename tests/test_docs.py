"""What the documentation shows works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/quantization.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["dynamic", "schemes"])
def test_the_examples_of_quantization_run(example: str):
    assert example.count("assert") >= 2
    exec(compile(example, "docs/quantization.md", "exec"), {})


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_files_that_are_named_exist(path: str):
    """`qruntime/model.py`, `docs/kernels.md` …: whatever looks like a path from the root of the repository."""
    named = re.findall(r"`((?:qruntime|docs|tests|tools|benchmarks|examples)/[\w./]*)`", (ROOT / path).read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_variables_that_are_documented_exist():
    named = set(re.findall(r"QRUNTIME_[A-Z_]+", (ROOT / "docs/architecture.md").read_text()))
    sources = [
        *(ROOT / "qruntime").rglob("*.py"),
        *(ROOT / "qruntime").rglob("*.[ch]"),
        ROOT / "qruntime/_kernels.pyx",
        ROOT / "setup.py",
    ]
    text = "".join(source.read_text() for source in sources)
    assert not [name for name in named if f'"{name}"' not in text]
