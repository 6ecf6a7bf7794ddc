# SPDX-License-Identifier: Apache-2.0
#
# Messages between two ranks, and the class that users get.
#
# Invariant: a receive writes its buffer only as far as the message reaches; a longer message is an error, never
# a cut one.

ANY_SOURCE = PMR_ANY_SOURCE
ANY_TAG = PMR_ANY_TAG


@cython.final
cdef class Status:
    """Where a received message came from; filled by `recv`, returned by `probe`.

    Attributes
    ----------
    source : int
        The sender's rank.
    tag : int
    nbytes : int
        The message's length.
    """

    cdef readonly int source
    cdef readonly int tag
    cdef readonly size_t nbytes

    def __cinit__(self):
        self.source = -1
        self.tag = -1

    cdef int fill(self, pmr_message_info *info) except -1:
        self.source = info.source
        self.tag = info.tag
        self.nbytes = info.bytes
        return 0

    def __repr__(self):
        return f"Status(source={self.source}, tag={self.tag}, nbytes={self.nbytes})"


cdef int32_t tag_of(object tag, str name) except? -7777:
    """A user's tag; the numbers above the limit are the library's own."""
    cdef int32_t number = number_of(tag, name)
    if number > PMR_TAG_MAX:
        raise errors.UsageError(f"{name}={number} is out of range: tags are 0 to {PMR_TAG_MAX}")
    return number


cdef Plan plan_send(object x):
    cdef Plan plan = Plan.__new__(Plan)
    plan.call.kind = PMR_SEND
    plan_input(plan, x, None)
    plan.call.count = <size_t>array_nbytes(plan.source)
    return plan


cdef Plan plan_recv(object out):
    """A temporary, where one is needed, starts as a copy: a short message leaves the rest as it was."""
    cdef Plan plan = Plan.__new__(Plan)
    array = as_array(out, &plan.element)
    plan.call.kind = PMR_RECV
    element_read(array, &plan.element)
    plan_output(plan, out, array, array_axes(array), array_dims(array))
    output_check(plan, array, out, &plan.element, array, array_axes(array), array_dims(array))
    plan.call.count = <size_t>array_nbytes(plan.target)
    return plan


cdef int send_now(Handle comm, Plan plan, int32_t dest, int32_t tag) except -1:
    cdef pmr_error error
    cdef pmr_status status
    comm.enter()
    plan.call.site = site_here(&plan.call.form)
    clear(&error)
    with nogil:
        status = pmr_send(comm.handle, plan.call.send, plan.call.count, dest, tag, plan.call.site,
                          comm.timeout_ns, &error)
    comm.leave()
    if status != PMR_OK:
        check(status, &error)
    return 0


cdef int probe_now(Handle comm, int32_t source, int32_t tag, int64_t limit_ns, pmr_message_info *info) except -1:
    """1: there is one, and `info` tells of it; 0: none within the limit of 0."""
    cdef pmr_error error
    cdef pmr_status status
    cdef pmr_form form = PMR_FORM_PLAIN
    cdef uint32_t site = 0 if limit_ns == 0 else site_here(&form)
    comm.enter()
    clear(&error)
    with nogil:
        status = pmr_probe(comm.handle, source, tag, site, limit_ns, info, &error)
    comm.leave()
    if status != PMR_OK and status != PMR_PENDING:
        check(status, &error)
    return status == PMR_OK


