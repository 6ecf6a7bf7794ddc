# SPDX-License-Identifier: Apache-2.0
"""This process's place in the gang: `init`, `shutdown`, and the world in between.

`init` opens the window that the agent handed down, or a world of one under plain python. From then on an uncaught
exception is told to the agent before the process is gone, so that the report can name it as the first cause.
Invariant: at most one world exists, and a child made by fork never touches its parent's.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import os
import sys

from pmrun import env
from pmrun.errors import (
    AlreadyInitializedError,
    CollectiveError,
    ForkedError,
    NativeMissingError,
    NotInitializedError,
    UsageError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, ModuleType, TracebackType

    from pmrun import network
    from pmrun._native import Net
    from pmrun.communicator import Communicator

    Among = tuple[int, list[int], str]  # rank, ranks of each node, this node's address

_OWN_FILES = os.path.dirname(os.path.abspath(__file__)) + os.sep

_world: Communicator | None = None
_init_site = ""  # where the running, or the last, init was called
_init_pid = 0
_in_gang = False  # the world is not this process alone
_window = (-1, 0)  # the node's window as a descriptor, -1: none; and this rank's place in it
_gang_left = False  # a rank of a gang shut down: its place is given up for good
_previous_hook = sys.excepthook


def init(timeout: float | None = None) -> Communicator:
    """Join the gang that `pmrun` started, or another launcher, or make a world of one under plain python.

    Under torchrun, mpirun, srun, Metaflow's ``@parallel``, AWS Batch or a JobSet the ranks become a gang when all of them
    have called this, at most PMRUN_JOIN_TIMEOUT (60) seconds apart; on several nodes they need PMRUN_SECRET_FILE (see
    docs/under-other-launchers.md). PMRUN_FOREIGN=0 makes a world of one there, too.

    Parameters
    ----------
    timeout : float, optional
        Seconds after which a blocking collective raises `CollectiveTimeout`, naming the ranks that have not come.
        Default: PMRUN_COLLECTIVE_TIMEOUT, or for ever. ``world.timeout`` changes it later.

    Returns
    -------
    Communicator
        The world; also ``pm.world``.
    """
    return join(timeout, None)


def join(timeout: float | None, exchange: network.Exchange | None) -> Communicator:
    """`init`, with another way for the ranks of several nodes to tell each other their addresses than the store."""
    global _world, _init_site, _init_pid, _in_gang, _window
    if _world is not None:
        _refuse_child()
        raise AlreadyInitializedError(f"pm.init() was already called, at {_init_site}: use pm.world")
    descriptor, local_rank, lifeline, among = _place()
    if descriptor >= 0 and _gang_left:
        raise NotInitializedError("pm.shutdown() gave up this rank's place in its gang: call pm.init() once only")
    native = _load_native()
    _force(native)
    world_type = importlib.import_module("pmrun.communicator").Communicator
    net = _connect(native, exchange, among) if descriptor >= 0 else None
    try:
        opened: Communicator = native.open_context(
            world_type, descriptor, local_rank, lifeline, net=net, reproducible=os.environ.get(env.REPRODUCIBLE) == "1"
        )
    except BaseException:
        if net is not None:
            net.close()
        raise
    try:
        opened.timeout = timeout if timeout is not None else _default_timeout()
    except (TypeError, ValueError):
        native.close_context()
        raise
    _world, _init_site, _init_pid, _in_gang = opened, _caller(), os.getpid(), descriptor >= 0
    _window = (descriptor, local_rank)
    atexit.register(shutdown)
    _install_hook()
    _take_interrupts()
    return opened


def shutdown() -> None:
    """Leave the gang; done by itself when the program ends. Twice is once.

    Communicators, requests and the other ranks' arrays cannot be used afterwards; arrays of this rank stay valid.
    """
    global _world, _gang_left
    if _world is None or os.getpid() != _init_pid:
        return
    _gang_left = _in_gang
    _world = None
    atexit.unregister(shutdown)
    _load_native().close_context()


def is_initialized() -> bool:
    """Whether this process is between `init` and `shutdown`."""
    return _world is not None and os.getpid() == _init_pid


def world() -> Communicator:
    """The communicator of all ranks; `NotInitializedError` outside of `init` and `shutdown`."""
    if _world is None:
        raise NotInitializedError("pmrun is not initialized in this process: call pm.init() first")
    _refuse_child()
    return _world


def window() -> tuple[int, int]:
    """For pmrun itself: the descriptor of the node's window (-1 where the world is this process), and the place in it."""
    world()
    return _window


def _refuse_child() -> None:
    if os.getpid() != _init_pid:
        raise ForkedError(
            "this process is a child made by fork after pm.init(): start it with the 'spawn' method, or fork before "
            "pm.init()"
        )


# ---- opening ------------------------------------------------------------------------------------------------


def _load_native() -> ModuleType:
    try:
        return importlib.import_module("pmrun._native")
    except ImportError as error:
        if error.name not in (None, "pmrun._native"):
            raise
        raise NativeMissingError(
            f"pmrun's C core does not load ({error}): install pmrun for this Python, 'pip install --force-reinstall "
            "pmrun', or 'pip install -e .' in a clone"
        ) from error


