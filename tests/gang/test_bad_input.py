# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments: one clear line each, nothing touched, and the communicator works on."""

from __future__ import annotations

import pytest

BODY = """
import numpy as np, pmrun as pm
from gang_report import report
w = pm.init(timeout=60)
x = np.arange(4.0)
frozen = np.zeros(4)
frozen.flags.writeable = False
blank = np.zeros(4)
said = {}

class Copied:
    def __array__(self, dtype=None, copy=None):
        return np.zeros(4)

def attempt(name, call):
    try:
        call()
        said[name] = None
    except Exception as error:
        said[name] = (type(error).__name__, isinstance(error, (TypeError, ValueError)), str(error))

attempt("op unknown", lambda: w.allreduce(x, "plus"))
attempt("op no string", lambda: w.allreduce(x, max))
attempt("op undefined", lambda: w.allreduce(x, "band"))
attempt("op undefined complex", lambda: w.allreduce(x + 1j, "max"))
attempt("op undefined average", lambda: w.allreduce(np.arange(3), "avg"))
attempt("out read-only", lambda: w.allreduce(x, out=frozen))
attempt("in place read-only", lambda: w.allreduce(frozen, out=frozen))
attempt("out dtype", lambda: w.allreduce(x, out=np.zeros(4, "f4")))
attempt("out shape", lambda: w.allreduce(x, out=np.zeros(5)))
attempt("out shape of in place gather", lambda: w.allgather(x, out=x))
attempt("out a list", lambda: w.allreduce(x, out=[0.0] * 4))
attempt("out a number", lambda: w.allreduce(1, out=2))
attempt("out bytes", lambda: w.allreduce(np.zeros(2, "u1"), out=b"ab"))
attempt("root too large", lambda: w.broadcast(x, w.size))
attempt("root negative", lambda: w.reduce(x, root=-1))
attempt("root huge", lambda: w.gather(x, 1 << 40))
attempt("root no integer", lambda: w.broadcast(x, 0.5))
attempt("root a string", lambda: w.broadcast(x, "0"))
attempt("objects", lambda: w.allreduce(np.array([1, "a", None], dtype=object)))
attempt("string", lambda: w.allreduce("abc"))
attempt("none", lambda: w.broadcast(None))
attempt("dict", lambda: w.allgather({}))
attempt("text array reduced", lambda: w.allreduce(np.array(["a", "b"])))
attempt("record reduced", lambda: w.allreduce(np.zeros(2, [("a", "i4")])))
attempt("long double reduced", lambda: w.allreduce(np.zeros(2, np.longdouble)))
attempt("int too large", lambda: w.allreduce(1 << 70))
attempt("alltoall uneven", lambda: w.alltoall(np.zeros(w.size + 1)))
attempt("reduce_scatter scalar", lambda: w.reduce_scatter(1.0))
attempt("reduce_scatter uneven", lambda: w.reduce_scatter(np.zeros(w.size + 1)))
attempt("counts missing", lambda: w.reduce_scatterv(x, None))
attempt("counts wrong number", lambda: w.reduce_scatterv(x, [4] * (w.size + 1)))
attempt("counts negative", lambda: w.allgatherv(x, [-1] + [4] * (w.size - 1)))
attempt("counts sum", lambda: w.reduce_scatterv(x, [9] * w.size))
attempt("counts own", lambda: w.allgatherv(x, [3] * w.size))
attempt("counts no integers", lambda: w.allgatherv(x, [1.5] * w.size))
attempt("scalar rows", lambda: w.gatherv(1.0))
attempt("dtype argument", lambda: w.allreduce(x, dtype="f4"))
attempt("dtype bfloat16 of floats", lambda: w.allreduce(x, dtype="bfloat16"))
attempt("dest", lambda: w.send(x, w.size))
attempt("dest negative", lambda: w.send(x, -1))
attempt("tag negative", lambda: w.send(x, 0, -5))
attempt("tag too large", lambda: w.send(x, 0, 0x40000000))
attempt("source", lambda: w.recv(x, w.size))
attempt("recv read-only", lambda: w.recv(frozen))
attempt("irecv a number", lambda: w.irecv(1))
attempt("recv out and dtype", lambda: w.recv(blank, dtype="f4"))
attempt("status", lambda: w.recv(blank, status=3))
attempt("timeout negative", lambda: w.probe(timeout=-1))
attempt("timeout text", lambda: w.probe(timeout="soon"))
attempt("timeout of nothing", lambda: setattr(w, "timeout", float("nan")))
attempt("color", lambda: w.split("red"))
attempt("free the world", lambda: w.free())
attempt("no request", lambda: pm.wait_any([]))
attempt("not a request", lambda: pm.wait_all([3]))
attempt("none to wait for", lambda: pm.wait_all([None], 1))
attempt("not any request", lambda: pm.wait_any([None, "x"]))
attempt("no list of requests", lambda: pm.wait_any(3))
attempt("one request", lambda: pm.wait_all(w.ibarrier()))
attempt("make a communicator", lambda: pm.Communicator())
attempt("make a request", lambda: pm.Request())
attempt("pickle a communicator", lambda: __import__("pickle").dumps(w))
attempt("objects of scatter", lambda: w.alltoall_object([1]))
attempt("scatter of none", lambda: w.scatter_object(None))
attempt("scatter of an uneven array", lambda: w.scatter(np.zeros(w.size + 1) if w.rank == 0 else None))
attempt("scatter of nothing", lambda: w.scatter(None))
attempt("scatterv of another length", lambda: w.scatterv(x, [3] * w.size) if w.rank == 0 else w.scatterv())
attempt("scatter of text", lambda: w.scatter("x" * 9000))
attempt("scatter of a long dtype", lambda: w.scatter(np.zeros(w.size, [(f"field{i}", "i4") for i in range(200)])))
attempt("alltoallv own block", lambda: w.alltoallv(np.zeros(8), [4, 4], [4, 2] if w.rank else [2, 4]))
attempt("ialltoallv own block", lambda: w.ialltoallv(np.zeros(8), [4, 4], [4, 2] if w.rank else [2, 4]))
attempt("gatherv own count", lambda: w.gatherv(x, [3] * w.size))
attempt("scatterv own block", lambda: w.scatterv(np.zeros(8), [4, 4], w.rank, out=np.zeros(3)))
attempt("op undefined integers", lambda: w.allreduce(np.arange(3), "avg"))
attempt("text of one byte reduced", lambda: w.allreduce(np.array([b"a", b"b"])))
attempt("times reduced", lambda: w.allreduce(np.zeros(2, "M8[s]")))
attempt("times to integers", lambda: w.allgather(np.zeros(2, "M8[s]"), out=np.zeros((w.size, 2), "i8")))
attempt("out an array's protocol", lambda: w.allreduce(x, out=Copied()))
if w.rank == 1:
    attempt("broadcast into a list", lambda: w.broadcast([0.0, 0.0], 0))
    attempt("broadcast into a tuple", lambda: w.broadcast((0.0, 0.0), 0))
    attempt("broadcast into a copy", lambda: w.broadcast(Copied(), 0))
    attempt("iscatter", lambda: w.iscatter(None))
    attempt("broadcast read-only", lambda: w.broadcast(frozen))
    attempt("broadcast bytes", lambda: w.broadcast(b"abcd"))
    attempt("scatter read-only", lambda: w.scatter(None, 0, frozen))
report((said, float(w.allreduce(1.0)), x.tolist(), frozen.tolist(), blank.tolist()))
"""

