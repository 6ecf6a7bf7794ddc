# SPDX-License-Identifier: Apache-2.0
#
# The collectives on blocks of different lengths (MPI's v-forms).
#
# Counts are in rows (the first axis), blocks lie one after the other as numpy.concatenate would put them. Where a
# blocking form is called without the counts, the ranks tell each other first. Invariant: the core gets counts and
# displacements in elements, `size` of each, that add up to the buffers it is given.

cdef list rows_of(Handle comm, object counts, str name):
    """`counts` as `size` integers, none negative."""
    cdef list rows
    if counts is None:
        raise TypeError(f"{name} is missing: pass the number of rows of each rank's block")
    rows = [PyNumber_Index(count) for count in counts]
    if len(rows) != comm._size or min(rows) < 0:
        raise errors.UsageError(
            f"{name}={rows} does not fit: pass {comm._size} numbers of rows, one per rank, none negative"
        )
    return rows


cdef int rows_needed(object array, object wanted, str what) except -1:
    if array_axes(array) == 0:
        raise errors.UsageError("a scalar has no rows to divide: pass an array with at least one axis")
    if wanted is not None and array_dim(array, 0) != wanted:
        raise errors.UsageError(f"{what} is {wanted} rows, but the array has {array_dim(array, 0)}")
    return 0


cdef size_t row_of(Plan plan, object model) noexcept:
    """Elements in one row of `model`."""
    cdef size_t row = plan.element.unit
    cdef int axis
    for axis in range(1, array_axes(model)):
        row *= <size_t>array_dim(model, axis)
    return row


cdef int plan_counts(Plan plan, Handle comm, bint receiving, list rows, size_t row) except -1:
    """Store counts and displacements in elements, `row` in each row: of what is sent, or of what is received."""
    cdef size_t place = 0
    cdef size_t *counts
    cdef int rank
    if plan.counts == NULL:
        plan.counts = <size_t *>PyMem_Malloc(4 * <size_t>comm._size * sizeof(size_t))
        if plan.counts == NULL:
            raise MemoryError("no memory for counts")
    counts = plan.counts + (2 * comm._size if receiving else 0)
    for rank in range(len(rows)):
        counts[rank] = <size_t>rows[rank] * row
        counts[comm._size + rank] = place
        place += counts[rank]
    if receiving:
        plan.call.recv_counts = counts
        plan.call.recv_displs = counts + comm._size
    else:
        plan.call.send_counts = counts
        plan.call.send_displs = counts + comm._size
    return 0


cdef int plan_rows_output(Plan plan, object out, object rows) except -1:
    """An output like the source, with `rows` rows."""
    cdef npy_intp dims[DIMS_MAX]
    cdef int axis
    for axis in range(array_axes(plan.source)):
        dims[axis] = array_dim(plan.source, axis)
    dims[0] = rows
    return plan_output(plan, out, plan.source, array_axes(plan.source), dims)


cdef object counts_gathered(Handle comm, pmr_form form, pmr_kind kind, object x, object root):
    """The ranks' numbers of rows, where they are needed; None elsewhere."""
    cdef Element element
    array = as_array(x, &element)
    rows_needed(array, None, "")
    return run_part(comm, form, plan_gather(comm, kind, np.int64(array_dim(array, 0)), None, None, root))


cdef Plan plan_gatherv(Handle comm, pmr_kind kind, object x, object counts, object root, object out, object dtype):
    cdef Plan plan = Plan.__new__(Plan)
    cdef list rows
    plan.call.kind = kind
    if kind == PMR_GATHERV:
        plan_root(plan, comm, root)
    plan_input(plan, x, dtype)
    rows_needed(plan.source, None, "")
    if kind == PMR_GATHERV and comm._rank != plan.call.root:
        if counts is not None and len(counts):  # none: only the root knows them
            rows = rows_of(comm, counts, "counts")
            rows_needed(plan.source, rows[comm._rank], f"counts[{comm._rank}]")
        plan_counts(plan, comm, False, [array_dim(plan.source, 0)], row_of(plan, plan.source))
        return plan
    rows = rows_of(comm, counts, "counts")
    rows_needed(plan.source, rows[comm._rank], f"counts[{comm._rank}]")
    plan_counts(plan, comm, False, [rows[comm._rank]], row_of(plan, plan.source))
    plan_counts(plan, comm, True, rows, row_of(plan, plan.source))
    plan_rows_output(plan, out, sum(rows))
    return plan


