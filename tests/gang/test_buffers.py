# SPDX-License-Identifier: Apache-2.0
"""What may be passed: scalars, buffers of other types, torch tensors, DLPack exporters, raw bfloat16."""

from __future__ import annotations

import importlib.util

import pytest


def test_numbers_go_in_and_come_out(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        me = w.rank
        got = {
            "int": w.allreduce(me + 1),
            "float": w.allreduce(1.5),
            "bool": w.allreduce(me == 0, "lor"),
            "complex": w.allreduce(1j),
            "scalar": w.allreduce(np.float32(2)),
            "0-d": w.allreduce(np.array(3, np.int16)),
            "broadcast": w.broadcast(5.5 if me == 0 else 0.0),
            "broadcast 1": w.broadcast(np.int8(me), 1),
            "scan": w.scan(me + 1),
            "reduce": w.reduce(1, root=1),
            "reduce_scatter": w.reduce_scatter(np.array([1, 2])),
            "scatter": w.scatter(np.array([7, 8]) if me == 0 else None),
            "sendrecv": w.sendrecv(me, 1 - me),
        }
        kinds = {name: type(value).__name__ for name, value in got.items()}
        arrays = (w.gather(me, 1), w.allgather(me * 1.5), w.alltoall(np.arange(2) + 10 * me), w.allgather([me, 3]))
        report((kinds, {n: v if v is None else v.item() for n, v in got.items()},
                [None if a is None else a.tolist() for a in arrays]))
        """,
    )
    kinds, values, arrays = run.results[1]
    assert kinds == {
        "int": "int64", "float": "float64", "bool": "bool", "complex": "complex128", "scalar": "float32",
        "0-d": "int16", "broadcast": "float64", "broadcast 1": "int8", "scan": "int64", "reduce": "int64",
        "reduce_scatter": "int64", "scatter": "int64", "sendrecv": "int64",
    } | ({"bool": kinds["bool"]} if kinds["bool"] == "bool_" else {})  # fmt: skip
    assert values == {
        "int": 3, "float": 3.0, "bool": True, "complex": 2j, "scalar": 4.0, "0-d": 6, "broadcast": 5.5,
        "broadcast 1": 1, "scan": 3, "reduce": 2, "reduce_scatter": 4, "scatter": 8, "sendrecv": 0,
    }  # fmt: skip
    assert arrays == [[0, 1], [0.0, 1.5], [1, 11], [[0, 3], [1, 3]]]
    assert run.results[0][1]["reduce"] is None


def test_buffers_of_other_types(gang) -> None:
    run = gang(
        2,
        """
        import array, ctypes
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        me = w.rank
        got = []
        block = array.array("d", [1.0, 2.0 + me])
        got.append(w.allreduce(block).tolist())
        w.allreduce(block, out=block)
        got.append(list(block))
        letters = bytearray(b"abc" if me == 0 else b"...")
        got.append(bytes(w.broadcast(letters)))
        got.append(w.allgather(b"xy" if me else b"ab").tobytes())
        view = memoryview(bytearray(6))[::2]
        got.append(bytes(w.broadcast(view if me else memoryview(b"123"))))
        numbers = (ctypes.c_int * 3)(1, 2, me)
        got.append(w.allreduce(numbers).tolist())
        class Interface:
            def __init__(self, array):
                self.array = array
                self.__array_interface__ = array.__array_interface__
        got.append(w.allreduce(Interface(np.arange(3.0))).tolist())
        got.append(w.allreduce(np.matrix([[1, 2]])).tolist())
        stamps = np.array(["2026-01-01", "2026-01-02"], "M8[D]") + me
        got.append(w.allgather(stamps).tolist() == [stamps.tolist(), stamps.tolist()] or str(w.rank))
        report(got)
        """,
    )
    for rank, got in enumerate(run.results):
        assert got[0] == [2.0, 5.0]
        assert got[1] == [2.0, 5.0]
        assert got[2:5] == [b"abc", b"abxy", b"123"]
        assert got[5] == [2, 4, 1]
        assert got[6:8] == [[0.0, 2.0, 4.0], [[2, 4]]]
        assert got[8] == str(rank)


def test_raw_bfloat16(gang) -> None:
    run = gang(
        3,
        """
        import ml_dtypes
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        typed = (np.arange(5) * 0.7 + w.rank).astype(ml_dtypes.bfloat16)
        raw = typed.view(np.uint16).copy()
        wanted = w.allreduce(typed)
        got = w.allreduce(raw, dtype="bfloat16")
        checks = [got.dtype == np.uint16, got.tobytes() == wanted.tobytes(), wanted.dtype == typed.dtype]
        w.allreduce(raw, out=raw, dtype="bfloat16")
        checks.append(raw.tobytes() == wanted.tobytes())
        checks.append(w.allreduce(typed, dtype="bfloat16").tobytes() == wanted.tobytes())
        into = np.zeros(5, ml_dtypes.bfloat16)
        checks.append(w.allreduce(typed, out=into) is into and into.tobytes() == wanted.tobytes())
        checks.append(w.reduce_scatter(np.stack([typed] * 3)).tobytes() == wanted.tobytes())
        report(checks)
        """,
    )
    assert run.results == [[True] * 7] * 3


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_tensors(gang) -> None:
    run = gang(
        2,
        """
        import torch
        import pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        me = w.rank
        bad = []
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
            x = torch.tensor([[1, 0, 1], [1, 1, me]]).to(dtype)
            total = w.allreduce(x, "max")
            if type(total) is not torch.Tensor or total.dtype != dtype or total[1, 2] != 1:
                bad.append((dtype, "allreduce"))
            if w.allreduce(x, "max", out=x) is not x or x[1, 2] != 1:
                bad.append((dtype, "in place"))
            strided = torch.zeros(3, 2, dtype=dtype).t()
            if w.broadcast(x if me == 0 else strided) is None or (me and not torch.equal(strided, x)):
                bad.append((dtype, "broadcast"))
            if w.allgather(x).shape != (2, 2, 3) or w.iallgather(x).wait(60).dtype != dtype:
                bad.append((dtype, "allgather"))
            block = w.scatter(x if me == 0 else None)
            if block.dtype != dtype or not torch.equal(block, x[me]):
                bad.append((dtype, "scatter"))
            if w.sendrecv(x, 1 - me).dtype != dtype:
                bad.append((dtype, "sendrecv"))
        leaf = torch.nn.Parameter(torch.ones(3))
        w.allreduce(leaf, out=leaf)
        bad += [] if leaf.tolist() == [2.0] * 3 else [leaf]
        for wrong in (torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64).conj()):
            try:
                w.allreduce(wrong)
                bad.append(wrong)
            except TypeError as error:
                bad += [] if "\\n" not in str(error) else [str(error)]
        report(bad)
        """,
    )
    assert run.results == [[], []]


def test_dlpack_exporters_without_a_copy(gang) -> None:
    run = gang(
        2,
        """
        import gc, weakref
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)

        class Exporter:
            def __init__(self, array, versions=True, device=1):
                self.array, self.versions, self.device = array, versions, device
            def __dlpack_device__(self):
                return (self.device, 0)
            def __dlpack__(self, **options):
                if options and not self.versions:
                    raise TypeError("unexpected keyword")
                return self.array.__dlpack__(**options)

        checks = {}
        for versions in (True, False):
            x = Exporter(np.arange(12.0).reshape(3, 4)[:, ::2], versions)
            total = w.allreduce(x)
            checks["new", versions] = type(total) is np.ndarray and total.tolist() == (2 * x.array).tolist()
            checks["in place", versions] = w.allreduce(x, out=x) is x and x.array.tolist() == total.tolist()
        for dtype in ("i1", "u8", "f2", "c16", "?"):
            x = Exporter(np.ones(3, dtype))
            checks[dtype] = w.allgather(x).dtype == dtype
        frozen = np.ones(3)
        frozen.flags.writeable = False
        def refused(call, word):
            try:
                call()
            except (TypeError, ValueError, BufferError) as error:
                return word in str(error)
        checks["frozen"] = refused(lambda: w.broadcast(Exporter(frozen), 1 - w.rank), "read")
        checks["device"] = refused(lambda: w.allreduce(Exporter(np.ones(3), device=2)), "CPU")
        array = np.ones(1000)
        kept = weakref.ref(array)
        w.allreduce(Exporter(array))
        del array
        gc.collect()
        checks["released"] = kept() is None
        report([name for name, good in checks.items() if not good])
        """,
    )
    assert run.results == [[], []]
