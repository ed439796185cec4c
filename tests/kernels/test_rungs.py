"""rungs.c: every rung of a CPU against the definition: those of this CPU, those that need only instructions more than it
has, which C stands in for (emulation.h), and, where the tools are, those of AArch64 under an emulator.

`make aarch64` runs the last part alone and says what it skipped.
"""

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qruntime import _kernels

KERNELS = Path(__file__).parents[2] / "qruntime" / "kernels"
PROGRAM = Path(__file__).with_name("rungs.c")
# Its own includes come before a source can ask for GNU's declarations.
EMULATION = ["-D_GNU_SOURCE=", "-include", str(Path(__file__).with_name("emulation.h"))]
FLAGS = ["-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", f"-I{KERNELS}"]  # as setup.py
AARCH64 = ("aarch64", "arm64")

CROSS_COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
LIBRARIES = "/usr/aarch64-linux-gnu"


def build(compiler: list[str], for_arm: bool, folder: Path) -> Path:
    rungs = [d for d in KERNELS.iterdir() if d.is_dir() and d.name not in ("nodes", "portable", "vector")]
    folders = [KERNELS, KERNELS / "portable", *(d for d in rungs if d.name.startswith("neon") == for_arm)]
    sources = {source: "-O3" for d in folders for source in sorted(d.glob("*.c"))}
    sources[PROGRAM] = "-O1"  # gcc 12 for AArch64 fails on it with -O3

    def compile_one(source: Path) -> Path:
        made = folder / f"{source.parent.name}_{source.stem}.o"
        subprocess.run([*compiler, *FLAGS, sources[source], "-c", str(source), "-o", str(made)], check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "rungs"
    subprocess.run([*compiler, "-o", str(program), *map(str, objects), "-lm", "-pthread"], check=True)
    return program


def run(command: list[str]) -> dict[str, str]:
    """What the program says of each rung."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(": ") for line in done.stdout.splitlines())


def assert_passed(report: str) -> None:
    checks, failures = (int(part.split()[0]) for part in report.split(", "))
    assert checks > 1_000_000
    assert failures == 0


def test_rungs_of_this_machine(tmp_path: Path) -> None:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None or not KERNELS.joinpath("dispatch.c").exists():
        pytest.skip("needs a C compiler and the sources of the kernels")
    reports = run([str(build(compiler, platform.machine().lower() in AARCH64, tmp_path))])
    ran = {name: report for name, report in reports.items() if report != "not on this CPU"}
    if "QRUNTIME_ISA" not in os.environ:
        assert list(ran) == list(_kernels.available_isas())
    for report in ran.values():
        assert_passed(report)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="VNNI and AMX are of x86")
def test_rungs_of_other_x86_machines(tmp_path: Path) -> None:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None or not KERNELS.joinpath("dispatch.c").exists():
        pytest.skip("needs a C compiler and the sources of the kernels")
    available = _kernels.available_isas()
    reports = run([str(build([*compiler, *EMULATION], False, tmp_path))])
    ran = {name for name, report in reports.items() if report != "not on this CPU"}
    assert ("avx_vnni" in ran) == ("avx2" in available)
    assert ("amx" in ran) == ("avx512" in available)
    for name in ran:
        assert_passed(reports[name])


@pytest.fixture(scope="module")
def program_for_arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [tool for tool in (CROSS_COMPILER, EMULATOR) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"AArch64 was not emulated: there is no {' and no '.join(missing)}")
    return build([CROSS_COMPILER], True, tmp_path_factory.mktemp("aarch64"))


@pytest.mark.parametrize(("cpu", "rungs"), [("cortex-a53", ["neon"]), ("cortex-a76", ["neon", "neon_dotprod"])])
def test_rungs_of_aarch64(program_for_arm: Path, cpu: str, rungs: list[str]) -> None:
    reports = run([EMULATOR, "-cpu", cpu, "-L", LIBRARIES, str(program_for_arm)])
    ran = [name for name, report in reports.items() if report != "not on this CPU"]
    assert ran == ["portable", *rungs]
    for name in ran:
        assert_passed(reports[name])
