# SPDX-License-Identifier: Apache-2.0
#
# The collectives on equal blocks: how each one's arguments become a Plan, and the methods.
#
# A new operation is one `plan_` function and two methods. Results follow numpy: a new array unless `out` is given,
# `out=x` is in place, a scalar goes back as a scalar, a torch tensor as a tensor.

cdef enum:
    HEADER_BYTES = 1024
    HEADER_TEXT_MAX = 240       # characters of a failure: fits, whatever their bytes


cdef Plan plan_barrier():
    cdef Plan plan = Plan.__new__(Plan)
    plan.call.kind = PMR_BARRIER
    return plan


cdef Plan plan_broadcast(Handle comm, object x, object root, object dtype):
    cdef Plan plan = Plan.__new__(Plan)
    plan.call.kind = PMR_BROADCAST
    plan_root(plan, comm, root)
    if x is None:
        raise TypeError(
            "broadcast fills the buffer that each rank passes, and None is none: pass an array of the root's shape "
            "and dtype, or use broadcast_object"
        )
    array = as_array(x, &plan.element)
    if dtype is not None:
        element_force(array, dtype, &plan.element)
    element_read(array, &plan.element)
    if plan.element.form != FORM_SCALAR:
        plan.out = x
    if comm._rank == plan.call.root:
        plan.source = pack(array)
    elif plan.element.form == FORM_SCALAR:
        plan.source = array.copy()
    else:
        if plan.element.form == FORM_ARRAY and is_temporary(array, x):
            raise TypeError(
                f"broadcast writes into what rank {comm._rank} passes, and a {type(x).__name__} cannot be written: "
                "pass an array, or use broadcast_object"
            )
        if not array_writeable(array):
            raise errors.UsageError(
                f"broadcast writes into the buffer of rank {comm._rank}, which is read-only: pass a writable one"
            )
        plan.source = pack(array)
        if plan.source is not array:
            plan.back = array
    plan.target = plan.source
    plan.call.dtype = plan.element.dtype
    plan.call.count = total_of(plan, plan.source)
    if comm._rank == plan.call.root:
        plan.call.send = array_data(plan.source)
    else:
        plan.call.recv = array_data(plan.source)
    return plan


cdef Plan plan_reduction(Handle comm, pmr_kind kind, object x, object op, object out, object dtype, object root):
    """reduce, allreduce, scan, exscan: as many elements out as in."""
    cdef Plan plan = Plan.__new__(Plan)
    plan.call.kind = kind
    if kind == PMR_REDUCE:
        plan_root(plan, comm, root)
    plan_input(plan, x, dtype)
    plan_op(plan, op)
    plan.call.count = total_of(plan, plan.source)
    if kind == PMR_REDUCE and comm._rank != plan.call.root:
        return plan
    if kind == PMR_EXSCAN and comm._rank == 0 and out is None:
        # The core leaves it untouched, and there is nothing before rank 0 to return.
        return plan
    plan_output(plan, out, plan.source, array_axes(plan.source), array_dims(plan.source))
    return plan


cdef Plan plan_gather(Handle comm, pmr_kind kind, object x, object out, object dtype, object root):
    """gather, allgather: (size, *x.shape) out."""
    cdef Plan plan = Plan.__new__(Plan)
    cdef npy_intp dims[DIMS_MAX]
    cdef int axis
    plan.call.kind = kind
    if kind == PMR_GATHER:
        plan_root(plan, comm, root)
    plan_input(plan, x, dtype)
    plan.call.count = total_of(plan, plan.source)
    if kind == PMR_GATHER and comm._rank != plan.call.root:
        return plan
    dims[0] = comm._size
    for axis in range(array_axes(plan.source)):
        dims[axis + 1] = array_dim(plan.source, axis)
    plan.recv_shift = <size_t>comm._rank * <size_t>array_nbytes(plan.source)
    plan_output(plan, out, plan.source, array_axes(plan.source) + 1, dims)
    return plan


