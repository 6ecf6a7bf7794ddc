# SPDX-License-Identifier: Apache-2.0
#
# Arrays of other libraries through DLPack, without a copy and writable where the exporter says so.
#
# numpy's own `from_dlpack` gives read-only arrays for most exporters and refuses bfloat16, hence this reader.
# Invariant: the exporter's deleter is called exactly once, when the array (and its views) died.

cdef extern from *:
    """
    /* The layout that the DLPack specification fixes (versions 0.8 and 1.x). */
    typedef struct {
        void *data;
        int32_t device_type, device_id;
        int32_t ndim;
        uint8_t code, bits;
        uint16_t lanes;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } pmr_py_tensor;

    typedef struct pmr_py_tensor_old {
        pmr_py_tensor tensor;
        void *manager;
        void (*deleter)(struct pmr_py_tensor_old *self);
    } pmr_py_tensor_old;

    typedef struct pmr_py_tensor_new {
        uint32_t major, minor;
        void *manager;
        void (*deleter)(struct pmr_py_tensor_new *self);
        uint64_t flags;
        pmr_py_tensor tensor;
    } pmr_py_tensor_new;
    """
    ctypedef struct pmr_py_tensor:
        void *data
        int32_t device_type
        int32_t ndim
        uint8_t code
        uint8_t bits
        uint16_t lanes
        int64_t *shape
        int64_t *strides
        uint64_t byte_offset

    ctypedef struct pmr_py_tensor_old:
        pmr_py_tensor tensor
        void (*deleter)(pmr_py_tensor_old *self) noexcept

    ctypedef struct pmr_py_tensor_new:
        uint32_t major
        void (*deleter)(pmr_py_tensor_new *self) noexcept
        uint64_t flags
        pmr_py_tensor tensor

cdef enum:
    DLPACK_CPU = 1
    DLPACK_CUDA_HOST = 3
    DLPACK_READ_ONLY = 1
    DLPACK_DIMS_MAX = 32

cdef dict DLPACK_DTYPES = {  # (type code, bits) of the specification
    (0, 8): "i1", (0, 16): "i2", (0, 32): "i4", (0, 64): "i8",
    (1, 8): "u1", (1, 16): "u2", (1, 32): "u4", (1, 64): "u8",
    (2, 16): "f2", (2, 32): "f4", (2, 64): "f8",
    (4, 16): "u2",  # bfloat16: moved as its bits, reduced as what it is
    (5, 64): "c8", (5, 128): "c16",
    (6, 8): "?",
}


cdef void dlpack_release_old(object capsule) noexcept:
    cdef pmr_py_tensor_old *held = <pmr_py_tensor_old *>PyCapsule_GetPointer(capsule, "pmrun.dlpack")
    if held.deleter != NULL:
        held.deleter(held)


cdef void dlpack_release_new(object capsule) noexcept:
    cdef pmr_py_tensor_new *held = <pmr_py_tensor_new *>PyCapsule_GetPointer(capsule, "pmrun.dlpack")
    if held.deleter != NULL:
        held.deleter(held)


cdef object dlpack_array(object exporter, Element *element):
    """A view of what `exporter` exports; sets element.dtype to bfloat16 where it is."""
    device = exporter.__dlpack_device__()[0]
    if device not in (DLPACK_CPU, DLPACK_CUDA_HOST):
        raise TypeError(
            f"{type(exporter).__name__} is not in the CPU's memory (DLPack device type {int(device)}): "
            "copy it to the CPU first"
        )
    try:
        capsule = exporter.__dlpack__(max_version=(1, 0))
    except TypeError:  # an exporter of the time before versions
        capsule = exporter.__dlpack__()
    cdef pmr_py_tensor_old *old
    cdef pmr_py_tensor_new *new
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        new = <pmr_py_tensor_new *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        if new.major != 1:
            raise TypeError(f"{type(exporter).__name__} exports DLPack version {new.major}, pmrun reads version 1")
        owner = PyCapsule_New(new, "pmrun.dlpack", dlpack_release_new)
        PyCapsule_SetName(capsule, "used_dltensor_versioned")
        return dlpack_view(&new.tensor, owner, (new.flags & DLPACK_READ_ONLY) == 0, element)
    old = <pmr_py_tensor_old *>PyCapsule_GetPointer(capsule, "dltensor")
    owner = PyCapsule_New(old, "pmrun.dlpack", dlpack_release_old)
    PyCapsule_SetName(capsule, "used_dltensor")
    return dlpack_view(&old.tensor, owner, True, element)


cdef object dlpack_view(pmr_py_tensor *tensor, object owner, bint writable, Element *element):
    cdef npy_intp dims[DLPACK_DIMS_MAX]
    cdef npy_intp strides[DLPACK_DIMS_MAX]
    cdef npy_intp step = tensor.bits // 8
    cdef int axis
    name = DLPACK_DTYPES.get((tensor.code, tensor.bits))
    if name is None or tensor.lanes != 1 or tensor.ndim > DLPACK_DIMS_MAX:
        raise TypeError(
            f"no pmrun dtype for DLPack type code {tensor.code} with {tensor.bits} bits, {tensor.lanes} lanes and "
            f"{tensor.ndim} axes: convert it to a numpy array first"
        )
    for axis in range(tensor.ndim - 1, -1, -1):
        dims[axis] = tensor.shape[axis]
        if tensor.strides != NULL:
            strides[axis] = tensor.strides[axis] * (tensor.bits // 8)
        else:
            strides[axis] = step
            step *= tensor.shape[axis]
    if tensor.code == 4:
        element.dtype = PMR_BFLOAT16
        element.fixed = True
    return array_at(
        tensor.ndim, dims, strides, np.dtype(name).num, <char *>tensor.data + tensor.byte_offset,
        NPY_ARRAY_WRITEABLE if writable else 0, owner,
    )
