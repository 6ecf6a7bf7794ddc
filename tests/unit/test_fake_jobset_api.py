# SPDX-License-Identifier: Apache-2.0
"""The fake cluster's API without HTTP: what is admitted, changed, found, and collected."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from jobset_helper import jobset, pod_spec
from pmrun.testing.fake_jobset import containers, garbage, patches, schema, selectors
from pmrun.testing.fake_jobset.api import Api, How
from pmrun.testing.fake_jobset.logs import Log, Wanted
from pmrun.testing.fake_jobset.resources import (
    CONFIG_MAPS,
    JOBS,
    JOBSETS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    Catalogue,
    Object,
)
from pmrun.testing.fake_jobset.statuses import ApiError
from pmrun.testing.fake_jobset.store import Key, Store
from pmrun.testing.fake_jobset.streams import Watch


@pytest.fixture
def api() -> Api:
    made = Api(Store(random.Random(1), lambda: None), clock=lambda: 1_000_000.0)
    made.create(NAMESPACES, "", {"metadata": {"name": "default"}})
    made.create(SERVICE_ACCOUNTS, "default", {"metadata": {"name": "default"}})
    return made


def create(api: Api, body: Object, validation: str = "Strict") -> Object:
    return api.create(JOBSETS, "default", body, How(field_validation=validation))[0]


def refusal(api: Api, body: Object) -> str:
    with pytest.raises(ApiError) as refused:
        create(api, body)
    return str(refused.value)


def test_the_webhooks_defaults(api: Api) -> None:
    body = jobset("gang", "pass", failurePolicy={"rules": [{"action": "FailJobSet"}]})
    del pod_spec(body)["restartPolicy"]
    made = create(api, body)
    spec = made["spec"]
    assert spec["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    assert spec["successPolicy"] == {"operator": "All"} and spec["startupPolicy"] == {"startupPolicyOrder": "AnyOrder"}
    assert spec["failurePolicy"]["rules"][0]["name"] == "failurePolicyRule0"
    assert spec["replicatedJobs"][0]["groupName"] == "default" and pod_spec(made)["restartPolicy"] == "OnFailure"
    assert made["metadata"]["uid"] and made["metadata"]["generation"] == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"coordinator": {"replicatedJob": "w", "podIndex": 2}}, "coordinator pod index 2 is invalid"),
        ({"coordinator": {"replicatedJob": "x"}}, "coordinator replicatedJob x does not exist"),
        ({"network": {"subdomain": "No"}}, "a DNS-1035 label must consist of"),
        ({"managedBy": "me"}, "must be a domain-prefixed path"),
        ({"successPolicy": {"operator": "All", "targetReplicatedJobs": ["x"]}}, "does not appear in .spec.Repl"),
        ({"failurePolicy": {"rules": [{"action": "Restart"}]}}, "Unsupported value"),
        ({"failurePolicy": {"restartStrategy": "InPlaceRestart"}}, "feature gate"),
        ({"failurePolicy": {"rules": [{"action": "FailJobSet", "name": "1"}]}}, "must start with an alphabetic"),
        (
            {"failurePolicy": {"rules": [{"action": "FailJobSet", "onJobFailureReasons": ["Bad"]}]}},
            "not a recognized job failure reason",
        ),
        ({"suspend": "yes"}, "is not of type 'boolean'"),
    ],
)
def test_jobsets_that_are_refused(api: Api, spec: dict[str, Any], words: str) -> None:
    assert words in refusal(api, jobset("gang", "pass", **spec))


def test_names_that_would_be_too_long(api: Api) -> None:
    longest = "x" * (63 - len("-w-0-1-abcde"))
    assert create(api, jobset(longest, "pass"))
    assert "pod names generated for this JobSet will exceed" in refusal(api, jobset(longest + "x", "pass"))
    assert "metadata.name" in refusal(api, jobset("Gang", "pass"))


def test_unknown_fields_are_refused_told_or_dropped(api: Api) -> None:
    body = jobset("gang", "pass", typo=1)
    assert 'strict decoding error: unknown field "spec.typo"' in refusal(api, body)
    made, warnings = api.create(JOBSETS, "default", body, How(field_validation="Warn"))
    assert warnings == ['unknown field "spec.typo"'] and "typo" not in made["spec"]
    assert schema.of_jobs().pruned({"spec": {"paralellism": 1}})[1] == ["spec.paralellism"]


def test_what_may_change(api: Api) -> None:
    key = Key(JOBSETS, "default", "gang")
    made = create(api, jobset("gang", "pass", suspend=True, failurePolicy={"maxRestarts": 1}))
    changed = patches.apply(made, patches.MERGE, b'{"spec": {"failurePolicy": {"maxRestarts": 2}}}', custom=True)
    with pytest.raises(ApiError, match="Value is immutable"):
        api.update(key, changed)
    chosen = jobset("gang", "pass", suspend=False, failurePolicy={"maxRestarts": 1})
    pod_spec(chosen)["nodeSelector"] = {"size": "s"}
    assert api.update(key, chosen)[0]["metadata"]["generation"] == 2
    pod_spec(chosen)["nodeSelector"] = {"size": "m"}
    with pytest.raises(ApiError, match=r"spec\.replicatedJobs: Invalid value: field is immutable"):
        api.update(key, chosen)
    with pytest.raises(ApiError, match="object has been modified") as stale:
        api.update(key, made)
    assert stale.value.code == 409
    api.update(key, {**chosen, "status": {"restarts": 9}, "spec": api.store.get(key)["spec"]}, "status")
    assert api.store.get(key)["status"] == {"restarts": 9}


def test_jobs_and_pods_are_admitted(api: Api) -> None:
    job = jobset("x", "pass")["spec"]["replicatedJobs"][0]["template"]
    made = api.create(JOBS, "default", {"metadata": {"generateName": "job-"}, **job})[0]
    assert made["metadata"]["name"].startswith("job-") and made["spec"]["suspend"] is False
    assert made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] == made["metadata"]["uid"]
    job["spec"]["backoffLimitPerIndex"] = 1
    with pytest.raises(ApiError, match="does not model this field"):
        api.create(JOBS, "default", {"metadata": {"name": "job"}, **job})
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}], "priorityClassName": "high"}}
    with pytest.raises(ApiError, match="no PriorityClass with name high was found"):
        api.create(PODS, "default", pod)


def test_deleting_waits_for_pods_dependents_and_finalizers(api: Api) -> None:
    owner = create(api, jobset("gang", "pass"))
    reference = {"uid": owner["metadata"]["uid"], "kind": "JobSet", "name": "gang", "apiVersion": "x"}
    api.create(SECRETS, "default", {"metadata": {"name": "key", "ownerReferences": [reference]}})
    key = Key(JOBSETS, "default", "gang")
    with pytest.raises(ApiError, match="Precondition failed"):
        api.delete(key, {"preconditions": {"uid": "other"}})
    api.delete(key, {"propagationPolicy": "Foreground"})
    assert api.exists(*key)
    for _ in range(2):
        garbage.collect(api)
    assert not api.exists(*key) and not api.exists(SECRETS, "default", "key")
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}], "nodeName": "n"}}
    api.create(PODS, "default", pod)
    assert api.delete(Key(PODS, "default", "p"))["metadata"]["deletionGracePeriodSeconds"] == 30
    assert api.exists(PODS, "default", "p")
    api.delete(Key(PODS, "default", "p"), {"gracePeriodSeconds": 0})
    assert not api.exists(PODS, "default", "p")


def test_patches() -> None:
    found: Object = {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}], "x": 1}}
    merged = patches.apply(
        found, patches.STRATEGIC, b'{"spec": {"x": null, "containers": [{"name": "a", "tty": true}]}}', False
    )
    assert merged["spec"] == {"containers": [{"name": "a", "image": "1", "tty": True}, {"name": "b"}]}
    replaced = patches.apply(found, patches.MERGE, b'{"spec": {"containers": []}}', False)
    assert replaced["spec"] == {"containers": [], "x": 1} and found["spec"]["x"] == 1
    pointed = patches.apply(found, patches.JSON, b'[{"op": "remove", "path": "/spec/containers/0"}]', True)
    assert pointed["spec"]["containers"] == [{"name": "b"}]
    for kind, body, code in (
        (patches.STRATEGIC, b"{}", 415), (patches.JSON, b'[{"op": "remove", "path": "/y"}]', 422), ("text/x", b"", 415),
    ):  # fmt: skip
        with pytest.raises(ApiError) as refused:
            patches.apply(found, kind, body, True)
        assert refused.value.code == code


@pytest.mark.parametrize(
    ("labels", "fits"),
    [("a=1", True), ("a!=1", False), ("a in (1, 2),b", True), ("!c,a notin (3)", True), ("c", False), ("", True)],
)
def test_selectors(labels: str, fits: bool) -> None:
    assert selectors.both(labels, "metadata.name=x")({"metadata": {"name": "x", "labels": {"a": "1", "b": ""}}}) is fits


@pytest.mark.parametrize(("labels", "fields"), [("a=(", ""), ("", "spec.other=1"), ("", "name")])
def test_selectors_that_cannot_be_read(labels: str, fields: str) -> None:
    with pytest.raises(ApiError):
        selectors.both(labels, fields)


def test_a_watch_tells_each_change_once(api: Api) -> None:
    _, since = api.store.all_of(CONFIG_MAPS)
    watch = Watch(api.store, CONFIG_MAPS, "default", selectors.read_labels("on=1"), str(since))
    for labels in ({"on": "1"}, {"on": "1", "x": "y"}, {}, {"on": "1"}):
        body = {"metadata": {"name": "m", "labels": labels}}
        key = Key(CONFIG_MAPS, "default", "m")
        api.update(key, body) if api.exists(*key) else api.create(CONFIG_MAPS, "default", body)
    api.delete(Key(CONFIG_MAPS, "default", "m"))
    lines = list(watch.lines(0.1, False, lambda: False))
    kinds = [line.split(b'"')[3].decode() for line in lines]
    assert kinds == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    api.store.forget()
    with pytest.raises(ApiError, match="too old"):
        Watch(api.store, CONFIG_MAPS, "default", selectors.read_labels(""), str(since))


def test_a_followed_log_is_whole(tmp_path: Path) -> None:
    times = iter(range(1, 100))
    log = Log(tmp_path / "log", clock_ns=lambda: next(times) * 1_000_000_000)
    log.write(b"one\ntw")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.extend(log.read(Wanted(follow=True), lambda: False)))
    reader.start()
    log.write(b"o\n" + b"x" * 20_000 + b"\nlast")
    log.end()
    reader.join()
    assert b"".join(read) == b"one\ntwo\n" + b"x" * 20_000 + b"\nlast"
    stamped = b"".join(log.read(Wanted(since_s=2, tail=3, timestamps=True), lambda: False)).split(b"\n")
    assert [line[:21] for line in stamped] == [
        b"1970-01-01T00:00:02.0", b"1970-01-01T00:00:03.0", b"1970-01-01T00:00:04.0",
    ]  # fmt: skip
    assert b"".join(log.read(Wanted(limit_bytes=5), lambda: False)) == b"one\nt"
    log.remove()
    assert not list(tmp_path.iterdir())


def test_what_a_container_runs(tmp_path: Path) -> None:
    secret = {"kind": "Secret", "data": {"key": "aGVsbG8="}}
    found = {"key": secret, "settings": {"kind": "ConfigMap", "data": {"A": "1"}}}
    pod = {
        "metadata": {"name": "p", "namespace": "default", "annotations": {"a/b": "noted"}},
        "spec": {"volumes": [{"name": "k", "secret": {"secretName": "key", "defaultMode": 0o400}}]},
        "status": {"podIP": "10.0.0.1"},
    }
    container = {
        "command": ["sh", "-c", "cat /etc/key/key /etc/keyless $(IP) $$(IP)"],
        "env": [
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "NOTE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['a/b']"}}},
            {"name": "WHERE", "value": "/etc/key"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "key", "key": "key"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        ],
        "envFrom": [{"configMapRef": {"name": "settings"}}],
        "resources": {"limits": {"cpu": "1500m"}},
        "volumeMounts": [{"name": "k", "mountPath": "/etc/key"}],
    }

    def find(resource: object, name: str) -> Object | None:
        return found.get(name)

    volumes = containers.make_volumes(pod, tmp_path, tmp_path, find)
    assert (volumes["k"] / "key").read_text() == "hello" and (volumes["k"] / "key").stat().st_mode & 0o777 == 0o400
    recipe = containers.cook(pod, container, volumes, tmp_path, find, {"LANG": "C"}, lambda text: text)
    assert recipe.words[2] == f"cat {volumes['k']}/key /etc/keyless 10.0.0.1 $(IP)"
    shown = {name: recipe.env[name] for name in ("NOTE", "WHERE", "KEY", "CPU", "A", "LANG")}
    assert shown == {"NOTE": "noted", "WHERE": str(volumes["k"]), "KEY": "hello", "CPU": "2", "A": "1", "LANG": "C"}
    with pytest.raises(containers.CannotStart, match='secret "gone" not found'):
        containers.make_volumes({**pod, "spec": {"volumes": [{"name": "k", "secret": {"secretName": "gone"}}]}},
                                tmp_path, tmp_path, find)  # fmt: skip
    with pytest.raises(containers.CannotStart, match="executable file not found"):
        containers.cook(pod, {"command": ["nonesuch"]}, {}, tmp_path, find, {}, lambda text: text)


def test_discovery_shows_what_is_served() -> None:
    few = Catalogue(("jobset",))
    assert few.document("apis/jobset.x-k8s.io/v1alpha2") and few.document("openapi/v3/apis/batch/v1")
    assert few.document("apis/kueue.x-k8s.io/v1beta1") is None and few.find("apis/jobset.x-k8s.io/v1alpha2", "jobsets")
    assert Catalogue(()).find("apis/jobset.x-k8s.io/v1alpha2", "jobsets") is None
