# SPDX-License-Identifier: Apache-2.0
"""A real Slurm on the machines of the test cluster: slurmd on a, b and c, slurmctld on d, where jobs are submitted.

Its configuration and state are in a folder of its own, so that a Slurm that this machine may have is not touched; all
commands find it by SLURM_CONF. It ends with `close`, or with the machines.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machines

NODES = "abc"
LOGIN = "d"
NEEDED = ("slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel", "sinfo")
_CONF = """\
ClusterName=test
SlurmctldHost=d
SlurmUser=root
AuthType=auth/none
AuthInfo=cred_expire=1
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,defer_batch=0
ReturnToService=2
KillWait=5
SlurmdTimeout=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
NodeName=a,b,c CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=day Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP
"""


def why_not() -> str:
    """Why there can be no Slurm here, or ""."""
    missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return f"not installed: {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client)" if missing else ""


class Slurm:
    """The daemons, and how to use them."""

    def __init__(self, cluster: machines.Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        (folder / "state").mkdir(parents=True)
        self.conf = folder / "slurm.conf"
        self.conf.write_text(_CONF.format(folder=folder))
        # A user's start files, and what pytest itself has, are no business of the jobs.
        self.environ = {**os.environ, "SLURM_CONF": str(self.conf), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self._daemons: list[subprocess.Popen[Any]] = []
        try:
            self._start(LOGIN, "slurmctld", "-D", "-c", "-i")
            for name in NODES:
                self._start(name, "slurmd", "-D", "-N", name)
            machines.until(lambda: self.says("sinfo", "-h", "-o", "%D %t") == "3 idle", "three idle nodes")
        except BaseException:
            self.close()
            raise

    def _start(self, name: str, *words: str) -> None:
        log = (self.folder / f"{words[0]}-{name}.log").open("wb")
        with log:
            self._daemons.append(
                self.cluster[name].popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environ)
            )

    def says(self, *words: str) -> str:
        """What one of Slurm's commands says on the machine where jobs are submitted."""
        return self.cluster[LOGIN].run(*words, env=self.environ).stdout.strip()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait; what the daemons say is shown where that takes too long."""
        try:
            machines.until(condition, what)
        except AssertionError:
            for path in sorted(self.folder.glob("*.log")):
                print(f"==== {path.name}\n{path.read_text(errors='replace')[-3000:]}")
            raise

    def close(self) -> None:
        """End all of it."""
        for name in (LOGIN, *NODES):
            for pid, words in self.cluster[name].everything().items():
                if "slurm" in words:
                    with contextlib.suppress(ProcessLookupError):  # slurmscriptd ends with slurmctld
                        os.kill(pid, signal.SIGKILL)
        for daemon in self._daemons:
            daemon.wait(machines.DEADLINE_S)
        shutil.rmtree(self.folder)
