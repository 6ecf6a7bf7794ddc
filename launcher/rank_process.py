# SPDX-License-Identifier: Apache-2.0
"""Starts ranks: fork, a few system calls, exec; and tells which step failed in which rank.

All ranks of a node share one status pipe, closed on exec: a child that fails writes (rank, step, errno) to
it, and its end of file means that every rank runs its program. Between fork and exec a child is a copy of
the single-threaded agent with all signals blocked. Invariant: a rank dies with its agent (PDEATHSIG and the
check for an agent that was gone already), leads a session of its own, and has default signal actions.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import resource
import signal
import struct
from typing import Final

import msgspec

from pmrun.errors import ExitCode

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_PTRACER: Final = 0x59616D61
_STATUS = struct.Struct("<iii")
_libc = ctypes.CDLL(None, use_errno=True)


class Step(enum.IntEnum):
    """What a child was doing when it failed."""

    FORK = 0
    SETUP = 1
    CWD = 2
    BIND = 3
    EXEC = 4


class StartProblem(msgspec.Struct, frozen=True):
    """Why a rank could not be started."""

    rank: int
    step: Step
    number: int  # errno


class Program(msgspec.Struct):
    """What every rank of a node runs."""

    argv: list[bytes]
    cwd: bytes | None
    environment: dict[bytes, bytes]
    window_fd: int
    debug_fd: int
    open_files: tuple[int, int] | None  # RLIMIT_NOFILE to give back, None: as it is


class RankProcess(msgspec.Struct):
    """A started rank: its process and the agent's ends of its pipes (non-blocking; -1: none)."""

    rank: int
    pid: int
    stdin: int
    stdout: int
    stderr: int


def become_subreaper() -> None:
    """Orphaned descendants become children of this process instead of init's."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent(parent: int, number: int) -> None:
    """Have the kernel send a signal to this child when its parent ends; if that happened already, end."""
    if _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:
        os._exit(ExitCode.INTERNAL)  # nobody waits for this status


def find_program(name: bytes, environment: dict[bytes, bytes]) -> list[bytes]:
    """Paths to try for a command, in order: itself when it has a slash, else along the rank's PATH.

    Relative ones are meant from the working directory, which must be the rank's already.
    """
    if b"/" in name:
        return [name]
    path = environment.get(b"PATH", os.fsencode(os.defpath))
    found = [os.path.join(part or b".", name) for part in path.split(b":")]
    return [entry for entry in found if os.access(entry, os.X_OK)] or [name]


def start_rank(
    rank: int,
    program: Program,
    own_environment: dict[bytes, bytes],
    cpus: tuple[int, ...],
    takes_stdin: bool,
    store_fd: int,
    status_fd: int,
) -> RankProcess:
    """Fork one rank, which inherits `store_fd`. All signals must be blocked by the caller; errors of the child go to the status pipe.

    Raises
    ------
    OSError
        No pipe or no process could be made; nothing is left of the attempt.
    """
    fds: list[int] = []
    try:
        in_read, in_write = os.pipe() if takes_stdin else (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1)
        fds += [in_read, in_write]
        out_read, out_write = os.pipe()
        fds += [out_read, out_write]
        err_read, err_write = os.pipe()
        fds += [err_read, err_write]
        agent = os.getpid()
        pid = os.fork()
    except OSError:
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        raise
    if pid == 0:
        os.set_inheritable(store_fd, True)
        _run_child(rank, program, own_environment, cpus, (in_read, out_write, err_write), status_fd, agent)
    for fd in (in_read, out_write, err_write):
        os.close(fd)
    for fd in (in_write, out_read, err_read):
        if fd >= 0:
            os.set_blocking(fd, False)
    return RankProcess(rank, pid, in_write, out_read, err_read)


def _run_child(
    rank: int,
    program: Program,
    own_environment: dict[bytes, bytes],
    cpus: tuple[int, ...],
    stdio: tuple[int, int, int],
    status_fd: int,
    agent: int,
) -> None:
    """Never returns; the agent's stack above is not unwound."""
    step = Step.SETUP
    try:
        _become_rank(program, stdio, agent)
        if program.cwd is not None:
            step = Step.CWD
            os.chdir(program.cwd)
        if cpus:
            step = Step.BIND
            os.sched_setaffinity(0, cpus)
        step = Step.EXEC
        environment = {**program.environment, **own_environment}
        problem = OSError(errno.ENOENT, "")
        for path in find_program(program.argv[0], environment):
            try:
                os.execve(path, program.argv, environment)
            except OSError as error:
                problem = error
        raise problem
    except OSError as error:
        os.write(status_fd, _STATUS.pack(rank, step, error.errno or 0))
    finally:
        os._exit(ExitCode.NOT_FOUND)


def _become_rank(program: Program, stdio: tuple[int, int, int], agent: int) -> None:
    os.setsid()
    die_with_parent(agent, signal.SIGKILL)
    # Under Yama only ancestors may look at a process: what the agent starts to take stacks may too. Fails where there is none.
    _libc.prctl(_PR_SET_PTRACER, agent, 0, 0, 0)
    for number, fd in enumerate(stdio):
        os.dup2(fd, number)  # the copy stays open on exec
    for fd in (program.window_fd, program.debug_fd):
        os.set_inheritable(fd, True)
    if program.open_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, program.open_files)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def read_problem(data: bytes) -> StartProblem | None:
    """The first failure in what was read from the status pipe."""
    if len(data) < _STATUS.size:
        return None
    rank, step, number = _STATUS.unpack_from(data)
    return StartProblem(rank, Step(step), number)


def explain(problem: StartProblem, program: bytes, cwd: bytes | None, world_size: int) -> tuple[str, int]:
    """One line for the user and the exit code."""
    name = os.fsdecode(program)
    why = os.strerror(problem.number)
    head = f"cannot start rank {problem.rank}:"
    if problem.step is Step.CWD:
        folder = os.fsdecode(cwd or b"")
        return f"{head} cannot enter directory {folder!r}: {why}; check --cwd", ExitCode.START_FAILED
    if problem.step is Step.BIND:
        return f"{head} cannot bind it to its CPUs: {why}; use --bind-to none", ExitCode.START_FAILED
    if problem.step is Step.EXEC:
        if problem.number == errno.ENOENT:
            remedy = "check its name, PATH, and the interpreter in its first line"
            return f"{head} program {name!r} not found; {remedy}", ExitCode.NOT_FOUND
        if problem.number == errno.ENOEXEC:
            remedy = "give it a '#!' line or name its interpreter"
            return f"{head} {name!r} is neither a binary nor a script with '#!'; {remedy}", ExitCode.NOT_EXECUTABLE
        if problem.number in (errno.EACCES, errno.EISDIR, errno.EPERM):
            return f"{head} {name!r} may not be executed: {why}; try chmod +x", ExitCode.NOT_EXECUTABLE
        return f"{head} {name!r}: {why}", ExitCode.START_FAILED
    remedy = {
        errno.EAGAIN: f"the limit on processes (ulimit -u, pids cgroup) does not allow {world_size} ranks",
        errno.EMFILE: f"the limit on open files (ulimit -n) does not allow {world_size} ranks",
        errno.ENFILE: "the machine has no open files left",
        errno.ENOMEM: f"there is no memory for {world_size} ranks",
    }.get(problem.number, "the system refused a new process")
    return f"{head} {why}: {remedy}; start fewer ranks", ExitCode.START_FAILED