cdef object recv_now(Handle comm, object out, int32_t source, int32_t tag, object dtype, Status told):
    cdef pmr_message_info info
    cdef Plan plan
    if out is None:
        probe_now(comm, source, tag, comm.timeout_ns, &info)
        source = info.source
        tag = info.tag
        numpy_load()
        kind = np.dtype(np.uint8 if dtype is None else dtype)
        if kind.itemsize == 0 or info.bytes % <size_t>kind.itemsize:
            raise errors.MessageTruncated(
                f"the message of {info.bytes} bytes from rank {source} is no whole number of {kind} elements: "
                "receive it with the dtype it was sent with"
            )
        plan = plan_recv(np.empty(info.bytes // <size_t>kind.itemsize, kind))
    else:
        if dtype is not None:
            raise TypeError("recv takes dtype only where it makes the array itself: leave out either of the two")
        plan = plan_recv(out)
    return recv_plan(comm, plan, source, tag, told)


cdef object recv_plan(Handle comm, Plan plan, int32_t source, int32_t tag, Status told):
    cdef pmr_message_info info
    cdef pmr_error error
    cdef pmr_status status
    comm.enter()
    plan.call.site = site_here(&plan.call.form)
    clear(&error)
    with nogil:
        status = pmr_recv(comm.handle, plan.call.recv, plan.call.count, source, tag, plan.call.site,
                          comm.timeout_ns, &info, &error)
    comm.leave()
    if status != PMR_OK:
        check(status, &error)
    if told is not None:
        told.fill(&info)
    return plan.result()


cdef Request isend_now(Handle comm, Plan plan, int32_t dest, int32_t tag):
    cdef Request request = request_new(comm, plan)
    cdef pmr_error error
    cdef pmr_status status
    comm.enter()
    plan.call.site = site_here(&plan.call.form)
    clear(&error)
    with nogil:
        status = pmr_isend(comm.handle, plan.call.send, plan.call.count, dest, tag, plan.call.site,
                           &request.handle, &error)
    comm.leave()
    if status != PMR_OK:
        request.handle = NULL
        check(status, &error)
    return request


cdef Request irecv_now(Handle comm, Plan plan, int32_t source, int32_t tag):
    cdef Request request = request_new(comm, plan)
    cdef pmr_error error
    cdef pmr_status status
    comm.enter()
    plan.call.site = site_here(&plan.call.form)
    clear(&error)
    with nogil:
        status = pmr_irecv(comm.handle, plan.call.recv, plan.call.count, source, tag, plan.call.site,
                           &request.handle, &error)
    comm.leave()
    if status != PMR_OK:
        request.handle = NULL
        check(status, &error)
    return request


cdef object length_failure(size_t received, size_t sent):
    """The error of a sendrecv without `out` whose two messages differ in length; None where they do not."""
    if received == sent:
        return None
    return errors.UsageError(
        f"sendrecv received {received} bytes where it sent {sent}: pass out= for a message of another length"
    )


cdef Plan plan_reply(Plan sent, object out):
    """The receiving half of a sendrecv: into `out`, or into a new array like what is sent."""
    cdef Plan plan
    if out is None:
        plan = Plan.__new__(Plan)
        plan.call.kind = PMR_RECV
        plan.element = sent.element
        plan_output(plan, None, sent.source, array_axes(sent.source), array_dims(sent.source))
        plan.call.count = <size_t>array_nbytes(plan.target)
        return plan
    plan = plan_recv(out)
    if overlaps(sent.source, plan.target):
        sent.source = sent.source.copy()
        sent.call.send = array_data(sent.source)
    return plan


cdef class Communicator(Vectors):
    """Ranks that work together: collectives, messages, and how to divide them.

    ``pm.init()`` returns the world; `split` and `dup` make others. Any buffer is taken: numpy arrays and scalars,
    Python numbers, torch CPU tensors, memoryviews, whatever exports DLPack; an array that is not contiguous is
    packed first. Arrays that pmrun cannot compute with (text, times, records) are moved as they are; of these the
    ranks' lengths in bytes are compared, and their dtypes only as text, time or other. Results are new arrays unless ``out=`` is given; ``out=x`` is in place. A blocking call holds
    the communicator: a second thread waits for the first, so give each thread its own (`dup`).
    """

    def send(self, x, dest, tag=0):
        """Send the elements of `x` to rank `dest`; return when `x` may be changed.

        Parameters
        ----------
        x : array or scalar
        dest : int
        tag : int
            The receiver may ask for it; 0 to 0x3fffffff.
        """
        send_now(self, plan_send(x), number_of(dest, "dest"), tag_of(tag, "tag"))

    def isend(self, x, dest, tag=0):
        """`send` as a Request."""
        return isend_now(self, plan_send(x), number_of(dest, "dest"), tag_of(tag, "tag"))

    def recv(self, out=None, source=ANY_SOURCE, tag=ANY_TAG, *, dtype=None, Status status=None):
        """Receive a message.

        Parameters
        ----------
        out : array, optional
            Where it goes, at least as long as the message; a shorter message leaves the rest as it was. None: a
            new one-dimensional array.
        source : int
            The sender's rank, or ``pm.ANY_SOURCE``.
        tag : int
            The message's tag, or ``pm.ANY_TAG``.
        dtype : dtype, optional
            Of the new array, bytes by default.
        status : Status, optional
            Filled with the message's source, tag and length.

        Returns
        -------
        array
            `out`, or the new array.
        """
        return recv_now(self, out, number_of(source, "source"), tag_of(tag, "tag"), dtype, status)

    def irecv(self, out, source=ANY_SOURCE, tag=ANY_TAG):
        """`recv` as a Request; it tells source, tag and length when it is over."""
        return irecv_now(self, plan_recv(out), number_of(source, "source"), tag_of(tag, "tag"))

    def sendrecv(self, x, dest, out=None, source=ANY_SOURCE, tag=0, recv_tag=ANY_TAG, *, Status status=None):
        """Send to one rank while receiving from another; cannot deadlock.

        Parameters
        ----------
        x : array or scalar
            What is sent.
        dest : int
        out : array, optional
            Where the received message goes; None: a new array like `x`.
        source : int
        tag, recv_tag : int
            Of the message sent, and of the one received.
        status : Status, optional
            Filled with the received message's source, tag and length.

        Returns
        -------
        array or scalar
            `out`, or a new one like `x`.
        """
        cdef Plan sent = plan_send(x)
        cdef Plan received = plan_reply(sent, out)
        cdef int32_t from_rank = number_of(source, "source")
        cdef int32_t from_tag = tag_of(recv_tag, "recv_tag")
        cdef Request request
        cdef Status told = Status() if status is None else status
        request = isend_now(self, sent, number_of(dest, "dest"), tag_of(tag, "tag"))
        result = recv_plan(self, received, from_rank, from_tag, told)
        request.wait()
        failure = length_failure(told.nbytes, received.call.count) if out is None else None
        if failure is not None:
            raise failure
        return result

    def isendrecv(self, x, dest, out=None, source=ANY_SOURCE, tag=0, recv_tag=ANY_TAG):
        """`sendrecv` as a Request; it tells source, tag and length of the received message when it is over."""
        cdef Plan sent = plan_send(x)
        cdef Plan received = plan_reply(sent, out)
        cdef int32_t from_rank = number_of(source, "source")
        cdef int32_t from_tag = tag_of(recv_tag, "recv_tag")
        cdef Request sending = isend_now(self, sent, number_of(dest, "dest"), tag_of(tag, "tag"))
        cdef Request request = irecv_now(self, received, from_rank, from_tag)
        request.partner = sending
        return request

    def probe(self, source=ANY_SOURCE, tag=ANY_TAG, timeout=None):
        """Tell of a message that could be received now, without taking it.

        Parameters
        ----------
        source, tag : int
            As for `recv`.
        timeout : float, optional
            Seconds to wait for one; 0 only looks; None waits as long as ``comm.timeout`` says.

        Returns
        -------
        Status or None
            None where there is none and `timeout` is 0.
        """
        cdef pmr_message_info info
        cdef Status told = Status()
        cdef int64_t limit_ns = self.timeout_ns if timeout is None else nanoseconds_of(timeout)
        if not probe_now(self, number_of(source, "source"), tag_of(tag, "tag"), limit_ns, &info):
            return None
        told.fill(&info)
        return told
