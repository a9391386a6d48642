/* The clients of the load generator: see client.h. */
#define _GNU_SOURCE
#include "client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Key, answer and mask are the examples of RFC 6455: what is measured does not depend on
 * them, and a constant answer can be checked without computing a hash. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
static const uint8_t MASK[4] = {0x37, 0xfa, 0x21, 0x3d};

#define OFFER "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"

#define OPEN_AT_ONCE 50 /* handshakes in flight: far below any listen backlog */
#define EVENTS 512
#define URGENT_EVERY 32 /* clients between two looks at the urgent one */

struct client *clients;
uint32_t client_count;
struct manner manner;
struct client *urgent;
void (*on_message)(struct client *client, const uint8_t *payload, size_t length);
void (*on_pong)(struct client *client, const uint8_t *payload, size_t length);

static int poller = -1;
static uint64_t deadline;
static uint32_t opened;
static int server_port;
static const char *handshake_path;
static uint8_t buffer[1 << 18];

void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void set_deadline(double seconds_from_now) { deadline = now() + (uint64_t)(seconds_from_now * 1e9); }

/* --- frames */

size_t build_frame(uint8_t *out, uint8_t opcode, const char *payload, size_t length) {
    size_t at = 2;
    out[0] = 0x80 | opcode;
    if (length < 126) {
        out[1] = 0x80 | (uint8_t)length;
    } else if (length < 65536) {
        out[1] = 0x80 | 126;
        out[2] = (uint8_t)(length >> 8);
        out[3] = (uint8_t)length;
        at = 4;
    } else {
        out[1] = 0x80 | 127;
        for (int i = 0; i < 8; i++) out[2 + i] = (uint8_t)((uint64_t)length >> (56 - 8 * i));
        at = 10;
    }
    memcpy(out + at, MASK, 4);
    at += 4;
    for (size_t i = 0; i < length; i++) out[at + i] = (uint8_t)payload[i] ^ MASK[i & 3];
    return at + length;
}

void patch_frame(uint8_t *frame, size_t offset, const char digits[10]) {
    uint8_t short_length = frame[1] & 127;
    size_t header = short_length == 126 ? 8 : short_length == 127 ? 14 : 6;
    for (size_t i = 0; i < 10; i++)
        frame[header + offset + i] = (uint8_t)digits[i] ^ MASK[(offset + i) & 3];
}

static void send_text(struct client *client, const char *text) {
    uint8_t frame[64];
    send_all(client, frame, build_frame(frame, OP_TEXT, text, strlen(text)));
}

/* Messages are events to Socket.IO ("42"); all else is for the two protocols themselves. */
static void take_socketio(struct client *client, const uint8_t *payload, size_t length) {
    if (length >= 2 && payload[0] == '4' && payload[1] == '2') {
        on_message(client, payload, length);
    } else if (length >= 2 && payload[0] == '4' && payload[1] == '0') {
        opened++;
    } else if (length >= 1 && payload[0] == '0') {
        send_text(client, "40");
    } else if (length == 1 && payload[0] == '2') {
        send_text(client, "3");
    } else {
        die("connection %u got: %.*s", client->number, (int)length, payload);
    }
}

static void take_text(struct client *client, const uint8_t *payload, size_t length) {
    if (manner.socketio)
        take_socketio(client, payload, length);
    else
        on_message(client, payload, length);
}

/* Handles every whole frame in `bytes`; returns how many bytes that took. */
static size_t take_frames(struct client *client, const uint8_t *bytes, size_t length) {
    size_t used = 0;
    while (length - used >= 2) {
        const uint8_t *frame = bytes + used;
        size_t available = length - used, header = 2;
        uint64_t payload = frame[1] & 127;
        if (payload == 126) {
            header = 4;
            if (available < header) break;
            payload = (uint64_t)frame[2] << 8 | frame[3];
        } else if (payload == 127) {
            header = 10;
            if (available < header) break;
            payload = 0;
            for (int i = 0; i < 8; i++) payload = payload << 8 | frame[2 + i];
        }
        if (payload > sizeof buffer / 2) die("a frame of %lu bytes is too long for this tool", payload);
        if (available < header + payload) break;
        used += header + payload;
        switch (frame[0]) {
        case 0x80 | OP_TEXT:
            take_text(client, frame + header, payload);
            break;
        case 0x80 | COMPRESSED | OP_TEXT: {
            const uint8_t *message;
            size_t inflated = inflate_message(client, frame + header, payload, &message);
            take_text(client, message, inflated);
            break;
        }
        case 0x80 | OP_PING: {
            uint8_t pong[140];
            send_all(client, pong, build_frame(pong, OP_PONG, (const char *)frame + header, payload));
            break;
        }
        case 0x80 | OP_PONG:
            if (on_pong == NULL) die("connection %u got a pong for no ping", client->number);
            on_pong(client, frame + header, payload);
            break;
        case 0x80 | OP_CLOSE:
            die("the server closed connection %u with %u %.*s", client->number,
                payload < 2 ? 1005u : (unsigned)(frame[header] << 8 | frame[header + 1]),
                payload < 2 ? 0 : (int)payload - 2, frame + header + 2);
        default:
            die("an unexpected frame, first byte 0x%02x", frame[0]);
        }
    }
    return used;
}

