# SPDX-License-Identifier: Apache-2.0
#
# A Plan: one collective call, checked and ready for the core, with all that must live until it is over.
#
# `plan_*` functions make one from the user's arguments; `run` makes the core do it now, `start` (request.pxi)
# lets it go on. Invariant: a Plan that exists is right as far as one rank can see, so the core is entered only
# with buffers of the right size; a Plan that fails to be made has touched nothing.

@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Plan:
    cdef pmr_call call
    cdef Element element
    cdef object source     # what the core reads, or None
    cdef object target     # what the core writes, or None
    cdef object back       # the strided array that `target` is copied to in the end, or None
    cdef object out             # what the caller gave for the result and gets back, or None
    cdef size_t send_shift      # bytes to this rank's own block, which may be where the other buffer begins
    cdef size_t recv_shift
    cdef size_t *counts         # four runs of `size` counts and displacements, or NULL

    def __cinit__(self):
        memset(&self.call, 0, sizeof(pmr_call))

    def __dealloc__(self):
        PyMem_Free(self.counts)

    cdef object result(self):
        """What the caller gets, after the core succeeded."""
        if self.back is not None:
            array_fill(self.back, self.target)
        if self.out is not None:
            return self.out
        if self.target is None:
            return None
        if self.element.form == FORM_TORCH:
            return torch_result(self.target, &self.element)
        if array_axes(self.target) == 0:
            return self.target[()]
        return self.target


# ---- operations by name ---------------------------------------------------------------------------------------

cdef PyObject *OP_NAMES[<int>PMR_OP_COUNT]  # interned, held by OPS
cdef dict OPS = {sys.intern(text_of(pmr_op_name(<pmr_op>number))): number for number in range(PMR_OP_COUNT)}
for op_name, op_number in OPS.items():
    OP_NAMES[<int>op_number] = <PyObject *>op_name
del op_name, op_number


cdef inline int plan_op(Plan plan, object op) except -1:
    """A literal in the user's program is the interned string itself: one comparison for "sum"."""
    if <PyObject *>op == OP_NAMES[<int>PMR_SUM]:
        plan.call.op = PMR_SUM
    else:
        number = OPS.get(op) if isinstance(op, str) else None
        if number is None:
            raise errors.UsageError(f"op={op!r} is no reduce operation: use one of {', '.join(OPS)}")
        plan.call.op = <pmr_op><int>number
    if plan.element.moved:
        raise TypeError(
            f"cannot reduce dtype {plan.source.dtype}: pmrun computes with bool, integers up to 64 bits, "
            "float16/32/64, bfloat16 and complex64/128; convert the array first"
        )
    if plan.call.op != PMR_SUM and not pmr_op_defined(plan.call.op, plan.element.dtype):
        raise TypeError(
            f"{op} is not defined for {text_of(pmr_dtype_name(plan.element.dtype))}: " + op_remedy(plan.call.op)
        )
    return 0


cdef str op_remedy(pmr_op op):
    """What to do where an operation has no meaning for a dtype."""
    if op == PMR_AVG:
        return "averages are of floats and complex numbers, so convert first (x.astype('f8'))"
    if op == PMR_MIN or op == PMR_MAX:
        return "complex numbers have no order, so reduce x.real and x.imag, or abs(x)"
    return "it works on the bits of bool and integers, so use land, lor or lxor, or convert first"


# ---- what every operation needs --------------------------------------------------------------------------------

cdef int32_t number_of(object value, str name) except? -7777:
    """An integer argument that fits 32 bits; numpy's integers count, floats do not."""
    cdef long number
    if not PyLong_CheckExact(value):
        try:
            value = PyNumber_Index(value)
        except TypeError:
            raise TypeError(f"{name}={value!r} is not an integer") from None
    try:
        number = value
    except OverflowError:
        number = <long>1 << 40
    if not -(<long>1 << 31) <= number < <long>1 << 31:
        raise errors.UsageError(f"{name}={value} is out of range")
    return <int32_t>number


cdef int plan_root(Plan plan, Handle comm, object root) except -1:
    plan.call.root = number_of(root, "root")
    if not 0 <= plan.call.root < comm._size:
        raise errors.UsageError(
            f"root={plan.call.root} is not a rank of this communicator: use 0 to {comm._size - 1}"
        )
    return 0


cdef int plan_input(Plan plan, object x, object dtype) except -1:
    """Set source, element and call.send from what the user passed."""
    array = as_array(x, &plan.element)
    if dtype is not None:
        element_force(array, dtype, &plan.element)
    element_read(array, &plan.element)
    plan.source = pack(array)
    plan.call.dtype = plan.element.dtype
    plan.call.send = array_data(plan.source)
    return 0


