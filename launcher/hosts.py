# SPDX-License-Identifier: Apache-2.0
"""Which machines a job may use, and how many ranks each takes: --hosts, and the host files of MPI.

One line of a host file is `name slots=8` (Open MPI, DeepSpeed) or `name:8` (MPICH, Intel MPI); the two may be
mixed. A host that is named twice has the slots of both. Pure: text in, hosts out. Invariant: the order in which
hosts were given is kept, and no host comes twice.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAME = r"(?:[\w.-]+@)?(?:[\w.%-]+|\[[0-9A-Fa-f:.%\w]+\])"
_SLOTS_MAX = 1_000_000


class Host(NamedTuple):
    """A machine, as the user calls it. `slots` None: as many as it takes."""

    name: str
    slots: int | None


def parse_hosts(text: str) -> tuple[Host, ...]:
    """Hosts from "a:8,user@b:8,[fd00::3]:4,c"; ValueError with cause and remedy."""
    hosts = []
    for part in text.split(","):
        if not part.strip():
            raise ValueError("a name is missing between two commas; write a:8,b:8")
        hosts.append(_host(part.strip()))
    return merge(hosts)


def parse_host_file(text: str) -> tuple[Host, ...]:
    """Hosts from the content of a host file; ValueError says which line is wrong."""
    hosts = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            hosts.append(_line(words))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if not hosts:
        raise ValueError("no host is named in it")
    return merge(hosts)


def merge(hosts: list[Host]) -> tuple[Host, ...]:
    """Each host once, in the order of its first mention, with the sum of its slots."""
    slots: dict[str, int | None] = {}
    for host in hosts:
        if host.name in slots:
            known = slots[host.name]
            slots[host.name] = None if known is None or host.slots is None else known + host.slots
        else:
            slots[host.name] = host.slots
    return tuple(Host(name, count) for name, count in slots.items())


def spread(hosts: tuple[Host, ...], ranks: int | None) -> list[int]:
    """How many ranks each host gets; hosts that get none are left out at the end.

    Hosts with a number are filled in order; those without share evenly what is left. ValueError where it does not
    fit, or where nobody said how many there are.
    """
    known = sum(host.slots or 0 for host in hosts)
    open_ended = [host for host in hosts if host.slots is None]
    if ranks is None:
        if open_ended:
            raise ValueError(f"say how many ranks: -n N, or a number for each host: {open_ended[0].name}:4")
        return [host.slots or 0 for host in hosts]
    if ranks > known and not open_ended:
        listed = ",".join(f"{host.name}:{host.slots}" for host in hosts)
        raise ValueError(f"-n {ranks}: the hosts hold {known} ranks ({listed}); add hosts, or raise their numbers")
    left, shared = ranks, max(0, ranks - known)
    counts, sharers = [], len(open_ended)
    for host in hosts:
        if host.slots is None:
            count = -(-shared // sharers)
            shared, sharers = shared - count, sharers - 1
        else:
            count = min(host.slots, left)
        counts.append(count)
        left -= count
    return counts


def room(host: Host) -> int:
    """The most ranks that a host takes."""
    return _SLOTS_MAX if host.slots is None else host.slots


def share(ranks: int, nodes: int) -> tuple[int, ...]:
    """Ranks of each node, as even as can be, the first ones having one more."""
    return tuple(-(-(ranks - node) // nodes) for node in range(nodes))


def _host(text: str) -> Host:
    name, colon, slots = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        return Host(_checked(text), None)
    if ":" in name and not name.endswith("]"):
        raise ValueError(f"{text!r}: write an IPv6 address in brackets: [{text}]:4")
    return Host(_checked(name), _count(slots))


def _line(words: list[str]) -> Host:
    host = _host(words[0])
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not understood; write: name slots=8, or: name:8")
        if key == "slots":
            host = Host(host.name, _count(value))
        elif key in ("max_slots", "max-slots") and host.slots is not None and host.slots > _count(value):
            raise ValueError(f"{host.name} has more slots than {word}")
        elif key == "user":
            host = Host(f"{value}@{host.name}", host.slots)
    return host


def _checked(name: str) -> str:
    if not re.fullmatch(_NAME, name) or name.startswith("-"):
        raise ValueError(f"{name!r} is not a host's name; write a:8,b:8")
    return name


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _SLOTS_MAX:
        raise ValueError(f"{text!r} is not a number of ranks; write a whole number from 1 on")
    return int(text)
