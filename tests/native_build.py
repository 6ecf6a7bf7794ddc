# SPDX-License-Identifier: Apache-2.0
"""Builds the core without Python, and C test programs against it, under any sanitizer or for another machine.

Objects are kept in build/native/<variant> and rebuilt when a file they were made from changed (the compiler writes
down which). All objects are linked into each program, not an archive of them: algorithms register themselves in a
linker section, and an archive would leave out those that nobody names. Invariant: the flags are those of setup.py.
"""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "_native"


def c_flags() -> list[str]:
    """C_FLAGS of setup.py, read without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "C_FLAGS":
            flags: list[str] = ast.literal_eval(node.value)
            return [*flags, "-Werror"]
    raise LookupError("setup.py has no C_FLAGS")


def core_sources() -> list[Path]:
    """All of the core but the bindings."""
    return sorted(path for path in NATIVE.rglob("*.c") if path.parent.name != "bindings")


class NativeBuild:
    """One variant: plain (sanitize is "") or instrumented, for this machine (machine is "") or for another one."""

    def __init__(self, sanitize: str, machine: str = "", compiler: str = "") -> None:
        variant = sanitize.replace(",", "-") or "plain"
        self.folder = ROOT / "build" / "native" / (f"{machine}-{variant}" if machine else variant)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._machine = machine
        usual = f"{machine}-linux-gnu-gcc" if machine else os.environ.get("CC", "cc")
        self._compiler = shlex.split(compiler or usual)
        self._flags = [*c_flags(), "-O1" if sanitize else "-O2", "-g", f"-I{NATIVE}"]
        self._sanitize = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
        if not sanitize:
            self._sanitize = []
        if "fuzzer" in sanitize:
            self._flags += ["-DPMR_LIBFUZZER", "-Wno-pass-failed"]  # instrumented, no loop is vectorised
        if sanitize == "thread":
            self._flags.append("-Wno-tsan")  # gcc warns that it does not model fences

    def program(self, source: Path) -> Path:
        """The test program of one C file, linked with the whole core. AssertionError with the compiler's words."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = list(pool.map(self._object, [*core_sources(), source]))
        program = self.folder / source.stem
        if not program.exists() or any(_newer(path, program) for path in objects):
            self._run([*map(str, objects), "-o", str(program), "-pthread", "-lm", "-ldl"])
        return program

    def emulator(self) -> list[str]:
        """What a program of this variant is run by: words before it, none for this machine's own."""
        if not self._machine:
            return []
        return [f"qemu-{self._machine}", "-L", f"/usr/{self._machine}-linux-gnu"]

    def _object(self, source: Path) -> Path:
        target = self.folder / (str(source.relative_to(ROOT)).replace("/", "--") + ".o")
        made_from = target.with_suffix(".d")
        if not target.exists() or any(_newer(path, target) for path in _prerequisites(made_from)):
            flags = self._flags if source.is_relative_to(NATIVE) else [*self._flags, "-Wno-conversion"]
            self._run([*flags, "-MMD", "-MF", str(made_from), "-c", str(source), "-o", str(target)])
        return target

    def _run(self, arguments: list[str]) -> None:
        command = [*self._compiler, *self._sanitize, *arguments]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"


def _prerequisites(made_from: Path) -> list[Path]:
    """Files of a make rule; a missing rule counts as everything changed."""
    if not made_from.exists():
        return [ROOT / "setup.py", made_from]
    words = made_from.read_text().replace("\\\n", " ").split()
    return [ROOT / "setup.py", *(Path(word) for word in words[1:])]


def _newer(path: Path, target: Path) -> bool:
    return not path.exists() or path.stat().st_mtime_ns > target.stat().st_mtime_ns
