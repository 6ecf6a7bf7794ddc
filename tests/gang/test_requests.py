# SPDX-License-Identifier: Apache-2.0
"""Requests on two and three ranks: waiting, with and without a limit, testing, awaiting in an event loop, dropping."""

from __future__ import annotations


def test_results_come_with_wait_and_again(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        x = np.ones(1000)
        requests = [w.iallreduce(x * k) for k in range(5)]
        out = np.zeros((1000, 2))[:, 0]
        last = w.iallreduce(x, out=out)
        results = pm.wait_all(requests, timeout=60)
        same = requests[3].wait() is results[3] and requests[3].test() and requests[3].done
        strided = last.wait(60) is out and out.tolist() == [2.0] * 1000
        report(([float(r[0]) for r in results], same, strided, repr(last), w.iallreduce(3).wait(60)))
        """,
    )
    assert run.results == [([0.0, 2.0, 4.0, 6.0, 8.0], True, True, "<Request completed>", 6)] * 2


def test_a_wait_that_runs_out_leaves_the_operation_running(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        other = w.dup()
        if w.rank == 0:
            request = w.iallreduce(np.ones(3))
            before = request.test()
            try:
                request.wait(0.05)
            except pm.RequestTimeout as error:
                ran_out = isinstance(error, TimeoutError)
            try:
                pm.wait_any([None, request], 0.01)
            except pm.RequestTimeout:
                any_ran_out = True
            try:
                pm.wait_all([request], 0.01)
            except TimeoutError:
                all_ran_out = True
            other.barrier()
            report((before, ran_out, any_ran_out, all_ran_out, request.wait(60).tolist()))
        else:
            other.barrier()
            report(w.allreduce(np.ones(3)).tolist())
        """,
    )
    assert run.results == [(False, True, True, True, [2.0, 2.0, 2.0]), [2.0, 2.0, 2.0]]


def test_wait_any_finds_the_one_that_is_over(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        if w.rank == 0:
            buffers = [np.zeros(1) for _ in range(4)]
            requests = [w.irecv(buffer, 1, tag) for tag, buffer in enumerate(buffers)]
            order = []
            w.barrier()
            while any(request is not None for request in requests):
                index = pm.wait_any(requests, 60)
                order.append((index, float(requests[index].wait()[0])))
                requests[index] = None
                w.send(np.zeros(1), 1)
            report(order)
        else:
            w.barrier()
            for tag in (2, 0, 3, 1):
                w.send(np.full(1, 10.0 + tag), 0, tag)
                w.recv(np.zeros(1), 0)
            report(None)
        """,
    )
    assert run.results[0] == [(2, 12.0), (0, 10.0), (3, 13.0), (1, 11.0)]


def test_requests_are_awaited_by_an_event_loop(gang) -> None:
    run = gang(
        2,
        """
        import asyncio
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)

        async def result_of(request):
            return await request

        async def main():
            peer = 1 - w.rank
            late = w.irecv(np.zeros(1), peer, 1)
            waiting = [asyncio.ensure_future(result_of(late)) for _ in range(3)]
            total = await w.iallreduce(np.ones(2))
            done, _ = await asyncio.wait(waiting, timeout=0.01)
            waiting[0].cancel()  # the others go on
            await asyncio.gather(waiting[0], return_exceptions=True)
            w.barrier()
            w.send(np.full(1, 7.0), peer, 1)
            first, second = await asyncio.gather(*waiting[1:])
            again = await late
            return total.tolist(), len(done), waiting[0].cancelled(), float(first[0]), first is second is again

        report(asyncio.run(main()))
        """,
    )
    assert run.results == [([2.0, 2.0], 0, True, 7.0, True)] * 2


def test_a_dropped_request_keeps_its_buffers(gang) -> None:
    run = gang(
        2,
        """
        import gc, weakref
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        other = w.dup()
        if w.rank == 0:
            x = np.full(300000, 5.0)
            kept = weakref.ref(x)
            w.iallreduce(x)  # dropped at once
            del x
            gc.collect()
            running = kept() is not None
            other.barrier()
            w.barrier()
            w.iallreduce(1).wait(60)  # a later call lets go of it
            gc.collect()
            report((running, kept() is None))
        else:
            other.barrier()
            total = w.allreduce(np.ones(300000))
            w.barrier()
            w.iallreduce(1).wait(60)
            report((total.min(), total.max()))
        """,
    )
    assert run.results == [(True, True), (6.0, 6.0)]


def test_many_at_once_and_messages_beside_them(gang) -> None:
    run = gang(
        3,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        n, me = w.size, w.rank
        inbox = [w.irecv(np.zeros(5000), (me - 1) % n, tag) for tag in range(20)]
        sums = [w.iallreduce(np.full(2000, float(k + me))) for k in range(40)]
        outbox = [w.isend(np.full(5000, float(tag + me)), (me + 1) % n, tag) for tag in reversed(range(20))]
        plain = w.allreduce(me)  # after the forty, in the order of the calls
        pm.wait_all(outbox, 60)
        received = [float(r[0]) for r in pm.wait_all(inbox, 60)]
        report((plain, [float(r[-1]) for r in pm.wait_all(sums, 60)], [r - (me - 1) % n for r in received]))
        """,
    )
    assert run.results == [(3, [3.0 * k + 3 for k in range(40)], [float(t) for t in range(20)])] * 3