cdef Plan plan_scatter(Handle comm, object x, object root, object out, object dtype):
    """scatter with `out` on the ranks that are not the root."""
    cdef Plan plan = Plan.__new__(Plan)
    cdef npy_intp dims[DIMS_MAX]
    cdef int axes = 0
    plan.call.kind = PMR_SCATTER
    plan_root(plan, comm, root)
    if comm._rank == plan.call.root:
        plan_input(plan, x, dtype)
        plan_block(plan, comm, plan.source, "scatter", &axes, dims)
        plan.send_shift = <size_t>comm._rank * <size_t>array_nbytes(plan.source) // <size_t>comm._size
        plan_output(plan, out, plan.source, axes, dims)
    else:
        array = as_array(out, &plan.element)
        if dtype is not None:
            element_force(array, dtype, &plan.element)
        element_read(array, &plan.element)
        plan.call.dtype = plan.element.dtype
        plan_output(plan, out, array, array_axes(array), array_dims(array))
        output_check(plan, array, out, &plan.element, array, array_axes(array), array_dims(array))
    plan.call.count = total_of(plan, plan.target)
    return plan


cdef object scatter_blank(Handle comm, object x, object root, object dtype):
    """Where no rank gave `out`: the root tells the others what a block looks like; the array for this rank."""
    cdef Plan plan
    cdef npy_intp dims[DIMS_MAX]
    cdef int axes = 0
    plan = Plan.__new__(Plan)
    plan_root(plan, comm, root)
    header = None
    if comm._rank == plan.call.root:
        try:
            plan_input(plan, x, dtype)
            plan_block(plan, comm, plan.source, "scatter", &axes, dims)
            header = (tuple([dims[axis] for axis in range(axes)]), plan.source.dtype, plan.element.form == FORM_TORCH,
                      plan.element.fixed)
        except (TypeError, ValueError, BufferError, MemoryError) as error:
            header = error
    shape, kind, torch, fixed = header_exchange(comm, PMR_FORM_SCATTER, header, plan.call.root)
    return block_blank(shape, kind, torch, fixed)


cdef object block_blank(tuple shape, object kind, bint torch, bint fixed):
    """(array, dtype argument) for a block as the root described it."""
    cdef Element element
    block = np.empty(shape, kind)
    if torch and "torch" in sys.modules:
        element.dtype = PMR_BFLOAT16 if fixed else PMR_INT16
        return torch_result(block, &element), None
    return block, "bfloat16" if fixed else None


cdef object header_exchange(Handle comm, pmr_form form, object header, int root):
    """Broadcast a small tuple from `root`, as one message of fixed size.

    The root may pass an exception instead: then every rank raises, and none is left waiting.
    """
    from pickle import dumps, loads
    numpy_load()
    frame = np.zeros(HEADER_BYTES, np.uint8)
    if header is not None:
        text = b"" if isinstance(header, Exception) else dumps(header)
        if len(text) > HEADER_BYTES:
            header = errors.UsageError("the description of this array's dtype is too long: pass out= on every rank")
        if isinstance(header, Exception):
            text = dumps(" ".join(str(header).split())[:HEADER_TEXT_MAX])
        frame[: len(text)] = np.frombuffer(text, np.uint8)
    run_part(comm, form, plan_broadcast(comm, frame, root, None))
    if isinstance(header, Exception):
        raise header
    told = loads(frame.tobytes())
    if isinstance(told, str):
        raise errors.UsageError(f"rank {root}, the root, has nothing to scatter: {told}")
    return told


cdef Plan plan_reduce_scatter(Handle comm, object x, object op, object out, object dtype):
    cdef Plan plan = Plan.__new__(Plan)
    cdef npy_intp dims[DIMS_MAX]
    cdef int axes = 0
    plan.call.kind = PMR_REDUCE_SCATTER
    plan_input(plan, x, dtype)
    plan_op(plan, op)
    plan_block(plan, comm, plan.source, "reduce_scatter", &axes, dims)
    plan.send_shift = <size_t>comm._rank * <size_t>array_nbytes(plan.source) // <size_t>comm._size
    plan_output(plan, out, plan.source, axes, dims)
    plan.call.count = total_of(plan, plan.target)
    return plan


