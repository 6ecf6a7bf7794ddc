# SPDX-License-Identifier: Apache-2.0
"""init, shutdown, fork, threads, signals, and what an uncaught exception tells the others."""

from __future__ import annotations

import pytest


def test_a_world_under_the_command_and_its_place(gang) -> None:
    run = gang(
        3,
        """
        import pmrun as pm
        from gang_report import report
        before = (pm.rank(), pm.world_size(), pm.local_rank(), pm.local_world_size(), pm.node_rank(), pm.num_nodes())
        initialized = pm.is_initialized()
        w = pm.init()
        assert pm.world is w and pm.is_initialized() and not initialized
        p = pm.current.parallel
        report((before, w.rank, w.size, w.id, pm.peers == (p.main_ip,), p.num_nodes, p.node_index,
                p.control_task_id.endswith("-0"), pm.current.is_parallel, w.timeout, repr(w),
                int(pm.allreduce(w.rank)), pm.broadcast_object("x" if w.rank == 0 else None)))
        """,
    )
    for rank, result in enumerate(run.results):
        assert result == (
            (rank, 3, rank, 3, 0, 1), rank, 3, 0, True, 1, 0, True, True, None,
            f"<Communicator 0: rank {rank} of 3>", 3, "x",
        )  # fmt: skip


