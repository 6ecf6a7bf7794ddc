# SPDX-License-Identifier: Apache-2.0
"""A job that was submitted: what was asked for, its life, and the environment that its nodes find. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from pmrun.testing.fake_batch import definitions
from pmrun.testing.fake_batch.lifecycle import Lifecycle

Json = dict[str, Any]


@dataclasses.dataclass(eq=False)
class Job:
    """One job."""

    job_id: str
    name: str
    arn: str
    queue: Json
    environment: Json  # of computing, which its queue uses
    definition: Json
    nodes: Json  # node properties, overrides included
    retry_strategy: Json
    timeout: Json
    parameters: dict[str, str]
    tags: dict[str, str]
    life: Lifecycle
    unseen: int  # so often DescribeJobs will not know it

    def container(self, node: int) -> Json:
        """What one node runs."""
        return definitions.container_of(self.nodes, node)

    def command(self, node: int) -> tuple[str, ...]:
        """The words of a node's container; `Ref::name` is a parameter."""
        words = self.container(node).get("command", ())
        return tuple(self.parameters.get(word.removeprefix("Ref::"), word) for word in words)

    def vcpus(self) -> int:
        """Of all nodes."""
        return sum(_resource(self.container(node), "VCPU", "vcpus") for node in range(self.nodes["numNodes"]))

    def shared_memory_mib(self, node: int) -> int:
        """Size of a node's /dev/shm; Docker's where the definition says none."""
        return int(self.container(node).get("linuxParameters", {}).get("sharedMemorySize", 64))

    def variables(self, node: int, main_address: str) -> dict[str, str]:
        """What Batch adds to the environment of a node's container."""
        life = self.life
        found = {
            "AWS_BATCH_JOB_ID": f"{self.job_id}#{node}",
            "AWS_BATCH_JOB_ATTEMPT": str(life.attempt),
            "AWS_BATCH_JQ_NAME": self.queue["jobQueueName"],
            "AWS_BATCH_CE_NAME": self.environment["computeEnvironmentName"],
            "AWS_BATCH_JOB_NODE_INDEX": str(node),
            "AWS_BATCH_JOB_NUM_NODES": str(life.num_nodes),
            "AWS_BATCH_JOB_MAIN_NODE_INDEX": str(life.main),
        }
        if node != life.main:
            found["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = main_address
        return found


def _resource(container: Json, kind: str, old: str) -> int:
    values = [item["value"] for item in container.get("resourceRequirements", ()) if item["type"] == kind]
    return int(values[0] if values else container[old])
