# SPDX-License-Identifier: Apache-2.0
#
# A Request: an operation that goes on while Python computes.
#
# It holds the Plan, and with it every buffer that the core may touch. One made by isendrecv is the receive and holds
# the send as its partner: it is over when both are. Invariant: the buffers of a request that
# still runs are alive. One that is dropped without a wait moves to `abandoned`, from where later calls take it
# when it has completed.

cdef list abandoned = []


@cython.final
cdef class Request:
    """An operation in progress, as an ``i...`` call returned it.

    ``wait()`` (or ``await``) gives what the blocking form would have returned. Until then the buffers belong to
    the operation: reading its output or changing its input early is a race, dropping the Request is not.
    """

    cdef pmr_request *handle
    cdef int generation
    cdef Plan plan
    cdef Request partner    # or None
    cdef bint settled       # its own operation is over
    cdef bint finished      # so is the partner's
    cdef bint built
    cdef object value       # the result, or the exception
    cdef int event_fd

    def __init__(self):
        raise TypeError("a Request is returned by the i... operations, it is not made by its class")

    def __cinit__(self):
        self.event_fd = -1

    def __del__(self):
        if self.handle != NULL and not self.finished and self.generation == generation_now:
            if not self.poll():
                abandoned.append(self)

    def __dealloc__(self):
        if self.handle != NULL and self.generation == generation_now:
            pmr_request_free(self.handle)
        if self.event_fd >= 0 and not forked and (self.finished or not inside):
            close_descriptor(self.event_fd)

    cdef int alive(self) except -1:
        if self.generation != generation_now:
            refuse_dead()
        return 0

    cdef bint poll(self) except -1:
        """Whether it is over; keeps the outcome."""
        cdef pmr_error error
        cdef pmr_status status
        if self.finished:
            return True
        self.alive()
        if not self.settled:
            clear(&error)
            status = pmr_request_test(self.handle, &error)
            if status == PMR_PENDING:
                return False
            self.settle(status, &error)
        return self.finished or self.poll_partner()

    cdef bint poll_partner(self) except -1:
        """After its own operation is over; the descriptor then tells of the partner's only."""
        if self.event_fd >= 0:
            try:
                os.eventfd_read(self.event_fd)
            except BlockingIOError:  # nothing was written since the last look
                pass
        if not self.partner.poll():
            return False  # the engine writes when it is over: after this look, so nothing is missed
        self.finished = True
        if self.event_fd >= 0:
            os.eventfd_write(self.event_fd, 1)  # whoever waits for it still
        return True

    cdef int settle(self, pmr_status status, pmr_error *error) except -1:
        if self.settled:
            return 0
        if status != PMR_OK:
            try:
                check(status, error)
            except Exception as failure:
                self.value = failure
        self.settled = True
        if self.partner is None:
            self.finished = True
        elif self.event_fd >= 0:
            self.partner.notify(self.event_fd)
        return 0

    cdef int notify(self, int descriptor) except -1:
        cdef pmr_error error
        clear(&error)
        return check(pmr_request_notify(self.handle, descriptor, &error), &error)

    cdef object outcome(self):
        if not self.built:
            if self.value is None and self.partner is not None:
                self.value = self.failure_joined()
            if self.value is None:
                self.value = self.plan.result()
            self.built = True
            if isinstance(self.value, Exception):
                self.plan = None
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    cdef object failure_joined(self):
        """What went wrong in an isendrecv whose receive went well; or None."""
        if isinstance(self.partner.value, Exception):
            return self.partner.value
        if self.plan.out is None:
            return length_failure(self.info().bytes, <size_t>array_nbytes(self.plan.target))
        return None

    def wait(self, timeout=None):
        """Wait until the operation is over.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None waits for ever.

        Returns
        -------
        object
            What the blocking form returns. Again, when called again.

        Raises
        ------
        RequestTimeout
            It still runs; wait again.
        """
        if not self.finished:
            self.wait_parts(nanoseconds_of(timeout))
        return self.outcome()

    cdef int wait_parts(self, int64_t limit_ns) except -1:
        cdef pmr_error error
        cdef pmr_status status
        cdef double end = 0 if self.partner is None else monotonic() + limit_ns / 1e9
        self.alive()
        if not self.settled:
            clear(&error)
            status = pmr_request_test(self.handle, &error)
            if status == PMR_PENDING:
                status = self.wait_blocking(limit_ns, &error)
            self.settle(status, &error)
        if not self.finished:
            if not self.partner.finished:
                if limit_ns != PMR_FOREVER:
                    limit_ns = <int64_t>(max(0.0, end - monotonic()) * 1e9)
                self.partner.wait_parts(limit_ns)
            self.finished = True
        return 0

    cdef pmr_status wait_blocking(self, int64_t limit_ns, pmr_error *error) except *:
        global inside
        cdef pmr_status status
        inside += 1
        with nogil:
            status = pmr_request_wait(self.handle, limit_ns, error)
        inside -= 1
        if status == PMR_ERR_TIMEOUT or status == PMR_ERR_INTERRUPTED:
            check(status, error)
        return status

    def test(self):
        """Whether the operation is over, well or not (bool). Does not wait; `wait` then tells how it ended."""
        return self.poll()

    @property
    def done(self):
        """bool : the same as ``test()``."""
        return self.poll()

    cdef pmr_request *running(self) noexcept:
        """The handle of what is not over yet."""
        return self.partner.handle if self.settled and self.partner is not None else self.handle

    cdef pmr_message_info info(self) except *:
        cdef pmr_message_info info
        if not self.poll():
            raise errors.UsageError("the receive still runs: call wait() before asking where its message came from")
        self.alive()
        pmr_request_info(self.handle, &info)
        return info

    @property
    def source(self):
        """int : of a completed receive, the rank that sent the message."""
        return self.info().source

    @property
    def tag(self):
        """int : of a completed receive, the message's tag."""
        return self.info().tag

    @property
    def nbytes(self):
        """int : of a completed receive, the message's length in bytes."""
        return self.info().bytes

    def fileno(self):
        """A descriptor (eventfd) that becomes readable when the operation is over; it belongs to the Request.

        That of an `isendrecv` becomes readable once before, too: ask `test`, and wait again where it says False.
        """
        if self.event_fd < 0:
            self.alive()
            self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            if self.settled and not self.finished:
                self.partner.notify(self.event_fd)
            else:
                self.notify(self.event_fd)
        return self.event_fd

    def __await__(self):
        from pmrun.awaiting import completion
        return completion(self).__await__()

    def __repr__(self):
        if self.finished:
            return "<Request completed>"
        return "<Request closed>" if self.generation != generation_now else "<Request running>"


