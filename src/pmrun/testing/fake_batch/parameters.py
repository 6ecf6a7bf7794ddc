# SPDX-License-Identifier: Apache-2.0
"""SSM's parameter store, as far as a job's secrets need it. Invariant: a value is shown only to whoever asks for one."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final

from pmrun.testing.fake_batch.errors import Refused

_NAME: Final = re.compile(r"/?[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_NAME_MAX: Final = 1011
_VALUE_MAX: Final = 4096  # of a standard parameter
_KINDS: Final = ("String", "StringList", "SecureString")


class ParametersApi:
    """The service's operations, by their names in Python."""

    def __init__(self, arn_prefix: str) -> None:
        self._arn_prefix = arn_prefix
        self._kept: dict[str, dict[str, Any]] = {}

    def value(self, name_or_arn: str) -> str | None:
        """What a container's `valueFrom` means; None where there is none."""
        name = name_or_arn
        if name.startswith("arn:"):
            if not name.startswith(self._arn_prefix):
                return None
            name = name.removeprefix(self._arn_prefix)
        found = self._kept.get(name) or self._kept.get(name.removeprefix("/"))
        return None if found is None else str(found["Value"])

    def put_parameter(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name, value = request["Name"], request["Value"]
        if not _NAME.fullmatch(name) or len(name) > _NAME_MAX or re.match(r"/?(aws|ssm)", name, re.IGNORECASE):
            raise Refused("ValidationException", f"Parameter name: {name} is not valid.")
        if len(value.encode()) > _VALUE_MAX and request.get("Tier") != "Advanced":
            raise Refused("ValidationException", "Standard tier parameters support a maximum value of 4096 characters.")
        if name in self._kept and not request.get("Overwrite"):
            raise Refused(
                "ParameterAlreadyExists",
                "The parameter already exists. To overwrite this value, set the overwrite option in the request to true.",
            )
        if name in self._kept and request.get("Tags"):
            raise Refused("ValidationException", "Tags and Overwrite can't be used together.")
        kind = request.get("Type", self._kept.get(name, {}).get("Type"))
        if kind not in _KINDS:
            raise Refused("ValidationException", "A parameter type is required when you create a parameter.")
        version = self._kept.get(name, {}).get("Version", 0) + 1
        self._kept[name] = {
            "Name": name, "Type": kind, "Value": value, "Version": version, "LastModifiedDate": time.time(),
            "ARN": self._arn_prefix + (name if name.startswith("/") else f"/{name}"), "DataType": "text",
        }  # fmt: skip
        return {"Version": version, "Tier": request.get("Tier", "Standard")}

    def get_parameter(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = self._kept.get(request["Name"])
        if found is None:
            raise Refused("ParameterNotFound", "")
        if found["Type"] == "SecureString" and not request.get("WithDecryption"):
            found = {**found, "Value": "(encrypted)"}
        return {"Parameter": found}

    def delete_parameter(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._kept.pop(request["Name"], None) is None:
            raise Refused("ParameterNotFound", "")
        return {}

    def delete_parameters(self, request: Mapping[str, Any]) -> dict[str, Any]:
        names = request["Names"]
        gone = [name for name in names if self._kept.pop(name, None) is not None]
        return {"DeletedParameters": gone, "InvalidParameters": [name for name in names if name not in gone]}

    def describe_parameters(self, request: Mapping[str, Any]) -> dict[str, Any]:
        shown = [{key: value for key, value in item.items() if key != "Value"} for item in self._kept.values()]
        return {"Parameters": shown}
