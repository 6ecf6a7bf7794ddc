# SPDX-License-Identifier: Apache-2.0
"""The options of a job that is submitted to an engine; launcher/options.py puts them beside the others.

What several engines have in common is an option of its own; what one engine alone knows is `--with KEY=VALUE`, which
its backend looks up in its own table (launcher/submission/read.py). A key may be meant for one engine: in the file as
[tool.pmrun.slurm], elsewhere as `slurm:KEY=VALUE`; others pass over it. Invariant: nothing here knows an engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pmrun.launcher.option import RANKS_MAX, WHOLE, Option, one_of, parse_flag, parse_text, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

With = tuple[tuple[str, str, str], ...]  # engine, "" for whichever the job is for; key; value

_UNITS_MIB = {"M": 1, "G": 1 << 10, "T": 1 << 20}
_MIB_MAX = 1 << 30
_NUMBER = (int, float, str)
INTERRUPTS = ("ask", "cancel", "detach")
ENGINE = "Jobs on an engine (Slurm, AWS Batch, Kubernetes)"


def parse_mib(text: str) -> int:
    """MiB from "512M", "16G", "16GiB", "1T"."""
    word = text.upper().removesuffix("IB").removesuffix("B")
    number, unit = word[:-1], word[-1:]
    if not number.isascii() or not number.isdigit() or unit not in _UNITS_MIB or int(number) < 1:
        raise ValueError("an amount of memory is a whole number with a unit: 512M, 16G, 1T")
    mib = int(number) * _UNITS_MIB[unit]
    if mib > _MIB_MAX:
        raise ValueError("no node has so much memory; give what one node needs: 512M, 16G, 1T")
    return mib


def parse_cpus(text: str) -> float:
    """CPUs, perhaps a part of one."""
    try:
        cpus = float(text)
    except ValueError:
        cpus = 0.0
    if not 0.0 < cpus <= RANKS_MAX:
        raise ValueError("the number of CPUs of each node is above 0: 8, or 0.5")
    return cpus


def parse_code(text: str) -> str | None:
    """A directory, or none."""
    return None if text == "none" else parse_text(text)


def parse_pip(text: str) -> str:
    """This release, or where wheels are: checked where it is used, as few jobs have it."""
    from pmrun.launcher.code_package.stock_image import parse_source

    return parse_source(text)


def parse_with(text: str) -> With:
    """KEY=VALUE, or ENGINE:KEY=VALUE."""
    name, equals, value = text.partition("=")
    engine, colon, key = name.rpartition(":")
    if not equals or not key or (colon and not engine):
        raise ValueError("write KEY=VALUE, with a key that the engine has")
    if "\0" in value:
        raise ValueError(f"the value of {key} holds a NUL character: leave it out")
    return ((engine, key, value),)


def _text(name: str, metavar: str, text: str) -> Option[str | None]:
    return Option(name, parse_text, None, metavar=metavar, group=ENGINE, text=text)


def _amount(name: str, parse: Callable[[str], Any], metavar: str, kinds: tuple[type, ...], text: str) -> Option[Any]:
    return Option(name, parse, None, metavar=metavar, group=ENGINE, kinds=kinds, text=text)


JOB_NAME = _text("job-name", "NAME", "the job's name there; default: made from the program's")
IMAGE = _text(
    "image", "IMAGE", "the container image that each node runs; it has Python, and what --code and --pip do not bring"
)
QUEUE = _text("queue", "QUEUE", "where the job waits: a Batch job queue, a Slurm partition")
NAMESPACE = _text("namespace", "NAME", "the Kubernetes namespace; default: the one that is in use")
CPU: Option[float | None] = _amount("cpu", parse_cpus, "N", _NUMBER, "CPUs of each node")
GPU: Option[int | None] = _amount(
    "gpu", whole_number(0, RANKS_MAX, "the number of GPUs"), "N", WHOLE, "GPUs of each node"
)
MEMORY: Option[int | None] = _amount("memory", parse_mib, "16G", (str,), "memory of each node")
SHARED_MEMORY: Option[int | None] = _amount("shared-memory", parse_mib, "8G", (str,), "size of each node's /dev/shm")
GANG = _text(
    "gang", "HOW", "what lets all nodes start together, or none: kueue:QUEUE, volcano:QUEUE, native, none, ..."
)
CODE: Option[str | None] = Option(
    "code", parse_code, None, metavar="DIR|none", group=ENGINE, complete="dir",
    text="send the code in DIR to the nodes, without what git ignores (docs/code-package.md); default: none",
)  # fmt: skip
CODE_LIMIT = Option(
    "code-limit", parse_mib, 64, metavar="64M", group=ENGINE, text="how large the code may be; default: 64M",
)  # fmt: skip
CODE_STORE = _text("code-store", "URL", "where the code waits for the nodes: s3://bucket/prefix, or a shared directory")
PIP: Option[str | None] = Option(
    "pip", parse_pip, None, metavar="WHEELS|VERSION", group=ENGINE,
    text="install pmrun on the nodes: this version, or from a directory or URL of wheels; default: the image has it",
)  # fmt: skip
RETRIES = Option(
    "retries", whole_number(0, RANKS_MAX, "the number of retries"), 0, metavar="N", group=ENGINE, kinds=WHOLE,
    text="the engine starts the whole job anew, at most so often, after it failed or lost a node; default: 0",
)  # fmt: skip
WITH: Option[With] = Option(
    "with", parse_with, (), metavar="KEY=VALUE", group=ENGINE, repeatable=True, kinds=(str, list, dict),
    text="what only this engine knows (docs/engines.md has its keys); may be repeated",
)  # fmt: skip
DETACH = Option(
    "detach", parse_flag, False, flag=True, group=ENGINE,
    text="print the job's name and end; 'pmrun logs NAME' and the like go on from there, on any machine",
)  # fmt: skip
ON_INTERRUPT = Option(
    "on-interrupt", one_of(INTERRUPTS, "answer"), "ask", metavar="ask|cancel|detach", group=ENGINE,
    complete=" ".join(INTERRUPTS), text="what Ctrl-C does to the job; default: ask, and leave it where nobody can answer",
)  # fmt: skip

SUBMISSION: tuple[Option[Any], ...] = (
    JOB_NAME, IMAGE, QUEUE, NAMESPACE, CPU, GPU, MEMORY, SHARED_MEMORY, GANG, RETRIES,
    CODE, CODE_LIMIT, CODE_STORE, PIP, WITH, DETACH, ON_INTERRUPT,
)  # fmt: skip
