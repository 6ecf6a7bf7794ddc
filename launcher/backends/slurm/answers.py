# SPDX-License-Identifier: Apache-2.0
"""What scontrol, sacct and squeue say of a job, in pmrun's words. Pure.

scontrol knows jobs until some minutes after their end (MinJobAge), sacct for ever where there is accounting. Invariant:
a job that has ended without an exit code of its own gets the one that pmrun has for such an end, if it has one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from pmrun.errors import ExitCode
from pmrun.launcher.submission.contract import JobStatus, NodeStatus, State

_STATES: Final = {
    "PENDING": State.QUEUED, "REQUEUED": State.QUEUED, "REQUEUE_HOLD": State.QUEUED, "REQUEUE_FED": State.QUEUED,
    "SPECIAL_EXIT": State.QUEUED, "RESV_DEL_HOLD": State.QUEUED, "CONFIGURING": State.STARTING,
    "COMPLETED": State.SUCCEEDED, "CANCELLED": State.CANCELLED, "REVOKED": State.CANCELLED, "FAILED": State.FAILED,
    "BOOT_FAIL": State.FAILED, "DEADLINE": State.FAILED, "NODE_FAIL": State.FAILED, "OUT_OF_MEMORY": State.FAILED,
    "PREEMPTED": State.FAILED, "TIMEOUT": State.FAILED,
}  # fmt: skip
_CODES: Final = {
    "NODE_FAIL": ExitCode.AGENT_LOST, "BOOT_FAIL": ExitCode.START_FAILED, "TIMEOUT": ExitCode.TIMEOUT,
    "DEADLINE": ExitCode.TIMEOUT, "PREEMPTED": ExitCode.RESUMABLE, "OUT_OF_MEMORY": 137,
}  # fmt: skip
_FIELD: Final = re.compile(r"(?:^| )([A-Z][A-Za-z/:]*)=")
SACCT: Final = ("JobIDRaw", "State", "ExitCode", "Reason", "Submit", "Start", "End", "NodeList", "WorkDir", "JobName")
SQUEUE: Final = "\x1f".join(("%i", "%T", "%r", "%k", "%V", "%S", "%e", "%j"))  # no name holds this character

Fields = Mapping[str, str]


def read_scontrol(text: str) -> Fields:
    """The fields of `scontrol --oneliner show job`: NAME=VALUE, where a value may have spaces."""
    line = text.splitlines()[0] if text.strip() else ""
    starts = list(_FIELD.finditer(line))
    ends = [start.start() for start in starts[1:]] + [len(line)]
    found: dict[str, str] = {}
    for start, end in zip(starts, ends, strict=True):
        found.setdefault(start[1], line[start.end() : end].strip())
    return found


def read_sacct(text: str) -> Fields:
    """The same of one line of `sacct --parsable2`, in the order of `SACCT`; empty where it has none."""
    line = text.splitlines()[0] if text.strip() else ""
    if not line:
        return {}
    said = dict(zip(SACCT, line.split("|", len(SACCT) - 1), strict=False))
    # Who cancelled a job stands behind the word: "CANCELLED by 1000".
    return {
        "JobId": said["JobIDRaw"], "JobState": said["State"].partition(" ")[0], "ExitCode": said["ExitCode"],
        "Reason": said["Reason"], "SubmitTime": said["Submit"], "StartTime": said["Start"], "EndTime": said["End"],
        "NodeList": said["NodeList"], "JobName": said["JobName"],
        "StdOut": f"{said['WorkDir']}/slurm-{said['JobIDRaw']}.out",
    }  # fmt: skip


def read_squeue(text: str, mark: str) -> list[JobStatus]:
    """Jobs of `squeue --format=SQUEUE` whose comment is `mark`, newest first."""
    jobs = []
    for line in text.splitlines():
        number, state, reason, comment, submit, start, end, title = line.split("\x1f", 7)
        if comment == mark:
            fields = {
                "JobId": number, "JobState": state, "Reason": reason, "SubmitTime": submit, "StartTime": start,
                "EndTime": end, "JobName": title,
            }  # fmt: skip
            jobs.append(job_status(fields, ()))
    return sorted(jobs, key=lambda job: int(job.name.partition("/")[2].partition("_")[0]), reverse=True)


def job_status(fields: Fields, hosts: tuple[str, ...]) -> JobStatus:
    """Everything in pmrun's words; `hosts` are the nodes' names, in their order."""
    word = fields.get("JobState", "")
    state = _STATES.get(word, State.RUNNING)
    reason = fields.get("Reason", "None")
    if reason in ("None", "", "Unknown", "NonZeroExitCode") or state in (State.RUNNING, State.SUCCEEDED):
        reason = ""
    if state is State.FAILED and word != "FAILED":
        reason = word + (f", {reason}" if reason else "")
    begun = state not in (State.QUEUED, State.STARTING)
    return JobStatus(
        name=f"slurm/{fields.get('JobId', '')}",
        state=state,
        reason=reason,
        attempt=int(fields.get("Restarts", "0") or 0),
        exit_code=_exit_code(word, fields.get("ExitCode", "")) if state.over else None,
        created_s=_time(fields.get("SubmitTime", "")),
        started_s=_time(fields.get("StartTime", "")) if begun else None,
        ended_s=_time(fields.get("EndTime", "")) if state.over else None,
        nodes=tuple(NodeStatus(number, state, host) for number, host in enumerate(hosts)),
        title=fields.get("JobName", ""),
    )


def _exit_code(word: str, text: str) -> int | None:
    """From "CODE:SIGNAL"; what srun says is the highest of the nodes', which all end with the job's."""
    code, _, number = text.partition(":")
    if word in _CODES:
        return int(_CODES[word])
    if word == "CANCELLED" or not code.isdigit():
        return None
    return int(code) or (128 + int(number) if number.isdigit() and int(number) else 0)


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()  # as the local clock has it
    except ValueError:
        return None  # "Unknown", "N/A"