cdef inline size_t total_of(Plan plan, object array) noexcept:
    """Elements of `array` as the core counts them."""
    return <size_t>array_size(array) * plan.element.unit


cdef int plan_output(Plan plan, object out, object model, int axes, npy_intp *dims) except -1:
    """Set target, back and call.recv: a new array like `model` with `dims`, or the user's `out`."""
    cdef Element element
    if out is None:
        plan.target = empty_like(model, axes, dims)
    else:
        array = as_array(out, &element)
        if array is not plan.source:
            output_check(plan, array, out, &element, model, axes, dims)
        elif not same_shape(array, axes, dims) or not array_writeable(array):
            output_check(plan, array, out, &element, model, axes, dims)
        plan.out = out
        if is_packed(array):
            plan.target = array
        else:
            plan.target = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
            plan.back = array
    plan.call.recv = array_data(plan.target)
    if plan.source is not None and overlaps(plan.source, plan.target) and (
        <uintptr_t>plan.call.recv + plan.recv_shift != <uintptr_t>plan.call.send + plan.send_shift
    ):
        plan.source = plan.source.copy()
        plan.call.send = array_data(plan.source)
    return 0


cdef int output_check(Plan plan, object array, object out, Element *element, object model, int axes,
                      npy_intp *dims) except -1:
    """Refuse an `out` that cannot take the result: immutable, another dtype, another shape, read-only."""
    if element.form == FORM_SCALAR or isinstance(out, bytes) or (
        element.form == FORM_ARRAY and is_temporary(array, out)
    ):
        raise TypeError(f"out is a {type(out).__name__}, which cannot be written: pass an array")
    if plan.element.fixed and array.dtype.itemsize == 2 and array.dtype.kind in "iuV" and not element.fixed:
        element.fixed = True
        element.dtype = plan.element.dtype
    element_read(array, element)
    if element.dtype != plan.element.dtype or element.unit != plan.element.unit or (
        (element.moved or plan.element.moved) and array.dtype.newbyteorder("=") != model.dtype.newbyteorder("=")
    ):
        raise TypeError(f"out has dtype {array.dtype}, the result has {model.dtype}: pass an out of that dtype")
    if not same_shape(array, axes, dims):
        shape = tuple([dims[axis] for axis in range(axes)])
        raise errors.UsageError(
            f"out has shape {shape_tuple(array)}, the result has {shape}: pass an out of that shape"
        )
    if not array_writeable(array):
        raise errors.UsageError("out is read-only: pass a writable array, or leave out= away to get a new one")
    return 0


cdef int plan_block(Plan plan, Handle comm, object array, str operation, int *axes, npy_intp *dims) except -1:
    """The block of each rank in `array`: one row of (size, ...), or equal parts of a longer first axis."""
    cdef int axis, skip
    cdef npy_intp rows
    if array_axes(array) == 0:
        raise errors.UsageError(
            f"{operation} cuts its input along the first axis, and a scalar has none: pass {comm._size} blocks"
        )
    rows = array_dim(array, 0)
    if rows % comm._size:
        raise errors.UsageError(
            f"{operation} cuts its input into {comm._size} equal blocks along the first axis, but its shape is "
            f"{shape_tuple(array)}: pass a multiple of {comm._size} rows, or use {operation}v"
        )
    skip = 1 if rows == comm._size else 0
    axes[0] = array_axes(array) - skip
    for axis in range(axes[0]):
        dims[axis] = array_dim(array, axis + skip)
    if not skip:
        dims[0] = rows // comm._size
    return 0


# ---- running ------------------------------------------------------------------------------------------------------

cdef enum:
    KEEP_GIL_COUNT = 4096  # elements that a world of one copies faster than the GIL changes hands


cdef object run(Handle comm, Plan plan):
    """Do it now: the three steps that every blocking operation shares."""
    cdef pmr_error error
    cdef pmr_status status
    comm.enter()
    plan.call.site = site_here(&plan.call.form)
    clear(&error)
    if comm._size == 1 and plan.call.count <= KEEP_GIL_COUNT:
        status = pmr_coll_run(comm.handle, &plan.call, comm.timeout_ns, &error)
    else:
        with nogil:
            status = pmr_coll_run(comm.handle, &plan.call, comm.timeout_ns, &error)
    comm.leave()
    if status != PMR_OK:
        check(status, &error)
    return plan.result()


cdef object run_part(Handle comm, pmr_form form, Plan plan):
    """`run` for a call that may be one of those that a form is made of."""
    plan.call.form = form
    return run(comm, plan)
