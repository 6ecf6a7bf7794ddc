# SPDX-License-Identifier: Apache-2.0
"""What the options say about the machines of a job, checked together.

Invariant: `Nodes` that come out of here name each host once, with at least one rank, or are for nodes by hand with
all that these need; options that are typed and nobody would read are refused, not passed over.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pmrun.errors import UsageError
from pmrun.launcher import options as opt
from pmrun.launcher.job import Nodes
from pmrun.launcher.option import NodeRange, Option, Values

if TYPE_CHECKING:
    from pmrun.launcher.hosts import Host


def read_nodes(values: Values) -> tuple[Nodes, str, int | None]:
    """The nodes, the backend that they mean, and the number of ranks (None: not said, and one machine)."""
    ranks = values.get(opt.RANKS)
    hosts = _hosts(values)
    by_hand = _range_by_hand(values, hosts)
    backend = values.get(opt.BACKEND)
    if backend == "local":  # what a file or the environment says of machines does not matter then
        return Nodes(), backend, ranks
    if hosts and by_hand is not None:
        raise UsageError("--nnodes is for nodes that are started by hand, --hosts for ssh; give one of them")
    if backend == "ssh" and not hosts:
        raise UsageError("--on ssh: no host is named; give --hosts a:8,b:8 or --hostfile FILE")
    if backend == "by_hand" and by_hand is None:
        raise UsageError("--on by_hand: say how many nodes there are: --nnodes N, or --nodes MIN:MAX")
    if by_hand is not None:
        return _by_hand(values, by_hand, ranks)
    _refuse(values, "--nnodes", opt.NODE_RANK, opt.SECRET_FILE)
    if not hosts:
        _refuse(values, "--hosts or --nnodes", opt.MAIN, opt.INTERFACE)
        return Nodes(), "local", ranks
    return _by_ssh(values, hosts, ranks)


def _range_by_hand(values: Values, hosts: tuple[Host, ...]) -> NodeRange | None:
    """Least and most nodes, where they are started by hand."""
    count, wanted = values.get(opt.NNODES), values.get(opt.NODES)
    if count is None:
        return None if hosts else wanted
    if wanted is not None:
        raise UsageError("--nnodes N is --nodes N:N for nodes that are started by hand; give one of them")
    return count, count


def _by_ssh(values: Values, hosts: tuple[Host, ...], ranks: int | None) -> tuple[Nodes, str, int]:
    import shlex

    from pmrun.launcher.hosts import room, spread

    least, most = values.get(opt.NODES) or (0, len(hosts))
    if most > len(hosts):
        raise UsageError(f"--nodes {least}:{most}: {len(hosts)} hosts are named; name as many as may be used")
    elastic = 0 < least < most
    if elastic and (ranks is not None or any(host.slots is None for host in hosts)):
        raise UsageError(
            "--nodes MIN:MAX: the hosts' numbers say how many ranks there are: --hosts a:8,b:8, without -n"
        )
    try:
        counts = spread(hosts[:most], ranks)
        ssh = tuple(shlex.split(values.get(opt.SSH)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not ssh:
        raise UsageError("--ssh: it is empty; leave it out for 'ssh'")
    used = tuple((host.name, count) for host, count in zip(hosts, counts, strict=False) if count)
    names = {name for name, _ in used}
    spares: tuple[tuple[str, int], ...] = ()
    if elastic or values.get(opt.MAX_RESTARTS):
        spares = tuple((host.name, room(host)) for host in hosts if host.name not in names)
    nodes = Nodes(
        hosts=used, spares=spares, least=least if elastic else None, ssh=ssh, main=values.get(opt.MAIN),
        interface=values.get(opt.INTERFACE),
    )  # fmt: skip
    return nodes, "ssh", sum(counts)


def _hosts(values: Values) -> tuple[Host, ...]:
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


def _by_hand(values: Values, wanted: NodeRange, ranks: int | None) -> tuple[Nodes, str, int | None]:
    least, count = wanted
    name = "--nnodes" if values.get(opt.NNODES) is not None else "--nodes"
    rank = values.get(opt.NODE_RANK)
    main, secret = values.get(opt.MAIN), values.get(opt.SECRET_FILE)
    if rank is not None and rank >= count:
        raise UsageError(f"--node-rank {rank}: the nodes of {name} {count} are 0 to {count - 1}")
    if main is None:
        raise UsageError(f"{name}: say where the main node listens: --main ADDRESS (one of node 0's addresses)")
    if secret is None:
        raise UsageError(f"{name}: give --secret-file FILE, the same on every node; make one with: pmrun secret FILE")
    if ranks is None:
        raise UsageError(f"{name}: say how many ranks there are on all nodes together: -n N")
    if ranks < count:
        raise UsageError(f"-n {ranks}: that is less than one rank for each of {count} nodes")
    if least < count and ranks % count:
        raise UsageError(f"-n {ranks}: with --nodes MIN:MAX all nodes have equally many ranks: a multiple of {count}")
    nodes = Nodes(
        count=count, least=least if least < count else None, rank=rank, main=main, secret_file=secret,
        interface=values.get(opt.INTERFACE),
    )  # fmt: skip
    return nodes, "by_hand", ranks


def _refuse(values: Values, needed: str, *options: Option[Any]) -> None:
    """As a variable they may also be for ranks of another launcher in the same script, and are passed over."""
    for option in options:
        if values.get(option) is not None and not os.environ.get(option.variable):
            raise UsageError(f"{option.spelling} has no meaning without {needed}")
