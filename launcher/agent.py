# SPDX-License-Identifier: Apache-2.0
"""The agent's state machine: what one node does when a message, a death or a moment comes.

Sans-I/O: each `on_…` method takes one event and the time and returns the actions that the driver
(launcher/agent_loop.py) carries out in order. Phases only go forward:

    WAITING -> STARTING -> RUNNING -> KILLING -> DRAINING -> DONE -> GONE

KILLING begins when all ranks ended (their left-over children go), when a Stop's time is up, when a start
failed, or when the controller is gone; it ends when the driver sees no process left. Invariant: NodeDone is
sent once, after every RankExited and all output, and no process outlives KILLING except by the kernel's will.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from pmrun import window, wire
from pmrun.launcher.describe import ended

_SIGTERM: Final = 15
KILL_AGAIN_S: Final = 0.01  # SIGKILL is repeated for what was forked meanwhile
KILL_PATIENCE_S: Final = 5.0  # after that, what is left hangs in the kernel and is reported


class Phase(enum.IntEnum):
    """How far the node is."""

    WAITING = 0
    STARTING = 1
    RUNNING = 2
    KILLING = 3
    DRAINING = 4
    DONE = 5
    GONE = 6


class Send(msgspec.Struct, frozen=True):
    """Send to the controller."""

    message: wire.Message


class Launch(msgspec.Struct, frozen=True):
    """Start the ranks; answer with on_started or on_start_failed."""

    start: wire.Start


class SignalRanks(msgspec.Struct, frozen=True):
    """Signal the process group of every rank that runs."""

    number: int


class AskToStop(msgspec.Struct, frozen=True):
    """Let `pm.should_stop()` say so; send SIGTERM only to the ranks that never asked it."""


class LookAround(msgspec.Struct, frozen=True):
    """Tell the controller where all ranks are."""

    number: int


class KillAll(msgspec.Struct, frozen=True):
    """SIGKILL to every descendant."""


class Tell(msgspec.Struct, frozen=True):
    """Write the abort record, if there is none."""

    state: int
    rank: int
    node: str
    text: str


class Depart(msgspec.Struct, frozen=True):
    """Mark a rank's process as gone in the window."""

    rank: int
    failed: bool


class FeedStdin(msgspec.Struct, frozen=True):
    """Pass input on to the ranks that take it; empty is its end."""

    data: bytes


class AddCredit(msgspec.Struct, frozen=True):
    """So many more bytes of a stream may be sent."""

    rank: int
    stream: int
    count: int


class DrainOutput(msgspec.Struct, frozen=True):
    """Read what is left in the pipes, close them, answer with on_drained once all was sent."""


class Exit(msgspec.Struct, frozen=True):
    """End the agent."""


Action = (
    Send | Launch | SignalRanks | AskToStop | LookAround | KillAll | Tell | Depart | FeedStdin | AddCredit | DrainOutput
    | Exit
)  # fmt: skip


