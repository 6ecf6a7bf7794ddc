# SPDX-License-Identifier: Apache-2.0
"""What must be true of a simulated job, whatever happened to it.

Safety always: nothing is left, attempts do not overlap, ranks keep their nodes, no attempt too many, success is the success
of all. Blame, time and hangs where the links are pmrun's and the world is not too bad. AssertionError says what is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulated_node import LOOK_PARTS, STACKS_S, Node
from simulated_world import Route

from pmrun.errors import ExitCode
from pmrun.launcher import gang, hang
from pmrun.launcher.clocks import PERIOD_S
from pmrun.launcher.lease import BEAT_S, LEASE_S

if TYPE_CHECKING:
    from simulated_attempt import Attempt
    from simulated_job import Job

PARTED_S = 4e-4 * PERIOD_S  # two of the simulated clocks part by so much in the time that counts, at most
LOSSES = ("cut", "deaf", "mute")
FINAL = (gang.Kind.SIGNAL, gang.Kind.TIMEOUT, gang.Kind.OUTPUT, gang.Kind.MISMATCH)
USERS = ("signal", "output")  # faults that come to whichever attempt runs
ROUGH = frozenset({"storm", "sleep", *LOSSES})  # faults by which what is said of waits comes late


def check_launch(job: Job, node: Node) -> None:
    """When a node starts its ranks."""
    first = sum(job.layout[: node.number])
    assert node.ranks in (range(0), range(first, first + job.layout[node.number])), "ranks move to another node"
    for attempt in job.attempts[: node.attempt.number]:
        for former in attempt.nodes:
            unwatched = former.asleep_until and Route("down", attempt.number, former.number) in job.cut
            assert not former.alive or unwatched, f"attempt {node.attempt.number} meets ranks of {attempt.number}"


def check(job: Job) -> None:
    """When all is over."""
    for attempt in job.attempts:
        for node in attempt.nodes:
            assert not node.alive, f"ranks {sorted(node.alive)} of n{node.number} are left"
            assert node.gone or not node.here, f"the agent of n{node.number} is left: {node.machine.phase}"
    main = job.main
    assert main.over, "the controller is left"
    assert len(job.attempts) <= job.max_restarts + 1, "an attempt too many"
    for attempt, outcome in zip(job.attempts, main.outcomes, strict=False):
        _check_outcome(job, attempt, outcome)
    if not main.killed:
        _check_attempts(job)
        if not job.hostile:
            _check_hangs(job)


def _check_attempts(job: Job) -> None:
    """One outcome each, and a further attempt exactly where one could help."""
    main = job.main
    cancelled = len(main.outcomes) - len(job.attempts)  # while the job waited for its next attempt
    assert cancelled in (0, 1)
    for number, outcome in enumerate(main.outcomes[: -1 - cancelled]):
        assert outcome.cause is not None and outcome.cause.kind not in FINAL, "it was started again"
        assert number or outcome.cause.kind is not gang.Kind.START, "what never stood was started again"
        assert outcome.code != ExitCode.RESUMABLE or outcome.cause.kind is gang.Kind.START, "what saved its work was"
    last = main.outcomes[-1]
    assert main.attempts.number == len(job.attempts) - 1, "attempts that were not are counted"
    failed = last.cause is not None and last.cause.kind in (gang.Kind.RANK, gang.Kind.AGENT, gang.Kind.HANG)
    if failed and last.code != ExitCode.RESUMABLE:
        assert len(job.attempts) == job.max_restarts + 1, "it was not started again"
    summary = main.attempts.summary(last.cause is None)
    told = [line for line in summary if line.startswith("  attempt ")]
    if len(job.attempts) > 1 and last.cause is not None:
        assert len(told) == len(job.attempts), summary


def _check_outcome(job: Job, attempt: Attempt, outcome: gang.Outcome) -> None:
    cause = outcome.cause
    assert (cause is None) == (outcome.code == 0)
    statuses = [found.status for found in outcome.exits.values()]
    if cause is None:
        assert statuses == [0] * sum(job.layout), "success is the success of all"
    if cause is not None and cause.kind is gang.Kind.START and not outcome.exits:
        assert (
            not attempt.launches or any(fault.kind == "fails" for fault in _faults(job, attempt)) or outcome.node_names
        ), "a start that failed before all were there has started nothing"
    if job.hostile:
        return
    faults = _faults(job, attempt)
    kinds = {fault.kind for fault in faults}
    lasting = {route.node for route in job.cut if route.attempt == attempt.number}
    if not kinds - {*USERS, "storm"} and not lasting and job.timeout_s is None and cause is not None:
        assert cause.kind in (gang.Kind.SIGNAL, gang.Kind.OUTPUT), "no fault, no failure"
    if cause is not None and cause.kind is gang.Kind.RANK:
        struck = {fault.rank for fault in faults if fault.kind in ("rank", "leaves")}
        for node in lasting:  # what is known of its ranks is what the others saw
            struck |= set(attempt.nodes[node].ranks)
        assert cause.rank in struck, "an innocent rank is blamed"
        _check_first(attempt, cause.rank, outcome)
    if cause is not None and cause.kind is gang.Kind.AGENT:
        assert kinds & {"agent", "sleep", *LOSSES} or lasting, "a node that was well is called lost"
    losses = [fault for fault in faults if fault.kind in LOSSES]
    if (
        len(faults) == len(losses) == 1
        and cause is not None
        and cause.kind is gang.Kind.AGENT
        and len(job.attempts) == 1
    ):
        took_s = job.main.ended_at - max([losses[0].at, *(at for at, _ in attempt.launches)])
        assert took_s <= LEASE_S + 4 * BEAT_S, f"a loss was noticed after {took_s} s"


def _check_first(attempt: Attempt, blamed: int, outcome: gang.Outcome) -> None:
    """Of the ranks that failed, and of which that was heard, the blamed one did so first, as far as messages can tell.

    What they cannot tell is the time that the fastest of a node's last messages took, which is less than most take.
    """
    deaths = {rank: at for rank, at in attempt.deaths.items() if rank in outcome.exits}
    if blamed not in deaths:  # it left with 0
        return
    lately = [(node, way) for at, node, way in attempt.ways if attempt.ended_at - at < PERIOD_S - PARTED_S]
    for rank, at in deaths.items():
        home = next(node.number for node in attempt.nodes if rank in node.ranks)
        fastest_s = min((way for node, way in lately if node == home), default=float("inf"))
        after_s = deaths[blamed] - at
        assert after_s <= fastest_s + PARTED_S, f"rank {blamed} is blamed, and failed {after_s} s after rank {rank}"


def _faults(job: Job, attempt: Attempt) -> list[object]:
    return [fault for fault in job.faults if fault.attempt == attempt.number]


def _check_hangs(job: Job) -> None:
    """Every hang is told once in each --hang-timeout, and nothing else is; debuggers' time does not count."""
    timeout_s = job.hang_timeout_s
    unsure_s = timeout_s / LOOK_PARTS + 2 * job.latency_s + STACKS_S  # of what is known of a wait's age
    for attempt in job.attempts:
        told = [item for item in job.main.told if item.attempt == attempt.number and not item.found.asked]
        assert not told or timeout_s, "--hang-timeout is off"
        assert len(told) <= 1 or not job.hang_ends, "told again in a gang that is ended by it"
        for one, other in zip(told, told[1:], strict=False):
            assert other.at - one.at >= timeout_s - unsure_s, "told twice"
        if ROUGH & {fault.kind for fault in job.faults}:
            continue
        for item in told:
            assert not item.found.silent, "every node answers"
            ages_s = [sight.waits.age_s for node in item.found.looked.values() for sight in node.sights if sight.waits]
            assert max(ages_s, default=0.0) >= 0.9 * timeout_s, "nobody waits by now"
            assert attempt.waited_s(item.at, unsure_s) >= timeout_s - unsure_s, "a wait is called a hang too early"
        for began, ended in attempt.stalls if timeout_s else ():
            at = [item.at for item in told if began <= item.at]
            late_s = timeout_s + unsure_s + hang.LOOK_S * any(item.found.asked for item in job.main.told)
            if attempt.waited_s(min(ended, job.main.caused_at.get(attempt.number, ended))) > late_s:
                assert at and attempt.waited_s(min(at)) <= late_s, f"a hang of {ended - began} s is not told"
