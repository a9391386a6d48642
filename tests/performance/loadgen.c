/* The load generator: many clients in one process, light enough not to be the subject.
 *
 *     loadgen MODE --port P --pid PID [options]
 *
 * PID is the server's: its CPU time is read from its own clock just before and just
 * after the measured part, so that start, connecting and warming up are left out. Every
 * message carries a number, and every arrival is checked against the one before it on
 * that connection: a gap, a repeat or a wrong order ends the run with an error and
 * without a figure. The result is one line of JSON.
 *
 *   fanout   writes `FIRST COUNT FILL` to the server's standard input, waits until all
 *            clients have got all COUNT messages, and goes on with the next round
 *   latency  has one message published `--rate` times a second, whether or not the ones
 *            before have arrived, and notes how long each took to each client
 *   ping     a fan-out with single messages, in which one client pings meanwhile
 *   request  each client sends `--batch` requests in one write, and the next ones when
 *            all of them are answered
 *   chat     the same with one message a time, which also reaches the sender's room
 *   connect  connects, waits until the server has calmed down, and reads its memory
 *   collect  connects, and writes `collect N` to the server's standard input, which makes
 *            it collect its garbage N times
 *   start    connects one client as soon as that can be, and reads all CPU time so far
 */
#define _GNU_SOURCE
#include "meter.h"
#include "modes.h"

#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

struct options option = {.trigger = -1,
                         .clients = 10,
                         .batch = 1,
                         .size = 128,
                         .room = 10,
                         .rate = 100,
                         .warm_up = 0.2,
                         .seconds = 1,
                         .deadline = 60,
                         .path = "/",
                         .topic = "t",
                         .answer = "\"ref\":\"",
                         .expect = "",
                         .prefix = "",
                         .suffix = ""};

int64_t number_after(const uint8_t *payload, size_t length, const char *label, int digits) {
    size_t label_length = strlen(label);
    const uint8_t *at = memmem(payload, length, label, label_length);
    if (at == NULL || at + label_length + digits > payload + length) return -1;
    int64_t number = 0;
    for (int i = 0; i < digits; i++) {
        uint8_t digit = at[label_length + (size_t)i];
        if (digit < '0' || digit > '9') return -1;
        number = number * 10 + (digit - '0');
    }
    return number;
}

void check_next(const struct client *client, uint32_t last, int64_t number, const char *what) {
    if (number != (int64_t)FIRST + last + 1)
        die("connection %u got %s %" PRId64 " after %u", client->number, what,
            number < 0 ? number : number - FIRST, last);
}

static const struct {
    const char *name;
    void (*run)(void);
    int publishes;
} MODES[] = {
    {"fanout", run_fanout, 1}, {"latency", run_latency, 1}, {"ping", run_ping, 1},
    {"request", run_request, 0}, {"chat", run_chat, 0},     {"connect", run_connect, 0},
    {"collect", run_collect, 1}, {"start", run_start, 0},
};

static void parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"port", 1, 0, 'p'},    {"pid", 1, 0, 'P'},    {"clients", 1, 0, 'n'}, {"batch", 1, 0, 'k'},
        {"size", 1, 0, 's'},    {"seconds", 1, 0, 'd'}, {"warm-up", 1, 0, 'w'}, {"deadline", 1, 0, 'D'},
        {"trigger", 1, 0, 't'}, {"path", 1, 0, 'u'},    {"topic", 1, 0, 'T'},   {"answer", 1, 0, 'a'},
        {"expect", 1, 0, 'e'},  {"room", 1, 0, 'r'},    {"rate", 1, 0, 'R'},    {"prefix", 1, 0, 'b'},
        {"suffix", 1, 0, 'c'},  {"tls", 0, 0, 'S'},     {"deflate", 0, 0, 'z'}, {"socketio", 0, 0, 'o'},
        {0, 0, 0, 0},
    };
    for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (name) {
        case 'p': option.port = atoi(optarg); break;
        case 'P': option.pid = atoi(optarg); break;
        case 'n': option.clients = (uint32_t)atoi(optarg); break;
        case 'k': option.batch = (uint32_t)atoi(optarg); break;
        case 's': option.size = (uint32_t)atoi(optarg); break;
        case 'd': option.seconds = atof(optarg); break;
        case 'w': option.warm_up = atof(optarg); break;
        case 'D': option.deadline = atof(optarg); break;
        case 't': option.trigger = atoi(optarg); break;
        case 'u': option.path = optarg; break;
        case 'T': option.topic = optarg; break;
        case 'a': option.answer = optarg; break;
        case 'e': option.expect = optarg; break;
        case 'r': option.room = (uint32_t)atoi(optarg); break;
        case 'R': option.rate = (uint32_t)atoi(optarg); break;
        case 'b': option.prefix = optarg; break;
        case 'c': option.suffix = optarg; break;
        case 'S': manner.tls = 1; break;
        case 'z': manner.deflate = 1; break;
        case 'o': manner.socketio = 1; break;
        default: die("unknown option");
        }
    }
    if (option.port < 1 || option.pid < 1 || option.clients < 1 || option.batch < 1 || option.room < 1 ||
        option.rate < 1)
        die("--port, --pid, --clients, --batch, --room and --rate are numbers from 1 on");
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc < 2) die("usage: loadgen MODE --port P --pid PID [options]");
    for (size_t i = 0; i < sizeof MODES / sizeof *MODES; i++) {
        if (strcmp(argv[1], MODES[i].name)) continue;
        parse_options(argc - 1, argv + 1);
        if (MODES[i].publishes && option.trigger < 0) die("%s needs --trigger", argv[1]);
        set_deadline(option.deadline);
        watch(option.pid);
        MODES[i].run();
        return 0;
    }
    die("unknown mode %s", argv[1]);
}
