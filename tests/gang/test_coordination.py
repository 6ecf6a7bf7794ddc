# SPDX-License-Identifier: Apache-2.0
"""Turns, permits, barriers, ports and the work queue between ranks, under the real command; the queue with kills."""

from __future__ import annotations

import pytest


def test_one_holder_at_a_time_in_the_order_of_asking(gang) -> None:
    run = gang(
        4,
        """
        import pmrun as pm
        from gang_report import report
        lock, inside, seen = pm.Lock("x"), pm.Counter("inside"), []
        for _ in range(20):
            with lock:
                seen.append(inside.add(1))
                inside.add(-1)
        two, most = pm.Semaphore("two", 2), []
        for _ in range(20):
            with two:
                most.append(pm.store.add("in", 1))
                pm.store.add("in", -1)
        report((max(seen), max(most)))
        """,
    )
    assert {result[0] for result in run.results} == {1}
    assert max(result[1] for result in run.results) <= 2


def test_who_gives_up_waiting_is_passed_over_and_told_who_has_it(gang) -> None:
    run = gang(
        3,
        """
        import pmrun as pm
        from gang_report import report
        lock = pm.Lock("x")
        if pm.rank() == 0:
            lock.acquire()
            pm.store.set("taken", b"")
            pm.store.wait("gave up")
            lock.release()
            try:
                lock.release()
            except pm.UsageError as error:
                report(str(error))
        else:
            pm.store.wait("taken" if pm.rank() == 1 else "gave up")
            try:
                lock.acquire(timeout=0.1 if pm.rank() == 1 else 30)
                report("got it")
            except pm.StoreTimeout as error:
                report(str(error))
                pm.store.set("gave up", b"")
        """,
    )
    assert run.results[0] == "release of 'x', which this rank does not hold"
    assert run.results[1] == "'x' did not become free in time: held by rank 0"
    assert run.results[2] == "got it"


def test_permits_are_spaced_for_all_ranks_together(gang) -> None:
    run = gang(
        3,
        """
        import time
        import pmrun as pm
        from gang_report import report
        limit = pm.RateLimit("api", per_second=100, burst=5)
        began = time.monotonic()
        for _ in range(8):
            limit.acquire()
        ended = time.monotonic()
        try:
            limit.acquire(count=1000, timeout=0.01)
            pm.RateLimit("api", 100).acquire(timeout=0.001)
        except pm.StoreTimeout as error:
            report((began, ended, str(error)))
        """,
    )
    took = max(result[1] for result in run.results) - min(result[0] for result in run.results)
    assert took >= (24 - 5) / 100 - 0.001  # 24 permits, 5 of them at once
    assert "the next permit is due in" in run.results[0][2]


def test_a_barrier_opens_for_all_and_names_who_did_not_come(gang) -> None:
    run = gang(
        3,
        """
        import pmrun as pm
        from gang_report import report
        barrier = pm.Barrier("round")
        places = [barrier.wait(timeout=30) for _ in range(5)]
        late = pm.Barrier("late")
        if pm.rank() == 2:
            pm.store.wait(["told/0", "told/1"])
            report((places, ""))
        else:
            try:
                late.wait(timeout=0.2 if pm.rank() else 30)
            except (pm.StoreTimeout, pm.StoreError) as error:
                report((places, str(error)))
            pm.store.set(f"told/{pm.rank()}", b"")
        """,
    )
    assert all(sorted(places) == [0, 1, 2] for places in zip(*(result[0] for result in run.results), strict=True))
    told = [result[1] for result in run.results]
    assert told[1] in ("barrier 'late': rank 2 did not come in time", "barrier 'late': ranks 0, 2 did not come in time")
    assert told[0].startswith("barrier 'late': rank 1 gave up waiting: rank")


def test_a_port_is_found_by_name_and_belongs_to_one(gang) -> None:
    run = gang(
        2,
        """
        import pmrun as pm
        from gang_report import report
        if pm.rank() == 0:
            with pm.listen("params") as server:
                sock, _ = server.accept()
                with sock:
                    sock.sendall(b"hello")
                pm.store.wait("done")
                report(pm.address_of("params") == server.getsockname()[:2])
        else:
            with pm.connect("params", timeout=30) as sock:
                heard = sock.recv(5)
            try:
                pm.listen("params")
            except pm.UsageError as error:
                report((heard, str(error)))
            pm.store.set("done", b"")
        """,
    )
    assert run.results[0] is True
    assert run.results[1][0] == b"hello" and "rank 0 listens by this name" in run.results[1][1]


