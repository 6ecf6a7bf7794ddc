# SPDX-License-Identifier: Apache-2.0
"""What a container runs: its command, environment and files, from the pod's specification.

The image is this machine with the interpreter of the cluster: a container gets a clean environment and a directory of
its own. A volume is a directory of this machine, and where command, arguments or environment name a mount path, the
container reads that directory's path instead, so that no right to mount is needed. Invariant: what the specification
names and is not there is `CannotStart`, with the kubelet's words, and nothing is started.
"""

from __future__ import annotations

import base64
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pmrun.testing.fake_jobset.resources import CLAIMS, CONFIG_MAPS, SECRETS, Object, Resource
from pmrun.testing.fake_jobset.scheduler import quantity

Find = Callable[[Resource, str], "Object | None"]  # a kind's object of this name, in the pod's namespace

_REFERENCE: Final = re.compile(r"\$\$|\$\(([A-Za-z_.-][\w.-]*)\)")
_DEFAULT_MODE: Final = 0o644


class CannotStart(Exception):
    """A container that cannot start: the reason in its state, and the message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Recipe(NamedTuple):
    """What to run."""

    words: list[str]
    env: dict[str, str]
    cwd: str


def make_volumes(pod: Object, folder: Path, claims: Path, find: Find) -> dict[str, Path]:
    """The directories of a pod's volumes, by name, with their files."""
    made = {}
    for volume in pod["spec"].get("volumes", ()):
        path = folder / "volumes" / volume["name"]
        if "hostPath" in volume:
            path = Path(volume["hostPath"]["path"])
        elif "persistentVolumeClaim" in volume:
            name = volume["persistentVolumeClaim"]["claimName"]
            if find(CLAIMS, name) is None:
                raise _unmounted(volume["name"], f'persistentvolumeclaim "{name}" not found')
            path = claims / pod["metadata"]["namespace"] / name
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.mkdir(parents=True, exist_ok=True)
            sources = (volume.get("projected") or {}).get("sources") or [volume]
            for source in sources:
                for name, (data, mode) in _files(pod, volume["name"], source, find).items():
                    _write(path / name, data, mode)
        made[volume["name"]] = path
    return made


def cook(pod: Object, container: Object, volumes: Mapping[str, Path], cwd: Path, find: Find, image: Mapping[str, str],
         rename: Callable[[str], str]) -> Recipe:  # fmt: skip
    """What to run; `image`: the environment that every image brings; `rename`: names that only the cluster knows."""
    mounts = {}
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            raise CannotStart("CreateContainerConfigError", f"volume {mount['name']!r} of a mount is not there")
        mounts[mount["mountPath"].rstrip("/")] = str(volumes[mount["name"]] / mount.get("subPath", ""))
    paths = os.pathsep.join((os.path.dirname(sys.executable), *os.defpath.split(os.pathsep), "/usr/sbin", "/sbin"))
    env = {
        "PATH": paths, "HOME": str(cwd), "LANG": "C.UTF-8",
        "HOSTNAME": pod["spec"].get("hostname") or pod["metadata"]["name"], **image,
    }  # fmt: skip
    said = _environment(pod, container, find)
    for name, value in said.items():
        env[name] = rename(_moved(_expand(value, env), mounts))
    words = [*container.get("command", ()), *container.get("args", ())]
    if not words:
        raise CannotStart("CreateContainerError", "Error response from runtime: no command specified")
    words = [rename(_moved(_expand(word, env), mounts)) for word in words]
    asked = _moved(container.get("workingDir", ""), mounts)
    place = asked if asked and os.path.isdir(asked) else str(cwd)
    program = words[0] if "/" in words[0] else shutil.which(words[0], path=env["PATH"])
    if program is None or not os.access(os.path.join(place, program), os.X_OK):
        text = f'failed to create containerd task: failed to create shim task: exec: "{words[0]}": '
        raise CannotStart("StartError", text + "executable file not found in $PATH")
    return Recipe([program, *words[1:]], env, place)


def _unmounted(volume: str, why: str) -> CannotStart:
    return CannotStart("FailedMount", f'MountVolume.SetUp failed for volume "{volume}" : {why}')


