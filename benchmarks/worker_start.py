# SPDX-License-Identifier: Apache-2.0
"""The smallest useful rank: joins its gang, meets the others once, ends. bench_start.py times it from outside."""

from __future__ import annotations

import sys

if sys.argv[1] == "pmrun":
    import pmrun

    pmrun.init().barrier()
elif sys.argv[1] == "mpi":
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()
else:
    from torch import distributed

    distributed.init_process_group("gloo")
    distributed.barrier()
    distributed.destroy_process_group()
