# SPDX-License-Identifier: Apache-2.0
"""Files and functions stay small enough to be read in one go.

C functions are found by their braces in the first column, Cython's by their indentation: both are how this code is
written, and the other tests would be the first to show a file that is not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import source_tree

LINES = {".c": 600, ".h": 600, ".inc": 600, ".pyx": 600, ".pxi": 600, ".py": 500, ".pyi": 500, ".md": 400, ".pml": 600}
FUNCTION_LINES = 70
GENERATED = {"benchmarks/RESULTS.md", "CHANGELOG.md"}  # lists, which nobody reads from top to bottom

BOUNDED = [path for path in source_tree.having(*LINES) if str(path) not in GENERATED]


@pytest.mark.parametrize("path", BOUNDED, ids=str)
def test_files_are_not_too_long(path: Path) -> None:
    assert len(source_tree.text(path).splitlines()) <= LINES[path.suffix], "split it by what its parts are about"


@pytest.mark.parametrize("path", source_tree.having(".c", ".h", ".inc", ".py", ".pyx", ".pxi"), ids=str)
def test_functions_are_not_too_long(path: Path) -> None:
    find = {".py": python_functions, ".pyx": cython_functions, ".pxi": cython_functions}.get(path.suffix, c_functions)
    long = [f"{name}: {lines} lines" for name, lines in find(source_tree.text(path)) if lines > FUNCTION_LINES]
    assert not long, f"{path}: {', '.join(long)}; {FUNCTION_LINES} are enough"


def python_functions(text: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
            yield node.name, node.end_lineno - node.lineno + 1


def cython_functions(text: str) -> Iterator[tuple[str, int]]:
    lines = text.splitlines()
    for start, line in enumerate(lines):
        found = re.match(r"(\s*)(?:async\s+)?(?:def|cdef|cpdef)\s[^=]*?(\w+)\(", line)
        if not found or "class " in line.split("(")[0]:
            continue
        end = start
        for number in range(start + 1, len(lines)):
            indent = len(lines[number]) - len(lines[number].lstrip())
            if lines[number].strip() and indent <= len(found[1]) and not lines[number].lstrip().startswith(")"):
                break
            if lines[number].strip():
                end = number
        yield found[2], end - start + 1


def c_functions(text: str) -> Iterator[tuple[str, int]]:
    name, start = "", None
    for number, line in enumerate(text.splitlines()):
        called = re.match(r"(?:[A-Za-z_][\w\s*]*[\s*])?([A-Za-z_]\w*)\(", line)
        if called and not line.rstrip().endswith(";"):
            name, start = called[1], number
        elif line.startswith("}") and start is not None:
            yield name, number - start + 1
            start = None


def test_the_counters_count() -> None:
    c = "static int\nadd(int a,\n    int b)\n{\n    return a + b;\n}\nint one(void) { return 1; }\nint two(void)\n{\n}\n"
    assert list(c_functions(c)) == [("add", 5), ("two", 3)]
    cython = "cdef class A:\n    def f(self,\n          int a):\n        return 1\n\n        # more\n    x = 1\ncdef int g():\n    pass\n"
    assert list(cython_functions(cython)) == [("f", 5), ("g", 2)]
    assert list(python_functions("def f():\n    def g():\n        pass\n    return g\n")) == [("f", 4), ("g", 2)]
