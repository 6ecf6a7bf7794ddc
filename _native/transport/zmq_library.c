/* SPDX-License-Identifier: Apache-2.0
 *
 * zmq_library.c: loads libzmq and looks its functions up.
 *
 * The library stays private to this module (RTLD_LOCAL): a program that uses pyzmq has the same one mapped, with
 * contexts of its own.
 */
#include "transport/zmq_library.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#include "core/status.h"

/* 4.3.3 mends the last known hole that strangers could reach (CVE-2020-15166). */
#define OLDEST_MAJOR 4
#define OLDEST_MINOR 3
#define OLDEST_PATCH 3

typedef struct symbol {
    const char *name;
    size_t offset;
} symbol;

static const symbol symbols[] = {
    {"zmq_version", offsetof(pmr_zmq, version)},
    {"zmq_errno", offsetof(pmr_zmq, last_errno)},
    {"zmq_strerror", offsetof(pmr_zmq, text_of)},
    {"zmq_has", offsetof(pmr_zmq, has)},
    {"zmq_ctx_new", offsetof(pmr_zmq, ctx_new)},
    {"zmq_ctx_set", offsetof(pmr_zmq, ctx_set)},
    {"zmq_ctx_term", offsetof(pmr_zmq, ctx_term)},
    {"zmq_socket", offsetof(pmr_zmq, socket)},
    {"zmq_close", offsetof(pmr_zmq, close)},
    {"zmq_setsockopt", offsetof(pmr_zmq, setsockopt)},
    {"zmq_getsockopt", offsetof(pmr_zmq, getsockopt)},
    {"zmq_bind", offsetof(pmr_zmq, bind)},
    {"zmq_connect", offsetof(pmr_zmq, connect)},
    {"zmq_send", offsetof(pmr_zmq, send)},
    {"zmq_socket_monitor", offsetof(pmr_zmq, socket_monitor)},
    {"zmq_msg_init", offsetof(pmr_zmq, msg_init)},
    {"zmq_msg_init_size", offsetof(pmr_zmq, msg_init_size)},
    {"zmq_msg_init_data", offsetof(pmr_zmq, msg_init_data)},
    {"zmq_msg_send", offsetof(pmr_zmq, msg_send)},
    {"zmq_msg_recv", offsetof(pmr_zmq, msg_recv)},
    {"zmq_msg_close", offsetof(pmr_zmq, msg_close)},
    {"zmq_msg_more", offsetof(pmr_zmq, msg_more)},
    {"zmq_msg_data", offsetof(pmr_zmq, msg_data)},
    {"zmq_msg_size", offsetof(pmr_zmq, msg_size)},
    {"zmq_z85_encode", offsetof(pmr_zmq, z85_encode)},
    {"zmq_curve_public", offsetof(pmr_zmq, curve_public)},
};

static pmr_status look_up(pmr_zmq *zmq, const char *path, pmr_error *error)
{
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *found = dlsym(zmq->library, symbols[i].name);
        if (!found)
            return pmr_fail(error, PMR_ERR_UNSUPPORTED,
                            "%.300s has no %s: it is no libzmq, or too old (%d.%d.%d is needed; reinstall pyzmq)", path,
                            symbols[i].name, OLDEST_MAJOR, OLDEST_MINOR, OLDEST_PATCH);
        memcpy((char *)zmq + symbols[i].offset, &found, sizeof found); /* POSIX lets a function be a void * */
    }
    return PMR_OK;
}

static pmr_status check_version(pmr_zmq *zmq, const char *path, pmr_error *error)
{
    zmq->version(&zmq->major, &zmq->minor, &zmq->patch);
    int have = (zmq->major << 16) + (zmq->minor << 8) + zmq->patch;
    int need = (OLDEST_MAJOR << 16) + (OLDEST_MINOR << 8) + OLDEST_PATCH;
    if (have >= need)
        return PMR_OK;
    return pmr_fail(error, PMR_ERR_UNSUPPORTED,
                    "libzmq %d.%d.%d (%.300s) is too old: %d.%d.%d is needed ('pip install -U pyzmq'), or --transport tcp",
                    zmq->major, zmq->minor, zmq->patch, path, OLDEST_MAJOR, OLDEST_MINOR, OLDEST_PATCH);
}

pmr_status pmr_zmq_load(pmr_zmq *zmq, const char *path, pmr_error *error)
{
    memset(zmq, 0, sizeof *zmq);
    if (!path)
        return pmr_fail(error, PMR_ERR_UNSUPPORTED,
                        "the zmq transport needs libzmq: 'pip install pyzmq', or use --transport tcp");
    zmq->library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    if (!zmq->library) {
        const char *why = dlerror();
        return pmr_fail(error, PMR_ERR_UNSUPPORTED, "cannot load libzmq: %.500s", why ? why : path);
    }
    pmr_status status = look_up(zmq, path, error);
    if (!status)
        status = check_version(zmq, path, error);
    if (status)
        pmr_zmq_unload(zmq);
    return status;
}

void pmr_zmq_unload(pmr_zmq *zmq)
{
    if (zmq->library)
        dlclose(zmq->library);
    memset(zmq, 0, sizeof *zmq);
}
