# SPDX-License-Identifier: Apache-2.0
"""Messages between two ranks: order, tags, wildcards, lengths, forms, objects."""

from __future__ import annotations

import pytest

SIZES = [1, 2, 3, 5]


@pytest.mark.parametrize("size", SIZES)
def test_a_ring_of_every_length_and_dtype(gang, size: int) -> None:
    run = gang(
        size,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        right, left = (w.rank + 1) % w.size, (w.rank - 1) % w.size
        bad = []
        for dtype in ("?", "i1", "u2", "f4", "f8", "c16", "M8[s]", "S3", [("a", "i4"), ("b", "f8")]):
            for count in (0, 1, 7, 1000, 65539):
                def value(rank):
                    rng = np.random.default_rng([rank, count])
                    raw = rng.integers(0, 2, (count, np.dtype(dtype).itemsize), dtype=np.uint8)
                    return raw.reshape(-1).view(dtype)
                status = pm.Status()
                got = w.sendrecv(value(w.rank), right, source=left, tag=3, status=status)
                if got.tobytes() != value(left).tobytes() or (status.source, status.tag) != (left, 3):
                    bad.append((str(dtype), count, "sendrecv", repr(status)))
                out = np.zeros(count, dtype)
                request = w.irecv(out, left, 4)
                w.isend(value(w.rank), right, 4).wait(60)
                if request.wait(60) is not out or out.tobytes() != value(left).tobytes():
                    bad.append((str(dtype), count, "irecv"))
                if (request.source, request.tag, request.nbytes) != (left, 4, out.nbytes):
                    bad.append((str(dtype), count, "status of irecv"))
        report(bad)
        """,
    )
    assert run.results == [[]] * size


def test_messages_of_one_sender_arrive_in_order_and_tags_choose(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        if w.rank == 0:
            for number in range(200):
                w.send(np.int64(number), 1, tag=number % 2)
            report(None)
        else:
            odd = [int(w.recv(np.empty(1, "i8"), 0, 1)[0]) for _ in range(100)]
            even = [int(w.recv(np.empty(1, "i8"), 0, 0)[0]) for _ in range(100)]
            report((odd, even))
        """,
    )
    assert run.results[1] == (list(range(1, 200, 2)), list(range(0, 200, 2)))


