# SPDX-License-Identifier: Apache-2.0
"""Runs `argv[2:]` on argv[1] nodes of two ranks that are all this machine: an agent of its own for each.

For what the controller does between nodes; the ranks share no window with those of another node. Ends with pmrun's
exit code.
"""

import os
import signal
import sys

from pmrun.launcher import rank_process
from pmrun.launcher.backends.local import LocalAgent
from pmrun.launcher.controller import SIGNALS, Controller, make_starts
from pmrun.launcher.events import EventLog
from pmrun.launcher.job import Job
from pmrun.launcher.placement import Node

nodes = [Node(f"node-{number}", "127.0.0.1", 2 * number, 2) for number in range(int(sys.argv[1]))]
job = Job(tuple(sys.argv[2:]), 2 * len(nodes))
rank_process.become_subreaper()
before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
starts = make_starts(job, nodes, f"test-{os.getpid()}", 0, 0)
controller = Controller(job, starts, [LocalAgent() for _ in nodes], EventLog(None))
signal.pthread_sigmask(signal.SIG_SETMASK, before)
sys.exit(controller.run())
