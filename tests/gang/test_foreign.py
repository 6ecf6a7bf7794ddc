# SPDX-License-Identifier: Apache-2.0
"""Gangs that other launchers started: real mpirun and torchrun where they are installed, and their exact environments.

MPICH and torch are looked for where `python benchmarks/peers.py` puts them, MPICH also beside this Python.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import leak_guard
from pmrun import env, meeting, store_wire, window

BENCH = Path(__file__).resolve().parents[2] / ".venv-bench"
ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
COMMANDS = {
    "mpich": ([Path(sys.executable).parent / "mpiexec.hydra", BENCH / "mpich/bin/mpiexec.hydra"], ["-n", "3"]),
    "openmpi": ([BENCH / "openmpi/bin/mpirun"], ["--oversubscribe", "-n", "3"]),
    "torchrun": ([BENCH / "gloo/bin/torchrun"], ["--standalone", "--nproc-per-node", "3", "--no-python"]),
}
DEADLINE_S = 60.0


class Ranks:
    """Processes with the environment that a launcher would give them; this process stands for the launcher."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, body: str, places: Sequence[dict[str, str]], **changes: str) -> None:
        script = self._directory / "body.py"
        script.write_text(textwrap.dedent(body))
        command = [sys.executable, str(script)]
        for place in places:
            variables = {**os.environ, **place, **changes}
            process = subprocess.Popen(
                command,
                env=variables,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self.processes.append(process)

    def finish(self) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of each."""
        outputs = [process.communicate(timeout=DEADLINE_S) for process in self.processes]
        return [(process.returncode, *texts) for process, texts in zip(self.processes, outputs, strict=True)]

    def line(self, place: int) -> str:
        """The next line that one of them prints."""
        stream = self.processes[place].stdout
        assert stream is not None and select.select([stream], [], [], DEADLINE_S)[0]
        return stream.readline().strip()

    def destroy(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    item = Ranks(tmp_path)
    yield item
    item.destroy()
    by = time.monotonic() + 10
    while names():  # the steward's, which ends with them
        assert time.monotonic() < by, "a meeting point was left"
        select.select([], [], [], 0.01)


def mpich(size: int, *which: int) -> list[dict[str, str]]:
    """MPICH's environment of all ranks, or of some."""
    return [
        {"PMI_RANK": str(r), "PMI_SIZE": str(size), "MPI_LOCALRANKID": str(r), "MPI_LOCALNRANKS": str(size)}
        for r in (which or range(size))
    ]


def names() -> list[str]:
    """Abstract names at which ranks of this user may meet now."""
    return re.findall(rf"@{meeting.name_prefix()}\S+", Path("/proc/net/unix").read_text())


REPORT = """
import os, signal, sys
import numpy as np
import pmrun as pm
pm.store.set(f"before/{pm.rank()}", str(pm.rank()))
world = pm.init()
total = world.allreduce(np.full(1000, world.rank + 1.0))
heard = b"".join(pm.store.get_many(f"before/{i}" for i in range(world.size)))
place = (pm.world_size(), pm.local_world_size(), pm.num_nodes(), pm.current.is_parallel)
sys.stdout.write(f"{world.rank == pm.rank()} {world.size} {total[0]} {heard} {place}\\n")
world.barrier()
"""


@pytest.mark.parametrize("launcher", COMMANDS)
def test_real_launchers(launcher: str, tmp_path: Path) -> None:
    places, options = COMMANDS[launcher]
    command = next((place for place in places if place.exists()), None)
    if command is None:
        pytest.skip(f"{launcher} is not installed: python benchmarks/peers.py does it")
    script = tmp_path / "body.py"
    script.write_text(REPORT)
    run = subprocess.run(
        [command, *options, sys.executable, script], env={**os.environ, **ROOT_MAY, "TMPDIR": str(tmp_path)}, text=True, capture_output=True,
        check=False, timeout=DEADLINE_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["True 3 6.0 b'012' (3, 3, 1, True)"] * 3


def test_nodes_that_metaflow_plays_on_one_machine(ranks: Ranks) -> None:
    places = [
        {
            "MF_PARALLEL_NODE_INDEX": str(i), "MF_PARALLEL_NUM_NODES": "3", "MF_PARALLEL_MAIN_IP": "127.0.0.1",
            "MF_PARALLEL_CONTROL_TASK_ID": "2",
        }
        for i in range(3)
    ]  # fmt: skip
    ranks.start(REPORT, places)
    assert ranks.finish() == [(0, "True 3 6.0 b'012' (3, 1, 3, True)\n", "")] * 3


def test_two_gangs_at_once(tmp_path: Path, ranks: Ranks) -> None:
    for start in ("1", "2"):
        places = [{**place, "SLURM_JOB_ID": start} for place in slurm(2)]
        ranks.start("import pmrun as pm; print(pm.init().size, pm.store.add('n'))", places)
    assert sorted(out for _, out, _ in ranks.finish()) == ["2 1\n", "2 1\n", "2 2\n", "2 2\n"]


def slurm(size: int) -> list[dict[str, str]]:
    return [
        {
            "SLURM_PROCID": str(r), "SLURM_STEP_NUM_TASKS": str(size), "SLURM_LOCALID": str(r), "SLURM_STEP_ID": "0",
            "SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": str(size),
            "SLURM_STEP_NODELIST": "n1", "SLURM_JOB_ID": "7",
        }
        for r in range(size)
    ]  # fmt: skip


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_is_killed(ranks: Ranks, victim: int) -> None:
    """The first rank's death too: the steward is a process of its own."""
    ranks.start(
        f"""
        import os, signal
        import pmrun as pm
        world = pm.init()
        if world.rank == 1:
            try:
                pm.store.get("never")
            except pm.RankFailed as error:
                print("store", error.rank)
        world.barrier() if world.rank == 1 else None
        if world.rank == {victim}:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            world.barrier()
        except pm.RankFailed as error:
            print(error.rank, error.reason)
        """,
        mpich(3),
    )
    done = ranks.finish()
    why = f"{victim} its process ended without leaving (killed by a signal, or os._exit)\n"
    assert done[victim][:2] == (-signal.SIGKILL, "")
    assert done[2 - victim][1] == why
    assert done[1][1] == f"store {victim}\n"


def test_an_exception_is_the_reason(ranks: Ranks) -> None:
    ranks.start(
        """
        import pmrun as pm
        world = pm.init()
        if world.rank == 0:
            raise ValueError("no luck")
        try:
            world.barrier()
        except pm.RankFailed as error:
            print(error.rank, error.reason)
        """,
        mpich(2),
    )
    first, second = ranks.finish()
    assert first[0] == 1 and second[:2] == (0, "0 ValueError: no luck (body.py:5 in <module>)\n")


def test_the_steward_is_killed(ranks: Ranks) -> None:
    ranks.start(
        """
        import pmrun as pm
        world = pm.init()
        print("ready", flush=True)
        if world.rank == 0:
            try:
                pm.store.get("never")
            except pm.StoreError as error:
                print(error)
        try:
            world.recv(source=1 - world.rank)
        except pm.GangStopped as error:
            print(error)
        """,
        mpich(2),
    )
    assert [ranks.line(0), ranks.line(1)] == ["ready", "ready"]
    (steward,) = stewards()
    os.kill(steward, signal.SIGKILL)
    first, second = ranks.finish()
    gone = "the steward of this gang is gone (was it killed?): nobody would notice the death of a rank\n"
    assert first == (0, "the store cannot be used any more: its host closed the connection\n" + gone, "")
    assert second == (0, gone, "")


def stewards() -> list[int]:
    mine = f"{leak_guard.MARK}={os.environ[leak_guard.MARK]}".encode()
    found = []
    for name in os.listdir("/proc"):
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes() if name.isdigit() else b""
            if b"pmrun.launcher.steward" in command and mine in Path(f"/proc/{name}/environ").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


FAILING = """
import pmrun as pm
try:
    pm.init()
except pm.LaunchError as error:
    print(error)
"""


def test_ranks_that_do_not_come_are_named(ranks: Ranks) -> None:
    ranks.start(FAILING, mpich(4, 0, 2), **{env.JOIN_TIMEOUT: "1.5"})
    told = "ranks 1, 3 of 4 did not call pm.init() within 1.5 s: every rank must\n"
    assert ranks.finish() == [(0, told, "")] * 2


def test_the_first_rank_does_not_come(ranks: Ranks) -> None:
    ranks.start(FAILING, mpich(2, 1), **{env.JOIN_TIMEOUT: "0.3"})
    ((code, out, err),) = ranks.finish()
    assert (code, err) == (0, "")
    assert out.startswith("rank 0 of 2 (MPICH) has not called pm.init() within 0.3 s: every rank must.")


def test_a_rank_ends_before_all_have_come(ranks: Ranks) -> None:
    ranks.start(FAILING, mpich(3, 0))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as second:
        second.connect(meeting_point())
        second.sendall(meeting.frame(meeting.Join(store_wire.VERSION, window.VERSION, 1, 3, (0,))))
    assert ranks.finish() == [(0, "rank 1 ended, or gave up, before all ranks had called pm.init()\n", "")]


def meeting_point() -> str:
    by = time.monotonic() + DEADLINE_S
    while not names():
        assert time.monotonic() < by
        select.select([], [], [], 0.01)
    (name,) = names()
    return "\0" + name[1:]


def test_two_processes_with_one_rank(ranks: Ranks) -> None:
    ranks.start(FAILING, mpich(3, 0, 1, 1), **{env.JOIN_TIMEOUT: "2"})
    told = sorted(out for _, out, _ in ranks.finish())
    assert told == [
        "another process has joined as rank 1 already: two of them call pm.init()\n",
        *["rank 2 of 3 did not call pm.init() within 2 s: every rank must\n"] * 2,
    ]


def test_ranks_that_were_told_of_different_sizes(ranks: Ranks) -> None:
    places = slurm(2)
    places[1]["SLURM_STEP_NUM_TASKS"] = places[1]["SLURM_STEP_TASKS_PER_NODE"] = "3"
    ranks.start(FAILING, places, **{env.JOIN_TIMEOUT: "1"})
    first, second = ranks.finish()
    assert first[1] == "rank 1 of 2 did not call pm.init() within 1 s: every rank must\n"
    assert second[1].startswith("rank 0 of 3 (srun) has not called pm.init() within 1 s")


def test_strangers_at_the_meeting_point(ranks: Ranks) -> None:
    """Garbage, and connections that say nothing, neither join nor hold up those who do."""
    ranks.start(REPORT, mpich(2, 0))
    name = meeting_point()
    silent = []
    for i in range(100):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(name)
        if i % 2:
            sock.close()
            continue
        silent.append(sock)
        try:
            sock.send(b"\xff" * i)
        except BrokenPipeError:
            continue
    ranks.start(REPORT, mpich(2, 1))
    assert ranks.finish() == [(0, "True 2 3.0 b'01' (2, 2, 1, True)\n", "")] * 2
    for sock in silent:
        sock.close()


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (None, "UsageError: MPICH started 8 ranks on several nodes, which find each other by a secret: make one with"),
        (0o644, "others may use it (mode 0644)"),
        (0o600, "does not tell where rank 0 is: set PMRUN_MAIN=ADDRESS, of its node, for all ranks"),
    ],
)
def test_several_nodes_without_what_they_need(ranks: Ranks, tmp_path: Path, mode: int | None, words: str) -> None:
    """With it: tests/cluster/test_foreign_nodes.py."""
    changes = {}
    if mode is not None:
        secret = tmp_path / "secret"
        secret.write_bytes(bytes(32))
        secret.chmod(mode)
        changes[env.SECRET_FILE] = str(secret)
    place = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
    ranks.start("import pmrun as pm; print(pm.rank(), pm.world_size(), flush=True); pm.init()", [place], **changes)
    ((code, out, err),) = ranks.finish()
    assert (code, out) == (1, "5 8\n")
    assert words in err.splitlines()[-1]


