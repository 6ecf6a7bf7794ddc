/* SPDX-License-Identifier: Apache-2.0
 *
 * pull.c: every collective in which data goes one way: broadcast, gather, allgather, scatter, alltoall,
 * reduce, reduce_scatter, scan, exscan and the v-forms.
 *
 * Nouns: a *maker* leaves data for others, a *taker* pulls it; a maker's data is one *block* for all takers,
 * or a block for each (blocks.h). Short data lies in the entry or in the call's slot; long data is *staged*
 * in chunks of every block, as fast as the takers empty the chunk slots; data in the heap is taken from where
 * it lies. Makers do not wait for takers but for a free slot, so a broadcast's root and a reduce's leaves run
 * ahead by PMR_ENTRY_SLOTS calls. A reducing taker waits for a chunk of all makers and reduces them in one
 * pass in canonical order.
 *
 * Phases: enter, look at the entries of all one takes from (fingerprints, counts), pull. Bytes per maker: M
 * copied to shared memory unless in the heap; per taker: what it takes, read and written once. A line that
 * another core read last is slow to write, so chunks go round a ring larger than a core's own cache.
 */
#include "coll/blocks.h"
#include "core/copy.h"

enum { ENTER = 0, LOOK, STAGE, TAKE, RELEASE };
#define SHORT_BYTES 512u

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return comm->size > 1 ? SIZE_MAX : 0;
}

/* ---- making ---- */

/* Bytes of a block that one chunk holds. */
static size_t block_chunk(const pmr_task *task)
{
    size_t bytes = PMR_RING_BYTES / pmr_blocks_count(task) / PMR_LINE * PMR_LINE;
    return bytes ? bytes : PMR_LINE;
}

/* Slots of each ring in use. Where all ranks make, the rings together stay within the size of one, unless
 * ranks share CPUs and have much to stage: then each runs as far as it can before it gives its CPU away. */
static uint32_t ring_slots(const pmr_task *task)
{
    uint32_t makers = pmr_task_is(task, PMR_FROM_ROOT) ? 1 : task->comm->size;
    uint32_t slots = PMR_RING_SLOTS / makers;
    bool wide = task->comm->crowded && task->bytes > (size_t)slots * block_chunk(task);
    return wide ? PMR_RING_SLOTS : slots < 4 ? 4 : slots;
}

/* Where the chunk lies: rings go on from call to call, so that lines are old when they are written again. */
static uint32_t ring_slot(const pmr_task *task, const pmr_entry *entry, uint32_t chunk)
{
    return (entry->in_base + chunk) % ring_slots(task);
}

static size_t part_of(size_t bytes, size_t chunk_bytes, uint32_t chunk)
{
    size_t start = chunk_bytes * chunk;
    if (start >= bytes)
        return 0;
    return bytes - start < chunk_bytes ? bytes - start : chunk_bytes;
}

static uint32_t steps_of(const pmr_task *task)
{
    size_t most = 0;
    for (uint32_t b = 0; b < pmr_blocks_count(task); b++) {
        size_t bytes = pmr_block_out(task, b).bytes;
        most = bytes > most && (b != task->comm->rank || pmr_blocks_count(task) == 1) ? bytes : most;
    }
    size_t chunk = block_chunk(task);
    return (uint32_t)((most + chunk - 1) / chunk);
}

/* Offsets and sizes of the blocks, at the head of the slot, where takers cannot compute them. */
typedef struct block_place {
    uint64_t offset; /* from the slot's start, or in the window */
    uint64_t bytes;
} block_place;

static size_t table_bytes(const pmr_task *task)
{
    return pmr_blocks_uneven(task) ? pmr_blocks_count(task) * sizeof(block_place) : 0;
}

/* Bytes of this rank's slots that are in use: fewer where there are many ranks, each of which maps all of them
 * page by page as they come into use. */
static size_t slots_bytes(const pmr_comm *comm)
{
    size_t share = 2 * (size_t)PMR_SLOTS_BYTES / comm->size, least = 2 * (size_t)PMR_ENTRY_SLOTS * PMR_SLOT_BYTES;
    return share > PMR_SLOTS_BYTES ? PMR_SLOTS_BYTES : share < least ? least : share;
}

/* Room in this rank's slots. They are so many bytes that none is written again within PMR_ENTRY_SLOTS calls,
 * and long enough ago for its lines to have left the caches that read them; the shortest stay where they are
 * quick. */
