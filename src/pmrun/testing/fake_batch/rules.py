# SPDX-License-Identifier: Apache-2.0
"""When Batch retries a job: its number of attempts and the rules of `evaluateOnExit`.

A rule fits where each of its patterns does; `*` at a pattern's end stands for anything. The first that fits decides;
where none does, the job is retried. Invariant: pure.
"""

from __future__ import annotations

from typing import NamedTuple


class EvaluateOnExit(NamedTuple):
    """One rule; a pattern that is "" is not looked at."""

    action: str  # RETRY or EXIT, in any case of letters
    on_exit_code: str = ""
    on_status_reason: str = ""
    on_reason: str = ""


class Outcome(NamedTuple):
    """How the main node ended."""

    exit_code: int | None
    status_reason: str
    reason: str


def retries(outcome: Outcome, attempt: int, attempts_max: int, rules: tuple[EvaluateOnExit, ...]) -> bool:
    """Whether another attempt follows this one, which failed."""
    if attempt >= attempts_max:
        return False
    for rule in rules:
        if _fits(rule, outcome):
            return rule.action.upper() == "RETRY"
    return True


def _fits(rule: EvaluateOnExit, outcome: Outcome) -> bool:
    code = "" if outcome.exit_code is None else str(outcome.exit_code)
    pairs = (
        (rule.on_exit_code, code),
        (rule.on_status_reason, outcome.status_reason),
        (rule.on_reason, outcome.reason),
    )
    return all(_matches(pattern, text) for pattern, text in pairs if pattern)


def _matches(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern
