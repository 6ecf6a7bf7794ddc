# SPDX-License-Identifier: Apache-2.0
"""Which files of a directory are its code: what git would take, less and more as `.pmrunignore` says.

Where git is there and knows the directory, it is asked; else the tree is walked, and pathspec reads the `.gitignore`
files, nested ones and those of the directories above up to the repository's top. `.pmrunignore` lies in the directory
itself, is written as a `.gitignore`, and has the last word: a pattern leaves out what git knows, and one with `!`
brings what git ignores. Caches of Python, virtual environments and repositories' own files are never taken. Invariant:
names are relative, sorted by their bytes, each once; directories are in them by their files only.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Iterator
from typing import Any, Final

from pmrun.errors import UsageError

OWN: Final = ".pmrunignore"
_NEVER: Final = frozenset((".git", "__pycache__"))
_GIT_S: Final = 120.0
_PASSED_OVER: Final = "could not open directory"
_Found = Iterator[tuple[str, bool]]  # a file's name, and whether git ignores it


def list_files(root: str) -> list[str]:
    """The names of all files and links to be packed.

    Raises
    ------
    UsageError
        It is no directory, cannot be read, or pathspec is needed and is not there.
    """
    if not os.path.isdir(root):
        raise UsageError(f"--code {root}: there is no such directory; give the one your program lies in, or none")
    own = _read_rules(os.path.join(root, OWN))
    brings = own is not None and any(pattern.include is False for pattern in own.patterns)
    found = _by_git(root, brings)
    names = {
        name for name, ignored in (found if found is not None else _by_walk(root, brings)) if _kept(own, name, ignored)
    }
    environments = {os.path.dirname(name) + "/" for name in names if os.path.basename(name) == "pyvenv.cfg"}
    return sorted((name for name in names if not _inside(name, environments)), key=os.fsencode)


def _kept(own: Any, name: str, ignored: bool) -> bool:
    if not _NEVER.isdisjoint(name.split("/")):
        return False
    said = None if own is None else own.check_file(name).include
    return not (ignored if said is None else said)


def _inside(name: str, folders: set[str]) -> bool:
    at = name.find("/")
    while at >= 0:
        if name[: at + 1] in folders:
            return True
        at = name.find("/", at + 1)
    return False


# ---- with git ---------------------------------------------------------------------------------------------


def _by_git(root: str, with_ignored: bool) -> _Found | None:
    """What git lists; None where there is no git, or it does not answer for this directory."""
    listed = _ask_git(root)
    return None if listed is None else _of_repository(root, "", listed, with_ignored)


def _of_repository(root: str, prefix: str, listed: list[str], with_ignored: bool) -> _Found:
    for name in listed:
        path = os.path.join(root, name)
        if os.path.isdir(path) and not os.path.islink(path.rstrip("/")):
            yield from _of_inner(root, prefix, name.rstrip("/"), with_ignored)
        else:
            yield prefix + name, False
    if with_ignored:
        for name in _ask_git(root, ignored=True) or ():
            if not name.endswith("/"):
                yield prefix + name, True


def _of_inner(root: str, prefix: str, name: str, with_ignored: bool) -> _Found:
    """A repository in this one: a submodule, or one that git knows nothing of. Without its `.git` it is not checked out."""
    inner = os.path.join(root, name)
    if os.path.lexists(os.path.join(inner, ".git")):
        listed = _ask_git(inner)
        if listed is None:
            raise UsageError(
                f"--code: git cannot list the repository {inner}: run git status there, or name it in {OWN}"
            )
        yield from _of_repository(inner, f"{prefix}{name}/", listed, with_ignored)


def _ask_git(folder: str, *, ignored: bool = False) -> list[str] | None:
    which = ["--others", "--ignored"] if ignored else ["--cached", "--others"]
    # Inside a hook git's variables name the repository of the hook.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"LC_ALL": "C"}
    try:
        answer = subprocess.run(
            ["git", "-C", folder, "ls-files", *which, "--exclude-standard", "-z"],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=_GIT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    for line in os.fsdecode(answer.stderr).splitlines():
        if _PASSED_OVER in line:  # which is no error to git
            raise UsageError(f"--code: in {folder}, git says: {line}: make it readable, or remove it")
    return [os.fsdecode(name) for name in answer.stdout.split(b"\0") if name]


# ---- without ----------------------------------------------------------------------------------------------

_Rules = tuple[tuple[str, Any], ...]  # from the top down: a directory's name with a slash at its end, and its rules


def _by_walk(root: str, with_ignored: bool) -> _Found:
    """The same by reading `.gitignore` files; names are those seen from the repository's top, until the end."""
    here = os.path.abspath(root)
    top = _top_of_repository(here)
    below = os.path.relpath(here, top) if top != here else ""
    rules: _Rules = ()
    parts = below.split("/") if below else []
    for depth in range(len(parts)):  # the directories above; the walk reads the root's own
        rules = _with_rules_of(top, "".join(f"{part}/" for part in parts[:depth]), rules)
    prefix = f"{below}/" if below else ""
    for name, ignored in _walk(top, prefix, rules, with_ignored):
        yield name[len(prefix) :], ignored


def _top_of_repository(folder: str) -> str:
    above = folder
    while True:
        if os.path.lexists(os.path.join(above, ".git")):
            return above
        if above == os.path.dirname(above):
            return folder
        above = os.path.dirname(above)


def _walk(top: str, root: str, rules: _Rules, with_ignored: bool) -> _Found:
    ahead = [(root, rules, False)]
    while ahead:
        folder, above, ignored = ahead.pop()
        listed = _scan(os.path.join(top, folder))
        rules = _with_rules_of(top, folder, above)
        for entry, is_folder in listed:
            name = f"{folder}{entry}/" if is_folder else f"{folder}{entry}"
            out = ignored or _ignored(rules, name)
            if not is_folder:
                yield name, out
            elif entry not in _NEVER and (with_ignored or not out):
                ahead.append((name, rules, out))


def _scan(path: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(path) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError as error:
        raise UsageError(f"--code: cannot list {path}: {error.strerror}: make it readable, or remove it") from None


def _with_rules_of(top: str, folder: str, rules: _Rules) -> _Rules:
    own = _read_rules(os.path.join(top, folder, ".gitignore"))
    return rules if own is None else (*rules, (folder, own))


def _ignored(rules: _Rules, name: str) -> bool:
    """By the deepest file that says something, and in it by the last pattern, as git has it."""
    for folder, own in reversed(rules):
        said = own.check_file(name[len(folder) :]).include
        if said is not None:
            return bool(said)
    return False


def _read_rules(path: str) -> Any:
    """The patterns of a file; None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"--code: cannot read {path}: {error.strerror}") from None
    try:
        pathspec = importlib.import_module("pathspec")
    except ImportError:
        raise UsageError(f"--code: reading {path} takes pathspec; run: pip install 'pmrun[code]'") from None
    try:
        return pathspec.GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise UsageError(f"--code: {path}: {error}") from None
