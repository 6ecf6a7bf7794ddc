/* SPDX-License-Identifier: Apache-2.0
 *
 * test_recorder.c: what a record says of its call's times, and what a reader of the ring finds.
 *
 * Usage: test_recorder [seed]
 */
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "core/recorder.h"

static pmr_recorder recorder;

static pmr_record call(uint32_t seq, uint64_t entered_ticks)
{
    return (pmr_record){.bytes = 8,
                        .entered_ticks = entered_ticks,
                        .seq = seq,
                        .comm = 3,
                        .site = 5,
                        .peer = -1,
                        .kind = PMR_ALLREDUCE,
                        .dtype = PMR_FLOAT64,
                        .op = PMR_SUM,
                        .form = PMR_FORM_PLAIN,
                        .mode = PMR_RECORD_CALL};
}

/* The call enters without the time: who reads it meanwhile finds the rest, and the first wait takes the time. */
static void a_short_call_that_waits(void)
{
    uint64_t before = pmr_ticks();
    pmr_record *record = pmr_recorder_add(&recorder, call(1, 0)), found, expected = call(1, 0);
    CHECK(pmr_recorder_find(&recorder, 3, 1, &found));
    expected.number = 1;
    CHECK(memcmp(&found, &expected, sizeof found) == 0);
    pmr_recorder_waits_if(record, 1);
    CHECK(pmr_recorder_find(&recorder, 3, 1, &found) && found.entered_ticks >= before && found.done_ticks == 0);
    uint64_t entered = found.entered_ticks;
    pmr_recorder_waits_if(record, 1);
    pmr_recorder_done_if(record, 1);
    CHECK(pmr_recorder_find(&recorder, 3, 1, &found) && found.entered_ticks == entered && found.done_ticks >= entered);
}

static void a_short_call_that_does_not_wait(void)
{
    pmr_record *record = pmr_recorder_add(&recorder, call(2, 0)), found;
    pmr_recorder_done(record);
    CHECK(pmr_recorder_find(&recorder, 3, 2, &found) && found.entered_ticks != 0);
    CHECK(found.entered_ticks == found.done_ticks);
}

static void a_long_call(void)
{
    pmr_record *record = pmr_recorder_add(&recorder, call(3, 17)), found;
    pmr_recorder_waits_if(record, record->number);
    pmr_recorder_done(record);
    CHECK(pmr_recorder_newest(&recorder, 3, &found) && found.seq == 3 && found.entered_ticks == 17);
}

/* Other threads made so many calls that the place is another call's now. */
static void a_record_that_was_overwritten(void)
{
    pmr_record *record = pmr_recorder_add(&recorder, call(4, 0)), found;
    uint64_t number = record->number;
    for (uint32_t seq = 5; seq < 5 + PMR_RECORDER_ENTRIES; seq++)
        pmr_recorder_add(&recorder, call(seq, 0));
    CHECK(!pmr_recorder_find(&recorder, 3, 4, &found));
    pmr_recorder_waits_if(record, number);
    pmr_recorder_done_if(record, number);
    CHECK(record->seq == 4 + PMR_RECORDER_ENTRIES && record->entered_ticks == 0 && record->done_ticks == 0);
}

int main(void)
{
    pmr_recorder_open(&recorder);
    a_short_call_that_waits();
    a_short_call_that_does_not_wait();
    a_long_call();
    a_record_that_was_overwritten();
    return 0;
}
