# SPDX-License-Identifier: Apache-2.0
"""Arrays in the window: pm.empty, pm.zeros, pm.shared, and numpy's allocator hook."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_array_that_all_ranks_see(gang, size: int) -> None:
    run = gang(
        size,
        """
        import gc
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        board = pm.shared((w.size, 3), "i4")
        fresh = board.tolist() == [[0] * 3] * w.size
        w.barrier()
        board[w.rank] = w.rank + 1
        w.barrier()
        seen = board.sum()
        w.barrier()
        for _ in range(50):  # the owner's view goes first, the peers' stay valid
            block = pm.shared(100000, "u1")
            block[w.rank] = 7
            w.barrier()
            row = block[: w.size]
            if w.rank == 0:
                del block, row
                gc.collect()
                filler = pm.zeros(100000, "u1")
                filler += 1
            w.barrier()
            if w.rank:
                assert row.tolist() == [7] * w.size, row
            w.barrier()
        half = w.split(w.rank % 2)
        mine = pm.shared((), "f8", comm=half)
        mine += 1 if half.rank == 0 else 0
        half.barrier()
        report((fresh, int(seen), float(mine), pm.shared((0, 4)).shape))
        """,
    )
    assert run.results == [(True, 3 * size * (size + 1) // 2, 1.0, (0, 4))] * size


def test_arrays_in_the_window_are_numpys(gang) -> None:
    run = gang(
        1,
        """
        import gc, pickle
        import ml_dtypes
        import numpy as np, pmrun as pm
        from pmrun import _native
        from gang_report import report
        pm.init()
        checks = {}
        a = pm.empty((3, 4), np.float32)
        checks["plain"] = (type(a), a.shape, str(a.dtype), a.flags.c_contiguous, a.flags.writeable, a.flags.aligned)
        checks["covered"] = (_native.heap_covers(a), _native.heap_covers(np.empty(3)))
        checks["aligned"] = a.ctypes.data % 64
        checks["zeros"] = pm.zeros(1000, "c16").any()
        checks["shapes"] = (pm.empty(5).shape, pm.empty(()).shape, pm.empty([2, np.int64(3)]).shape, pm.empty(0).shape)
        checks["bfloat16"] = str(pm.zeros(2, "bfloat16").dtype)
        checks["record"] = pm.zeros(2, [("a", "i4"), ("b", "f8")]).tolist()
        a[...] = 1
        view = a[1:, ::2]
        del a
        gc.collect()
        pm.zeros((3, 4), np.float32)
        checks["view outlives"] = view.tolist()
        first = pm.empty(1 << 20, "u1").ctypes.data
        again = {pm.empty(1 << 20, "u1").ctypes.data for _ in range(20)}
        checks["freed"] = again == {first}
        checks["pickled"] = pickle.loads(pickle.dumps(view)).tolist()
        report(checks)
        """,
    )
    checks = run.results[0]
    assert checks.pop("plain")[1:] == ((3, 4), "float32", True, True, True)
    assert checks == {
        "covered": (True, False),
        "aligned": 0,
        "zeros": False,
        "shapes": ((5,), (), (2, 3), (0,)),
        "bfloat16": "bfloat16",
        "record": [(0, 0.0), (0, 0.0)],
        "view outlives": [[1.0, 1.0], [1.0, 1.0]],
        "freed": True,
        "pickled": [[1.0, 1.0], [1.0, 1.0]],
    }


def test_numpys_own_arrays_in_the_window(gang) -> None:
    run = gang(
        2,
        """
        import threading
        import numpy as np, pmrun as pm
        from pmrun import _native
        from gang_report import report
        w = pm.init(timeout=60)
        before = np.ones(1000)
        with pm.shared_arrays():
            inside = np.ones((100, 100))
            sums = inside @ inside
            grown = np.zeros(10)
            grown.resize(100000, refcheck=False)
            before.resize(2000, refcheck=False)
            elsewhere = []
            thread = threading.Thread(target=lambda: elsewhere.append(np.ones(10000)))
            thread.start()
            thread.join()
            with pm.shared_arrays():
                nested = np.arange(1000)
            still = np.arange(1000)
        after = np.ones(10000)
        covered = [_native.heap_covers(x) for x in (inside, sums, grown, nested, still, before, after, elsewhere[0])]
        total = w.allreduce(inside)
        inside.resize(200, refcheck=False)  # outside of the block, an array of it grows where it is
        report((covered, float(total.sum()), float(grown.sum()), float(before[:1000].sum()), inside.sum()))
        """,
    )
    assert run.results == [([True] * 5 + [False] * 3, 20000.0, 0.0, 1000.0, 200.0)] * 2


def test_arrays_outlive_the_context(gang) -> None:
    run = gang(
        1,
        """
        import gc
        import numpy as np, pmrun as pm
        from gang_report import report
        pm.init()
        own = pm.zeros(100000)
        with pm.shared_arrays():
            hooked = np.ones(100000)
            dropped = np.ones(100000)
        shared = pm.shared(10)
        pm.shutdown()
        del dropped, shared
        gc.collect()
        own += 1
        hooked += own
        report(float(hooked.sum()))
        """,
    )
    assert run.results == [200000.0]


def test_what_does_not_fit_is_said(gang) -> None:
    run = gang(
        2,
        """
        import pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        said = []
        for call in (
            lambda: pm.empty(1 << 55, "u1"),
            lambda: pm.empty(1 << 62, "f8"),
            lambda: pm.shared(1 << 55, "u1"),
            lambda: pm.empty(-1),
            lambda: pm.empty(2.5),
            lambda: pm.empty(3, object),
            lambda: pm.shared(3, "O"),
        ):
            try:
                call()
            except (MemoryError, ValueError, TypeError) as error:
                said.append((type(error).__name__, str(error)))
        w.barrier()
        report(said)
        """,
    )
    for said in run.results:
        kinds = [kind for kind, _ in said]
        assert kinds == [
            "MemoryError",
            "UsageError",
            "MemoryError",
            "UsageError",
            "TypeError",
            "TypeError",
            "TypeError",
        ]
        assert "window heap" in said[0][1]
        assert "window heap" in said[2][1]
        assert "negative" in said[3][1]
        assert "Python objects" in said[5][1]


def test_ranks_that_ask_for_different_shared_arrays_all_raise(gang) -> None:
    run = gang(
        3,
        """
        import pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        said = []
        for shape, dtype in (((4 + w.rank,), "f8"), ((4,), ["f8", "f8", "f4"][w.rank]), ([2, (2, 1), 2][w.rank], "f8")):
            try:
                pm.shared(shape, dtype)
                said.append(None)
            except pm.UsageError as error:
                said.append(str(error))
        board = pm.shared(3, "i8")
        board[w.rank] = 1
        w.barrier()
        report((said, int(board.sum())))
        """,
    )
    for said, total in run.results:
        assert total == 3
        for text, words in zip(
            said, ["rank 1 for shape (5,)", "rank 2 for shape (4,) of float32", "(2, 1)"], strict=True
        ):
            assert words in text
            assert "same on every rank" in text
