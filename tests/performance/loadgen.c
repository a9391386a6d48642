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
 *   request  each client sends `--batch` requests in one write, and the next ones when
 *            all of them are answered
 *   chat     the same with one message a time, which also reaches the sender's room
 *   connect  connects, waits until the server has calmed down, and reads its memory
 */
#define _GNU_SOURCE
#include "client.h"
#include "meter.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/prctl.h>

#define FIRST 1000000000u /* numbers always have ten digits, so sizes stay the same */
#define DIGITS 10
#define LONGEST 70000
#define TOLERANCE 8 /* bytes: ids of the server's own may grow while it counts */
#define LINGER 0.05 /* seconds in which a repeated message would still be noticed */

static struct {
    int port, pid, trigger;
    uint32_t clients, batch, size, room;
    double warm_up, seconds, deadline;
    const char *path, *topic, *answer, *expect;
} option = {.trigger = -1, .clients = 10, .batch = 1, .size = 128, .room = 10, .warm_up = 0.2,
            .seconds = 1, .deadline = 60, .path = "/", .topic = "t", .answer = "\"ref\":\"", .expect = ""};

/* --- numbers inside messages */

/* Returns the number of `digits` digits that follows `label`, or -1. */
static int64_t number_after(const uint8_t *payload, size_t length, const char *label, int digits) {
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

static void check_next(const struct client *client, uint32_t last, int64_t number, const char *what) {
    if (number != (int64_t)FIRST + last + 1)
        die("connection %u got %s %" PRId64 " after %u", client->number, what,
            number < 0 ? number : number - FIRST, last);
}

/* --- fan-out */

static uint32_t published, fill, seen_size;
static int rehearsing = 1;

static void on_published(struct client *client, const uint8_t *payload, size_t length) {
    int64_t number = number_after(payload, length, "\"seq\":", DIGITS);
    if (rehearsing) {
        if (number != FIRST + published) return; /* some joined too late for this one */
    } else {
        check_next(client, client->last, number, "message");
        if (length + TOLERANCE < option.size || length > option.size + TOLERANCE)
            die("a message of %zu bytes instead of %u", length, option.size);
    }
    client->last = (uint32_t)(number - FIRST);
    seen_size = (uint32_t)length;
    deliveries++;
}

/* Has `count` messages published, padded to `--size` going by the size of the latest. */
static void publish(uint32_t count) {
    if (seen_size > option.size + fill) die("a message takes %u bytes without padding", seen_size - fill);
    if (seen_size) fill += option.size - seen_size;
    dprintf(option.trigger, "%u %u %u\n", FIRST + published + 1, count, fill);
    published += count;
}

/* Publishes single messages until one has reached everybody: all have joined. */
static void rehearse(void) {
    do {
        deliveries = 0;
        publish(1);
        for (uint64_t end = now() + 500000000; deliveries < client_count && now() < end;) pump(50);
    } while (deliveries < client_count);
    publish(1); /* has the right size */
    while (deliveries < 2 * client_count) pump(100);
    rehearsing = 0;
}

static void rounds_for(double seconds) {
    for (uint64_t end = now() + (uint64_t)(seconds * 1e9); now() < end; operations++) {
        uint64_t expected = deliveries + (uint64_t)client_count * option.batch;
        publish(option.batch);
        while (deliveries < expected) pump(100);
    }
}

static void run_fanout(void) {
    on_message = on_published;
    open_clients(option.clients, option.port, option.path);
    wait_until_quiet();
    rehearse();
    rounds_for(option.warm_up);
    struct mark begin = mark();
    rounds_for(option.seconds);
    struct mark end = mark();
    pump_for(LINGER);
    if (deliveries != end.deliveries) die("more arrived than was published");
    report(begin, end, resident_kib());
}

/* --- requests and chat */

static uint8_t *batch_frames; /* `--batch` frames in a row, patched before each sending */
static size_t frame_length, id_at, text_at;
static int chatting, stopping;
static uint32_t *heard; /* by client and place in the room: the number of the last message */

/* A request of exactly `--size` bytes, with room for a number in its id and its text. */
static void prepare_request(void) {
    char payload[LONGEST];
    size_t length = (size_t)snprintf(payload, sizeof payload,
                                     "{\"id\":\"%010u\",\"topic\":\"%s\",\"ack\":true,\"data\":{\"text\":\"%010u ",
                                     0u, option.topic, 0u);
    if (option.size > LONGEST || length + 3 > option.size) die("--size %u can't be done", option.size);
    memset(payload + length, 'x', option.size - 3 - length);
    memcpy(payload + option.size - 3, "\"}}", 3);
    id_at = strlen("{\"id\":\"");
    text_at = length - DIGITS - 1;
    batch_frames = malloc((size_t)option.batch * (LONGEST + 14));
    if (batch_frames == NULL) die("out of memory");
    for (uint32_t i = 0; i < option.batch; i++)
        frame_length = build_frame(batch_frames + i * frame_length, OP_TEXT, payload, option.size);
}

static void ask(struct client *client) {
    for (uint32_t i = 0; i < option.batch; i++) {
        char digits[DIGITS + 1];
        snprintf(digits, sizeof digits, "%010u", FIRST + ++client->sent);
        patch_frame(batch_frames + i * frame_length, id_at, digits);
        patch_frame(batch_frames + i * frame_length, text_at, digits);
    }
    send_all(client, batch_frames, option.batch * frame_length);
}

static void on_said(struct client *client, const uint8_t *payload, size_t length) {
    int64_t from = number_after(payload, length, "\"from\":\"u", 6);
    int64_t number = number_after(payload, length, "\"text\":\"", DIGITS);
    if (from < 0 || from / option.room != client->number / option.room)
        die("connection %u got: %.*s", client->number, (int)length, payload);
    uint32_t *last = &heard[client->number * option.room + from % option.room];
    check_next(client, *last, number, "chat message");
    ++*last;
    deliveries++;
}

static void on_answer(struct client *client, const uint8_t *payload, size_t length) {
    int64_t number = number_after(payload, length, option.answer, DIGITS);
    if (number < 0 && chatting) {
        on_said(client, payload, length);
        return;
    }
    check_next(client, client->answered, number, "answer");
    if (!memmem(payload, length, option.expect, strlen(option.expect)))
        die("connection %u got: %.*s", client->number, (int)length, payload);
    client->answered++;
    operations++;
    if (client->answered == client->sent && !stopping) ask(client);
}

/* After the last answer: has everybody heard everything that was said in the room? */
static void check_heard(void) {
    for (uint32_t i = 0; i < client_count; i++)
        for (uint32_t place = 0; place < option.room; place++) {
            uint32_t sender = i / option.room * option.room + place;
            if (sender < client_count && heard[i * option.room + place] != clients[sender].sent)
                die("connection %u did not hear all of connection %u", i, sender);
        }
}

static void run_requests(void) {
    on_message = on_answer;
    prepare_request();
    if (chatting) heard = calloc((size_t)option.clients * option.room, sizeof *heard);
    open_clients(option.clients, option.port, option.path);
    wait_until_quiet();
    for (uint32_t i = 0; i < client_count; i++) ask(&clients[i]);
    pump_for(option.warm_up);
    struct mark begin = mark();
    pump_for(option.seconds);
    struct mark end = mark();

    stopping = 1;
    uint64_t sent = 0;
    for (uint32_t i = 0; i < client_count; i++) sent += clients[i].sent;
    while (operations < sent) pump(100);
    pump_for(LINGER);
    if (operations != sent) die("more answers than requests");
    if (chatting) check_heard();
    report(begin, end, resident_kib());
}

/* --- connecting and being idle */

static void on_surprise(struct client *client, const uint8_t *payload, size_t length) {
    die("connection %u got: %.*s", client->number, (int)length, payload);
}

static void run_connect(void) {
    on_message = on_surprise;
    /* What is only loaded or made once shall not be counted. */
    open_clients(option.clients < 100 ? option.clients : 100, option.port, option.path);
    wait_until_quiet();
    close_clients();
    wait_until_quiet();

    long kib = resident_kib();
    struct mark begin = mark();
    open_clients(option.clients, option.port, option.path);
    wait_until_quiet();
    struct mark end = mark();
    end.operations = begin.operations + client_count;
    report(begin, end, resident_kib() - kib);
}

/* --- options */

static void parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"port", 1, 0, 'p'},    {"pid", 1, 0, 'P'},      {"clients", 1, 0, 'n'}, {"batch", 1, 0, 'k'},
        {"size", 1, 0, 's'},    {"seconds", 1, 0, 'd'},  {"warm-up", 1, 0, 'w'}, {"deadline", 1, 0, 'D'},
        {"trigger", 1, 0, 't'}, {"path", 1, 0, 'u'},     {"topic", 1, 0, 'T'},   {"answer", 1, 0, 'a'},
        {"expect", 1, 0, 'e'},  {"room", 1, 0, 'r'},     {0, 0, 0, 0},
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
        default: die("unknown option");
        }
    }
    if (option.port < 1 || option.pid < 1 || option.clients < 1 || option.batch < 1 || option.room < 1)
        die("--port, --pid, --clients, --batch and --room are numbers from 1 on");
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc < 2) die("usage: loadgen fanout|request|chat|connect --port P --pid PID [options]");
    const char *mode = argv[1];
    parse_options(argc - 1, argv + 1);
    set_deadline(option.deadline);
    watch(option.pid);
    if (!strcmp(mode, "fanout")) {
        if (option.trigger < 0) die("fanout needs --trigger");
        run_fanout();
    } else if (!strcmp(mode, "request")) {
        run_requests();
    } else if (!strcmp(mode, "chat")) {
        chatting = 1;
        option.batch = 1;
        run_requests();
    } else if (!strcmp(mode, "connect")) {
        run_connect();
    } else {
        die("unknown mode %s", mode);
    }
    return 0;
}
