/* SPDX-License-Identifier: Apache-2.0
 *
 * match.h: which receive takes which message.
 *
 * Two sets wait for each other: *posted* receives, whose pattern may hold wildcards, and *unexpected* messages, whose
 * envelope is complete. A message takes the receive that was posted first among those it fits; a receive takes the
 * message that arrived first among those that fit it. Patterns without wildcards lie in bins by their hash, those with
 * wildcards in one list, and numbers say who came first. Nothing here allocates: members bring their links.
 * Invariant: no posted receive fits an unexpected message, as long as callers look (`find`, `arrive`) before they add.
 * Not thread-safe: the owner's lock covers it.
 */
#ifndef PMR_PROGRESS_MATCH_H
#define PMR_PROGRESS_MATCH_H

#include <stdint.h>

#include "include/pmr.h"
#include "progress/list.h"

#define PMR_MATCH_BINS 256u

typedef struct pmr_pattern {
    uint32_t comm;
    int32_t source;     /* rank in the communicator; in a receive also PMR_ANY_SOURCE */
    int32_t tag;        /* in a receive also PMR_ANY_TAG, which fits the users' tags only */
} pmr_pattern;

typedef struct pmr_posted {
    pmr_link link;
    pmr_pattern pattern;
    uint64_t number;    /* order of posting */
} pmr_posted;

typedef struct pmr_unexpected {
    pmr_link bin_link;
    pmr_link order_link;
    pmr_pattern envelope;
} pmr_unexpected;

typedef struct pmr_match {
    pmr_link posted[PMR_MATCH_BINS];
    pmr_link wild;                      /* posted receives with a wildcard */
    pmr_link unexpected[PMR_MATCH_BINS];
    pmr_link order;                     /* all unexpected messages in order of arrival */
    uint64_t posts;
} pmr_match;

bool pmr_pattern_fits(const pmr_pattern *pattern, const pmr_pattern *envelope);

void pmr_match_init(pmr_match *match);

void pmr_match_post(pmr_match *match, pmr_posted *posted);
void pmr_match_withdraw(pmr_posted *posted);
/* Takes out and returns the receive that a message with this envelope goes to; NULL: unexpected. */
pmr_posted *pmr_match_arrive(pmr_match *match, const pmr_pattern *envelope);

void pmr_match_keep(pmr_match *match, pmr_unexpected *message);
/* The message a receive would take, left where it is; NULL: none. */
pmr_unexpected *pmr_match_find(pmr_match *match, const pmr_pattern *pattern);
void pmr_match_take(pmr_unexpected *message);

#endif
