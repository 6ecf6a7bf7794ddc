# SPDX-License-Identifier: Apache-2.0
"""A cluster in a process of its own, as a test holds it.

The process gets its options and lives as long as the pipe on its standard input: it ends, and everything in it, with
`close`, and with the process that holds it. Invariant: after `close` there is no process, no namespace and no file.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from pmrun.testing.fake_jobset.options import Options

_END_S: Final = 30.0


class FakeJobSet:
    """A cluster that runs; a context manager. `start` makes one."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="pmrun-fake-jobset-"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pmrun.testing.fake_jobset", "--serve", str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(options) + b"\n")
            self._process.stdin.flush()
            self.url: str = msgspec.json.decode(self._process.stdout.readline())["url"]
        except (OSError, msgspec.DecodeError):
            self.close()
            raise RuntimeError("the fake cluster did not start; its own words are above") from None
        self.kubeconfig = self.folder / "kubeconfig"
        self.kubeconfig.write_text(kubeconfig(self.url, options.token))

    def __enter__(self) -> FakeJobSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and all that runs in it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it ended before it read its options
                self._process.stdin.close()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_pod(self, pod: str, signal: int = 9, namespace: str = "default", *, out_of_memory: bool = False) -> None:
        """A signal to its first processes; `out_of_memory`: and the kernel is said to have done it."""
        self._command("kill", pod=pod, namespace=namespace, signal=signal, out_of_memory=out_of_memory)

    def evict_pod(self, pod: str, by: str = "api", namespace: str = "default") -> None:
        """End a pod for no fault of its own; `by`: api, preemption, taint, kubelet."""
        self._command("evict", pod=pod, namespace=namespace, by=by)

    def cut_pod(self, pod: str, namespace: str = "default") -> None:
        """Take a pod's network away; needs namespaces."""
        self._command("cut", pod=pod, namespace=namespace)

    def lose_node(self, node: str) -> None:
        """A node loses its power; the API learns of it late."""
        self._command("lose-node", node=node)

    def return_node(self, node: str) -> None:
        """It is there again, without its pods' processes."""
        self._command("return-node", node=node)

    def fail_requests(
        self, code: int, times: int = -1, verb: str = "", plural: str = "", retry_after_s: int | None = None
    ) -> None:
        """Answer requests with an error: 401, 403, 429, 500, 503; 403 also is what access reviews say."""
        self._command("fail-requests", code=code, times=times, verb=verb, plural=plural, retry_after_s=retry_after_s)

    def heal_requests(self) -> None:
        """All requests work again."""
        self._command("heal-requests")

    def break_streams(self) -> None:
        """End all watches and followed logs in the middle."""
        self._command("break-streams")

    def expire_history(self) -> None:
        """Watches cannot go on from where they were: 410."""
        self._command("expire-history")

    def _command(self, name: str, **body: Any) -> None:
        headers = {"Authorization": f"Bearer {self.options.token}"} if self.options.token else {}
        request = urllib.request.Request(f"{self.url}/fake/{name}", msgspec.json.encode(body), headers)
        try:
            with urllib.request.urlopen(request, timeout=_END_S):
                pass
        except urllib.error.HTTPError as error:
            raise RuntimeError(msgspec.json.decode(error.read())["message"]) from None


def start(options: Options | None = None) -> FakeJobSet:
    """A cluster, ready for requests."""
    return FakeJobSet(options or Options())


def kubeconfig(url: str, token: str) -> str:
    """What kubectl and the client libraries read. Without TLS, kubectl sends no token."""
    user = {"token": token} if token else {}
    return msgspec.json.encode({  # which is YAML, too
        "apiVersion": "v1", "kind": "Config", "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "fake", "user": user}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "default"}}],
    }).decode()  # fmt: skip