@pytest.mark.parametrize("n", [1, 4])
def test_each_item_has_one_result_in_its_place(gang, n: int) -> None:
    run = gang(
        n,
        """
        import pmrun as pm
        from gang_report import report
        fast = pm.WorkQueue(range(5000))
        done = 0
        for task in fast:
            task.result = task.item * 2
            done += 1
        named = pm.WorkQueue(["a", "bb", "ccc"], "words", lease=2).run(len)
        empty = pm.WorkQueue([]).run(len)
        large = pm.WorkQueue(range(8), lease=8).run(lambda size: bytes(300000))
        report((done, fast.results() == [2 * i for i in range(5000)], named, empty, [len(value) for value in large]))
        """,
    )
    assert sum(result[0] for result in run.results) == 5000
    assert all(result[1:] == (True, [1, 2, 3], [], [300000] * 8) for result in run.results)


def test_what_a_queue_refuses_and_what_it_tells(gang) -> None:
    run = gang(
        2,
        """
        import pmrun as pm
        from gang_report import report
        said = []
        def refused(make, *kinds):
            try:
                make()
            except kinds as error:
                said.append(str(error))
        queue = pm.WorkQueue(range(4), "one", lease=2)
        refused(lambda: pm.WorkQueue(range(4), "one"), pm.UsageError)
        refused(lambda: pm.WorkQueue(range(4), lease=0), pm.UsageError)
        pm.Barrier("a").wait()
        if pm.rank() == 0:
            for task in queue:
                break  # both items of the lease go back
            pm.store.set("left", b"")
            refused(lambda: queue.results(timeout=0), pm.StoreTimeout)
            refused(lambda: pm.WorkQueue([0]).run(lambda item: bytes(2 << 20)), pm.UsageError)
        pm.Barrier("b").wait()
        if pm.rank() == 1:
            said.append(sorted(task.index for task in queue))
        report(said)
        """,
    )
    twice, lease, unfinished, large = run.results[0]
    assert twice == "WorkQueue: this rank has had a queue named 'one': give each a name of its own"
    assert lease == "WorkQueue: lease=0: it must be at least 1"
    assert unfinished == "queue 'one': 4 of 4 items are not done: items 0-2 given back, and nobody takes them"
    assert large.startswith("the queue: the result of item 0 has 20971") and large.endswith(
        "save it in a file and return its name"
    )
    assert run.results[1][-1] == [0, 1, 2, 3]


@pytest.mark.parametrize("victim", ["rank", "agent"])
def test_kills_lose_no_item_and_double_no_result(gang, victim: str) -> None:
    """Each attempt but the last is killed after some items; what was posted stays, whoever of the two was killed."""
    run = gang(
        3,
        f"""
        import os, signal
        import pmrun as pm
        from gang_report import report
        attempt, done = int(os.environ["PMRUN_ATTEMPT"]), 0
        queue = pm.WorkQueue(range(300), "lasting", lease=3)
        for task in queue:
            task.result = (task.item, attempt)
            done += 1
            if done == 1:
                pm.Barrier("all have a lease").wait(timeout=30)
            if done == 4:
                pm.store.set("one was posted", b"")
            if attempt < 2 and pm.rank() == attempt and done == 2:
                pm.store.wait("one was posted")
                os.kill(os.getpid() if {victim == "rank"} else os.getppid(), signal.SIGKILL)
        report((done, queue.results(timeout=30)))
        """,
        options=["--max-restarts", "2"],
    )
    for _, results in run.results:
        assert [item for item, _ in results] == list(range(300))
        assert {attempt for _, attempt in results} == {0, 1, 2}, "what an attempt did is not done again"
    last = sum(1 for _, attempt in run.results[0][1] if attempt == 2)
    assert sum(done for done, _ in run.results) == last