def test_probe_tells_and_does_not_take(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        if w.rank == 0:
            nothing = w.probe(timeout=0)
            w.barrier()
            told = w.probe()
            again = w.probe(1, 7, timeout=0)
            got = w.recv(dtype="f4")
            report((nothing, (told.source, told.tag, told.nbytes), again.nbytes, got.tolist(), w.probe(timeout=0)))
        else:
            w.barrier()
            w.send(np.arange(3, dtype="f4"), 0, tag=7)
            report(None)
        """,
    )
    assert run.results[0] == (None, (1, 7, 12), 12, [0.0, 1.0, 2.0], None)


def test_a_short_message_leaves_the_rest_and_a_long_one_is_an_error(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        if w.rank == 0:
            w.send(np.arange(3), 1)
            w.send(np.arange(3), 1)
            w.send(np.arange(9), 1)
            w.send(np.arange(2), 1)
            report(None)
        else:
            plain = np.full(5, -1)
            w.recv(plain)
            strided = np.full(10, -1)
            w.recv(strided[::2])
            small = np.full(5, -1)
            try:
                w.recv(small)
            except pm.MessageTruncated as error:
                failure = str(error)
            report((plain.tolist(), strided.tolist(), small.tolist(), failure, w.recv(dtype="i8").tolist()))
        """,
    )
    plain, strided, small, failure, after = run.results[1]
    assert plain == [0, 1, 2, -1, -1]
    assert strided == [0, -1, 1, -1, 2, -1, -1, -1, -1, -1]
    assert small == [-1] * 5
    assert "72" in failure
    assert "40" in failure
    assert after == [0, 1]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_objects_travel_in_every_form(gang, size: int) -> None:
    run = gang(
        size,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        n, me = w.size, w.rank
        def value(rank, other=0):
            return {"rank": rank, "big": np.full((100, 30), rank + other), "odd": np.arange(20000)[::3], "none": None}
        def equal(a, b):
            return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        checks = {}
        for root in range(n):
            checks["broadcast", root] = equal(w.broadcast_object(value(root) if me == root else None, root), value(root))
            got = w.gather_object(value(me), root)
            good = got is None if me != root else all(equal(a, value(r)) for r, a in enumerate(got))
            checks["gather", root] = good
            mine = w.scatter_object([value(r, root) for r in range(n)] if me == root else None, root)
            checks["scatter", root] = equal(mine, value(me, root))
            text = w.reduce_object(str(me), lambda a, b: a + b, root)
            checks["reduce", root] = text == ("".join(map(str, range(n))) if me == root else None)
        checks["allgather"] = all(equal(a, value(r)) for r, a in enumerate(w.allgather_object(value(me))))
        all_to_all = w.alltoall_object([value(me, r) for r in range(n)])
        checks["alltoall"] = all(equal(a, value(r, me)) for r, a in enumerate(all_to_all))
        checks["allreduce"] = w.allreduce_object([me], lambda a, b: a + b) == list(range(n))
        request = w.isend_object(value(me), (me + 1) % n, tag=9)
        status = pm.Status()
        checks["send"] = equal(w.recv_object(tag=9, status=status), value((me - 1) % n))
        request.wait(60)
        checks["status"] = (status.source, status.tag) == ((me - 1) % n, 9)
        received = w.allgather_object(np.zeros(5000))[0]
        received += 1  # an array that arrived can be written
        report([name for name, good in checks.items() if not good])
        """,
    )
    assert run.results == [[]] * size


def test_an_object_that_cannot_be_pickled_hangs_nobody(gang) -> None:
    run = gang(
        3,
        """
        import threading
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        bad = threading.Lock()
        mine = bad if w.rank == 1 else w.rank
        said = {}
        def attempt(name, call):
            try:
                said[name] = call()
            except TypeError as error:
                said[name] = str(error)
        attempt("broadcast", lambda: w.broadcast_object(mine, 1))
        attempt("gather", lambda: w.gather_object(mine, 0))
        attempt("allgather", lambda: w.allgather_object(mine))
        attempt("scatter", lambda: w.scatter_object([1, bad, 3] if w.rank == 1 else None, 1))
        attempt("alltoall", lambda: w.alltoall_object([mine, mine, mine]))
        if w.rank == 1:
            attempt("send", lambda: w.send_object(bad, 0))
        if w.rank == 0:
            attempt("send", lambda: w.recv_object(1))
        said["after"] = w.allreduce(1)
        report({name: str(text) for name, text in said.items()})
        """,
    )
    culprit = run.results[1]
    for name in ("broadcast", "gather", "allgather", "scatter", "alltoall", "send"):
        assert "lock" in culprit[name], culprit
        assert "cannot be pickled" in culprit[name]
    for rank in (0, 2):
        for name in ("broadcast", "allgather", "alltoall"):
            assert run.results[rank][name].startswith("rank 1 sent no object"), run.results[rank]
    assert run.results[0]["gather"].startswith("rank 1 sent no object")
    assert run.results[0]["send"].startswith("rank 1 sent no object")
    assert run.results[2]["gather"] == "None"
    assert (run.results[0]["scatter"], run.results[2]["scatter"]) == ("1", "3")
    assert [result["after"] for result in run.results] == ["3"] * 3


def test_a_wrong_number_of_objects_hangs_nobody(gang) -> None:
    run = gang(
        3,
        """
        import pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        said = []
        for call in (
            lambda: w.scatter_object([1, 2] if w.rank == 1 else None, 1),
            lambda: w.scatter_object(None, 1),
            lambda: w.alltoall_object([1, 2, 3][: 2 if w.rank == 1 else 3]),
        ):
            try:
                said.append(call())
            except (pm.UsageError, TypeError) as error:
                said.append(f"{type(error).__name__}: {error}")
        report((said, w.allreduce(1)))
        """,
    )
    for rank, (said, after) in enumerate(run.results):
        assert after == 3
        for text, given in zip(said, ("2 objects", "None", "2 objects"), strict=True):
            assert given in text
            assert text.startswith("UsageError" if rank == 1 else "TypeError: rank 1 sent no object"), text


def test_a_buffer_is_not_taken_for_an_object(gang) -> None:
    run = gang(
        1,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        w.send(np.zeros(100), 0)
        try:
            w.recv_object()
        except ValueError as error:
            report(str(error))
        """,
    )
    assert "receive it with recv()" in run.results[0]


