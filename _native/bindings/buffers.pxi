# SPDX-License-Identifier: Apache-2.0
#
# What the user passes becomes numpy arrays that the core can read and write.
#
# An exact ndarray in C order is taken as it is: a few flag tests, no allocation. Everything else (scalars, torch
# tensors, buffers, DLPack exporters, strided or byte-swapped arrays) is first viewed as an ndarray and, where the
# core cannot use it as it lies, packed into a temporary. Invariant: an array handed to the core is contiguous,
# aligned and in native byte order, and its dtype is one that the core knows or is moved as bytes.

cdef struct Element:
    pmr_dtype dtype
    size_t unit         # core elements in one array element: 1, or more where the core can only move it
    bint moved          # the core cannot compute with it; `dtype` only tells its bytes from others
    bint fixed          # dtype was told by the exporter or the user; the array holds its bits
    int form            # how the result goes back: a Form


cdef enum Form:
    FORM_ARRAY
    FORM_SCALAR         # numpy's rule: a result without axes is a scalar
    FORM_TORCH


cdef enum:
    DIMS_MAX = 65

cdef signed char[25] DTYPE_OF_NUMBER      # numpy's type number -> pmr_dtype, -1: none
memset(DTYPE_OF_NUMBER, 0xFF, sizeof(DTYPE_OF_NUMBER))
cdef int bfloat16_number = -1             # numpy gives it when ml_dtypes registers


cdef void number_is(str name, pmr_dtype dtype):
    DTYPE_OF_NUMBER[<int>np.dtype(name).num] = <signed char>dtype


number_is("?", PMR_BOOL)
for code, size_number in ((c, s) for c in "iu" for s in (1, 2, 4, 8)):
    number_is(f"{code}{size_number}", <pmr_dtype>(
        (<int>PMR_INT8 if code == "i" else <int>PMR_UINT8) + (1, 2, 4, 8).index(size_number)))
for code in "qQ":  # long long: the same eight bytes under another number
    DTYPE_OF_NUMBER[<int>np.dtype(code).num] = <signed char>(PMR_INT64 if code == "q" else PMR_UINT64)
number_is("f2", PMR_FLOAT16)
number_is("f4", PMR_FLOAT32)
number_is("f8", PMR_FLOAT64)
number_is("c8", PMR_COMPLEX64)
number_is("c16", PMR_COMPLEX128)
del code, size_number


cdef inline bint is_packed(cnp.ndarray array) noexcept:
    return cnp.PyArray_ISCARRAY_RO(array)


cdef inline int element_read(cnp.ndarray array, Element *element) except -1:
    """Set dtype and unit from the array's dtype."""
    cdef int number = cnp.PyArray_TYPE(array)
    if element.fixed:
        return 0
    if 0 <= number < 25 and DTYPE_OF_NUMBER[number] >= 0:
        element.dtype = <pmr_dtype>DTYPE_OF_NUMBER[number]
        element.unit = 1
        return 0
    return element_read_rare(array, number, element)


cdef int element_read_rare(cnp.ndarray array, int number, Element *element) except -1:
    global bfloat16_number
    if number == bfloat16_number:
        element.dtype = PMR_BFLOAT16
        element.unit = 1
        return 0
    dtype = array.dtype
    if number >= 256 and dtype.type.__name__ == "bfloat16":
        bfloat16_number = number
        return element_read_rare(array, number, element)
    if dtype.hasobject:
        raise TypeError(
            f"an array of dtype {dtype} holds Python objects: use the *_object form (allreduce works on numbers)"
        )
    # Not all as bytes: so the core, which compares the ranks' dtypes, sees that times, text and records differ.
    element.moved = True
    if dtype.kind in "mM":
        element.dtype = PMR_INT64
        element.unit = 1
    elif dtype.kind == "U":
        element.dtype = PMR_UINT32
        element.unit = dtype.itemsize // 4
    else:
        element.dtype = PMR_UINT8
        element.unit = dtype.itemsize
    return 0


cdef int element_force(cnp.ndarray array, object dtype, Element *element) except -1:
    """`dtype=` of an operation: "bfloat16" says what 16-bit integers mean; else it must agree."""
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name == "bfloat16":
        if element.fixed or array.dtype.name == "bfloat16":
            return 0
        if array.dtype.kind not in "iu" or array.dtype.itemsize != 2:
            raise TypeError(f"dtype='bfloat16' reads the bits of a uint16 array, this one is {array.dtype}")
        element.dtype = PMR_BFLOAT16
        element.fixed = True
        return 0
    if element.fixed or np.dtype(dtype) != array.dtype:
        raise TypeError(
            f"dtype={name!r} differs from the array's {array.dtype}: convert it first (x.astype({name!r}))"
        )
    return 0