cdef Plan plan_scatterv(Handle comm, object x, object counts, object root, object out, object dtype):
    cdef Plan plan = Plan.__new__(Plan)
    cdef list rows
    plan.call.kind = PMR_SCATTERV
    plan_root(plan, comm, root)
    if comm._rank == plan.call.root:
        plan_input(plan, x, dtype)
        rows = rows_of(comm, counts, "counts")
        rows_needed(plan.source, sum(rows), "the sum of counts")
        plan_counts(plan, comm, False, rows, row_of(plan, plan.source))
        plan_rows_output(plan, out, rows[comm._rank])
    else:
        array = as_array(out, &plan.element)
        if dtype is not None:
            element_force(array, dtype, &plan.element)
        element_read(array, &plan.element)
        plan.call.dtype = plan.element.dtype
        rows_needed(array, None, "")
        output_check(plan, array, out, &plan.element, array, array_axes(array), array_dims(array))
        plan_output(plan, out, array, array_axes(array), array_dims(array))
    plan_counts(plan, comm, True, [array_dim(plan.target, 0)], row_of(plan, plan.target))
    return plan


cdef object scatterv_blank(Handle comm, object x, object counts, object root, object dtype):
    """As `scatter_blank`; the root tells the counts too."""
    cdef Plan plan = Plan.__new__(Plan)
    plan_root(plan, comm, root)
    header = None
    if comm._rank == plan.call.root:
        try:
            plan_input(plan, x, dtype)
            rows = rows_of(comm, counts, "counts")
            rows_needed(plan.source, sum(rows), "the sum of counts")
            header = (shape_tuple(plan.source)[1:], plan.source.dtype, plan.element.form == FORM_TORCH,
                      plan.element.fixed)
        except (TypeError, ValueError, BufferError, MemoryError) as error:
            header = error
    tail, kind, torch, fixed = header_exchange(comm, PMR_FORM_SCATTERV, header, plan.call.root)
    own = np.empty((), np.int64)
    all_rows = np.array(rows, np.int64) if header is not None else None
    run_part(comm, PMR_FORM_SCATTERV, plan_scatter(comm, all_rows, root, own, None))
    return block_blank((int(own), *tail), kind, torch, fixed)


cdef Plan plan_reduce_scatterv(Handle comm, object x, object counts, object op, object out, object dtype):
    cdef Plan plan = Plan.__new__(Plan)
    cdef list rows = rows_of(comm, counts, "counts")
    plan.call.kind = PMR_REDUCE_SCATTERV
    plan_input(plan, x, dtype)
    plan_op(plan, op)
    rows_needed(plan.source, sum(rows), "the sum of counts")
    plan_counts(plan, comm, True, rows, row_of(plan, plan.source))
    plan_rows_output(plan, out, rows[comm._rank])
    return plan


cdef Plan plan_alltoallv(Handle comm, object x, object send_counts, object recv_counts, object out, object dtype):
    cdef Plan plan = Plan.__new__(Plan)
    cdef list send_rows = rows_of(comm, send_counts, "send_counts")
    cdef list recv_rows = rows_of(comm, recv_counts, "recv_counts")
    plan.call.kind = PMR_ALLTOALLV
    plan_input(plan, x, dtype)
    rows_needed(plan.source, sum(send_rows), "the sum of send_counts")
    if send_rows[comm._rank] != recv_rows[comm._rank]:
        raise errors.UsageError(
            f"send_counts[{comm._rank}] is {send_rows[comm._rank]} and recv_counts[{comm._rank}] is "
            f"{recv_rows[comm._rank]}, but both are this rank's block for itself: pass the same number of rows"
        )
    plan_counts(plan, comm, False, send_rows, row_of(plan, plan.source))
    plan_counts(plan, comm, True, recv_rows, row_of(plan, plan.source))
    plan_rows_output(plan, out, sum(recv_rows))
    return plan


