"""What importing and running costs, in new interpreters."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import qruntime
from tests.small_models import encoder_bytes, linear_bytes, recurrent_bytes

CHARACTER_MODEL = Path(__file__).parents[1] / "examples/shakespeare/shakespeare.onnx"
FOREIGN = ("onnx", "google", "ml_dtypes", "torch", "onnxruntime", "rich", "hypothesis")


def run_python(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_need_nothing_but_numpy(tmp_path):
    paths = []
    for name, data in {"linear": linear_bytes(), "lstm": recurrent_bytes("LSTM"), "encoder": encoder_bytes()}.items():
        qruntime.load(data).save(tmp_path / f"{name}.onnx")
        paths.append(tmp_path / f"{name}.onnx")
    script = f"""
import sys, numpy as np, qruntime
for path in sys.argv[1:]:
    model = qruntime.load(path)
    shape = [d if isinstance(d, int) else 3 for d in model.inputs[0].shape]
    for m in (model, model.quantize_dynamic()):
        m(np.ones(shape, np.float32))
        m.summary(), str(m)
    m.save(path)
    qruntime.load(path)(np.ones(shape, np.float32))
print(sorted(set(sys.modules) & set({FOREIGN!r})))
"""
    assert run_python(script, *paths).strip() == "[]"


def test_sources_that_are_not_compiled_say_what_to_do(tmp_path: Path):
    """`pip install .` and then Python in the same folder: it finds the sources, not what is installed."""
    (tmp_path / "qruntime").mkdir()
    (tmp_path / "qruntime/__init__.py").write_text(Path(qruntime.__file__).read_text())
    # Without site-packages: an editable install finds the compiled module wherever its package was found.
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import qruntime"], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
        env={"PATH": ""},
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: '{tmp_path / 'qruntime'}' holds sources")
    assert "keep that folder off sys.path" in last and "qruntime convert" in last
    assert "pip install -e ." in last


def test_import_is_quick():
    """A tenth of the limit is usual; numpy is not counted, nor what other processes do meanwhile."""
    script = "import numpy, time; t = time.process_time(); import qruntime; print(time.process_time() - t)"
    run_python(script)  # writes the byte code
    assert min(float(run_python(script)) for _ in range(3)) < 0.5


def test_a_one_node_model_answers_quickly():
    """A hundred times the target would pass: this guards against work done anew at every call."""
    model = qruntime.load(linear_bytes(2, 2))
    feed = {"x": np.ones((1, 2), np.float32)}
    model.run(feed)
    best = min(_seconds(model, feed) for _ in range(50))
    assert best < 300e-6


def _seconds(model: qruntime.Model, feed: dict) -> float:
    start = time.perf_counter()
    model.run(feed)
    return time.perf_counter() - start


def test_a_forced_instruction_set_is_obeyed():
    script = "import os; os.environ['QRUNTIME_ISA'] = {!r}; import qruntime; print(qruntime.isa())"
    for isa in qruntime.available_isas():
        assert run_python(script.format(isa)).strip() == isa


def test_an_unknown_instruction_set_is_refused():
    script = """
import os, sys; os.environ["QRUNTIME_ISA"] = "sse9"
import qruntime
for ask in (qruntime.isa, lambda: qruntime.load(sys.argv[1])):
    try:
        ask()
    except qruntime.KernelUnavailable as error:
        print(error)
"""
    answer = run_python(script, CHARACTER_MODEL)
    assert answer.count("'sse9'") == 2
    for isa in qruntime.available_isas():
        assert isa in answer


def test_the_number_of_threads_comes_from_the_environment():
    script = "import os; os.environ[{!r}] = '3'; import qruntime, sys; print(qruntime.load(sys.argv[1]).threads)"
    for variable in ("QRUNTIME_NUM_THREADS", "OMP_NUM_THREADS"):
        assert run_python(script.format(variable), CHARACTER_MODEL).strip() == "3"


def test_what_loading_builds_is_not_searched_for_garbage():
    """Without a hint the collector goes through all of it at the next object that anybody makes."""
    script = """
import gc, sys
import qruntime
searched = []
gc.collect()
gc.callbacks.append(lambda phase, info: searched.append(info))
model = qruntime.load(sys.argv[1])
model._plan(tuple(model.graph.output_names))
kept = [[] for _ in range(100)]
print(len(searched), gc.isenabled(), gc.get_freeze_count())
"""
    assert run_python(script, CHARACTER_MODEL).split() == ["0", "True", "0"]


def test_frozen_objects_stay_frozen():
    script = """
import gc, sys
import qruntime
gc.freeze()
before = gc.get_freeze_count()
qruntime.load(sys.argv[1])
print(before > 0 and gc.get_freeze_count() >= before)
"""
    assert run_python(script, CHARACTER_MODEL).strip() == "True"
