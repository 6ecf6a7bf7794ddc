/* SPDX-License-Identifier: Apache-2.0
 *
 * test_endpoint.c: what every transport between nodes must do, over each that is registered.
 *
 * Traffic of fixed and of random sizes between two and four ranks, both ways at once and on two lanes at once, with a
 * sink that holds back at random; ranks that leave in the middle. Usage: test_endpoint [seed]
 */
#include "endpoint_world.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#define DESCRIPTORS 1024

static const char *library;
static uint32_t fixed_bytes;

static uint32_t size_fixed(uint64_t mixed, uint32_t lane)
{
    (void)mixed;
    return lane == 0 && fixed_bytes > 65536 ? 8 : fixed_bytes;
}

static uint32_t size_random(uint64_t mixed, uint32_t lane)
{
    uint32_t magnitude = (uint32_t)(mixed % (lane ? 19 : 13)); /* up to 512 KiB, and up to 8 KiB on lane 0 */
    return (uint32_t)(mixed >> 8) % ((1u << magnitude) + 1);
}

/* No socket of the tcp transport is paced by BBR, where that is the system's choice. */
static void check_congestion(void)
{
    for (int fd = 0; fd < DESCRIPTORS; fd++) {
        char name[16] = "";
        socklen_t bytes = sizeof name;
        if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes) == 0)
            CHECK(strncmp(name, "bbr", 3) != 0);
    }
}

static void run_pairs(const char *transport, uint32_t ranks, uint32_t (*size_of)(uint64_t, uint32_t), uint32_t count)
{
    static world world;
    world_open(&world, transport, library, ranks);
    world.size_of = size_of;
    for (uint32_t from = 0; from < ranks; from++)
        for (uint32_t to = 0; to < ranks; to++)
            for (uint32_t lane = 0; lane < WORLD_LANES; lane++)
                if (from != to)
                    world_plan(&world, from, to, lane, count);
    world_run(&world);
    if (strcmp(transport, "tcp") == 0)
        check_congestion();
    for (uint32_t rank = 0; rank < ranks; rank++) {
        pmr_endpoint *endpoint = world.member[rank].endpoint;
        CHECK(pmr_endpoint_unsent_bytes(endpoint) == 0 && world.member[rank].losses == 0);
        CHECK(endpoint->counts.packets_sent == (uint64_t)count * (ranks - 1) * WORLD_LANES);
        CHECK(endpoint->counts.packets_received == endpoint->counts.packets_sent);
    }
    world_close(&world);
}

static void test_sizes(const char *transport)
{
    static const uint32_t sizes[] = {0, 1, 8, 40, 4096, 65536, 1048576};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        fixed_bytes = sizes[i];
        run_pairs(transport, 2, size_fixed, sizes[i] > 65536 ? 5 : 200);
    }
}

/* A rank ends with all it sent on the way: that arrives, then its peers are told once. */
static void test_leaving(const char *transport)
{
    static world world;
    for (uint32_t round = 0; round < 10; round++) {
        world_open(&world, transport, library, 3);
        world.size_of = size_random;
        for (uint32_t from = 0; from < 3; from++)
            for (uint32_t to = 0; to < 3; to++)
                for (uint32_t lane = 0; lane < WORLD_LANES; lane++)
                    if (from != to)
                        world_plan(&world, from, to, lane, 60);
        bool moved = false;
        for (uint32_t turns = draw(300); turns > 0; turns--)
            world_turn(&world, &moved);
        world_close_member(&world, 1);
        world_run(&world);
        CHECK(world.member[0].losses <= 1 && world.member[2].losses <= 1);
        if (world.member[0].losses)
            CHECK(world.member[0].lost[1] && strstr(world.member[0].why, "rank 1"));
        world_close(&world);
    }
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    library = world_libzmq();
    pmr_error error;
    for (size_t i = 0; pmr_endpoint_name(i); i++) {
        const char *transport = pmr_endpoint_name(i);
        if (!world_can(transport, library))
            continue;
        random_state = seed;
        test_sizes(transport);
        run_pairs(transport, 4, size_random, 150);
        run_pairs(transport, 2, size_random, 1000);
        world_socket_bytes = 4096; /* the least: reads and writes are short */
        run_pairs(transport, 3, size_random, 40);
        world_socket_bytes = 0;
        test_leaving(transport);
    }
    CHECK(!pmr_endpoint_find("pigeons"));
    pmr_endpoint *none;
    pmr_endpoint_options options = {.bind_address = "loopback hub 9", .ranks = 2};
    CHECK(pmr_endpoint_find("loopback")->open(&options, &none, &error) == PMR_ERR_ARGUMENT);
    return 0;
}
