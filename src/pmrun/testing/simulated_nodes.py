# SPDX-License-Identifier: Apache-2.0
"""Nodes on this machine: a process with a network address of its own, in which one container runs.

Where namespaces are permitted a node has its own network (10.78.x.y on one bridge), process numbers, host name, hosts
file and /dev/shm, and what this process serves is reached at the gateway. Elsewhere it has an address of 127.78.0.0/16
and shares the rest with everybody. Namespaces have no names: they are gone with the last process and descriptor.
Invariant: when a `Network` is closed none of its nodes is left, and they end too when this process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from pmrun.testing.node_process import KILL, STOP, Container

_CLONE_NEWNET: Final = 0x40000000
_UNSHARE: Final = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
_NODES_MAX: Final = 65_000
_T = TypeVar("_T")


class Node:
    """A node that runs, or has ended; `output` is what its container writes, in order, without blocking."""

    def __init__(self, process: subprocess.Popen[bytes], output: int, folder: str, address: str) -> None:
        self._process = process
        self._folder = folder
        self.output = output
        self.address = address
        self.ended = os.pidfd_open(process.pid)  # readable when it has

    def stop(self) -> None:
        """SIGTERM to the container's first process."""
        self._order(STOP)

    def kill(self) -> None:
        """End the container at once."""
        self._order(KILL)

    def close(self) -> int:
        """End the node, if it has not, and give back what it held; returns its exit code."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        code = self._process.wait()
        os.close(self.ended)
        os.close(self.output)
        shutil.rmtree(self._folder, ignore_errors=True)  # left where the node's own process was killed
        return code

    def _order(self, order: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just ended
            self._process.stdin.write(order)


class Network:
    """Where nodes are.

    Parameters
    ----------
    isolated : bool, optional
        Whether nodes get namespaces; default: where they may.
    """

    def __init__(self, isolated: bool | None = None) -> None:
        refusal = why_not_isolated() if isolated is None or isolated else "not wanted"
        if isolated and refusal:
            raise OSError(f"nodes cannot have namespaces here: {refusal}")
        self.isolated = not refusal
        self.gateway = "10.78.255.254" if self.isolated else "127.0.0.1"
        self._last = 0
        self._switch = -1
        if self.isolated:
            self._switch = _new_namespace()
            with self._undone_on_error():
                self.here(lambda: _ip("link set lo up", "link add br0 type bridge", "link set br0 up",
                                      f"addr add {self.gateway}/16 dev br0"))  # fmt: skip

    def address(self) -> str:
        """That of the next node; none is given twice."""
        self._last += 1
        if self._last > _NODES_MAX:
            raise OSError(f"all {_NODES_MAX} addresses of this network were given away: open a new one")
        return f"{'10' if self.isolated else '127'}.78.{self._last >> 8}.{self._last & 255}"

    def here(self, function: Callable[[], _T]) -> _T:
        """What `function` returns where nodes reach this process: a socket that it makes listens to them."""
        return _on_a_thread(function, self._switch) if self.isolated else function()

    def start(self, address: str, command: tuple[str, ...], env: dict[str, str], shared_memory_mib: int = 64) -> Node:
        """Run a container on a node with this address."""
        folder = tempfile.mkdtemp(prefix="pmrun-node-")
        hostname = f"ip-{address.replace('.', '-')}" if self.isolated else ""
        hosts = f"127.0.0.1 localhost\n{address} {hostname}\n"
        container = Container(command, env, folder, hostname, hosts, shared_memory_mib)
        words = [sys.executable, "-m", "pmrun.testing.node_process"]
        namespace = -1
        output, theirs = os.pipe()
        try:
            if self.isolated:
                words = [*_UNSHARE, *words]
                namespace = self._plug(address)
            process = _on_a_thread(
                lambda: subprocess.Popen(
                    words, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, bufsize=0, start_new_session=True
                ),
                namespace,
            )
        except BaseException:
            os.close(output)
            shutil.rmtree(folder)
            raise
        finally:
            os.close(theirs)
            if namespace >= 0:
                os.close(namespace)
        os.set_blocking(output, False)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(container) + b"\n")
        return Node(process, output, folder, address)

    def close(self) -> None:
        """The nodes were closed; now the network is gone as well."""
        if self._switch >= 0:
            os.close(self._switch)
            self._switch = -1

    def _plug(self, address: str) -> int:
        """A network namespace with this address, on the bridge."""
        namespace = _new_namespace()
        port = f"to-{self._last}"
        try:
            self.here(
                lambda: _ip(f"link add {port} type veth peer name eth0 netns /proc/self/fd/{namespace}",
                            f"link set {port} master br0 up", keep=namespace)
            )  # fmt: skip
            _on_a_thread(
                lambda: _ip("link set lo up", f"addr add {address}/16 dev eth0", "link set eth0 up",
                            f"route add default via {self.gateway}"),
                namespace,
            )  # fmt: skip
        except BaseException:
            os.close(namespace)
            raise
        return namespace

    @contextlib.contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def why_not_isolated() -> str:
    """Why nodes can have no namespaces here, or ""."""
    if os.geteuid() != 0:
        return "they need root"
    missing = [name for name in ("unshare", "ip") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install iproute2 util-linux)"
    tried = subprocess.run([*_UNSHARE, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if tried.returncode:
        return tried.stderr.strip()
    try:
        os.close(_new_namespace())
    except OSError as error:
        return str(error)
    return ""


def _on_a_thread(function: Callable[[], _T], namespace: int = -1) -> _T:
    """Run a function on a thread that is in a network namespace; -1: in a new one if it makes one, else in ours.

    A namespace is a thread's own, so this thread's ends with it, and all others stay where they are.
    """

    def enter_and_run() -> _T:
        if namespace >= 0:
            _libc("setns", namespace, _CLONE_NEWNET)
        return function()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter_and_run).result()


def _new_namespace() -> int:
    """The descriptor of a new network namespace, which lives as long as it, or a process in it."""

    def make() -> int:
        _libc("unshare", _CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _on_a_thread(make)


def _libc(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)


def _ip(*lines: str, keep: int | None = None) -> None:
    """Several commands of ip(8), where this thread is."""
    done = subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False,
        pass_fds=() if keep is None else (keep,),
    )  # fmt: skip
    if done.returncode:
        raise OSError(f"ip: {' '.join(done.stderr.split())}")
