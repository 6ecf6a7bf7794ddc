# SPDX-License-Identifier: Apache-2.0
"""The gang's state machine: all ranks start or none, the first cause ends all, one exit code comes out.

Sans-I/O, as the agent's: events and the time in, actions out; the driver is launcher/controller.py. A gang begins
when all agents have met (launcher/rendezvous.py). Every end is a `Cause` (the first one stays) and a Stop to all
agents; the gang is over when each agent said NodeDone or was lost; only then the driver lets them leave. Output and
input do not pass through here. Invariant: exactly one Finish, and after it nothing.

Who is to blame: of the ranks that ended badly without having been signalled, the one that did so first, by the stamps of
their agents (launcher/clocks.py); unless the window's abort record, written by whoever noticed first, names another one.
That is the rank that left early while others waited for it, or one that is still unwinding while its peers have already
failed because of it. The first one that is heard of ends the gang at once, and the other ranks are told of that one; the
outcome's cause is found when all have ended, or JUDGE_S later.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from pmrun import window, wire
from pmrun.errors import ExitCode
from pmrun.launcher import stragglers
from pmrun.launcher.clocks import Clocks
from pmrun.launcher.describe import ended, exit_code, signal_name
from pmrun.launcher.lease import LEASE_S

SETTLE_S: Final = 0.1  # for the other ranks to fail by themselves, with RankFailed
TERM_S: Final = 0.1  # from SIGTERM to SIGKILL when a rank failed or the grace is over
JUDGE_S: Final = LEASE_S + 1.0  # what happened before the first failure was heard of by then, or its node is lost

_SIGINT: Final = 2
_SIGTERM: Final = 15
_SIGCONT: Final = 18
_SIGSTOP: Final = 19


class Kind(enum.Enum):
    """What ended the gang."""

    RANK = "rank"  # a rank failed, or left early
    MISMATCH = "mismatch"  # calls of the ranks differ, or a collective's time ran out
    START = "start"
    SIGNAL = "signal"
    RESUMABLE = "resumable"  # the ranks agreed to stop, without a signal to pmrun
    TIMEOUT = "timeout"
    AGENT = "agent"
    OUTPUT = "output"  # nobody reads pmrun's output any more
    HANG = "hang"


class Cause(msgspec.Struct, frozen=True):
    """Why the gang ended before its ranks did."""

    kind: Kind
    text: str  # one line
    code: int
    rank: int = -1  # the culprit
    witness: int = -1  # the rank whose bad end told of it


class Outcome(msgspec.Struct, frozen=True):
    """All that the report needs."""

    code: int
    cause: Cause | None
    exits: dict[int, wire.RankExited]
    node_names: tuple[str, ...]
    first_ranks: tuple[int, ...]
    survivors: tuple[tuple[str, int], ...]  # node, process id
    told: str = ""  # what the user has read of it already

    def node_of(self, rank: int) -> str:
        """Name of a rank's node."""
        place = max(i for i, first in enumerate(self.first_ranks) if first <= rank)
        return self.node_names[place]


class SendTo(msgspec.Struct, frozen=True):
    """Send to a node's agent."""

    node: int
    message: wire.Message


class Sweep(msgspec.Struct, frozen=True):
    """The node's agent is gone: end what it may have left, as far as the backend can."""

    node: int


class Say(msgspec.Struct, frozen=True):
    """A line for the user, now."""

    text: str


class Note(msgspec.Struct, frozen=True):
    """An entry for --json-events."""

    event: str
    fields: dict[str, object]


class Finish(msgspec.Struct, frozen=True):
    """The gang is over."""

    outcome: Outcome


Action = SendTo | Sweep | Say | Note | Finish


class Limits(msgspec.Struct, frozen=True):
    """Of one attempt, in time."""

    grace_s: float
    timeout_s: float | None  # of the whole job
    start_timeout_s: float
    start_by: float  # the moment when it runs out, which began before the gang did