class Agent:
    """State of one node."""

    def __init__(self, hello: wire.Hello) -> None:
        self.phase = Phase.WAITING
        self._hello = hello
        self._node_name = ""
        self._alive: set[int] = set()
        self._stop: wire.Stop | None = None
        self._term_at: float | None = None
        self._kill_at: float | None = None
        self._give_up_at = float("inf")
        self._orphaned = False  # the controller is gone

    def on_connected(self) -> list[Action]:
        """The link stands."""
        return [Send(self._hello)]

    def on_message(self, message: wire.Message, now: float) -> list[Action]:
        """The controller said something. What comes too late to matter is ignored."""
        if isinstance(message, wire.Start):
            if self.phase is not Phase.WAITING:
                return []
            self.phase = Phase.STARTING
            self._node_name = message.node_name
            self._alive = set(range(message.first_rank, message.first_rank + message.local_world_size))
            return [Launch(message)]
        if isinstance(message, wire.Credit):
            return [AddCredit(message.rank, message.stream, message.count)]
        if isinstance(message, wire.Stdin):
            return [FeedStdin(message.data)] if self.phase <= Phase.RUNNING else []
        if isinstance(message, wire.Signal):
            if self.phase is not Phase.RUNNING:
                return []
            return [AskToStop() if message.number == _SIGTERM else SignalRanks(message.number)]
        if isinstance(message, wire.Look):
            runs = self.phase <= Phase.RUNNING
            return [LookAround(message.number) if runs else Send(wire.Looked(message.number, ()))]
        if isinstance(message, wire.Stop):
            return self._on_stop(message, now)
        if isinstance(message, (wire.Leave, wire.Refused)):
            return self._leave(now)
        return []

    def on_started(self, pids: tuple[int, ...], now: float) -> list[Action]:
        """Every rank runs its program (or has ended already)."""
        if self.phase is not Phase.STARTING:
            return []
        self.phase = Phase.RUNNING
        actions: list[Action] = [Send(wire.Started(pids, now))]
        return actions if self._alive else actions + self._kill(now)

    def on_start_failed(self, rank: int, text: str, code: int, now: float) -> list[Action]:
        """A rank could not be started; those before it may run."""
        if self.phase is not Phase.STARTING:
            return []
        return [Send(wire.StartFailed(rank, text, code)), *self._kill(now)]

    def on_rank_exited(self, exited: wire.RankExited, now: float) -> list[Action]:
        """A rank's process was reaped."""
        if exited.rank not in self._alive:
            return []
        self._alive.discard(exited.rank)
        failed = exited.status != 0 and not exited.resumable
        actions: list[Action] = []
        if failed:
            actions.append(self._blame(exited))
        actions.append(Depart(exited.rank, failed))
        if not self._orphaned:
            actions.append(Send(exited))
        if not self._alive and self.phase is Phase.RUNNING:
            actions += self._kill(now)
        return actions

    def on_no_process(self, now: float) -> list[Action]:
        """The driver has no child left, and a subreaper without children has no descendants."""
        if self.phase is not Phase.KILLING:
            return []
        return self._end_kill()

    def on_drained(self, survivors: tuple[int, ...]) -> list[Action]:
        """All output has been sent."""
        if self.phase is not Phase.DRAINING:
            return []
        self.phase = Phase.DONE
        return [Send(wire.NodeDone(survivors))]

    def on_link_lost(self, now: float) -> list[Action]:
        """The controller is gone: nobody is left to work for."""
        return self._leave(now)

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        times = [at for at in (self._term_at, self._kill_at) if at is not None]
        return min(times, default=None)

    def on_tick(self, now: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        if self._term_at is not None and now >= self._term_at:
            self._term_at = None
            if self._stop is not None and self.phase <= Phase.RUNNING:
                actions += [self._tell_stop(self._stop), SignalRanks(_SIGTERM)]
        if self._kill_at is not None and now >= self._kill_at:
            if self.phase is Phase.KILLING and now >= self._give_up_at:
                actions += self._end_kill()
            elif self.phase <= Phase.KILLING:
                actions += self._kill(now)
            else:
                self._kill_at = None
        return actions

    def _on_stop(self, stop: wire.Stop, now: float) -> list[Action]:
        if self.phase is Phase.WAITING:
            self.phase = Phase.DRAINING  # nothing was started, nothing will be
            return [DrainOutput()]
        if self.phase > Phase.RUNNING:
            return []
        self._stop = stop
        term_at = now + stop.settle_s
        kill_at = term_at + stop.term_s
        if self._kill_at is None:
            self._term_at, self._kill_at = term_at, kill_at
        else:
            self._kill_at = min(self._kill_at, kill_at)
            if self._term_at is not None:
                self._term_at = min(self._term_at, term_at)
        actions: list[Action] = [self._tell_stop(stop)] if stop.tell else []
        return actions + self.on_tick(now)

    def _tell_stop(self, stop: wire.Stop) -> Tell:
        return Tell(stop.state, stop.rank, stop.node, stop.text)

    def _blame(self, exited: wire.RankExited) -> Tell:
        """The first bad exit is the cause, unless the gang is being stopped already."""
        if self._stop is not None:
            return self._tell_stop(self._stop)
        text = ended(exited.status, exited.oom)
        return Tell(window.ABORT_RANK_FAILED, exited.rank, self._node_name, text)

    def _kill(self, now: float) -> list[Action]:
        if self.phase is not Phase.KILLING:
            self.phase = Phase.KILLING
            self._give_up_at = now + KILL_PATIENCE_S
        self._term_at = None
        self._kill_at = now + KILL_AGAIN_S
        return [KillAll()]

    def _end_kill(self) -> list[Action]:
        self._kill_at = None
        if self._orphaned:
            self.phase = Phase.GONE
            return [Exit()]
        self.phase = Phase.DRAINING
        return [DrainOutput()]

    def _leave(self, now: float) -> list[Action]:
        self._orphaned = True
        if self.phase is Phase.STARTING or self.phase is Phase.RUNNING:
            return self._kill(now)
        if self.phase is Phase.KILLING:
            return []  # its end leads to Exit
        self.phase = Phase.GONE
        return [Exit()]
