# SPDX-License-Identifier: Apache-2.0
"""Job definitions of multi-node parallel jobs: what Batch refuses, and which container a node gets.

Types, names and required members were checked against the service's model before; here is what the model does not
say: ranges of nodes, resources, names, limits. Invariant: a definition that passed `check` has a container with an
image, a command and resources for each of its nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pmrun.testing.fake_batch.errors import bad_request

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_RANGE: Final = re.compile(r"(\d*)(:?)(\d*)")
_GROUPS_MAX: Final = 5
_RULES_MAX: Final = 5
_ATTEMPTS_MAX: Final = 10
_TIMEOUT_MIN_S: Final = 60
_RESERVED: Final = "AWS_BATCH"
_EFA: Final = "/dev/infiniband/"

Json = dict[str, Any]


def name(text: str, what: str) -> str:
    """A name that Batch takes."""
    if not _NAME.fullmatch(text):
        raise bad_request(
            f"{what} should match valid pattern: ^[0-9a-zA-Z]+[0-9a-zA-Z-_]*$ with at most 128 characters"
        )
    return text


def bounds(target: str, num_nodes: int) -> tuple[int, int]:
    """First and last node of a range such as "0:", ":3", "1:3" or "2"."""
    found = _RANGE.fullmatch(target)
    if found is None or target in ("", ":"):
        raise bad_request(f"Node range '{target}' is not valid")
    first = int(found[1] or 0)
    last = first if not found[2] else int(found[3]) if found[3] else num_nodes - 1
    if first > last:
        raise bad_request(f"Node range '{target}' is not valid for {num_nodes} nodes")
    return first, last


def open_ended(target: str) -> bool:
    """Whether a range goes to the last node, however many there are."""
    return target.endswith(":")


def check(request: Mapping[str, Any]) -> None:
    """Refuse what RegisterJobDefinition refuses."""
    name(request["jobDefinitionName"], "Job definition name")
    if request["type"] != "multinode":
        raise bad_request(f"this fake runs multinode jobs only, not '{request['type']}'")
    if "FARGATE" in request.get("platformCapabilities", ()):
        raise bad_request("Multi-node parallel jobs are not supported on Fargate")
    if "nodeProperties" not in request:
        raise bad_request("nodeProperties is required for a multinode job definition")
    if "containerProperties" in request:
        raise bad_request("containerProperties cannot be given for a multinode job definition")
    _check_nodes(request["nodeProperties"])
    check_retries(request.get("retryStrategy", {}))
    check_timeout(request.get("timeout", {}))


def _check_nodes(nodes: Mapping[str, Any]) -> None:
    num_nodes, main, groups = nodes["numNodes"], nodes["mainNode"], nodes["nodeRangeProperties"]
    if num_nodes < 1:
        raise bad_request("numNodes must be at least 1")
    if not 0 <= main < num_nodes:
        raise bad_request("mainNode must be smaller than numNodes")
    if not 1 <= len(groups) <= _GROUPS_MAX:
        raise bad_request(f"nodeRangeProperties must have 1 to {_GROUPS_MAX} node groups, not {len(groups)}")
    covered: set[int] = set()
    for group in groups:
        first, last = bounds(group["targetNodes"], num_nodes)
        if last >= num_nodes:
            raise bad_request(f"Node range '{group['targetNodes']}' is not valid for {num_nodes} nodes")
        covered.update(range(first, last + 1))
        if "container" not in group:
            raise bad_request("this fake runs nodes with container properties only, not ecsProperties or eksProperties")
        _check_container(group["container"])
    if len(covered) < num_nodes:
        raise bad_request("nodeRangeProperties must cover every node from 0 to numNodes - 1")
    kinds = {
        kind for group in groups for kind in (*group.get("instanceTypes", ()), group["container"].get("instanceType"))
    }
    if len(kinds - {None}) > 1:
        raise bad_request("All node groups of a multi-node parallel job must use the same instance type")


def _check_container(container: Mapping[str, Any]) -> None:
    if not container.get("image"):
        raise bad_request("Container properties should have an image")
    check_environment(container.get("environment", ()))
    wanted = {item["type"]: item["value"] for item in container.get("resourceRequirements", ())}
    for kind, old, told in (("VCPU", "vcpus", "vCPU"), ("MEMORY", "memory", "Memory")):
        if kind not in wanted and old not in container:
            raise bad_request(f"{told} is not provided.")
    check_resources(container.get("resourceRequirements", ()))
    if container.get("secrets") and not container.get("executionRoleArn"):
        raise bad_request("executionRoleArn is required where a container has secrets")
    for device in container.get("linuxParameters", {}).get("devices", ()):
        allowed = set(device.get("permissions", ()))
        if device["hostPath"].startswith(_EFA) and allowed != {"READ", "WRITE", "MKNOD"}:
            raise bad_request(
                f"{device['hostPath']}: a multinode job must name READ, WRITE and MKNOD as its permissions"
            )


def check_environment(variables: Iterable[Mapping[str, Any]]) -> None:
    """Refuse variables that Batch keeps for itself."""
    for variable in variables:
        if str(variable.get("name", "")).startswith(_RESERVED):
            raise bad_request(f"Environment variables must not start with {_RESERVED}")


def check_resources(wanted: Iterable[Mapping[str, Any]]) -> None:
    """Refuse what no instance could give."""
    for item in wanted:
        if not item["value"].isdigit() or int(item["value"]) < (4 if item["type"] == "MEMORY" else 1):
            raise bad_request(f"Value {item['value']} of the resource requirement {item['type']} is not valid")


def check_retries(strategy: Mapping[str, Any]) -> None:
    """Refuse a retry strategy that Batch refuses."""
    attempts, rules = strategy.get("attempts"), strategy.get("evaluateOnExit", [])
    if attempts is not None and not 1 <= attempts <= _ATTEMPTS_MAX:
        raise bad_request(f"Retry attempts must be between 1 and {_ATTEMPTS_MAX}")
    if rules and attempts is None:
        raise bad_request("attempts is required where evaluateOnExit is given")
    if len(rules) > _RULES_MAX:
        raise bad_request(f"evaluateOnExit must have at most {_RULES_MAX} rules")
    for rule in rules:
        if not {"onExitCode", "onReason", "onStatusReason"} & set(rule):
            raise bad_request("evaluateOnExit: a rule needs onExitCode, onReason or onStatusReason")


def check_timeout(timeout: Mapping[str, Any]) -> None:
    """Refuse a timeout that Batch refuses."""
    if timeout.get("attemptDurationSeconds", _TIMEOUT_MIN_S) < _TIMEOUT_MIN_S:
        raise bad_request(f"attemptDurationSeconds must be at least {_TIMEOUT_MIN_S}")


def overridden(definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    """The node properties of a job: those of its definition, with what SubmitJob replaces."""
    nodes: Json = {**definition, "nodeRangeProperties": [dict(group) for group in definition["nodeRangeProperties"]]}
    wanted = overrides.get("numNodes")
    if wanted is not None:
        _check_count(nodes, wanted)
        nodes["numNodes"] = wanted
    groups = {group["targetNodes"]: group for group in nodes["nodeRangeProperties"]}
    for override in overrides.get("nodePropertyOverrides", ()):
        group = groups.get(override["targetNodes"])
        if group is None:
            raise bad_request(
                f"NodeOverride targets should match job definition. Non matching targets - {override['targetNodes']}"
            )
        group["container"] = _merged(group["container"], override.get("containerOverrides", {}))
        if "instanceTypes" in override:
            group["instanceTypes"] = override["instanceTypes"]
    return nodes


def _check_count(nodes: Mapping[str, Any], wanted: int) -> None:
    targets = [group["targetNodes"] for group in nodes["nodeRangeProperties"]]
    if not any(map(open_ended, targets)):
        raise bad_request("numNodes can only be overridden where a node range has no upper boundary, such as '0:'")
    if wanted <= max(int(target.partition(":")[0] or 0) for target in targets) or wanted <= nodes["mainNode"]:
        raise bad_request(f"numNodes {wanted} must be above mainNode and the lower boundary of every node range")


def _merged(container: Mapping[str, Any], override: Mapping[str, Any]) -> Json:
    check_environment(override.get("environment", ()))
    check_resources(override.get("resourceRequirements", ()))
    merged: Json = {
        **container,
        **{key: value for key, value in override.items() if key in ("command", "instanceType")},
    }
    for member, key in (("environment", "name"), ("resourceRequirements", "type")):
        items = {item[key]: item for item in (*container.get(member, ()), *override.get(member, ()))}
        merged[member] = list(items.values())
    return merged


def container_of(nodes: Mapping[str, Any], node: int) -> Json:
    """The container of one node: of nested ranges the innermost counts."""
    fitting = []
    for group in nodes["nodeRangeProperties"]:
        first, last = bounds(group["targetNodes"], nodes["numNodes"])
        if first <= node <= last:
            fitting.append((last - first, group["container"]))
    container: Json = min(fitting, key=lambda item: item[0])[1]
    return container
