# SPDX-License-Identifier: Apache-2.0
"""Words that have no place here: calls that hide bugs, promises nobody keeps, names with two homes.

Each rule says where it holds and why. A rule's own text would break it, so this file is left out.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import source_tree

from pmrun import env


class Rule(NamedTuple):
    """A pattern that must not occur in some files."""

    pattern: str
    suffixes: tuple[str, ...]
    under: tuple[str, ...]
    why: str


C = (".c", ".h", ".inc")
CYTHON = (".pyx", ".pxi")
RULES = {
    "sleep in tests": Rule(
        r"\b(time|asyncio)\.sleep\(|\b(?:u|nano)?sleep\(", (".py", *C), ("tests",),
        "wait for the thing itself, with a deadline",
    ),
    "printf in the core": Rule(
        r"\bv?f?printf\(|\bputs\(|\bperror\(", C, ("_native",),
        "the core returns a status and a text; its caller decides what is shown",
    ),
    "unbounded copies": Rule(
        r"\b(strcpy|strcat|sprintf|vsprintf|gets|alloca|strtok)\(", C, (), "use a function that knows the size",
    ),
    "volatile": Rule(r"\bvolatile\b(?!\s*\()", C, ("_native",), "it orders nothing; use C11 atomics"),
    "shells": Rule(r"shell\s*=\s*True|os\.system\(|os\.popen\(", (".py",), (), "give a list of words"),
    "killing by name": Rule(r"\b(pkill|killall)\b", (".py", ".sh", *C), (), "end processes by their id"),
    "promises": Rule(
        r"\b(TODO|FIXME|XXX|NotImplementedError)\b", (".py", ".pyi", ".md", ".sh", ".toml", *C, *CYTHON), (),
        "do it, or leave the sentence out",
    ),
    "unsafe loads": Rule(r"\b(eval|exec)\(", (".py",), ("src", "launcher"), "parse it"),
    "old words": Rule(
        r"\b(slave|blacklist|whitelist)\b", (".py", ".pyi", ".md", *C, *CYTHON), (), "main node, allow-list",
    ),
}  # fmt: skip
ITSELF = Path("tests/tidy/test_words.py")


def findings(rule: Rule) -> list[str]:
    found = []
    for path in source_tree.having(*rule.suffixes, under=rule.under):
        if path != ITSELF:
            for number, line in enumerate(source_tree.text(path).splitlines(), 1):
                if re.search(rule.pattern, line):
                    found.append(f"{path}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("name", RULES)
def test_banned_words(name: str) -> None:
    found = findings(RULES[name])
    assert not found, f"{RULES[name].why}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text", "hit"),
    [
        ("printf in the core", "printf(x)", True),
        ("printf in the core", "snprintf(x)", False),
        ("printf in the core", "fprintf(stderr, x)", True),
        ("sleep in tests", "time.sleep(1)", True),
        ("sleep in tests", "usleep(1)", True),
        ("unbounded copies", "strncpy(a, b, n)", False),
        ("unbounded copies", "strcpy(a, b)", True),
        ("volatile", "volatile int x;", True),
        ("volatile", '__asm__ volatile("pause");', False),
        ("promises", "# TODO: later", True),
        ("shells", "run('x', shell=True)", True),
    ],
)
def test_the_rules_see_what_they_should(name: str, text: str, hit: bool) -> None:
    assert bool(re.search(RULES[name].pattern, text)) is hit


# ---- names of the environment -----------------------------------------------------------------------------

NAMES = {value for name, value in vars(env).items() if name.isupper() and name != "OPTION_PREFIX"}


@pytest.mark.parametrize(
    "path", [p for p in source_tree.having(".py", under=("src", "launcher")) if p.name != "env.py"], ids=str
)
def test_environment_names_have_one_home(path: Path) -> None:
    for node in ast.walk(ast.parse(source_tree.text(path))):
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            value = node.value if isinstance(node.value, str) else node.value.decode(errors="replace")
            literal = value in NAMES or re.fullmatch(r"PMRUN_[A-Z0-9_]*", value)
            assert not literal, f"{path}:{node.lineno}: write env.{value.removeprefix('PMRUN_')}"


def test_names_in_c_are_those_of_python() -> None:
    for path in source_tree.having(*C, *CYTHON, under=("_native",)):
        for name in re.findall(r'"(PMRUN_\w+)', source_tree.text(path)):
            assert name in NAMES, f"{path}: {name} is not in src/pmrun/env.py"
