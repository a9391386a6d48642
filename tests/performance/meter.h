/* What the load generator counts, and the clocks that it reads. */
#ifndef METER_H
#define METER_H

#include <stdint.h>

/* Counted by the modes: rounds, answered requests; published messages that arrived. */
extern uint64_t operations, deliveries;

/* How long connecting took, in nanoseconds; set by the mode that times it. */
extern uint64_t opening;

/* A moment: all clocks (in nanoseconds) and counters at once. */
struct mark {
    uint64_t wall;
    uint64_t server, server_waited; /* user and system time; ready, but without a core */
    uint64_t own, own_waited;       /* the same of the load generator */
    uint64_t operations, deliveries;
};

/* From now on "the server" is this process. */
void watch(int pid);

struct mark mark(void);

/* Waits until the server uses less than 2 % of a core: connecting has been dealt with. */
void wait_until_quiet(void);

/* Waits until the server has worked since then: an order has been taken up. */
void wait_until_busy(struct mark since);

/* The server's resident memory. */
long resident_kib(void);

/* Adds a time (in nanoseconds) to the histogram, which keeps it to one part in 64. */
void note(uint64_t nanoseconds);
void forget_notes(void);

/* Prints the result: what happened between two moments. */
void report(struct mark begin, struct mark end, long kib);

#endif