cdef cnp.ndarray as_array(object thing, Element *element):
    """`thing` as an ndarray over the same memory (scalars and sequences: a new one), in any layout."""
    element.fixed = False
    element.moved = False
    element.unit = 1
    element.form = FORM_ARRAY
    if cnp.PyArray_CheckExact(thing):
        return <cnp.ndarray>thing
    return as_array_rare(thing, element)


cdef cnp.ndarray as_array_rare(object thing, Element *element):
    if isinstance(thing, np.ndarray):
        return np.asarray(thing)
    if isinstance(thing, (bool, int, float, complex, np.generic)):
        element.form = FORM_SCALAR
        array = np.asarray(thing)
        if array.dtype.hasobject:
            raise errors.UsageError("this int does not fit 64 bits: numeric dtypes end there, use the *_object form")
        return array
    torch = sys.modules.get("torch")
    tensor_type = getattr(torch, "Tensor", None)
    if tensor_type is not None and isinstance(thing, tensor_type):
        return torch_array(torch, thing, element)
    if isinstance(thing, (bytes, bytearray, memoryview)) or hasattr(type(thing), "__buffer__"):
        return np.asarray(memoryview(thing))
    if hasattr(thing, "__dlpack__") and hasattr(thing, "__dlpack_device__"):
        return dlpack_array(thing, element)
    if thing is None or isinstance(thing, (str, dict, set, frozenset)):
        raise TypeError(
            f"{type(thing).__name__} is not a buffer or a number: pass an array, or use the *_object form"
        )
    try:
        return np.asarray(memoryview(thing))
    except TypeError:  # no buffer: numpy knows sequences and the array protocols
        return np.asarray(thing)


cdef cnp.ndarray torch_array(object torch, object tensor, Element *element):
    if tensor.device.type != "cpu":
        raise TypeError(f"the tensor is on {tensor.device}, pmrun moves CPU memory: pass tensor.cpu()")
    element.form = FORM_TORCH
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        element.dtype = PMR_BFLOAT16
        element.fixed = True
        tensor = tensor.view(torch.int16)
    try:
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:  # conjugated, sparse, quantised
        raise TypeError(f"this torch tensor cannot be read in place: {str(error).splitlines()[0]}") from error


cdef object torch_result(cnp.ndarray array, Element *element):
    torch = sys.modules["torch"]
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if element.dtype == PMR_BFLOAT16 else tensor


cdef cnp.ndarray pack(cnp.ndarray array):
    """A C-ordered, aligned, native copy; the array itself where it is that already."""
    if is_packed(array):
        return array
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


cdef cnp.ndarray empty_like(cnp.ndarray model, int axes, cnp.npy_intp *dims):
    """A new packed array of `model`'s dtype."""
    cdef int number = cnp.PyArray_TYPE(model)
    if 0 <= number < 25 and DTYPE_OF_NUMBER[number] >= 0:
        return cnp.PyArray_EMPTY(axes, dims, number, 0)
    return np.empty(tuple([dims[axis] for axis in range(axes)]), model.dtype.newbyteorder("="))


cdef bint is_temporary(cnp.ndarray array, object thing) except -1:
    """Whether `array`, made of `thing`, is a copy of it, so that writing there never reaches `thing`."""
    if array is thing or cnp.PyArray_BASE(array) != NULL:
        return False
    if isinstance(thing, (list, tuple)):
        return True
    return not np.may_share_memory(array, np.asarray(thing))  # array protocols may give a view or a copy


cdef tuple shape_tuple(cnp.ndarray array):
    return tuple([cnp.PyArray_DIM(array, axis) for axis in range(cnp.PyArray_NDIM(array))])


cdef bint same_shape(cnp.ndarray array, int axes, cnp.npy_intp *dims) noexcept:
    cdef int axis
    if cnp.PyArray_NDIM(array) != axes:
        return False
    for axis in range(axes):
        if cnp.PyArray_DIM(array, axis) != dims[axis]:
            return False
    return True


cdef bint overlaps(cnp.ndarray one, cnp.ndarray two) noexcept:
    """Of packed arrays."""
    cdef uintptr_t one_start = <uintptr_t>cnp.PyArray_DATA(one)
    cdef uintptr_t two_start = <uintptr_t>cnp.PyArray_DATA(two)
    return (one_start < two_start + <uintptr_t>cnp.PyArray_NBYTES(two)
            and two_start < one_start + <uintptr_t>cnp.PyArray_NBYTES(one))
