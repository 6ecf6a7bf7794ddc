# SPDX-License-Identifier: Apache-2.0
"""The environment of a rank: every name that pmrun sets or reads, once.

The launcher writes these for each rank; `pm.init()` reads them. No other file of pmrun holds one of these
names as a literal (tests/tidy). Invariant: this module imports nothing of pmrun.
"""

from __future__ import annotations

# ---- set by the agent for every rank ---------------------------------------------------------------------
RANK = "PMRUN_RANK"  # 0 .. world_size-1
WORLD_SIZE = "PMRUN_WORLD_SIZE"
LOCAL_RANK = "PMRUN_LOCAL_RANK"  # 0 .. local_world_size-1 on this node
LOCAL_WORLD_SIZE = "PMRUN_LOCAL_WORLD_SIZE"
NODE_RANK = "PMRUN_NODE_RANK"  # 0 is the main node
NUM_NODES = "PMRUN_NUM_NODES"
MAIN_IP = "PMRUN_MAIN_IP"  # address of node 0
JOB_ID = "PMRUN_JOB_ID"  # unique name of this job
ATTEMPT = "PMRUN_ATTEMPT"  # 0 at the first start, one more at each restart of the gang
PEERS = "PMRUN_PEERS"  # comma-separated addresses of all nodes, in node order
NODE_NAME = "PMRUN_NODE_NAME"  # this node's name, as reports show it
WINDOW_FD = "PMRUN_WINDOW_FD"  # number of the inherited memfd of the node's window
STORE_FD = "PMRUN_STORE_FD"  # number of the inherited socket to this node's host of the store
DEBUG_FD = (
    "PMRUN_DEBUG_FD"  # number of the inherited datagram socket on which a rank hands its debugger's terminal over
)
DEBUG_SIGNAL = "PMRUN_DEBUG_SIGNAL"  # number of the signal by which `pmrun attach` interrupts a rank
LAYOUT = "PMRUN_LAYOUT"  # "4,4,2": ranks of each node, in node order
DATA_ADDRESS = "PMRUN_DATA_ADDRESS"  # this node's address for connections between ranks
TRANSPORT = "PMRUN_TRANSPORT"  # "zmq", "tcp" or "auto": what carries data between nodes; also the option
REPRODUCIBLE = "PMRUN_REPRODUCIBLE"  # "1": sums have the same bits on any layout; also the option
ENCRYPT = "PMRUN_ENCRYPT"  # "1": data between nodes is encrypted; also the option
PDB_ON_ERROR = "PMRUN_PDB_ON_ERROR"  # "1": an exception that nobody catches leads into pdb; also the option

# ---- read from the user's environment by a rank ----------------------------------------------------------
ALGORITHM = "PMRUN_ALGORITHM"  # "allreduce=sliced,...": force algorithms (tests, benchmarks)
KERNELS = "PMRUN_KERNELS"  # "portable", "avx2", "avx512": force a kernel set (tests)
SINGLE_COPY = "PMRUN_SINGLE_COPY"  # bytes from which on a rank reads another's memory by process_vm_readv; "0": never
COLLECTIVE_TIMEOUT = "PMRUN_COLLECTIVE_TIMEOUT"  # seconds for a blocking collective; default: none
FOREIGN = "PMRUN_FOREIGN"  # "0": not a rank, whatever launcher's variables are there (mpirun, torchrun, srun, ...)
PREEMPT_FILE = "PMRUN_PREEMPT_FILE"  # a path: once something is there, pm.should_stop() says so (spot notices)
# Seconds for ranks to find each other: those of another launcher from pm.init() on (default: 60), those of several nodes
# until data came through (default: --start-timeout).
JOIN_TIMEOUT = "PMRUN_JOIN_TIMEOUT"
SECRET_FILE = "PMRUN_SECRET_FILE"  # by it ranks of another launcher meet over several nodes; also the option
MAIN = "PMRUN_MAIN"  # where rank 0 is, for those; default: what the launcher says; also the option
INTERFACE = "PMRUN_INTERFACE"  # of this node, for those; default: the one that routes to rank 0; also the option


# ---- read by `pmrun agent`, which an engine starts on each node ------------------------------------------------
SECRET = "PMRUN_SECRET"  # the job's secret, 64 hex digits or base64; taken out of the environment before ranks start
RUN_TOKEN = "PMRUN_RUN_TOKEN"  # differs between all tries of all jobs with that secret; default: the engine's own name

# ---- between a program that calls a `pm.parallel` function and the `pmrun` and ranks that it starts --------------
RESULTS_FD = (
    "PMRUN_RESULTS_FD"  # descriptor where pmrun writes how the job ended and what is kept, and whose child it is
)
RESULTS = "lasting/pmrun/results/"  # keys of the store whose values are handed over then

# ---- what other programs expect: torch's names always, the last three only where the user did not set them ----
TORCH_MASTER_ADDR = "MASTER_ADDR"
TORCH_MASTER_PORT = "MASTER_PORT"
TORCH_RANK = "RANK"
TORCH_WORLD_SIZE = "WORLD_SIZE"
TORCH_LOCAL_RANK = "LOCAL_RANK"
TORCH_LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"
OMP_NUM_THREADS = "OMP_NUM_THREADS"
PYTHON_UNBUFFERED = "PYTHONUNBUFFERED"
PYTHON_BREAKPOINT = "PYTHONBREAKPOINT"

# ---- read by setup.py; named here because they may still be set when the command runs ----------------------------
BUILD_SANITIZE = "PMRUN_SANITIZE"
BUILD_DEBUG = "PMRUN_DEBUG"
BUILD_WERROR = "PMRUN_WERROR"
BUILD_PREBUILT = "PMRUN_PREBUILT"

# ---- options of the command: PMRUN_<OPTION>, e.g. PMRUN_GRACE=10 for --grace -------------------------------
OPTION_PREFIX = "PMRUN_"
