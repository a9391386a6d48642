/* What the modes of the load generator share: their options, and numbers inside messages. */
#ifndef MODES_H
#define MODES_H

#include "client.h"

#include <stddef.h>
#include <stdint.h>

#define FIRST 1000000000u /* numbers always have ten digits, so sizes stay the same */
#define DIGITS 10
#define LONGEST 70000
#define LINGER 0.05 /* seconds in which a repeated message would still be noticed */

struct options {
    int port, pid, trigger;
    uint32_t clients, batch, size, room, rate;
    double warm_up, seconds, deadline;
    const char *path, *topic, *answer, *expect, *prefix, *suffix;
};
extern struct options option;

/* Returns the number of `digits` digits that follows `label`, or -1. */
int64_t number_after(const uint8_t *payload, size_t length, const char *label, int digits);

/* Ends the process unless `number` comes right after `last`. */
void check_next(const struct client *client, uint32_t last, int64_t number, const char *what);

void run_fanout(void);
void run_latency(void);
void run_ping(void);
void run_request(void);
void run_chat(void);
void run_connect(void);
void run_collect(void);
void run_start(void);

#endif
