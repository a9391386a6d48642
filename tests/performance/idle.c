/* Servers with nothing to do: `connect`, `collect` and `start` of the load generator. */
#define _GNU_SOURCE
#include "meter.h"
#include "modes.h"

#include <stdio.h>

#define REHEARSED 100 /* connections that are opened and closed before it counts */

static void on_surprise(struct client *client, const uint8_t *payload, size_t length) {
    die("connection %u got: %.*s", client->number, (int)length, payload);
}

void run_connect(void) {
    on_message = on_surprise;
    /* What is only loaded or made once shall not be counted. */
    open_clients(option.clients < REHEARSED ? option.clients : REHEARSED, option.port, option.path);
    wait_until_quiet();
    close_clients();
    wait_until_quiet();

    long kib = resident_kib();
    struct mark begin = mark();
    open_clients(option.clients, option.port, option.path);
    opening = now() - begin.wall;
    wait_until_quiet();
    struct mark end = mark();
    end.operations = begin.operations + client_count;
    report(begin, end, resident_kib() - kib);
}

void run_collect(void) {
    on_message = on_surprise;
    open_clients(option.clients, option.port, option.path);
    wait_until_quiet();
    struct mark begin = mark();
    dprintf(option.trigger, "collect %u\n", option.batch);
    wait_until_busy(begin);
    wait_until_quiet();
    struct mark end = mark();
    end.operations = begin.operations + option.batch;
    report(begin, end, resident_kib());
}

void run_start(void) {
    on_message = on_surprise;
    struct mark begin = {.wall = now()}; /* all that the process used since it was begun */
    wait_for_listener(option.port);
    open_clients(1, option.port, option.path);
    struct mark end = mark();
    end.operations = 1;
    report(begin, end, resident_kib());
}
