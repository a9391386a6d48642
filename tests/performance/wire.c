/* What the clients read from and write to: TCP, with or without TLS on top; see client.h. */
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

static SSL_CTX *context;

static void make_context(void) {
    context = SSL_CTX_new(TLS_client_method());
    if (context == NULL) die("no TLS");
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    /* Thousands of clients: what they hold must not crowd out what is measured. */
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
}

/* Translates into what a socket would have returned. */
static ssize_t outcome(struct client *client, int result) {
    switch (SSL_get_error(client->tls, result)) {
    case SSL_ERROR_NONE: return result;
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
    case SSL_ERROR_ZERO_RETURN: return 0;
    case SSL_ERROR_SYSCALL: return errno ? -1 : 0;
    default:
        die("TLS on connection %u: %s", client->number, ERR_reason_error_string(ERR_get_error()));
    }
}

int wire_shake_hands(struct client *client) {
    if (context == NULL) make_context();
    if (client->tls == NULL) {
        client->tls = SSL_new(context);
        if (client->tls == NULL || !SSL_set_fd(client->tls, client->fd)) die("no TLS");
    }
    errno = 0;
    return outcome(client, SSL_connect(client->tls)) == 1;
}

ssize_t wire_read(struct client *client, uint8_t *bytes, size_t length) {
    if (client->tls == NULL) return recv(client->fd, bytes, length, MSG_DONTWAIT);
    errno = 0;
    return outcome(client, SSL_read(client->tls, bytes, (int)length));
}

ssize_t wire_write(struct client *client, const uint8_t *bytes, size_t length) {
    if (client->tls == NULL) return send(client->fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    errno = 0;
    return outcome(client, SSL_write(client->tls, bytes, (int)length));
}

void wire_close(struct client *client) {
    close(client->fd);
    SSL_free(client->tls);
    client->tls = NULL;
}
