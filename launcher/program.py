# SPDX-License-Identifier: Apache-2.0
"""What each rank runs: the words of the command line made into a complete command, or one line why not.

A script runs under the interpreter that runs pmrun, so that virtual environments hold. Everything is checked here,
before anything starts: N ranks that each print the same "no such file" are no error message. Paths are looked up
where the ranks will look, in --cwd. Invariant: nothing is imported or started in order to check.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pmrun.errors import UsageError
from pmrun.launcher.command_line import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.machinery import ModuleSpec

    from pmrun.launcher.command_line import CommandLine

_ELF = b"\x7fELF"


def complete_command(line: CommandLine, directory: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The command of every rank. `environ` is what the ranks will have, as far as it is known here."""
    if line.kind is Kind.MODULE:
        return _module(line.words, directory, environ)
    if line.kind is Kind.PROGRAM:
        if not line.words:
            raise UsageError("no program after '--'; write: pmrun [options] -- program args...")
        return (_program(line.words[0], directory, environ), *line.words[1:])
    if line.kind is Kind.WORD:
        return _script_or_program(line.words, directory, environ)
    raise UsageError("nothing to run; write: pmrun -n 4 script.py args... (pmrun --help has examples)")


def _script_or_program(words: tuple[str, ...], directory: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """A script ends in .py or is a file; only a bare name that is neither is looked for on PATH."""
    word = words[0]
    path = os.path.join(directory, word)
    if os.path.isfile(path):
        return (*_script(word, path), *words[1:])
    if os.path.isfile(os.path.join(path, "__main__.py")):
        return (sys.executable, *words)  # Python itself runs such a directory
    if os.path.isdir(path):
        raise UsageError(f"'{word}' is a directory without __main__.py; name a script in it")
    if "/" not in word and not word.endswith(".py"):
        found = _on_path(word, directory, environ)
        if found:
            return (found, *words[1:])
    raise UsageError(f"cannot find script '{word}' (looked in {directory}){_nearby(word, path)}")


def _script(word: str, path: str) -> tuple[str, str]:
    try:
        with open(path, "rb") as file:
            start = file.read(len(_ELF))
    except OSError as error:
        raise UsageError(f"cannot read script '{word}': {error.strerror}; try: chmod +r {path}") from None
    if start == _ELF:
        raise UsageError(f"'{word}' is a program, not a Python script; write: pmrun [options] -- {_dotted(word)}")
    return (sys.executable, word)


def _nearby(word: str, path: str) -> str:
    """The remedy for a script that is not there: the likely one of the same folder, if there is one."""
    import difflib

    folder = os.path.dirname(path)
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".py")]
    except OSError:
        return f"; there is no folder {folder}"
    close = difflib.get_close_matches(os.path.basename(word), names, n=1)
    if close:
        return f"; did you mean {os.path.join(os.path.dirname(word), close[0])}?"
    return "; check the name, or the folder with --cwd"


# ---- programs ---------------------------------------------------------------------------------------------


def _program(word: str, directory: str, environ: Mapping[str, str]) -> str:
    if "/" not in word:
        found = _on_path(word, directory, environ)
        if found:
            return found
        if os.path.isfile(os.path.join(directory, word)):
            raise UsageError(f"cannot find program '{word}' on PATH; for the file in {directory} write ./{word}")
        raise UsageError(f"cannot find program '{word}' on PATH; check the name or give its path")
    path = os.path.join(directory, word)
    if not os.path.exists(path):
        raise UsageError(f"cannot find program '{word}' (looked in {directory}); check the path")
    if os.path.isdir(path):
        raise UsageError(f"'{word}' is a directory; name a program in it")
    if not os.access(path, os.X_OK):
        python = f", or leave out '--' to run it with Python: pmrun {word}" if word.endswith(".py") else ""
        raise UsageError(f"'{word}' may not be executed; try: chmod +x {path}{python}")
    return word


def _on_path(name: str, directory: str, environ: Mapping[str, str]) -> str | None:
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory, folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _dotted(word: str) -> str:
    return word if "/" in word else f"./{word}"


# ---- modules ----------------------------------------------------------------------------------------------


def _module(words: tuple[str, ...], directory: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    if not words:
        raise UsageError("no module after '-m'; write: pmrun [options] -m package.module args...")
    name = words[0]
    if not all(part.isidentifier() for part in name.split(".")):
        hint = f"; leave out -m: pmrun {name}" if name.endswith(".py") else "; write package.module"
        raise UsageError(f"'{name}' is not a module's name{hint}")
    if environ.get("PYTHONPATH", "") == os.environ.get("PYTHONPATH", ""):  # else the ranks look elsewhere
        _check_module(name, directory)
    return (sys.executable, "-m", *words)


def _check_module(name: str, directory: str) -> None:
    """Refuses a module that no finder knows. Parents are not imported, as `importlib.util.find_spec` would do;
    where that leaves a question open (namespace packages), the ranks' Python decides."""
    parts = name.split(".")
    places = [directory, *sys.path[1:]]  # as `python -m` has it: sys.path[0] is the script's folder, here pmrun's
    for depth in range(1, len(parts) + 1):
        dotted = ".".join(parts[:depth])
        try:
            spec = _find(dotted, places)
        except KeyError:  # a namespace package inside a package asks for its imported parent
            return
        if spec is None:
            raise UsageError(f"cannot find module '{dotted}' (looked in {directory} and {sys.prefix}); check the name")
        if spec.submodule_search_locations is None:
            if depth < len(parts):
                raise UsageError(f"cannot find module '{name}': '{dotted}' is a module, not a package")
            return
        if spec.origin is None:
            return
        places = list(spec.submodule_search_locations)
    if _find(f"{name}.__main__", places) is None:
        raise UsageError(f"'{name}' is a package without __main__.py; name a module in it: -m {name}.module")


def _find(name: str, places: list[str]) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, places)
        if spec is not None:
            return spec
    return None
