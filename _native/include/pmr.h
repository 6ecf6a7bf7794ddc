/* SPDX-License-Identifier: Apache-2.0
 *
 * pmr.h: the whole of the native core as its callers see it.
 *
 * The bindings, the native tests and the fuzzers include this header and no other. A process opens one
 * context (its place in the gang), takes the world communicator from it, and describes each operation by a
 * `pmr_call`. Every function returns a status; outputs are set only after success; a `pmr_error` is filled
 * only on failure, where the fact is known.
 *
 * Threads: a communicator is used by one thread at a time (the bindings hold a lock); the progress engine's
 * own thread never shows. No function here needs the GIL, and none calls Python, but for the hook that
 * `pmr_interrupt_hook_set` installs.
 */
#ifndef PMR_H
#define PMR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- status ---- */

/* Grouped by the largest thing that broke: nothing, the call, a peer (and with it the gang), this process. */
typedef enum pmr_status {
    PMR_OK = 0,
    PMR_PENDING = 1,            /* not finished; only from test-like functions */
    /* the call: nothing was touched, the communicator is as before */
    PMR_ERR_ARGUMENT = -1,      /* bad root, count, rank, tag */
    PMR_ERR_UNSUPPORTED = -2,   /* this reduce operation is not defined for this dtype */
    PMR_ERR_TIMEOUT = -3,       /* a request's wait ran out: the request goes on */
    PMR_ERR_TRUNCATED = -4,     /* a received message is longer than the buffer; the message is gone */
    PMR_ERR_NO_MEMORY = -5,
    PMR_ERR_OS = -6,            /* a system call failed; the text names it */
    /* the gang: no further collective can succeed */
    PMR_ERR_RANK_FAILED = -20,  /* error.rank died or left */
    PMR_ERR_MISMATCH = -21,     /* ranks called different operations */
    PMR_ERR_STALLED = -22,      /* a blocking collective's own deadline ran out */
    PMR_ERR_INTERRUPTED = -23,  /* the interrupt hook asked to leave (a Python exception is set) */
    PMR_ERR_SHUTDOWN = -24      /* the context or the communicator was closed */
} pmr_status;

#define PMR_ERROR_TEXT_BYTES 768
#define PMR_NODE_NAME_BYTES 64

typedef struct pmr_error {
    pmr_status status;
    int32_t rank;                       /* the culprit's rank, or -1 */
    char node[PMR_NODE_NAME_BYTES];     /* the culprit's node, or "" */
    char text[PMR_ERROR_TEXT_BYTES];    /* one line for a person: what, where, what to do */
} pmr_error;

const char *pmr_status_name(pmr_status status);

/* ---- element types and reduce operations ---- */

typedef enum pmr_dtype {
    PMR_BOOL, PMR_INT8, PMR_INT16, PMR_INT32, PMR_INT64,
    PMR_UINT8, PMR_UINT16, PMR_UINT32, PMR_UINT64,
    PMR_FLOAT16, PMR_BFLOAT16, PMR_FLOAT32, PMR_FLOAT64,
    PMR_COMPLEX64, PMR_COMPLEX128,
    PMR_DTYPE_COUNT
} pmr_dtype;

typedef enum pmr_op {
    PMR_SUM, PMR_PROD, PMR_MIN, PMR_MAX, PMR_AVG,
    PMR_LAND, PMR_LOR, PMR_LXOR, PMR_BAND, PMR_BOR, PMR_BXOR,
    PMR_OP_COUNT
} pmr_op;

size_t pmr_dtype_size(pmr_dtype dtype);
const char *pmr_dtype_name(pmr_dtype dtype);
const char *pmr_op_name(pmr_op op);
bool pmr_op_defined(pmr_op op, pmr_dtype dtype);

/* ---- the network between nodes ---- */

#define PMR_KEY_BYTES 32
#define PMR_ADDRESS_BYTES 128

typedef struct pmr_net pmr_net;

typedef struct pmr_net_options {
    const char *transport;          /* "tcp", ...: pmr_net_transport_name tells all */
    const char *bind_address;       /* of this node: what the other nodes reach it by; no name, and no port */
    uint32_t rank;                  /* in the world */
    uint32_t nodes;
    const uint32_t *local_sizes;    /* ranks per node; ranks are numbered node after node */
    const uint8_t *key;             /* PMR_KEY_BYTES that all ranks of this attempt share, and nobody else has */
    uint32_t flows;                 /* connections per pair of ranks for large messages; 0: the transport's choice */
    bool encrypt;
    const char *library;            /* of a transport that loads one: its path; else NULL */
} pmr_net_options;

