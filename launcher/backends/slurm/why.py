# SPDX-License-Identifier: Apache-2.0
"""Slurm's one word for why a job waits or ended, explained. Pure.

Invariant: a word that is not known here is passed on as it is.
"""

from __future__ import annotations

import re
from typing import Final

from pmrun.launcher.backends.slurm.answers import Fields
from pmrun.launcher.submission.contract import Finding

_LOOK: Final = "see: sinfo"
_WAITING: Final = (
    (r"Resources", "it is next, and waits until enough nodes are free", "ask for fewer or smaller nodes to start earlier"),
    (r"Priority", "jobs with a higher priority are before it", "a shorter --with time=... may let it slip in between"),
    (r"Dependency(NeverSatisfied)?", "it waits for other jobs, or for what cannot come any more", "see --with dependency"),
    (r"BeginTime", "its time to begin has not come; a job that was requeued waits for some minutes", ""),
    (r"JobHeldUser", "it is held", "let it go: scontrol release {id}"),
    (r"JobHeldAdmin|AdminHold", "an administrator holds it", "ask them"),
    (r"JobLaunchFailure|launch failed requeued held", "it could not be started, and is held", "scontrol release {id}"),
    (r"PartitionNodeLimit", "it asks for more, or fewer, nodes than the partition gives", f"change --nodes; {_LOOK}"),
    (r"PartitionTimeLimit", "its time limit is beyond the partition's", "shorten --timeout, or --with time=..."),
    (r"PartitionDown|PartitionInactive", "the partition starts no jobs now", f"choose another with --queue; {_LOOK}"),
    (r"ReqNodeNotAvail.*|Nodes_required_for_job_are_DOWN.*", "nodes that it needs are down, drained or reserved", _LOOK),
    (r"BadConstraints|NodeDown", "no node has what it asks for", f"change --with constraint, --cpu, --memory, --gpu; {_LOOK}"),
    (r"Licenses", "licenses that it needs are taken", "see: scontrol show licenses"),
    (r"Reservation.*", "it waits for its reservation", "see: scontrol show reservation"),
    (r"InvalidAccount|InvalidQOS", "the account or the quality of service is not yours", "change --with account, --with qos"),
    (r"(Assoc|QOS|Association).*", "a limit of your account or quality of service is reached ({reason})",
     "wait for your other jobs, or ask for less; see: sacctmgr show assoc"),
)  # fmt: skip
_ENDED: Final = {
    "TIMEOUT": ("Slurm's time limit ended it", "give more: --timeout, --with time=...; --with notice=120 lets it save first"),
    "DEADLINE": ("its deadline ended it", "move the deadline"),
    "NODE_FAIL": ("a node was lost", "--retries 2 starts it again"),
    "BOOT_FAIL": ("a node did not come up", "--retries 2 starts it again"),
    "OUT_OF_MEMORY": ("a node ran out of the memory that the job had asked for", "give more: --memory"),
    "PREEMPTED": ("a job with more rights took its nodes", "--retries 2 starts it again; --with qos may spare it"),
    "CANCELLED": ("somebody cancelled it", ""),
}  # fmt: skip


def explain(fields: Fields) -> list[Finding]:
    """What stands in the way of a job, or ended it."""
    state, reason = fields.get("JobState", ""), fields.get("Reason", "")
    if state in _ENDED:
        return [Finding(*_ENDED[state])]
    if state == "FAILED":
        code = fields.get("ExitCode", "").partition(":")[0]
        return [
            Finding(f"it ended with exit code {code}", f"the report is in: pmrun logs slurm/{fields.get('JobId', '')}")
        ]
    if state not in ("PENDING", "CONFIGURING"):
        return []
    if state == "CONFIGURING":
        return [Finding("its nodes are made ready")]
    start = fields.get("StartTime", "")
    expected = [Finding(f"Slurm expects to start it at {start}")] if re.match(r"\d{4}-", start) else []
    for pattern, what, remedy in _WAITING:
        if re.fullmatch(pattern, reason):
            values = {"id": fields.get("JobId", ""), "reason": reason}
            return [Finding(what.format(**values), remedy.format(**values)), *expected]
    if reason in ("None", ""):
        return [Finding("Slurm has not looked at it yet"), *expected]
    return [Finding(f"Slurm says: {reason}", "see: man squeue, JOB REASON CODES"), *expected]
