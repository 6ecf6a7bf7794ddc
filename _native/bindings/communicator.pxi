# SPDX-License-Identifier: Apache-2.0
#
# What a communicator is: its handle, who may use it now, and how it is divided.
#
# The operations come in the classes that build on Handle, one per file: Collectives, Vectors, Messages. Invariant:
# between `enter` and `leave` exactly one thread of this process is inside the core with this communicator, and its
# handle is alive.

cdef enum:
    PATIENCE_SLICES = 50            # of 100 ms: how long a second thread waits for the first
    PATIENCE_SLICE_US = 100000

cdef extern from *:
    """
    static inline int pmr_py_lock_timed(PyThread_type_lock lock, long long microseconds)
    {
        return PyThread_acquire_lock_timed(lock, microseconds, 1) == PY_LOCK_ACQUIRED;
    }
    """
    bint pmr_py_lock_timed(PyThread_type_lock lock, long long microseconds) nogil

cdef int inside = 0  # calls of all threads that are in the core now; changed with the GIL held


cdef int64_t nanoseconds_of(object timeout) except? -7777:
    """A timeout in seconds as the core counts; None is for ever."""
    if timeout is None:
        return PMR_FOREVER
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise TypeError(f"timeout={timeout!r} is not a number of seconds") from None
    if not seconds >= 0:
        raise errors.UsageError(f"timeout={timeout!r} is no time to wait: give seconds, 0 or more, or None for ever")
    return PMR_FOREVER if seconds > 4e9 else <int64_t>(seconds * 1e9)


cdef class Handle:
    """A communicator's identity and its divisions. Made by `pmrun.init`, `split` and `dup` only."""

    cdef pmr_comm *handle
    cdef int generation
    cdef int _rank
    cdef int _size
    cdef int64_t timeout_ns
    cdef PyThread_type_lock lock

    def __init__(self):
        raise TypeError("a communicator is not made by its class: use pm.init(), comm.split() or comm.dup()")

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    # ---- one thread at a time ----

    cdef inline int enter(self) except -1:
        global inside
        if self.generation != generation_now or self.handle == NULL:
            self.refuse()
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            self.enter_slowly()
        inside += 1
        return 0

    cdef inline void leave(self) noexcept:
        global inside
        inside -= 1
        PyThread_release_lock(self.lock)

    cdef int enter_slowly(self) except -1:
        cdef int taken, slices
        for slices in range(PATIENCE_SLICES):
            with nogil:
                taken = pmr_py_lock_timed(self.lock, PATIENCE_SLICE_US)
            if taken:
                if self.generation == generation_now and self.handle != NULL:
                    return 0
                PyThread_release_lock(self.lock)
                self.refuse()
            PyErr_CheckSignals()
        raise errors.UsageError(
            f"another thread has been inside a call of communicator {self.id} for "
            f"{PATIENCE_SLICES * PATIENCE_SLICE_US // 1000000} s: give each thread its own (comm.dup()), or let it "
            "wait with irecv().wait()"
        )

    cdef int refuse(self) except -1:
        if generation_now == self.generation:
            raise errors.NotInitializedError("this communicator was freed: use another, or dup it before free()")
        refuse_dead()

    # ---- identity ----

    @property
    def rank(self):
        """int : this process's number in the communicator, 0 to ``size - 1``."""
        return self._rank

    @property
    def size(self):
        """int : how many ranks the communicator has."""
        return self._size

    @property
    def id(self):
        """int : the communicator's number, as reports show it; 0 is the world."""
        if self.generation != generation_now or self.handle == NULL:
            self.refuse()
        return pmr_comm_id(self.handle)

    @property
    def timeout(self):
        """float or None : seconds after which a blocking call raises; None waits for ever.

        A collective that runs out raises `CollectiveTimeout` and names who has not come; the gang is broken then.
        Communicators made by `split` and `dup` start with their parent's.
        """
        return None if self.timeout_ns == PMR_FOREVER else self.timeout_ns / 1e9

    @timeout.setter
    def timeout(self, seconds):
        self.timeout_ns = nanoseconds_of(seconds)

    def world_rank(self, rank):
        """The world rank of this communicator's member `rank`, an int."""
        cdef int32_t member = number_of(rank, "rank")
        if self.generation != generation_now or self.handle == NULL:
            self.refuse()
        if not 0 <= member < self._size:
            raise errors.UsageError(f"rank={member} is not a rank of this communicator: use 0 to {self._size - 1}")
        return pmr_comm_world_rank(self.handle, <uint32_t>member)

    def __repr__(self):
        if self.generation != generation_now or self.handle == NULL:
            return f"<{type(self).__name__} closed>"
        return f"<{type(self).__name__} {pmr_comm_id(self.handle)}: rank {self._rank} of {self._size}>"

    def __reduce__(self):
        raise TypeError("a communicator cannot be pickled: it is a place in this gang, not a value")

    # ---- division ----

    def split(self, color, key=0):
        """Divide the communicator: ranks with equal `color` form one. Collective.

        Parameters
        ----------
        color : int or None
            None (or a negative number): take part, but be in no new communicator.
        key : int
            Order in the new communicator; ties keep this communicator's order.

        Returns
        -------
        Communicator or None
            The one that holds this rank, of the same class as this one.
        """
        return divide(self, False, -1 if color is None else number_of(color, "color"), number_of(key, "key"))

    def dup(self):
        """A second communicator of the same ranks, with its own messages and order of calls. Collective."""
        return divide(self, True, 0, 0)

    def free(self):
        """Give the communicator back; it cannot be used afterwards. Collective; not for the world."""
        cdef pmr_error error
        cdef pmr_status status
        if self.generation == generation_now and self.handle == NULL:
            return  # twice is once
        self.enter()
        clear(&error)
        with nogil:
            status = pmr_comm_free(self.handle, &error)
        if status == PMR_OK:
            self.handle = NULL
        self.leave()
        if status != PMR_OK:
            check(status, &error)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        # After an exception the others may never come to a collective free: then it is left to shutdown.
        if error is None and generation_now == self.generation and self.handle != NULL and self.id != 0:
            self.free()
        return False


cdef Handle divide(Handle comm, bint copy, int32_t color, int32_t key):
    cdef pmr_comm *part = NULL
    cdef pmr_form form
    cdef pmr_error error
    cdef pmr_status status
    cdef uint32_t site
    comm.enter()
    site = site_here(&form)
    clear(&error)
    with nogil:
        if copy:
            status = pmr_comm_dup(comm.handle, site, &part, &error)
        else:
            status = pmr_comm_split(comm.handle, color, key, site, &part, &error)
    comm.leave()
    if status != PMR_OK:
        check(status, &error)
    return None if part == NULL else communicator_wrap(type(comm), part, comm)


cdef Handle communicator_wrap(type kind, pmr_comm *handle, Handle parent):
    cdef Handle comm = kind.__new__(kind)
    comm.lock = PyThread_allocate_lock()
    if comm.lock == NULL:
        raise MemoryError("no memory for a lock")
    comm.handle = handle
    comm.generation = generation_now
    comm._rank = <int>pmr_comm_rank(handle)
    comm._size = <int>pmr_comm_size(handle)
    comm.timeout_ns = PMR_FOREVER if parent is None else parent.timeout_ns
    return comm
