# SPDX-License-Identifier: Apache-2.0
"""Where the controller listens for the agents of other hosts, and which address each of them is told.

For each host the kernel says which of this machine's addresses routes to it; the controller binds those and no
others, and a host is told its own first. --interface and --main go over that. Names are those of ssh: where the
resolver does not know one, `ssh -G` says what the user's configuration means by it. Invariant: an address that a host
is told is one that is bound, or one that --main says leads there.
"""

from __future__ import annotations

import subprocess
from typing import Final, NamedTuple

from pmrun.errors import UsageError
from pmrun.launcher import interfaces
from pmrun.launcher.job import Nodes

_ALIAS_S: Final = 5.0
_ANYWHERE: Final = ("192.0.2.1", "2001:db8::1")  # documentation addresses: whatever the default route is


class MeetingPlace(NamedTuple):
    """The plan. `binds` are distinct; `ways` has each host's address of the controller, `here` who is this machine."""

    binds: tuple[str, ...]
    port: int  # 0: a free one
    ways: tuple[str, ...]
    here: tuple[bool, ...]
    public: tuple[str, int] | None  # what --main says, if its address is not one of this machine

    def addresses(self, node: int, endpoints: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
        """What one node is told, given what was bound: the likeliest first."""
        if self.public is not None:
            host, port = self.public
            return ((host, port or endpoints[0][1]),)
        return tuple(sorted(endpoints, key=lambda bound: bound[0] != self.ways[node]))


def plan_meeting(nodes: Nodes, names: list[str]) -> MeetingPlace:
    """Look up the hosts; UsageError where an option does not fit this machine."""
    found = [_resolve(name, nodes.ssh) for name in names]
    here = tuple("@" not in name and any(map(interfaces.is_here, ips)) for name, ips in zip(names, found, strict=True))
    host, port = split_main(nodes.main) if nodes.main is not None else ("", 0)
    if host:
        own = [ip for ip in _resolve(host, ()) if interfaces.is_here(ip)]
        if own:
            return MeetingPlace((own[0],), port, (own[0],) * len(names), here, None)
    if nodes.interface is not None:
        ip = interfaces.matching(nodes.interface)
        return MeetingPlace((ip,), port, (ip,) * len(names), here, (host, port) if host else None)
    known = [_way(ips) for ips in found]
    outside = next((way for way, local in zip(known, here, strict=True) if way and not local), None)
    if outside is not None:  # an agent here is reached by the others as they reach the controller
        known = [outside if local else way for way, local in zip(known, here, strict=True)]
    ways = [way or outside or any_way() for way in known]
    return MeetingPlace(tuple(dict.fromkeys(ways)), port, tuple(ways), here, (host, port) if host else None)


def any_way() -> str:
    """This machine's address on the way to wherever its default route leads, or the first that leads anywhere."""
    outward = (ip for _, ip in interfaces.addresses() if not interfaces.is_loopback(ip) and not ip.startswith("fe80:"))
    return next((way for way in map(interfaces.route_to, _ANYWHERE) if way), next(outward, "127.0.0.1"))


def addresses_here(host: str) -> list[str]:
    """The addresses of this machine among those of a host."""
    try:
        return [ip for ip in interfaces.resolve(host) if interfaces.is_here(ip)]
    except OSError:
        return []  # not known here, or not yet


def own_address(host: str, interface: str | None, named: str, remedy: str) -> str:
    """Where the main node listens, when all nodes were told that it is `host`.

    Parameters
    ----------
    host
        "" where nobody said.
    interface
        What the user wants instead, as --interface has it.
    named, remedy
        What names the host, and what names another interface, in the message where the host is no name of this machine.
    """
    if interface is not None:
        return interfaces.matching(interface)
    try:
        found = interfaces.resolve(host) if host else []
    except OSError:
        found = []  # the others will know the name by the time they dial it
    own = [ip for ip in found if interfaces.is_here(ip)]
    outward = [ip for ip in own if not interfaces.is_loopback(ip) or host in (ip, "localhost")]
    if outward:
        return outward[0]
    if own or not found:  # a machine's own name may mean 127.0.1.1 to itself
        return any_way()
    listed = ", ".join(f"{item.interface} {item.ip}" for item in interfaces.addresses())
    raise UsageError(
        f"{named} {host}: {', '.join(found)} is not this machine, which is node 0 and has {listed}; see {remedy}"
    )


def is_here(name: str) -> bool:
    """Whether a host is this machine."""
    return "@" not in name and any(map(interfaces.is_here, _resolve(name, ())))


def split_main(text: str) -> tuple[str, int]:
    """Host and port (0: none) from "10.0.0.1", "10.0.0.1:4000", "[fd00::1]:4000", "fd00::1" or a name."""
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")) or text.endswith("]"):
        return text.strip("[]"), 0
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UsageError(f"--main {text}: {port!r} is not a port; write ADDRESS or ADDRESS:PORT")
    return host.strip("[]"), int(port)


def _resolve(name: str, ssh: tuple[str, ...]) -> list[str]:
    """Addresses of a host; [] where nobody here knows it, and ssh must find out or say so."""
    bare = name.rpartition("@")[2]
    for host in (bare, _alias(bare, ssh) if ssh else None):
        try:
            if host is not None:
                return interfaces.resolve(host)
        except OSError:
            continue
    return []


def _alias(name: str, ssh: tuple[str, ...]) -> str | None:
    """What the configuration of ssh means by a name."""
    try:
        words = [*ssh, "-G", "--", name]
        said = subprocess.run(words, capture_output=True, timeout=_ALIAS_S, stdin=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = said.stdout.decode("utf-8", "replace").splitlines()
    real = next((line.split(None, 1)[1] for line in lines if line.startswith("hostname ")), name)
    return real if real != name else None


def _way(ips: list[str]) -> str | None:
    return next((way for way in map(interfaces.route_to, ips) if way), None)
