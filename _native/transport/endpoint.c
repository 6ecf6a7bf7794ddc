/* SPDX-License-Identifier: Apache-2.0
 *
 * endpoint.c: finds a transport by its name; and what transports have in common.
 *
 * Transports register themselves in an ELF section; this file names none of them.
 */
#include "transport/endpoint.h"

#include <string.h>
#include <sys/resource.h>

extern const pmr_endpoint_ops *const __start_pmr_endpoints[];
extern const pmr_endpoint_ops *const __stop_pmr_endpoints[];

const pmr_endpoint_ops *pmr_endpoint_find(const char *name)
{
    for (const pmr_endpoint_ops *const *each = __start_pmr_endpoints; each < __stop_pmr_endpoints; each++)
        if (strcmp((*each)->name, name) == 0)
            return *each;
    return NULL;
}

const char *pmr_endpoint_name(size_t index)
{
    size_t count = (size_t)(__stop_pmr_endpoints - __start_pmr_endpoints);
    return index < count ? __start_pmr_endpoints[index]->name : NULL;
}

static pmr_placing place_later(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)arg, (void)peer, (void)lane, (void)packet, (void)into_out;
    return PMR_PLACE_LATER;
}

static void arrived_untold(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)arg, (void)peer, (void)lane, (void)packet, (void)payload;
}

static void sent_untold(void *arg, uint64_t cookie)
{
    (void)arg, (void)cookie;
}

static void lost_untold(void *arg, uint32_t peer, const pmr_error *error)
{
    (void)arg, (void)peer, (void)error;
}

const pmr_sink pmr_sink_of_closing = {NULL, place_later, arrived_untold, sent_untold, lost_untold};

void pmr_endpoint_raise_descriptors(uint64_t needed)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < needed && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = needed < limit.rlim_max ? needed : limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}
