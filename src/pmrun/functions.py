# SPDX-License-Identifier: Apache-2.0
"""`pm.parallel`: a function that a gang runs when it is called.

    @pm.parallel(ranks_per_node=4, max_restarts=2)
    def train(epochs):
        world = pm.init()
        ...
        return accuracy

    accuracies = train(epochs=3)                 # of all ranks, in their order
    train.run(3, hosts="a:8,b:8")                # the same function elsewhere
    print(train.dry_run(3))                      # what would be started

A call runs `pmrun` as a command, so what holds for it holds here: one failure ends all, nothing is left over, options of
pmrun.toml apply. Function and arguments travel as cargo.py has them: on this machine the ranks map the caller's memory; on
others rank 0 reads them and broadcasts. Results travel as lasting keys of the store, which the command hands over in the
end. Invariant: when a call returns or raises, no process of it is left.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, Generic, ParamSpec, TypeVar, overload

from pmrun import cargo, env
from pmrun.errors import ExitCode, GangStopped, LaunchError, RankFailed, UsageError

P = ParamSpec("P")
R = TypeVar("R")

_LINE_MAX: Final = 2000  # of what pmrun said, where it becomes an exception's text
_LOOPBACKS: Final = 254


class RemoteTraceback(Exception):
    """The traceback of the rank that failed first, as the cause of `RankFailed`."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class ParallelFunction(Generic[P, R]):
    """A function that a gang runs; made by `pm.parallel`.

    Attributes
    ----------
    function : callable
        The plain one, which a call of it runs in this process.
    """

    def __init__(self, function: Callable[P, R], options: dict[str, Any]) -> None:
        self.function = function
        self._options = options
        functools.update_wrapper(self, function)
        self._name = str(getattr(function, "__qualname__", function))

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> list[R]:
        """Run it on all ranks; return what they returned, in rank order.

        Raises
        ------
        RankFailed
            The rank that failed first, with its traceback as the cause.
        UsageError
            An option that pmrun does not have, or an argument or result that cannot be pickled.
        LaunchError
            The gang could not be started whole.
        GangStopped
            It was ended by something else than a rank: a signal, --timeout, a hang.
        """
        return self._run(self._options, arguments, named)

    def run(self, *arguments: Any, options: dict[str, Any] | None = None, **named: Any) -> list[R]:
        """The same with other options: ``train.run(3, options={"ranks_per_node": 8})``.

        `on`, `hosts`, `num_nodes`, `ranks_per_node` and `max_restarts` may be given by name.
        """
        return self._run(self._told(options, named), arguments, named)

    def dry_run(self, *arguments: Any, options: dict[str, Any] | None = None, **named: Any) -> dict[str, Any]:
        """What `run` would start, as `pmrun --dry-run` tells it. Nothing is started."""
        told = self._told(options, named)
        cargo.pack((self.function, arguments, named), f"{self._name} or its arguments")
        command = [*_command(told), "--dry-run", *_program("-")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UsageError(done.stderr.strip().removeprefix("pmrun: "))
        shown: dict[str, Any] = json.loads(done.stdout)
        return shown

    def _told(self, options: dict[str, Any] | None, named: dict[str, Any]) -> dict[str, Any]:
        """The options; those that are given by name are taken out of `named`."""
        told = {**self._options, **(options or {})}
        for name in ("on", "hosts", "num_nodes", "ranks_per_node", "max_restarts"):
            if name in named:
                told[name] = named.pop(name)
        return told

    def _run(self, options: dict[str, Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> list[R]:
        if env.RANK in os.environ:
            text = f"{self._name}() starts a gang, and this is a rank of one: call {self._name}.function() here"
            raise UsageError(text)
        pieces = cargo.pack((self.function, arguments, named), f"{self._name} or its arguments")
        on = options.get("on")
        if on not in (None, "local", "ssh"):
            raise UsageError(f"on={on!r}: a function runs on this machine or by ssh; for {on} submit its script")
        here = on != "ssh" and not {"hosts", "hostfile"} & options.keys()
        with _memory("call") as carried, _memory("results") as results:
            _write(carried, pieces)
            program = _program(str(os.getpid()), str(carried)) if here else _program("-")
            code, last = _serve([*_command(options), *program], carried if not here else None, results)
            left = os.pread(results, os.fstat(results).st_size, 0)
        return _results(self._name, code, last, left)


@overload
def parallel(function: Callable[P, R], /) -> ParallelFunction[P, R]: ...
@overload
def parallel(
    *, num_nodes: int | None = None, ranks_per_node: int = 1, **options: Any
) -> Callable[[Callable[P, R]], ParallelFunction[P, R]]: ...


def parallel(function: Any = None, /, **options: Any) -> Any:
    """Have a gang run a function when it is called.

    Parameters
    ----------
    num_nodes : int, optional
        On this machine, so many nodes are played, each with an address of its own. Default: one, or those of `hosts`.
    ranks_per_node : int
        Default 1.
    **options
        Those of the `pmrun` command, with underscores: ``max_restarts=2``, ``hosts="a:8,b:8"``, ``timeout="2h"``,
        ``env={"NAME": "value"}``.

    Returns
    -------
    ParallelFunction
    """
    if function is not None:
        return ParallelFunction(function, options)
    return lambda plain: ParallelFunction(plain, options)


# ---- the command ------------------------------------------------------------------------------------------


def _command(options: dict[str, Any]) -> list[str]:
    """pmrun with its options."""
    told = dict(options)
    nodes, each = told.pop("num_nodes", None), told.pop("ranks_per_node", 1)
    for name, value in (("num_nodes", nodes or 1), ("ranks_per_node", each)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}={value!r}: it is a whole number from 1 on")
    words = [sys.executable, "-m", "pmrun"]
    if "hosts" not in told and "hostfile" not in told and "on" not in told and nodes is not None and nodes > 1:
        if nodes > _LOOPBACKS:
            raise UsageError(f"num_nodes={nodes}: this machine can play {_LOOPBACKS} nodes; name hosts for more")
        told["hosts"] = ",".join(f"127.0.0.{number}:{each}" for number in range(1, nodes + 1))
    elif "n" not in told:
        words += ["-n", str((nodes or 1) * each)]
    for name, value in told.items():
        option = ("-" if len(name) == 1 else "--") + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option.lstrip('-')}")
        elif isinstance(value, dict):
            words += [word for key, item in value.items() for word in (option, f"{key}={item}")]
        elif value is not None:
            words += [option, str(value)]
    return words


def _program(*words: str) -> list[str]:
    return ["-m", "pmrun.function_call", *words]


def _serve(command: list[str], stdin: int | None, results: int) -> tuple[int, str]:
    """Run pmrun to its end; its output goes where this process's does, also in a notebook. Exit code and last line."""
    environment = {**os.environ, env.RESULTS_FD: f"{results} {os.getpid()}"}
    if stdin is not None:
        os.lseek(stdin, 0, os.SEEK_SET)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        pass_fds=(results,),
        start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
    ) as job:
        tail: list[str] = [""]
        assert job.stdout is not None and job.stderr is not None
        pumps = [
            threading.Thread(target=_pump, args=(job.stdout, sys.stdout, None)),
            threading.Thread(target=_pump, args=(job.stderr, sys.stderr, tail)),
        ]
        for pump in pumps:
            pump.start()
        code = _wait(job)
        for pump in pumps:
            pump.join()
    return code, tail[0]


def _wait(job: subprocess.Popen[bytes]) -> int:
    """To its end. An exception here, such as Ctrl-C, ends the gang first."""
    try:
        return job.wait()
    except BaseException:
        job.send_signal(signal.SIGINT)
        try:
            job.wait()
        except BaseException:
            job.send_signal(signal.SIGINT)  # a second one ends it at once
            job.wait()
            raise
        raise


def _pump(source: IO[bytes], sink: Any, tail: list[str] | None) -> None:
    """Pass output on as it comes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := os.read(source.fileno(), 65536):
        text = decoder.decode(data)
        with contextlib.suppress(ValueError, OSError):  # whoever reads it is gone: the gang goes on
            sink.write(text)
            sink.flush()
        if tail is not None:
            lines = (tail[0] + text).splitlines() or [""]
            tail[0] = (lines[-1] or (lines[-2] if len(lines) > 1 else ""))[-_LINE_MAX:]


# ---- what came back ---------------------------------------------------------------------------------------


def _results(name: str, code: int, last: str, left: bytes) -> list[Any]:
    if not left:
        text = last.removeprefix("pmrun: ") or f"pmrun ended with exit code {code}"
        raise (UsageError if code == ExitCode.USAGE else LaunchError)(f"{name}: {text}")
    import msgspec

    ended = msgspec.msgpack.decode(left)
    values: dict[int, dict[int, bytes]] = {}
    raised: dict[int, str] = {}
    for key, value in ended["left"].items():
        attempt, rank, what, part = key.split("/")
        if int(attempt) == ended["attempt"] and what == "value":
            values.setdefault(int(rank), {})[int(part)] = value
        elif int(attempt) == ended["attempt"]:
            raised[int(rank)] = value.decode("utf-8", "replace")
    if ended["code"] == 0:
        return [
            cargo.unpack(memoryview(bytearray(b"".join(values[rank][part] for part in sorted(values[rank])))))
            for rank in sorted(values)
        ]
    rank = ended["rank"]
    if rank < 0:
        kind = LaunchError if ended["code"] == ExitCode.START_FAILED and not values else GangStopped
        raise kind(f"{name}: {ended['reason']}")
    error = RankFailed(rank, ended["node"], ended["reason"])
    raise error from (RemoteTraceback(raised[rank]) if rank in raised else None)


def _write(fd: int, pieces: list[bytes | memoryview]) -> None:
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view:
            view = view[os.write(fd, view) :]


@contextlib.contextmanager
def _memory(name: str) -> Iterator[int]:
    """A file in memory without a name."""
    fd = os.memfd_create(f"pmrun-{name}", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
