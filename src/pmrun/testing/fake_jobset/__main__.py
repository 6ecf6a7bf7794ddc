# SPDX-License-Identifier: Apache-2.0
"""`python -m pmrun.testing.fake_jobset`: a cluster for the shell, until Ctrl-C.

    python -m pmrun.testing.fake_jobset &      # prints: export KUBECONFIG=...
    kubectl create -f gang.yaml

With `--serve FOLDER` it is the process behind handle.py: its options come as one line of JSON on standard input, which
then is its lifeline. Invariant: the folder is gone when it ends, except where it is killed together with its holder.
"""

from __future__ import annotations

import io
import shutil
import signal
import sys
import threading
from pathlib import Path

import msgspec

from pmrun.testing.fake_jobset.cluster import Cluster
from pmrun.testing.fake_jobset.handle import start
from pmrun.testing.fake_jobset.options import Options


def main(words: list[str]) -> int:
    """Be the cluster, or hold one."""
    if len(words) == 2 and words[0] == "--serve":
        serve(Path(words[1]))
        return 0
    if words:
        print(f"write: python -m pmrun.testing.fake_jobset (not {' '.join(words)})", file=sys.stderr)
        return 2
    with start() as cluster:
        print(f"export KUBECONFIG={cluster.kubeconfig}", flush=True)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
    return 0


def serve(folder: Path) -> None:
    """Be the cluster until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for whoever holds this
    lifeline = io.FileIO(0, closefd=False)  # unbuffered: what comes after the line is not for this
    options = msgspec.json.decode(lifeline.readline(), type=Options)
    try:
        cluster = Cluster(options, folder)
        print(msgspec.json.encode({"url": cluster.url}).decode(), flush=True)
        cluster.run(lifeline.fileno())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
