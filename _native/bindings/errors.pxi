# SPDX-License-Identifier: Apache-2.0
#
# A status of the core becomes a Python exception: here and nowhere else. The core made the text where the fact
# was known; this file only chooses the class. Invariant: called with the GIL held, and only after a failure.

cdef object text_of(const char *text):
    return text.decode("utf-8", "replace")


cdef int check(pmr_status status, pmr_error *error) except -1:
    """Raise what `status` means; return 0 for PMR_OK and PMR_PENDING."""
    if status >= PMR_OK:
        return 0
    if status == PMR_ERR_INTERRUPTED and PyErr_Occurred() != NULL:
        return -1
    text = text_of(error.text) or text_of(pmr_status_name(status))
    if status == PMR_ERR_RANK_FAILED:
        if error.rank < 0:
            raise errors.GangStopped(text)
        raise errors.RankFailed(error.rank, text_of(error.node), text)
    if status == PMR_ERR_MISMATCH:
        raise errors.CollectiveMismatch(text)
    if status == PMR_ERR_STALLED:
        raise errors.CollectiveTimeout(text)
    if status == PMR_ERR_TIMEOUT:
        raise errors.RequestTimeout(text)
    if status == PMR_ERR_TRUNCATED:
        raise errors.MessageTruncated(text)
    if status == PMR_ERR_ARGUMENT:
        raise errors.UsageError(text)
    if status == PMR_ERR_UNSUPPORTED:
        raise TypeError(text)
    if status == PMR_ERR_NO_MEMORY:
        raise MemoryError(text)
    if status == PMR_ERR_OS:
        raise OSError(text)
    if status == PMR_ERR_SHUTDOWN:
        raise errors.NotInitializedError(text)
    if status == PMR_ERR_INTERRUPTED:
        raise KeyboardInterrupt
    raise errors.PmrunError(f"{text} (status {<int>status})")


cdef inline void clear(pmr_error *error) noexcept:
    """So that a core that fills nothing cannot leak what was on the stack."""
    error.rank = -1
    error.node[0] = 0
    error.text[0] = 0
