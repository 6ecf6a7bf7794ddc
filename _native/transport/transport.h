/* SPDX-License-Identifier: Apache-2.0
 *
 * transport.h: the contract of a data path between ranks.
 *
 * A transport carries *frames*: 32 bytes that say what follows, and up to `payload_max` bytes of payload. Between two
 * ranks frames arrive once, whole and in order; between different pairs there is no order. It never waits, never
 * allocates after it is open and never looks into a payload: whoever drives it decides what to do meanwhile.
 *
 * One *inbox* flag per rank is raised whenever that rank may have something to do: a frame arrived, or a lane on
 * which its `put` found no room has room again. So a rank that reads the inbox, does all it can, and then waits for
 * the inbox to pass the value it read, misses nothing.
 * Not thread-safe: the owner's lock covers a transport. Other ranks run at the same time, in other processes.
 */
#ifndef PMR_TRANSPORT_TRANSPORT_H
#define PMR_TRANSPORT_TRANSPORT_H

#include "core/flag.h"
#include "include/pmr.h"

#define PMR_NO_PEER UINT32_MAX

typedef struct pmr_frame {
    uint32_t kind;              /* of the sender's choice, but never 0 */
    uint32_t payload_bytes;
    uint32_t comm;
    int32_t source;
    int32_t tag;
    uint32_t reserved;
    uint64_t token;
} pmr_frame;

_Static_assert(sizeof(pmr_frame) == 32, "half a cache line");

/* A frame where it lies; a payload above 32 bytes may be in two pieces. */
typedef struct pmr_frame_view {
    const pmr_frame *frame;
    const uint8_t *first;
    const uint8_t *rest;
    uint32_t first_bytes;       /* rest_bytes = frame->payload_bytes - first_bytes */
} pmr_frame_view;

typedef struct pmr_transport pmr_transport;

typedef struct pmr_transport_ops {
    const char *name;

    /* Hands one frame and its payload to `peer`, and raises the peer's inbox. Both are copied before it returns and
     * stay the caller's. False: no room now; nothing was sent, and our inbox will be raised when there may be room.
     * Never blocks. A peer that is gone shows as a lane that never has room again. */
    bool (*put)(pmr_transport *transport, uint32_t peer, const pmr_frame *frame, const void *payload);

    /* Shows the oldest frame of `peer` that was not taken yet. The view belongs to the transport and holds until
     * `take`; the sender cannot change it any more. False: there is none now. Never blocks, cannot fail. */
    bool (*peek)(pmr_transport *transport, uint32_t peer, pmr_frame_view *view_out);

    /* Gives the room of the frame last shown by `peek` back. Only after a `peek` that was true. */
    void (*take)(pmr_transport *transport, uint32_t peer);

    /* The lowest peer >= `from` that ever sent anything, or PMR_NO_PEER: the only ones worth a `peek`. */
    uint32_t (*sender_from)(pmr_transport *transport, uint32_t from);

    /* Ends it; frames that were put stay readable by their receivers. Views end. Accepts NULL. */
    void (*close)(pmr_transport *transport);
} pmr_transport_ops;

struct pmr_transport {
    const pmr_transport_ops *ops;
    pmr_flag *inbox;            /* of this rank; lives as long as the transport */
    uint32_t payload_max;       /* of one frame */
};

#endif