static uint8_t *take_slot(pmr_task *task, pmr_entry *entry, size_t bytes)
{
    pmr_comm *comm = task->comm;
    size_t short_ones = (size_t)PMR_ENTRY_SLOTS * SHORT_BYTES;
    if (bytes <= SHORT_BYTES) {
        entry->send_offset = (size_t)(task->seq % PMR_ENTRY_SLOTS) * SHORT_BYTES;
    } else {
        size_t rounded = (bytes + PMR_LINE - 1) / PMR_LINE * PMR_LINE;
        bool fits = comm->slots_head >= short_ones && comm->slots_head + rounded <= slots_bytes(comm);
        entry->send_offset = fits ? comm->slots_head : short_ones;
        comm->slots_head = entry->send_offset + rounded;
    }
    return pmr_comm_slot(comm, comm->rank, entry->send_offset);
}

static void fill_table(pmr_task *task, const pmr_entry *entry, uint8_t *slot)
{
    if (!table_bytes(task))
        return;
    pmr_comm *comm = task->comm;
    block_place *table = (block_place *)(void *)slot;
    uint64_t offset = table_bytes(task);
    for (uint32_t b = 0; b < pmr_blocks_count(task); b++) {
        pmr_block block = pmr_block_out(task, b);
        table[b].offset = entry->style == PMR_STYLE_EXPOSED  ? pmr_comm_offset(comm, block.data)
                          : entry->style == PMR_STYLE_REMOTE ? (uint64_t)(uintptr_t)block.data
                                                             : offset;
        table[b].bytes = block.bytes;
        offset += block.bytes;
    }
}

static void copy_to_slot(const pmr_task *task, uint8_t *slot)
{
    uint8_t *to = slot + table_bytes(task);
    for (uint32_t b = 0; b < pmr_blocks_count(task); b++) {
        pmr_block block = pmr_block_out(task, b);
        if (block.bytes)
            memcpy(to, block.data, block.bytes);
        to += block.bytes;
    }
}

static void stage(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    size_t room = block_chunk(task);
    uint32_t slot = ring_slot(task, pmr_task_entry(task), chunk);
    uint8_t *to = pmr_comm_ring(comm, comm->rank, slot);
    comm->ring_busy[slot] = task->seq;
    uint32_t count = pmr_blocks_count(task);
    for (uint32_t b = 0; b < count; b++) {
        if (count > 1 && b == comm->rank)
            continue;
        pmr_block block = pmr_block_out(task, b);
        size_t bytes = part_of(block.bytes, room, chunk);
        if (bytes)
            memcpy(to + b * room, block.data + room * chunk, bytes);
    }
    task->staged = chunk + 1;
    pmr_flag_set(&comm->me->in, pmr_task_entry(task)->in_base + task->staged);
}

/* All takers have emptied the chunk, of this call or an earlier one, that lies where `chunk` is to be staged.
 */
static pmr_status await_room(pmr_task *task, uint32_t chunk, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    if (chunk < ring_slots(task))
        return pmr_task_drain(task, comm->ring_busy[ring_slot(task, pmr_task_entry(task), chunk)]);
    for (; task->cursor < comm->size; task->cursor++) {
        uint32_t taker = task->cursor;
        if (!pmr_blocks_takes(task, taker, comm->rank))
            continue;
        pmr_status status;
        const pmr_entry *entry = pmr_task_look(task, taker, &status, error);
        if (!entry)
            return status;
        pmr_flag *out = &pmr_comm_member(comm, taker)->out;
        uint32_t target = entry->out_base + chunk + 1 - ring_slots(task);
        if (!pmr_flag_reached(out, target))
            return pmr_task_want(task, out, target);
    }
    task->cursor = 0;
    return PMR_OK;
}

static bool choose_style(pmr_task *task, pmr_entry *entry)
{
    entry->style = PMR_STYLE_NONE;
    if (!pmr_blocks_makes(task, task->comm->rank))
        return false; /* buffers and counts may be missing here */
    size_t total = pmr_blocks_total(task);
    bool single = pmr_blocks_count(task) == 1;
    if (single && total <= PMR_INLINE_BYTES)
        entry->style = PMR_STYLE_INLINE;
    else if (total + table_bytes(task) <= PMR_SLOT_BYTES)
        entry->style = PMR_STYLE_SLOT;
    else
        entry->style = pmr_blocks_style(task);
    return entry->style == PMR_STYLE_STAGED;
}

