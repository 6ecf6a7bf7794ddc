# SPDX-License-Identifier: Apache-2.0
"""What ranks write into the node's window decides who is named: programs here write it as the core does."""

import os
import sys

PYTHON = sys.executable
HEAD = """
import os, signal, struct, sys
class RankFailed(Exception):
    pass
rank = int(os.environ['PMRUN_RANK'])
fd = int(os.environ['PMRUN_WINDOW_FD'])
def abort(state, culprit, text):
    if struct.unpack('<I', os.pread(fd, 4, 64))[0] == 0:
        os.pwrite(fd, struct.pack('<I', 1), 64)
        os.pwrite(fd, struct.pack('<ii64s768s', culprit, 0, b'here', text), 72)
        os.pwrite(fd, struct.pack('<I', state), 68)
def until(offset, value):
    while struct.unpack('<I', os.pread(fd, 4, offset))[0] < value:
        os.sched_yield()
os.pwrite(fd, struct.pack('<I', 1), 1088 + 4 * rank)
for other in range(int(os.environ['PMRUN_WORLD_SIZE'])):
    until(1088 + 4 * other, 1)  # all are attached
"""
LEFT, FAILED = 3, 4


def run(launch, body, world_size):
    rc, out, err = launch([PYTHON, "-c", HEAD + body], world_size).finish()
    return rc, out.decode(), err.decode()


def test_rank_that_left_early_is_named(launch):
    rc, _, err = run(launch, f"""
if rank == 1:
    sys.exit(0)
until(1088 + 4, {LEFT})
if rank == 0:
    abort(1, 1, b'rank 1 left')
    sys.exit('RankFailed: rank 1 left while others waited for it')
signal.pause()
""", 3)  # fmt: skip
    assert rc == 1
    assert "rank 1 left with exit code 0 while rank 0 still needed it" in err
    assert "RankFailed: rank 1 left" in err.split("pmrun: ")[1]
    assert "rank 2 stopped by pmrun" in err


def test_death_is_written_for_the_others(launch):
    rc, out, err = run(launch, f"""
if rank == 2:
    os._exit(7)
until(68, 1)
until(1024, 1)
until(1088 + 8, {FAILED})
state, culprit, _, node, text = struct.unpack('<Iii64s768s', os.pread(fd, 844, 68))
print('told', culprit, node.split(b'\\0')[0].decode() == os.environ['PMRUN_NODE_NAME'],
      text.split(b'\\0')[0].decode(), flush=True)
if rank == 3:
    os._exit(1)
raise RankFailed('rank 2 failed')
""", 4)  # fmt: skip
    assert rc == 7
    assert out.count("told 2 True exit code 7") == 3
    assert "rank 2 failed first: exit code 7" in err
    assert "ranks 0-1 failed because of it; rank 3 failed too" in err


def test_culprit_that_unwinds_while_peers_fail(launch):
    rc, _, err = run(launch, """
if rank == 1:
    abort(1, 1, b'ValueError: bad shard')
    print('ValueError: bad shard', file=sys.stderr, flush=True)
    until(1024, 1)
    os._exit(9)
until(68, 1)
if rank == 0:
    raise RankFailed('rank 1 failed')
signal.pause()
""", 3)  # fmt: skip
    assert rc == 9
    assert "rank 1 failed first: exit code 9" in err
    assert "rank 0 failed because of it; rank 2 stopped by pmrun" in err


def test_mismatch_is_reported_with_its_text(launch):
    rc, _, err = run(launch, """
abort(2, -1, b'calls differ: rank 0 allreduce at a.py:1, rank 1 barrier at b.py:2')
sys.exit(1)
""", 2)  # fmt: skip
    assert rc == 1
    assert "pmrun: calls differ: rank 0 allreduce at a.py:1, rank 1 barrier at b.py:2\n" in err


def test_last_call_is_shown(launch):
    rc, _, err = run(launch, """
base = 8192 + 65536 * rank
os.pwrite(fd, b'train.py:44 in step', base + 64 + 64 * 256 + 184 * 3)
os.pwrite(fd, struct.pack('<QQQQIIIiBBB', 812, 64, 1, 0, 812, 0, 3, -1, 3, 0, 0), base + 64 + 64 * (812 % 256))
os.pwrite(fd, struct.pack('<QQQqII', 812, 1, 0, 0, os.getpid(), 4), base)
os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else signal.pause()
""", 2)  # fmt: skip
    assert rc == 137
    here = os.uname().nodename
    assert f"last call of rank 1 (node {here}): allreduce #812 at train.py:44 in step (still inside)\n" in err


def test_a_timeout_tells_who_waits_where(launch):
    body = """
base = 8192 + 65536 * rank
done = int(rank == 1)
os.pwrite(fd, struct.pack('<QQQQIIIiBBBB', 5, 64, 1, done, 5, 0, 0, -1, 3, 0, 0, 0), base + 64 + 64 * 5)
os.pwrite(fd, struct.pack('<QQQqII', 5, 1, 0, 0, os.getpid(), 1), base)
signal.pause()
"""
    rc, _, err = launch([PYTHON, "-c", HEAD + body], 4, timeout_s=3.0).finish()
    assert rc == 124
    waits = "  ranks 0, 2-3 wait in allreduce #5\n  rank 1 is in no call; its last was allreduce #5\n"
    assert err.decode() == "pmrun: --timeout of 3 s ran out\n" + waits
