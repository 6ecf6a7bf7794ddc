# SPDX-License-Identifier: Apache-2.0
"""The state machines of meeting, gang, hang watch, agent, lease and attempts under seeded schedules of tests/simulated_job.py.

A failure names its seed; `python tests/simulated_job.py SEED` (with `hostile`, where it says so) plays it again.
`--schedules N` plays more than the usual number.
"""

import pytest
from simulated_job import Job

from pmrun.launcher import agent, attempts, clocks, gang, hang, lease, rendezvous

BLOCKS = 4
ON_END = attempts.Attempts.on_end


def play(seed, hostile=False):
    job = Job(seed, hostile)
    try:
        job.run()
        job.check()
    except Exception as error:
        raise AssertionError(f"seed {seed}{' hostile' if hostile else ''}: {error}") from error


@pytest.mark.slow
@pytest.mark.parametrize("hostile", [False, True], ids=["links as they are", "hostile links"])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_schedule_ends_as_it_must(block, hostile, request):
    for seed in range(block, request.config.option.schedules, BLOCKS):
        play(seed, hostile)


def loses(seed):
    """Whether a schedule ends as it must not, with the links as they are or with hostile ones."""
    for hostile in (False, True):
        try:
            play(seed, hostile)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize(
    ("where", "name", "instead", "first"),
    [
        (agent.Agent, "on_link_lost", lambda self, now: [], 0),
        (agent.Agent, "_kill", lambda self, now: [], 0),
        (gang.Gang, "on_link_lost", lambda self, node, why: [], 0),
        (gang.Gang, "_end", lambda self, *args, **more: [], 0),
        (gang.Gang, "_untold", lambda self: None, 0),
        (gang.Gang, "_judge", lambda self: None, 0),
        (clocks.Clocks, "here", lambda self, node, stamp_s: stamp_s, 0),
        # The rare ones: the first seed that shows it is near.
        (gang.Gang, "_failure", lambda self, exited: gang.Cause(gang.Kind.RANK, "?", 1, rank=exited.rank), 3000),
        (lease.Leases, "look", lambda self, now: [], 0),
        (lease.Leases, "heard", lambda self, peer, now: None, 0),
        (rendezvous.Rendezvous, "_problem", lambda self, hello: None, 0),
        (attempts, "_restartable", lambda outcome: True, 0),
        (attempts.Attempts, "_final", lambda self, outcome: "", 0),
        (attempts.Attempts, "on_interrupted", lambda self: None, 750),
        (attempts.Attempts, "on_end", lambda self, *end: ON_END(self, *end[:-1], 0.0), 25_600),  # the silent may run on
        (hang.HangWatch, "on_tick", lambda self, now: [], 0),
        (hang.HangWatch, "_still_hangs", lambda self, answers, now: True, 1300),
        (hang.HangWatch, "_pause", lambda self, who, stands, now: None, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_planted_fault_is_found(where, name, instead, first, monkeypatch):
    """The schedules would show a machine that forgets its duty."""
    monkeypatch.setattr(where, name, instead)
    assert any(loses(seed) for seed in range(first, first + 1000))
