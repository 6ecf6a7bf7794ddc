# SPDX-License-Identifier: Apache-2.0
"""Gangs that other launchers started over several nodes: a real mpiexec, and each launcher's exact environment."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import machines
from pmrun import env

HYDRA = Path(sys.executable).parent / "mpiexec.hydra"
STEWARD = "pmrun.launcher.steward"

REPORT = """
import os, sys
import pmrun as pm
pm.store.set(f"before/{pm.rank()}", f"{pm.rank()}{os.uname().nodename} ")
world = pm.init()
total = sum(world.allgather_object(world.rank + 1))
heard = b"".join(pm.store.get_many(f"before/{i}" for i in range(world.size))).decode()
place = f"{pm.local_rank()}/{pm.local_world_size()} {pm.node_rank()}/{pm.num_nodes()} {pm.current.parallel.main_ip}"
sys.stdout.write(f"{world.rank == pm.rank()} {total} {heard}{place} {','.join(pm.current.peers())}\\n")
world.barrier()
"""

Place = dict[str, str]


def torchrun(hosts: str, rank: int, size: int, here: tuple[int, int], node: int) -> Place:
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(here[0]), "LOCAL_WORLD_SIZE": str(here[1]),
        "GROUP_RANK": str(node), "GROUP_WORLD_SIZE": str(len(hosts)), "MASTER_ADDR": hosts[0], "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip


def srun(hosts: str, rank: int, size: int, here: tuple[int, int], node: int, tasks: str = "") -> Place:
    return {
        "SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(size), "SLURM_LOCALID": str(here[0]),
        "SLURM_NODEID": str(node), "SLURM_STEP_NUM_NODES": str(len(hosts)), "SLURM_STEP_NODELIST": ",".join(hosts),
        "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0",
    }  # fmt: skip


def batch(hosts: str, rank: int, size: int, here: tuple[int, int], node: int) -> Place:
    place = {
        "AWS_BATCH_JOB_NODE_INDEX": str(rank), "AWS_BATCH_JOB_NUM_NODES": str(size), "AWS_BATCH_JOB_ATTEMPT": "1",
        "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0", "AWS_BATCH_JOB_ID": f"5a1b2c3d-0000#{rank}",
    }  # fmt: skip
    if rank:
        place["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = address(hosts[0])
    return place


def metaflow(hosts: str, rank: int, size: int, here: tuple[int, int], node: int) -> Place:
    return {
        "MF_PARALLEL_NODE_INDEX": str(rank), "MF_PARALLEL_NUM_NODES": str(size), "MF_PARALLEL_CONTROL_TASK_ID": "2",
        "MF_PARALLEL_MAIN_IP": address(hosts[0]),
    }  # fmt: skip


def jobset(hosts: str, rank: int, size: int, here: tuple[int, int], node: int) -> Place:
    return {
        "JOB_COMPLETION_INDEX": str(rank), env.NUM_NODES: str(size), env.MAIN_IP: hosts[0], "JOBSET_NAME": "train",
        "JOBSET_RESTART_ATTEMPT": "0",
    }  # fmt: skip


def address(host: str) -> str:
    return f"10.77.0.{ord(host) - ord('a') + 1}"


class Launch:
    """Ranks on machines of the cluster, started as a launcher would; this process stands for the launcher."""

    def __init__(self, cluster: machines.Cluster, directory: Path, secret: str) -> None:
        self._cluster = cluster
        self._directory = directory
        self.secret = secret
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, contract: Callable[..., Place], hosts: str, counts: tuple[int, ...], body: str, **changes: Any) -> list[subprocess.Popen[str]]:  # fmt: skip
        """Start `counts[i]` ranks on host i; `only` names ranks to start, other words change the environment."""
        script = self._directory / f"body{len(self.started)}.py"
        script.write_text(textwrap.dedent(body))
        only = changes.pop("only", range(sum(counts)))
        begun = []
        for node, (host, count) in enumerate(zip(hosts, counts, strict=True)):
            for local in range(count):
                rank = sum(counts[:node]) + local
                named = {"tasks": ",".join(map(str, counts))} if contract is srun else {}
                place = contract(hosts, rank, sum(counts), (local, count), node, **named)
                if rank in only:
                    variables = {**os.environ, env.SECRET_FILE: self.secret, **place, **changes}
                    begun.append(self._cluster[host].popen(
                        [sys.executable, str(script)], env=variables, text=True, stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    ))  # fmt: skip
        self.started += begun
        return begun


@pytest.fixture
def launch(cluster: machines.Cluster, tmp_path: Path) -> Iterator[Launch]:
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(32))
    secret.chmod(0o600)
    item = Launch(cluster, tmp_path, str(secret))
    yield item
    for process in item.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def said(ranks: list[subprocess.Popen[str]]) -> list[str]:
    """What each printed, once all ended well."""
    outputs = [process.communicate(timeout=machines.DEADLINE_S) for process in ranks]
    assert [process.returncode for process in ranks] == [0] * len(ranks), outputs
    assert [error for _, error in outputs] == [""] * len(ranks)
    return [output for output, _ in outputs]


def reports(hosts: str, counts: tuple[int, ...]) -> list[str]:
    """What REPORT prints on each rank."""
    size, nodes = sum(counts), range(len(hosts))
    by_rank = [node for node in nodes for _ in range(counts[node])]
    heard = "".join(f"{rank}{hosts[node]} " for rank, node in enumerate(by_rank))
    peers = ",".join(map(address, hosts))
    return [
        f"True {size * (size + 1) // 2} {heard}{rank - sum(counts[:node])}/{counts[node]} {node}/{len(hosts)} "
        f"{address(hosts[0])} {peers}\n"
        for rank, node in enumerate(by_rank)
    ]


def test_every_contract_at_once_with_one_secret(launch: Launch) -> None:
    """Gangs of five launchers on the same machines do not meet each other."""
    gangs = [
        (torchrun, "ab", (2, 2)), (srun, "ac", (2, 1)), (batch, "bc", (1, 1)), (metaflow, "cd", (1, 1)),
        (jobset, "bd", (1, 1)),
    ]  # fmt: skip
    running = [launch(*gang, REPORT) for gang in gangs]
    for ranks, (_, hosts, counts) in zip(running, gangs, strict=True):
        assert said(ranks) == reports(hosts, counts)


def test_a_real_mpiexec(launch: Launch, cluster: machines.Cluster, tmp_path: Path) -> None:
    if not HYDRA.exists():
        pytest.skip("MPICH is not installed: make dev does it")
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    words = [str(HYDRA), "-launcher", "ssh", "-hosts", "b:2,a:1", "-n", "3", sys.executable, str(script)]
    named = {env.SECRET_FILE: launch.secret, env.MAIN: "b"}
    done = cluster["b"].run(*words, env={**os.environ, **named})
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines(True)) == sorted(reports("ba", (2, 1)))


# ---- starts that fail -------------------------------------------------------------------------------------

FAILING = """
import pmrun as pm
try:
    pm.init()
