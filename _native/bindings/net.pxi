# SPDX-License-Identifier: Apache-2.0
#
# The network between nodes, from the moment a port is bound until the context takes it over.
#
# The program's bootstrap opens it, publishes the address, hands in those of all ranks, tries the paths, and gives it
# to open_context. Invariant: it is closed at most once, and only by the process that opened it.


@cython.final
cdef class Net:
    """This rank's end of the network. Made by `open_net` only."""

    cdef pmr_net *handle

    def __init__(self):
        raise TypeError("a network is not made by its class: use open_net")

    def __dealloc__(self):
        pmr_net_close(self.handle, 0)

    cdef pmr_net *alive(self) except NULL:
        if self.handle == NULL:
            raise errors.NotInitializedError("the network is closed")
        return self.handle

    @property
    def address(self):
        """What the other ranks connect to: one line of text."""
        return text_of(pmr_net_address(self.alive()))

    def connect(self, addresses):
        """Take the addresses of all ranks of the world, in their order; connections are made when first used."""
        cdef pmr_net *net = self.alive()
        cdef pmr_error error
        cdef pmr_status status
        cdef list texts = [address.encode() for address in addresses]
        cdef size_t index
        if len(texts) != pmr_net_ranks(net):
            raise errors.UsageError(f"{len(texts)} addresses for {pmr_net_ranks(net)} ranks")
        cdef const char **pointers = <const char **>PyMem_Malloc(len(texts) * sizeof(char *))
        if pointers == NULL:
            raise MemoryError("no memory for the ranks' addresses")
        for index in range(len(texts)):
            pointers[index] = <bytes>texts[index]
        clear(&error)
        status = pmr_net_connect(net, pointers, &error)
        PyMem_Free(pointers)
        check(status, &error)

    def probe(self, timeout):
        """Try the paths between all pairs of nodes; raise, within `timeout` seconds, naming those without data."""
        cdef pmr_net *net = self.alive()
        cdef int64_t timeout_ns = nanoseconds_of(timeout)
        cdef pmr_error error
        cdef pmr_status status
        clear(&error)
        pmr_interrupt_hook_set(pmr_py_interrupted)
        with nogil:
            status = pmr_net_probe(net, timeout_ns, &error)
        check(status, &error)

    def time(self, budget, timeout):
        """Time the path between the two ranks of a network of its own, for about `budget` seconds.

        On rank 0: microseconds of 8 bytes there and back, and of 256 KiB there and a word back (0: the path is too
        slow for it). On rank 1, which answers, both are 0. No end within `timeout` seconds raises.
        """
        cdef pmr_net *net = self.alive()
        cdef int64_t budget_ns = nanoseconds_of(budget), timeout_ns = nanoseconds_of(timeout)
        cdef pmr_net_figures figures
        cdef pmr_error error
        cdef pmr_status status
        clear(&error)
        pmr_interrupt_hook_set(pmr_py_interrupted)
        with nogil:
            status = pmr_net_time(net, budget_ns, timeout_ns, &figures, &error)
        check(status, &error)
        return figures.short_us, figures.long_us

    def close(self, timeout=5.0):
        """Send what is queued, for at most `timeout` seconds, and end. A second time it does nothing."""
        cdef pmr_net *net = self.handle
        cdef int64_t timeout_ns = nanoseconds_of(timeout)
        self.handle = NULL
        with nogil:
            pmr_net_close(net, timeout_ns)


def open_net(str transport, str bind_address, unsigned int rank, layout, bytes key, unsigned int flows=0,
             bint encrypt=False, str library=None):
    """Bind a port for this rank and return its `Net`.

    Parameters
    ----------
    transport : str
        One of `transport_names()`.
    bind_address : str
        The numeric address by which other nodes reach this one.
    rank : int
        This rank, in the world.
    layout : sequence of int
        Ranks per node; ranks are numbered node after node.
    key : bytes
        32 bytes that all ranks of this attempt share, and nobody else has.
    flows : int
        Connections per pair of ranks for large messages; 0 is the transport's choice.
    encrypt : bool
        Refused by a transport that cannot.
    library : str or None
        The path of a library that the transport loads.
    """
    cdef pmr_net_options options
    cdef pmr_error error
    cdef pmr_status status
    cdef pmr_net *handle = NULL
    cdef bytes name = transport.encode(), bind = bind_address.encode()
    cdef bytes path = os.fsencode(library) if library is not None else b""
    cdef list sizes = [int(size) for size in layout]
    cdef uint32_t *local_sizes
    cdef size_t index
    cdef Net net
    if len(key) != PMR_KEY_BYTES:
        raise errors.UsageError(f"a key of {len(key)} bytes: it must have {PMR_KEY_BYTES}")
    local_sizes = <uint32_t *>PyMem_Malloc((len(sizes) + 1) * sizeof(uint32_t))
    if local_sizes == NULL:
        raise MemoryError("no memory for the layout")
    try:
        for index in range(len(sizes)):
            local_sizes[index] = sizes[index]
        options.transport = name
        options.bind_address = bind
        options.rank = rank
        options.nodes = <uint32_t>len(sizes)
        options.local_sizes = local_sizes
        options.key = <const uint8_t *><const char *>key
        options.flows = flows
        options.encrypt = encrypt
        options.library = NULL
        if library is not None:
            options.library = path
        clear(&error)
        with nogil:
            status = pmr_net_open(&options, &handle, &error)
    finally:
        PyMem_Free(local_sizes)
    check(status, &error)
    net = Net.__new__(Net)
    net.handle = handle
    return net


def transport_names():
    """Names of the transports between nodes, as a list of str; not those that need no network, for tests."""
    names = []
    cdef size_t index = 0
    while pmr_net_transport_name(index) != NULL:
        names.append(text_of(pmr_net_transport_name(index)))
        index += 1
    return sorted(set(names) - {"loopback"})
