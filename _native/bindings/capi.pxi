# SPDX-License-Identifier: Apache-2.0
#
# The core's header, as Cython needs it. Invariant: declares what include/pmr.h declares and nothing else.

cdef extern from "include/pmr.h" nogil:
    ctypedef enum pmr_status:
        PMR_OK
        PMR_PENDING
        PMR_ERR_ARGUMENT
        PMR_ERR_UNSUPPORTED
        PMR_ERR_TIMEOUT
        PMR_ERR_TRUNCATED
        PMR_ERR_NO_MEMORY
        PMR_ERR_OS
        PMR_ERR_RANK_FAILED
        PMR_ERR_MISMATCH
        PMR_ERR_STALLED
        PMR_ERR_INTERRUPTED
        PMR_ERR_SHUTDOWN

    ctypedef struct pmr_error:
        pmr_status status
        int32_t rank
        char node[64]
        char text[768]

    const char *pmr_status_name(pmr_status status)

    ctypedef enum pmr_dtype:
        PMR_BOOL
        PMR_INT8
        PMR_INT16
        PMR_INT32
        PMR_INT64
        PMR_UINT8
        PMR_UINT16
        PMR_UINT32
        PMR_UINT64
        PMR_FLOAT16
        PMR_BFLOAT16
        PMR_FLOAT32
        PMR_FLOAT64
        PMR_COMPLEX64
        PMR_COMPLEX128
        PMR_DTYPE_COUNT

    ctypedef enum pmr_op:
        PMR_SUM
        PMR_MIN
        PMR_MAX
        PMR_AVG
        PMR_OP_COUNT

    size_t pmr_dtype_size(pmr_dtype dtype)
    const char *pmr_dtype_name(pmr_dtype dtype)
    const char *pmr_op_name(pmr_op op)
    bint pmr_op_defined(pmr_op op, pmr_dtype dtype)

    ctypedef struct pmr_context:
        pass
    ctypedef struct pmr_comm:
        pass
    ctypedef struct pmr_request:
        pass

    int PMR_KEY_BYTES

    ctypedef struct pmr_net:
        pass

    ctypedef struct pmr_net_options:
        const char *transport
        const char *bind_address
        uint32_t rank
        uint32_t nodes
        const uint32_t *local_sizes
        const uint8_t *key
        uint32_t flows
        bint encrypt
        const char *library

    pmr_status pmr_net_open(const pmr_net_options *options, pmr_net **out, pmr_error *error)
    const char *pmr_net_address(const pmr_net *net)
    uint32_t pmr_net_ranks(const pmr_net *net)
    pmr_status pmr_net_connect(pmr_net *net, const char *const *addresses, pmr_error *error)
    pmr_status pmr_net_probe(pmr_net *net, int64_t timeout_ns, pmr_error *error)
    ctypedef struct pmr_net_figures:
        double short_us
        double long_us
    pmr_status pmr_net_time(pmr_net *net, int64_t budget_ns, int64_t timeout_ns, pmr_net_figures *out,
                            pmr_error *error)
    void pmr_net_close(pmr_net *net, int64_t timeout_ns)
    const char *pmr_net_transport_name(size_t index)

    ctypedef struct pmr_context_options:
        int window_fd
        uint32_t local_rank
        pmr_net *net
        bint reproducible

    pmr_status pmr_context_open(const pmr_context_options *options, pmr_context **out, pmr_error *error)
    void pmr_context_close(pmr_context *context)
    pmr_comm *pmr_context_world(pmr_context *context)
    void pmr_interrupt_hook_set(int (*check)() noexcept nogil)
    uint32_t pmr_site_intern(pmr_context *context, const char *text)
    void pmr_context_fail(pmr_context *context, const char *text)

    void *pmr_heap_alloc(pmr_context *context, size_t bytes)
    void *pmr_heap_realloc(pmr_context *context, void *block, size_t bytes)
    void pmr_heap_free(pmr_context *context, void *block)
    bint pmr_heap_covers(const pmr_context *context, const void *data, size_t bytes)
    uint64_t pmr_window_offset(const pmr_context *context, const void *data)
    void *pmr_window_address(const pmr_context *context, uint64_t offset)

    ctypedef enum pmr_kind:
        PMR_BARRIER
        PMR_BROADCAST
        PMR_REDUCE
        PMR_ALLREDUCE
        PMR_GATHER
        PMR_ALLGATHER
        PMR_SCATTER
        PMR_REDUCE_SCATTER
        PMR_ALLTOALL
        PMR_SCAN
        PMR_EXSCAN
        PMR_GATHERV
        PMR_ALLGATHERV
        PMR_SCATTERV
        PMR_REDUCE_SCATTERV
        PMR_ALLTOALLV
        PMR_SEND
        PMR_RECV
        PMR_KIND_COUNT

    const char *pmr_kind_name(pmr_kind kind)

    ctypedef enum pmr_form:
        PMR_FORM_PLAIN
        PMR_FORM_SCATTER
        PMR_FORM_SCATTERV
        PMR_FORM_GATHERV
        PMR_FORM_ALLGATHERV
        PMR_FORM_ALLTOALLV
        PMR_FORM_COUNT

    const char *pmr_form_name(pmr_form form)

    ctypedef struct pmr_call:
        pmr_kind kind
        pmr_dtype dtype
        pmr_op op
        int32_t root
        const void *send
        void *recv
        size_t count
        const size_t *send_counts
        const size_t *send_displs
        const size_t *recv_counts
        const size_t *recv_displs
        uint32_t site
        pmr_form form

    int64_t PMR_FOREVER
    int32_t PMR_ANY_SOURCE
    int32_t PMR_ANY_TAG
    int32_t PMR_TAG_MAX

    pmr_status pmr_coll_run(pmr_comm *comm, const pmr_call *call, int64_t timeout_ns, pmr_error *error)
    pmr_status pmr_coll_start(pmr_comm *comm, const pmr_call *call, pmr_request **out, pmr_error *error)

    ctypedef struct pmr_message_info:
        int32_t source
        int32_t tag
        size_t bytes

    pmr_status pmr_send(pmr_comm *comm, const void *data, size_t bytes, int32_t dest, int32_t tag, uint32_t site,
                        int64_t timeout_ns, pmr_error *error)
    pmr_status pmr_recv(pmr_comm *comm, void *data, size_t bytes, int32_t source, int32_t tag, uint32_t site,
                        int64_t timeout_ns, pmr_message_info *info_out, pmr_error *error)
    pmr_status pmr_isend(pmr_comm *comm, const void *data, size_t bytes, int32_t dest, int32_t tag, uint32_t site,
                         pmr_request **out, pmr_error *error)
    pmr_status pmr_irecv(pmr_comm *comm, void *data, size_t bytes, int32_t source, int32_t tag, uint32_t site,
                         pmr_request **out, pmr_error *error)
    pmr_status pmr_probe(pmr_comm *comm, int32_t source, int32_t tag, uint32_t site, int64_t timeout_ns,
                         pmr_message_info *info_out, pmr_error *error)

    pmr_status pmr_request_wait(pmr_request *request, int64_t timeout_ns, pmr_error *error)
    pmr_status pmr_request_test(pmr_request *request, pmr_error *error)
    pmr_status pmr_request_wait_any(pmr_request **requests, size_t count, int64_t timeout_ns, size_t *index_out,
                                    pmr_error *error)
    void pmr_request_info(const pmr_request *request, pmr_message_info *info_out)
    pmr_status pmr_request_notify(pmr_request *request, int event_fd, pmr_error *error)
    void pmr_request_free(pmr_request *request)

    uint32_t pmr_comm_rank(const pmr_comm *comm)
    uint32_t pmr_comm_size(const pmr_comm *comm)
    uint32_t pmr_comm_id(const pmr_comm *comm)
    uint32_t pmr_comm_world_rank(const pmr_comm *comm, uint32_t rank)
    pmr_status pmr_comm_split(pmr_comm *comm, int32_t color, int32_t key, uint32_t site, pmr_comm **out,
                              pmr_error *error)
    pmr_status pmr_comm_dup(pmr_comm *comm, uint32_t site, pmr_comm **out, pmr_error *error)
    pmr_status pmr_comm_free(pmr_comm *comm, pmr_error *error)

    const char *pmr_algorithm_name(pmr_kind kind, size_t index)
    pmr_status pmr_algorithm_force(pmr_kind kind, const char *name)
    pmr_status pmr_kernels_force(const char *name)
    const char *pmr_kernels_name()