cdef extern from "<unistd.h>" nogil:
    int close_descriptor "close"(int fd)


cdef Request request_new(Handle comm, Plan plan):
    """A Request without its handle yet; so that nothing can fail once the core has one."""
    cdef Request request = Request.__new__(Request)
    request.plan = plan
    request.generation = comm.generation
    if abandoned:
        abandoned_reap()
    return request


cdef object start(Handle comm, Plan plan):
    """Let it go on: the nonblocking twin of `run`."""
    cdef Request request = request_new(comm, plan)
    cdef pmr_error error
    cdef pmr_status status
    comm.enter()
    plan.call.site = site_here(&plan.call.form)
    clear(&error)
    with nogil:
        status = pmr_coll_start(comm.handle, &plan.call, &request.handle, &error)
    comm.leave()
    if status != PMR_OK:
        request.handle = NULL
        check(status, &error)
    return request


cdef int abandoned_reap() except -1:
    """Let go of the dropped requests that have completed meanwhile."""
    cdef list running = []
    cdef Request request
    for request in abandoned:
        if request.generation == generation_now and not request.poll():
            running.append(request)
    abandoned[:] = running
    return 0


cdef list requests_of(object requests, str function, bint none_allowed):
    """What was passed, as a list of Requests and, where they are allowed, None."""
    cdef list held
    cdef Py_ssize_t index
    cdef str also = " or None" if none_allowed else ""
    if isinstance(requests, Request):
        raise TypeError(f"{function} takes a list of Requests, not one alone: pass [request], or call request.wait()")
    try:
        held = list(requests)
    except TypeError:
        raise TypeError(f"{function} takes a list of Requests, not {type(requests).__name__}") from None
    for index in range(len(held)):
        if not (isinstance(held[index], Request) or none_allowed and held[index] is None):
            raise TypeError(f"{function} waits for Requests{also}, as the i... operations return them; "
                            f"item {index} is {type(held[index]).__name__}")
    return held


def wait_all(requests, timeout=None):
    """Wait until all operations are over.

    Parameters
    ----------
    requests : iterable of Request
    timeout : float, optional
        Seconds for all together; None waits for ever.

    Returns
    -------
    list
        Their results, in the order of `requests`. The first failure is raised, after all before it completed.
    """
    cdef int64_t limit_ns = nanoseconds_of(timeout)
    cdef list held = requests_of(requests, "wait_all", False)
    cdef double end = monotonic() + limit_ns / 1e9
    return [request.wait(None if limit_ns == PMR_FOREVER else max(0.0, end - monotonic())) for request in held]


def wait_any(requests, timeout=None):
    """Wait until one of the operations is over.

    Parameters
    ----------
    requests : sequence of Request or None
        None entries are passed over, so that a caller may strike out those it has dealt with.
    timeout : float, optional
        Seconds; None waits for ever.

    Returns
    -------
    int
        Index of one that is over, well or not: its ``wait()`` gives the result or raises.
    """
    global inside
    cdef int64_t limit_ns = nanoseconds_of(timeout)
    cdef list held = requests_of(requests, "wait_any", True)
    cdef size_t count = <size_t>len(held)
    cdef size_t index, found = 0
    cdef pmr_request **handles
    cdef pmr_error error
    cdef pmr_status status
    cdef double end = monotonic() + limit_ns / 1e9
    for index in range(count):
        if held[index] is not None and (<Request>held[index]).poll():
            return index
    if all([request is None for request in held]):
        raise errors.UsageError("wait_any has no request to wait for: pass at least one that is not None")
    handles = <pmr_request **>PyMem_Malloc(count * sizeof(pmr_request *))
    if handles == NULL:
        raise MemoryError(f"no memory to wait for {count} requests")
    try:
        while True:
            for index in range(count):
                handles[index] = NULL if held[index] is None else (<Request>held[index]).running()
            if limit_ns != PMR_FOREVER:
                limit_ns = <int64_t>(max(0.0, end - monotonic()) * 1e9)
            clear(&error)
            inside += 1
            with nogil:
                status = pmr_request_wait_any(handles, count, limit_ns, &found, &error)
            inside -= 1
            if status == PMR_ERR_TIMEOUT or status == PMR_ERR_INTERRUPTED:
                check(status, &error)
            if (<Request>held[found]).poll():  # False: half of an isendrecv is over
                return found
    finally:
        PyMem_Free(handles)
