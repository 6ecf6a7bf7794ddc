# SPDX-License-Identifier: Apache-2.0
"""HTTP: paths and parameters become verbs, and what they give becomes answers.

A thread per connection, as the library has it. Beside the API there is /fake/..., by which a test makes trouble. Where
the cluster has a token, each request must bear it. Invariant: every answer is JSON, or lines of it, or a log; whatever
goes wrong in a request is answered with a `Status`, and hurts no other request.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from pmrun.testing.fake_jobset import selectors
from pmrun.testing.fake_jobset.api import Api, How
from pmrun.testing.fake_jobset.faults import Faults
from pmrun.testing.fake_jobset.logs import Log, Wanted
from pmrun.testing.fake_jobset.resources import PODS, REVIEWS, Catalogue, Object, Resource
from pmrun.testing.fake_jobset.statuses import ApiError, bad_request, invalid, no_such_path
from pmrun.testing.fake_jobset.store import Key
from pmrun.testing.fake_jobset.streams import Watch
from pmrun.testing.fake_jobset.times import seconds

_LARGEST: Final = 3 * 2**20  # of a body, as the real server has it
_WATCH_S: Final = 1800.0
_NOT_READ: Final = ("application/vnd.kubernetes.protobuf", "application/cbor")
_CHUNKED: Final = ("Transfer-Encoding", "chunked")


class Kubelets(Protocol):
    """What the server asks those who run the pods."""

    def log(self, pod: Object, container: str, previous: bool) -> Log | None:
        """A container's output; ApiError: it cannot have one yet; None: the pod runs nowhere."""

    def evict(self, key: Key, uid: str) -> None:
        """As the eviction API does."""

    def command(self, name: str, body: Object) -> Object:
        """What /fake/NAME is to do."""


class Route(NamedTuple):
    """What a path names."""

    resource: Resource
    namespace: str
    name: str
    part: str  # a subresource

    @property
    def key(self) -> Key:
        """Of the object."""
        return Key(self.resource, self.namespace, self.name)


class Answer(NamedTuple):
    """What goes back."""

    code: int
    body: Object | Iterable[bytes]
    warnings: tuple[str, ...] = ()
    kind: str = "application/json"


