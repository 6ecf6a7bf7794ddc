/* SPDX-License-Identifier: Apache-2.0
 *
 * match.c: bins for exact patterns, one list for wildcards, numbers for the order between them.
 *
 * An arriving message looks into one bin and into the list of wildcards and takes the lower number; a receive without
 * wildcards looks into one bin, one with wildcards walks the messages in order of arrival.
 * Invariant: within every bin and list, members stand in the order in which they came.
 */
#include "progress/match.h"

static bool is_wild(const pmr_pattern *pattern)
{
    return pattern->source == PMR_ANY_SOURCE || pattern->tag == PMR_ANY_TAG;
}

static uint32_t bin_of(const pmr_pattern *pattern)
{
    uint32_t mixed = pattern->comm * 0x9e3779b1u;
    mixed = (mixed ^ (uint32_t)pattern->source) * 0x85ebca6bu;
    mixed = (mixed ^ (uint32_t)pattern->tag) * 0xc2b2ae35u;
    return (mixed >> 16 ^ mixed >> 4) % PMR_MATCH_BINS;
}

bool pmr_pattern_fits(const pmr_pattern *pattern, const pmr_pattern *envelope)
{
    if (pattern->comm != envelope->comm)
        return false;
    if (pattern->source != envelope->source && pattern->source != PMR_ANY_SOURCE)
        return false;
    return pattern->tag == envelope->tag || (pattern->tag == PMR_ANY_TAG && envelope->tag <= PMR_TAG_MAX);
}

void pmr_match_init(pmr_match *match)
{
    for (uint32_t i = 0; i < PMR_MATCH_BINS; i++) {
        pmr_link_init(&match->posted[i]);
        pmr_link_init(&match->unexpected[i]);
    }
    pmr_link_init(&match->wild);
    pmr_link_init(&match->order);
    match->posts = 0;
}

void pmr_match_post(pmr_match *match, pmr_posted *posted)
{
    posted->number = match->posts++;
    pmr_list_append(is_wild(&posted->pattern) ? &match->wild : &match->posted[bin_of(&posted->pattern)], &posted->link);
}

void pmr_match_withdraw(pmr_posted *posted)
{
    pmr_list_remove(&posted->link);
}

static pmr_posted *first_fitting(pmr_link *list, const pmr_pattern *envelope)
{
    for (pmr_link *link = list->next; link != list; link = link->next) {
        pmr_posted *posted = PMR_MEMBER_OF(link, pmr_posted, link);
        if (pmr_pattern_fits(&posted->pattern, envelope))
            return posted;
    }
    return NULL;
}

pmr_posted *pmr_match_arrive(pmr_match *match, const pmr_pattern *envelope)
{
    pmr_posted *exact = first_fitting(&match->posted[bin_of(envelope)], envelope);
    pmr_posted *wild = first_fitting(&match->wild, envelope);
    pmr_posted *taken = exact && (!wild || exact->number < wild->number) ? exact : wild;
    if (taken)
        pmr_list_remove(&taken->link);
    return taken;
}

void pmr_match_keep(pmr_match *match, pmr_unexpected *message)
{
    pmr_list_append(&match->unexpected[bin_of(&message->envelope)], &message->bin_link);
    pmr_list_append(&match->order, &message->order_link);
}

pmr_unexpected *pmr_match_find(pmr_match *match, const pmr_pattern *pattern)
{
    if (pmr_list_empty(&match->order))
        return NULL;
    if (is_wild(pattern)) {
        for (pmr_link *link = match->order.next; link != &match->order; link = link->next) {
            pmr_unexpected *message = PMR_MEMBER_OF(link, pmr_unexpected, order_link);
            if (pmr_pattern_fits(pattern, &message->envelope))
                return message;
        }
        return NULL;
    }
    pmr_link *bin = &match->unexpected[bin_of(pattern)];
    for (pmr_link *link = bin->next; link != bin; link = link->next) {
        pmr_unexpected *message = PMR_MEMBER_OF(link, pmr_unexpected, bin_link);
        if (pmr_pattern_fits(pattern, &message->envelope))
            return message;
    }
    return NULL;
}

void pmr_match_take(pmr_unexpected *message)
{
    pmr_list_remove(&message->bin_link);
    pmr_list_remove(&message->order_link);
}
