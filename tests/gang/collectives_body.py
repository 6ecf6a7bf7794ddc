# SPDX-License-Identifier: Apache-2.0
"""What each rank runs for test_collectives.py: every operation against numpy, bit for bit.

Every rank can make every rank's input, so each computes the expected result itself: reductions in canonical order
(a balanced tree over the ranks, 16-bit floats in float32 and rounded once). A failure is a line in the report, so
that one run tells of all of them. Arguments: seed, group of checks.
"""

import functools
import sys

import ml_dtypes
import numpy as np
from gang_report import init, report

import pmrun as pm

SEED, GROUP = int(sys.argv[1]), sys.argv[2]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
INTEGERS = [np.dtype(f"{kind}{width}") for kind in "iu" for width in (1, 2, 4, 8)]
FLOATS = [np.dtype("f2"), BFLOAT16, np.dtype("f4"), np.dtype("f8")]
COMPLEX = [np.dtype("c8"), np.dtype("c16")]
DTYPES = [np.dtype("?"), *INTEGERS, *FLOATS, *COMPLEX]
ARITHMETIC = ["sum", "prod", "land", "lor", "lxor"]
SIZES = [0, 1, 7, 1000, 65536 + 3]

world = init(timeout=60)
failures: list[str] = []


# ---- inputs and the oracle ------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=512)
def given(dtype, shape, rank, salt=0):
    """The input of `rank`: any bits for integers, numbers about 1 for floats."""
    rng = np.random.default_rng([SEED, rank, DTYPES.index(dtype), salt, *shape])
    if dtype.kind in "iub":
        data = rng.integers(0, 256, size=(*shape, dtype.itemsize), dtype=np.uint8)
        value = data.view(dtype).reshape(shape) if dtype.kind != "b" else (data.reshape(shape) & 1).astype(bool)
    elif dtype.kind == "c":
        value = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    else:
        value = rng.standard_normal(shape).astype(dtype)
    value = np.where(rng.random(shape) < 0.1, np.zeros(shape, dtype), value).astype(dtype)
    value.flags.writeable = False
    return value


def times(a, b):
    if a.dtype.kind != "c":
        return a * b
    result = np.empty_like(a)
    result.real = a.real * b.real - a.imag * b.imag
    result.imag = a.real * b.imag + a.imag * b.real
    return result


