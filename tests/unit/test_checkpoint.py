# SPDX-License-Identifier: Apache-2.0
"""`pm.Checkpoint` in a world of one: what is kept, what is refused, and that damage and death cost no older version."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pmrun as pm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


@pytest.fixture
def checkpoint(folder: Path) -> Iterator[pm.Checkpoint]:
    with pm.Checkpoint(folder, keep=3) as made:
        yield made


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def of_version(number: int, step: int) -> list[str]:
    return [f"{number:06d}-step-{step}/{name}" for name in ("manifest.json", "shard-00000.safetensors")]


def test_nothing_was_saved(checkpoint: pm.Checkpoint, folder: Path) -> None:
    assert checkpoint.load("mine") == (0, "mine")
    assert checkpoint.steps() == []
    assert not folder.exists()


def test_the_last_ones_are_kept(checkpoint: pm.Checkpoint, folder: Path) -> None:
    state = {"w": np.zeros(3)}
    for step in (10, 20, 30, 40):
        state["w"] += 1
        checkpoint.save(step, state)
    assert files(folder) == [".lock", *of_version(2, 20), *of_version(3, 30), *of_version(4, 40)]
    assert checkpoint.steps() == [40, 30, 20]
    step, loaded = checkpoint.load()
    assert step == 40 and (loaded["w"] == 4).all()
    assert (checkpoint.load(step=20).state["w"] == 2).all()
    with pytest.raises(pm.CheckpointError, match=r"no complete version of step 10 \(there are: 40, 30, 20\)"):
        checkpoint.load(step=10)


def test_the_newest_is_the_last_that_was_saved(checkpoint: pm.Checkpoint) -> None:
    for step, value in ((5, "a"), (9, "b"), (5, "c")):
        checkpoint.save(step, value)
    assert checkpoint.load() == (5, "c")
    assert checkpoint.load(step=5) == (5, "c")


def test_a_save_beside_the_program(checkpoint: pm.Checkpoint) -> None:
    state = np.zeros(1 << 20, np.uint8)
    for step in range(1, 6):
        state[:] = step
        save = checkpoint.isave(step, state)
        state[:] = 0  # it was copied
    save.wait()
    assert save.done() and save.step == 5
    assert (checkpoint.load().state == 5).all()


def spoil_manifest(version: Path) -> Path:
    path = version / "manifest.json"
    path.write_text(path.read_text().replace('"step":2', '"step":7'))
    return path


def spoil_shard(version: Path) -> Path:
    path = version / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


def cut_shard(version: Path) -> Path:
    path = version / "shard-00000.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    return path


def lose_shard(version: Path) -> Path:
    path = version / "shard-00000.safetensors"
    path.unlink()
    return path


@pytest.mark.parametrize("spoil", [spoil_manifest, spoil_shard, cut_shard, lose_shard])
def test_a_damaged_version_is_told_and_passed_over(checkpoint, folder, spoil, capsys) -> None:
    checkpoint.save(1, np.ones(9))
    checkpoint.save(2, np.ones(9))
    path = spoil(folder / "000002-step-2")
    step, state = checkpoint.load()
    assert step == 1 and (state == 1).all()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pmrun: checkpoint is damaged: {path}: ") and line.endswith("; trying the one before")
    checkpoint.save(3, np.zeros(2))
    assert checkpoint.load().step == 3


def test_nothing_whole_is_not_nothing(checkpoint: pm.Checkpoint, folder: Path) -> None:
    checkpoint.save(2, np.ones(1))
    spoil_shard(folder / "000001-step-2")
    with pytest.raises(pm.CheckpointError, match=r"no version is whole .*SHA-256 differs.*to begin anew"):
        checkpoint.load("default")


def test_leftovers_of_a_died_save_go_with_the_next(checkpoint: pm.Checkpoint, folder: Path) -> None:
    checkpoint.save(1, 1)
    died = folder / "000007-step-2"
    died.mkdir()
    (died / "shard-00000.safetensors.part").write_bytes(b"x")
    (folder / "notes").mkdir()
    assert checkpoint.load() == (1, 1)
    checkpoint.save(2, 2)
    assert files(folder) == [".lock", *of_version(1, 1), *of_version(8, 2)]
    assert (folder / "notes").is_dir()


def test_a_full_disk_costs_only_the_save(checkpoint: pm.Checkpoint, folder: Path) -> None:
    checkpoint.save(1, np.zeros(1000))
    before = files(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(pm.CheckpointError, match=r"cannot save step 2 to .*: File too large"):
            checkpoint.save(2, np.zeros(100_000))
        save = checkpoint.isave(3, np.zeros(100_000))
        with pytest.raises(pm.CheckpointError, match="cannot save step 3"):
            save.wait()
        checkpoint.isave(4, np.zeros(100_000))
        with pytest.raises(pm.CheckpointError, match="cannot save step 4"):  # nobody waited for it
            checkpoint.save(5, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(folder) == before
    checkpoint.save(6, 1)
    assert checkpoint.load() == (6, 1)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_way(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pm.Checkpoint(tmp_path / "file" / below) as checkpoint:
        with pytest.raises(
            pm.CheckpointError, match=r"cannot save step 0 to .*file: Not a directory; give a directory"
        ):
            checkpoint.save(0, 1)
        if not below:
            with pytest.raises(
                pm.CheckpointError, match=r"cannot load from .*file: .*Not a directory; give a directory"
            ):
                checkpoint.load()


def test_arguments_that_are_wrong(tmp_path: Path) -> None:
    for wrong in ({"keep": 0}, {"timeout": 0}):
        with pytest.raises(pm.UsageError):
            pm.Checkpoint(tmp_path, **wrong)
    with pytest.raises(pm.UsageError, match="no storage for ftp:// is known"):
        pm.Checkpoint("ftp://host/x")
    with pm.Checkpoint(tmp_path) as checkpoint:
        with pytest.raises(pm.UsageError, match="steps count from 0"):
            checkpoint.save(-1, 1)
        with pytest.raises(pm.CheckpointError, match=r"cannot save step 1 to .*: cannot save state\['f'\], which is a"):
            checkpoint.save(1, {"f": print})
        assert checkpoint.load() == (0, None)


def test_another_job_there_is_named(checkpoint: pm.Checkpoint, folder: Path) -> None:
    other = f"""
