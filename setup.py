# SPDX-License-Identifier: Apache-2.0
"""Build script: one extension from the C core; everything else is in pyproject.toml.

One extension, because two would hold two copies of the core's state. Cython's output goes to build/cython, so that
the glob over _native never links it twice. Three variables choose special builds: PMRUN_SANITIZE=address,undefined,
PMRUN_DEBUG=1 (no optimisation), PMRUN_WERROR=1 (a warning is an error: for those who develop pmrun, as another
compiler's new warning must not keep a user from installing it).
"""

import os
import platform
import shutil
import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# tests/native_build.py reads this list, so that the plain C tests are built as the extension is.
C_FLAGS = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # a fused multiply-add would give other bits on other machines
    "-fno-math-errno",
    "-pthread",
]
CYTHON_FLAGS = ["-D_GNU_SOURCE", "-pthread", "-fvisibility=hidden", "-Wno-unused-function"]
MACHINES = ("x86_64", "aarch64")
BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}


def refuse_unsupported() -> None:
    """End with one line, not with a compiler's page, where the core cannot be built."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        sys.exit(
            f"pmrun: this is {sys.platform} on {platform.machine()}; "
            "pmrun needs Linux on x86-64 or arm64 (on other systems use a Linux container)"
        )
    compiler = os.environ.get("CC", "cc").split()[0]
    if shutil.which(compiler) is None:
        sys.exit(
            f"pmrun: no C compiler ('{compiler}' not found); install one: "
            "'apt-get install gcc libc6-dev', 'dnf install gcc', or set CC"
        )
    headers = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(headers, "Python.h")):
        sys.exit(
            f"pmrun: no Python.h in {headers}; install Python's headers: "
            "'apt-get install python3-dev' or 'dnf install python3-devel'"
        )


class build_native(build_ext):
    """Gives the strict warning flags to our own C files and plain ones to Cython's output."""

    def build_extension(self, ext: Extension) -> None:
        compile_one = self.compiler._compile

        def compile_with_flags(obj, src, suffix, cc_args, extra, pp_opts):  # type: ignore[no-untyped-def]
            own = os.path.relpath(src).startswith("_native" + os.sep)
            flags = [*extra, *(C_FLAGS if own else CYTHON_FLAGS)]
            if own and os.environ.get("PMRUN_WERROR"):
                flags.append("-Werror")
            compile_one(obj, src, suffix, cc_args, flags, pp_opts)

        self.compiler._compile = compile_with_flags
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile = compile_one


def extensions() -> list[Extension]:
    """The extension, where the command builds one: others (sdist, build_py, egg_info) need no compiler."""
    if not BUILDING & set(sys.argv):
        return []
    refuse_unsupported()
    import numpy
    from Cython.Build import cythonize

    sanitize = os.environ.get("PMRUN_SANITIZE", "")
    optimise = ["-O3", "-g1"]
    if os.environ.get("PMRUN_DEBUG") or sanitize:
        optimise = ["-O1" if sanitize else "-O0", "-g"]
    san = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"] if sanitize else []
    sources = sorted(glob("_native/**/*.c", recursive=True))
    depends = sorted(
        glob("_native/**/*.h", recursive=True)
        + glob("_native/**/*.inc", recursive=True)
        + glob("_native/**/*.pxi", recursive=True)
    )
    return cythonize(
        [
            Extension(
                "pmrun._native",
                ["_native/bindings/_native.pyx", *sources],
                include_dirs=["_native", numpy.get_include()],
                depends=depends,
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
                extra_compile_args=optimise + san,
                extra_link_args=["-pthread", *san],
            )
        ],
        build_dir="build/cython",
        include_path=["_native/bindings"],
        compiler_directives={"language_level": 3, "binding": True, "embedsignature": False},
    )


setup(ext_modules=extensions(), cmdclass={"build_ext": build_native})
