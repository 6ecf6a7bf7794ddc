/* SPDX-License-Identifier: Apache-2.0
 *
 * list.h: doubly linked lists whose links lie inside their members.
 *
 * A list is a link that is nobody's; an empty one, and a link in no list, point at themselves, so that removing
 * twice does no harm. Invariant: link->next->prev == link, always.
 */
#ifndef PMR_PROGRESS_LIST_H
#define PMR_PROGRESS_LIST_H

#include <stdbool.h>
#include <stddef.h>

typedef struct pmr_link {
    struct pmr_link *next;
    struct pmr_link *prev;
} pmr_link;

#define PMR_MEMBER_OF(link, type, field) ((type *)(void *)((char *)(link) - offsetof(type, field)))

static inline void pmr_link_init(pmr_link *link)
{
    link->next = link;
    link->prev = link;
}

static inline bool pmr_list_empty(const pmr_link *list)
{
    return list->next == list;
}

static inline void pmr_list_append(pmr_link *list, pmr_link *link)
{
    link->next = list;
    link->prev = list->prev;
    list->prev->next = link;
    list->prev = link;
}

static inline void pmr_list_remove(pmr_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    pmr_link_init(link);
}

#endif
