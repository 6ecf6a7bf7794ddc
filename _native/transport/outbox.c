/* SPDX-License-Identifier: Apache-2.0
 *
 * outbox.c: the ring of entries and the ring of copied bytes.
 *
 * A copy lies in one piece: where the end of the ring of bytes is too near, it goes to the start, and what was left
 * free is counted with it. Invariant: copy_used is the sum of copy_bytes over entries that are not settled.
 */
#include "transport/outbox.h"

#include <stdlib.h>
#include <string.h>

static pmr_outgoing *entry_of(pmr_outbox *outbox, uint32_t number)
{
    return &outbox->entry[number % PMR_OUTBOX_ENTRIES];
}

void pmr_outbox_fini(pmr_outbox *outbox)
{
    free(outbox->copies);
    outbox->copies = NULL;
}

/* Where a copy of `bytes` goes; *taken_out: what it takes of the ring. NULL: no room. */
static uint8_t *copy_room(pmr_outbox *outbox, uint32_t bytes, uint32_t *taken_out)
{
    if (!outbox->copies && !(outbox->copies = malloc(PMR_OUTBOX_COPY_BYTES)))
        return NULL;
    uint32_t to_end = PMR_OUTBOX_COPY_BYTES - outbox->copy_head;
    bool around = bytes > to_end;
    uint32_t skipped = around ? to_end : 0;
    if (bytes + skipped > PMR_OUTBOX_COPY_BYTES - outbox->copy_used)
        return NULL;
    uint8_t *room = outbox->copies + (around ? 0 : outbox->copy_head);
    outbox->copy_head = (uint32_t)(room - outbox->copies) + bytes;
    *taken_out = bytes + skipped;
    outbox->copy_used += *taken_out;
    return room;
}

bool pmr_outbox_put(pmr_outbox *outbox, const pmr_packet *packet, const void *payload, uint64_t cookie,
                    uint32_t moved)
{
    if (outbox->put - outbox->settled == PMR_OUTBOX_ENTRIES)
        return false;
    pmr_outgoing *entry = entry_of(outbox, outbox->put);
    entry->copy_bytes = 0;
    entry->payload = payload;
    if (!cookie && packet->payload_bytes) {
        uint8_t *copy = copy_room(outbox, packet->payload_bytes, &entry->copy_bytes);
        if (!copy)
            return false;
        memcpy(copy, payload, packet->payload_bytes);
        entry->payload = copy;
    }
    entry->packet = *packet;
    entry->cookie = cookie;
    outbox->put++;
    outbox->unsent_bytes += sizeof *packet + packet->payload_bytes;
    pmr_outbox_advance(outbox, moved);
    return true;
}

int pmr_outbox_gather(const pmr_outbox *outbox, struct iovec *vector, int count, size_t bytes_max)
{
    int used = 0;
    size_t bytes = 0;
    uint32_t moved = outbox->moved;
    for (uint32_t number = outbox->written; number != outbox->put && used < count && bytes < bytes_max; number++) {
        const pmr_outgoing *entry = &outbox->entry[number % PMR_OUTBOX_ENTRIES];
        uint32_t header = (uint32_t)sizeof entry->packet;
        if (moved < header) {
            vector[used++] = (struct iovec){(uint8_t *)(uintptr_t)&entry->packet + moved, header - moved};
            bytes += header - moved;
            moved = header;
        }
        uint32_t rest = entry->packet.payload_bytes - (moved - header);
        if (rest && used < count) {
            vector[used++] = (struct iovec){(uint8_t *)(uintptr_t)entry->payload + (moved - header), rest};
            bytes += rest;
        }
        moved = 0;
    }
    return used;
}

void pmr_outbox_advance(pmr_outbox *outbox, size_t bytes)
{
    outbox->unsent_bytes -= bytes;
    while (bytes) {
        const pmr_outgoing *entry = entry_of(outbox, outbox->written);
        size_t rest = sizeof entry->packet + (size_t)entry->packet.payload_bytes - outbox->moved;
        if (bytes < rest) {
            outbox->moved += (uint32_t)bytes;
            return;
        }
        bytes -= rest;
        outbox->moved = 0;
        outbox->written++;
    }
}

void pmr_outbox_drop(pmr_outbox *outbox)
{
    outbox->written = outbox->put;
    outbox->moved = 0;
    outbox->unsent_bytes = 0;
}

bool pmr_outbox_settle(pmr_outbox *outbox, const pmr_sink *sink)
{
    bool told = false;
    while (outbox->settled != outbox->written) {
        const pmr_outgoing *entry = entry_of(outbox, outbox->settled);
        uint64_t cookie = entry->cookie;
        outbox->copy_used -= entry->copy_bytes;
        if (outbox->copy_used == 0)
            outbox->copy_head = 0;
        outbox->settled++; /* before the sink is told: it may put another */
        if (cookie) {
            sink->sent(sink->arg, cookie);
            told = true;
        }
    }
    return told;
}
