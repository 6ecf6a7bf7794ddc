/* SPDX-License-Identifier: Apache-2.0
 *
 * window_layout.h: the part of the node's window that the agent and the ranks share.
 *
 * The window is one memfd per node and attempt, made by the agent and inherited by its ranks. The agent
 * (Python, src/pmrun/window.py) writes the header and sizes the file to the end of the recorders; the ranks
 * compute the rest (boards, staging, heaps) from the header and grow the sparse file to the same length,
 * whoever comes first. All integers little-endian. tests/tidy holds src/pmrun/window.py to these numbers.
 */
#ifndef PMR_CORE_WINDOW_LAYOUT_H
#define PMR_CORE_WINDOW_LAYOUT_H

#include <stdint.h>

#include "include/pmr.h"

#define PMR_WINDOW_MAGIC        0x31304e4957524d50ull /* "PMRWIN01" */
#define PMR_WINDOW_HEADER_BYTES 8192u
#define PMR_WINDOW_RANKS_MAX    1024u

/* What ended the gang: the first to claim it writes the rest, then `state`; never changed after that. */
enum pmr_abort_state {
    PMR_ABORT_NONE = 0,
    PMR_ABORT_RANK_FAILED = 1, /* a rank died, failed, or left while others waited for it */
    PMR_ABORT_MISMATCH = 2,    /* the ranks' calls differ */
    PMR_ABORT_STALLED = 3,     /* a collective's deadline passed */
    PMR_ABORT_STOPPED = 4      /* the gang is being stopped (Ctrl-C, timeout) */
};

typedef struct pmr_window_abort { /* at byte 64 */
    uint32_t claim;               /* 0 -> 1 by compare and swap (the agent: plain store when it finds 0) */
    uint32_t state;               /* pmr_abort_state; written last, with release */
    int32_t rank;                 /* the culprit's world rank, or -1 */
    int32_t reserved;
    char node[PMR_NODE_NAME_BYTES];
    char text[PMR_ERROR_TEXT_BYTES]; /* one line, NUL terminated */
} pmr_window_abort;

enum pmr_rank_state {
    PMR_RANK_ABSENT = 0,   /* not attached (yet, or never: a program that does not use pmrun) */
    PMR_RANK_ATTACHED = 1, /* by the rank: pmr_context_open succeeded */
    PMR_RANK_FINISHED = 2, /* by the rank: pmr_context_close */
    PMR_RANK_LEFT = 3,     /* by the agent: the process ended with exit code 0 */
    PMR_RANK_FAILED = 4    /* by the agent: it ended otherwise */
};

enum pmr_heed { /* whether a rank asks if it should stop: then it is not signalled when the gang is told to */
    PMR_HEED_NONE = 0,
    PMR_HEED_ASKS = 1,
    PMR_HEED_AGREED = 2 /* all ranks stop at this step */
};

typedef struct pmr_window_header { /* at byte 0 */
    uint64_t magic;
    uint32_t version; /* 1 */
    uint32_t local_world_size;
    uint32_t world_size;
    uint32_t first_rank; /* world rank of local rank 0; a node's ranks are consecutive */
    uint32_t cpus;       /* CPUs that the node's ranks may use together: affinity mask and quota */
    uint32_t flags;      /* 0 */
    uint64_t heap_bytes; /* each rank's heap: sparse, a multiple of 2 MiB */
    uint8_t reserved[24];
    pmr_window_abort abort; /* byte 64 */
    uint8_t reserved2[1024 - 64 - sizeof(pmr_window_abort)];
    uint32_t departures; /* byte 1024: how often a rank_state became LEFT or FAILED */
    uint32_t stop_asked; /* byte 1028: the agent was told that the gang shall stop; read by pm.should_stop() */
    uint32_t reserved3[14];
    uint32_t rank_state[PMR_WINDOW_RANKS_MAX]; /* byte 1088, by local rank */
    uint8_t heed[PMR_WINDOW_RANKS_MAX];        /* byte 5184, pmr_heed by local rank; written by the rank */
} pmr_window_header;

_Static_assert(sizeof(pmr_window_abort) == 848, "window layout");
_Static_assert(sizeof(pmr_window_header) == 1088 + 5 * PMR_WINDOW_RANKS_MAX, "window layout");

/* ---- the flight recorder: one per local rank, from byte PMR_WINDOW_HEADER_BYTES on ---- */

#define PMR_RECORDER_ENTRIES    256u
#define PMR_RECORDER_SITES      256u
#define PMR_RECORDER_SITE_BYTES 184u
#define PMR_RECORDER_COMMS      124u

enum pmr_record_mode {
    PMR_RECORD_CALL = 0,    /* the caller is inside until it is done */
    PMR_RECORD_STARTED = 1, /* a nonblocking call: nobody need be waiting for it */
    PMR_RECORD_WAIT = 2     /* the caller waits for a nonblocking call, which the rest describes */
};

typedef struct pmr_record { /* one call; entry i of the ring holds call number n with n % ENTRIES == i */
    uint64_t number;        /* counts this rank's calls from 1; written last when a slot is reused */
    uint64_t bytes;
    uint64_t entered_ticks;  /* pmr_ticks(): header.tick_hz per second; 0: a short call that has not waited yet */
    uint64_t done_ticks;     /* 0: still inside */
    uint32_t seq;            /* the call's number in its communicator, from 1 */
    uint32_t comm;           /* communicator id; 0 is the world */
    uint32_t site;           /* index into the sites, 0: unknown */
    int32_t peer;            /* root, destination or source; -1: none */
    uint8_t kind, dtype, op; /* pmr_kind, pmr_dtype, pmr_op */
    uint8_t form;            /* pmr_form: what the call is a part of */
    uint8_t mode;            /* pmr_record_mode */
    uint8_t reserved[11];
} pmr_record;

typedef struct pmr_membership { /* a communicator that the rank has open: those with equal `comm` and `group` are in one */
    uint32_t taken;             /* 0 -> 1 by compare and swap */
    uint32_t comm;
    uint32_t group; /* a hash of its members: ranks that have nothing in common may use one id twice */
    uint32_t size;  /* its members; written last, 0: not in use */
} pmr_membership;

typedef struct pmr_recorder {
    uint64_t count; /* calls entered so far; the newest is number == count */
    uint64_t tick_hz;
    uint64_t base_ticks; /* ticks and CLOCK_REALTIME nanoseconds taken together */
    int64_t base_realtime_ns;
    uint32_t pid;
    uint32_t sites; /* used entries of `site`, entry 0 is "" */
    uint64_t known_word_address; /* see core/remote.h; 0: this rank must not be read */
    uint8_t reserved[16];
    pmr_record record[PMR_RECORDER_ENTRIES];
    char site[PMR_RECORDER_SITES][PMR_RECORDER_SITE_BYTES]; /* NUL terminated */
    pmr_membership membership[PMR_RECORDER_COMMS];          /* as many as there is room for */
} pmr_recorder;

_Static_assert(sizeof(pmr_record) == 64, "window layout");
_Static_assert(sizeof(pmr_recorder) == 64 + 64 * 256 + 184 * 256 + 16 * 124, "window layout");

#define PMR_RECORDER_STRIDE 65536u /* pmr_recorder rounded up to pages */

_Static_assert(sizeof(pmr_recorder) <= PMR_RECORDER_STRIDE, "window layout");

#endif
