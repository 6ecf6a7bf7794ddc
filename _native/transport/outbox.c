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
    for (uint32_t number = outbox->settled; number != outbox->put; number++)
        free(entry_of(outbox, number)->owned);
    outbox->settled = outbox->put;
    free(outbox->copies);
    outbox->copies = NULL;
}

/* What a copy takes of the ring of bytes, with what it leaves free at the end. */
static uint32_t copy_takes(const pmr_outbox *outbox, uint32_t bytes)
{
    uint32_t to_end = PMR_OUTBOX_COPY_BYTES - outbox->copy_head;
    return bytes > to_end ? bytes + to_end : bytes;
}

bool pmr_outbox_room(pmr_outbox *outbox, uint32_t copy_bytes)
{
    if (outbox->put - outbox->settled == PMR_OUTBOX_ENTRIES)
        return false;
    if (copy_bytes == 0)
        return true;
    if (!outbox->copies && !(outbox->copies = malloc(PMR_OUTBOX_COPY_BYTES)))
        return false;
    return copy_takes(outbox, copy_bytes) <= PMR_OUTBOX_COPY_BYTES - outbox->copy_used;
}

static const uint8_t *copy(pmr_outbox *outbox, const void *payload, uint32_t bytes, uint32_t *taken_out)
{
    bool around = bytes > PMR_OUTBOX_COPY_BYTES - outbox->copy_head;
    uint8_t *room = outbox->copies + (around ? 0 : outbox->copy_head);
    *taken_out = copy_takes(outbox, bytes);
    outbox->copy_head = (uint32_t)(room - outbox->copies) + bytes;
    outbox->copy_used += *taken_out;
    memcpy(room, payload, bytes);
    return room;
}

bool pmr_outbox_put(pmr_outbox *outbox, const pmr_packet *packet, const void *payload, uint64_t cookie,
                    uint32_t moved)
{
    uint32_t copy_bytes = cookie ? 0 : packet->payload_bytes;
    if (!pmr_outbox_room(outbox, copy_bytes))
        return false;
    pmr_outgoing *entry = entry_of(outbox, outbox->put);
    entry->copy_bytes = 0;
    entry->owned = NULL;
    entry->payload = copy_bytes ? copy(outbox, payload, copy_bytes, &entry->copy_bytes) : payload;
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

static void forget(pmr_outbox *outbox)
{
    pmr_outgoing *entry = entry_of(outbox, outbox->settled);
    free(entry->owned);
    entry->owned = NULL;
    outbox->copy_used -= entry->copy_bytes;
    if (outbox->copy_used == 0)
        outbox->copy_head = 0;
    outbox->settled++;
}

static void forget_untold(pmr_outbox *outbox)
{
    while (outbox->settled != outbox->written && !entry_of(outbox, outbox->settled)->cookie)
        forget(outbox);
}

void pmr_outbox_advance(pmr_outbox *outbox, size_t bytes)
{
    outbox->unsent_bytes -= bytes;
    while (bytes) {
        const pmr_outgoing *entry = entry_of(outbox, outbox->written);
        size_t rest = sizeof entry->packet + (size_t)entry->packet.payload_bytes - outbox->moved;
        if (bytes < rest) {
            outbox->moved += (uint32_t)bytes;
            break;
        }
        bytes -= rest;
        outbox->moved = 0;
        outbox->written++;
    }
    forget_untold(outbox);
}

bool pmr_outbox_abandon(pmr_outbox *outbox, const void *data, size_t bytes)
{
    for (uint32_t number = outbox->written; number != outbox->put; number++) {
        pmr_outgoing *entry = entry_of(outbox, number);
        if (!entry->cookie || entry->owned || !pmr_overlap(entry->payload, entry->packet.payload_bytes, data, bytes))
            continue;
        entry->owned = malloc(entry->packet.payload_bytes);
        if (!entry->owned)
            return false;
        memcpy(entry->owned, entry->payload, entry->packet.payload_bytes);
        entry->payload = entry->owned;
    }
    return true;
}

void pmr_outbox_drop(pmr_outbox *outbox)
{
    outbox->written = outbox->put;
    outbox->moved = 0;
    outbox->unsent_bytes = 0;
    forget_untold(outbox);
}

bool pmr_outbox_settle_to(pmr_outbox *outbox, uint32_t upto, const pmr_sink *sink)
{
    bool told = false;
    while ((int32_t)(upto - outbox->settled) > 0) {
        uint64_t cookie = entry_of(outbox, outbox->settled)->cookie;
        forget(outbox); /* before the sink is told: it may put another */
        if (cookie) {
            sink->sent(sink->arg, cookie);
            told = true;
        }
    }
    return told;
}