class Gang:
    """State of one attempt."""

    def __init__(self, starts: list[wire.Start], limits: Limits, since: float) -> None:
        """`since` is when the time of --timeout began: with the first attempt."""
        self._starts = starts
        self._limits = limits
        self._start_by: float | None = limits.start_by
        self._end_by = None if limits.timeout_s is None else since + limits.timeout_s
        self._started: set[int] = set()
        self._noted: set[int] = set()  # ranks of which a note says that they started
        self._over: set[int] = set()
        self._exits: dict[int, wire.RankExited] = {}
        self._clocks = Clocks(len(starts))
        self._failures: dict[int, tuple[int, wire.RankExited]] = {}  # by rank, with its node: without a signal
        self._judge_by = float("inf")
        self._survivors: list[tuple[str, int]] = []
        self._finished = False
        self._signals = 0
        self._asked = False  # by a node that is to end, before pmrun itself was
        self._told = ""
        self.cause: Cause | None = None

    # ---- events ---------------------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        """All agents have met."""
        first = self._starts[0]
        fields = {"job_id": first.job_id, "world_size": first.world_size, "attempt": first.attempt}
        note = Note("gang_starting", fields)
        return [note, *(SendTo(to, start) for to, start in enumerate(self._starts))]

    def on_message(self, node: int, message: wire.Message, now: float) -> list[Action]:
        """An agent said something."""
        if isinstance(message, wire.Beat | wire.Started | wire.RankExited):
            if now >= self._judge_by:
                self._judge()
            self._clocks.heard(node, message.at_s, now)
        if node in self._over:
            return []
        if isinstance(message, wire.Started):
            return self._on_started(node, message)
        if isinstance(message, wire.StartFailed):
            where = f" (on {self._starts[node].node_name})" if len(self._starts) > 1 else ""
            cause = Cause(Kind.START, message.text + where, message.code, rank=message.rank)
            return self._end(cause, 0.0, 0.0)
        if isinstance(message, wire.RankExited):
            return self._on_exited(node, message, now)
        if isinstance(message, wire.AskedToEnd):
            return self._on_asked(node)
        if isinstance(message, wire.NodeDone):
            name = self._starts[node].node_name
            self._survivors += [(name, pid) for pid in message.survivors]
            return self._node_over(node, [])
        return []

    def on_link_lost(self, node: int, why: str) -> list[Action]:
        """An agent is gone, and with it its ranks, which the others are told of."""
        if node in self._over:
            return []
        start = self._starts[node]
        alone = len(self._starts) == 1
        rest = "every process that it had started was stopped" if alone else "its ranks end with it"
        text = f"the agent on {start.node_name} is lost ({why}); {rest}"
        cause = Cause(Kind.AGENT, text, ExitCode.AGENT_LOST, rank=start.first_rank)
        actions = self._end(cause, SETTLE_S, TERM_S, but=node)
        return self._node_over(node, [*actions, Sweep(node)])

    def on_signal(self, number: int) -> list[Action]:
        """pmrun got SIGINT, SIGTERM or SIGHUP.

        The first: the ranks get it too and have `grace_s`. The second kills them. The third gives up on
        agents that do not answer.
        """
        if self._finished:
            return []
        if self._asked and number == _SIGTERM:  # an engine asks all nodes at once, this one too
            self._asked = False
            return []
        self._signals += 1
        if self._signals > 2:
            return [action for node in self._open() for action in self.on_link_lost(node, "no answer")]
        if self.cause is not None or self._start_by is not None:
            return self._end(self._signal_cause(number), 0.0, 0.0)
        passed: list[Action] = [SendTo(node, wire.Signal(number)) for node in self._open()]
        actions = self._end(self._signal_cause(number), self._limits.grace_s, TERM_S, tell=False)
        again = "Ctrl-C again" if number == _SIGINT else "the signal again"
        line = f"{signal_name(number)}: the ranks have {self._limits.grace_s:g} s to end ({again}: at once)"
        return [Say(line), *passed, *actions]

    def _on_asked(self, node: int) -> list[Action]:
        """A node is to end, of which the others may know nothing yet: it takes them with it, as their ranks need its."""
        if self._finished or self.cause is not None:
            return []
        name = self._starts[node].node_name
        actions = self.on_signal(_SIGTERM)
        self._asked = True
        return [Say(f"{name} was asked to end"), *actions]

    def on_suspend(self, stop: bool) -> list[Action]:
        """pmrun is being stopped by Ctrl-Z, or goes on: so do the ranks, which the terminal does not reach."""
        number = _SIGSTOP if stop else _SIGCONT
        return [SendTo(node, wire.Signal(number)) for node in self._open()]

    def on_output_closed(self, why: str, code: int) -> list[Action]:
        """pmrun's standard output cannot be written any more."""
        if self._finished:
            return []
        return self._end(Cause(Kind.OUTPUT, f"cannot write the standard output: {why}", code), 0.0, TERM_S)

    def on_hang(self, rank: int, text: str, told: str) -> list[Action]:
        """Ranks wait for what does not come; `rank` is to blame, -1: none or several. `told` is the report, which was shown."""
        if self.cause is not None or self._finished:
            return []
        self._told = told
        passed: list[Action] = [SendTo(node, wire.Signal(_SIGTERM)) for node in self._open()]
        cause = Cause(Kind.HANG, text, ExitCode.HANG, rank=rank)
        return [*passed, *self._end(cause, self._limits.grace_s, TERM_S, tell=False)]

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        if self.cause is not None or self._finished:
            return None
        return min((at for at in (self._start_by, self._end_by) if at is not None), default=None)

    def on_tick(self, now: float) -> list[Action]:
        """Time has passed."""
        if self.cause is not None or self._finished:
            return []
        if self._end_by is not None and now >= self._end_by:
            text = f"--timeout of {self._limits.timeout_s:g} s ran out"
            passed: list[Action] = [SendTo(node, wire.Signal(_SIGTERM)) for node in self._open()]
            cause = Cause(Kind.TIMEOUT, text, ExitCode.TIMEOUT)
            return [*passed, *self._end(cause, self._limits.grace_s, TERM_S, tell=False)]
        if self._start_by is not None and now >= self._start_by:
            late = [start.node_name for node, start in enumerate(self._starts) if node not in self._started]
            text = f"not all ranks were started within --start-timeout {self._limits.start_timeout_s:g} s: waited for "
            text += ", ".join(late) + "; give more time or look at the load there"
            return self._end(Cause(Kind.START, text, ExitCode.START_FAILED), 0.0, 0.0)
        return []

    # ---- details --------------------------------------------------------------------------------------

    def _on_started(self, node: int, message: wire.Started) -> list[Action]:
        self._started.add(node)
        start = self._starts[node]
        actions: list[Action] = []
        for rank, pid in enumerate(message.pids, start.first_rank):
            actions += self._note_start(rank, pid)
        if len(self._started) == len(self._starts):
            self._start_by = None
            actions.append(Note("gang_started", {"world_size": start.world_size}))
        return actions

    def _note_start(self, rank: int, pid: int) -> list[Action]:
        """Once for each rank: one that is short-lived ends before its node can say that all have started."""
        if rank in self._noted:
            return []
        self._noted.add(rank)
        return [Note("rank_started", {"rank": rank, "node": self._name_of(rank), "pid": pid})]

    def _on_exited(self, node: int, exited: wire.RankExited, now: float) -> list[Action]:
        self._exits[exited.rank] = exited
        fields = {"rank": exited.rank, "pid": exited.pid, "status": exited.status, "oom": exited.oom}
        actions = self._note_start(exited.rank, exited.pid)
        actions.append(Note("rank_exited", {**fields, "stopped": exited.sent_signal != 0}))
        if exited.resumable:
            if self.cause is None:
                text = "the ranks agreed to stop (pm.should_stop)"
                cause = Cause(Kind.RESUMABLE, text, ExitCode.RESUMABLE, rank=exited.rank)
                actions += self._end(cause, self._limits.grace_s, TERM_S, tell=False)
        elif exited.status != 0:
            if not exited.sent_signal:
                self._failures.setdefault(exited.rank, (node, exited))
            if self.cause is None or self._agreed_and_failed(exited):
                self.cause = None
                self._judge_by = now + JUDGE_S
                actions += self._end(self._failure(exited), SETTLE_S, TERM_S)
        return actions

    def _agreed_and_failed(self, exited: wire.RankExited) -> bool:
        """Whether a rank failed by itself while the others ended as they had agreed: then that is the cause."""
        return self.cause is not None and self.cause.kind is Kind.RESUMABLE and not exited.sent_signal

    def _failure(self, exited: wire.RankExited) -> Cause:
        """A bad exit, and whom it has to thank for it."""
        witness, code = exited.rank, exit_code(exited.status)
        if exited.abort_state in (window.ABORT_MISMATCH, window.ABORT_STALLED):
            return Cause(Kind.MISMATCH, exited.abort_text, code, rank=exited.abort_rank, witness=witness)
        blamed = exited.abort_rank
        known = exited.abort_state == window.ABORT_RANK_FAILED and 0 <= blamed < self._starts[0].world_size
        if known and blamed != witness:
            return Cause(Kind.RANK, exited.abort_text, code, rank=blamed, witness=witness)
        return Cause(Kind.RANK, ended(exited.status, exited.oom), code, rank=witness, witness=witness)

    def _signal_cause(self, number: int) -> Cause:
        return Cause(Kind.SIGNAL, f"stopped by {signal_name(number)}", exit_code(-number))

    @property
    def over(self) -> frozenset[int]:
        """Nodes that nothing more comes from."""
        return frozenset(self._over)

    def _open(self) -> list[int]:
        return [node for node in range(len(self._starts)) if node not in self._over]

    def _end(self, cause: Cause, settle_s: float, term_s: float, tell: bool = True, but: int = -1) -> list[Action]:
        """Stop all nodes; only the first cause counts, but a later one may hurry."""
        actions: list[Action] = []
        if self.cause is None:
            self.cause = cause
            actions.append(Note("first_cause", {"kind": cause.kind.value, "rank": cause.rank, "text": cause.text}))
        failed = cause.kind in (Kind.RANK, Kind.AGENT)
        state = window.ABORT_RANK_FAILED if failed else window.ABORT_STOPPED
        node = self._name_of(cause.rank) if failed else ""
        stop = wire.Stop(settle_s, term_s, state, cause.rank if failed else -1, node, cause.text, tell)
        return actions + [SendTo(to, stop) for to in self._open() if to != but]

    def _name_of(self, rank: int) -> str:
        for start in self._starts:
            if start.first_rank <= rank < start.first_rank + start.local_world_size:
                return start.node_name
        return ""

    def _node_over(self, node: int, actions: list[Action]) -> list[Action]:
        self._over.add(node)
        if len(self._over) < len(self._starts) or self._finished:
            return actions
        self._finished = True
        if self.cause is None:
            self.cause = self._untold()
        outcome = self._outcome()
        notes: list[Action] = []
        straggler = stragglers.find({rank: exited.pace for rank, exited in self._exits.items()})
        if straggler is not None:
            fields: dict[str, object] = {
                "rank": straggler.rank,
                "waiting": straggler.share,
                "others_waiting": straggler.others_share,
            }
            notes.append(Note("straggler", fields))
        return [*actions, *notes, Note("gang_ended", {"exit_code": outcome.code}), Finish(outcome)]

    def _untold(self) -> Cause | None:
        """Success is what every rank reported; agents that are done and left one out are not believed."""
        for start in self._starts:
            for rank in range(start.first_rank, start.first_rank + start.local_world_size):
                if rank not in self._exits:
                    text = f"the agent on {start.node_name} ended without telling how rank {rank} did"
                    return Cause(Kind.AGENT, text, ExitCode.AGENT_LOST, rank=rank)
        return None

    def _judge(self) -> None:
        """Where the cause is a rank's bad end: the first of these, which need not be the one that was heard of first."""
        self._judge_by = float("inf")
        if self.cause is not None and self.cause.kind in (Kind.RANK, Kind.MISMATCH) and self._failures:
            _, first = min(self._failures.values(), key=lambda told: self._clocks.here(told[0], told[1].at_s))
            self.cause = self._failure(first)

    def _origin(self, cause: Cause) -> Cause:
        """Whom the blamed rank itself blames, and so on, now that all have told.

        A rank of another node blames the one whose connection ended first, which may be a follower of the first.
        """
        seen = {cause.rank}
        while cause.kind is Kind.RANK and (told := self._exits.get(cause.rank)) is not None:
            if told.abort_state != window.ABORT_RANK_FAILED or told.abort_rank in seen:
                break
            if told.abort_rank not in self._exits:
                break
            seen.add(told.abort_rank)
            cause = Cause(Kind.RANK, told.abort_text, cause.code, rank=told.abort_rank, witness=cause.rank)
        return cause

    def _outcome(self) -> Outcome:
        if self._judge_by < float("inf"):
            self._judge()
        if self.cause is not None:
            self.cause = self._origin(self.cause)
        names = tuple(start.node_name for start in self._starts)
        firsts = tuple(start.first_rank for start in self._starts)
        return Outcome(self._code(), self.cause, self._exits, names, firsts, tuple(self._survivors), self._told)

    def _code(self) -> int:
        """The culprit's own code where it ended by itself, else that of the first rank that failed."""
        if self.cause is None:
            return ExitCode.OK
        if self.cause.kind in (Kind.SIGNAL, Kind.TIMEOUT, Kind.RESUMABLE):
            exits = self._exits.values()
            bad = [exited for exited in exits if exited.status and not exited.resumable]
            if not bad and any(exited.resumable for exited in exits):
                return ExitCode.RESUMABLE
            if bad and self.cause.kind is Kind.RESUMABLE:
                return exit_code(bad[0].status)
        culprit = self._exits.get(self.cause.rank)
        if self.cause.kind is Kind.RANK and culprit is not None and culprit.status and not culprit.sent_signal:
            return exit_code(culprit.status)
        return self.cause.code
