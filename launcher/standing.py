# SPDX-License-Identifier: Apache-2.0
"""Which node of which job this is, for `pmrun agent`: from its options, else PMRUN_* variables, else the engine's own.

The engine's variables are those that src/pmrun/foreign.py knows: whatever starts one process on each node (srun, AWS
Batch, an Indexed Job of Kubernetes, mpirun) can start agents. The secret never comes from the command line; from it and
the engine's name for this try of the job follow the keys, and the port where the main node listens. Invariant: what the
options, the variables and the engine say of the same thing is the same, or it is a UsageError that names both.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, MutableMapping
from typing import Final, NamedTuple

from pmrun import env, foreign
from pmrun.errors import UsageError
from pmrun.launcher import keys, options as opt
from pmrun.launcher.meeting_place import addresses_here, split_main
from pmrun.launcher.one_node import Standing
from pmrun.launcher.option import Values, whole_number
from pmrun.secret import SECRET_BYTES, read_secret

Environ = MutableMapping[str, str]

_COUNT: Final = whole_number(1, 1_000_000, "the number of nodes")
_RANK: Final = whole_number(0, 999_999, "a node's number")


class Place(NamedTuple):
    """What `pmrun agent` found out."""

    standing: Standing
    num_nodes: int
    told_by: str  # the engine, and its name for this try; "" where options said all


def find_place(values: Values, environ: Environ) -> Place:
    """Read it; the secret is taken out of `environ`."""
    found = foreign.recognise(environ)
    if found is not None and found.local_world_size != 1:
        raise UsageError(
            f"{found.launcher} started {found.local_world_size} processes on this node, and each would be an agent: start one "
            "on each node (srun --ntasks-per-node=1, mpirun --map-by ppr:1:node)"
        )
    num_nodes = _num_nodes(values, environ, found)
    rank = _node_rank(values, environ, found)
    if rank is not None and rank >= num_nodes:
        raise UsageError(f"this is node {rank}, and there are {num_nodes}: nodes are numbered from 0")
    if rank is None and num_nodes == 1:
        rank = 0
    host, port = split_main(values.get(opt.MAIN) or (found.main_address if found is not None else ""))
    if not host and rank != 0:
        raise UsageError(f"say where the main node is: --main ADDRESS, or {env.MAIN} in the environment of each node")
    if rank is None:
        rank = 0 if addresses_here(host) else -1
    token = environ.get(env.RUN_TOKEN) or (found.job if found is not None else "")
    secret = keys.run_secret(_secret(values, environ), token)
    told_by = " ".join(part for part in (found.launcher if found is not None else "", token) if part)
    return Place(Standing(rank, host, port or keys.main_port(secret), secret), num_nodes, told_by)


def _num_nodes(values: Values, environ: Environ, found: foreign.Placement | None) -> int:
    said = {
        opt.NNODES.spelling: values.get(opt.NNODES),
        env.NUM_NODES: _number(environ, env.NUM_NODES, _COUNT),
        **({} if found is None else {found.launcher: found.world_size}),
    }
    count = _agreed(said, "nodes")
    if count is None:
        raise UsageError(f"say how many nodes the job has: --nnodes N, or {env.NUM_NODES} in each node's environment")
    return count


def _node_rank(values: Values, environ: Environ, found: foreign.Placement | None) -> int | None:
    return _agreed(
        {
            opt.NODE_RANK.spelling: values.get(opt.NODE_RANK),
            env.NODE_RANK: _number(environ, env.NODE_RANK, _RANK),
            **({} if found is None else {found.launcher: found.rank}),
        },
        "this node's number",
    )


def _agreed(said: dict[str, int | None], what: str) -> int | None:
    """What all who say it say."""
    known = {who: number for who, number in said.items() if number is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{who} {number}" for who, number in known.items())
        raise UsageError(f"{what}: {told}; they must agree: leave out what is wrong")
    return next(iter(known.values()), None)


def _number(environ: Environ, name: str, parse: Callable[[str], int]) -> int | None:
    text = environ.get(name, "")
    try:
        return parse(text) if text else None
    except ValueError as error:
        raise UsageError(f"{name}={text!r} in the environment: {error}") from None


def _secret(values: Values, environ: Environ) -> bytes:
    text = environ.pop(env.SECRET, "")
    path = values.get(opt.SECRET_FILE)
    if path is not None:
        return read_secret(path, opt.SECRET_FILE.spelling)
    if not text:
        raise UsageError(
            f"the job's secret is missing: give each node {env.SECRET_FILE} (or --secret-file FILE), or {env.SECRET}"
        )
    try:
        secret = (
            bytes.fromhex(text) if re.fullmatch(r"[0-9a-fA-F]{64}", text) else base64.b64decode(text, validate=True)
        )
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) < SECRET_BYTES:
        raise UsageError(
            f"{env.SECRET} in the environment is no secret: 64 hex digits, or base64 of {SECRET_BYTES} bytes"
        )
    return secret