/* Binds a port of the system's choice and listens. After failure *out is NULL and nothing is held. The key is copied. */
pmr_status pmr_net_open(const pmr_net_options *options, pmr_net **out, pmr_error *error);

/* What the other ranks need to reach this one: a line of text of less than PMR_ADDRESS_BYTES, good as long as the net. */
const char *pmr_net_address(const pmr_net *net);

/* How many ranks the layout has. */
uint32_t pmr_net_ranks(const pmr_net *net);

/* The addresses of all ranks of the world, in their order. Once; connections are made when they are used first. */
pmr_status pmr_net_connect(pmr_net *net, const char *const *addresses, pmr_error *error);

/* Before there is a context: the first ranks of all nodes send each other 64 KiB and wait for the other's, so that a
 * path that lets connections through and no data is found now, and the two nodes named. Others return at once. */
pmr_status pmr_net_probe(pmr_net *net, int64_t timeout_ns, pmr_error *error);

#define PMR_TRIAL_BYTES 262144

typedef struct pmr_net_figures {
    double short_us;                /* 8 bytes there and back */
    double long_us;                 /* PMR_TRIAL_BYTES there and a word back; 0: even a short one took half of the time */
} pmr_net_figures;

/* Times the path between the two ranks of a network that serves for nothing else; both call this, rank 0 gets figures.
 * Takes about budget_ns and what making connections takes; more on paths so slow that a few round trips take longer. */
pmr_status pmr_net_time(pmr_net *net, int64_t budget_ns, int64_t timeout_ns, pmr_net_figures *out, pmr_error *error);

/* Sends what is queued, for at most timeout_ns, and ends. Accepts NULL. Not while a context uses it. Does nothing in a
 * child that was made by fork. */
void pmr_net_close(pmr_net *net, int64_t timeout_ns);

/* Names of all transports, in the registry's order; NULL past the end. */
const char *pmr_net_transport_name(size_t index);

/* ---- context ---- */

typedef struct pmr_context pmr_context;
typedef struct pmr_comm pmr_comm;
typedef struct pmr_request pmr_request;

typedef struct pmr_context_options {
    int window_fd;              /* the node's window, inherited from the agent; -1: a world of one */
    uint32_t local_rank;        /* this rank's place in the window */
    pmr_net *net;               /* connected, of more than one node; NULL: the world is one node. Stays the caller's, and
                                 * open as long as the context */
    bool reproducible;          /* sums have the bits of one node on any layout of ranks */
} pmr_context_options;

/* Maps the window and every local rank's heap. After failure *out is NULL and nothing is held. The fd stays
 * the caller's. One context per process. */
pmr_status pmr_context_open(const pmr_context_options *options, pmr_context **out, pmr_error *error);

/* Stops the engine, marks this rank as finished in the window, unmaps. Open requests end with SHUTDOWN.
 * Accepts NULL. Arrays in the heap stay mapped (the process may still hold views): only the bookkeeping goes. */
void pmr_context_close(pmr_context *context);

pmr_comm *pmr_context_world(pmr_context *context);

/* Called (from a waiting thread, without any lock held) whenever a wait is interrupted by a signal and at
 * least every 100 ms of waiting; a non-zero return makes the wait end with PMR_ERR_INTERRUPTED. */
void pmr_interrupt_hook_set(int (*check)(void));

/* A call site, "file.py:44 in load_batch", for the flight recorder. Interned per rank; 0 when the table is
 * full. Not for the hot path: callers keep the number. */
uint32_t pmr_site_intern(pmr_context *context, const char *text);

/* Tell the agent and the peers, before the process is gone, that this rank fails and why (one line). */
void pmr_context_fail(pmr_context *context, const char *text);

/* ---- memory that collectives reach without a copy ---- */

/* 64-byte aligned; NULL when the heap is exhausted. Thread-safe. */
void *pmr_heap_alloc(pmr_context *context, size_t bytes);
void *pmr_heap_realloc(pmr_context *context, void *block, size_t bytes);
void pmr_heap_free(pmr_context *context, void *block);
/* Whether [data, data + bytes) lies in a heap that all local ranks see (of any rank). */
bool pmr_heap_covers(const pmr_context *context, const void *data, size_t bytes);
/* Addresses travel between ranks as offsets from the window's start. */
uint64_t pmr_window_offset(const pmr_context *context, const void *data);
void *pmr_window_address(const pmr_context *context, uint64_t offset);