/* Where the data lies, or the table that says so. */
static void publish_place(pmr_task *task, pmr_entry *entry, size_t total)
{
    bool slot_used = entry->style == PMR_STYLE_SLOT;
    if (entry->style == PMR_STYLE_NONE)
        return;
    if (slot_used || table_bytes(task)) {
        uint8_t *slot = take_slot(task, entry, table_bytes(task) + (slot_used ? total : 0));
        fill_table(task, entry, slot);
        if (slot_used)
            copy_to_slot(task, slot);
    } else if (entry->style == PMR_STYLE_EXPOSED) {
        entry->send_offset = pmr_comm_offset(task->comm, task->call->send);
    } else {
        entry->send_offset = (uint64_t)(uintptr_t)task->call->send;
    }
}

/* Who waits for nobody still looks who is there already, and whether they mean the same call. */
static pmr_status glance(const pmr_task *task, pmr_error *error)
{
    const pmr_comm *comm = task->comm;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        const pmr_entry *entry = pmr_comm_entry(comm, rank, task->seq);
        if (atomic_load_explicit(&entry->seq.value, memory_order_acquire) == task->seq &&
            entry->fingerprint != task->fingerprint)
            return pmr_comm_mismatch(task, rank, error);
    }
    return PMR_OK;
}

static pmr_status enter(pmr_task *task, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    pmr_status status = pmr_task_drain(task, task->seq - PMR_ENTRY_SLOTS);
    if (status)
        return status;
    pmr_entry *entry = pmr_task_entry(task);
    bool staging = choose_style(task, entry);
    entry->in_base = atomic_load_explicit(&comm->me->in.value, memory_order_relaxed);
    if (staging) {
        status = await_room(task, 0, error);
        if (status)
            return status;
    }
    size_t total = entry->style == PMR_STYLE_NONE ? 0 : pmr_blocks_total(task);
    task->streaming = pmr_blocks_streaming(task);
    task->staged = 0;
    entry->out_base = atomic_load_explicit(&comm->me->out.value, memory_order_relaxed);
    /* Never take faster than stage: a call in place overwrites what is yet to be staged. */
    task->steps = staging ? steps_of(task) : 0;
    entry->steps = staging ? task->steps : (uint32_t)total;
    if (entry->style == PMR_STYLE_INLINE) {
        memcpy(entry->payload, pmr_block_out(task, 0).data, total);
    } else {
        entry->recv_offset = total;
        publish_place(task, entry, total);
    }
    pmr_task_enter(task, entry);
    if (staging)
        stage(task, 0);
    return glance(task, error);
}

/* ---- taking ---- */

/* Where the maker's block for this rank begins: in its slot, in the window, or in its memory. */
static uint64_t place_of(const pmr_task *task, const pmr_entry *entry, const uint8_t *slot, size_t expected)
{
    uint32_t block = pmr_blocks_count(task) == 1 ? 0 : task->comm->rank;
    if (table_bytes(task))
        return ((const block_place *)(const void *)slot)[block].offset;
    return pmr_block_offset(task, block, expected) +
           (entry->style == PMR_STYLE_SLOT ? 0 : entry->send_offset);
}

/* A part of the maker's block for this rank, as this rank sees it; not in PMR_STYLE_REMOTE. */
static const uint8_t *locate(const pmr_task *task, uint32_t maker, uint32_t chunk, size_t at, size_t expected)
{
    pmr_comm *comm = task->comm;
    pmr_entry *entry = pmr_comm_entry(comm, maker, task->seq);
    uint32_t block = pmr_blocks_count(task) == 1 ? 0 : comm->rank;
    if (entry->style == PMR_STYLE_INLINE)
        return entry->payload + at;
    if (entry->style == PMR_STYLE_STAGED)
        return pmr_comm_ring(comm, maker, ring_slot(task, entry, chunk)) + block * block_chunk(task);
    const uint8_t *slot = pmr_comm_slot(comm, maker, entry->send_offset);
    uint64_t place = place_of(task, entry, slot, expected);
    return (entry->style == PMR_STYLE_SLOT ? slot + place : (const uint8_t *)pmr_comm_address(comm, place)) +
           at;
}

/* What the maker says it has for this rank; a v-form's two ends may disagree. */
static uint64_t offered(const pmr_task *task, uint32_t maker)
{
    pmr_comm *comm = task->comm;
    const pmr_entry *entry = pmr_comm_entry(comm, maker, task->seq);
    if (table_bytes(task))
        return ((const block_place *)(const void *)pmr_comm_slot(comm, maker, entry->send_offset))[comm->rank]
            .bytes;
    return entry->style == PMR_STYLE_INLINE ? entry->steps : entry->recv_offset;
}

