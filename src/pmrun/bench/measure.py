# SPDX-License-Identifier: Apache-2.0
"""Times one point after another, on every rank of a gang.

For a point: one call on known data is checked; a few calls warm up and tell how many make a loop; then the loops are
timed, each after a barrier. A loop's figure is the slowest rank's time per call. With `check`, each call has data of its
own and its result is compared; filling and comparing are outside the time. Invariant: all ranks make the same calls, as
every decision (length of a loop, end of the budget) follows from a maximum over ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .bindings import Array, Binding, NotOffered, Operation
from .points import IN_PLACE, ITEM_BYTES, OVERLAPPED, PAIRS, POINT_TO_POINT, elements, plan as all_points

LARGE_BYTES = 4 << 20  # one call is warm-up enough
MAX_CALLS = 1_000_000  # of a loop, where a time was too short to be seen
WINDOW = 64  # messages under way in the bandwidth tests, as in OSU's
WINDOW_BYTES = 64 << 20

Line = dict[str, Any]
Say = Callable[[Line], None]


class Plan(NamedTuple):
    """What the ranks are asked to measure."""

    operations: list[str]
    sizes: list[int]
    dtype: str = "float32"
    op: str = "sum"
    loops: int = 5
    loop_s: float = 0.02
    warm_up: int = 6  # MPICH takes its shared-memory algorithms only after five calls on a communicator
    check: bool = False
    budget_s: float = 1e9  # what remains then is left out
    by_size: bool = False


class Timed(NamedTuple):
    """A thing to time: what each call does, and what is done around it, outside the time, when results are checked."""

    call: Operation
    before: Callable[[int], None]
    after: Callable[[int], None]


def nothing(turn: int) -> None:
    """Before or after a call that needs nothing."""


def run(binding: Binding, plan: Plan, say: Say) -> None:
    """Measure everything; `say` is told each line, on rank 0 alone."""
    from .overlap import measure_overlap
    from .pairs import measure_pairs

    barrier = binding.blocking("barrier", np.empty(0), np.empty(0), plan.op)
    end = time.monotonic() + plan.budget_s
    for op, size in all_points(plan.operations, plan.sizes, by_size=plan.by_size):
        if binding.maximum(np.array([time.monotonic() - end]))[0] > 0.0:
            break  # whoever reads knows the points that are missing
        try:
            if op == PAIRS:
                line = measure_pairs(binding, barrier, plan)
            elif op in OVERLAPPED:
                line = {"kind": "overlap", "op": op, "bytes": size, **measure_overlap(binding, barrier, op, size, plan)}
            else:
                line = {"kind": "point", "op": op, "bytes": size, "loops_us": measure(binding, barrier, op, size, plan)}
        except NotOffered:
            continue
        if binding.rank == 0:
            say(line)


def measure(binding: Binding, barrier: Operation, op: str, size: int, plan: Plan) -> list[float]:
    """µs per call (or message) of each loop, of the slowest rank."""
    if op in POINT_TO_POINT:
        partner = binding.nodes[1][1] if len(binding.nodes) > 1 else 1
        return measure_between(binding, barrier, op, size, (0, partner), plan)
    send, recv = arrays(binding, op, size, plan)
    timed = Timed(
        binding.blocking(op, send, recv, plan.op),
        lambda turn: checks.fill(op, send, binding.rank, binding.size, turn, plan.op),
        lambda turn: checks.check(op, recv, binding.rank, binding.size, turn, plan.op),
    )
    return time_loops(binding, barrier, timed, send, size, plan)


def arrays(binding: Binding, op: str, size: int, plan: Plan) -> tuple[Array, Array]:
    """What goes in and what comes out."""
    sent, received = elements(op, size, binding.size, ITEM_BYTES[plan.dtype])
    send = binding.empty(sent, plan.dtype)
    recv = send if op in IN_PLACE else binding.empty(received, plan.dtype)
    if recv is not send:
        recv[:] = 0
    return send, recv


def time_loops(binding: Binding, barrier: Operation, timed: Timed, send: Array, size: int, plan: Plan) -> list[float]:
    """Check one call, warm up, and time the loops."""
    timed.before(0)
    timed.call()
    timed.after(0)
    if not plan.check:
        send[:] = 0  # sums in place must not run into infinities or denormals
    warm = min(plan.warm_up, 1) if size >= LARGE_BYTES else plan.warm_up
    one_loop = checked_loop if plan.check else plain_loop
    if warm:
        one_loop(barrier, timed, warm)
    calls = loop_calls(binding, one_loop(barrier, timed, max(1, warm)), plan.loop_s)
    mine = np.array([one_loop(barrier, timed, calls) for _ in range(plan.loops)])
    return [round(1e6 * float(seconds), 4) for seconds in binding.maximum(mine)]


def loop_calls(binding: Binding, estimate_s: float, loop_s: float) -> int:
    """How many calls fill a loop, by the slowest rank's estimate."""
    slowest = float(binding.maximum(np.array([estimate_s]))[0])
    return max(1, min(MAX_CALLS, int(loop_s / max(slowest, 1e-9))))


