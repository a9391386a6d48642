/* The clients of the load generator: sockets, handshake, frames.
 *
 * All of them live in one process, on 127.0.0.1, around one epoll. Nothing in here
 * counts or judges: a mode of loadgen.c is handed each message and does both.
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { COMPRESSED = 0x40, OP_TEXT = 0x1, OP_CLOSE = 0x8, OP_PING = 0x9, OP_PONG = 0xA };

struct client {
    int fd;
    int secure;        /* the handshake of TLS is done */
    int open;          /* the handshake has been answered with 101 */
    uint32_t number;   /* position in `clients` */
    uint32_t sent;     /* the number of the last message that it sent */
    uint32_t answered; /* the number of the last answer that it got */
    uint32_t last;     /* the number of the last published message that it got */
    uint8_t *kept;     /* the start of a frame whose rest has not arrived yet */
    size_t kept_length;
    void *tls, *inflater; /* see wire.c and inflate.c; NULL where there is none */
};

/* How all clients talk; set before `open_clients`. */
struct manner {
    int tls;      /* TLS; whose certificate it is does not matter */
    int deflate;  /* permessage-deflate is offered, and must be accepted */
    int socketio; /* Engine.IO and Socket.IO around each message; open when let in there */
};
extern struct manner manner;

extern struct client *clients;
extern uint32_t client_count;

/* What a mode does with a message; set before `open_clients`. */
extern void (*on_message)(struct client *client, const uint8_t *payload, size_t length);

/* And with a pong; NULL, as long as none is expected. */
extern void (*on_pong)(struct client *client, const uint8_t *payload, size_t length);

/* A client that is also looked at between the others, whatever is waiting there; or NULL. */
extern struct client *urgent;

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

/* Returns when something listens on the port; to be asked from the server's start on. */
void wait_for_listener(int port);

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

/* --- wire.c: TCP, with or without TLS */

/* The TLS handshake, as far as it goes without waiting; 1 when it is done. */
int wire_shake_hands(struct client *client);

/* Like `recv` and `send` on a socket that does not block: errno is EAGAIN if it would. */
ssize_t wire_read(struct client *client, uint8_t *bytes, size_t length);
ssize_t wire_write(struct client *client, const uint8_t *bytes, size_t length);
void wire_close(struct client *client);

/* --- inflate.c: permessage-deflate */

extern uint64_t compressed_messages;

/* Reads what the server's handshake says of the extension. */
void accept_deflate(const uint8_t *head, size_t length);

/* Inflates a message, which stays valid until the next call; returns its length. */
size_t inflate_message(struct client *client, const uint8_t *payload, size_t length, const uint8_t **out);
void close_inflater(struct client *client);

#endif
