# SPDX-License-Identifier: Apache-2.0
"""Which kinds the server serves, and how clients find that out: discovery, and as much OpenAPI as kubectl asks for.

Kinds that a cluster may or may not have (JobSet itself, the pod groups of several schedulers) are named extras, so
that a test can take them away. Invariant: `find` and the discovery documents come from the same table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

Object = dict[str, Any]

VERBS: Final = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


class Resource(NamedTuple):
    """One kind: where it is served, and what it is called."""

    group: str  # "" is the core group
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    extra: str = ""  # served where the cluster has this

    @property
    def api_version(self) -> str:
        """As objects say it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As messages say it: jobsets.jobset.x-k8s.io."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def singular(self) -> str:
        """As patches and `kubectl get` say it."""
        return self.kind.lower()

    @property
    def base(self) -> str:
        """The path below which its group is served."""
        return f"apis/{self.group}/{self.version}" if self.group else f"api/{self.version}"


NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", False, ("ns",), ("status",))
NODES: Final = Resource("", "v1", "nodes", "Node", False, ("no",), ("status",))
PODS: Final = Resource("", "v1", "pods", "Pod", True, ("po",), ("status", "log", "eviction"))
SERVICES: Final = Resource("", "v1", "services", "Service", True, ("svc",), ("status",))
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap", True, ("cm",))
EVENTS: Final = Resource("", "v1", "events", "Event", True, ("ev",))
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount", True, ("sa",))
CLAIMS: Final = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", True, ("pvc",), ("status",))
JOBS: Final = Resource("batch", "v1", "jobs", "Job", True, (), ("status",))
PRIORITIES: Final = Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", False, ("pc",))
POLICIES: Final = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True, ("netpol",))
REVIEWS: Final = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False)
JOBSETS: Final = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet", True, (), ("status",), "jobset")
POD_GROUPS: Final = (
    Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup", True, ("pg",), ("status",), "coscheduling"),
    Resource("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup", True, ("pg",), ("status",), "volcano"),
    Resource("scheduling.k8s.io", "v1alpha2", "podgroups", "PodGroup", True, (), ("status",), "native"),
)
KUEUE_QUEUES: Final = Resource("kueue.x-k8s.io", "v1beta1", "localqueues", "LocalQueue", extra="kueue")
TABLE: Final = (
    *(NAMESPACES, NODES, PODS, SERVICES, SECRETS, CONFIG_MAPS, EVENTS, SERVICE_ACCOUNTS, CLAIMS, JOBS, PRIORITIES),
    *(POLICIES, REVIEWS, JOBSETS, *POD_GROUPS, KUEUE_QUEUES),
    Resource("kueue.x-k8s.io", "v1beta1", "workloads", "Workload", True, (), ("status",), "kueue"),
    Resource("scheduling.volcano.sh", "v1beta1", "queues", "Queue", False, ("q",), ("status",), "volcano"),
    Resource("scheduling.k8s.io", "v1alpha2", "workloads", "Workload", True, (), (), "native"),
)
EXTRAS: Final = frozenset(resource.extra for resource in TABLE if resource.extra)


class Catalogue:
    """The kinds of one cluster."""

    def __init__(self, extras: Iterable[str]) -> None:
        have = {"", *extras}
        self.resources = tuple(resource for resource in TABLE if resource.extra in have)
        self._by_place = {(resource.base, resource.plural): resource for resource in self.resources}

    def find(self, base: str, plural: str) -> Resource | None:
        """The kind served at a path; None: no such."""
        return self._by_place.get((base, plural))

    def document(self, path: str) -> Object | None:
        """What a client reads at a path outside all objects; None: nothing is there."""
        if path == "version":
            return {"major": "1", "minor": "33", "gitVersion": "v1.33.0-pmrun-fake", "platform": "linux/amd64"}
        if path == "api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "apis":
            groups = dict.fromkeys(resource.group for resource in self.resources if resource.group)
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [self._group(name) for name in groups]}
        if path == "openapi/v3":
            bases = dict.fromkeys(resource.base for resource in self.resources)
            return {"paths": {base: {"serverRelativeURL": f"/openapi/v3/{base}"} for base in bases}}
        if path.startswith("openapi/v3/"):
            return self._openapi(path.removeprefix("openapi/v3/"))
        if path.startswith("apis/") and path.count("/") == 1:
            name = path.removeprefix("apis/")
            known = any(resource.group == name for resource in self.resources)
            return {"kind": "APIGroup", "apiVersion": "v1", **self._group(name)} if known else None
        served = [resource for resource in self.resources if resource.base == path]
        if not served:
            return None
        rows = [row for resource in served for row in _rows(resource)]
        return {
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": served[0].api_version, "resources": rows,
        }  # fmt: skip

    def _group(self, name: str) -> Object:
        versions = dict.fromkeys(resource.version for resource in self.resources if resource.group == name)
        served = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
        return {"name": name, "versions": served, "preferredVersion": served[0]}

    def _openapi(self, base: str) -> Object | None:
        """Says that patches understand `fieldValidation`: kubectl then leaves validation to the server."""
        paths = {
            f"/{base}/{resource.plural}/{{name}}": {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                    "responses": {"200": {"description": "OK"}},
                    "x-kubernetes-group-version-kind": {
                        "group": resource.group, "version": resource.version, "kind": resource.kind,
                    },
                }
            }
            for resource in self.resources
            if resource.base == base
        }  # fmt: skip
        info = {"title": "pmrun's fake cluster", "version": "1"}
        return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}} if paths else None


def _rows(resource: Resource) -> list[Object]:
    common = {"namespaced": resource.namespaced, "kind": resource.kind, "singularName": resource.singular}
    verbs = list(VERBS) if resource is not REVIEWS else ["create"]
    rows: list[Object] = [{"name": resource.plural, **common, "shortNames": list(resource.short), "verbs": verbs}]
    for name in resource.subresources:
        named = {"status": ["get", "patch", "update"], "log": ["get"], "eviction": ["create"]}[name]
        rows.append({"name": f"{resource.plural}/{name}", **common, "singularName": "", "verbs": named})
    return rows
