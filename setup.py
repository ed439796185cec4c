"""Build the extensions: qruntime/_kernels.pyx with every C file under qruntime/kernels/, and the reader of files.

QRUNTIME_DEBUG_BUILD=1   assertions, sanitizers and Cython's bounds checks
QRUNTIME_WERROR=1        warnings are errors (continuous integration)
"""

import functools
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from sysconfig import get_platform

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

DEBUG = os.environ.get("QRUNTIME_DEBUG_BUILD") == "1"

# Contraction would let the compiler fuse a multiply and an add in one tile and not in another, and a
# row's result would depend on its neighbours. No -march: each rung raises the target in its own region.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-Wno-psabi", "-Wno-unknown-warning-option"]
LINK_FLAGS = ["-pthread"]
if DEBUG:
    FLAGS += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    LINK_FLAGS += ["-fsanitize=address,undefined"]
else:
    FLAGS += ["-g0", "-DNDEBUG"]
    LINK_FLAGS += ["-Wl,-s"] if sys.platform == "linux" else []
if os.environ.get("QRUNTIME_WERROR") == "1":
    FLAGS.append("-Werror")

RUNGS = {
    "x86_64": ("avx2", "avx_vnni", "avx512", "avx512vnni", "avx512bf16", "amx"),
    "aarch64": ("neon", "neon_dotprod"),
}
ARCHITECTURE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def kernel_sources() -> list[str]:
    other = [rung for architecture, rungs in RUNGS.items() if architecture != ARCHITECTURE for rung in rungs]
    found = sorted(glob("qruntime/kernels/**/*.c", recursive=True))
    return [path for path in found if not any(f"{os.sep}{rung}{os.sep}" in path for rung in other)]


class build_kernels(build_ext):  # noqa: N801 (distutils names commands so)
    """Compiles on all cores, and only what changed; generated C is not ours to keep free of warnings."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # One place for objects, for editable installs too, which would build in a new directory every time.
        self.build_temp = f"build/{get_platform()}-{sys.implementation.cache_tag}{'-debug' if DEBUG else ''}"

    def build_extension(self, ext: Extension) -> None:
        self.compiler.compile = functools.partial(self._compile_in_parallel, self.compiler)
        super().build_extension(ext)

    def _compile_in_parallel(
        self, compiler, sources, output_dir=None, macros=None, include_dirs=None, debug=0,
        extra_preargs=None, extra_postargs=None, depends=None,
    ):  # fmt: skip
        macros, objects, extra, pp_opts, build = compiler._setup_compile(output_dir, macros, include_dirs, sources, depends, extra_postargs)
        cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)

        def compile_one(obj: str) -> None:
            source, extension = build[obj]
            if newer_group([source, *(depends or ())], obj):
                is_generated = os.path.exists(f"{os.path.splitext(source)[0]}.pyx")
                flags = [flag for flag in extra if not (is_generated and flag.startswith("-W"))]
                compiler._compile(obj, source, extension, cc_args, flags, pp_opts)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        return objects


setup(
    ext_modules=cythonize(
        [
            Extension(
                "qruntime._kernels",
                ["qruntime/_kernels.pyx", *kernel_sources()],
                include_dirs=["qruntime/kernels", numpy.get_include()],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_23_API_VERSION")],
                depends=["setup.py", *glob("qruntime/*.pxi"), *glob("qruntime/kernels/**/*.h", recursive=True)],
                extra_compile_args=FLAGS,
                extra_link_args=LINK_FLAGS,
            ),
            Extension(
                "qruntime.onnx_io._wire_reader",
                ["qruntime/onnx_io/_wire_reader.pyx"],
                depends=["setup.py"],
                extra_compile_args=FLAGS,
                extra_link_args=LINK_FLAGS,
            ),
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "freethreading_compatible": True,
        },
    ),
    cmdclass={"build_ext": build_kernels},
)