WORDS = {  # what each line must name
    "op unknown": "plus", "op undefined": "band", "out read-only": "read-only", "in place read-only": "read-only",
    "out dtype": "float32", "out shape": "(5,)", "root too large": "root=2", "root huge": "root=", "root no integer":
    "0.5", "objects": "_object", "string": "_object", "none": "broadcast_object", "text array reduced": "<U1",
    "alltoall uneven": "alltoallv", "reduce_scatter uneven": "(3,)", "counts sum": "18", "counts own": "counts[",
    "dtype bfloat16 of floats": "uint16", "dest": "2", "timeout text": "soon", "make a communicator": "pm.init()",
    "iscatter": "out=", "broadcast read-only": "read-only", "scatter read-only": "read-only", "free the world": "world",
    "int too large": "numeric", "out a list": "list", "pickle a communicator": "pickled",
    "scatter of none": "scatter_object got None", "scatter of an uneven array": "(3,)", "scatter of nothing": "NoneType",
    "scatterv of another length": "6 rows", "scatter of text": "str", "scatter of a long dtype": "out=",
    "alltoallv own block": "recv_counts[", "ialltoallv own block": "recv_counts[", "gatherv own count": "counts[",
    "scatterv own block": "(3,)", "op undefined complex": "x.real", "op undefined integers": "astype",
    "text of one byte reduced": "S1", "times reduced": "datetime64", "times to integers": "int64",
    "out an array's protocol": "Copied", "broadcast into a list": "list", "broadcast into a tuple": "tuple",
    "broadcast into a copy": "Copied", "not a request": "wait_all waits for Requests, as the i... operations return",
    "none to wait for": "item 0 is NoneType", "not any request": "item 1 is str", "no list of requests": "not int",
    "one request": "request.wait()",
}  # fmt: skip


def test_each_gets_one_clear_line(gang) -> None:
    run = gang(2, BODY)
    for said, total, x, frozen, blank in run.results:
        silent = [name for name, outcome in said.items() if outcome is None]
        assert silent == [], silent
        other = {name: outcome for name, outcome in said.items() if not outcome[1]}
        assert other == {}, other
        long = {name: text for name, (_, _, text) in said.items() if "\n" in text or len(text) < 15}
        assert long == {}, long
        for name, word in WORDS.items():
            if name in said:
                assert word in said[name][2], (name, said[name])
        assert (total, x, frozen, blank) == (2.0, [0.0, 1.0, 2.0, 3.0], [0.0] * 4, [0.0] * 4)
        assert len(said) > 70


