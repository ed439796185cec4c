"""Threads, processes and interrupts."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import qruntime
from tests.small_models import (
    FLOAT,
    assert_same_bits,
    encoder_bytes,
    linear_bytes,
    model_bytes,
    random,
    recurrent_bytes,
)

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_share_a_model(threads: int):
    model = qruntime.load(encoder_bytes(64), threads=threads).quantize_dynamic()
    inputs = [random(1 + i % 3, 5 + i % 7, 64, seed=i) for i in range(24)]
    expected = [model(x) for x in inputs]
    model = qruntime.load(encoder_bytes(64), threads=threads).quantize_dynamic()  # the first runs race to make the plan
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            for a, b in zip(pool.map(model, inputs), expected, strict=True):
                assert_same_bits(a, b)


def test_models_run_side_by_side():
    models = [qruntime.load(data, threads=2) for data in (encoder_bytes(64), linear_bytes(64, 200), recurrent_bytes("GRU", 64, 32))]
    inputs = [random(2, 9, 64), random(65, 64), random(9, 3, 64)]
    expected = [np.asarray(_first(m(x))) for m, x in zip(models, inputs, strict=True)]
    failures: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for _ in range(30):
                assert_same_bits(_first(models[i](inputs[i])), expected[i])
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def _first(results: object) -> np.ndarray:
    return results[0] if isinstance(results, tuple) else results  # type: ignore[return-value]


def test_failures_in_one_thread_leave_the_others_alone():
    model = qruntime.load(encoder_bytes(64), threads=2)
    x = random(2, 5, 64)
    expected = model(x)

    def work(i: int) -> None:
        if i % 2:
            with pytest.raises(qruntime.InputError):
                model(x[:, :, :7])
        else:
            assert_same_bits(model(x), expected)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(60)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_runs():
    model = qruntime.load(encoder_bytes(64), threads=2).quantize_dynamic()
    x = random(4, 33, 64)
    expected = model(x)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if model(x).tobytes() == expected.tobytes() and model(x).tobytes() == expected.tobytes() else 2
        finally:
            os._exit(status)
    assert _exit_code(child) == 0
    assert_same_bits(model(x), expected)


def _exit_code(child: int, seconds: float = 60) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def _serve(data: bytes, x: np.ndarray, quantize: bool) -> bytes:
    model = qruntime.load(data, threads=2)
    return (model.quantize_dynamic() if quantize else model)(x).tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method: str):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    data, x = encoder_bytes(64), random(3, 17, 64)
    expected = [_serve(data, x, quantize) for quantize in (False, True)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap_async(_serve, [(data, x, False), (data, x, True)]).get(timeout=120) == expected


def test_an_interrupt_ends_a_long_run():
    """Ctrl-C is seen between nodes, and the model still works afterwards."""
    script = """
import numpy as np, qruntime, signal, sys, time
from onnx import helper
from tests.small_models import FLOAT, model_bytes
n = 4000
nodes = [helper.make_node("MatMul", [f"x{i}" if i else "x", "w"], [f"x{i + 1}" if i + 1 < n else "y"]) for i in range(n)]
data = model_bytes(nodes, [("x", FLOAT, [512, 512])], [("y", FLOAT, [512, 512])], {"w": np.eye(512, dtype=np.float32)})
model = qruntime.load(data, threads=1)
x = np.zeros((512, 512), np.float32)
signal.setitimer(signal.ITIMER_REAL, 0.5)
signal.signal(signal.SIGALRM, signal.default_int_handler)
start = time.perf_counter()
try:
    for _ in range(1000):
        model(x)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.stdout.strip() == "interrupted", done.stderr
    assert done.returncode == 0