cdef Plan plan_alltoall(Handle comm, object x, object out, object dtype):
    cdef Plan plan = Plan.__new__(Plan)
    cdef npy_intp dims[DIMS_MAX]
    cdef int axes = 0
    plan.call.kind = PMR_ALLTOALL
    plan_input(plan, x, dtype)
    plan_block(plan, comm, plan.source, "alltoall", &axes, dims)
    plan_output(plan, out, plan.source, array_axes(plan.source), array_dims(plan.source))
    plan.call.count = total_of(plan, plan.source) // <size_t>comm._size
    return plan


cdef class Collectives(Handle):
    """The operations on equal blocks, each with its ``i...`` form that returns a Request."""

    def barrier(self):
        """Return when every rank has come here."""
        run(self, plan_barrier())

    def ibarrier(self):
        """`barrier` as a Request: over when every rank has called it."""
        return start(self, plan_barrier())

    def broadcast(self, x, root=0, *, dtype=None):
        """Give every rank the root's elements, in place.

        Parameters
        ----------
        x : array
            On the root, what is sent; elsewhere a writable array of the same dtype and number of elements.
            Scalars are not written: use the returned value.
        root : int
        dtype : str, optional
            ``"bfloat16"`` reads a uint16 array's bits as such.

        Returns
        -------
        array
            `x`, filled.
        """
        return run(self, plan_broadcast(self, x, root, dtype))

    def ibroadcast(self, x, root=0, *, dtype=None):
        """`broadcast` as a Request."""
        return start(self, plan_broadcast(self, x, root, dtype))

    def reduce(self, x, op="sum", root=0, out=None, *, dtype=None):
        """Combine the ranks' arrays elementwise on the root.

        Parameters
        ----------
        x : array or scalar
            Same dtype and number of elements on every rank.
        op : str
            ``sum prod land lor lxor`` for every dtype, ``min max`` for all but complex, ``avg`` for floats and
            complex, ``band bor bxor`` for bool and integers; TypeError else. The dtypes are bool, integers up to
            64 bits, float16/32/64, bfloat16, complex64/128. Always combined in the same order (a balanced tree
            over the ranks), so the result's bits do not depend on sizes, timing or algorithm.
        root : int
        out : array, optional
            On the root, where the result goes; ``out=x`` is in place.
        dtype : str, optional
            ``"bfloat16"`` reads a uint16 array's bits as such.

        Returns
        -------
        array, scalar or None
            The result on the root, None elsewhere.
        """
        return run(self, plan_reduction(self, PMR_REDUCE, x, op, out, dtype, root))

    def ireduce(self, x, op="sum", root=0, out=None, *, dtype=None):
        """`reduce` as a Request."""
        return start(self, plan_reduction(self, PMR_REDUCE, x, op, out, dtype, root))

    def allreduce(self, x, op="sum", out=None, *, dtype=None):
        """Combine the ranks' arrays elementwise, with the result on all of them.

        Parameters and returned value are those of `reduce`, without a root.
        """
        return run(self, plan_reduction(self, PMR_ALLREDUCE, x, op, out, dtype, None))

    def iallreduce(self, x, op="sum", out=None, *, dtype=None):
        """`allreduce` as a Request."""
        return start(self, plan_reduction(self, PMR_ALLREDUCE, x, op, out, dtype, None))

    def scan(self, x, op="sum", out=None, *, dtype=None):
        """Combine the arrays of ranks 0 to this one, this one included."""
        return run(self, plan_reduction(self, PMR_SCAN, x, op, out, dtype, None))

    def iscan(self, x, op="sum", out=None, *, dtype=None):
        """`scan` as a Request."""
        return start(self, plan_reduction(self, PMR_SCAN, x, op, out, dtype, None))

    def exscan(self, x, op="sum", out=None, *, dtype=None):
        """Combine the arrays of the ranks before this one.

        On rank 0, which has none before it, `out` is left as it is, and None is returned where there is no `out`.
        """
        return run(self, plan_reduction(self, PMR_EXSCAN, x, op, out, dtype, None))

    def iexscan(self, x, op="sum", out=None, *, dtype=None):
        """`exscan` as a Request."""
        return start(self, plan_reduction(self, PMR_EXSCAN, x, op, out, dtype, None))

    def gather(self, x, root=0, out=None, *, dtype=None):
        """Collect the ranks' arrays on the root.

        Parameters
        ----------
        x : array or scalar
            Same dtype and number of elements on every rank.
        root : int
        out : array, optional
            On the root, of shape ``(size, *x.shape)``.

        Returns
        -------
        array or None
            On the root, of shape ``(size, *x.shape)``, in rank order; None elsewhere.
        """
        return run(self, plan_gather(self, PMR_GATHER, x, out, dtype, root))

    def igather(self, x, root=0, out=None, *, dtype=None):
        """`gather` as a Request."""
        return start(self, plan_gather(self, PMR_GATHER, x, out, dtype, root))

    def allgather(self, x, out=None, *, dtype=None):
        """Collect the ranks' arrays on all of them: an array of shape ``(size, *x.shape)``."""
        return run(self, plan_gather(self, PMR_ALLGATHER, x, out, dtype, None))

    def iallgather(self, x, out=None, *, dtype=None):
        """`allgather` as a Request."""
        return start(self, plan_gather(self, PMR_ALLGATHER, x, out, dtype, None))

    def scatter(self, x=None, root=0, out=None, *, dtype=None):
        """Give each rank its block of the root's array.

        Parameters
        ----------
        x : array
            On the root, of shape ``(size, *block)``, or with a first axis that `size` divides. Not read elsewhere.
        root : int
        out : array, optional
            The block's place. Either every rank passes one, or none does (the root then tells the others the
            block's shape and dtype first).

        Returns
        -------
        array
            The block.
        """
        if out is None:
            out, dtype = scatter_blank(self, x, root, dtype)
            out = run_part(self, PMR_FORM_SCATTER, plan_scatter(self, x, root, out, dtype))
            return out[()] if isinstance(out, np.ndarray) else out
        return run(self, plan_scatter(self, x, root, out, dtype))

    def iscatter(self, x=None, root=0, out=None, *, dtype=None):
        """`scatter` as a Request; ranks other than the root pass `out`."""
        if out is None and self._rank != number_of(root, "root"):
            raise TypeError("iscatter cannot ask the root for the block's shape: pass out= on this rank")
        return start(self, plan_scatter(self, x, root, out, dtype))

    def reduce_scatter(self, x, op="sum", out=None, *, dtype=None):
        """Combine the ranks' arrays elementwise and give each rank its block of the result.

        Parameters
        ----------
        x : array
            Of shape ``(size, *block)``, or with a first axis that `size` divides.
        op : str
            As for `reduce`.
        out : array, optional
            The block's place.

        Returns
        -------
        array
            The block.
        """
        return run(self, plan_reduce_scatter(self, x, op, out, dtype))

    def ireduce_scatter(self, x, op="sum", out=None, *, dtype=None):
        """`reduce_scatter` as a Request."""
        return start(self, plan_reduce_scatter(self, x, op, out, dtype))

    def alltoall(self, x, out=None, *, dtype=None):
        """Send block i to rank i and receive rank i's block for this rank in its place.

        Parameters
        ----------
        x : array
            Of shape ``(size, *block)``, or with a first axis that `size` divides.
        out : array, optional
            Of the same shape and dtype.

        Returns
        -------
        array
            Of the same shape.
        """
        return run(self, plan_alltoall(self, x, out, dtype))

    def ialltoall(self, x, out=None, *, dtype=None):
        """`alltoall` as a Request."""
        return start(self, plan_alltoall(self, x, out, dtype))