cdef class Vectors(Collectives):
    """The operations on blocks of different lengths; counts are in rows (the first axis)."""

    def gatherv(self, x, counts=None, root=0, out=None, *, dtype=None):
        """Collect arrays of different lengths on the root.

        Parameters
        ----------
        x : array
            Of shape ``(n, *row)``; `row` and dtype are the same on every rank.
        counts : sequence of int, optional
            Each rank's `n`. Given on all ranks or on none; then the ranks tell the root first.
        root : int
        out : array, optional
            On the root, of shape ``(sum(counts), *row)``.

        Returns
        -------
        array or None
            The arrays one after the other on the root, None elsewhere.
        """
        cdef pmr_form form = PMR_FORM_PLAIN
        if counts is None:
            form = PMR_FORM_GATHERV
            counts = counts_gathered(self, form, PMR_GATHER, x, root)
        return run_part(self, form, plan_gatherv(self, PMR_GATHERV, x, counts, root, out, dtype))

    def igatherv(self, x, counts=None, root=0, out=None, *, dtype=None):
        """`gatherv` as a Request; the root passes `counts`."""
        return start(self, plan_gatherv(self, PMR_GATHERV, x, counts, root, out, dtype))

    def allgatherv(self, x, counts=None, out=None, *, dtype=None):
        """Collect arrays of different lengths on all ranks, one after the other.

        Parameters are those of `gatherv`, without a root.
        """
        cdef pmr_form form = PMR_FORM_PLAIN
        if counts is None:
            form = PMR_FORM_ALLGATHERV
            counts = counts_gathered(self, form, PMR_ALLGATHER, x, None)
        return run_part(self, form, plan_gatherv(self, PMR_ALLGATHERV, x, counts, None, out, dtype))

    def iallgatherv(self, x, counts, out=None, *, dtype=None):
        """`allgatherv` as a Request."""
        return start(self, plan_gatherv(self, PMR_ALLGATHERV, x, counts, None, out, dtype))

    def scatterv(self, x=None, counts=None, root=0, out=None, *, dtype=None):
        """Give each rank its rows of the root's array.

        Parameters
        ----------
        x : array
            On the root, of shape ``(sum(counts), *row)``. Not read elsewhere.
        counts : sequence of int
            On the root, the rows of each rank. Not read elsewhere.
        root : int
        out : array, optional
            The block's place. Either every rank passes one, or none does.

        Returns
        -------
        array
            The block, of shape ``(counts[rank], *row)``.
        """
        cdef pmr_form form = PMR_FORM_PLAIN
        if out is None:
            form = PMR_FORM_SCATTERV
            out, dtype = scatterv_blank(self, x, counts, root, dtype)
        return run_part(self, form, plan_scatterv(self, x, counts, root, out, dtype))

    def iscatterv(self, x=None, counts=None, root=0, out=None, *, dtype=None):
        """`scatterv` as a Request; ranks other than the root pass `out`."""
        if out is None and self._rank != number_of(root, "root"):
            raise TypeError("iscatterv cannot ask the root for the block's shape: pass out= on this rank")
        return start(self, plan_scatterv(self, x, counts, root, out, dtype))

    def reduce_scatterv(self, x, counts, op="sum", out=None, *, dtype=None):
        """Combine the ranks' arrays elementwise and give each rank its rows of the result.

        Parameters
        ----------
        x : array
            Of shape ``(sum(counts), *row)``.
        counts : sequence of int
            The rows of each rank; the same on every rank.
        op : str
            As for `reduce`.
        out : array, optional
            Of shape ``(counts[rank], *row)``.

        Returns
        -------
        array
            The block.
        """
        return run(self, plan_reduce_scatterv(self, x, counts, op, out, dtype))

    def ireduce_scatterv(self, x, counts, op="sum", out=None, *, dtype=None):
        """`reduce_scatterv` as a Request."""
        return start(self, plan_reduce_scatterv(self, x, counts, op, out, dtype))

    def alltoallv(self, x, send_counts, recv_counts=None, out=None, *, dtype=None):
        """Send the rows of each rank's block to it, and receive theirs.

        Parameters
        ----------
        x : array
            Of shape ``(sum(send_counts), *row)``: the block for rank 0, then that for rank 1, and so on.
        send_counts : sequence of int
            Rows for each rank.
        recv_counts : sequence of int, optional
            Rows from each rank. Given on all ranks or on none; then the ranks tell each other first.
        out : array, optional
            Of shape ``(sum(recv_counts), *row)``.

        Returns
        -------
        array
            The blocks received, in rank order.
        """
        cdef pmr_form form = PMR_FORM_PLAIN
        if recv_counts is None:
            form = PMR_FORM_ALLTOALLV
            numpy_load()
            sent = np.array(rows_of(self, send_counts, "send_counts"), np.int64)
            recv_counts = run_part(self, form, plan_alltoall(self, sent, None, None))
        return run_part(self, form, plan_alltoallv(self, x, send_counts, recv_counts, out, dtype))

    def ialltoallv(self, x, send_counts, recv_counts, out=None, *, dtype=None):
        """`alltoallv` as a Request."""
        return start(self, plan_alltoallv(self, x, send_counts, recv_counts, out, dtype))
