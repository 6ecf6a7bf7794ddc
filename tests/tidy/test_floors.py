# SPDX-License-Identifier: Apache-2.0
"""The floors of the house (ARCHITECTURE.md): each file uses only its own floor and those below.

Read from the `#include "..."` lines of C and the import statements of Python, against the tables here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import source_tree

# Lowest first. include/pmr.h holds the words that all floors speak.
C_FLOORS = ("include", "core", "transport", "progress", "comm", "coll", "bindings")

# What pmrun's modules below the launcher may import of pmrun; a name that is not here may import all of them but
# the launcher. `pmrun` itself (its __init__) is above all and imported by none.
PYTHON_FLOOR = {
    "pmrun.env": set[str](),
    "pmrun.errors": set[str](),
    "pmrun.version": set[str](),
    "pmrun.window": set[str](),
    "pmrun.s3": {"pmrun.errors"},
    "pmrun.secret": {"pmrun.errors"},
    "pmrun.store_wire": {"pmrun.errors"},
    "pmrun.wire": {"pmrun.env", "pmrun.errors", "pmrun.window"},
    "pmrun.store_server": {"pmrun.store_wire"},
    "pmrun.store_host": {"pmrun.store_wire", "pmrun.store_server"},
    "pmrun.store_client": {"pmrun.errors", "pmrun.store_wire", "pmrun.store_server"},
    "pmrun.foreign": {"pmrun.env", "pmrun.errors"},
    "pmrun.meeting": {
        *("pmrun.env", "pmrun.errors", "pmrun.window", "pmrun.secret", "pmrun.store_wire", "pmrun.foreign"),
    },
    "pmrun.bench": set[str](),
    "pmrun.bench.points": set[str](),
    "pmrun.store": {
        *("pmrun.env", "pmrun.errors", "pmrun.window", "pmrun.store_wire", "pmrun.store_client"),
        *("pmrun.foreign", "pmrun.meeting"),
    },
}
LAUNCHER_STANDS_ON = {
    *("pmrun.env", "pmrun.errors", "pmrun.version", "pmrun.window", "pmrun.wire"),
    *("pmrun.s3", "pmrun.secret", "pmrun.store_wire", "pmrun.store_server", "pmrun.store_host"),
    *("pmrun.foreign", "pmrun.meeting"),
    *("pmrun.bench", "pmrun.bench.points"),
}

NATIVE = [path for path in source_tree.having(".c", ".h", ".inc", under=("_native",)) if len(path.parts) > 2]
PYTHON = source_tree.having(".py", under=("src", "launcher"))
MODULES = {source_tree.module_name(path): path for path in PYTHON}


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', source_tree.text(path), re.MULTILINE)


@pytest.mark.parametrize("path", NATIVE, ids=str)
def test_c_files_include_by_floor_and_only_downwards(path: Path) -> None:
    own = C_FLOORS.index(path.parts[1])
    for name in includes(path):
        assert (source_tree.ROOT / "_native" / name).is_file(), f"{path} includes {name}: write the path from _native/"
        floor = C_FLOORS.index(name.split("/")[0])
        assert floor <= own, f"{path} ({C_FLOORS[own]}) includes {name} ({C_FLOORS[floor]}), which is above it"


@pytest.mark.parametrize("path", NATIVE, ids=str)
def test_only_the_bindings_know_python(path: Path) -> None:
    if path.parts[1] != "bindings":
        assert not re.search(r"#\s*include\s*[<\"](Python|numpy/)", source_tree.text(path)), path


@pytest.mark.parametrize("path", source_tree.having(".c", under=("tests",)), ids=str)
def test_c_tests_do_without_python(path: Path) -> None:
    assert "Python.h" not in source_tree.text(path)


# ---- Python -----------------------------------------------------------------------------------------------


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of pmrun that are imported when this runs, at the top or inside functions; not those for typing."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "pmrun")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pmrun":
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                known = submodule in MODULES or submodule == "pmrun._native"
                yield submodule if known else str(node.module)
        else:
            yield from imports(node)


IMPORTS = {name: set(imports(ast.parse(source_tree.text(path)))) for name, path in MODULES.items()}


def in_launcher(name: str) -> bool:
    return name == "pmrun.launcher" or name.startswith("pmrun.launcher.")


def in_testing(name: str) -> bool:
    """Engines for tests, which are a user of the launcher; of its files the backends fake_* alone know them."""
    return name == "pmrun.testing" or name.startswith("pmrun.testing.")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_python_modules_import_only_downwards(name: str) -> None:
    for used in IMPORTS[name]:
        if in_launcher(name):
            plays = name.startswith("pmrun.launcher.backends.fake_") and in_testing(used)
            assert plays or in_launcher(used) or used in LAUNCHER_STANDS_ON, f"{name} may not import {used}"
        elif name in PYTHON_FLOOR:
            assert used in PYTHON_FLOOR[name], f"{name} may not import {used}"
        else:
            as_a_user = name in ("pmrun", "pmrun.bench.bindings")
            assert used != "pmrun" or as_a_user, f"{name} imports pmrun itself, which is above it"
            assert in_testing(name) or not in_testing(used), f"{name} may not import {used}, which is for tests"
            above = name == "pmrun.__main__" or in_testing(name)  # of both
            assert above or not in_launcher(used), f"{name} may not import {used}: the launcher stands beside it"


def backend_of(name: str) -> str:
    """The backend that a module belongs to, which may be a package; "" for all others."""
    return name.split(".")[3] if name.startswith("pmrun.launcher.backends.") else ""


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if name.startswith("pmrun.launcher.backends.")])
def test_backends_know_neither_each_other_nor_the_command(name: str) -> None:
    for used in IMPORTS[name] - {"pmrun.launcher.backends._base"}:
        assert backend_of(used) in ("", backend_of(name)), f"{name} imports {used}: share through launcher/"
        assert used != "pmrun.launcher.cli", f"{name} imports the command line"


def test_no_backend_is_named_outside_its_file() -> None:
    for name, used in IMPORTS.items():
        named = {module for module in used if backend_of(module) not in ("", backend_of(name))}
        assert not named - {"pmrun.launcher.backends._base"}, f"{name} imports {named}: backends are found by name"


def test_imports_have_no_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for used in sorted(IMPORTS.get(name, ())):
                visit(used, (*path, name))
            done.add(name)

    for name in sorted(MODULES):
        visit(name, ())


def test_nothing_imports_the_folders_as_packages() -> None:
    for path in source_tree.having(".py"):
        for node in ast.walk(ast.parse(source_tree.text(path))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            for name in names:
                assert name.split(".")[0] not in {"launcher", "src", "_native"}, f"{path} imports {name}: import pmrun"
