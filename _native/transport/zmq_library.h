/* SPDX-License-Identifier: Apache-2.0
 *
 * zmq_library.h: libzmq, as far as the zmq transport uses it, found at run time.
 *
 * pyzmq's wheel ships the library and no header for it, so what is used of its stable interface is declared here:
 * functions as pointers, which dlsym fills, and the numbers of zmq.h. Invariant: after pmr_zmq_load every pointer is set.
 */
#ifndef PMR_TRANSPORT_ZMQ_LIBRARY_H
#define PMR_TRANSPORT_ZMQ_LIBRARY_H

#include "include/pmr.h"

typedef union pmr_zmq_msg { /* zmq_msg_t: 64 bytes, aligned as a pointer */
    unsigned char bytes[64];
    void *alignment;
} pmr_zmq_msg;

enum { /* kinds of sockets */
    PMR_ZMQ_PAIR = 0,
    PMR_ZMQ_REP = 4,
    PMR_ZMQ_DEALER = 5,
    PMR_ZMQ_ROUTER = 6
};

enum { /* of a context */
    PMR_ZMQ_IO_THREADS = 1,
    PMR_ZMQ_MAX_SOCKETS = 2
};

enum { /* of a socket */
    PMR_ZMQ_SNDBUF = 11,
    PMR_ZMQ_RCVBUF = 12,
    PMR_ZMQ_FD = 14,
    PMR_ZMQ_LINGER = 17,
    PMR_ZMQ_RECONNECT_IVL = 18,
    PMR_ZMQ_BACKLOG = 19,
    PMR_ZMQ_MAXMSGSIZE = 22,
    PMR_ZMQ_SNDHWM = 23,
    PMR_ZMQ_RCVHWM = 24,
    PMR_ZMQ_LAST_ENDPOINT = 32,
    PMR_ZMQ_TCP_KEEPALIVE = 34,
    PMR_ZMQ_TCP_KEEPALIVE_CNT = 35,
    PMR_ZMQ_TCP_KEEPALIVE_IDLE = 36,
    PMR_ZMQ_TCP_KEEPALIVE_INTVL = 37,
    PMR_ZMQ_IPV6 = 42,
    PMR_ZMQ_PLAIN_SERVER = 44,
    PMR_ZMQ_PLAIN_USERNAME = 45,
    PMR_ZMQ_PLAIN_PASSWORD = 46,
    PMR_ZMQ_CURVE_SERVER = 47,
    PMR_ZMQ_CURVE_PUBLICKEY = 48,
    PMR_ZMQ_CURVE_SECRETKEY = 49,
    PMR_ZMQ_CURVE_SERVERKEY = 50,
    PMR_ZMQ_ZAP_DOMAIN = 55,
    PMR_ZMQ_HANDSHAKE_IVL = 66,
    PMR_ZMQ_CONNECT_TIMEOUT = 79,
    PMR_ZMQ_TCP_MAXRT = 80
};

enum { /* flags of a send or receive */
    PMR_ZMQ_DONTWAIT = 1,
    PMR_ZMQ_SNDMORE = 2
};

enum { /* what a monitor tells */
    PMR_ZMQ_EVENT_CLOSED = 0x0080,
    PMR_ZMQ_EVENT_DISCONNECTED = 0x0200,
    PMR_ZMQ_EVENT_FAILED_NO_DETAIL = 0x0800,
    PMR_ZMQ_EVENT_FAILED_PROTOCOL = 0x2000,
    PMR_ZMQ_EVENT_FAILED_AUTH = 0x4000
};

typedef struct pmr_zmq {
    void *library;
    int major, minor, patch;
    void (*version)(int *major, int *minor, int *patch);
    int (*last_errno)(void);
    const char *(*text_of)(int problem);
    int (*has)(const char *capability);
    void *(*ctx_new)(void);
    int (*ctx_set)(void *context, int option, int value);
    int (*ctx_term)(void *context);
    void *(*socket)(void *context, int type);
    int (*close)(void *socket);
    int (*setsockopt)(void *socket, int option, const void *value, size_t bytes);
    int (*getsockopt)(void *socket, int option, void *value, size_t *bytes);
    int (*bind)(void *socket, const char *address);
    int (*connect)(void *socket, const char *address);
    int (*send)(void *socket, const void *data, size_t bytes, int flags);
    int (*socket_monitor)(void *socket, const char *address, int events);
    int (*msg_init)(pmr_zmq_msg *message);
    int (*msg_init_size)(pmr_zmq_msg *message, size_t bytes);
    int (*msg_init_data)(pmr_zmq_msg *message, void *data, size_t bytes, void (*release)(void *data, void *hint),
                         void *hint);
    int (*msg_send)(pmr_zmq_msg *message, void *socket, int flags);
    int (*msg_recv)(pmr_zmq_msg *message, void *socket, int flags);
    int (*msg_close)(pmr_zmq_msg *message);
    int (*msg_more)(const pmr_zmq_msg *message);
    void *(*msg_data)(pmr_zmq_msg *message);
    size_t (*msg_size)(const pmr_zmq_msg *message);
    char *(*z85_encode)(char *text_out, const uint8_t *bytes, size_t count);
    int (*curve_public)(char *public_out, const char *secret);
} pmr_zmq;

/* `path`: the library, or any that is linked to it. Refuses what is too old, naming both versions. */
pmr_status pmr_zmq_load(pmr_zmq *zmq, const char *path, pmr_error *error);
void pmr_zmq_unload(pmr_zmq *zmq);

#endif