def plain_loop(barrier: Operation, timed: Timed, calls: int) -> float:
    """Seconds per call, one timing around all."""
    call = timed.call
    barrier()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def checked_loop(barrier: Operation, timed: Timed, calls: int) -> float:
    """Seconds per call, new data before each and a look at the result after."""
    total = 0.0
    for turn in range(1, calls + 1):
        timed.before(turn)
        barrier()
        start = time.perf_counter()
        timed.call()
        total += time.perf_counter() - start
        timed.after(turn)
    return total / calls


# ---- between two ranks --------------------------------------------------------------------------------------------


def measure_between(
    binding: Binding, barrier: Operation, op: str, size: int, pair: tuple[int, int], plan: Plan
) -> list[float]:
    """µs per message of each loop; the other ranks wait."""
    item_bytes = ITEM_BYTES[plan.dtype]
    count = max(1, size // item_bytes)
    messages = 1 if op == "latency" else max(1, min(WINDOW, WINDOW_BYTES // max(1, size)))
    part = binding.rank in pair
    send = binding.empty(count, plan.dtype) if part else np.empty(0, plan.dtype)
    recv = binding.empty(count * messages, plan.dtype) if part else np.empty(0, plan.dtype)
    received = op != "bandwidth" or binding.rank == pair[1]

    def before(turn: int) -> None:
        if part:
            recv[:] = 0
            send[:] = checks.stretch(checks.pattern(binding.rank, binding.size, turn, "sum", send.dtype), 0, count)

    def after(turn: int) -> None:
        if part and received:
            other = pair[0] + pair[1] - binding.rank
            wanted = checks.stretch(checks.pattern(other, binding.size, turn, "sum", send.dtype), 0, count)
            for message in recv.reshape(messages, count):
                checks.compare(op, message, wanted, binding.rank)

    call = _exchange(binding, op, pair, send, recv.reshape(messages, -1) if part else recv)
    loops = time_loops(binding, barrier, Timed(call, before, after), send, size * messages, plan)
    trips = 2 if op == "latency" else messages
    return [round(us / trips, 4) for us in loops]


def _exchange(binding: Binding, op: str, pair: tuple[int, int], send: Array, recv: Array) -> Operation:
    """What a rank does in one call: a ping-pong, or a window of messages and, one way, an answer to it."""
    if binding.rank not in pair:
        return lambda: None
    first = binding.rank == pair[0]
    peer = pair[1] if first else pair[0]
    if op == "latency":
        ping, pong = binding.send(send, peer), binding.recv(recv[0], peer)
        return _in_turn(ping, pong) if first else _in_turn(pong, ping)
    sends = [binding.isend(send, peer)] * len(recv)
    receives = [binding.irecv(message, peer) for message in recv]
    if op == "bibandwidth":
        return lambda: _finish([start() for start in (*receives, *sends)])
    token = np.zeros(1, np.int8)
    if first:
        answer = binding.recv(token, peer)
        return _in_turn(lambda: _finish([start() for start in sends]), answer)
    return _in_turn(lambda: _finish([start() for start in receives]), binding.send(token, peer))


def _in_turn(one: Operation, two: Operation) -> Operation:
    def both() -> None:
        one()
        two()

    return both


def _finish(waits: list[Operation]) -> None:
    for wait in waits:
        wait()