/* ---- collectives ---- */

typedef enum pmr_kind {
    PMR_BARRIER, PMR_BROADCAST, PMR_REDUCE, PMR_ALLREDUCE, PMR_GATHER, PMR_ALLGATHER, PMR_SCATTER,
    PMR_REDUCE_SCATTER, PMR_ALLTOALL, PMR_SCAN, PMR_EXSCAN,
    PMR_GATHERV, PMR_ALLGATHERV, PMR_SCATTERV, PMR_REDUCE_SCATTERV, PMR_ALLTOALLV,
    PMR_SEND, PMR_RECV,         /* in the flight recorder only */
    PMR_KIND_COUNT
} pmr_kind;

const char *pmr_kind_name(pmr_kind kind);

/* What the user called, where pmrun makes several calls out of it; all ranks must mean the same. */
typedef enum pmr_form {
    PMR_FORM_PLAIN,             /* the call itself */
    PMR_FORM_SPLIT, PMR_FORM_DUP, PMR_FORM_SHARED,
    PMR_FORM_SCATTER, PMR_FORM_SCATTERV,                            /* without a place for the result */
    PMR_FORM_GATHERV, PMR_FORM_ALLGATHERV, PMR_FORM_ALLTOALLV,      /* without the others' counts */
    PMR_FORM_BROADCAST_OBJECT, PMR_FORM_REDUCE_OBJECT, PMR_FORM_ALLREDUCE_OBJECT, PMR_FORM_GATHER_OBJECT,
    PMR_FORM_ALLGATHER_OBJECT, PMR_FORM_SCATTER_OBJECT, PMR_FORM_ALLTOALL_OBJECT,
    PMR_FORM_COUNT
} pmr_form;

/* "" for PMR_FORM_PLAIN. */
const char *pmr_form_name(pmr_form form);

/* One collective call. Buffers are contiguous; `send == recv` is in place where the shapes allow it.
 *
 * kind             send                          recv                        count
 * barrier          -                             -                           0
 * broadcast        root: count elements          others (root: may be NULL)  of the message
 * reduce           count                         root: count                 of the message
 * allreduce        count                         count                       of the message
 * gather           count                         root: count * size          of one block
 * allgather        count                         count * size                of one block
 * scatter          root: count * size            count                       of one block
 * reduce_scatter   count * size                  count                       of one block
 * alltoall         count * size                  count * size                of one block
 * scan, exscan     count                         count (exscan, rank 0: untouched)
 *
 * v-forms take counts in elements, blocks lie at displacements in elements (size entries each):
 * gatherv          send_counts[0] = own          root: recv_counts/recv_displs
 * allgatherv       send_counts[0] = own          recv_counts/recv_displs (all ranks the same counts)
 * scatterv         root: send_counts/displs      recv_counts[0] = own
 * reduce_scatterv  sum(recv_counts)              recv_counts[rank] elements; recv_counts the same on all ranks
 * alltoallv        send_counts/displs            recv_counts/displs
 */
typedef struct pmr_call {
    pmr_kind kind;
    pmr_dtype dtype;
    pmr_op op;                          /* reductions only */
    int32_t root;                       /* rooted kinds only */
    const void *send;
    void *recv;
    size_t count;
    const size_t *send_counts, *send_displs;    /* copied before a nonblocking call returns */
    const size_t *recv_counts, *recv_displs;
    uint32_t site;                      /* from pmr_site_intern, or 0 */
    pmr_form form;                      /* what this call is a part of */
} pmr_call;

#define PMR_FOREVER INT64_MAX

/* Blocking. `timeout_ns`: at its end PMR_ERR_STALLED, naming who has not entered; the gang is then broken. */
pmr_status pmr_coll_run(pmr_comm *comm, const pmr_call *call, int64_t timeout_ns, pmr_error *error);

/* Nonblocking. Buffers belong to the call until the request completed. Calls of one communicator, blocking
 * or not, take effect in the order they were made. */
pmr_status pmr_coll_start(pmr_comm *comm, const pmr_call *call, pmr_request **out, pmr_error *error);

/* ---- point to point ---- */

#define PMR_ANY_SOURCE (-1)
#define PMR_ANY_TAG (-1)
#define PMR_TAG_MAX 0x3fffffff      /* above: the library's own */

