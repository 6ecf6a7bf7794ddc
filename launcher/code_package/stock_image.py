# SPDX-License-Identifier: Apache-2.0
"""The command of a node whose image is a stock one, with Python but without pmrun.

A line for the shell that says when there is no Python, and the text of install_and_run.py without its comments: engines
bound the length of a command (AWS Batch at 8 KiB for all overrides of a job). Invariant: pure; the text holds nothing
that an engine would replace (`$(NAME)` in Kubernetes, `Ref::name` in Batch).
"""

from __future__ import annotations

import ast
import importlib.resources
import re
from typing import Final

from pmrun.errors import UsageError
from pmrun.version import RELEASE

_SHELL: Final = (
    "command -v python3 >/dev/null || { echo 'pmrun: this image has no python3: use one with Python 3.10 or newer' >&2;"
    ' exit 127; }; exec python3 -c "$@"'
)
_RELEASE: Final = r"[0-9][0-9A-Za-z.!+]*"


def parse_source(text: str) -> str:
    """--pip: a release, or a directory or http(s) URL with wheels. Raises ValueError."""
    if re.fullmatch(_RELEASE, text) and text != RELEASE:
        raise ValueError(
            f"nodes need the release that submits, and this is {RELEASE}: give that, or install pmrun=={text} here"
        )
    if text != RELEASE and not text.startswith(("/", "http://", "https://")):
        raise ValueError(f"give this release ({RELEASE}), the path of a wheelhouse on the nodes, or its http(s) URL")
    return text


def words(source: str, code: str | None, agent_words: list[str]) -> list[str]:
    """The node's command.

    Parameters
    ----------
    source
        As `parse_source` gave it.
    code
        The address of the code, which decides what pmrun needs to fetch it.
    agent_words
        What pmrun is to be told once it is there.
    """
    extras = "[s3]" if code is not None and code.lower().startswith("s3:") else ""
    wheelhouse = "" if source == RELEASE else source
    return ["sh", "-c", _SHELL, "pmrun", _text(), RELEASE, f"pmrun{extras}=={RELEASE}", wheelhouse, *agent_words]


def check_release(submitted: str) -> None:
    """On a node: whether this pmrun is the one that submitted the job."""
    if submitted != RELEASE:
        raise UsageError(
            f"here is pmrun {RELEASE}, and pmrun {submitted} submitted the job: use an image with {submitted} in it, or "
            f"submit with --pip {submitted}"
        )


def _text() -> str:
    """The script, without what only its readers need."""
    source = importlib.resources.files(__package__).joinpath("install_and_run.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)
