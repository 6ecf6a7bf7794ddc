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

cdef dict DTYPE_OF_NAME = {               # numpy's name -> pmr_dtype
    "?": PMR_BOOL,
    "i1": PMR_INT8, "i2": PMR_INT16, "i4": PMR_INT32, "i8": PMR_INT64,
    "u1": PMR_UINT8, "u2": PMR_UINT16, "u4": PMR_UINT32, "u8": PMR_UINT64,
    "q": PMR_INT64, "Q": PMR_UINT64,      # long long: the same eight bytes under another number
    "f2": PMR_FLOAT16, "f4": PMR_FLOAT32, "f8": PMR_FLOAT64,
    "c8": PMR_COMPLEX64, "c16": PMR_COMPLEX128,
}


cdef int numbers_learn() except -1:
    """The type numbers of this machine's numpy; called once, when it is loaded."""
    for name, dtype in DTYPE_OF_NAME.items():
        DTYPE_OF_NUMBER[<int>np.dtype(name).num] = <signed char>dtype
    return 0


cdef inline bint is_packed(object array) noexcept:
    return array_packed(array)


cdef inline int element_read(object array, Element *element) except -1:
    """Set dtype and unit from the array's dtype."""
    cdef int number = array_number(array)
    if element.fixed:
        return 0
    if 0 <= number < 25 and DTYPE_OF_NUMBER[number] >= 0:
        element.dtype = <pmr_dtype>DTYPE_OF_NUMBER[number]
        element.unit = 1
        return 0
    return element_read_rare(array, number, element)


cdef int element_read_rare(object array, int number, Element *element) except -1:
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


cdef int element_force(object array, object dtype, Element *element) except -1:
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


cdef object as_array(object thing, Element *element):
    """`thing` as an ndarray over the same memory (scalars and sequences: a new one), in any layout."""
    element.fixed = False
    element.moved = False
    element.unit = 1
    element.form = FORM_ARRAY
    if is_array(thing):
        return thing
    return as_array_rare(thing, element)


cdef object as_array_rare(object thing, Element *element):
    numpy_load()
    if is_array(thing):
        return thing  # the first one that this process shows
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


cdef object torch_array(object torch, object tensor, Element *element):
    if tensor.device.type != "cpu":
        raise TypeError(f"the tensor is on {tensor.device}, pmrun moves CPU memory: pass tensor.cpu()")
    element.form = FORM_TORCH
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        element.dtype = PMR_BFLOAT16
        element.fixed = True
        tensor = tensor.view(torch.int16)
    try:
        return np.asarray(tensor.numpy())
    except (RuntimeError, TypeError) as error:  # conjugated, sparse, quantised
        raise TypeError(f"this torch tensor cannot be read in place: {str(error).splitlines()[0]}") from error


cdef object torch_result(object array, Element *element):
    torch = sys.modules["torch"]
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if element.dtype == PMR_BFLOAT16 else tensor


cdef object pack(object array):
    """A C-ordered, aligned, native copy; the array itself where it is that already."""
    if is_packed(array):
        return array
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


cdef object empty_like(object model, int axes, npy_intp *dims):
    """A new packed array of `model`'s dtype."""
    cdef int number = array_number(model)
    if 0 <= number < 25 and DTYPE_OF_NUMBER[number] >= 0:
        return array_empty(axes, dims, number, 0)
    return np.empty(tuple([dims[axis] for axis in range(axes)]), model.dtype.newbyteorder("="))


cdef bint is_temporary(object array, object thing) except -1:
    """Whether `array`, made of `thing`, is a copy of it, so that writing there never reaches `thing`."""
    if array is thing or array_base(array) != NULL:
        return False
    if isinstance(thing, (list, tuple)):
        return True
    return not np.may_share_memory(array, np.asarray(thing))  # array protocols may give a view or a copy


cdef tuple shape_tuple(object array):
    return tuple([array_dim(array, axis) for axis in range(array_axes(array))])


cdef bint same_shape(object array, int axes, npy_intp *dims) noexcept:
    cdef int axis
    if array_axes(array) != axes:
        return False
    for axis in range(axes):
        if array_dim(array, axis) != dims[axis]:
            return False
    return True


cdef bint overlaps(object one, object two) noexcept:
    """Of packed arrays."""
    cdef uintptr_t one_start = <uintptr_t>array_data(one)
    cdef uintptr_t two_start = <uintptr_t>array_data(two)
    return (one_start < two_start + <uintptr_t>array_nbytes(two)
            and two_start < one_start + <uintptr_t>array_nbytes(one))
