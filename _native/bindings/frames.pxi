# SPDX-License-Identifier: Apache-2.0
#
# Frames of bytes between ranks, for the operations on Python objects (src/pmrun/communicator.py); without numpy.
#
# A frame is a bytearray. Where the ranks cannot know each other's lengths they tell them first, eight bytes each;
# both halves are collectives like those on arrays. Invariant: what the core reads or writes is a bytearray that the
# Plan holds and nobody else resizes.

cdef extern from *:
    """
    #include <sys/mman.h>
    #include <unistd.h>

    /* Asks for huge pages, as numpy does for its arrays: the first write of a long frame costs a quarter then. */
    static void pmr_py_use_huge_pages(char *start, size_t bytes)
    {
        const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
        uintptr_t first = ((uintptr_t)start + page - 1) & ~(page - 1);
        uintptr_t end = ((uintptr_t)start + bytes) & ~(page - 1);
        madvise((void *)first, end - first, MADV_HUGEPAGE); /* a hint: where it is refused, small pages do */
    }
    """
    void use_huge_pages "pmr_py_use_huge_pages"(char *start, size_t bytes)

cdef extern from "Python.h":
    bytearray new_bytes "PyByteArray_FromStringAndSize"(const char *data, Py_ssize_t size)
    char *bytes_start "PyByteArray_AS_STRING"(bytearray frame)

cdef enum:
    LENGTH_BYTES = 8
    LONG_BYTES = 4 << 20        # from here on huge pages pay


cdef bytearray blank(size_t count):
    """`count` bytes, whatever they hold."""
    cdef bytearray frame = new_bytes(NULL, <Py_ssize_t>count)
    if count >= LONG_BYTES:
        use_huge_pages(bytes_start(frame), count)
    return frame


cdef Plan plan_frames(Handle comm, pmr_kind kind, object root, bytearray sent, bytearray received, size_t count):
    """A call on bytes; `root` None: it has none. The caller of `run` gets `received`."""
    cdef Plan plan = Plan.__new__(Plan)
    plan.call.kind = kind
    if root is not None:
        plan_root(plan, comm, root)
    plan.call.dtype = PMR_UINT8
    plan.call.count = count
    plan.element.unit = 1
    if sent is not None:
        plan.source = sent
        plan.call.send = bytes_start(sent)
    if received is not None:
        plan.out = received
        plan.call.recv = bytes_start(received)
    return plan


cdef bytearray lengths_packed(list frames):
    cdef bytearray packed = blank(LENGTH_BYTES * <size_t>len(frames))
    cdef int64_t *lengths = <int64_t *>bytes_start(packed)
    for index, frame in enumerate(frames):
        lengths[<size_t>index] = len(frame)
    return packed