except pm.LaunchError as error:
    print(error)
"""


def test_who_is_missing_is_named(launch: Launch, tmp_path: Path) -> None:
    """A node that does not come at all, beside one that has another secret; and a rank of a node, in another gang."""
    other = tmp_path / "other"
    other.write_bytes(os.urandom(32))
    other.chmod(0o600)
    named = {env.JOIN_TIMEOUT: "2", env.MAIN: "10.77.0.1:4444"}
    main = launch(batch, "abc", (1, 1, 1), FAILING, only=[0], **named)
    stranger = launch(batch, "abc", (1, 1, 1), FAILING, only=[1], **{**named, env.SECRET_FILE: str(other)})
    ranks = launch(torchrun, "cd", (2, 2), FAILING, only=[0, 1, 2], **{env.JOIN_TIMEOUT: "2"})
    (text,) = said(main)
    assert text.startswith("not all ranks called pm.init() within 2 s: waited for ranks 1-2 of 3 (there are 0 on a); ")
    assert text.endswith("without this job's secret refused (the last from 10.77.0.2)\n")
    assert said(stranger)[0].startswith("10.77.0.1:4444 answers, but it does not take our secret")
    told = (
        "not all ranks called pm.init() within 2 s: waited for ranks 2-3 of 4 (there are 0-1 on c; not all have come on d)\n",
        "1 of the 2 ranks on d did not call pm.init() within 2 s: every rank must (2 did)\n",
    )
    assert all(text in told for text in said(ranks)), "whoever's time is up first tells all"


def test_ranks_that_are_dealt_out_in_turn_are_refused(launch: Launch) -> None:
    """As `srun -m cyclic` does. A node that comes when the start has failed hears of it too."""

    def cyclic(hosts: str, rank: int, size: int, here: tuple[int, int], node: int, tasks: str = "") -> Place:
        return srun(hosts, 2 * here[0] + node, size, here, node, "2,2")

    first = launch(cyclic, "ab", (2, 2), FAILING, only=[0, 1])
    assert all(select.select([rank.stdout], [], [], machines.DEADLINE_S)[0] for rank in first)
    texts = said(first + launch(cyclic, "ab", (2, 2), FAILING, only=[2, 3]))
    refusal = (
        r"ranks (0, 2 are on a|1, 3 are on b): pmrun needs ranks with consecutive numbers on each node; start them "
    )
    assert all(re.match(refusal + "with srun --distribution=block", text) for text in texts), texts


# ---- ends -------------------------------------------------------------------------------------------------


def test_a_rank_is_killed_on_another_node(launch: Launch) -> None:
    ranks = launch(
        srun, "ab", (1, 2),
        """
        import os, signal
        import pmrun as pm
        world = pm.init()
        try:
            world.barrier()
            if world.rank == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            pm.store.get("never") if world.rank == 0 else world.barrier()
        except pm.RankFailed as error:
            print(error.rank, error.node, error.reason)
        """,
    )  # fmt: skip
    began = time.monotonic()
    outputs = [process.communicate(timeout=machines.DEADLINE_S) for process in ranks]
    assert time.monotonic() - began < 5.0, (
        "the others' end does not wait for what the dead rank would have acknowledged"
    )
    told = "2 b its process ended without leaving (killed by a signal, or os._exit)\n"
    assert outputs == [(told, ""), (told, ""), ("", "")]


@pytest.mark.parametrize("victim", ["rank 0", "the steward of rank 0's node"])
def test_the_main_node_suffers(launch: Launch, cluster: machines.Cluster, victim: str) -> None:
    ranks = launch(
        batch, "ab", (1, 1),
        """
        import pmrun as pm
        world = pm.init()
        print("ready", flush=True)
        try:
            world.barrier() if world.rank else pm.store.get("never")
            world.barrier()
        except pm.PmrunError as error:
            print(type(error).__name__, error)
        """,
    )  # fmt: skip
    for process in ranks:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    stewards = {pid for pid, words in cluster["a"].processes().items() if STEWARD in words}
    others = set(cluster["a"].processes()) - stewards
    for pid in stewards if victim != "rank 0" else others:
        os.kill(pid, signal.SIGKILL)
    first, second = (process.communicate(timeout=machines.DEADLINE_S)[0] for process in ranks)
    if victim == "rank 0":
        assert second.startswith("RankFailed rank 0 on a") and "killed by a signal" in second, second
    else:
        assert "the steward of this gang is gone" in first or "its host closed the connection" in first, first
        assert second.startswith("RankFailed rank 0 on 10.77.0.1") and "its node is lost" in second, second