@pytest.mark.parametrize("size", SIZES)
def test_isendrecv_gives_what_sendrecv_gives(gang, size: int) -> None:
    run = gang(
        size,
        """
        import asyncio
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        me, right, left = w.rank, (w.rank + 1) % w.size, (w.rank - 1) % w.size
        checks = {}
        for count in (0, 3, 100000):
            request = pm.isendrecv(np.full(count, float(me)), right, source=left, tag=5, recv_tag=5)
            got = request.wait(60)
            checks["new", count] = got.shape == (count,) and (got == left).all()
            checks["status", count] = (request.source, request.tag, request.nbytes) == (left, 5, 8 * count)
            both = np.full(count, float(me))
            checks["in place", count] = w.isendrecv(both, right, both, left).wait(60) is both and (both == left).all()
        number = w.isendrecv(np.float32(me), right, source=left).wait(60)
        checks["scalar"] = isinstance(number, np.float32) and number == left
        several = [w.isendrecv(np.full(50000, me + k), right, source=left, tag=k, recv_tag=k) for k in range(5)]
        waiting = list(several)
        while any(waiting):
            waiting[pm.wait_any(waiting, 60)] = None
        checks["wait_any"] = all(request.done for request in several)
        checks["wait_all"] = [int(x[-1]) for x in pm.wait_all(several)] == [left + k for k in range(5)]

        async def main():
            requests = [w.isendrecv(np.full(90000, me + k), right, source=left, tag=k, recv_tag=k) for k in range(5)]
            return [int(x[0]) for x in await asyncio.gather(*map(asyncio.ensure_future, map(one, requests)))]

        async def one(request):
            return await request

        checks["await"] = asyncio.run(main()) == [left + k for k in range(5)]
        report([name for name, good in checks.items() if not good])
        """,
    )
    assert run.results == [[]] * size


def test_isendrecv_is_over_when_both_halves_are(gang) -> None:
    run = gang(
        2,
        """
        import asyncio, select
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        other = w.dup()
        big = np.full(5_000_000, 1.0)  # too long to be sent before the receiver comes
        if w.rank == 0:
            half = w.isendrecv(big, 1, np.zeros(1), 1)
            descriptor = half.fileno()
            select.select([descriptor], [], [])
            steps = [half.done]
            for wait in (lambda: half.wait(0.01), lambda: pm.wait_any([half], 0.01), lambda: pm.wait_all([half], 0.01)):
                try:
                    steps.append(wait())
                except pm.RequestTimeout:
                    steps.append("late")
            other.barrier()
            select.select([descriptor], [], [])

            async def result():
                return (await half).tolist()

            steps += [asyncio.run(result()), half.done, pm.wait_any([half])]
            other.barrier()
            uneven = w.isendrecv(np.zeros(3), 1, source=1)
            try:
                uneven.wait(60)
            except ValueError as error:
                steps.append(str(error))
            report(steps)
        else:
            w.send(np.full(1, 7.0), 0)
            other.barrier()
            got = w.recv(np.zeros(5_000_000), 0)
            other.barrier()
            w.send(np.zeros(2), 0)
            w.recv(np.zeros(3), 0)
            report(float(got.sum()))
        """,
    )
    steps, total = run.results
    assert steps[:7] == [False, "late", "late", "late", [7.0], True, 0]
    assert "16 bytes where it sent 24" in steps[7]
    assert total == 5_000_000.0
