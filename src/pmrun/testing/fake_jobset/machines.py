# SPDX-License-Identifier: Apache-2.0
"""Where pods live: in namespaces of their own, or, without the right to make them, at loopback addresses.

With namespaces each pod has a network (one bridge joins all), a host name, a hosts file and a /dev/shm of its own, and
each container a process tree that ends with its first process, as in a real one. At loopback addresses a pod is its
processes, and its name is known to nobody but this module. Invariant: everything started here dies with the thread that
started it, also when that is killed: nothing has a name on the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final, Protocol

_NEEDED: Final = ("unshare", "nsenter", "ip", "mount", "setpriv")
_SPACES: Final = ["unshare", "--net", "--uts", "--ipc", "--mount", "--"]
_BOUND: Final = ["setpriv", "--pdeathsig", "KILL", "--"]
_POD: Final = """
set -e
echo "$1" > /proc/sys/kernel/hostname
mount --bind "$2" /etc/hosts
mount -t tmpfs -o size=64m tmpfs /dev/shm
ip link set lo up
echo up
read -r address
ip addr add "$address/16" dev eth0
ip link set eth0 up
echo ready
read -r end || exit 0
"""
_SWITCH: Final = """
set -e
ip link add br0 type bridge
ip link set br0 up
echo up
while read -r port; do ip link set "$port" master br0; ip link set "$port" up; echo ready; done
"""


class Machine(Protocol):
    """One pod's place."""

    ip: str

    def start(self, words: list[str], env: dict[str, str], cwd: str) -> subprocess.Popen[bytes]:
        """A container's first process; its output comes through a pipe."""

    def signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        """To the container's first process; SIGKILL ends the whole container."""

    def cut(self) -> None:
        """Its network is gone."""

    def close(self) -> None:
        """The place is gone."""


class Machines(Protocol):
    """Places for pods."""

    named: bool  # whether the names of pods can be looked up there

    def open(self, hostname: str, namespace: str, hosts: Path) -> Machine:
        """A place for one pod, whose /etc/hosts is this file."""

    def address(self, hostname: str, namespace: str) -> str:
        """Where a pod of this name is or will be; "" where that is not known before."""

    def close(self) -> None:
        """All that pods share."""


def choose(isolation: str) -> Machines:
    """By name: namespaces, loopback, or auto: the first of them that can be had; OSError says why it cannot."""
    if isolation == "loopback":
        return LoopbackMachines()
    why = _why_no_namespaces()
    if not why:
        return NamespaceMachines()
    if isolation == "namespaces":
        raise OSError(f"namespaces cannot be had here: {why}")
    return LoopbackMachines()


def _why_no_namespaces() -> str:
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install util-linux iproute2)"
    tried = subprocess.run(
        [*_SPACES, "ip", "link", "add", "br0", "type", "bridge"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip()


def _start(words: list[str], env: dict[str, str] | None = None, cwd: str | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=cwd, bufsize=0,
        start_new_session=True,
    )  # fmt: skip


# ---- namespaces -------------------------------------------------------------------------------------------


class _Holder:
    """A shell that holds namespaces, and answers a line for each line it is told; it ends with its input."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._shell = subprocess.Popen(
            [*_BOUND, *_SPACES, "sh", "-c", script, "holder", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
        )  # fmt: skip
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._told, self._said = self._shell.stdin, self._shell.stdout
        self.pid = self._shell.pid
        self._expect(b"up\n")

    def tell(self, line: str) -> None:
        """And wait until it is done."""
        self._told.write(f"{line}\n".encode())
        self._expect(b"ready\n")

    def close(self) -> None:
        """The namespaces end with the last process in them."""
        self._told.close()
        self._shell.kill()
        self._shell.wait()
        self._said.close()

    def _expect(self, word: bytes) -> None:
        said = self._said.readline()
        if said != word:
            self.close()
            raise OSError(f"a namespace was not set up: its shell said {said!r} instead of {word!r}")


class NamespaceMachines:
    """Pods with addresses 10.244.0.0/16 of their own."""

    named = True

    def __init__(self) -> None:
        self._switch = _Holder(_SWITCH)
        self._count = 0

    def open(self, hostname: str, namespace: str, hosts: Path) -> Machine:
        """A place for one pod."""
        self._count += 1
        ip = f"10.244.{self._count // 250}.{self._count % 250 + 2}"
        return _NamespaceMachine(self._switch, f"v{self._count}", hostname, hosts, ip)

    def address(self, hostname: str, namespace: str) -> str:
        """Nobody knows a pod's address before it is there."""
        return ""

    def close(self) -> None:
        """The bridge."""
        self._switch.close()


class _NamespaceMachine:
    def __init__(self, switch: _Holder, port: str, hostname: str, hosts: Path, ip: str) -> None:
        self.ip = ip
        self._holder = _Holder(_POD, hostname, str(hosts))
        ends = ["ip", "link", "add", port, "netns", str(switch.pid), "type", "veth", "peer", "name", "eth0"]
        try:
            subprocess.run([*ends, "netns", str(self._holder.pid)], check=True, capture_output=True)
            switch.tell(port)
            self._holder.tell(ip)
        except (OSError, subprocess.CalledProcessError):
            self._holder.close()
            raise

    def start(self, words: list[str], env: dict[str, str], cwd: str) -> subprocess.Popen[bytes]:
        """Its first process is number 1 of a process namespace."""
        into = ["nsenter", f"--target={self._holder.pid}", "--net", "--uts", "--ipc", "--mount", f"--wdns={cwd}", "--"]
        own = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]
        tools = {name: shutil.which(name) or name for name in ("setpriv", "nsenter", "unshare")}
        return _start([tools.get(word, word) for word in (*_BOUND, *into, *own)] + words, env)

    def signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        """Number 1 is the child of the process that we know, and ends with it."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with contextlib.suppress(OSError):
            first = children.read_text().split()
            if number == signal.SIGKILL or not first:  # unshare cannot pass this one on
                process.kill()
            else:
                os.kill(int(first[0]), number)

    def cut(self) -> None:
        """Its cable is pulled."""
        words = ["nsenter", f"--target={self._holder.pid}", "--net", "--", "ip", "link", "set", "eth0", "down"]
        subprocess.run(words, check=True, capture_output=True)

    def close(self) -> None:
        self._holder.close()


# ---- loopback ---------------------------------------------------------------------------------------------


class LoopbackMachines:
    """Pods at 127.0.0.2 and on, one address for each name."""

    named = False

    def __init__(self) -> None:
        self._addresses: dict[tuple[str, str], str] = {}

    def open(self, hostname: str, namespace: str, hosts: Path) -> Machine:
        """A place for one pod."""
        return _LoopbackMachine(self.address(hostname, namespace))

    def address(self, hostname: str, namespace: str) -> str:
        """That of the name, from the first time on that it is asked for."""
        number = len(self._addresses) + 1
        return self._addresses.setdefault((hostname, namespace), f"127.0.{number // 250}.{number % 250 + 1}")

    def close(self) -> None:
        """Nothing is shared."""


class _LoopbackMachine:
    def __init__(self, ip: str) -> None:
        self.ip = ip
        self._bound = _BOUND if shutil.which("setpriv") else []

    def start(self, words: list[str], env: dict[str, str], cwd: str) -> subprocess.Popen[bytes]:
        return _start([*self._bound, *words], env, cwd)

    def signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                os.kill(process.pid, number)

    def cut(self) -> None:
        raise OSError("a pod at a loopback address has no network that could be cut: that needs namespaces")

    def close(self) -> None:
        """Nothing was opened."""