typedef struct pmr_message_info {
    int32_t source;
    int32_t tag;
    size_t bytes;
} pmr_message_info;

/* Messages of one (sender, communicator) arrive in order. A send returns when its buffer may be reused. */
pmr_status pmr_send(pmr_comm *comm, const void *data, size_t bytes, int32_t dest, int32_t tag, uint32_t site,
                    int64_t timeout_ns, pmr_error *error);
pmr_status pmr_recv(pmr_comm *comm, void *data, size_t bytes, int32_t source, int32_t tag, uint32_t site,
                    int64_t timeout_ns, pmr_message_info *info_out, pmr_error *error);
pmr_status pmr_isend(pmr_comm *comm, const void *data, size_t bytes, int32_t dest, int32_t tag, uint32_t site,
                     pmr_request **out, pmr_error *error);
pmr_status pmr_irecv(pmr_comm *comm, void *data, size_t bytes, int32_t source, int32_t tag, uint32_t site,
                     pmr_request **out, pmr_error *error);
/* Both at once, without deadlock. */
pmr_status pmr_sendrecv(pmr_comm *comm, const void *send_data, size_t send_bytes, int32_t dest, int32_t send_tag,
                        void *recv_data, size_t recv_bytes, int32_t source, int32_t recv_tag, uint32_t site,
                        int64_t timeout_ns, pmr_message_info *info_out, pmr_error *error);
/* Waits until a message that matches could be received, and tells of it without taking it.
 * timeout_ns = 0: only looks; PMR_PENDING when there is none. */
pmr_status pmr_probe(pmr_comm *comm, int32_t source, int32_t tag, uint32_t site, int64_t timeout_ns,
                     pmr_message_info *info_out, pmr_error *error);

/* ---- requests ---- */

/* PMR_OK: completed well. PMR_ERR_TIMEOUT: still running. Else: completed with that error. Repeatable. */
pmr_status pmr_request_wait(pmr_request *request, int64_t timeout_ns, pmr_error *error);
pmr_status pmr_request_test(pmr_request *request, pmr_error *error);     /* PMR_PENDING while it runs */
/* Waits for the first of `count` to complete (well or not) and sets *index_out. NULL entries are passed over. */
pmr_status pmr_request_wait_any(pmr_request *const *requests, size_t count, int64_t timeout_ns,
                                size_t *index_out, pmr_error *error);
/* Of a completed receive. */
void pmr_request_info(const pmr_request *request, pmr_message_info *info_out);
/* At completion the engine writes 8 bytes to this eventfd (now, if it completed already). */
pmr_status pmr_request_notify(pmr_request *request, int event_fd, pmr_error *error);
/* Accepts NULL. A request that still runs goes on and frees itself at its end. */
void pmr_request_free(pmr_request *request);

/* ---- communicators ---- */

uint32_t pmr_comm_rank(const pmr_comm *comm);
uint32_t pmr_comm_size(const pmr_comm *comm);
uint32_t pmr_comm_id(const pmr_comm *comm);
/* The world rank of a member. */
uint32_t pmr_comm_world_rank(const pmr_comm *comm, uint32_t rank);

/* Collective over `comm`. Members with equal color form one communicator, ordered by (key, rank). A negative
 * color takes part and gets NULL. */
pmr_status pmr_comm_split(pmr_comm *comm, int32_t color, int32_t key, uint32_t site, pmr_comm **out,
                          pmr_error *error);
/* Collective over `comm`: a second one of the same members in the same order. */
pmr_status pmr_comm_dup(pmr_comm *comm, uint32_t site, pmr_comm **out, pmr_error *error);
/* Collective over `comm`; not for the world. */
pmr_status pmr_comm_free(pmr_comm *comm, pmr_error *error);

/* ---- for tests and benchmarks ---- */

/* Names of all algorithms of a kind, in the registry's order; NULL past the end. */
const char *pmr_algorithm_name(pmr_kind kind, size_t index);
/* Forces one by name for this process and the communicators it makes from then on (all ranks must do the same); NULL
 * ends it. PMR_ERR_ARGUMENT: unknown. */
pmr_status pmr_algorithm_force(pmr_kind kind, const char *name);
/* Forces a kernel set: "portable", "avx2", "avx512"; NULL: the best. PMR_ERR_UNSUPPORTED: not on this CPU. */
pmr_status pmr_kernels_force(const char *name);
/* The name of the set in use. */
const char *pmr_kernels_name(void);

#endif
