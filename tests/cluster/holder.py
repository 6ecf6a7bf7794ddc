# SPDX-License-Identifier: Apache-2.0
"""Process 1 of a machine of the test cluster: makes the machine its own, serves ssh, and is its end.

Runs as `python holder.py FOLDER NAME` in new network, mount, uts, ipc and process namespaces. Its standard input is
its lifeline: when that ends, so does process 1, and with it, by the kernel, everything on the machine. It reads one
line first, which says that the network is there. Imports nothing of pmrun.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path


def main(folder: Path, name: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    socket.sethostname(name)
    mount("-t", "tmpfs", "tmpfs", "/dev/shm")
    mount("-t", "tmpfs", "tmpfs", "/run")
    os.makedirs("/run/sshd", mode=0o755)
    mount("--bind", str(folder / "hosts"), "/etc/hosts")
    if Path("/etc/ssh/ssh_config").exists():
        mount("--bind", str(folder / "ssh_config"), "/etc/ssh/ssh_config")
    print("up", flush=True)
    sys.stdin.readline()
    daemon = None
    if name != "switch":
        log = open(folder / f"sshd-{name}.log", "wb")  # noqa: SIM115 - as long as this machine lives
        daemon = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
        wait_for_port(22)
    print("ready", flush=True)
    reap_until_end(daemon)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def wait_for_port(port: int) -> None:
    """Until somebody listens; a refused connection costs microseconds, and the test session has a deadline."""
    while True:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return


def reap_until_end(daemon: subprocess.Popen[bytes] | None) -> None:
    """As process 1: orphans come here. Ends with the lifeline."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    while True:
        readable, _, _ = select.select([0, read_fd], [], [])
        if 0 in readable and not os.read(0, 1024):
            return
        if read_fd in readable:
            os.read(read_fd, 1024)
            while _reaped():
                continue


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
