# SPDX-License-Identifier: Apache-2.0
"""Process 1 of a simulated node: makes the node its own, runs one container in it, and is its end.

Runs as `python -m pmrun.testing.node_process` with a pipe as its standard input: a line of JSON says what the container
is (`Container`), then each byte is an order: STOP is SIGTERM to the container's first process, KILL is the end of all.
The pipe is also the lifeline: when it ends, so does the node. It ends with the container's exit code, as a container
ends when its first process does. Invariant: when this process has ended, nothing that ran on the node is left, and
its folder is gone.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import socket
import sys
from typing import Final, NoReturn

import msgspec

from pmrun.launcher import process_tree, rank_process

STOP: Final = b"s"
KILL: Final = b"k"
NOT_STARTED: Final = 125  # the node could not be made: Docker's code for it
_SWEEP_S: Final = 5.0


class Container(msgspec.Struct, frozen=True):
    """What a node runs."""

    command: tuple[str, ...]
    env: dict[str, str]
    folder: str  # the node's own: what it writes beside the working directory, and that
    hostname: str = ""  # this and the next: only where the node has namespaces of its own
    hosts: str = ""  # the text of its /etc/hosts
    shared_memory_mib: int = 64  # of its /dev/shm


def main() -> int:
    """Be the node to the end of its container; returns the exit code."""
    with open(0, "rb", buffering=0, closefd=False) as lifeline:
        container = msgspec.json.decode(lifeline.readline(), type=Container)
    try:
        if container.hostname:
            _settle(container)
        else:
            rank_process.become_subreaper()
        work = os.path.join(container.folder, "work")
        os.mkdir(work)
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        here = os.getpid()
        first = os.fork()
        if first == 0:
            _become(container, work, here)
        return _watch(first, read_fd)
    finally:
        process_tree.sweep((), _SWEEP_S)
        shutil.rmtree(container.folder, ignore_errors=True)


def _settle(container: Container) -> None:
    """Name, hosts file and shared memory of a node that has namespaces for them."""
    socket.sethostname(container.hostname)
    hosts = os.path.join(container.folder, "hosts")
    with open(hosts, "w", encoding="utf-8") as file:
        file.write(container.hosts)
    _mount(hosts, "/etc/hosts", "", 4096, "")  # MS_BIND
    _mount("tmpfs", "/dev/shm", "tmpfs", 0, f"size={container.shared_memory_mib}m")


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _become(container: Container, work: str, parent: int) -> NoReturn:
    """In the child: the container's first process, which hears nothing of the node's orders."""
    try:
        rank_process.die_with_parent(parent, signal.SIGKILL)
        os.setsid()
        for number in (signal.SIGCHLD, signal.SIGPIPE):  # of which Python ignores the second
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(1, 2)
        os.chdir(work)
        os.execvpe(container.command[0], container.command, container.env)
    except OSError as error:
        os.write(1, f"exec: {container.command[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _watch(first: int, wakeups: int) -> int:
    """Obey until the container has ended, and take the children that come here."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(wakeups, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if 0 in ready:
            order = os.read(0, 1)
            if order == STOP:
                os.kill(first, signal.SIGTERM)
            elif order == KILL:
                os.kill(first, signal.SIGKILL)
            else:
                return 128 + signal.SIGKILL
        if wakeups in ready:
            os.read(wakeups, 4096)
            while (ended := _reaped())[0]:
                if ended[0] == first:
                    code = os.waitstatus_to_exitcode(ended[1])
                    return code if code >= 0 else 128 - code


def _reaped() -> tuple[int, int]:
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        print(f"the node could not be made: {error}", flush=True)
        sys.exit(NOT_STARTED)