PAIRS = {
    "sum": np.add,
    "avg": np.add,
    "prod": times,
    "min": np.minimum,
    "max": np.maximum,
    "land": np.logical_and,
    "lor": np.logical_or,
    "lxor": np.logical_xor,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


def reduced(op, values):
    """The values combined in canonical order."""
    dtype = values[0].dtype
    wide = np.dtype("f4") if dtype.itemsize == 2 and dtype in FLOATS else dtype
    level = [np.asarray(value.astype(wide)) for value in values]
    with np.errstate(all="ignore"):
        while len(level) > 1:
            level = [
                np.asarray(PAIRS[op](level[i], level[i + 1])).astype(wide) if i + 1 < len(level) else level[i]
                for i in range(0, len(level), 2)
            ]
        result = level[0]
        if op in ("land", "lor", "lxor") and len(values) > 1:
            result = (result != 0).astype(wide)
        if op == "avg" and dtype.kind == "c":
            part = np.dtype(f"f{dtype.itemsize // 2}").type
            result = (result.view(part) / part(len(values))).view(dtype) if result.size else result
        elif op == "avg":
            result = result / wide.type(len(values))
        return result.astype(dtype)


def ops_of(dtype):
    ops = list(ARITHMETIC)
    if dtype.kind != "c":
        ops += ["min", "max"]
    if dtype in FLOATS or dtype.kind == "c":
        ops.append("avg")
    else:
        ops += ["band", "bor", "bxor"]
    return ops


def same(got, wanted, what):
    if wanted is None or got is None:
        if got is not wanted:
            failures.append(f"{what}: got {got!r}, wanted {wanted!r}")
        return
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        failures.append(f"{what}: {got.dtype}{got.shape} for {wanted.dtype}{wanted.shape}")
    elif got.tobytes() != wanted.tobytes():
        where = np.flatnonzero(np.ravel(got) != np.ravel(wanted))[:3]
        failures.append(f"{what}: differs at {where}: {np.ravel(got)[where]} for {np.ravel(wanted)[where]}")


# ---- forms of a call: blocking and not; memory: numpy's and the window's -----------------------------------------


def calls(comm, name):
    yield f"{name}", getattr(comm, name)
    yield f"i{name}", lambda *args, **kwargs: getattr(comm, f"i{name}")(*args, **kwargs).wait(60)


def private(array):
    return array.copy()


def windowed(array):
    copy = pm.empty(array.shape, array.dtype)
    copy[...] = array
    return copy


MEMORY = {"private": private, "window": windowed}


def blanks(shape, dtype):
    return [np.zeros(shape, dtype), pm.zeros(shape, dtype)]


# ---- the groups ---------------------------------------------------------------------------------------------------


def check_reductions(comm):
    """Every operation on every dtype."""
    me, size = comm.rank, comm.size
    for dtype in DTYPES:
        for op in ops_of(dtype):
            for count in (1, 7, 1000):
                inputs = [given(dtype, (count,), rank) for rank in range(size)]
                what = f"{op} {dtype} {count}"
                wanted = reduced(op, inputs)
                same(comm.allreduce(inputs[me], op), wanted, f"allreduce {what}")
                in_place = windowed(inputs[me])
                same(comm.allreduce(in_place, op, out=in_place), wanted, f"allreduce in the window {what}")
                root = count % size
                same(comm.reduce(inputs[me], op, root), wanted if me == root else None, f"reduce {what}")
                same(comm.scan(inputs[me], op), reduced_scan(op, inputs[: me + 1]), f"scan {what}")


def reduced_scan(op, inputs):
    """A prefix is combined in canonical order too: the tree over its own ranks."""
    return reduced(op, inputs)


def check_sizes(comm):
    """allreduce, reduce, scan over sizes, forms and memory."""
    me, size = comm.rank, comm.size
    for dtype in (np.dtype("f4"), BFLOAT16, np.dtype("i8"), np.dtype("c16")):
        for count in SIZES:
            inputs = [given(dtype, (count,), rank) for rank in range(size)]
            wanted = reduced("sum", inputs)
            for memory, place in MEMORY.items():
                for name, call in calls(comm, "allreduce"):
                    what = f"{name} {memory} {dtype} {count}"
                    mine = place(inputs[me])
                    same(call(mine), wanted, what)
                    same(mine, inputs[me], f"{what}: the input")
                    same(call(mine, out=mine), wanted, f"{what} in place")
                    same(mine, wanted, f"{what} in place, the array")
                for name, call in calls(comm, "reduce"):
                    for root in range(size):
                        what = f"{name} {memory} {dtype} {count} root {root}"
                        same(call(place(inputs[me]), "sum", root), wanted if me == root else None, what)
                for name, call in calls(comm, "scan"):
                    what = f"{name} {memory} {dtype} {count}"
                    same(call(place(inputs[me])), reduced("sum", inputs[: me + 1]), what)
                for name, call in calls(comm, "exscan"):
                    what = f"{name} {memory} {dtype} {count}"
                    wanted_before = reduced("sum", inputs[:me]) if me else None
                    same(call(place(inputs[me])), wanted_before, what)
                    kept = place(inputs[me])
                    same(call(kept, out=kept), wanted_before if me else inputs[0], f"{what} in place")


def check_blocks(comm):
    """Everything that moves equal blocks."""
    me, size = comm.rank, comm.size
    for dtype in (np.dtype("f4"), np.dtype("i1"), np.dtype("c16")):
        for count in SIZES if dtype == np.dtype("f4") else SIZES[:-1]:
            one = [given(dtype, (count,), rank) for rank in range(size)]
            many = [given(dtype, (size, count), rank) for rank in range(size)]
            for memory, place in MEMORY.items():
                note = f"{memory} {dtype} {count}"
                for name, call in calls(comm, "allgather"):
                    same(call(place(one[me])), np.stack(one), f"{name} {note}")
                    for block in (me, size - 1 - me):
                        both = place(np.zeros((size, count), dtype))
                        both[block] = one[me]
                        same(call(both[block], out=both), np.stack(one), f"{name} out of its own output {note}")
                for name, call in calls(comm, "alltoall"):
                    wanted = np.stack([many[rank][me] for rank in range(size)])
                    same(call(place(many[me])), wanted, f"{name} {note}")
                    for out in blanks((size, count), dtype):
                        same(call(place(many[me]), out=out), wanted, f"{name} out {note}")
                    mine = place(many[me])
                    same(call(mine, out=mine), wanted, f"{name} in place {note}")
                for name, call in calls(comm, "reduce_scatter"):
                    wanted = reduced("sum", many)[me]
                    same(call(place(many[me])), wanted, f"{name} {note}")
                    flat = place(many[me]).reshape(size * count) if count else place(many[me])
                    same(np.asarray(call(flat)).reshape(count), wanted, f"{name} flat {note}")
                    for block in (me, size - 1 - me):
                        mine = place(many[me])
                        call(mine, out=mine[block])
                        same(mine[block], wanted, f"{name} into its own input {note}")
                for root in range(size):
                    check_rooted(comm, root, one, many, place, f"{note} root {root}")


def check_rooted(comm, root, one, many, place, note):
    me, size = comm.rank, comm.size
    at_root = me == root
    for name, call in calls(comm, "broadcast"):
        buffer = place(one[me])
        same(call(buffer, root), one[root], f"{name} {note}")
        same(buffer, one[root], f"{name}, the buffer, {note}")
    for name, call in calls(comm, "gather"):
        same(call(place(one[me]), root), np.stack(one) if at_root else None, f"{name} {note}")
    for out in blanks(one[0].shape, one[0].dtype):
        for name, call in calls(comm, "scatter"):
            same(call(place(many[root]) if at_root else None, root, out), many[root][me], f"{name} out {note}")
    same(comm.scatter(place(many[root]) if at_root else None, root), many[root][me], f"scatter {note}")
    mine = place(many[root])
    same(comm.scatter(mine if at_root else None, root, mine[me]), many[root][me], f"scatter into its input {note}")
    both = place(np.zeros((size, *one[0].shape), one[0].dtype))
    both[me] = one[me]
    gathered = comm.gather(both[me], root, both if at_root else None)
    same(gathered, np.stack(one) if at_root else None, f"gather out of its own output {note}")
    assert size == len(one)


def check_vectors(comm):
    """The v-forms, with blocks of all lengths, empty ones too."""
    me, size = comm.rank, comm.size
    for dtype in (np.dtype("f4"), np.dtype("i8")):
        for unit in (0, 1, 5, 9000):
            rows = [(3 * rank + 1) % 4 * unit for rank in range(size)]
            blocks = [given(dtype, (rows[rank], 2), rank) for rank in range(size)]
            joined = np.concatenate(blocks)
            sums = [given(dtype, (sum(rows), 2), rank, 1) for rank in range(size)]
            first = sum(rows[:me])
            for memory, place in MEMORY.items():
                note = f"{memory} {dtype} {unit}"
                for name, call in calls(comm, "allgatherv"):
                    same(call(place(blocks[me]), rows), joined, f"{name} {note}")
                for name, call in calls(comm, "reduce_scatterv"):
                    wanted = reduced("sum", sums)[first : first + rows[me]]
                    same(call(place(sums[me]), rows), wanted, f"{name} {note}")
                for root in range(size):
                    for name, call in calls(comm, "gatherv"):
                        got = call(place(blocks[me]), rows, root)
                        same(got, joined if me == root else None, f"{name} root {root} {note}")
                    for name, call in calls(comm, "scatterv"):
                        out = np.zeros((rows[me], 2), dtype)
                        got = call(place(joined) if me == root else None, rows, root, out)
                        same(got, blocks[me], f"{name} root {root} {note}")
                check_alltoallv(comm, dtype, unit, place, note)
            same(comm.allgatherv(blocks[me]), joined, f"allgatherv without counts {dtype} {unit}")
            same(comm.gatherv(blocks[me]), joined if me == 0 else None, f"gatherv without counts {dtype} {unit}")
            got = comm.scatterv(joined if me == 0 else None, rows if me == 0 else None)
            same(got, blocks[me], f"scatterv without out {dtype} {unit}")


def check_alltoallv(comm, dtype, unit, place, note):
    me, size = comm.rank, comm.size

    def rows(sender, receiver):
        return (sender + 2 * receiver) % 3 * unit

    def sent(sender):
        return given(dtype, (sum(rows(sender, rank) for rank in range(size)), 2), sender, 2)

    def part(sender, receiver):
        start = sum(rows(sender, rank) for rank in range(receiver))
        return sent(sender)[start : start + rows(sender, receiver)]

    out_rows = [rows(me, rank) for rank in range(size)]
    in_rows = [rows(rank, me) for rank in range(size)]
    wanted = np.concatenate([part(rank, me) for rank in range(size)])
    for name, call in calls(comm, "alltoallv"):
        same(call(place(sent(me)), out_rows, in_rows), wanted, f"{name} {note}")
    same(comm.alltoallv(sent(me), out_rows), wanted, f"alltoallv without counts {note}")


def check_layouts(comm):
    """Arrays that are not contiguous, not aligned, in another byte order, or overlap: right all the same."""
    me, size = comm.rank, comm.size
    inputs = [given(np.dtype("f4"), (6, 10), rank) for rank in range(size)]
    wanted = reduced("sum", inputs)
    raw = np.zeros(6 * 10 * 4 + 1, np.uint8)
    unaligned = raw[1:].view("f4").reshape(6, 10)
    views = {
        "fortran": np.asfortranarray,
        "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
        "strided": lambda x: np.repeat(x, 3, axis=1)[:, ::3],
        "transposed": lambda x: x.T.copy().T,
        "swapped": lambda x: x.astype(">f4"),
        "unaligned": lambda x: (np.copyto(unaligned, x), unaligned)[1],
    }
    for name, view in views.items():
        x = view(inputs[me])
        same(comm.allreduce(x), wanted, f"allreduce {name}")
        same(comm.iallreduce(x).wait(60), wanted, f"iallreduce {name}")
        same(np.asarray(comm.allreduce(x, out=x), "f4"), wanted, f"allreduce {name} in place")
        out = view(np.zeros((6, 10), "f4"))
        same(np.asarray(comm.allreduce(inputs[me], out=out), "f4"), wanted, f"allreduce to {name}")
        x = view(inputs[me])
        same(np.asarray(comm.broadcast(x, size - 1), "f4"), inputs[size - 1], f"broadcast {name}")
        same(comm.allgather(view(inputs[me])), np.stack(inputs), f"allgather {name}")
    shifted = np.zeros(61, "f4")
    shifted[:60] = inputs[me].reshape(60)
    same(comm.allreduce(shifted[:60], out=shifted[1:]), wanted.reshape(60), "allreduce overlapping")
    both = np.zeros((size, 6, 10), "f4")
    both[me] = inputs[me]
    same(comm.allgather(both[me], out=both), np.stack(inputs), "allgather out of its own output")


def check_divided(comm):
    """The same in halves, in reverse order and in a dup, all alive at once."""
    me, size = comm.rank, comm.size
    half = comm.split(me % 2, key=-me)
    members = sorted(range(me % 2, size, 2), reverse=True)
    assert (half.rank, half.size) == (members.index(me), len(members)), (half, members)
    assert [half.world_rank(rank) for rank in range(half.size)] == members
    inputs = [given(np.dtype("f4"), (1000,), rank) for rank in range(size)]
    none = comm.split(None if me == 0 else 1)
    assert (none is None) == (me == 0)
    with comm.dup() as other:
        same(half.allreduce(inputs[me]), reduced("sum", [inputs[rank] for rank in members]), "allreduce in half")
        first = other.iallreduce(inputs[me])
        same(comm.allreduce(inputs[me], "max"), reduced("max", inputs), "allreduce beside one in a dup")
        same(first.wait(60), reduced("sum", inputs), "iallreduce in a dup")
    half.free()
    if none is not None:
        none.free()
    for _ in range(20):  # their places are used again
        comm.split(me % 2).free()


groups = {
    "reductions": check_reductions,
    "sizes": check_sizes,
    "blocks": check_blocks,
    "vectors": check_vectors,
    "layouts": check_layouts,
    "divided": check_divided,
}
groups[GROUP](world)
report(failures[:20])
