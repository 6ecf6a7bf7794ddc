# SPDX-License-Identifier: Apache-2.0
"""The controller's part in the hang report: from what agents say to what the user reads and what becomes of the gang.

launcher/hang.py decides when to look, launcher/hang_report.py finds the words; here they meet the gang's state machine,
whose actions are what comes out. Invariant: a gang that is being ended is looked at no more.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from pmrun import wire
from pmrun.launcher import gang, hang
from pmrun.launcher.job import Job

if TYPE_CHECKING:
    from pmrun.launcher.store_desk import StoreDesk


class HangDesk:
    """Over one attempt of a gang."""

    def __init__(self, job: Job, starts: Sequence[wire.Start], over: gang.Gang, store: StoreDesk) -> None:
        self._job = job
        self._gang = over
        self._store = store
        self._watch = hang.HangWatch(len(starts), job.hang_timeout_s)
        self._names = tuple(start.node_name for start in starts)
        self._first_ranks = [start.first_rank for start in starts]
        self._gone: frozenset[int] = frozenset()

    def on_message(self, node: int, message: wire.Waits | wire.Looked, now: float) -> list[gang.Action]:
        """An agent told how long its ranks wait, or where they are."""
        if self._ending():
            return []
        if isinstance(message, wire.Waits):
            self._watch.on_waits(node, message, now)
            return []
        return self._carry_out(self._watch.on_looked(node, message, now), now)

    def on_quit(self, now: float) -> list[gang.Action]:
        """The user wants to see where the ranks are."""
        return [] if self._ending() else self._carry_out(self._watch.on_quit(now), now)

    def on_suspend(self, stop: bool, now: float) -> None:
        """pmrun stops, or goes on."""
        self._watch.on_suspend(stop, now)

    def deadline(self, now: float) -> float | None:
        """When `on_tick` has something to do."""
        return self._watch.deadline(now)

    def on_tick(self, now: float) -> list[gang.Action]:
        """Something has happened, or time has passed."""
        if self._ending():
            return []
        gone = self._gang.over
        actions = [action for node in gone - self._gone for action in self._watch.on_node_over(node, now)]
        self._gone = gone
        return self._carry_out([*actions, *self._watch.on_tick(now)], now)

    def _ending(self) -> bool:
        """Whether the gang has got a cause to end, perhaps by the message before this one: then no look is told."""
        if self._gang.cause is None:
            return False
        self._watch.stop()
        return True

    def _carry_out(self, actions: list[hang.Action], now: float) -> list[gang.Action]:
        done: list[gang.Action] = []
        for action in actions:
            if isinstance(action, hang.Ask):
                done += [gang.SendTo(node, action.look) for node in action.nodes]
            else:
                done += self._tell(action, now)
        return done

    def _tell(self, found: hang.Found, now: float) -> list[gang.Action]:
        from pmrun.launcher import hang_report, last_failure  # most gangs never hang

        report = hang_report.compose(self._with_store(found, now), self._names, self._node_of)
        body = "".join(f"{line}\n" for line in report.lines)
        if found.asked:
            return [gang.Say(f"SIGQUIT: {report.headline}\n{body}".rstrip("\n"))]
        note = gang.Note("hang", {"ranks": list(report.culprits), "text": report.headline})
        text = f"hang: {report.headline}\n{body}"
        if not self._job.hang_ends:
            last_failure.keep(f"pmrun: {text}", self._job.command, "a hang, and the job went on")
            return [note, gang.Say(f"{text}pmrun: the job goes on (--on-hang=report)")]
        limit = f"--hang-timeout of {self._job.hang_timeout_s:g} s"
        text += f"pmrun: the job is ended by its {limit}: give more time if ranks may wait longer, or --on-hang=report"
        rank = report.culprits[0] if len(report.culprits) == 1 else -1
        return [note, gang.Say(text), *self._gang.on_hang(rank, f"hang: {report.headline}", f"pmrun: {text}\n")]

    def _with_store(self, found: hang.Found, now: float) -> hang.Found:
        """With what ranks wait for in a table that is here."""
        waits = self._store.waits(now)
        if not waits:
            return found
        looked = {
            node: msgspec.structs.replace(
                item, sights=tuple(hang.with_store_wait(sight, waits) for sight in item.sights)
            )
            for node, item in found.looked.items()
        }
        return msgspec.structs.replace(found, looked=looked)

    def _node_of(self, rank: int) -> str:
        return self._names[bisect.bisect_right(self._first_ranks, rank) - 1]
