# SPDX-License-Identifier: Apache-2.0
"""Every source file opens with its licence and says what it is for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import source_tree

LICENCE = "SPDX-License-Identifier: Apache-2.0"
WORDS = 6  # fewer say nothing that the file's name does not
WORDS_OF_TESTS = 3  # their functions' names say the rest

SOURCES = source_tree.having(".py", ".pyx", ".pxi", ".pyi", ".c", ".h", ".inc", ".sh", ".pml") + [
    path for path in source_tree.files() if str(path) in {"Makefile", ".ci/run"}
]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_the_first_comment(path: Path) -> None:
    text = source_tree.text(path)
    first = text.removeprefix("#!/usr/bin/env bash\n").split("\n", 1)[0]
    assert LICENCE in first, f"{path} begins with {first!r}"
    words = WORDS_OF_TESTS if path.parts[0] == "tests" else WORDS
    assert len(opening(path, text).replace(LICENCE, "").split()) >= words, f"{path} does not say what it does"


def opening(path: Path, text: str) -> str:
    """The text of the first comment or docstring."""
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    if path.suffix in {".c", ".h", ".inc", ".pml"}:
        found = re.match(r"/\*(.*?)\*/", text, re.DOTALL)
        return found[1].replace("*", " ") if found else ""
    block = re.match(r'(?:#[^\n]*\n|\s*\n)*(?:"""(.*?)""")?', text, re.DOTALL)
    return block[0].replace("#", " ").replace('"', " ") if block else ""


def test_tests_are_no_package() -> None:
    assert not [path for path in source_tree.files() if path.parts[0] == "tests" and path.name == "__init__.py"], (
        "with an __init__.py pytest would put the root on sys.path, and 'import launcher' would work"
    )
