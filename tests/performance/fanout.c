/* Messages to everybody: `fanout`, `latency` and `ping` of the load generator. */
#define _GNU_SOURCE
#include "meter.h"
#include "modes.h"

#include <stdio.h>
#include <stdlib.h>

#define TOLERANCE 8 /* bytes: ids of the server's own may grow while it counts */

#define PATIENCE 500000000 /* nanoseconds until a first message is taken for lost */
#define PING_EVERY 20000000 /* nanoseconds, at least: servers may limit a client's pings */
#define MOST_PINGS 4096
#define REMEMBERED 65536 /* messages on their way whose padding is known */

static uint32_t published, overhead; /* bytes of the latest message besides its padding */
static uint32_t fill_of[REMEMBERED];
static int rehearsing = 1;

static uint32_t timed_from;      /* the first message whose way is timed */
static uint64_t *published_when; /* by number since `timed_from`; NULL where nothing is timed */

static void on_published(struct client *client, const uint8_t *payload, size_t length) {
    int64_t number = number_after(payload, length, "\"seq\":", DIGITS);
    if (rehearsing) {
        if (number != FIRST + published) return; /* some joined too late for this one */
    } else {
        check_next(client, client->last, number, "message");
        if (number > (int64_t)FIRST + published) die("more arrived than was published");
        if (length + TOLERANCE < option.size || length > option.size + TOLERANCE)
            die("a message of %zu bytes instead of %u", length, option.size);
    }
    client->last = (uint32_t)(number - FIRST);
    overhead = (uint32_t)length - fill_of[client->last % REMEMBERED];
    deliveries++;
    if (published_when && client->last >= timed_from) note(now() - published_when[client->last - timed_from]);
}

/* Has `count` messages published, padded to `--size` going by the size of the latest. */
static void publish(uint32_t count) {
    if (overhead > option.size) die("a message takes %u bytes without padding", overhead);
    uint32_t fill = overhead ? option.size - overhead : 0;
    for (uint32_t i = 1; i <= count; i++) fill_of[(published + i) % REMEMBERED] = fill;
    dprintf(option.trigger, "%u %u %u\n", FIRST + published + 1, count, fill);
    published += count;
}

/* Publishes single messages until one has reached everybody: all have joined. */
static void rehearse(void) {
    uint64_t patience = PATIENCE;
    do {
        deliveries = 0;
        publish(1);
        for (uint64_t end = now() + patience; deliveries < client_count && now() < end;) pump(50);
        patience *= 2; /* or a slow server would never get to the end of one */
    } while (deliveries < client_count);
    publish(1); /* has the right size */
    while (deliveries < 2 * (uint64_t)client_count) pump(100);
    rehearsing = 0;
}

static void gather(void) {
    on_message = on_published;
    open_clients(option.clients, option.port, option.path);
    wait_until_quiet();
    rehearse();
}

static void finish(struct mark begin, struct mark end) {
    pump_for(LINGER);
    if (deliveries != end.deliveries) die("more arrived than was published");
    if (manner.deflate && !compressed_messages) die("nothing came compressed");
    report(begin, end, resident_kib());
}

/* --- as fast as it goes, one round after the other */

static void rounds_for(double seconds) {
    uint64_t end = now() + (uint64_t)(seconds * 1e9);
    do {
        uint64_t expected = deliveries + (uint64_t)client_count * option.batch;
        publish(option.batch);
        while (deliveries < expected) pump(100);
        operations++;
    } while (now() < end);
}

void run_fanout(void) {
    gather();
    rounds_for(option.warm_up);
    struct mark begin = mark();
    rounds_for(option.seconds);
    finish(begin, mark());
}

/* --- at a steady rate */

/* Publishes at the given times, and never waits for what was published before; a message
 * that this process itself sends late counts from when it should have been sent. */
static void publish_steadily(double seconds) {
    uint64_t interval = 1000000000u / option.rate, next = now();
    uint32_t count = (uint32_t)(seconds * option.rate) + 1;
    published_when = calloc(count, sizeof *published_when);
    if (published_when == NULL) die("out of memory");
    timed_from = published + 1;
    uint64_t expected = deliveries + (uint64_t)count * client_count;
    for (uint32_t i = 0; i < count; i++, next += interval) {
        for (uint64_t t = now(); t < next; t = now()) pump((int)((next - t) / 1000000));
        published_when[i] = next;
        publish(1);
        operations++;
    }
    while (deliveries < expected) pump(100);
    free(published_when);
    published_when = NULL;
}

void run_latency(void) {
    gather();
    publish_steadily(option.warm_up);
    forget_notes();
    struct mark begin = mark();
    publish_steadily(option.seconds);
    finish(begin, mark());
}

/* --- pings meanwhile */

static uint64_t ping_when[MOST_PINGS];
static uint32_t pings, pongs;

static void on_answered_ping(struct client *client, const uint8_t *payload, size_t length) {
    check_next(client, pongs, number_after(payload, length, "p", DIGITS), "pong");
    if (pongs == pings) die("a pong for no ping");
    note(now() - ping_when[pongs++ % MOST_PINGS]);
}

static void ping(void) {
    uint8_t frame[64];
    char payload[DIGITS + 2];
    if (pings - pongs == MOST_PINGS) die("%u pings are not answered", MOST_PINGS);
    int length = snprintf(payload, sizeof payload, "p%010u", FIRST + pings + 1);
    ping_when[pings++ % MOST_PINGS] = now();
    send_all(urgent, frame, build_frame(frame, OP_PING, payload, (size_t)length));
}

static void rounds_with_pings(double seconds) {
    static uint64_t next;
    uint32_t before = pings;
    uint64_t end = now() + (uint64_t)(seconds * 1e9);
    do {
        uint64_t expected = deliveries + client_count;
        publish(1);
        while (deliveries < expected) {
            if (now() >= next) {
                ping();
                next = now() + PING_EVERY;
            }
            pump(1);
        }
        operations++;
    } while (now() < end || pings == before);
    while (pongs < pings) pump(100);
}

void run_ping(void) {
    gather();
    urgent = &clients[0];
    on_pong = on_answered_ping;
    rounds_with_pings(option.warm_up);
    forget_notes();
    struct mark begin = mark();
    rounds_with_pings(option.seconds);
    finish(begin, mark());
}
