"""Times of several programs taken in turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Contender(NamedTuple):
    """A process that calls `serve`: how to start it, and what to add to its environment."""

    command: Sequence[str]
    environment: Mapping[str, str] = {}


def serve(run: Callable[[], object]) -> None:
    """Answer each line of stdin, a number of seconds, with the median time of runs that long."""
    for _ in range(3):
        run()
    print("ready", flush=True)
    for line in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + float(line)
        while len(times) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


def threads_environment(threads: int) -> dict[str, str]:
    """What makes numerical libraries use this many threads."""
    return {"OMP_NUM_THREADS": str(threads), "QRUNTIME_NUM_THREADS": str(threads)}


def in_turns(contenders: Mapping[str, Contender], rounds: int, seconds: float) -> dict[str, list[float]]:
    """For each contender the median seconds of a run in every round; in a round each runs for `seconds`."""
    workers = {
        name: subprocess.Popen(
            list(contender.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **contender.environment},
        )
        for name, contender in contenders.items()
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        for name, worker in workers.items():
            assert worker.stdout is not None
            if not any(line.strip() == "ready" for line in iter(worker.stdout.readline, "")):
                raise SystemExit(f"{name} failed: {' '.join(contenders[name].command)}")
        for _ in range(rounds):
            for name, worker in workers.items():
                assert worker.stdin is not None and worker.stdout is not None
                worker.stdin.write(f"{seconds}\n")
                worker.stdin.flush()
                times[name].append(float(worker.stdout.readline()))
    finally:
        for worker in workers.values():
            worker.communicate()
    return times


def ratio(times: Mapping[str, Sequence[float]], peer: str, ours: str) -> dict[str, float]:
    """How many times longer the peer takes: median, least and greatest over the rounds."""
    found = [a / b for a, b in zip(times[peer], times[ours], strict=True)]
    return {"ratio": statistics.median(found), "ratio_min": min(found), "ratio_max": max(found)}
