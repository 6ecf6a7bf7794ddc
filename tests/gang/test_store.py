# SPDX-License-Identifier: Apache-2.0
"""The store between ranks, under the real command: agreement, deadlines, deaths, garbage, forks."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("n", [1, 4])
def test_ranks_meet_before_init(gang, n: int) -> None:
    run = gang(
        n,
        """
        import threading
        import pmrun as pm
        from gang_report import report
        rank, size = pm.rank(), pm.world_size()
        pm.store.set(f"from/{rank}", f"rank {rank}")
        heard = pm.store.get_many(f"from/{i}" for i in range(size))
        threads = [threading.Thread(target=pm.store.add, args=("n",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = pm.store.compare_and_set("winner", None, str(rank))
        pm.store.set(f"done/{rank}", b"")
        pm.store.wait([f"done/{i}" for i in range(size)], timeout=30)
        report((heard, int(pm.store.get("n")), won.swapped, won.current, pm.store.keys("from/"), pm.init().size))
        """,
    )
    names = [f"from/{rank}" for rank in range(n)]
    heard = [f"rank {rank}".encode() for rank in range(n)]
    assert [result[2] for result in run.results].count(True) == 1
    (winner,) = (rank for rank, result in enumerate(run.results) if result[2])
    for result in run.results:
        assert result[:2] == (heard, 8 * n) and result[3:] == (str(winner).encode(), names, n)


def test_a_key_that_nobody_sets(gang) -> None:
    run = gang(
        3,
        """
        import pmrun as pm
        from gang_report import report
        if pm.rank() == 1:
            pm.store.wait("go")
            try:
                pm.store.get_many(["go", "address"], timeout=0.2)
            except pm.StoreTimeout as error:
                report(str(error))
            pm.store.set("over", b"")
        elif pm.rank() == 0:
            pm.store.set("go", b"")
            pm.store.wait("over")
        else:
            open(0).read()  # only then: rank 2 has not used the store
            pm.store.wait("over")
        """,
        options=["--stdin", "2"],
        stdin="x",
    )
    assert run.results[1] in (
        "nobody set 'address' within 0.2 s",
        "nobody set 'address' within 0.2 s; rank 2 has not used the store yet",
    )


def test_a_rank_dies_while_others_wait(gang) -> None:
    run = gang(
        4,
        """
        import os, signal
        import pmrun as pm
        from gang_report import report
        pm.store.add("here")
        if pm.rank() == 2:
            while int(pm.store.get("here")) < 4:
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            pm.store.get("never")
        except pm.RankFailed as error:
            report((error.rank, error.reason))
            raise
        """,
        check=False,
    )
    assert run.returncode == 137
    assert [run.results[rank] for rank in (0, 1, 3)] == [(2, "killed by SIGKILL")] * 3
    assert "rank 2 failed first" in run.stderr


def test_an_exception_in_a_rank_is_the_reason(gang) -> None:
    run = gang(
        2,
        """
        import pmrun as pm
        from gang_report import report
        pm.init()
        if pm.rank() == 0:
            pm.store.wait("here")
            raise ValueError("no luck")
        pm.store.set("here", b"")
        try:
            pm.store.get("never")
        except pm.RankFailed as error:
            report(error.reason)
            raise
        """,
        check=False,
    )
    assert run.returncode == 1
    assert run.results[1].startswith("ValueError: no luck (body.py:")
    assert "rank 0 failed first" in run.stderr and "ValueError: no luck" in run.errors[0]


def test_garbage_ends_that_ranks_store_alone(gang) -> None:
    run = gang(
        2,
        """
        import os
        import pmrun as pm
        from pmrun import env
        from gang_report import report
        if pm.rank() == 0:
            pm.store.set("a", b"x")
            os.write(int(os.environ[env.STORE_FD]), b"\\xff" * 64)
            try:
                pm.store.get("a")
            except pm.StoreError as error:
                report(str(error))
            world = pm.init()
            world.barrier()
        else:
            world = pm.init()
            world.barrier()
            report(pm.store.get("a"))
        """,
    )
    assert "rank 0 sent bytes to its store that are no request" in run.results[0]
    assert run.results[1] == b"x"
    assert "pmrun: rank 0 sent bytes to its store that are no request" in run.stderr


def test_a_program_that_a_rank_starts_has_no_store(gang) -> None:
    run = gang(
        1,
        """
        import os, subprocess, sys
        import pmrun as pm
        from gang_report import report
        pm.store.set("a", b"")
        code = "import pmrun as pm; pm.store.get('a')"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, close_fds=False)
        report(run.stderr.splitlines()[-1])
        """,
    )
    assert "only the process that pmrun started is a rank" in run.results[0]


def test_processes_of_one_rank_one_after_the_other(gang) -> None:
    run = gang(
        1,
        """
        import os, subprocess, sys
        from pmrun import env
        from gang_report import report
        code = "import pmrun as pm; print(pm.store.add('n'))"
        fd = int(os.environ[env.STORE_FD])
        report([subprocess.check_output([sys.executable, "-c", code], pass_fds=[fd], text=True) for _ in range(3)])
        """,
    )
    assert run.results == [["1\n", "2\n", "3\n"]]


def test_each_attempt_begins_empty(gang) -> None:
    body = "import pmrun as pm; from gang_report import report; report(pm.store.keys()); pm.store.set('a', b'')"
    assert gang(1, body).results == gang(1, body).results == [[]]