cdef list lengths_read(bytearray packed):
    cdef int64_t *lengths = <int64_t *>bytes_start(packed)
    cdef Py_ssize_t index
    return [lengths[index] for index in range(len(packed) // LENGTH_BYTES)]


cdef bytearray joined_of(list frames):
    """All frames, one after the other."""
    cdef bytearray joined = blank(<size_t>sum([len(frame) for frame in frames]))
    cdef char *place = bytes_start(joined)
    cdef bytearray frame
    for frame in frames:
        memcpy(place, bytes_start(frame), <size_t>len(frame))
        place += len(frame)
    return joined


cdef list parts_of(bytearray joined, list lengths):
    """Views of the frames that lie in one, one after the other."""
    cdef list parts = []
    place = 0
    view = memoryview(joined)
    for length in lengths:
        parts.append(view[place:place + length])
        place += length
    return parts


def frame_blank(size_t count):
    """A frame of `count` bytes, to be filled."""
    return blank(count)


def frames_broadcast(Handle comm, bytearray frame, root):
    """Give every rank the root's frame; others pass None."""
    cdef bytearray length = lengths_packed([bytearray() if frame is None else frame])
    run(comm, plan_broadcast_frame(comm, length, root))
    if frame is None:
        frame = blank(<size_t>lengths_read(length)[0])
    run(comm, plan_broadcast_frame(comm, frame, root))
    return frame


cdef Plan plan_broadcast_frame(Handle comm, bytearray frame, object root):
    if comm._rank == number_of(root, "root"):
        return plan_frames(comm, PMR_BROADCAST, root, frame, None, <size_t>len(frame))
    return plan_frames(comm, PMR_BROADCAST, root, None, frame, <size_t>len(frame))


def frames_gather(Handle comm, bytearray frame, root):
    """The ranks' frames, as a list of memoryviews, on the root; where it is None, on all. None elsewhere."""
    cdef bint here = root is None or comm._rank == number_of(root, "root")
    cdef bytearray packed = blank(LENGTH_BYTES * <size_t>comm._size) if here else None
    cdef bytearray joined = None
    cdef list lengths = []
    cdef Plan plan
    run(comm, plan_frames(
        comm, PMR_ALLGATHER if root is None else PMR_GATHER, root, lengths_packed([frame]), packed, LENGTH_BYTES))
    if here:
        lengths = lengths_read(packed)
        joined = blank(<size_t>sum(lengths))
    plan = plan_frames(comm, PMR_ALLGATHERV if root is None else PMR_GATHERV, root, frame, joined, 0)
    plan_counts(plan, comm, False, [len(frame)], 1)
    if here:
        plan_counts(plan, comm, True, lengths, 1)
    run(comm, plan)
    return parts_of(joined, lengths) if here else None


def frames_scatter(Handle comm, list frames, root):
    """This rank's frame of the root's list, which has one for each rank; others pass None."""
    cdef bytearray own = blank(LENGTH_BYTES)
    cdef bytearray packed = None, joined = None
    cdef Plan plan
    if frames is not None:
        packed = lengths_packed(frames)
        joined = joined_of(frames)
    run(comm, plan_frames(comm, PMR_SCATTER, root, packed, own, LENGTH_BYTES))
    frame = blank(<size_t>lengths_read(own)[0])
    plan = plan_frames(comm, PMR_SCATTERV, root, joined, frame, 0)
    if frames is not None:
        plan_counts(plan, comm, False, lengths_read(packed), 1)
    plan_counts(plan, comm, True, [len(frame)], 1)
    return run(comm, plan)


def frames_alltoall(Handle comm, list frames):
    """Frame i goes to rank i; the frames that came, in rank order, as memoryviews."""
    cdef bytearray packed = lengths_packed(frames)
    cdef bytearray arriving = blank(<size_t>len(packed))
    cdef bytearray joined
    cdef list lengths
    cdef Plan plan
    run(comm, plan_frames(comm, PMR_ALLTOALL, None, packed, arriving, LENGTH_BYTES))
    lengths = lengths_read(arriving)
    joined = blank(<size_t>sum(lengths))
    plan = plan_frames(comm, PMR_ALLTOALLV, None, joined_of(frames), joined, 0)
    plan_counts(plan, comm, False, lengths_read(packed), 1)
    plan_counts(plan, comm, True, lengths, 1)
    run(comm, plan)
    return parts_of(joined, lengths)


def frame_send(Handle comm, bytearray frame, dest, tag):
    """Send a frame as one message."""
    cdef Plan plan = plan_frames(comm, PMR_SEND, None, frame, None, <size_t>len(frame))
    send_now(comm, plan, number_of(dest, "dest"), tag_of(tag, "tag"))


def frame_isend(Handle comm, bytearray frame, dest, tag):
    """`frame_send` as a Request."""
    cdef Plan plan = plan_frames(comm, PMR_SEND, None, frame, None, <size_t>len(frame))
    return isend_now(comm, plan, number_of(dest, "dest"), tag_of(tag, "tag"))


def frame_recv(Handle comm, source, tag, Status status not None):
    """The next message as a frame."""
    cdef pmr_message_info info
    cdef Plan plan
    probe_now(comm, number_of(source, "source"), tag_of(tag, "tag"), comm.timeout_ns, &info)
    plan = plan_frames(comm, PMR_RECV, None, None, blank(info.bytes), info.bytes)
    return recv_plan(comm, plan, info.source, info.tag, status)
