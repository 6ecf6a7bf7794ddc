# SPDX-License-Identifier: Apache-2.0
#
# The process's place in the gang: opened once, closed once, never used by a child made by fork.
#
# Invariant: every handle (communicator, request, heap block) is stamped with the generation of the context that
# gave it. Closing, or being a forked child, changes `generation_now`, so that one comparison tells a live handle
# from a dead one and nothing dead is ever handed to the core.

cdef extern from *:
    """
    #include <pthread.h>

    static int pmr_py_generation;       /* changes when all handles die */
    static int pmr_py_forked;           /* this process is a child of one that had a context */

    static void pmr_py_after_fork(void)
    {
        pmr_py_generation = -1;
        pmr_py_forked = 1;
    }

    static int pmr_py_fork_watch(void)
    {
        static int watching;
        if (!watching && pthread_atfork(NULL, NULL, pmr_py_after_fork) != 0)
            return -1;
        watching = 1;
        return 0;
    }

    /* PyErr_CheckSignals acts in the main thread only, and leaves the exception for whoever waits. */
    static int pmr_py_interrupted(void)
    {
        PyGILState_STATE state = PyGILState_Ensure();
        int raised = PyErr_CheckSignals();
        PyGILState_Release(state);
        return raised != 0;
    }
    """
    int generation_now "pmr_py_generation"
    bint forked "pmr_py_forked"
    int pmr_py_fork_watch()
    int pmr_py_interrupted() noexcept nogil

cdef pmr_context *context_now = NULL
cdef object world_now = None
cdef int generations = 0


cdef int refuse_dead() except -1:
    """Raise why a handle of an earlier generation cannot be used."""
    if forked:
        raise errors.ForkedError(
            "this process is a child made by fork after pm.init(), and its parent's communicators are not its "
            "own: start it with the 'spawn' method, or fork before pm.init()"
        )
    raise errors.NotInitializedError(
        "pmrun is not initialized in this process (before pm.init(), or after pm.shutdown()): call pm.init() first"
    )


cdef inline int need_context() except -1:
    if context_now == NULL or generation_now < 0:
        refuse_dead()
    return 0


def open_context(type communicator_type, int window_fd, unsigned int local_rank):
    """Open this process's context and return its world, an instance of `communicator_type`.

    Parameters
    ----------
    communicator_type : type
        `Communicator` or a subclass of it.
    window_fd : int
        The inherited descriptor of the node's window; -1 for a world of one.
    local_rank : int
        This rank's place in the window.
    """
    global context_now, generations, generation_now, world_now
    cdef pmr_context_options options
    cdef pmr_context *context = NULL
    cdef pmr_error error
    cdef pmr_status status
    if forked or context_now != NULL:
        if forked:
            refuse_dead()
        raise errors.AlreadyInitializedError("pmrun is already initialized in this process: use pm.world")
    if pmr_py_fork_watch() != 0:
        raise MemoryError("no memory to watch for forks")
    options.window_fd = window_fd
    options.local_rank = local_rank
    clear(&error)
    with nogil:
        status = pmr_context_open(&options, &context, &error)
    check(status, &error)
    pmr_interrupt_hook_set(pmr_py_interrupted)
    context_now = context
    generations += 1
    generation_now = generations
    world_now = communicator_wrap(communicator_type, pmr_context_world(context), None)
    return world_now


def close_context():
    """Close the context; every handle is dead afterwards. Does nothing without one, or in a forked child."""
    global context_now, generation_now, world_now
    cdef pmr_context *context = context_now
    if context == NULL or forked:
        return
    generation_now = 0
    context_now = NULL
    world_now = None
    sites_forget()
    if inside:
        return  # a thread of this process still waits in the core: the mapping must outlive it
    with nogil:
        pmr_context_close(context)
    abandoned.clear()


def fail_context(str text):
    """Tell the agent and the peers that this rank fails and why, in one line."""
    cdef bytes line = " ".join(text.split()).encode("utf-8", "replace")
    cdef const char *data = line
    if context_now == NULL or forked:
        return
    with nogil:
        pmr_context_fail(context_now, data)


def force_algorithm(str kind, name=None):
    """For tests and benchmarks: let this process use one algorithm for `kind`; None ends it.

    Acts on communicators made from then on, whose ranks must all have done the same. Messages that the algorithm
    cannot take (some only take short ones) go by the others.
    """
    cdef int index
    cdef bytes wanted
    cdef pmr_status status
    for index in range(PMR_KIND_COUNT):
        if text_of(pmr_kind_name(<pmr_kind>index)) == kind:
            if name is None:
                status = pmr_algorithm_force(<pmr_kind>index, NULL)
            elif name not in algorithm_names(kind):
                status = PMR_ERR_ARGUMENT
            else:
                wanted = name.encode()
                status = pmr_algorithm_force(<pmr_kind>index, wanted)
            if status != PMR_OK:
                raise errors.UsageError(
                    f"no algorithm '{name}' for {kind}: use one of {', '.join(algorithm_names(kind))}"
                )
            return
    kinds = ", ".join([text_of(pmr_kind_name(<pmr_kind>index)) for index in range(PMR_SEND)])
    raise errors.UsageError(f"no collective is named '{kind}': use one of {kinds}")


def algorithm_names(str kind):
    """Names of the algorithms that `force_algorithm` takes for one collective, as a list of str.

    Not "alone", which does nothing between ranks: a communicator of one uses it, and no other may.
    """
    cdef int index
    cdef size_t place = 0
    cdef const char *name
    names = []
    for index in range(PMR_KIND_COUNT):
        if text_of(pmr_kind_name(<pmr_kind>index)) == kind:
            name = pmr_algorithm_name(<pmr_kind>index, place)
            while name != NULL:
                if strcmp(name, b"alone") != 0:
                    names.append(text_of(name))
                place += 1
                name = pmr_algorithm_name(<pmr_kind>index, place)
    return names


def force_kernels(name=None):
    """For tests: use one kernel set ("portable", "avx2", "avx512"); None is the best of this CPU."""
    cdef bytes wanted
    cdef pmr_status status
    if name is None:
        status = pmr_kernels_force(NULL)
    else:
        wanted = name.encode()
        status = pmr_kernels_force(wanted)
    if status == PMR_ERR_UNSUPPORTED:
        raise errors.UsageError(f"this CPU cannot run the kernel set '{name}': use portable, or leave the choice to it")
    if status != PMR_OK:
        raise errors.UsageError(f"no kernel set is named '{name}': use one of portable, avx2, avx512")


def kernels_name():
    """Name of the kernel set in use, a str: the best of this CPU, unless another one was forced."""
    return text_of(pmr_kernels_name())