class Site:
    """What is served at one address."""

    def __init__(self, api: Api, catalogue: Catalogue, faults: Faults, kubelets: Kubelets, token: str) -> None:
        self.api = api
        self.catalogue = catalogue
        self.faults = faults
        self.kubelets = kubelets
        self.token = token

    def answer(self, method: str, target: str, kind: str, body: bytes) -> Answer:
        """One request; ApiError where it fails."""
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        path = urllib.parse.unquote(url.path).strip("/")
        if path in ("healthz", "livez", "readyz"):
            return Answer(200, [b"ok"], kind="text/plain")
        if path.startswith("fake/"):
            return Answer(200, self.kubelets.command(path.removeprefix("fake/"), _decoded(body)))
        route = self._route(path)
        if route is None:
            document = self.catalogue.document(path) if method == "GET" else None
            if document is None:
                raise no_such_path()
            return Answer(200, document)
        verb = _verb(method, route, query)
        self.faults.check(verb, route.resource, route.namespace)
        how = How(query.get("dryRun") == "All", query.get("fieldValidation", "Warn"))
        if route.part in ("log", "eviction"):
            return self._of_pod(method, route, query)
        if method == "GET":
            return self._read(route, query)
        if method == "POST":
            return self._create(route, _decoded(body), how)
        if method == "PUT":
            new, warnings = self.api.update(route.key, _decoded(body), route.part, how)
            return Answer(200, new, tuple(warnings))
        if method == "PATCH":
            made = not self.api.exists(*route.key)
            new, warnings = self.api.patch(route.key, kind, body, route.part, how)
            return Answer(201 if made else 200, new, tuple(warnings))
        return self._delete(route, query, _decoded(body), how.dry_run)

    def broken(self) -> Callable[[], bool]:
        """Tells a stream that begins now when it is to break off."""
        began = self.faults.streams
        return lambda: self.faults.streams != began

    def _route(self, path: str) -> Route | None:
        parts = path.split("/")
        size = 2 if parts[0] == "api" else 3
        base, rest = "/".join(parts[:size]), parts[size:]
        if len(rest) >= 3 and rest[0] == "namespaces" and (found := self.catalogue.find(base, rest[2])):
            return Route(found, rest[1], *_padded(rest[3:])) if found.namespaced and len(rest) <= 5 else None
        found = self.catalogue.find(base, rest[0]) if rest else None
        if found is None or len(rest) > 3 or (found.namespaced and len(rest) > 1):
            return None
        return Route(found, "", *_padded(rest[1:]))

    def _read(self, route: Route, query: dict[str, str]) -> Answer:
        if route.name and not _said(query, "watch"):
            return Answer(200, self.api.store.get(route.key))
        fields = query.get("fieldSelector", "")
        if route.name:
            fields = f"metadata.name={route.name}"
        test = selectors.both(query.get("labelSelector", ""), fields)
        if _said(query, "watch"):
            if _said(query, "sendInitialEvents"):
                text = (
                    "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
                )
                raise invalid(route.resource, "", [("sendInitialEvents", text)])
            watch = Watch(self.api.store, route.resource, route.namespace, test, query.get("resourceVersion", ""))
            timeout_s = float(query.get("timeoutSeconds") or _WATCH_S)
            return Answer(200, watch.lines(timeout_s, _said(query, "allowWatchBookmarks"), self.broken()))
        found, version = self.api.store.all_of(route.resource, route.namespace)
        return Answer(200, {
            "kind": f"{route.resource.kind}List", "apiVersion": route.resource.api_version,
            "metadata": {"resourceVersion": str(version)}, "items": [entry for entry in found if test(entry)],
        })  # fmt: skip

    def _create(self, route: Route, body: Object, how: How) -> Answer:
        if route.resource == REVIEWS:
            asked = (body.get("spec") or {}).get("resourceAttributes") or {}
            allowed = self.faults.allows(asked.get("verb", ""), asked.get("resource", ""))
            return Answer(201, {**body, "status": {"allowed": allowed}})
        if route.resource.namespaced and not route.namespace:
            raise bad_request(f"{route.resource.plural} are created in a namespace")
        new, warnings = self.api.create(route.resource, route.namespace, body, how)
        return Answer(201, new, tuple(warnings))

    def _delete(self, route: Route, query: dict[str, str], options: Object, dry_run: bool) -> Answer:
        if "gracePeriodSeconds" in query:
            options = {**options, "gracePeriodSeconds": int(query["gracePeriodSeconds"])}
        if "propagationPolicy" in query:
            options = {**options, "propagationPolicy": query["propagationPolicy"]}
        if not route.name:
            test = selectors.both(query.get("labelSelector", ""), query.get("fieldSelector", ""))
            found, version = self.api.store.all_of(route.resource, route.namespace)
            gone = [entry for entry in found if test(entry)]
            for entry in gone:
                key = Key(route.resource, entry["metadata"].get("namespace", ""), entry["metadata"]["name"])
                self.api.delete(key, options, dry_run)
            return Answer(200, {
                "kind": f"{route.resource.kind}List", "apiVersion": route.resource.api_version,
                "metadata": {"resourceVersion": str(version)}, "items": gone,
            })  # fmt: skip
        last = self.api.delete(route.key, options, dry_run)
        if route.resource == PODS or self.api.exists(*route.key):
            return Answer(200, last)
        details = {
            "name": route.name, "group": route.resource.group, "kind": route.resource.plural,
            "uid": last["metadata"]["uid"],
        }  # fmt: skip
        return Answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": details})

    def _of_pod(self, method: str, route: Route, query: dict[str, str]) -> Answer:
        if route.resource != PODS:
            raise no_such_path()
        pod = self.api.store.get(route.key)
        if route.part == "eviction":
            self.kubelets.evict(route.key, pod["metadata"]["uid"])
            return Answer(201, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        if method != "GET":
            raise no_such_path()
        log = self.kubelets.log(pod, query.get("container", ""), _said(query, "previous"))
        if log is None:
            return Answer(200, [], kind="text/plain")
        since_s = seconds(query["sinceTime"]) if "sinceTime" in query else 0.0
        if "sinceSeconds" in query:
            since_s = self.api.clock() - int(query["sinceSeconds"])
        wanted = Wanted(
            since_s, int(query.get("tailLines", -1)), _said(query, "timestamps"),
            _said(query, "follow"), int(query.get("limitBytes", -1)),
        )  # fmt: skip
        return Answer(200, log.read(wanted, self.broken()), kind="text/plain")


def _padded(rest: list[str]) -> tuple[str, str]:
    return (rest[0] if rest else "", rest[1] if len(rest) > 1 else "")


def _said(query: dict[str, str], name: str) -> bool:
    """A parameter that is true; clients write it in several ways."""
    return name in query and query[name].lower() not in ("false", "0")


def _verb(method: str, route: Route, query: dict[str, str]) -> str:
    if method == "GET":
        return "watch" if _said(query, "watch") else "get" if route.name else "list"
    named = {"POST": "create", "PUT": "update", "PATCH": "patch"}
    return named.get(method) or ("delete" if route.name else "deletecollection")


def _decoded(body: bytes) -> Object:
    try:
        found = msgspec.json.decode(body) if body else {}
    except msgspec.DecodeError as error:
        raise bad_request(f"couldn't decode the body: {error}") from None
    if not isinstance(found, dict):
        raise bad_request("the body is no object")
    return found


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are written one after the other
    server: Server

    def do_GET(self) -> None:
        """Whatever the method is, `Site` knows."""
        site = self.server.site
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if length > _LARGEST:
                raise ApiError(413, "RequestEntityTooLarge", f"limit is {_LARGEST}")
            body = self.rfile.read(length)
            if site.token and self.headers.get("Authorization") != f"Bearer {site.token}":
                raise ApiError(401, "Unauthorized", "Unauthorized")
            kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip()
            if kind in _NOT_READ:
                raise ApiError(415, "UnsupportedMediaType", f"pmrun's fake cluster reads JSON, not {kind}")
            answer = site.answer(self.command, self.path, kind, body)
        except ApiError as error:
            self._send(Answer(error.code, error.status()), error.retry_after_s)
        except Exception as error:  # noqa: BLE001 - a mistake of ours is an answer, too: a client waits for one
            self._send(Answer(500, ApiError(500, "InternalError", f"Internal error occurred: {error!r}").status()))
        else:
            self._send(answer)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _send(self, answer: Answer, retry_after_s: int | None = None) -> None:
        self.send_response(answer.code)
        self.send_header("Content-Type", answer.kind)
        for text in answer.warnings:
            quoted = text.replace("\\", "\\\\").replace('"', '\\"')
            self.send_header("Warning", f'299 - "{quoted}"')
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        try:
            if isinstance(answer.body, dict):
                data = msgspec.json.encode(answer.body)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            else:
                self._stream(answer.body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _stream(self, pieces: Iterable[bytes]) -> None:
        streams = self.server.site.faults.streams
        self.send_header(*_CHUNKED)
        self.end_headers()
        for piece in pieces:
            if piece:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if self.server.site.faults.streams != streams:  # broken off: the client shall not read a regular end
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client may have gone first
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the user's terminal is not for this."""


class Server(http.server.ThreadingHTTPServer):
    """Listens on this machine alone."""

    daemon_threads = True

    def __init__(self, site: Site, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.site = site
