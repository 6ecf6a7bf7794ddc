# SPDX-License-Identifier: Apache-2.0
"""Build script: one extension from the C core; everything else is in pyproject.toml.

One extension, because two would hold two copies of the core's state. Cython's output goes to build/cython, so that
the glob over _native never links it twice. Four variables choose special builds: PMRUN_SANITIZE=address,undefined,
PMRUN_DEBUG=1 (no optimisation), PMRUN_WERROR=1 (a warning is an error: for those who develop pmrun, as another
compiler's new warning must not keep a user from installing it), PMRUN_PREBUILT=1 (no extension: the Makefile has
built it in place, and an editable install would build it once more, from nothing).
"""

import os
import platform
import shutil
import sys
import sysconfig
from concurrent.futures import Future, ThreadPoolExecutor
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


def prerequisites(made_from: str) -> list[str]:
    """Files of the rule that the compiler wrote for an object."""
    with open(made_from, encoding="utf-8") as file:
        return file.read().replace("\\\n", " ").split()[1:]


def up_to_date(target: str, made_from: str, command: str, flags: str) -> bool:
    """Whether an object is newer than all it was made from, and was made with the same flags."""
    try:
        made = os.stat(target).st_mtime_ns
        with open(command, encoding="utf-8") as file:
            same = file.read() == flags
        return same and all(os.stat(path).st_mtime_ns < made for path in prerequisites(made_from))
    except FileNotFoundError:
        return False


class build_native(build_ext):
    """Gives the strict warning flags to our own C files and plain ones to Cython's output.

    setuptools compiles all files when one header changed, and one after the other; here an object is kept while
    nothing it was made from changed, as make would, and each CPU has a compiler.
    """

    def build_extension(self, ext: Extension) -> None:
        compile_one, compile_all = self.compiler._compile, self.compiler.compile

        def compile_with_flags(obj, src, suffix, cc_args, extra, pp_opts):  # type: ignore[no-untyped-def]
            own = os.path.relpath(src).startswith("_native" + os.sep)
            flags = [*extra, *(C_FLAGS if own else CYTHON_FLAGS), "-MMD", "-MF", obj + ".d"]
            if own and os.environ.get("PMRUN_WERROR"):
                flags.append("-Werror")
            words = " ".join([*self.compiler.compiler_so, *cc_args, *flags, *pp_opts])
            if up_to_date(obj, obj + ".d", obj + ".command", words):
                return
            compile_one(obj, src, suffix, cc_args, flags, pp_opts)
            with open(obj + ".command", "w", encoding="utf-8") as file:
                file.write(words)

        def compile_at_once(*arguments, **named):  # type: ignore[no-untyped-def]
            compiling: list[Future[None]] = []
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                self.compiler._compile = lambda *one: compiling.append(pool.submit(compile_with_flags, *one))
                objects = compile_all(*arguments, **named)
            for one in compiling:
                one.result()  # raises what the compiler complained of
            return objects

        self.compiler.compile = compile_at_once
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile, self.compiler.compile = compile_one, compile_all


def extensions() -> list[Extension]:
    """The extension, where the command builds one: others (sdist, build_py, egg_info) need no compiler."""
    if not BUILDING & set(sys.argv) or os.environ.get("PMRUN_PREBUILT"):
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
