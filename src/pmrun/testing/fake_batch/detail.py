# SPDX-License-Identifier: Apache-2.0
"""What DescribeJobs and ListJobs say of a job and of each of its nodes. Pure.

A job's own times, reason and attempts are those of its main node, and it has no container of its own. Invariant:
members that AWS leaves out (an exit code of what runs) are left out.
"""

from __future__ import annotations

from typing import Any

from pmrun.testing.fake_batch.jobs import Job
from pmrun.testing.fake_batch.lifecycle import Node

Json = dict[str, Any]


def of_job(job: Job) -> Json:
    """DescribeJobs of the job."""
    main = job.life.main
    return {
        **_common(job, main),
        "jobArn": job.arn,
        "jobId": job.job_id,
        "status": job.life.status,
        "statusReason": job.life.status_reason,
        "nodeProperties": job.nodes,
        "attempts": [_attempt(node) for node in _ended(job, main)],
        "isCancelled": job.life.cancelled,
        "isTerminated": job.life.terminated,
    }


def of_node(job: Job, index: int) -> Json:
    """DescribeJobs of one node, `id#N`."""
    node = job.life.nodes[index]
    container = {**job.container(index), **_container(node)}
    return {
        **_common(job, index),
        "jobArn": f"{job.arn}#{index}",
        "jobId": f"{job.job_id}#{index}",
        "status": node.status,
        "statusReason": node.status_reason,
        "nodeDetails": {"nodeIndex": index, "isMainNode": index == job.life.main},
        "container": container,
        "attempts": [_attempt(past) for past in _ended(job, index)],
    }


def summary_of_job(job: Job) -> Json:
    """ListJobs of a queue."""
    described = of_job(job)
    return {
        **_summary(described, job.life.nodes[job.life.main]),
        "nodeProperties": {"numNodes": job.life.num_nodes},
        "isCancelled": job.life.cancelled,
        "isTerminated": job.life.terminated,
    }


def summary_of_node(job: Job, index: int) -> Json:
    """ListJobs of a multi-node job."""
    described = of_node(job, index)
    node = {"isMainNode": index == job.life.main, "numNodes": job.life.num_nodes, "nodeIndex": index}
    return {**_summary(described, job.life.nodes[index]), "nodeProperties": node}


def _summary(described: Json, node: Node) -> Json:
    members = (
        "jobArn",
        "jobId",
        "jobName",
        "status",
        "statusReason",
        "createdAt",
        "startedAt",
        "stoppedAt",
        "jobDefinition",
    )
    found = {member: described[member] for member in members if member in described}
    if node.exit_code is not None:
        found["container"] = {"exitCode": node.exit_code}
    return found


def _common(job: Job, index: int) -> Json:
    node = job.life.nodes[index]
    found = {
        "jobName": job.name,
        "jobQueue": job.queue["jobQueueArn"],
        "jobDefinition": job.definition["jobDefinitionArn"],
        "createdAt": _ms(job.life.created_s),
        "retryStrategy": {"evaluateOnExit": [], **job.retry_strategy},
        "timeout": job.timeout,
        "parameters": job.parameters,
        "tags": job.tags,
        "dependsOn": [],
        "platformCapabilities": ["EC2"],
        "propagateTags": False,
    }
    return {**found, **_times(node)}


def _ended(job: Job, index: int) -> list[Node]:
    attempts = [nodes[index] for nodes in (*job.life.past, job.life.nodes)]
    return [node for node in attempts if node.stopped_s is not None]


def _attempt(node: Node) -> Json:
    return {"container": _container(node), "statusReason": node.status_reason, **_times(node)}


def _container(node: Node) -> Json:
    found: Json = {}
    if node.exit_code is not None:
        found["exitCode"] = node.exit_code
    if node.reason:
        found["reason"] = node.reason
    if node.stream:
        found["logStreamName"] = node.stream
        found["taskArn"] = node.stream.rpartition("/")[2]
    if node.address:
        found["networkInterfaces"] = [{"privateIpv4Address": node.address}]
    return found


def _times(node: Node) -> Json:
    times = {"startedAt": node.started_s, "stoppedAt": node.stopped_s}
    return {member: _ms(time_s) for member, time_s in times.items() if time_s is not None}


def _ms(time_s: float) -> int:
    return int(time_s * 1000)
