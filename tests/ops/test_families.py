"""The index of operators says what the modules register, and nothing is imported that a model does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qruntime.ops import registry
from qruntime.ops.families import FAMILIES, MODULES
from tests.small_models import linear_bytes, recurrent_bytes

ROOT = Path(__file__).parents[2]


def run_python(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_the_index_is_what_the_modules_register():
    assert {(spec.domain, spec.op_type) for spec in registry.registered()} == set(MODULES)
    named = [(domain, op) for domains in FAMILIES.values() for domain, ops in domains.items() for op in ops.split()]
    assert len(named) == len(MODULES), "an operator is listed twice"


def test_an_operator_is_complete_when_it_is_looked_up():
    """Fast paths too: one that is attached by a module imported later would be missing from the first plans."""
    script = """
from qruntime.ops import registry
from qruntime.ops.families import MODULES
def state(): return {key: {v: (spec := registry.find(*key, v)) and spec.binder for v in range(1, 30)} for key in sorted(MODULES)}
first = state()
registry.registered()
print([key for key, specs in state().items() if specs != first[key]])
"""
    assert run_python(script).strip() == "[]"


@pytest.mark.parametrize(("data", "needed"), [(linear_bytes(), set()), (recurrent_bytes("LSTM"), {"recurrent", "recurrent_kernels"})])
def test_only_what_a_model_needs_is_imported(tmp_path, data, needed):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    script = """
import sys, numpy as np, qruntime
before = set(sys.modules)
model = qruntime.load(sys.argv[1])
model(np.ones([d if isinstance(d, int) else 3 for d in model.inputs[0].shape], np.float32))
print(*sorted(name for name in set(sys.modules) - before if name.startswith("qruntime")))
print(*sorted(name for name in sys.modules if name.startswith("qruntime.")))
"""
    new, loaded = (set(line.split()) for line in run_python(script, path).splitlines())
    assert {name.removeprefix("qruntime.ops.") for name in new} == needed
    for name in ("quantization", "onnx_io.exporter", "runtime.profile", "cli", "ops.image", "ops.ml", "ops.contrib.qlinear"):
        assert f"qruntime.{name}" not in loaded


def test_quantization_needs_no_import_of_its_own():
    assert run_python("import qruntime; print(qruntime.quantization.quantize_dynamic.__name__)").strip() == "quantize_dynamic"
