# SPDX-License-Identifier: Apache-2.0
"""What the options say about the machines of a job, checked together.

Invariant: `Nodes` that come out of here name each host once, with at least one rank, or are for nodes by hand with
all that these need; options that nobody would read are refused, not passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pmrun.errors import UsageError
from pmrun.launcher import options as opt
from pmrun.launcher.job import Nodes

if TYPE_CHECKING:
    from pmrun.launcher.hosts import Host


def read_nodes(values: opt.Values) -> tuple[Nodes, str, int | None]:
    """The nodes, the backend that they mean, and the number of ranks (None: not said, and one machine)."""
    ranks = values.get(opt.RANKS)
    hosts = _hosts(values)
    by_hand = values.get(opt.NNODES)
    backend = values.get(opt.BACKEND)
    if backend == "local":  # what a file or the environment says of machines does not matter then
        return Nodes(), backend, ranks
    if hosts and by_hand is not None:
        raise UsageError("--nnodes is for nodes that are started by hand, --hosts for ssh; give one of them")
    if backend == "ssh" and not hosts:
        raise UsageError("--on ssh: no host is named; give --hosts a:8,b:8 or --hostfile FILE")
    if backend == "by_hand" and by_hand is None:
        raise UsageError("--on by_hand: say how many nodes there are: --nnodes N")
    if by_hand is not None:
        return _by_hand(values, by_hand, ranks)
    _refuse(values, "--nnodes", opt.NODE_RANK, opt.SECRET_FILE)
    if not hosts:
        _refuse(values, "--hosts or --nnodes", opt.MAIN, opt.INTERFACE)
        return Nodes(), "local", ranks
    return _by_ssh(values, hosts, ranks)


def _by_ssh(values: opt.Values, hosts: tuple[Host, ...], ranks: int | None) -> tuple[Nodes, str, int]:
    import shlex

    from pmrun.launcher.hosts import spread

    try:
        counts = spread(hosts, ranks)
        ssh = tuple(shlex.split(values.get(opt.SSH)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not ssh:
        raise UsageError("--ssh: it is empty; leave it out for 'ssh'")
    used = tuple((host.name, count) for host, count in zip(hosts, counts, strict=True) if count)
    nodes = Nodes(hosts=used, ssh=ssh, main=values.get(opt.MAIN), interface=values.get(opt.INTERFACE))
    return nodes, "ssh", sum(counts)


def _hosts(values: opt.Values) -> tuple[Host, ...]:
    hosts = values.get(opt.HOSTS) or ()
    path = values.get(opt.HOSTFILE)
    if path is None:
        return hosts
    from pmrun.launcher.hosts import merge, parse_host_file

    try:
        with open(path, encoding="utf-8") as file:
            return merge([*hosts, *parse_host_file(file.read())])
    except OSError as error:
        raise UsageError(f"--hostfile {path}: {error.strerror}; check the path") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"--hostfile {path}: {error}") from None


def _by_hand(values: opt.Values, count: int, ranks: int | None) -> tuple[Nodes, str, int | None]:
    rank = values.get(opt.NODE_RANK)
    main, secret = values.get(opt.MAIN), values.get(opt.SECRET_FILE)
    if rank is not None and rank >= count:
        raise UsageError(f"--node-rank {rank}: the nodes of --nnodes {count} are 0 to {count - 1}")
    if main is None:
        raise UsageError("--nnodes: say where the main node listens: --main ADDRESS (one of node 0's addresses)")
    if secret is None:
        raise UsageError("--nnodes: give --secret-file FILE, the same on every node; make one with: pmrun secret FILE")
    if ranks is None:
        raise UsageError("--nnodes: say how many ranks there are on all nodes together: -n N")
    if ranks < count:
        raise UsageError(f"-n {ranks}: that is less than one rank for each of {count} nodes")
    nodes = Nodes(count=count, rank=rank, main=main, secret_file=secret, interface=values.get(opt.INTERFACE))
    return nodes, "by_hand", ranks


def _refuse(values: opt.Values, needed: str, *options: opt.Option[Any]) -> None:
    for option in options:
        if values.get(option) is not None:
            raise UsageError(f"{option.spelling} has no meaning without {needed}")
