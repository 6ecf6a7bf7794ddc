# SPDX-License-Identifier: Apache-2.0
"""kill -9 at seeded moments from the first fork to the last exit: whoever is hit, nothing is left."""

import contextlib
import os
import random
import select
import signal
import sys

import pytest

BODY = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    signal.pause()
sys.stdout.write('x' * 3000 + '\\n')
signal.setitimer(signal.ITIMER_REAL, 0.05)
signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
signal.pause()
"""


@pytest.mark.parametrize("victim", ["pmrun", "agent", "rank", "interrupt"])
def test_nothing_is_left(launch, victim):
    seed = sum(victim.encode())
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(8):
        job = launch([sys.executable, "-c", BODY], 3)
        fd = os.pidfd_open(job.pid)
        ended, _, _ = select.select([fd], [], [], chance.random() * 0.4)  # the moment of the blow
        os.close(fd)
        target = None
        if victim in ("pmrun", "interrupt"):
            target = job.pid
        elif victim == "agent":
            target = next(iter(job.children()), None)
        else:
            target = next(iter(job.ranks().values()), None)
        if target is not None and not ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, signal.SIGINT if victim == "interrupt" else signal.SIGKILL)
        job.finish()
        job.assert_nothing_left()