def test_twice_and_after_the_end(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        said = []
        def attempt(call):
            try:
                call()
                said.append(None)
            except pm.PmrunError as error:
                said.append((type(error).__name__, str(error)))
        attempt(lambda: pm.world)
        attempt(lambda: pm.allreduce(1))
        attempt(lambda: pm.empty(3))
        w = pm.init()
        attempt(pm.init)
        half = w.dup()
        request, running = w.iallreduce(1), w.irecv(np.zeros(1), tag=77)
        request.wait()
        half.free()
        half.free()
        attempt(half.barrier)
        attempt(lambda: half.id)
        pm.shutdown()
        pm.shutdown()
        for call in (w.barrier, lambda: w.id, lambda: w.irecv(np.zeros(1)), running.wait, running.test,
                     lambda: pm.world, lambda: pm.barrier(), lambda: pm.zeros(1), pm.init, w.free):
            attempt(call)
        report((said, int(request.wait()), repr(w), pm.is_initialized(), w.rank))
        """,
    )
    for rank, (said, result, text, initialized, own) in enumerate(run.results):
        kinds = [outcome and outcome[0] for outcome in said]
        assert kinds == ["NotInitializedError"] * 3 + ["AlreadyInitializedError"] + ["NotInitializedError"] * 12, said
        assert "body.py:14 in <module>" in said[3][1]
        assert "freed" in said[4][1]
        assert (result, text, initialized, own) == (2, "<Communicator closed>", False, rank)


def test_a_fork_cannot_use_and_does_not_disturb(gang) -> None:
    run = gang(
        2,
        """
        import os, pickle, sys
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        array = pm.ones = pm.zeros(1000)
        with pm.shared_arrays():
            hooked = np.zeros(100000)
        pending = w.iallreduce(np.ones(1000))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            said = []
            for call in (w.barrier, lambda: w.allreduce(1), pm.init, lambda: pm.world.barrier(), pending.wait,
                         lambda: pm.empty(3), w.dup):
                try:
                    call()
                    said.append(None)
                except pm.PmrunError as error:
                    said.append(type(error).__name__)
            del array, hooked, pending
            os.write(writer, pickle.dumps(said))
            os.close(writer)
            sys.exit(0)  # runs the exit handlers of its parent
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pickle.load(pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        array += w.allreduce(1.0)
        report((said, code, float(array.sum()), float(pending.wait(60).sum())))
        """,
    )
    assert run.results == [(["ForkedError"] * 7, 0, 2000.0, 2000.0)] * 2


def test_a_fork_knows_whose_it_is_and_is_no_rank(gang) -> None:
    run = gang(
        2,
        """
        import os, pickle
        import pmrun as pm
        from gang_report import report
        world = pm.init(timeout=60)
        def place():
            return (pm.rank(), pm.world_size(), pm.local_rank(), pm.local_world_size(), pm.node_rank(), pm.num_nodes(),
                    pm.peers, pm.current.parallel, pm.current.is_parallel)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            said = []
            for call in (lambda: pm.world, pm.barrier, lambda: pm.rank_of_nothing):
                try:
                    call()
                    said.append(None)
                except (pm.PmrunError, AttributeError) as error:
                    said.append(type(error).__name__)
            os.write(writer, pickle.dumps((place(), pm.is_initialized(), said, repr(world))))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            theirs, initialized, said, shown = pickle.load(pipe)
        report((theirs == place(), place()[0], initialized, said, shown, os.waitpid(child, 0)[1], pm.world is world))
        """,
    )
    for rank, result in enumerate(run.results):
        assert result == (
            True, rank, False, ["ForkedError", "ForkedError", "AttributeError"], "<Communicator closed>", 0, True,
        )  # fmt: skip


def test_a_program_that_a_rank_starts_is_no_rank(gang) -> None:
    run = gang(
        1,
        """
        import subprocess, sys
        import pmrun as pm
        from gang_report import report
        pm.init()
        run = subprocess.run([sys.executable, "-c", "import pmrun as pm; pm.init()"], text=True, capture_output=True)
        report((run.returncode, run.stderr.splitlines()[-1]))
        """,
    )
    code, line = run.results[0]
    assert code == 1
    assert "UsageError" in line
    assert "PMRUN_WINDOW_FD" in line


def test_threads_take_turns(gang) -> None:
    run = gang(
        2,
        """
        import threading
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        sums, failures = [], []
        own = [w.dup() for _ in range(4)]
        def work(index):
            try:
                for number in range(200):
                    sums.append(own[index].allreduce(index) == 2 * index)
                    w.send(np.int64(number), w.rank, tag=index)
                    got = w.recv(np.empty(1, "i8"), w.rank, index)
                    sums.append(got[0] == number)
            except Exception as error:
                failures.append(repr(error))
        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report((len(sums), all(sums), failures))
        """,
    )
    assert run.results == [(1600, True, [])] * 2


@pytest.mark.slow
def test_a_thread_does_not_wait_for_another_for_ever(gang) -> None:
    run = gang(
        2,
        """
        import threading
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        free = w.dup()
        if w.rank == 0:
            reader = threading.Thread(target=lambda: w.recv(np.zeros(1), 1))
            reader.start()
            while True:  # until the reader is inside
                try:
                    w.probe(timeout=0)
                except pm.UsageError as error:
                    said = str(error)
                    break
            free.barrier()
            reader.join()
            report(said)
        else:
            free.barrier()
            w.send(np.zeros(1), 0)
            report(None)
        """,
    )
    assert "another thread" in run.results[0]
    assert "dup()" in run.results[0]


def test_a_thread_may_still_wait_when_the_program_ends(gang) -> None:
    run = gang(
        2,
        """
        import threading
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        inner = w.dup()
        inside = threading.Event()
        def read():
            inside.set()
            inner.recv(np.zeros(1), tag=5)
        threading.Thread(target=read, daemon=True).start()
        inside.wait()
        w.barrier()
        report(True)
        """,
    )
    assert run.results == [True, True]


def test_a_signal_reaches_a_rank_that_waits(gang) -> None:
    run = gang(
        1,
        """
        import os, signal, threading
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init()
        caught = []
        def handler(number, frame):
            caught.append(number)
            if len(caught) == 2:
                raise KeyboardInterrupt
        signal.signal(signal.SIGUSR1, handler)
        def poke():
            os.kill(os.getpid(), signal.SIGUSR1)
            while len(caught) < 1:
                pass
            os.kill(os.getpid(), signal.SIGUSR1)
        ends = []
        for call in (lambda: w.irecv(np.zeros(1)).wait(), lambda: w.recv(np.zeros(1)), lambda: w.probe(),
                     lambda: pm.wait_any([w.irecv(np.zeros(1), tag=3)])):
            caught.clear()
            thread = threading.Thread(target=poke)
            thread.start()
            try:
                call()
            except KeyboardInterrupt:
                ends.append(list(caught))
            thread.join()
        report(ends)
        """,
        timeout=30,
    )
    import signal

    assert run.results == [[[signal.SIGUSR1] * 2] * 4]


def test_the_first_cause_is_told_and_followers_are_not(gang) -> None:
    run = gang(
        3,
        """
        import pmrun as pm
        from gang_report import report
        w = pm.init()
        def main():
            if w.rank == 1:
                raise ValueError("bad\\nnews")
            try:
                w.barrier()
            except pm.RankFailed as error:
                report((error.rank, str(error)))
                raise
        main()
        """,
        check=False,
    )
    for rank in (0, 2):
        culprit, text = run.results[rank]
        assert culprit == 1
        assert "ValueError: bad (body.py:7 in main)" in text
    assert run.returncode == 1


def test_a_deadline_names_who_is_missing(gang) -> None:
    run = gang(
        2,
        """
        import pmrun as pm
        from gang_report import report
        w = pm.init(timeout=0.2)
        if w.rank == 0:
            try:
                w.barrier()
            except pm.CollectiveTimeout as error:
                report((w.timeout, str(error)))
        else:
            w.timeout = None
            report(None)
            try:
                w.recv(None)
            except pm.PmrunError:
                pass
        """,
        check=False,
    )
    timeout, text = run.results[0]
    assert timeout == 0.2
    assert "rank 1" in text or "rank(s) 1" in text or " 1" in text


def test_timeouts_are_inherited(gang) -> None:
    run = gang(
        1,
        """
        import pmrun as pm
        from gang_report import report
        w = pm.init()
        half = w.dup()
        w.timeout = 2
        report((half.timeout, w.dup().timeout, w.timeout))
        """,
        env={"PMRUN_COLLECTIVE_TIMEOUT": "7.5"},
    )
    assert run.results == [(7.5, 2.0, 2.0)]


def test_calls_leave_nothing_behind(gang) -> None:
    run = gang(
        2,
        """
        import gc, sys
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        x, strided, wide = np.ones(300), np.ones(600)[::2], np.ones((2, 300))
        frozen = np.zeros(300)
        frozen.flags.writeable = False
        def fails(call):
            try:
                call()
            except (TypeError, ValueError):
                return
            raise AssertionError("accepted")
        def everything():
            w.allreduce(x), w.allreduce(strided, out=strided), w.allreduce(1), w.broadcast(strided), w.barrier()
            w.reduce(x), w.scan(x), w.exscan(x), w.gather(x), w.allgather(strided), w.alltoall(wide)
            w.scatter(wide), w.reduce_scatter(wide), w.allgatherv(x), w.alltoallv(wide, [1, 1]), w.scatterv(wide, [1, 1])
            w.iallreduce(x).wait(), w.iallreduce(strided), pm.wait_all([w.ibarrier(), w.iscan(x)])
            w.sendrecv(x, 1 - w.rank), w.isend(x, 1 - w.rank), w.recv(), w.probe(timeout=0)
            w.allgather_object([1, x]), w.broadcast_object(x), pm.allreduce(x), w.allreduce(memoryview(x))
            fails(lambda: w.allreduce(x, "no")), fails(lambda: w.allreduce(x, out=frozen)), fails(lambda: w.send(x, 9))
            fails(lambda: w.allreduce(x, "band")), fails(lambda: w.gatherv(1)), fails(lambda: w.broadcast(x, 5))
            pm.zeros(10), pm.shared(10)
            with pm.shared_arrays():
                np.ones(100)
        counts = []
        for _ in range(4):
            for _ in range(100):
                everything()
            w.iallreduce(1).wait()
            gc.collect()
            counts.append(sys.getallocatedblocks())
        references = [sys.getrefcount(a) for a in (x, strided, wide, frozen, w, None.__class__)]
        report((counts, references))
        """,
    )
    for counts, references in run.results:
        assert abs(counts[3] - counts[2]) < 100, counts  # 100 rounds of some 40 calls
        assert max(references[:4]) < 12, references
