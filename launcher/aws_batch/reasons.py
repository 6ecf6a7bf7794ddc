# SPDX-License-Identifier: Apache-2.0
"""Why a job of AWS Batch does not start, or how it died: what Batch says, and what to do about it. Pure.

One table of what its reasons begin with or hold; a reason that is not in it is told as it is. Invariant: every finding
of a job that waits or failed names what Batch itself says.
"""

from __future__ import annotations

from typing import Any, Final

from pmrun.launcher.submission.contract import Finding

WAITING: Final = ("SUBMITTED", "PENDING", "RUNNABLE")
CANCELLED: Final = "cancelled by pmrun cancel"
_EXITED: Final = "Essential container in task exited"

# What a reason holds, and the remedy.
_REMEDIES: Final = (
    ("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY", "AWS has no such instances now: wait, or allow other types or zones"),
    ("COMPUTE_ENVIRONMENT_MAX_RESOURCE", "raise maxvCpus of the compute environment, or ask for fewer nodes or vCPUs"),
    ("JOB_RESOURCE_REQUIREMENT", "no instance type there is so large: lower --cpu, --gpu or --memory, or allow larger types"),
    ("EC2_INSTANCE_CONFIGURATION_UNSUPPORTED", "correct the compute environment's instances or launch template"),
    ("SERVICE_ROLE_PERMISSIONS", "give the compute environment's service role the rights of AWSBatchServiceRole"),
    ("ACTION_REQUIRED", "look at the compute environment's own reason: aws batch describe-compute-environments"),
    ("UNDETERMINED", "see that the queue has an on-demand EC2 environment whose subnets reach ECS"),
    ("CannotPullContainerError", "check --image and that the execution role and the subnets reach its registry"),
    ("ResourceInitializationError", "give the execution role ssm:GetParameters on the parameter, and a way to SSM"),
    ("OutOfMemoryError", "give the nodes more: --memory"),
    ("CannotStartContainerError", "the image must have pmrun in its PATH"),
    ("Host EC2", "its machine was lost; --retries N starts the job anew"),
    ("attempt duration exceeded timeout", "give the job more time: --timeout"),
)  # fmt: skip


def findings(job: dict[str, Any], nodes: list[dict[str, Any]]) -> list[Finding]:
    """What is known of a job, the likeliest first."""
    reason = of_job(job)
    if job["status"] in WAITING:
        said = f"{job['status'].lower()}: {reason}" if reason else f"{job['status'].lower()}; Batch says no reason"
        return [Finding(f"the job is {said}", _remedy(reason) or "it may only wait for machines: minutes are usual")]
    found = []
    if reason:
        found.append(Finding(f"Batch says: {reason}", _remedy(reason)))
    for node in nodes:
        text = of_node(node)
        container = node["container"]
        if container.get("exitCode") == 127:
            found.append(
                Finding(f"node {_index(node)}: a program was not found", "the image must have pmrun in its PATH")
            )
        elif text and text != reason:
            found.append(Finding(f"node {_index(node)}: {text}", _remedy(text)))
    return found


def of_job(job: dict[str, Any]) -> str:
    """What Batch says of a job, in one line; "" where its exit code says all."""
    text = " ".join(job.get("statusReason", "").split())
    return "" if text == _EXITED else text


def of_node(node: dict[str, Any]) -> str:
    """Why a node ended or does not start, in one line; "" where its exit code says all."""
    container = node["container"]
    text = container.get("reason") or node.get("statusReason", "")
    return "" if text == _EXITED else " ".join(text.split())


def _index(node: dict[str, Any]) -> int:
    return int(node["nodeDetails"]["nodeIndex"])


def _remedy(text: str) -> str:
    return next((remedy for mark, remedy in _REMEDIES if mark in text), "")