def test_an_interrupt_ends_a_run_of_few_long_nodes():
    nodes = [helper.make_node("MatMul", [f"x{i}" if i else "x", "w"], [f"x{i + 1}" if i < 11 else "y"]) for i in range(12)]
    weights = {"w": np.eye(1100, dtype=np.float32)}
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, [1100, 1100])], [("y", FLOAT, None)], weights), threads=1)
    x = np.zeros((1100, 1100), np.float32)

    def seconds_of_a_run() -> float:
        start = time.perf_counter()
        with contextlib.suppress(KeyboardInterrupt):
            model(x)
        return time.perf_counter() - start

    seconds_of_a_run()
    whole = min(seconds_of_a_run() for _ in range(3))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    shortest = whole
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, whole / 10)
            shortest = min(shortest, seconds_of_a_run())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert shortest < max(0.7 * whole, 0.1)


def test_interrupts_leave_the_model_whole():
    model = qruntime.load(encoder_bytes(64, layers=12), threads=2)
    x = random(2, 40, 64)
    expected = model(x)
    interrupted = 0

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(30):
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (1 + i % 7))
            try:
                for _ in range(200):
                    y = model(x)
                    assert_same_bits(y, expected)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 0
    assert_same_bits(model(x), expected)


def test_subgraphs_run_parallel_kernels_inside_parallel_runs():
    """A Loop whose body is a large MatMul, from several threads at once: regions within regions."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    w = random(96, 96) / np.float32(10)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["product"]),
            helper.make_node("Tanh", ["product"], ["next"]),
            helper.make_node("Identity", ["going"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [None, 96]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [None, 96]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 96])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 96])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array(5, np.int64), "trips")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    for loaded in (
        qruntime.load(model.SerializeToString(), threads=2),
        qruntime.load(model.SerializeToString(), threads=2).quantize_dynamic(),
    ):
        x = random(130, 96)
        expected = loaded(x)
        with ThreadPoolExecutor(4) as pool:
            for y in pool.map(loaded, [x] * 12):
                assert_same_bits(y, expected)


def _stdout_of(script: str) -> list[str]:
    """Words that a script prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


_IMPORTS = """
import os, time, numpy as np, qruntime
from tests.small_models import encoder_bytes, linear_bytes, random
"""
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_idle_threads_sleep():
    script = f"""{_IMPORTS}
model, x = qruntime.load(linear_bytes(512, 512), threads=2), random(200, 512)
for _ in range(20): model(x)
start = time.process_time()
time.sleep(1)
print(time.process_time() - start)
"""
    (seconds,) = _stdout_of(script)
    assert float(seconds) < 0.02


@needs_linux
def test_more_threads_than_cpus_are_not_started():
    script = f"""{_IMPORTS}
before = len(os.listdir("/proc/self/task"))
qruntime.load(linear_bytes(512, 512), threads=64)(random(2000, 512))
print(before, len(os.listdir("/proc/self/task")))
"""
    before, after = map(int, _stdout_of(script))
    assert after - before == min(64, len(os.sched_getaffinity(0))) - 1


@needs_linux
@pytest.mark.skipif(sys.platform == "linux" and len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
@pytest.mark.parametrize(("size", "rows"), [(600, 1), (1500, 8)])  # one takes less, one more than threads spin
def test_small_work_wakes_threads_only_when_more_follows(size, rows):
    script = f"""{_IMPORTS}
def times_asleep():
    tasks = [task for task in os.listdir("/proc/self/task") if int(task) != os.getpid()]
    statuses = [open(f"/proc/self/task/{{task}}/status").read() for task in tasks]
    return sum(int(status.partition("\\nvoluntary_ctxt_switches:")[2].split()[0]) for status in statuses)
model, x = qruntime.load(linear_bytes({size}, {size}), threads=2).quantize_dynamic(), random({rows}, {size})
model(x)
time.sleep(0.1)
before = times_asleep()
for _ in range(20):
    time.sleep(0.002)
    model(x)
time.sleep(0.1)
alone = times_asleep()
for _ in range(2000): model(x)
time.sleep(0.1)
print(before, alone, times_asleep())
"""
    before, alone, following = map(int, _stdout_of(script))
    assert alone == before
    assert following > alone
