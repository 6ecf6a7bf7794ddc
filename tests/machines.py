# SPDX-License-Identifier: Apache-2.0
"""A cluster of machines on one: namespaces with addresses, host names, hosts files, /dev/shm and sshd of their own.

Machines a, b, c, ... have 10.77.0.1, .2, ... and fd77::1, ... on one bridge, which lives in a namespace too, so that
nothing of this machine's own network is touched and several clusters can exist at once. All see the same files.
Whoever holds a `Cluster` holds the lifelines of its machines: they end with it, also when it is killed.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HOLDER = Path(__file__).parent / "cluster" / "holder.py"
NEEDED = ("unshare", "nsenter", "ip", "mount", "ssh", "ssh-keygen")
UNSHARE = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
DAEMONS = ("sshd:", "/usr/sbin/sshd", "slurmd ", "slurmctld ", ": slurmscriptd")
DEADLINE_S = 30.0  # generous: these machines are shared; the tests of promptness have bounds of their own
NOBODY = "02:00:00:00:00:01"  # no interface has this hardware address
MARK = "TEST_RUN_OF_PMRUN"  # of tests/leak_guard.py: what sshd starts carries it too


def why_not() -> str:
    """Why there can be no cluster here, or ""."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if not os.access("/usr/sbin/sshd", os.X_OK):
        missing.append("sshd")
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install iproute2 openssh-server openssh-client)"
    tried = subprocess.run([*UNSHARE, "ip", "link", "add", "br0", "type", "bridge"], capture_output=True, text=True)
    return f"namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