def _connect(native: ModuleType, exchange: network.Exchange | None, among: Among | None) -> Net | None:
    """The network to the other nodes; None where the gang has one."""
    if among is None:
        if "," not in os.environ.get(env.LAYOUT, ""):
            return None  # as nearly always, and what follows takes time to load
        from pmrun import network

        sizes = network.layout()
        if not sizes:
            return None
        among = _number(env.RANK), sizes, network.own_address()
    from pmrun import network

    return network.connect(native, exchange or network.StoreExchange(), *among)


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} is not a number: pmrun sets it, so unset it or start with pmrun")
    return int(text)


def _default_timeout() -> float | None:
    text = os.environ.get(env.COLLECTIVE_TIMEOUT)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{env.COLLECTIVE_TIMEOUT}={text!r} is not a number of seconds") from None


def _force(native: ModuleType) -> None:
    """Apply PMRUN_ALGORITHM and PMRUN_KERNELS; all ranks inherit the same ones."""
    try:
        for choice in filter(None, os.environ.get(env.ALGORITHM, "").split(",")):
            kind, equals, name = (part.strip() for part in choice.partition("="))
            if not (kind and equals and name):
                raise UsageError(f"'{choice}' is no choice: write allreduce=sliced, several with commas")
            native.force_algorithm(kind, name)
    except UsageError as error:
        raise UsageError(f"{env.ALGORITHM}: {error}") from None
    kernels = os.environ.get(env.KERNELS)
    if kernels:
        try:
            native.force_kernels(kernels)
        except UsageError as error:
            raise UsageError(f"{env.KERNELS}: {error}") from None


def _place() -> tuple[int, int, int, Among | None]:
    """The window's descriptor, this rank's place in it, what hangs up when nobody watches over the gang, and its place
    among several nodes, where another launcher started them.

    The descriptors are not inheritable; -1 where the process is no rank, and where the agent takes it along when it dies.
    """
    if env.RANK in os.environ:
        return (*_inherited_place(), -1, None)
    from pmrun import foreign  # a rank of pmrun's own need not load it

    placement = foreign.recognise(os.environ)
    if placement is None:
        return (*_inherited_place(), -1, None)
    if placement.world_size == 1:
        return -1, 0, -1, None
    from pmrun import meeting

    met = meeting.meet(placement)
    among = (placement.rank, list(met.layout), met.peers[met.node_rank]) if len(met.layout) > 1 else None
    return met.window_fd, placement.rank - met.first_rank, met.lifeline_fd, among


def _inherited_place() -> tuple[int, int]:
    if env.WINDOW_FD not in os.environ:
        if os.environ.get(env.WORLD_SIZE, "1") != "1":
            raise UsageError(
                f"{env.WORLD_SIZE} is set, but no window came with it: start the program with pmrun, or unset PMRUN_*"
            )
        return -1, 0
    descriptor = _number(env.WINDOW_FD)
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        raise UsageError(
            f"the window that {env.WINDOW_FD}={descriptor} names is not open here: only the process that pmrun "
            "started is a rank; a program that it starts in turn must not call pm.init() (or unset PMRUN_* for it)"
        ) from None
    fcntl.fcntl(descriptor, fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)
    return descriptor, _number(env.LOCAL_RANK)


def _caller() -> str:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_OWN_FILES):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


# ---- telling why this rank fails ----------------------------------------------------------------------------


def _install_hook() -> None:
    global _previous_hook
    if sys.excepthook is not _hook:
        _previous_hook = sys.excepthook
        sys.excepthook = _hook


def _take_interrupts() -> None:
    """Let `pmrun attach` interrupt this rank; not where the program has another use of the signal, or other threads call."""
    number = _number(env.DEBUG_SIGNAL)
    signals = importlib.import_module("_signal")  # what `signal` adds to it takes time to load
    if number and signals.getsignal(number) == signals.SIG_DFL:
        try:
            signals.signal(number, _on_interrupt)
        except ValueError:  # not the main thread: then `pmrun attach` says that it cannot
            return


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    from pmrun import debugger

    debugger.interrupt(frame)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if is_initialized() and isinstance(error, Exception) and not _is_follower(error):
        text = describe(error, trace)
        if os.environ.get(env.PDB_ON_ERROR) == "1":
            from pmrun import debugger

            debugger.post_mortem(error, trace, text)  # until it is over the others may wait: they are not told yet
        _load_native().fail_context(text)
    _previous_hook(kind, error, trace)


def _is_follower(error: BaseException | None) -> bool:
    """Whether another rank's failure is behind this one: then it is not the first cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, CollectiveError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def describe(error: BaseException, trace: TracebackType | None) -> str:
    """One line: what was raised, and the innermost place in the user's files."""
    import traceback

    text = (str(error).splitlines() or [""])[0]
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = ""
    for frame in traceback.extract_tb(trace):
        if not (frame.filename.startswith(_OWN_FILES) or frame.name.startswith("pmrun._native.")):
            place = f" ({os.path.basename(frame.filename)}:{frame.lineno} in {frame.name})"
    return line + place
