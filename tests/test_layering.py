"""Imports go one way. The layers, from the bottom up; the reasons are in docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = [
    {"errors"},
    {"ir"},
    {"onnx_io", "_kernels"},
    {"ops"},
    {"passes"},
    {"runtime"},
    {"quantization"},
    {"display", "model_file"},
    {"model"},
    {"session"},
    {"public"},
    {"cli"},
    {"__main__"},
]
"""A part may import the parts of the layers before its own, and itself. "public" are the names of qruntime/__init__.py."""

FACES = {Path("qruntime/__init__.py"), Path("qruntime/quantization/__init__.py")}
"""Names for users, gathered from any layer; what lies above is imported when it is called for."""

RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
OPTIONAL = {"onnx", "ml_dtypes", "rich", "torch"}
"""Packages beyond numpy that may be imported, and only inside functions."""


def modules() -> list[Path]:
    return sorted(p.relative_to(ROOT) for p in (ROOT / "qruntime").rglob("*.py"))


def part_of(path: Path) -> str:
    return path.parts[1].removesuffix(".py") if len(path.parts) > 1 else ""


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a module, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            if node.module == "qruntime":
                yield from ((node.lineno, f"qruntime.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def violations(path: Path, source: str) -> list[str]:
    part = part_of(path)
    if path in FACES:
        return []
    if part not in RANK:
        return [f"{path}: {part} is in no layer; add it to LAYERS"]
    found = []
    for line, name in imported(ast.parse(source)):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if other not in RANK:
            other = "public"
        if package != "qruntime" or other == part:
            continue
        if RANK[other] >= RANK[part]:
            found.append(f"{path}:{line}: {part} may not import {other}")
    return found


def test_imports_go_one_way():
    found = [text for path in modules() for text in violations(path, (ROOT / path).read_text())]
    assert not found, "\n".join(found)


def test_the_border_to_c_knows_no_graph():
    source = (ROOT / "qruntime/_kernels.pyx").read_text()
    lines = [line.split()[1] for line in source.splitlines() if line.startswith(("from qruntime", "import qruntime"))]
    assert sorted(lines) == ["qruntime.errors", "qruntime.ir.dtypes"]


def test_only_numpy_is_imported_at_the_top():
    import sys

    found = []
    for path in modules():
        tree = ast.parse((ROOT / path).read_text())
        top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        inside = [(line, name) for line, name in imported(tree) if line not in {n.lineno for n in top}]
        for nodes, allowed in ((imported(ast.Module(top, [])), {"numpy"}), (inside, {"numpy", *OPTIONAL})):
            for line, name in nodes:
                package = name.partition(".")[0]
                if package not in {"qruntime", *allowed, *sys.stdlib_module_names}:
                    found.append(f"{path}:{line}: {package}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    ["from qruntime.ops import registry", "import qruntime.ops.registry", "def f():\n    from qruntime import ops"],
)
def test_an_arrow_back_up_is_found(source: str):
    (found,) = violations(Path("qruntime/ir/graph.py"), source)
    assert found == f"qruntime/ir/graph.py:{source.count(chr(10)) + 1}: ir may not import ops"


def test_downward_and_own_imports_are_fine():
    source = "from qruntime.errors import InvalidModel\nfrom qruntime.ir.dtypes import type_name\nimport numpy"
    assert violations(Path("qruntime/ir/graph.py"), source) == []