def _files(pod: Object, volume: str, source: Any, find: Find) -> dict[str, tuple[bytes, int]]:
    """The files of one source of a volume: bytes and mode, by path."""
    for part, resource in (("secret", SECRETS), ("configMap", CONFIG_MAPS)):
        if part not in source:
            continue
        told = source[part]
        name = told.get("secretName") or told.get("name", "")
        found = find(resource, name)
        if found is None:
            if told.get("optional"):
                return {}
            raise _unmounted(volume, f'{resource.singular} "{name}" not found')
        data = _data(found)
        items = told.get("items") or [{"key": key, "path": key} for key in data]
        missing = [item["key"] for item in items if item["key"] not in data]
        if missing and not told.get("optional"):
            raise _unmounted(volume, f"references non-existent {resource.singular} key: {missing[0]}")
        mode = told.get("defaultMode", _DEFAULT_MODE)
        return {item["path"]: (data[item["key"]], item.get("mode", mode)) for item in items if item["key"] in data}
    files = {}
    for item in (source.get("downwardAPI") or {}).get("items", ()):
        text = _field(pod, item["fieldRef"]["fieldPath"]) if "fieldRef" in item else ""
        files[item["path"]] = (text.encode(), item.get("mode", _DEFAULT_MODE))
    return files


def _data(found: Object) -> dict[str, bytes]:
    """Of a Secret or a ConfigMap."""
    binary = {**(found.get("binaryData") or {})}
    plain = found.get("data") or {}
    if found["kind"] == "Secret":
        binary, plain = plain, {}
    made = {name: str(value).encode() for name, value in plain.items()}
    made.update({name: base64.b64decode(value) for name, value in binary.items()})
    return made


def _write(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)


def _environment(pod: Object, container: Object, find: Find) -> dict[str, str]:
    said: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        for part, resource in (("secretRef", SECRETS), ("configMapRef", CONFIG_MAPS)):
            if part in source:
                for name, value in _data(_need(find, resource, source[part])).items():
                    said[source.get("prefix", "") + name] = value.decode(errors="replace")
    for entry in container.get("env", ()):
        said[entry["name"]] = _value(pod, container, entry, find)
    return said


def _value(pod: Object, container: Object, entry: Any, find: Find) -> str:
    source = entry.get("valueFrom")
    if not source:
        return str(entry.get("value", ""))
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        told = source["resourceFieldRef"]
        kind, _, name = told["resource"].partition(".")
        amount = quantity(((container.get("resources") or {}).get(kind) or {}).get(name, 0))
        return str(math.ceil(amount / (quantity(told.get("divisor", 1)) or 1)))
    for part, resource in (("secretKeyRef", SECRETS), ("configMapKeyRef", CONFIG_MAPS)):
        if part in source:
            told = source[part]
            data = _data(_need(find, resource, told))
            if told["key"] in data:
                return data[told["key"]].decode(errors="replace")
            if not told.get("optional"):
                text = (
                    f"couldn't find key {told['key']} in {resource.kind} {pod['metadata']['namespace']}/{told['name']}"
                )
                raise CannotStart("CreateContainerConfigError", text)
    return ""


def _need(find: Find, resource: Resource, told: Any) -> Object:
    found = find(resource, told["name"])
    if found is None and not told.get("optional"):
        raise CannotStart("CreateContainerConfigError", f'{resource.singular} "{told["name"]}" not found')
    return found or {"kind": resource.kind}


def _field(pod: Object, path: str) -> str:
    """As the downward API gives it."""
    keyed = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if keyed:
        return str((pod["metadata"].get(keyed[1]) or {}).get(keyed[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        found = pod["metadata"].get(path.partition(".")[2]) or {}
        return "".join(f'{name}="{value}"\n' for name, value in sorted(found.items()))
    if path in ("status.podIPs", "status.hostIPs"):
        path = path[:-1]
    known = ("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName")
    if path not in (*known, "status.podIP", "status.hostIP"):
        raise CannotStart("CreateContainerConfigError", f"unsupported fieldPath: {path}")
    part, _, name = path.partition(".")
    return str(pod[part].get(name, ""))


def _expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` is the variable's value, where there is one; `$$` is a dollar."""
    return _REFERENCE.sub(lambda found: "$" if found[0] == "$$" else env.get(found[1], found[0]), text)


def _moved(text: str, mounts: Mapping[str, str]) -> str:
    for path in sorted(mounts, key=len, reverse=True):
        text = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?![\w.-])", mounts[path].replace("\\", r"\\"), text)
    return text
