# SPDX-License-Identifier: Apache-2.0
"""From an HTTP request to an operation, and back, by botocore's own models of the services.

A request that does not fit its model is refused as the service refuses it: a member that is missing or unknown, a
wrong type, a value that is no member of an enumeration. Invariant: no operation sees a request that its model forbids.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from pmrun.errors import UsageError
from pmrun.testing.fake_batch.errors import Refused
from pmrun.testing.fake_batch.objects import Answer

_BY_TARGET: Final = {"Logs_20140328": "logs", "AmazonSSM": "ssm"}

Json = dict[str, Any]


class Fault(NamedTuple):
    """An error that is answered instead of what was asked for."""

    operation: str  # "" is any; as AWS writes it: DescribeJobs
    error: Refused
    times: int


class Services:
    """The JSON services behind one address.

    Parameters
    ----------
    apis : mapping of str to object
        By service; a method for each operation that the fake has.
    """

    def __init__(self, apis: Mapping[str, object]) -> None:
        try:
            botocore = importlib.import_module("botocore.session")
            self._validator = importlib.import_module("botocore.validate").ParamValidator()
            self._python_name = importlib.import_module("botocore").xform_name
        except ImportError:
            raise UsageError("the fake Batch reads boto3's models; run: pip install 'pmrun[batch]'") from None
        session = botocore.get_session()
        self._apis = apis
        self._models = {name: session.get_service_model(name) for name in apis}
        batch = self._models["batch"]
        operations = [batch.operation_model(name) for name in batch.operation_names]
        self._paths = {
            model.http["requestUri"]: model.name for model in operations if "{" not in model.http["requestUri"]
        }
        self.faults: list[Fault] = []
        self.calls: list[str] = []  # every operation that was asked for, in order

    def understands(self, path: str, headers: Mapping[str, str]) -> bool:
        """Whether this is a request of one of the services."""
        return path.startswith("/v1/") or "X-Amz-Target" in headers

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a request of a JSON service."""
        target = headers.get("X-Amz-Target", "")
        try:
            if target:
                service, operation = _BY_TARGET.get(target.partition(".")[0], ""), target.partition(".")[2]
            else:
                service, operation = "batch", self._paths.get(path, "")
            reply = self._run(service, operation, body)
        except Refused as error:
            return _refused(error, rest=not target)
        kind = "application/x-amz-json-1.1" if target else "application/json"
        return Answer(200, {"Content-Type": kind}, json.dumps(reply).encode())

    def _run(self, service: str, operation: str, body: bytes) -> Json:
        self.calls.append(operation)
        self._fail(operation)
        method: Callable[[Json], Json] | None = None
        if service and operation:
            method = getattr(self._apis[service], self._python_name(operation), None)
        if method is None:
            raise Refused("UnknownOperationException", f"this fake has no operation {operation or '(unknown)'}", 404)
        try:
            request = json.loads(body or b"{}")
        except ValueError as error:
            raise Refused("SerializationException", f"the request is no JSON: {error}") from None
        self._validate(service, operation, request)
        return method(request)

    def _fail(self, operation: str) -> None:
        for number, fault in enumerate(self.faults):
            if fault.operation in ("", operation):
                self.faults[number] = fault._replace(times=fault.times - 1)
                if fault.times <= 1:
                    del self.faults[number]
                raise fault.error

    def _validate(self, service: str, operation: str, request: object) -> None:
        shape = self._models[service].operation_model(operation).input_shape
        found = self._validator.validate(request, shape)
        wrong = found.generate_report().splitlines() if found.has_errors() else list(_not_members(request, shape))
        if wrong:
            code = "ClientException" if service == "batch" else "ValidationException"
            raise Refused(code, f"Error executing request, Exception : {'; '.join(wrong)}")


def _not_members(value: Any, shape: Any, where: str = "") -> Iterator[str]:
    """Strings that their enumeration does not have. What botocore's own check leaves to the service."""
    if shape.type_name == "structure":
        inner: Iterable[tuple[Any, Any, str]] = [
            (value[name], member, f"{where}.{name}".lstrip("."))
            for name, member in shape.members.items()
            if name in value
        ]
    elif shape.type_name == "list":
        inner = [(item, shape.member, f"{where}[{number}]") for number, item in enumerate(value)]
    else:
        inner = ()
        if getattr(shape, "enum", None) and value not in shape.enum:
            yield f"{where}: {value!r} is none of {', '.join(shape.enum)}"
    for item, member, path in inner:
        yield from _not_members(item, member, path)


def _refused(error: Refused, rest: bool) -> Answer:
    """As services of this protocol say it: in a header, or in the body."""
    if rest:
        headers = {"Content-Type": "application/json", "x-amzn-ErrorType": error.code}
        return Answer(error.status, headers, json.dumps({"message": str(error)}).encode())
    body = json.dumps({"__type": error.code, "message": str(error)}).encode()
    return Answer(error.status, {"Content-Type": "application/x-amz-json-1.1"}, body)
