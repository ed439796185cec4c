"""Build the one extension: qruntime/_kernels.pyx and every C file under qruntime/kernels/.

QRUNTIME_DEBUG_BUILD=1   assertions, sanitizers and Cython's bounds checks
QRUNTIME_WERROR=1        warnings are errors (continuous integration)
"""

import os
import platform
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")
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
if os.environ.get("QRUNTIME_WERROR") == "1":
    FLAGS.append("-Werror")

RUNGS_OF_X86 = ("avx2", "avx_vnni", "avx512", "avx512vnni")
RUNGS_OF_ARM = ("neon",)


def kernel_sources() -> list[str]:
    other = RUNGS_OF_ARM if X86 else RUNGS_OF_X86
    found = sorted(glob("qruntime/kernels/**/*.c", recursive=True))
    return [path for path in found if not any(f"{os.sep}{rung}{os.sep}" in path for rung in other)]


class build_kernels(build_ext):  # noqa: N801 (distutils names commands so)
    """Cython's generated C is not ours to keep free of warnings."""

    def build_extension(self, ext: Extension) -> None:
        compile_one = self.compiler._compile

        def compile_quietly(obj, src, ext_type, cc_args, postargs, pp_opts):
            if src.endswith("_kernels.c"):
                postargs = [flag for flag in postargs if not flag.startswith("-W")]
            compile_one(obj, src, ext_type, cc_args, postargs, pp_opts)

        self.compiler._compile = compile_quietly
        super().build_extension(ext)


setup(
    ext_modules=cythonize(
        [
            Extension(
                "qruntime._kernels",
                ["qruntime/_kernels.pyx", *kernel_sources()],
                include_dirs=["qruntime/kernels", numpy.get_include()],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_23_API_VERSION")],
                depends=glob("qruntime/kernels/**/*.[h]", recursive=True),
                extra_compile_args=FLAGS,
                extra_link_args=LINK_FLAGS,
            )
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
