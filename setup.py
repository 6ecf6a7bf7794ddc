"""Build script: one extension from the C core, everything else is in pyproject.toml.

Cython's output goes to build/cython, so that the glob over _native never links it twice.
PMRUN_SANITIZE=address,undefined and PMRUN_DEBUG=1 choose instrumented builds.
"""

import os
import platform
import shutil
import sys
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

C_FLAGS = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # a fused multiply-add would give other bits on other machines
    "-fno-math-errno",
    "-pthread",
]
MACHINES = ("x86_64", "aarch64")


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


class build_native(build_ext):
    """Gives the strict warning flags to our own C files and plain ones to Cython's output."""

    def build_extension(self, ext: Extension) -> None:
        refuse_unsupported()
        compile_one = self.compiler._compile

        def compile_with_flags(obj, src, suffix, cc_args, extra, pp_opts):  # type: ignore[no-untyped-def]
            flags = list(extra)
            if src.startswith("_native"):
                flags += C_FLAGS
            else:
                flags += ["-D_GNU_SOURCE", "-pthread", "-fvisibility=hidden", "-Wno-unused-function"]
            compile_one(obj, src, suffix, cc_args, flags, pp_opts)

        self.compiler._compile = compile_with_flags
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile = compile_one


def extensions() -> list[Extension]:
    if (
        not {"build_ext", "bdist_wheel", "editable_wheel", "develop", "install"} & set(sys.argv)
        and "egg_info" in sys.argv
    ):
        return []
    refuse_unsupported()
    import numpy
    from Cython.Build import cythonize

    optimise = ["-O0", "-g"] if os.environ.get("PMRUN_DEBUG") else ["-O3", "-g1"]
    sanitize = os.environ.get("PMRUN_SANITIZE", "")
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
