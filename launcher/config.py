# SPDX-License-Identifier: Apache-2.0
"""Options from the environment and from a configuration file.

PMRUN_GRACE=10 is --grace 10. The file is the nearest one, from the current directory upwards: `pmrun.toml`, or a
`pyproject.toml` that has `[tool.pmrun]`; its keys are the options' names, and a table with a backend's name holds what
--with says to that one. The command line goes over the environment and the environment over the file. Invariant: a
key or a PMRUN_* variable that pmrun does not know is an error, so a misspelled option is never passed over in silence.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from pmrun import env
from pmrun.errors import UsageError
from pmrun.launcher.command_line import Setting
from pmrun.launcher.option import SET_BY_AGENT, check_name, suggestion
from pmrun.launcher.options import OPTIONS
from pmrun.launcher.submission.choices import WITH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pmrun.launcher.option import Option

FILE_NAMES = ("pmrun.toml", "pyproject.toml")

_KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "an array", dict: "a table",
}  # fmt: skip
_IN_A_TABLE = (str, int, float)  # how a program wants its true and false, nobody knows
_IN_AN_ENGINES_TABLE = (str, int, float, bool, list)
_SETTABLE = {option.name: option for option in OPTIONS if option.settable}
_VARIABLES = {option.variable for option in _SETTABLE.values()}
# Not options: what a rank has, which a pmrun inside it inherits, what a rank reads, and the build's switches.
_OTHER_VARIABLES = {value for name, value in vars(env).items() if name.isupper() and name != "OPTION_PREFIX"}
_MEANT = sorted(
    name.removeprefix(env.OPTION_PREFIX)
    for name in (_VARIABLES | _OTHER_VARIABLES).difference(SET_BY_AGENT)
    if name.startswith(env.OPTION_PREFIX)
)


def from_environment(environ: Mapping[str, str]) -> list[Setting]:
    """An empty variable counts as unset, as it is the only way to unset one in some places."""
    for name, text in environ.items():
        if text and name.startswith(env.OPTION_PREFIX) and name not in _VARIABLES | _OTHER_VARIABLES:
            close = suggestion(name[len(env.OPTION_PREFIX) :], _MEANT, env.OPTION_PREFIX)
            raise UsageError(f"unknown variable {name} in the environment{close}; unset it, or see pmrun --help")
    found = []
    for option in _SETTABLE.values():
        text = environ.get(option.variable, "")
        if not text:
            continue
        origin = f"{option.variable}={text!r} in the environment"
        if option.repeatable:
            found += [Setting(option, part, origin) for part in _shell_words(text, origin)]
        else:
            found.append(Setting(option, text, origin))
    return found


def from_file(directory: str) -> list[Setting]:
    """Settings of the nearest configuration file, or none."""
    path, table = _nearest(directory)
    found = []
    for key, value in table.items():
        option = _SETTABLE.get(key)
        if option is None and isinstance(value, dict) and _is_backend(key):
            found += _for_engine(path, key, value)
            continue
        if option is None:
            raise UsageError(f"{path}: unknown key '{key}'{suggestion(key, list(_SETTABLE))}; see pmrun --help")
        origin = f"{path}: key '{key}'"
        found += [Setting(option, text, origin) for text in _texts(value, option, origin)]
    return found


def _is_backend(name: str) -> bool:
    from pmrun.launcher import backends

    return name in backends.names()


def _for_engine(path: str, engine: str, table: dict[str, object]) -> list[Setting]:
    """[tool.pmrun.slurm] and the like: what --with says on the command line, for that engine."""
    found = []
    for key, value in table.items():
        origin = f"{path}: key '{engine}.{key}'"
        texts = [_text(item, _IN_AN_ENGINES_TABLE, origin) for item in (value if isinstance(value, list) else [value])]
        found += [Setting(WITH, f"{engine}:{key}={text}", origin) for text in texts]
    return found


def _nearest(directory: str) -> tuple[str, dict[str, object]]:
    while True:
        for name in FILE_NAMES:
            path = os.path.join(directory, name)
            table = _table(path)
            if table is not None:
                return path, table
        parent = os.path.dirname(directory)
        if parent == directory:
            return "", {}
        directory = parent


def _table(path: str) -> dict[str, object] | None:
    """pmrun's table of one file; None where the file is missing or says nothing of pmrun."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; make it readable or move it away") from None
    own = os.path.basename(path) == "pmrun.toml"
    if not own and b"pmrun" not in data:
        return None  # most projects: not worth the import of a parser
    document = _parse(path, data)
    if own:
        return document
    tool = document.get("tool", {})
    table = tool.get("pmrun") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{path}: 'tool.pmrun' is not a table; write [tool.pmrun] and the options below it")
    return table


def _parse(path: str, data: bytes) -> dict[str, object]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not valid TOML: {reason}; correct the file") from None


def _texts(value: object, option: Option[Any], origin: str) -> list[str]:
    """A TOML value as the text, or texts, that the command line would have."""
    items = value if isinstance(value, list) and list in option.kinds else [value]
    if isinstance(value, dict) and dict in option.kinds:
        return [f"{_checked(name, origin)}={_text(item, _IN_A_TABLE, origin)}" for name, item in value.items()]
    texts = [_text(item, option.kinds, origin) for item in items]
    return texts if option.repeatable else [",".join(texts)]


def _text(value: object, kinds: tuple[type, ...], origin: str) -> str:
    """One value; its very type must be allowed, as a bool is an int to Python and not to the user."""
    if type(value) not in kinds or isinstance(value, (list, dict)):
        found = _KINDS.get(type(value), "a date or time")
        raise UsageError(f"{origin}: {found} does not fit; it takes {_either([_KINDS[kind] for kind in kinds])}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _checked(name: str, origin: str) -> str:
    """A table's key as a variable's name: joined with its value, a '=' in it would pass for the one between them."""
    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}") from None
    return name


def _shell_words(text: str, origin: str) -> list[str]:
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}; separate values by spaces and quote as in a shell") from None