/* Where anything is staged, all that is taken is taken chunk by chunk: also what lies elsewhere and may be
 * longer. */
static void cover_all(pmr_task *task)
{
    uint32_t rank = task->comm->rank;
    size_t most =
        pmr_blocks_reducing(task) && pmr_blocks_reduces_here(task) ? pmr_block_in(task, rank).bytes : 0;
    for (uint32_t maker = 0; maker < task->comm->size && !pmr_blocks_reducing(task); maker++)
        if (pmr_blocks_takes(task, rank, maker) && pmr_block_in(task, maker).bytes > most)
            most = pmr_block_in(task, maker).bytes;
    size_t chunk = block_chunk(task), steps = (most + chunk - 1) / chunk;
    if (task->steps && steps > task->steps)
        task->steps = (uint32_t)steps;
}

/* Everyone that this rank takes from has entered with the same call; their chunks are counted. */
static pmr_status look(pmr_task *task, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    for (; task->cursor < comm->size; task->cursor++) {
        uint32_t maker = task->cursor;
        if (!pmr_blocks_takes(task, comm->rank, maker))
            continue;
        pmr_status status;
        const pmr_entry *entry = pmr_task_look(task, maker, &status, error);
        if (!entry)
            return status;
        bool counts_differ =
            pmr_blocks_checked(task) && offered(task, maker) != pmr_block_in(task, maker).bytes;
        if (counts_differ)
            return pmr_comm_mismatch(task, maker, error);
        if (entry->style == PMR_STYLE_STAGED && entry->steps > task->steps)
            task->steps = entry->steps;
    }
    task->cursor = 0;
    if (pmr_blocks_everyone(task))
        comm->floor = task->seq - 1;
    cover_all(task);
    return PMR_OK;
}

static pmr_status await_chunk_of(pmr_task *task, uint32_t maker, uint32_t chunk)
{
    const pmr_entry *entry = pmr_comm_entry(task->comm, maker, task->seq);
    if (entry->style != PMR_STYLE_STAGED || chunk >= entry->steps)
        return PMR_OK;
    pmr_flag *in = &pmr_comm_member(task->comm, maker)->in;
    uint32_t target = entry->in_base + chunk + 1;
    return pmr_flag_reached(in, target) ? PMR_OK : pmr_task_want(task, in, target);
}

/* Chunks cut all blocks alike, if anything at all is staged. */
static size_t cut(const pmr_task *task)
{
    return task->steps ? block_chunk(task) : SIZE_MAX;
}

static pmr_status take_part(const pmr_task *task, uint32_t maker, uint32_t chunk, size_t at, size_t bytes,
                            pmr_error *error)
{
    pmr_comm *comm = task->comm;
    pmr_block block = pmr_block_in(task, maker);
    const pmr_entry *entry = pmr_comm_entry(comm, maker, task->seq);
    if (entry->style != PMR_STYLE_REMOTE) {
        pmr_copy(block.data + at, locate(task, maker, chunk, at, block.bytes), bytes, task->streaming);
        return PMR_OK;
    }
    uint64_t place = place_of(task, entry, pmr_comm_slot(comm, maker, entry->send_offset), block.bytes);
    return pmr_blocks_read(task, maker, block.data + at, place + at, bytes, error);
}

static pmr_status copy_chunk(pmr_task *task, uint32_t chunk, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    for (; task->cursor + 1 < comm->size; task->cursor++) {
        uint32_t maker = (comm->rank + 1 + task->cursor) % comm->size;
        if (!pmr_blocks_takes(task, comm->rank, maker))
            continue;
        pmr_status status = await_chunk_of(task, maker, chunk);
        if (status)
            return status;
        pmr_block block = pmr_block_in(task, maker);
        size_t room = task->steps ? cut(task) : block.bytes, at = room * chunk;
        size_t bytes = task->steps ? part_of(block.bytes, room, chunk) : block.bytes;
        if (bytes)
            status = take_part(task, maker, chunk, at, bytes, error);
        if (status)
            return status;
    }
    task->cursor = 0;
    return PMR_OK;
}

