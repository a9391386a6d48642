/* The floor of a fan-out: nothing but `send` (or `sendmsg`) in a loop over the members.
 *
 *     floor MEMBERS
 *
 * Prints `READY PORT`, takes MEMBERS connections, and then, for every line
 * `FIRST COUNT FILL` on standard input, sends each of them COUNT text frames with the
 * sequence numbers FIRST, FIRST + 1, ... and FILL bytes of padding: one `send` for one
 * frame, one `sendmsg` for several. It knows nothing of WebSockets beyond that: whoever
 * connects is told 101, and what the members send is never read. It ends when standard
 * input does, when its parent dies, or after LIFETIME.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define LIFETIME 600 /* seconds */
#define MOST_FRAMES 64
#define LONGEST 70000

/* The load generator sends one and the same key, so one answer fits them all. */
static const char ANSWER[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                             "Connection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int listen_on_loopback(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    if (listener < 0 || bind(listener, (void *)&address, sizeof address) || listen(listener, 1024))
        fail("listen");
    getsockname(listener, (void *)&address, &length);
    printf("READY %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static int accept_member(int listener) {
    char request[4096];
    size_t length = 0;
    int member = accept(listener, NULL, NULL);
    if (member < 0) fail("accept");
    while (memmem(request, length, "\r\n\r\n", 4) == NULL) {
        ssize_t n = recv(member, request + length, sizeof request - length, 0);
        if (n <= 0) fail("handshake");
        length += (size_t)n;
    }
    int on = 1;
    setsockopt(member, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (send(member, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL) < 0) fail("handshake");
    return member;
}

/* Writes one unmasked text frame; returns its length. */
static size_t build_frame(uint8_t *out, unsigned sequence, size_t fill) {
    size_t payload = sizeof "{\"seq\":0123456789,\"pad\":\"\"}" - 1 + fill, at = 2;
    out[0] = 0x81;
    if (payload < 126) {
        out[1] = (uint8_t)payload;
    } else if (payload < 65536) {
        out[1] = 126;
        out[2] = (uint8_t)(payload >> 8);
        out[3] = (uint8_t)payload;
        at = 4;
    } else {
        out[1] = 127;
        for (int i = 0; i < 8; i++) out[2 + i] = (uint8_t)((uint64_t)payload >> (56 - 8 * i));
        at = 10;
    }
    at += (size_t)sprintf((char *)out + at, "{\"seq\":%010u,\"pad\":\"", sequence);
    memset(out + at, 'x', fill);
    memcpy(out + at + fill, "\"}", 2);
    return at + fill + 2;
}

static void fan_out(const int *members, int count, struct iovec *frames, unsigned frame_count) {
    struct msghdr message = {.msg_iov = frames, .msg_iovlen = frame_count};
    for (int i = 0; i < count; i++) {
        ssize_t sent = frame_count == 1
                           ? send(members[i], frames[0].iov_base, frames[0].iov_len, MSG_NOSIGNAL)
                           : sendmsg(members[i], &message, MSG_NOSIGNAL);
        if (sent < 0) fail("send");
    }
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(LIFETIME);
    int count = argc > 1 ? atoi(argv[1]) : 0;
    int *members = calloc((size_t)count + 1, sizeof *members);
    uint8_t *space = malloc((size_t)MOST_FRAMES * (LONGEST + 64));
    if (count < 1 || members == NULL || space == NULL) {
        fprintf(stderr, "usage: floor MEMBERS\n");
        return 2;
    }

    int listener = listen_on_loopback();
    for (int i = 0; i < count; i++) members[i] = accept_member(listener);

    char line[128];
    while (fgets(line, sizeof line, stdin)) {
        unsigned first, frame_count, fill;
        struct iovec frames[MOST_FRAMES];
        if (sscanf(line, "%u %u %u", &first, &frame_count, &fill) != 3 || frame_count < 1 ||
            frame_count > MOST_FRAMES || fill > LONGEST) {
            fprintf(stderr, "floor: can't do: %s", line);
            return 2;
        }
        for (unsigned i = 0; i < frame_count; i++) {
            frames[i].iov_base = space + (size_t)i * (LONGEST + 64);
            frames[i].iov_len = build_frame(frames[i].iov_base, first + i, fill);
        }
        fan_out(members, count, frames, frame_count);
    }
    return 0;
}
