/* What the load generator counts, and the clocks that it reads: see meter.h. */
#define _GNU_SOURCE
#include "meter.h"

#include "client.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define QUIET 2000000 /* nanoseconds of CPU time in a tenth of a second */

#define WORKED 300000 /* nanoseconds of CPU time that no idle server uses by chance */

/* Times below FINE fall into a bucket each, longer ones into FINE buckets to an octave. */
#define FINE 64
#define FINE_BITS 6
#define BUCKETS ((64 - FINE_BITS + 1) * FINE)

uint64_t operations, deliveries, opening;

static uint64_t histogram[BUCKETS];

static pid_t server_pid;
static clockid_t server_clock;

void watch(int pid) {
    server_pid = pid;
    if (clock_getcpuclockid(pid, &server_clock)) die("there is no process %d", pid);
}

static uint64_t cpu_time(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) die("the server is gone");
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* How long the process was ready to run while somebody else had its core. */
static uint64_t waited(pid_t pid) {
    char path[64];
    uint64_t ran, waited = 0;
    snprintf(path, sizeof path, "/proc/%d/schedstat", pid);
    FILE *file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%" SCNu64 " %" SCNu64, &ran, &waited) != 2) waited = 0;
        fclose(file);
    }
    return waited;
}

struct mark mark(void) {
    return (struct mark){
        .wall = now(),
        .server = cpu_time(server_clock),
        .server_waited = waited(server_pid),
        .own = cpu_time(CLOCK_PROCESS_CPUTIME_ID),
        .own_waited = waited(getpid()),
        .operations = operations,
        .deliveries = deliveries,
    };
}

void wait_until_quiet(void) {
    for (;;) {
        uint64_t before = cpu_time(server_clock);
        pump_for(0.1);
        if (cpu_time(server_clock) - before < QUIET) return;
    }
}

void wait_until_busy(struct mark since) {
    while (cpu_time(server_clock) - since.server < WORKED) pump(1);
}

long resident_kib(void) {
    char path[64], line[256];
    long kib = -1;
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", server_pid);
    FILE *file = fopen(path, "r");
    while (file && kib < 0 && fgets(line, sizeof line, file)) sscanf(line, "Rss: %ld", &kib);
    if (file) fclose(file);
    if (kib < 0) die("%s says nothing", path);
    return kib;
}

void note(uint64_t nanoseconds) {
    unsigned octave = nanoseconds < FINE ? 0 : 63 - FINE_BITS + 1 - (unsigned)__builtin_clzll(nanoseconds);
    histogram[octave ? octave * FINE + ((nanoseconds >> (octave - 1)) & (FINE - 1)) : nanoseconds]++;
}

void forget_notes(void) { memset(histogram, 0, sizeof histogram); }

/* The least time that is too long for a bucket. */
static uint64_t upper_end(unsigned bucket) {
    unsigned octave = bucket / FINE, place = bucket % FINE;
    return octave ? (uint64_t)(FINE + place + 1) << (octave - 1) : place + 1;
}

static void print_histogram(void) {
    const char *separator = "";
    printf("\"histogram\": [");
    for (unsigned i = 0; i < BUCKETS; i++) {
        if (histogram[i] == 0) continue;
        printf("%s[%" PRIu64 ", %" PRIu64 "]", separator, upper_end(i), histogram[i]);
        separator = ", ";
    }
    printf("]");
}

static double seconds(uint64_t begin, uint64_t end) { return (double)(end - begin) / 1e9; }

void report(struct mark begin, struct mark end, long kib) {
    printf("{\"clients\": %u, \"operations\": %" PRIu64 ", \"deliveries\": %" PRIu64 ", ",
           client_count, end.operations - begin.operations, end.deliveries - begin.deliveries);
    printf("\"wall\": %.6f, \"server_cpu\": %.6f, \"server_waited\": %.6f, ",
           seconds(begin.wall, end.wall), seconds(begin.server, end.server),
           seconds(begin.server_waited, end.server_waited));
    printf("\"generator_cpu\": %.6f, \"generator_waited\": %.6f, \"resident_kib\": %ld, \"opening\": %.6f, ",
           seconds(begin.own, end.own), seconds(begin.own_waited, end.own_waited), kib, seconds(0, opening));
    print_histogram();
    printf("}\n");
}
