/* Requests and their answers: `request` and `chat` of the load generator. */
#define _GNU_SOURCE
#include "meter.h"
#include "modes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t *batch_frames; /* `--batch` frames in a row, patched before each sending */
static size_t frame_length, id_at, text_at;
static int chatting, stopping;
static uint32_t *heard; /* by client and place in the room: the number of the last message */

/* A request of exactly `--size` bytes, with room for a number in its id and its text. */
static void prepare_request(void) {
    char payload[LONGEST];
    size_t length = (size_t)snprintf(payload, sizeof payload,
                                     "%s{\"id\":\"%010u\",\"topic\":\"%s\",\"ack\":true,\"data\":{\"text\":\"%010u ",
                                     option.prefix, 0u, option.topic, 0u);
    size_t end = strlen("\"}}") + strlen(option.suffix);
    if (option.size > LONGEST || length + end > option.size) die("--size %u can't be done", option.size);
    memset(payload + length, 'x', option.size - length);
    memcpy(payload + option.size - end, "\"}}", 3);
    memcpy(payload + option.size - end + 3, option.suffix, end - 3);
    id_at = strlen(option.prefix) + strlen("{\"id\":\"");
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

void run_request(void) {
    on_message = on_answer;
    prepare_request();
    if (chatting) heard = calloc((size_t)option.clients * option.room, sizeof *heard);
    open_clients(option.clients, option.port, option.path);
    wait_until_quiet();
    for (uint32_t i = 0; i < client_count; i++) ask(&clients[i]);
    pump_for(option.warm_up);
    struct mark begin = mark();
    pump_for(option.seconds);
    while (operations == begin.operations) pump(100); /* none yet: the cores are busy elsewhere */
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

void run_chat(void) {
    chatting = 1;
    option.batch = 1;
    run_request();
}