def until(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Look again and again until `condition()` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for: {what}"
        select.select([], [], [], 0.02)


def parent(pid: int) -> int:
    """Whose child a process is."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


class Machine:
    """One namespace with its process 1."""

    def __init__(self, folder: Path, name: str, number: int) -> None:
        self.name = name
        self.address = f"10.77.0.{number + 1}"
        self.address6 = f"fd77::{number + 1}"
        self._unshare = subprocess.Popen(
            [*UNSHARE, sys.executable, str(HOLDER), str(folder), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == "up\n", f"machine {name} did not come up"
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
        self.pid = int(children.split()[0])  # of its process 1, as seen from outside

    def ready(self) -> None:
        """The network is there: start what serves it."""
        assert self._unshare.stdin is not None and self._unshare.stdout is not None
        self._unshare.stdin.write("go\n")
        self._unshare.stdin.flush()
        assert self._unshare.stdout.readline() == "ready\n", f"machine {self.name} has no sshd"

    def inside(self, command: Sequence[str]) -> list[str]:
        """The words that run a command there, in this folder."""
        return ["nsenter", f"--target={self.pid}", "--all", f"--wdns={os.getcwd()}", "--", *command]

    def run(self, *command: str, timeout: float = 30.0, **named: Any) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        return subprocess.run(self.inside(command), capture_output=True, text=True, timeout=timeout, **named)

    def popen(self, command: Sequence[str], **named: Any) -> subprocess.Popen[Any]:
        """Start a command there."""
        return subprocess.Popen(self.inside(command), **named)

    def processes(self) -> dict[int, str]:
        """What runs there: command lines by process id (of outside), without process 1, daemons and the ended."""
        return {pid: words for pid, words in self.everything().items() if not words.startswith(DAEMONS)}

    def sessions(self) -> dict[int, str]:
        """The processes of sshd that serve somebody."""
        return {
            pid: words
            for pid, words in self.everything().items()
            if words.startswith("sshd: ") and "[listener]" not in words
        }

    def everything(self) -> dict[int, str]:
        """Also the daemons that are part of the machine while they run."""
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = {}
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == self.pid:
                continue
            try:
                if os.readlink(f"/proc/{name}/ns/pid") != own:
                    continue
                words = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if words:
                found[int(name)] = words.strip()
        return found

    def until_quiet(self, timeout_s: float = DEADLINE_S) -> None:
        """Wait until nothing runs there any more."""
        until(lambda: not self.processes(), f"quiet on {self.name}: {self.processes()}", timeout_s)

    def link(self, up: bool) -> None:
        """Plug or unplug its cable."""
        self.run("ip", "link", "set", "eth0", "up" if up else "down", check=True)
        if up:
            self.run("ip", "addr", "replace", f"{self.address6}/64", "dev", "eth0", "nodad", check=True)

    def lose(self, others: Sequence[Machine], lost: bool) -> None:
        """Let everything that goes from here to some others be lost on the way, and nobody hear of it."""
        for address in [address for other in others for address in (other.address, other.address6)]:
            nobody = ["replace", address, "lladdr", NOBODY, "nud", "permanent"]
            self.run("ip", "neigh", *(nobody if lost else ["del", address]), "dev", "eth0", check=True)

    def listening(self) -> set[tuple[str, int]]:
        """Addresses and ports on which somebody listens there."""
        found = set()
        for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
            for line in Path(f"/proc/{self.pid}/net/{name}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                address, _, port = local.partition(":")
                if state == "0A":
                    words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
                    found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
        return found

    def outside(self, pid: int) -> int:
        """What a process that calls itself `pid` there is called outside; ProcessLookupError where it is gone."""
        for outer in self.everything():
            try:
                status = Path(f"/proc/{outer}/status").read_text()
            except OSError:  # it has just ended
                continue
            if int(status.partition("NSpid:")[2].split("\n")[0].split()[-1]) == pid:
                return outer
        raise ProcessLookupError(f"no process {pid} on {self.name}")

    def agents(self) -> tuple[int, int]:
        """The process ids of the keeper and the agent there, of one job on several machines."""
        found = [pid for pid, words in self.processes().items() if words == f"{sys.executable} -m pmrun agent"]
        (keeper,) = (pid for pid in found if parent(pid) not in found)
        (agent,) = set(found) - {keeper}
        return keeper, agent

    def close(self) -> None:
        assert self._unshare.stdin is not None and self._unshare.stdout is not None
        self._unshare.stdin.close()
        self._unshare.wait(10)
        self._unshare.stdout.close()


class Cluster:
    """Machines on one bridge. `folder` is the cluster's own."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        _write_files(folder, names)
        self.switch = Machine(folder, "switch", 250)
        self.machines: dict[str, Machine] = {}
        try:
            self.switch.run("ip", "link", "add", "br0", "type", "bridge", check=True)
            self.switch.run("ip", "link", "set", "br0", "up", check=True)
            for number, name in enumerate(names):
                self.machines[name] = Machine(folder, name, number)
                self._plug(self.machines[name])
            self.switch.ready()
            for machine in self.machines.values():
                machine.ready()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def _plug(self, machine: Machine) -> None:
        port = f"to-{machine.name}"
        self.switch.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", check=True)
        enter = ["nsenter", f"--target={self.switch.pid}", "--net", "--"]
        subprocess.run([*enter, "ip", "link", "set", "eth0", "netns", str(machine.pid)], check=True)
        self.switch.run("ip", "link", "set", port, "master", "br0", "up", check=True)
        for words in (
            "link set lo up", "link set eth0 up", f"addr add {machine.address}/24 dev eth0",
            f"addr add {machine.address6}/64 dev eth0 nodad",
        ):  # fmt: skip
            machine.run("ip", *words.split(), check=True)

    def until_quiet(self, timeout_s: float = DEADLINE_S) -> None:
        """Wait until nothing runs anywhere."""
        for machine in self.machines.values():
            machine.until_quiet(timeout_s)

    def close(self) -> None:
        for machine in [*self.machines.values(), self.switch]:
            machine.close()


def _write_files(folder: Path, names: Sequence[str]) -> None:
    """Keys, the hosts file, and both sides' configuration of ssh."""
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    lines += [f"10.77.0.{number + 1} {name}" for number, name in enumerate(names)]
    lines += [f"fd77::{number + 1} {name}6" for number, name in enumerate(names)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    known = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"* {known}")
    options: Mapping[str, object] = {
        "HostKey": folder / "host_key", "AuthorizedKeysFile": folder / "user_key.pub", "StrictModes": "no",
        "UsePAM": "no", "PermitRootLogin": "prohibit-password", "PidFile": "none", "MaxStartups": 200,
        "SetEnv": f"{MARK}={os.environ.get(MARK, '')} HOME={folder}",  # whose shell reads no start files of the user
    }  # fmt: skip
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder / 'user_key'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'known_hosts'}\n  GlobalKnownHostsFile none\n"
    )