def test_wrong_kinds(gang) -> None:
    """TypeError where the kind is wrong, ValueError (UsageError) where the value is."""
    said = gang(2, BODY).results[1][0]
    kinds = {name: kind for name, (kind, _, _) in said.items()}
    for name in (
        "op undefined",
        "out dtype",
        "out a list",
        "root no integer",
        "objects",
        "none",
        "dtype argument",
        "broadcast into a list",
        "broadcast into a copy",
        "not a request",
        "one request",
        "text of one byte reduced",
        "times to integers",
    ):
        assert kinds[name] == "TypeError", (name, said[name])
    for name in (
        "op unknown",
        "out read-only",
        "out shape",
        "root too large",
        "root huge",
        "alltoall uneven",
        "dest",
        "alltoallv own block",
        "scatter of nothing",
        "gatherv own count",
    ):
        assert kinds[name] == "UsageError", (name, said[name])


def test_calls_that_differ_are_told_apart(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        x, out = np.ones(10), np.full(10, 5.0)
        try:
            if w.rank == 0:
                w.allreduce(x, out=out)
            else:
                w.allreduce(x[:9], out=out[:9])
        except pm.CollectiveMismatch as error:
            report((str(error), out.tolist()))
        """,
        check=False,
    )
    for text, out in run.results:
        assert "body.py:8 in <module>" in text
        assert "body.py:10 in <module>" in text
        assert out == [5.0] * 10


def test_a_mismatch_is_told_again_by_later_calls(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        said = []
        calls = [lambda: w.allreduce(np.ones(3 + w.rank)), w.barrier, lambda: w.iallreduce(1).wait(60), w.dup]
        for call in calls:
            try:
                call()
                said.append(None)
            except pm.CollectiveError as error:
                said.append((type(error).__name__, "body.py:6" in str(error)))
        report(said)
        """,
        check=False,
    )
    assert run.results == [[("CollectiveMismatch", True)] * 4] * 2


MISMATCHES = {
    "blocks of scatter": "w.scatter(np.zeros((2, 5)) if w.rank == 0 else None, 0, np.zeros(5 - w.rank))",
    "blocks of scatterv": "w.scatterv(np.ones(4) if w.rank == 0 else None, [3, 1], 0, np.zeros(3 - w.rank))",
    "counts of gatherv": "w.gatherv(np.arange(4.0), [4, 2] if w.rank == 0 else [2, 4])",
    "text and times": "w.allgather(np.zeros(2, 'S8' if w.rank else 'M8[s]'))",
    "text and wide text": "w.broadcast(np.zeros(2, 'S8' if w.rank else 'U2'))",
    "times and records": "w.gather(np.zeros(2, 'V8' if w.rank else 'm8[s]'))",
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_ranks_whose_data_differ_are_told(gang, name: str) -> None:
    run = gang(
        2,
        f"""
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        try:
            {MISMATCHES[name]}
            w.barrier()  # a root that need not wait for the others is told here
        except pm.CollectiveMismatch as error:
            report(str(error))
        """,
        check=False,
    )
    for text in run.results:
        assert "body.py:6" in text


# Calls that pmrun makes several of: what the user wrote is named, not what it is made of.
FORMS = {
    "w.dup()": "dup()",
    "pm.shared(3)": "shared()",
    "w.scatter(None, 1)": "scatter(root 1) without out",
    "w.gatherv(np.ones(2))": "gatherv(root 0) without the others' counts",
    "w.reduce_object(3, max, 1)": "reduce_object(root 1)",
}


@pytest.mark.parametrize("call", FORMS)
def test_a_call_made_of_others_is_named_as_the_user_wrote_it(gang, call: str) -> None:
    run = gang(
        2,
        f"""
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        try:
            if w.rank == 0:
                {call}
            w.barrier()
        except pm.CollectiveMismatch as error:
            report(str(error))
        """,
        check=False,
    )
    for text in run.results:
        assert f"differs: rank 0: {FORMS[call]} at " in text
        assert "body.py:7 in <module>; rank 1: barrier() at " in text


def test_a_part_of_a_call_does_not_meet_a_call_like_it(gang) -> None:
    run = gang(
        2,
        """
        import numpy as np, pmrun as pm
        from gang_report import report
        w = pm.init(timeout=60)
        length = np.full(1, -1)
        try:
            if w.rank == 0:
                w.broadcast_object("x")
            else:
                w.broadcast(length)
            w.barrier()
        except pm.CollectiveMismatch as error:
            report((str(error), length.tolist()))
        """,
        check=False,
    )
    for text, length in run.results:
        assert "call 1 of the communicator differs: rank 0: broadcast_object(root 0) at " in text
        assert "body.py:8 in <module>" in text
        assert length == [-1]
