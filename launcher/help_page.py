# SPDX-License-Identifier: Apache-2.0
"""The page that `pmrun --help` prints, made from the table of options.

Invariant: no line is longer than a terminal of 100 columns.
"""

from __future__ import annotations

from typing import Any

from pmrun.launcher import commands
from pmrun.launcher.option import Option
from pmrun.launcher.options import OPTIONS

_WIDTH = 100
_COLUMN = 30  # where the texts begin

_USAGE = """\
pmrun: run a Python program on many processes, as one gang

{usage}
  pmrun [options] script.py args...      a script, under the Python that runs pmrun
  pmrun [options] -m package.module ...  a module, as python -m
  pmrun [options] -- program args...     any program

All ranks start, or none does; when one fails, all are stopped and the first cause is named.
What comes after the script, the module or '--' is passed on untouched.
"""

_EXAMPLES = """\
{examples}
  pmrun -n 8 train.py --lr 0.1            eight ranks, here
  pmrun -n auto --bind-to core train.py   one rank per CPU, each kept on its own
  pmrun -n 4 --output-dir logs -- ./sim   a file per rank, beside the output
  pmrun -n 4 --dry-run train.py           what would be started
  pmrun --hosts a:8,b:8 train.py          eight ranks on each of two machines, by ssh

{commands}

{settings}
  Each option also has a variable (--grace: PMRUN_GRACE) and a key in the nearest pmrun.toml, or in
  [tool.pmrun] of the nearest pyproject.toml (grace = "10s"). The command line goes over the
  variable, the variable over the file.

{codes}
  0     all ranks ended well
  n     the first rank to fail ended with n; 128 + s if signal s killed it (137: SIGKILL)
  2     the command line or configuration is wrong; nothing was started
  69    the engine (Slurm, AWS Batch, Kubernetes) refused the job or could not be asked
  70    a defect of pmrun
  74    the standard output cannot be written (141: nobody reads it any more)
  75    the gang could not be started whole in time; or it saved its work, to be resumed
  76    pmrun's agent on a node died, or the node was lost; the ranks were stopped
  79    ranks waited in a call for longer than --hang-timeout
  124   --timeout ran out
  126   the program may not be executed (127: it was not found)
  130   interrupted by Ctrl-C (129: SIGHUP, 143: SIGTERM)
"""


def help_page(*, colour: bool) -> str:
    """The whole page; headings are bold where the reader is a terminal."""

    def head(text: str) -> str:
        return f"\033[1m{text}\033[0m" if colour else text

    lines = [_USAGE.format(usage=head("Usage"))]
    group = ""
    for option in OPTIONS:
        if option.group != group:
            group = option.group
            lines.append(("\n" if len(lines) > 1 else "") + head(group))
        lines += entry(option)
    listed = "\n".join([head("Commands"), *(f"  {how:<38}{what}" for how, what in commands.summaries())])
    lines.append(
        "\n"
        + _EXAMPLES.format(
            examples=head("Examples"), commands=listed, settings=head("Settings"), codes=head("Exit codes")
        )
    )
    return "\n".join(lines)


def entry(option: Option[Any]) -> list[str]:
    """Its spelling and its text, as lines."""
    if option.name == option.short:
        spelling = f"-{option.short}"
    else:
        no = "[no-]" if option.negatable else ""
        spelling = (f"-{option.short}, " if option.short else "    ") + f"--{no}{option.name}"
    left = f"  {spelling} {option.metavar}".rstrip()
    lines = []
    if len(left) >= _COLUMN - 1:
        lines.append(left)
        left = ""
    for text in _wrap(option.text, _WIDTH - _COLUMN):
        lines.append(f"{left:<{_COLUMN}}{text}")
        left = ""
    return lines


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
