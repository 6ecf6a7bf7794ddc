# SPDX-License-Identifier: Apache-2.0
"""pdb of a rank on another node: its terminal goes through both agents' links to whoever attached at the controller."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]


def test_attach_to_a_rank_of_another_node(pmrun: Run) -> None:
    body = """
        import os, subprocess, sys
        import pmrun as pm
        world = pm.init()

        def until(text):
            seen = b""
            while text not in seen:
                seen += os.read(there.stdout.fileno(), 4096) or sys.exit(f"no {text} in {seen}")

        if world.rank == 1:
            breakpoint()
        else:
            command = [sys.executable, "-m", "pmrun", "attach", os.environ["PMRUN_JOB_ID"], "--rank", "1"]
            there = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.STDOUT, bufsize=0)
            until(b"(Pdb) ")
            there.stdin.write(b"p 6 * world.rank\\n")
            until(b"6\\r\\n")
            there.stdin.write(b"c\\n")
            until(b"rank 1 runs")
            there.stdin.write(b"\\x1d")
            print("attach ended with", there.wait())
        world.barrier()
    """
    hosts = ["--hosts", "a:1,b:1", "--stdin", "none"]
    code, out, err = pmrun("a", *hosts, "--", sys.executable, "-c", textwrap.dedent(body))
    assert (code, out) == (0, "[0 a] attach ended with 0\n"), err
