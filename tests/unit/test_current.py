# SPDX-License-Identifier: Apache-2.0
"""Where a process stands, as the environment says; and what importing pmrun loads."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import pmrun as pm
from pmrun import env, operations
from pmrun.place import Parallel


def test_plain_python_is_a_world_of_one() -> None:
    assert (pm.rank(), pm.world_size(), pm.local_rank(), pm.local_world_size(), pm.node_rank()) == (0, 1, 0, 1, 0)
    parallel = pm.current.parallel
    assert (parallel.main_ip, parallel.num_nodes, parallel.node_index) == ("127.0.0.1", 1, 0)
    assert parallel.control_task_id == "local-0"
    assert pm.current.is_parallel is False
    assert pm.peers == ("127.0.0.1",)


def test_a_rank_reads_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        env.RANK: "5", env.WORLD_SIZE: "8", env.LOCAL_RANK: "1", env.LOCAL_WORLD_SIZE: "4", env.NODE_RANK: "1",
        env.NUM_NODES: "2", env.MAIN_IP: "10.0.0.1", env.PEERS: "10.0.0.1,10.0.0.2", env.JOB_ID: "job-7",
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert (pm.rank(), pm.world_size(), pm.local_rank(), pm.local_world_size(), pm.node_rank()) == (5, 8, 1, 4, 1)
    parallel = pm.current.parallel
    assert (parallel.main_ip, parallel.num_nodes, parallel.node_index) == ("10.0.0.1", 2, 1)
    assert parallel.control_task_id == "job-7-0"
    assert pm.current.is_parallel
    assert pm.peers == ("10.0.0.1", "10.0.0.2")


def test_a_rank_of_another_launcher_reads_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "AWS_BATCH_JOB_NODE_INDEX": "2", "AWS_BATCH_JOB_NUM_NODES": "4", "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0",
        "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.1", "AWS_BATCH_JOB_ID": "job#2",
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert (pm.rank(), pm.world_size(), pm.local_rank(), pm.local_world_size(), pm.node_rank()) == (2, 4, 0, 1, 2)
    assert pm.current.parallel == Parallel("10.0.0.1", 4, 2, "job")
    assert pm.current.is_parallel
    with pytest.raises(pm.UsageError, match="no node's address is known but the main one's"):
        _ = pm.peers


def test_open_mpi_does_not_number_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_SIZE", "4")):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    assert (pm.rank(), pm.local_rank()) == (5, 1)
    with pytest.raises(pm.UsageError, match=r"before pm.init\(\) Open MPI tells neither a node's number"):
        pm.node_rank()


@pytest.mark.parametrize("name", [env.RANK, env.WORLD_SIZE, env.NUM_NODES])
def test_a_broken_environment_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "many")
    with pytest.raises(pm.UsageError, match=f"{name}='many'"):
        _ = (pm.rank(), pm.world_size(), pm.num_nodes())


def test_names_that_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pm.nothing
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pm.current.nothing
    assert {"init", "allreduce", "world", "peers", "current", "Communicator"} <= set(dir(pm))


def test_importing_loads_neither_numpy_nor_the_core() -> None:
    code = (
        "import sys, pmrun as pm\n"
        "pm.rank(), pm.current.parallel, pm.peers, pm.RankFailed\n"
        "print(*[name for name in ('numpy', 'pmrun._native', 'asyncio', 'pickle') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert run.stdout.strip() == ""


def test_the_operations_that_are_named_are_those_that_are_typed() -> None:
    typed = [name for name, kind in vars(operations).items() if isinstance(kind, types.BuiltinFunctionType)]
    assert sorted(typed) == sorted(name for name, home in pm._HOME.items() if home == "pmrun.operations")


def test_every_public_name_resolves() -> None:
    code = (
        "import pmrun as pm\n"
        "pm.init()\n"
        "print(*[name for name in pm.__all__ if getattr(pm, name) is None or not hasattr(pm, name)])\n"
        "print(*[name for name in dir(pm.Communicator) if name[0] != '_' and not getattr(pm.Communicator, name).__doc__])"
    )
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert run.stdout.split() == []
