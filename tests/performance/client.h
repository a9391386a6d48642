/* The clients of the load generator: sockets, handshake, frames.
 *
 * All of them live in one process, on 127.0.0.1, around one epoll. Nothing in here
 * counts or judges: a mode of loadgen.c is handed each message and does both.
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <stddef.h>
#include <stdint.h>

enum { OP_TEXT = 0x1, OP_CLOSE = 0x8, OP_PING = 0x9, OP_PONG = 0xA };

struct client {
    int fd;
    int open;          /* the handshake has been answered with 101 */
    uint32_t number;   /* position in `clients` */
    uint32_t sent;     /* the number of the last message that it sent */
    uint32_t answered; /* the number of the last answer that it got */
    uint32_t last;     /* the number of the last published message that it got */
    uint8_t *kept;     /* the start of a frame whose rest has not arrived yet */
    size_t kept_length;
};

extern struct client *clients;
extern uint32_t client_count;

/* What a mode does with a message; set before `open_clients`. */
extern void (*on_message)(struct client *client, const uint8_t *payload, size_t length);

/* Ends the process with a text that says what went wrong. */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* Nanoseconds on the one clock that everything here is measured with. */
uint64_t now(void);

/* After this moment every wait ends the process: nothing here runs for ever. */
void set_deadline(double seconds_from_now);

/* Connects `count` clients, and returns when each has got its 101. `path` may hold one
 * `%u`-like conversion, which becomes the client's number. */
void open_clients(uint32_t count, int port, const char *path);
void close_clients(void);

/* Reads what has arrived, waiting for at most `timeout_ms`; returns how many sockets had
 * something. */
int pump(int timeout_ms);

/* Goes on reading for a while, whatever arrives. */
void pump_for(double seconds);

/* Writes a masked frame to `out` (which needs `length` + 14 bytes); returns its length. */
size_t build_frame(uint8_t *out, uint8_t opcode, const char *payload, size_t length);

/* Overwrites ten characters of the payload of a frame made by `build_frame`. */
void patch_frame(uint8_t *frame, size_t offset, const char digits[10]);

/* Sends the bytes, all of them. */
void send_all(struct client *client, const uint8_t *bytes, size_t length);

#endif
