# SPDX-License-Identifier: Apache-2.0
"""A gang that works for as long as asked, and whose resources must stay as they were once it was warm.

    python tests/failure/soak.py --seconds 600 [--ranks 3] [--seed 1]

Each round the ranks do what programs do over and over: collectives of random kinds and lengths, blocking and not, messages,
communicators that come and go, objects, keys of the store, arrays that others reach without a copy, a checkpoint now and
then, and output. Meanwhile pmrun, its agent and every rank are looked at from outside: resident memory, descriptors, threads;
beside them /dev/shm, and the files of the folder. The first third is the measure of the last. Invariant: the
calls follow from the seed alone.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

WORK = Path(__file__).with_name("soak_work.py")
SAMPLES = 60  # in all
READY_S = 60.0
END_S = 60.0
FILES_MAX = 16  # three versions of a checkpoint, and what is beside them
MEMORY_SHARE = 0.04  # of what it has: a process may grow by that after its first third, or by --memory-kib


class Sample(NamedTuple):
    """What processes hold, by role."""

    memory_kib: dict[str, int]
    descriptors: dict[str, int]
    threads: dict[str, int]
    shared: frozenset[str]  # /dev/shm
    files: int  # in the job's folder


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processes(launcher: int) -> dict[str, int]:
    """pmrun, its agent and the ranks, by role; a rank's order is that of its start."""
    agent = children(launcher)[0]
    return {"pmrun": launcher, "agent": agent, **{f"rank {rank}": pid for rank, pid in enumerate(children(agent))}}


def look(roles: dict[str, int], folder: Path) -> Sample:
    """Take one sample."""
    memory, descriptors, threads = {}, {}, {}
    for role, pid in roles.items():
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        memory[role] = int(fields["RssAnon"].split()[0]) + int(fields["RssShmem"].split()[0])
        threads[role] = int(fields["Threads"])
        descriptors[role] = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(memory, descriptors, threads, frozenset(os.listdir("/dev/shm")), sum(1 for _ in folder.rglob("*")))


def growth(samples: list[Sample], memory_kib: int) -> list[str]:
    """What was more in the end than in the first third, in words."""
    early, late = samples[: max(2, len(samples) // 3)], samples[-max(2, len(samples) // 3) :]
    found = []
    for role in samples[0].memory_kib:
        before = max(sample.memory_kib[role] for sample in early)
        after = min(sample.memory_kib[role] for sample in late)
        if after > before + max(memory_kib, MEMORY_SHARE * before):
            found.append(f"{role}: {before} KiB of memory became {after}")
        for what in ("descriptors", "threads"):
            most, least = (pick(getattr(one, what)[role] for one in part) for pick, part in ((max, early), (min, late)))
            if least > most:
                found.append(f"{role}: {most} {what} became {least}")
    fresh = samples[-1].shared - samples[0].shared
    found += [f"/dev/shm/{name} is new" for name in sorted(fresh) if "pmrun" in name]
    if samples[-1].files > FILES_MAX:
        found.append(f"{samples[-1].files} files in the job's folder")
    return found


def soak(process: subprocess.Popen[str], seconds: float, folder: Path) -> list[Sample]:
    """Samples until the time is up; the gang is then asked to end."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], READY_S)[0], "the ranks did not begin"
    roles = processes(process.pid)
    samples, begin = [], time.monotonic()
    for number in range(1, SAMPLES + 1):
        due = begin + seconds * number / SAMPLES
        while (left := due - time.monotonic()) > 0:
            if select.select([process.stdout], [], [], left)[0] and not os.read(process.stdout.fileno(), 65536):
                return samples  # it has ended, which its exit code explains
        samples.append(look(roles, folder))
    process.send_signal(signal.SIGTERM)
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--memory-kib", type=int, default=2048, help="that a process may grow after its first third")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        work = [str(WORK), str(asked.seed), str(folder / "saved")]
        command = [sys.executable, "-m", "pmrun", "-n", str(asked.ranks), *work]
        with (
            open(folder / "errors", "w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            try:
                samples = soak(process, asked.seconds, folder)
                process.communicate(timeout=END_S)
            finally:
                process.kill()
            errors.seek(0)
            said = errors.read()
    problems = (
        growth(samples, asked.memory_kib)
        if len(samples) == SAMPLES
        else [f"it ended after {len(samples)} of {SAMPLES} samples"]
    )
    if process.returncode != 75:
        problems.append(f"exit code {process.returncode}: {said[-2000:]}")
    for line in problems:
        print(f"soak: {line}")
    for role, memory in samples[-1].memory_kib.items() if samples else ():
        first, last = samples[len(samples) // 3], samples[-1]
        print(
            f"{role}: {first.memory_kib[role]} KiB, then {memory}; {last.descriptors[role]} descriptors, {last.threads[role]} threads"
        )
    print("FAILED" if problems else f"flat over {asked.seconds:g} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
