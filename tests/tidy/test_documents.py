# SPDX-License-Identifier: Apache-2.0
"""What the documents list agrees with what is there: exit codes, folders of tests, targets of make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import source_tree

from pmrun.errors import ExitCode
from pmrun.launcher.help_page import help_page

EXIT_CODES = {code for name, code in vars(ExitCode).items() if name.isupper()}


def test_the_readme_tells_every_exit_code() -> None:
    rows = re.findall(r"^\| ([0-9, ]+) \|", source_tree.text(Path("README.md")), re.MULTILINE)
    codes = [int(code) for row in rows for code in row.split(",")]
    assert sorted(codes) == sorted(EXIT_CODES)


def test_the_help_page_tells_every_exit_code() -> None:
    _, _, codes = help_page(colour=False).partition("Exit codes")
    assert set(map(int, re.findall(r"(?:^  |\(|, )(\d+)(?=  |: )", codes, re.MULTILINE))) - {137} == EXIT_CODES


def test_the_folders_of_tests_are_told() -> None:
    told = re.findall(r"^\| `(tests/\w+)` \|", source_tree.text(Path("CONTRIBUTING.md")), re.MULTILINE)
    there = {
        "/".join(path.parts[:2]) for path in source_tree.files() if path.parts[0] == "tests" and len(path.parts) > 2
    }
    assert sorted(told) == sorted(there)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", "ARCHITECTURE.md", ".ci/run"])
def test_targets_that_are_told_exist(name: str) -> None:
    path = Path(name)
    if not (source_tree.ROOT / path).exists():
        pytest.skip("the source distribution has no .ci")
    targets = set(re.findall(r"^([a-z0-9-]+):", source_tree.text(Path("Makefile")), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)", source_tree.text(path))) <= targets
