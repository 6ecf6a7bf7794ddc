# SPDX-License-Identifier: Apache-2.0
"""What a rank loads: joining the gang and moving objects needs no numpy; the first array of any operation does."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def test_joining_loads_little_and_objects_need_no_numpy(gang) -> None:
    run = gang(
        2,
        """
        import sys
        import pmrun as pm
        world = pm.init()
        world.barrier()
        place = (pm.rank(), pm.world_size(), world.rank, world.size)
        pm.barrier()
        slow = {"numpy", "asyncio", "inspect", "traceback", "dataclasses", "typing", "pickle"} & set(sys.modules)
        world.ibarrier().wait()
        world.dup().free()
        half = world.split(world.rank)
        other = 1 - world.rank
        request = world.isend_object({"from": world.rank}, other)
        moved = [
            world.broadcast_object("b" if world.rank == 0 else None), world.gather_object(world.rank),
            world.allgather_object(world.rank), world.scatter_object([10, 11] if world.rank == 0 else None),
            world.alltoall_object([(world.rank, 0), (world.rank, 1)]), world.recv_object(other), half.size,
            world.allreduce_object(world.rank + 1, lambda a, b: a + b), world.probe(timeout=0),
        ]
        request.wait()
        needed = "numpy" in sys.modules
        from gang_report import report
        report((place, slow, moved, needed))
        """,
    )
    for rank, (place, slow, moved, needed) in enumerate(run.results):
        assert place == (rank, 2, rank, 2)
        assert slow == set()
        assert moved == [
            "b", [0, 1] if rank == 0 else None, [0, 1], 10 + rank, [(0, rank), (1, rank)], {"from": 1 - rank}, 1, 3, None,
        ]  # fmt: skip
        assert not needed


def test_long_objects_arrive_whole(gang) -> None:
    run = gang(
        2,
        """
        import pmrun as pm
        from gang_report import report
        world = pm.init(timeout=60)
        mine = bytes([world.rank]) * (5 << 20)
        sent = world.isend_object(mine, 1 - world.rank)
        report((
            world.broadcast_object(mine, 1) == b"\\1" * (5 << 20),
            [piece[:1] for piece in world.allgather_object(mine)], [len(piece) for piece in world.alltoall_object([mine] * 2)],
            world.recv_object(1 - world.rank) == bytes([1 - world.rank]) * (5 << 20), sent.wait(),
        ))
        """,
    )
    assert run.results == [(True, [b"\0", b"\1"], [5 << 20] * 2, True, None)] * 2


FIRST_USES = {
    "a number": "assert world.allreduce(2) == 2",
    "a list": "assert world.allgather([1, 2]).tolist() == [[1, 2]]",
    "a buffer": "assert world.broadcast(bytearray(b'abc')) == b'abc'",
    "an array module's array": "assert world.iallreduce(array.array('d', [1, 2])).wait().tolist() == [1, 2]",
    "an array": "import numpy; assert world.allreduce(numpy.ones(3)).tolist() == [1, 1, 1]",
    "an array as out": "import numpy; out = numpy.zeros(1); world.allreduce([2.0], out=out); assert out == 2",
    "scatter": "assert world.scatter([[1, 2]]).tolist() == [1, 2]",
    "scatterv": "assert world.scatterv([1, 2], [2]).tolist() == [1, 2]",
    "scatter, refused": "refused(lambda: world.scatter(None))",
    "gatherv": "assert world.gatherv([1, 2]).tolist() == [1, 2]",
    "reduce_scatterv": "assert world.reduce_scatterv([1, 2], [2]).tolist() == [1, 2]",
    "alltoall": "assert world.alltoall([1]).tolist() == [1]",
    "alltoallv": "assert world.alltoallv([1, 2], [2]).tolist() == [1, 2]",
    "recv": "sent = world.isend_object(1, 0); assert world.recv().nbytes % 64 == 0; sent.wait()",
    "irecv": "a = bytearray(2); r = world.irecv(a, 0); world.send(b'xy', 0); r.wait(); assert a == b'xy'",
    "sendrecv": "assert world.sendrecv(3, 0) == 3",
    "empty": "assert pm.empty(3, 'f4').nbytes == 12",
    "shared": "assert pm.shared((2, 2)).tolist() == [[0, 0], [0, 0]]",
    "shared_arrays": "with pm.shared_arrays(): assert world.allreduce(1) == 1",
    "a bfloat16's bits": "assert world.allreduce(array.array('H', [0x3F80]), dtype='bfloat16')[0] == 0x3F80",
    "what is no buffer": "refused(lambda: world.allreduce(None))",
    "heap_covers": "refused(lambda: _native.heap_covers([1]))",
}


@pytest.mark.parametrize("use", FIRST_USES)
def test_the_first_array_of_a_process(use: str) -> None:
    code = """
        import array, sys
        import pmrun as pm
        from pmrun import _native

        def refused(call):
            try:
                call()
            except TypeError:
                return
            raise AssertionError("accepted")

        world = pm.init()
        assert "numpy" not in sys.modules
        exec(sys.argv[1])
        assert "numpy" in sys.modules
        """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), FIRST_USES[use]],
        text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