@pytest.mark.parametrize("places", [mpich(1), [{**mpich(2)[1], env.FOREIGN: "0"}]], ids=["one rank", "PMRUN_FOREIGN=0"])
def test_a_world_of_one(ranks: Ranks, places: list[dict[str, str]]) -> None:
    ranks.start("import pmrun as pm; print(pm.init().size, pm.rank(), pm.store.add('n'), pm.world_size())", places)
    assert ranks.finish() == [(0, "1 0 1 1\n", "")]


def test_leaving_and_forking(ranks: Ranks) -> None:
    ranks.start(
        """
        import os
        import pmrun as pm
        world = pm.init()
        world.barrier()
        if os.fork() == 0:
            try:
                pm.store.keys()
            except pm.ForkedError:
                os._exit(7)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        pm.shutdown()
        try:
            pm.init()
        except pm.NotInitializedError as error:
            print(error)
        """,
        mpich(2),
    )
    told = "7\npm.shutdown() gave up this rank's place in its gang: call pm.init() once only\n"
    assert [out for _, out, _ in ranks.finish()] == [told] * 2


def test_what_a_rank_of_pmrun_starts_under_mpirun_is_pmruns(gang: Callable[..., object]) -> None:
    run = gang(2, "import pmrun as pm; print(pm.init().size)", env=mpich(3)[1])
    assert run.outputs == ["2\n"] * 2