static pmr_status reduce_chunk(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    for (; task->cursor < comm->size; task->cursor++) {
        if (!pmr_blocks_takes(task, comm->rank, task->cursor))
            continue;
        pmr_status status = await_chunk_of(task, task->cursor, chunk);
        if (status)
            return status;
    }
    task->cursor = 0;
    pmr_block into = pmr_block_in(task, comm->rank),
              own = pmr_block_out(task, pmr_blocks_count(task) == 1 ? 0 : comm->rank);
    size_t at = task->steps ? cut(task) * chunk : 0;
    size_t bytes = task->steps ? part_of(into.bytes, cut(task), chunk) : into.bytes;
    const void *source[PMR_WINDOW_RANKS_MAX];
    uint32_t sources = 0;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        if (rank == comm->rank && call->kind != PMR_EXSCAN)
            source[sources++] = own.data + at;
        else if (pmr_blocks_takes(task, comm->rank, rank))
            source[sources++] = locate(task, rank, chunk, at, into.bytes);
    }
    if (bytes && sources && pmr_blocks_reduces_here(task))
        pmr_reduce_lookup(call->op, call->dtype)(into.data + at, source, sources, bytes / task->item_bytes);
    return PMR_OK;
}

static void copy_own(pmr_task *task)
{
    if (pmr_blocks_reducing(task) || !pmr_blocks_keeps_own(task))
        return;
    uint32_t rank = task->comm->rank;
    pmr_block from = pmr_block_out(task, pmr_blocks_count(task) == 1 ? 0 : rank),
              to = pmr_block_in(task, rank);
    if (to.data && from.bytes && from.data != to.data)
        pmr_copy(to.data, from.data, from.bytes, task->streaming);
}

/* ---- the phases ---- */

/* Stages the chunk after the one to be taken; with more ranks than CPUs all that there is room for. */
static pmr_status stage_ahead(pmr_task *task, uint32_t to_stage, pmr_error *error)
{
    uint32_t ahead = task->comm->crowded ? ring_slots(task) : 1;
    while (task->staged < to_stage && task->staged <= task->step + ahead) {
        pmr_status status = await_room(task, task->staged, error);
        bool enough = task->staged > task->step + 1;
        if (status == PMR_PENDING && enough) {
            task->cursor = 0;
            break;
        }
        if (status)
            return status;
        stage(task, task->staged);
    }
    return PMR_OK;
}

static pmr_status pull(pmr_task *task, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    const pmr_entry *mine = pmr_task_entry(task);
    uint32_t to_stage = mine->style == PMR_STYLE_STAGED ? mine->steps : 0;
    uint32_t steps = task->steps ? task->steps : 1;
    for (; task->step < steps; task->step++, task->phase = STAGE) {
        if (task->phase == STAGE) {
            pmr_status status = stage_ahead(task, to_stage, error);
            if (status)
                return status;
            task->phase = TAKE;
        }
        pmr_status status =
            pmr_blocks_reducing(task) ? reduce_chunk(task, task->step) : copy_chunk(task, task->step, error);
        if (status)
            return status;
        if (task->steps)
            pmr_flag_set(&comm->me->out, mine->out_base + task->step + 1);
    }
    return PMR_OK;
}

/* An array that is read where it lies is its owner's again when nobody reads it any more. */
static pmr_status release(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    for (; task->cursor < comm->size; task->cursor++) {
        if (!pmr_blocks_takes(task, task->cursor, comm->rank))
            continue;
        pmr_flag *done = &pmr_comm_member(comm, task->cursor)->done;
        if (!pmr_flag_reached(done, task->seq))
            return pmr_task_want(task, done, task->seq);
    }
    return PMR_OK;
}

static pmr_status step(pmr_task *task, pmr_error *error)
{
    pmr_status status;
    if (task->phase == ENTER) {
        status = enter(task, error);
        if (status)
            return status;
        task->phase = LOOK;
    }
    if (task->phase == LOOK) {
        status = look(task, error);
        if (status)
            return status;
        copy_own(task);
        task->phase = STAGE;
    }
    if (task->phase != RELEASE) {
        status = pull(task, error);
        if (status)
            return status;
        pmr_task_leave(task);
        task->phase = RELEASE;
    }
    return pmr_task_entry(task)->style >= PMR_STYLE_REMOTE ? release(task) : PMR_OK;
}

static const pmr_algorithm pull_algorithm = {
    .name = "pull",
    .kinds = ((1u << PMR_SEND) - 1) & ~(PMR_KIND_BIT(PMR_BARRIER) | PMR_KIND_BIT(PMR_ALLREDUCE)),
    .limit = limit,
    .bytes_max = SIZE_MAX,
    .step = step,
};
PMR_REGISTER_ALGORITHM(pull_algorithm);
