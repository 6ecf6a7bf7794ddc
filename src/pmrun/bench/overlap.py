# SPDX-License-Identifier: Apache-2.0
"""How much of a nonblocking collective runs while the program computes, by two definitions.

OSU (osu_iallreduce): the program computes until its own clock has reached the time of the collective alone, so CPU that
the collective takes meanwhile is not charged: max(0, 100 - 100 (t_overall - t_compute) / t_pure), means over ranks.
IMB-NBC: the program computes a fixed amount, calibrated once to the same time, so that CPU is charged:
100 max(0, min(1, (t_pure + t_CPU - t_ovrl) / max(t_pure, t_CPU))), on the rank with the largest t_ovrl.
Invariant: the collective alone is timed with the same calls (start, then wait) and the same barriers.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from . import checks
from .bindings import Binding, Operation, Starter
from .measure import LARGE_BYTES, Line, Plan, arrays, loop_calls
from .points import base

_WORK = np.full(2048, 1.0)  # fits the first cache
_UNIT = np.full(2048, 1.0)


def measure_overlap(binding: Binding, barrier: Operation, op: str, size: int, plan: Plan) -> Line:
    """Times in µs and both percentages."""
    name = base(op)
    send, recv = arrays(binding, name, size, plan)
    start = binding.started(name, send, recv, plan.op)
    checks.fill(name, send, binding.rank, binding.size, 0, plan.op)
    start()()
    checks.check(name, recv, binding.rank, binding.size, 0, plan.op)
    if not plan.check:
        send[:] = 0
    warm = min(plan.warm_up, 1) if size >= LARGE_BYTES else plan.warm_up
    pure(barrier, start, max(1, warm))
    calls = loop_calls(binding, pure(barrier, start, max(1, warm)), plan.loop_s * plan.loops / 4)
    mine = pure(barrier, start, calls)
    target = float(binding.maximum(np.array([mine]))[0])
    steps = calibrate(target)
    compute = alone(barrier, steps, calls)
    timed, busy = by_clock(barrier, start, target, calls)
    fixed = by_amount(barrier, start, steps, calls)
    rows = everybodys(binding, [mine, compute, timed, busy, fixed])
    worst = int(rows[:, 4].argmax())
    mean = rows.mean(axis=0)
    return {
        "pure_us": _us(mean[0]),
        "compute_us": _us(mean[1]),
        "overall_us": _us(rows[worst, 4]),
        "osu_percent": round(osu_percent(mean[0], mean[3], mean[2]), 1),
        "imb_percent": round(imb_percent(rows[worst, 0], rows[worst, 1], rows[worst, 4]), 1),
    }


def osu_percent(pure_s: float, compute_s: float, overall_s: float) -> float:
    """OSU's definition, from means over ranks."""
    return float(max(0.0, 100.0 - (overall_s - compute_s) / pure_s * 100.0))


def imb_percent(pure_s: float, compute_s: float, overall_s: float) -> float:
    """IMB-NBC's definition, from the rank whose `overall_s` is largest."""
    return float(100.0 * max(0.0, min(1.0, (pure_s + compute_s - overall_s) / max(pure_s, compute_s))))


def _us(seconds: float) -> float:
    return round(1e6 * float(seconds), 3)


def everybodys(binding: Binding, values: list[float]) -> npt.NDArray[np.float64]:
    """A row of values from each rank."""
    rows = np.full((binding.size, len(values)), -np.inf)
    rows[binding.rank] = values
    return binding.maximum(rows.reshape(-1)).reshape(rows.shape)


# ---- what is timed ----------------------------------------------------------------------------------------------


def compute(steps: int) -> None:
    """A fixed amount of work, in numpy, as a program's would be."""
    multiply = np.multiply
    for _ in range(steps):
        multiply(_WORK, _UNIT, _WORK)


def calibrate(target_s: float) -> int:
    """How many steps take this long when nothing else runs."""
    steps = 16
    while True:
        start = time.perf_counter()
        compute(steps)
        took = time.perf_counter() - start
        if took > 2e-4:
            return max(1, round(steps * target_s / took))
        steps *= 2


def pure(barrier: Operation, start: Starter, calls: int) -> float:
    """The collective alone: seconds per call."""
    total = 0.0
    for _ in range(calls):
        barrier()
        begin = time.perf_counter()
        start()()
        total += time.perf_counter() - begin
    return total / calls


def alone(barrier: Operation, steps: int, calls: int) -> float:
    """The fixed work alone, on all ranks at once."""
    total = 0.0
    for _ in range(calls):
        barrier()
        begin = time.perf_counter()
        compute(steps)
        total += time.perf_counter() - begin
    return total / calls


def by_clock(barrier: Operation, start: Starter, target_s: float, calls: int) -> tuple[float, float]:
    """OSU's pass: seconds per call of all, and of the computing in it."""
    total = busy = 0.0
    for _ in range(calls):
        barrier()
        begin = time.perf_counter()
        wait = start()
        started = time.perf_counter()
        while time.perf_counter() - started < target_s:
            compute(1)
        stopped = time.perf_counter()
        wait()
        total += time.perf_counter() - begin
        busy += stopped - started
    return total / calls, busy / calls


def by_amount(barrier: Operation, start: Starter, steps: int, calls: int) -> float:
    """IMB's pass: seconds per call of all."""
    total = 0.0
    for _ in range(calls):
        barrier()
        begin = time.perf_counter()
        wait = start()
        compute(steps)
        wait()
        total += time.perf_counter() - begin
    return total / calls
