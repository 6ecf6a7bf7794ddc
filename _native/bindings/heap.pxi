# SPDX-License-Identifier: Apache-2.0
#
# Arrays whose memory all local ranks see: pm.empty, pm.shared, and numpy's allocator hook (NEP 49).
#
# A block belongs to a capsule (or to numpy's handler), which frees it when the array dies. Invariant: after the
# context is closed, and in a forked child, blocks are never freed: the heap's bookkeeping is gone or is a copy,
# while the memory itself stays mapped for arrays that live on.

cdef extern from *:
    """
    /* numpy's handler may be asked to free what it gave before the context was closed. Blocks of the heap are
     * told from malloc's by their address: one rank's heap is one range, and malloc never gives from it. */
    static uintptr_t pmr_py_heap_low = UINTPTR_MAX, pmr_py_heap_high;

    static void *pmr_py_heap_note(void *block, size_t bytes)
    {
        uintptr_t start = (uintptr_t)block;
        if (block != NULL) {
            if (start < pmr_py_heap_low)
                pmr_py_heap_low = start;
            if (start + bytes + 1 > pmr_py_heap_high)
                pmr_py_heap_high = start + bytes + 1;
        }
        return block;
    }

    static inline int pmr_py_heap_holds(const void *block)
    {
        return (uintptr_t)block >= pmr_py_heap_low && (uintptr_t)block < pmr_py_heap_high;
    }

    /* Of a block that several ranks look at: how many arrays do. Lies in front of the data. */
    typedef struct {
        uint32_t views;
    } pmr_py_shared;

    static inline void pmr_py_shared_add(pmr_py_shared *shared)
    {
        __atomic_add_fetch(&shared->views, 1, __ATOMIC_RELAXED);
    }

    static inline uint32_t pmr_py_shared_drop(pmr_py_shared *shared)
    {
        return __atomic_sub_fetch(&shared->views, 1, __ATOMIC_ACQ_REL);
    }

    static inline uint32_t pmr_py_shared_views(pmr_py_shared *shared)
    {
        return __atomic_load_n(&shared->views, __ATOMIC_ACQUIRE);
    }
    """
    void *pmr_py_heap_note(void *block, size_t bytes) noexcept nogil
    bint pmr_py_heap_holds(const void *block) noexcept nogil
    ctypedef struct pmr_py_shared:
        uint32_t views
    void pmr_py_shared_add(pmr_py_shared *shared) noexcept nogil
    uint32_t pmr_py_shared_drop(pmr_py_shared *shared) noexcept nogil
    uint32_t pmr_py_shared_views(pmr_py_shared *shared) noexcept nogil

cdef enum:
    SHARED_HEADER_BYTES = 64

cdef pmr_py_shared **parked = NULL  # shared blocks of this rank that others still look at
cdef size_t parked_count = 0
cdef size_t parked_room = 0


cdef inline bint heap_usable() noexcept nogil:
    return context_now != NULL and generation_now > 0


# ---- blocks behind arrays -----------------------------------------------------------------------------------

cdef void block_release(object capsule) noexcept:
    cdef void *block = PyCapsule_GetPointer(capsule, "pmrun.block")
    if heap_usable():
        pmr_heap_free(context_now, block)


cdef void shared_release_owner(object capsule) noexcept:
    """The array of the rank whose heap holds the block died: free now, or when the last peer looked away."""
    global parked, parked_count, parked_room
    cdef pmr_py_shared *shared = <pmr_py_shared *>PyCapsule_GetPointer(capsule, "pmrun.shared")
    cdef void *bigger
    if not heap_usable():
        return
    if pmr_py_shared_drop(shared) == 0:
        pmr_heap_free(context_now, shared)
        return
    if parked_count == parked_room:
        bigger = realloc(parked, (2 * parked_room + 8) * sizeof(pmr_py_shared *))
        if bigger == NULL:
            return  # the block stays taken until the process ends
        parked = <pmr_py_shared **>bigger
        parked_room = 2 * parked_room + 8
    parked[parked_count] = shared
    parked_count += 1


cdef void shared_release_peer(object capsule) noexcept:
    if heap_usable():
        pmr_py_shared_drop(<pmr_py_shared *>PyCapsule_GetPointer(capsule, "pmrun.shared"))


cdef void parked_reap() noexcept:
    global parked_count
    cdef size_t index = 0
    while index < parked_count:
        if pmr_py_shared_views(parked[index]) == 0:
            pmr_heap_free(context_now, parked[index])
            parked_count -= 1
            parked[index] = parked[parked_count]
        else:
            index += 1


cdef void *heap_take(size_t bytes) except NULL:
    cdef void *block
    need_context()
    parked_reap()
    block = pmr_heap_alloc(context_now, bytes)
    if block == NULL:
        raise MemoryError(
            f"this rank's window heap has no {bytes} bytes left: free arrays made by pm.empty/zeros/shared, "
            "or use numpy's own (collectives work with those too)"
        )
    return pmr_py_heap_note(block, bytes)


cdef object array_over(void *data, object owner, tuple shape, object dtype):
    """An array of `dtype` over `data`; `owner` (a capsule) lives as long as it does."""
    cdef npy_intp bytes_ = bytes_of(shape, dtype)
    flat = array_at(1, &bytes_, NULL, NPY_UINT8, data, NPY_ARRAY_CARRAY, owner)
    return flat.view(dtype).reshape(shape) if bytes_ else np.empty(shape, dtype)


