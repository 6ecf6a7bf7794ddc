# SPDX-License-Identifier: Apache-2.0
"""The keys of `--with` that Kubernetes has, and which general options it understands.

Invariant: what a key's value becomes fits into a manifest as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from pmrun.launcher.submission.read import Key

UNDERSTOOD: Final = frozenset(
    {"image", "namespace", "cpu", "gpu", "memory_mib", "shared_memory_mib", "gang", "retries"}
    | {"code", "code_store", "pip"}
)

_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_PULLS: Final = ("Always", "IfNotPresent", "Never")
_LABEL: Final = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def _pair(name: str, any_value: bool = False) -> Callable[[str], tuple[str, str]]:
    def parse(text: str) -> tuple[str, str]:
        key, equals, value = text.partition("=")
        fits = any_value or re.fullmatch(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,62})?", value)
        if not equals or not _LABEL.fullmatch(key) or not fits:
            raise ValueError(f"write --with {name}=KEY=VALUE, as Kubernetes has them: letters, digits, '-', '_', '.'")
        return key, value

    return parse


def _toleration(text: str) -> dict[str, str]:
    """KEY, KEY=VALUE, either with :EFFECT."""
    rest, colon, effect = text.rpartition(":")
    if not colon:
        rest, effect = text, ""
    key, equals, value = rest.partition("=")
    if not _LABEL.fullmatch(key) or (colon and effect not in _EFFECTS):
        raise ValueError(
            f"write --with toleration=KEY or KEY=VALUE, perhaps with :EFFECT, one of {', '.join(_EFFECTS)}"
        )
    told = {"key": key, "operator": "Equal", "value": value} if equals else {"key": key, "operator": "Exists"}
    return {**told, "effect": effect} if effect else told


def _volume(text: str) -> tuple[dict[str, Any], str]:
    """claim:NAME:/path, host:/there:/path, config:NAME:/path, secret:NAME:/path, empty::/path."""
    kind, _, rest = text.partition(":")
    what, _, path = rest.rpartition(":")
    sources: dict[str, dict[str, Any]] = {
        "claim": {"persistentVolumeClaim": {"claimName": what}},
        "host": {"hostPath": {"path": what}},
        "config": {"configMap": {"name": what}},
        "secret": {"secret": {"secretName": what}},
        "empty": {"emptyDir": {}},
    }
    if kind not in sources or not path.startswith("/") or bool(what) == (kind == "empty"):
        raise ValueError(
            "write --with volume=claim:NAME:/path, host:/there:/path, config:NAME:/path, secret:NAME:/path or empty::/path"
        )
    return sources[kind], path


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", text):
        raise ValueError("a name in Kubernetes is small letters, digits, '-' and '.'")
    return text


def _pull(text: str) -> str:
    if text not in _PULLS:
        raise ValueError(f"the image is pulled {', '.join(_PULLS)}")
    return text


def _seconds(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("this is a number of seconds")
    return int(text)


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("say yes or no")
    return text == "yes"


def _resource(text: str) -> str:
    if not _LABEL.fullmatch(text) or "/" not in text:
        raise ValueError("this is the name that nodes have for their GPUs: nvidia.com/gpu, amd.com/gpu")
    return text


KEYS: Final = (
    Key("node-selector", _pair("node-selector"), "KEY=VALUE that a node must have; may be repeated", many=True),
    Key("toleration", _toleration, "KEY[=VALUE][:EFFECT] of a taint that pods bear; may be repeated", many=True),
    Key("service-account", _name, "of the pods"),
    Key("priority-class", _name, "of the pods"),
    Key("pull", _pull, "when the image is pulled: Always, IfNotPresent, Never"),
    Key("pull-secret", _name, "by which the image is pulled; may be repeated", many=True),
    Key("volume", _volume, "claim:NAME:/path, host:, config:, secret:, empty::/path; may be repeated", many=True),
    Key("label", _pair("label"), "KEY=VALUE of JobSet and pods; may be repeated", many=True),
    Key("annotation", _pair("annotation", any_value=True), "KEY=VALUE of the JobSet; may be repeated", many=True),
    Key("gpu-resource", _resource, "what nodes call GPUs; default: nvidia.com/gpu"),
    Key("network-policy", _yes, "yes: only the job's own pods can reach its pods"),
    Key("ttl", _seconds, "seconds after its end the job is deleted, with its logs; default: never"),
)
