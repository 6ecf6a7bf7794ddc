/* SPDX-License-Identifier: Apache-2.0
 *
 * endpoint.c: finds a transport by its name.
 *
 * Transports register themselves in an ELF section; this file names none of them.
 */
#include "transport/endpoint.h"

#include <string.h>

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
