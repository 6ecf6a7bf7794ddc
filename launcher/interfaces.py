# SPDX-License-Identifier: Apache-2.0
"""The addresses of this machine: which one routes to another machine, and which one the user asks for.

Nothing is bound to all interfaces: the address is the one from which the kernel would talk to the main node
(asked by connecting a datagram socket, which sends nothing), or that of --interface. Invariant: an address here
is a numeric one of this machine, IPv6 scopes included.
"""

from __future__ import annotations

import ctypes
import os
import socket
from typing import Final, NamedTuple

from pmrun.errors import UsageError

_ANY_PORT: Final = 9  # "discard": a port is needed to ask for a route, nothing is sent to it
_LOWEST_PORT: Final = 20000
_TRIES: Final = 64


class Address(NamedTuple):
    """One address of one interface."""

    interface: str
    ip: str


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = (
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
    ("netmask", ctypes.POINTER(_SockAddr)),
    ("destination", ctypes.POINTER(_SockAddr)),
    ("private", ctypes.c_void_p),
)


def addresses() -> list[Address]:
    """All addresses of interfaces that are up, in the kernel's order."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "getifaddrs")
    found: list[Address] = []
    try:
        entry = first
        while entry:
            item = entry.contents
            up = item.flags & 1
            if up and item.address:
                ip = _numeric(item.address.contents, item.name.decode())
                if ip is not None:
                    found.append(Address(item.name.decode(), ip))
            entry = item.next
    finally:
        libc.freeifaddrs(first)
    return found


def _numeric(address: _SockAddr, interface: str) -> str | None:
    data = bytes(address.data)
    if address.family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, data[2:6])
    if address.family == socket.AF_INET6:
        ip = socket.inet_ntop(socket.AF_INET6, data[6:22])
        return f"{ip}%{interface}" if ip.startswith("fe80:") else ip
    return None


def matching(wanted: str) -> str:
    """The address that --interface means: an interface's name, an address, or a network like 10.0.0.0/8.

    Of a name's addresses an IPv4 one is taken before IPv6, and a link-local one last. UsageError where none fits.
    """
    known = addresses()
    fits = [item.ip for item in known if _within(item.ip, wanted)]
    if not fits:
        fits = [item.ip for item in known if item.interface == wanted]
        fits.sort(key=lambda ip: (ip.startswith("fe80:"), ":" in ip))
    if fits:
        return fits[0]
    listed = ", ".join(f"{item.interface} {item.ip}" for item in known)
    raise UsageError(f"--interface {wanted}: {os.uname().nodename} has none like it; it has {listed}")


def _within(ip: str, network: str) -> bool:
    """Whether an address is of a network, if this is one."""
    import ipaddress  # milliseconds that a job on one machine need not pay

    try:
        return ipaddress.ip_address(ip.partition("%")[0]) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def resolve(host: str) -> list[str]:
    """Numeric addresses of a host, the preferred first; OSError where its name is not known (yet)."""
    found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(numeric(entry[4]) for entry in found))


def numeric(address: tuple[object, ...]) -> str:
    """The numeric address in what the socket module calls an address."""
    scope = address[3] if len(address) == 4 else 0
    return f"{address[0]}%{scope}" if scope and "%" not in str(address[0]) else str(address[0])


def route_to(ip: str) -> str | None:
    """This machine's address on the way to `ip`; None where there is no way."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect(socket.getaddrinfo(ip, _ANY_PORT, family, socket.SOCK_DGRAM)[0][4])
            return numeric(sock.getsockname())
    except OSError:  # gaierror too: not a numeric address
        return None


def is_loopback(ip: str) -> bool:
    """Whether an address leads no further than to this machine."""
    return ip == "::1" or ip.startswith("127.")


def is_here(ip: str) -> bool:
    """Whether an address is one of this machine's own."""
    return is_loopback(ip) or any(item.ip == ip for item in addresses())


def endpoint(ip: str, port: int) -> str:
    """As ZeroMQ and people write an address with its port."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def free_port() -> int:
    """A port that nobody has, outside the range from which the kernel serves outgoing connections."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="utf-8") as file:
            highest = int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        highest = 32768
    for attempt in range(_TRIES):
        port = 0
        if highest > _LOWEST_PORT and attempt + 1 < _TRIES:
            port = _LOWEST_PORT + int.from_bytes(os.urandom(4), "little") % (highest - _LOWEST_PORT)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return int(sock.getsockname()[1])
    return 0