/* Looks for the whole answer to the handshake; returns how many bytes it took. */
static size_t take_handshake(struct client *client, const uint8_t *bytes, size_t length) {
    const uint8_t *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (end == NULL) return 0;
    size_t used = (size_t)(end - bytes) + 4;
    if (length < 12 || memcmp(bytes, "HTTP/1.1 101", 12) || !memmem(bytes, used, ACCEPT, strlen(ACCEPT)))
        die("the handshake was answered with: %.*s", (int)used, bytes);
    if (manner.deflate) accept_deflate(bytes, used);
    client->open = 1;
    if (!manner.socketio) opened++;
    return used;
}

static void send_handshake(struct client *client) {
    char target[256], request[1024];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(target, sizeof target, handshake_path, client->number);
#pragma GCC diagnostic pop
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                          "Connection: Upgrade\r\nSec-WebSocket-Key: " KEY "\r\n"
                          "Sec-WebSocket-Version: 13\r\n%s\r\n",
                          target, server_port, manner.deflate ? OFFER : "");
    send_all(client, (uint8_t *)request, (size_t)length);
}

/* --- sockets */

static void read_client(struct client *client) {
    if (manner.tls && !client->secure) {
        client->secure = wire_shake_hands(client);
        if (!client->secure) return;
        send_handshake(client);
    }
    size_t length = client->kept_length;
    if (length) memcpy(buffer, client->kept, length);
    ssize_t n = wire_read(client, buffer + length, sizeof buffer - length);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) die("connection %u was lost: %s", client->number, n ? strerror(errno) : "end of file");
    length += (size_t)n;
    size_t used = client->open ? 0 : take_handshake(client, buffer, length);
    if (client->open) used += take_frames(client, buffer + used, length - used);
    client->kept_length = length - used;
    if (client->kept_length) {
        client->kept = realloc(client->kept, client->kept_length);
        if (client->kept == NULL) die("out of memory");
        memcpy(client->kept, buffer + used, client->kept_length);
    }
}

int pump(int timeout_ms) {
    if (client_count == 0) usleep((useconds_t)timeout_ms * 1000);
    struct epoll_event events[EVENTS];
    int n = client_count == 0 ? 0 : epoll_wait(poller, events, EVENTS, timeout_ms);
    for (int i = 0; i < n; i++) {
        read_client(&clients[events[i].data.u32]);
        if (urgent && i % URGENT_EVERY == 0) read_client(urgent);
    }
    if (now() > deadline)
        die("the deadline has passed: %u of %u clients were let in, and not everything arrived", opened,
            client_count);
    return n;
}

void pump_for(double seconds) {
    uint64_t end = now() + (uint64_t)(seconds * 1e9);
    for (uint64_t t = now(); t < end; t = now()) pump((int)((end - t) / 1000000) + 1);
}

void send_all(struct client *client, const uint8_t *bytes, size_t length) {
    while (length) {
        ssize_t n = wire_write(client, bytes, length);
        if (n > 0) {
            bytes += n;
            length -= (size_t)n;
        } else if (errno == EAGAIN) {
            struct pollfd writable = {.fd = client->fd, .events = POLLOUT};
            if (poll(&writable, 1, 1000) == 0) die("connection %u takes nothing", client->number);
        } else {
            die("sending on connection %u: %s", client->number, strerror(errno));
        }
    }
}

static struct sockaddr_in address_of(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void open_client(struct client *client) {
    struct sockaddr_in address = address_of(server_port);
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0 || connect(client->fd, (void *)&address, sizeof address))
        die("connecting number %u: %s", client->number, strerror(errno));
    int on = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* Closing resets: tens of thousands of ports would otherwise stay in TIME_WAIT. */
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    if (manner.tls)
        wire_shake_hands(client);
    else
        send_handshake(client);
    struct epoll_event interest = {.events = EPOLLIN, .data.u32 = client->number};
    epoll_ctl(poller, EPOLL_CTL_ADD, client->fd, &interest);
}

void wait_for_listener(int port) {
    struct sockaddr_in address = address_of(port);
    for (int refused = 1; refused; usleep(1000)) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        refused = connect(fd, (void *)&address, sizeof address);
        if (fd < 0 || (refused && errno != ECONNREFUSED)) die("connecting: %s", strerror(errno));
        close(fd);
        if (now() > deadline) die("the deadline has passed: nothing listens on port %d", port);
    }
}

void open_clients(uint32_t count, int port, const char *path) {
    poller = epoll_create1(EPOLL_CLOEXEC);
    clients = calloc(count, sizeof *clients);
    if (poller < 0 || clients == NULL) die("no epoll or no memory");
    client_count = count;
    server_port = port;
    handshake_path = path;
    opened = 0;
    for (uint32_t i = 0; i < count; i++) {
        clients[i].number = i;
        open_client(&clients[i]);
        if (i % OPEN_AT_ONCE == OPEN_AT_ONCE - 1 || i == count - 1)
            while (opened <= i) pump(100);
    }
}

void close_clients(void) {
    for (uint32_t i = 0; i < client_count; i++) {
        wire_close(&clients[i]);
        close_inflater(&clients[i]);
        free(clients[i].kept);
    }
    close(poller);
    free(clients);
    clients = NULL;
    client_count = 0;
}
