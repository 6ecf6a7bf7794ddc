# SPDX-License-Identifier: Apache-2.0
"""How much of a nonblocking collective runs while the program computes, by two definitions.

OSU (osu_iallreduce): the program computes until its own clock has reached the time of the collective alone, so CPU that
the collective takes meanwhile is not charged: max(0, 100 - 100 (t_overall - t_compute) / t_pure), means over ranks.
IMB-NBC: the program computes a fixed amount, calibrated once to the same time, so that CPU is charged:
100 max(0, min(1, (t_pure + t_CPU - t_ovrl) / max(t_pure, t_CPU))), on the rank with the largest t_ovrl.
The passes take turns, and each one's median counts: what slows a machine for a while falls on all alike. Invariant: the
collective alone is timed with the same calls (start, then wait) and the same barriers.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import numpy.typing as npt

from . import checks
from .bindings import Binding, Operation, Starter
from .measure import LARGE_BYTES, Line, Plan, arrays, loop_calls
from .points import base

TRIES = 3  # of the collective alone, for the time that the work is to take
SHORT_S, LONG_S = 2e-4, 0.05  # work this long tells how long one step takes

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
    for _ in range(max(1, warm)):
        pure(barrier, start)
    target = slowest(binding, median(pure(barrier, start) for _ in range(TRIES)))
    turns = loop_calls(binding, target, plan.loop_s * plan.loops / 4)
    steps = calibrate(binding, barrier, target)
    passes = [one_turn(barrier, start, steps, target) for _ in range(turns)]
    mine, compute, timed, busy, fixed = (median(values) for values in zip(*passes, strict=True))
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


def slowest(binding: Binding, seconds: float) -> float:
    """The largest of all ranks'."""
    return float(binding.maximum(np.array([seconds]))[0])


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


def calibrate(binding: Binding, barrier: Operation, target_s: float) -> int:
    """How many steps take this long on this rank while every rank computes: their CPUs may slow each other down."""
    steps = 16
    while slowest(binding, alone(barrier, steps)) < max(SHORT_S, min(target_s / 2, LONG_S)):
        steps *= 2
    took = median(alone(barrier, steps) for _ in range(TRIES))
    return max(1, round(steps * target_s / took))


def one_turn(
    barrier: Operation, start: Starter, steps: int, target_s: float
) -> tuple[float, float, float, float, float]:
    """Each pass once: seconds of the collective alone, of the work alone, of OSU's pass and the computing in it, of IMB's."""
    return (
        pure(barrier, start),
        alone(barrier, steps),
        *by_clock(barrier, start, target_s),
        by_amount(barrier, start, steps),
    )


def pure(barrier: Operation, start: Starter) -> float:
    """The collective alone."""
    barrier()
    begin = time.perf_counter()
    start()()
    return time.perf_counter() - begin


def alone(barrier: Operation, steps: int) -> float:
    """The fixed work alone, on all ranks at once."""
    barrier()
    begin = time.perf_counter()
    compute(steps)
    return time.perf_counter() - begin


def by_clock(barrier: Operation, start: Starter, target_s: float) -> tuple[float, float]:
    """OSU's pass: all of it, and the computing in it."""
    barrier()
    begin = time.perf_counter()
    wait = start()
    started = time.perf_counter()
    while time.perf_counter() - started < target_s:
        compute(1)
    stopped = time.perf_counter()
    wait()
    return time.perf_counter() - begin, stopped - started


def by_amount(barrier: Operation, start: Starter, steps: int) -> float:
    """IMB's pass."""
    barrier()
    begin = time.perf_counter()
    wait = start()
    compute(steps)
    wait()
    return time.perf_counter() - begin