cdef size_t bytes_of(tuple shape, object dtype) except? <size_t>-1:
    total = dtype.itemsize
    for extent in shape:
        total *= extent
    if total > sys.maxsize:
        raise errors.UsageError(f"an array of shape {shape} and dtype {dtype} does not fit in memory")
    return total


def shape_of(shape):
    """`shape` as a tuple of int: numpy's rules (an int or a sequence of int, none negative)."""
    if hasattr(shape, "__index__"):
        shape = (shape,)
    extents = tuple([PyNumber_Index(extent) for extent in shape])
    for extent in extents:
        if extent < 0:
            raise errors.UsageError(f"shape {extents} has a negative extent: give the number of elements per axis")
    return extents


def dtype_of(dtype):
    """`dtype` as a numpy dtype; "bfloat16" is ml_dtypes'. Objects are refused."""
    numpy_load()
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(
                "dtype 'bfloat16' needs the package ml_dtypes: install it, or use uint16 arrays and pass "
                "dtype='bfloat16' to the operation"
            ) from None
        return np.dtype(ml_dtypes.bfloat16)
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"dtype {dtype} holds Python objects, which shared memory cannot: use a numeric dtype")
    return dtype


def heap_array(shape, dtype, bint zero):
    """A new C-ordered array in this rank's window heap; freed when it and all its views are gone."""
    cdef size_t bytes_
    cdef void *block
    shape = shape_of(shape)
    dtype = dtype_of(dtype)
    bytes_ = bytes_of(shape, dtype)
    block = heap_take(bytes_)
    owner = PyCapsule_New(block, "pmrun.block", block_release)
    if zero:
        memset(block, 0, bytes_)
    return array_over(block, owner, shape, dtype)


def shared_make(tuple shape, dtype):
    """(array, offset) of a new zeroed array that other ranks open with `shared_open`."""
    cdef size_t bytes_ = bytes_of(shape, dtype)
    cdef pmr_py_shared *shared = <pmr_py_shared *>heap_take(SHARED_HEADER_BYTES + bytes_)
    memset(shared, 0, SHARED_HEADER_BYTES + bytes_)
    pmr_py_shared_add(shared)
    owner = PyCapsule_New(shared, "pmrun.shared", shared_release_owner)
    offset = pmr_window_offset(context_now, shared)
    return array_over(<char *>shared + SHARED_HEADER_BYTES, owner, shape, dtype), offset


def shared_open(tuple shape, dtype, uint64_t offset):
    """The array of a peer's `shared_make`. The peer keeps its own until all have opened it."""
    cdef pmr_py_shared *shared
    need_context()
    shared = <pmr_py_shared *>pmr_window_address(context_now, offset)
    pmr_py_shared_add(shared)
    owner = PyCapsule_New(shared, "pmrun.shared", shared_release_peer)
    return array_over(<char *>shared + SHARED_HEADER_BYTES, owner, shape, dtype)


def heap_covers(array):
    """Whether the array's memory lies in a heap that all local ranks see."""
    need_context()
    numpy_load()
    if not isinstance(array, np.ndarray):
        raise TypeError(f"a {type(array).__name__} is no array: pass a numpy array")
    return pmr_heap_covers(context_now, array_data(array), array_nbytes(array))


# ---- numpy's allocator hook ---------------------------------------------------------------------------------

cdef void *hook_malloc(void *ctx, size_t bytes_) noexcept nogil:
    cdef void *block = NULL
    if heap_usable():
        block = pmr_py_heap_note(pmr_heap_alloc(context_now, bytes_), bytes_)
    return block if block != NULL else malloc(bytes_ if bytes_ else 1)


cdef void *hook_calloc(void *ctx, size_t count, size_t each) noexcept nogil:
    cdef void *block
    if each != 0 and count > <size_t>-1 // each:
        return NULL
    if not heap_usable():
        return calloc(count if count else 1, each if each else 1)
    block = hook_malloc(ctx, count * each)
    if block != NULL:
        memset(block, 0, count * each)
    return block


cdef void *hook_realloc(void *ctx, void *block, size_t bytes_) noexcept nogil:
    if block == NULL:
        return hook_malloc(ctx, bytes_)
    if not pmr_py_heap_holds(block):
        return realloc(block, bytes_ if bytes_ else 1)
    if not heap_usable():
        return NULL  # its size went with the heap's bookkeeping
    return pmr_py_heap_note(pmr_heap_realloc(context_now, block, bytes_), bytes_)


cdef void hook_free(void *ctx, void *block, size_t bytes_) noexcept nogil:
    if not pmr_py_heap_holds(block):
        free(block)
    elif heap_usable():
        pmr_heap_free(context_now, block)


cdef PyDataMem_Handler hook_handler
memset(&hook_handler, 0, sizeof(hook_handler))
memcpy(hook_handler.name, b"pmrun", 6)
hook_handler.version = 1
hook_handler.allocator.ctx = NULL
hook_handler.allocator.malloc = hook_malloc
hook_handler.allocator.calloc = hook_calloc
hook_handler.allocator.realloc = hook_realloc
hook_handler.allocator.free = hook_free
cdef object hook_capsule = PyCapsule_New(&hook_handler, "mem_handler", NULL)


def hook_set():
    """Let new numpy arrays of this thread (context) live in the heap; return the handler that did so before."""
    need_context()
    numpy_load()
    return PyDataMem_SetHandler(hook_capsule)


def hook_restore(handler):
    """Undo `hook_set`: arrays made in between stay where they are."""
    PyDataMem_SetHandler(handler)