import sys, pmrun as pm
with pm.Checkpoint({str(folder)!r}) as checkpoint:
    checkpoint.save(1, 1)
    print("saved", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "saved\n"
        told = rf"another job saves to .*a \(job local, process {process.pid} on .*\): give each job a path of its own"
        with pytest.raises(pm.CheckpointError, match=told):
            checkpoint.save(2, 2)
        assert checkpoint.load() == (1, 1)
        process.communicate("")
    checkpoint.save(2, 2)


KILLS = """
import os, random, select, signal, sys
import numpy as np, pmrun as pm
rng = random.Random(sys.argv[2])
done = 0
for _ in range(16):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with pm.Checkpoint(sys.argv[1], keep=2) as checkpoint:
            step, state = checkpoint.load(np.zeros(20_000))
            while True:
                step += 1
                state += 1
                checkpoint.save(step, state)
                os.write(write, step.to_bytes(8, "little"))
    os.close(write)
    told = b"".join(os.read(read, 8) for _ in range(rng.randrange(3)))
    select.select([], [], [], rng.random() * 4e-3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while data := os.read(read, 8):
        told += data
    os.close(read)
    done = max(done, int.from_bytes(told[-8:], "little"))
    with pm.Checkpoint(sys.argv[1]) as checkpoint:
        step, state = checkpoint.load(np.zeros(20_000))
    assert step in (done, done + 1), (step, done)
    assert (state == step).all(), step
    done = step
print("reached", done)
"""


def test_killed_at_any_moment(folder: Path, rng) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLS, str(folder), str(rng.random())],
        text=True, capture_output=True, timeout=100, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert int(run.stdout.split()[1]) > 5


def test_the_end_of_a_program_waits_for_its_last_save_and_tells_a_failure(folder: Path) -> None:
    body = f"import numpy as np, pmrun as pm\nc = pm.Checkpoint({str(folder)!r})\nc.isave(3, np.ones(1 << 20))\n"
    done = subprocess.run([sys.executable, "-c", body], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with pm.Checkpoint(folder) as checkpoint:
        assert checkpoint.load().step == 3
    body += "c.isave(4, [print])\n"
    done = subprocess.run([sys.executable, "-c", body], text=True, capture_output=True, check=False)
    assert done.stderr.startswith(f"pmrun: cannot save step 4 to {folder}: cannot save state[0]")
