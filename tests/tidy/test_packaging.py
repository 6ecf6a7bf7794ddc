# SPDX-License-Identifier: Apache-2.0
"""Packaging: what pyproject.toml lists by hand agrees with what is there."""

from __future__ import annotations

import ast
import os
import re
from importlib import metadata
from pathlib import Path

import pytest
import source_tree


@pytest.fixture(scope="module")
def pyproject() -> str:
    return source_tree.text(Path("pyproject.toml"))


def test_the_version_is_the_same_everywhere(pyproject: str) -> None:
    import pmrun

    found = re.search(r'^version = "([^"]+)"$', pyproject, re.MULTILINE)
    assert found is not None
    assert found[1] == pmrun.__version__ == metadata.version("pmrun")
    assert f"\n## {found[1]}" in source_tree.text(Path("CHANGELOG.md"))


def test_every_package_is_listed(pyproject: str) -> None:
    found = re.search(r"^packages = (\[.*?\])", pyproject, re.MULTILINE | re.DOTALL)
    assert found is not None
    inits = [path for path in source_tree.having(".py", under=("src", "launcher")) if path.name == "__init__.py"]
    assert sorted(ast.literal_eval(found[1])) == sorted(source_tree.module_name(path) for path in inits)


def test_every_folder_is_in_the_source_distribution() -> None:
    grafted = re.findall(r"^graft (\S+)$", source_tree.text(Path("MANIFEST.in")), re.MULTILINE)
    folders = {path.parts[0] for path in source_tree.files() if len(path.parts) > 1}
    assert folders <= {*grafted, "src", ".ci"}


@pytest.mark.parametrize("name", [".ci/run"])
def test_programs_may_be_executed(name: str) -> None:
    path = source_tree.ROOT / name
    if not path.exists():
        pytest.skip("the source distribution has no .ci")
    assert os.access(path, os.X_OK)
