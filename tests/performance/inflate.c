/* permessage-deflate, as far as clients that only read it need it: see client.h.
 *
 * A server without context takeover may send the same bytes to everybody: those are
 * inflated once and then only compared, so that the generator stays light. With context
 * takeover every connection is a stream of its own.
 */
#define _GNU_SOURCE
#include "client.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define LONGEST_MESSAGE (1 << 17)

uint64_t compressed_messages;

static int takeover;
static z_stream shared;
static uint8_t inflated[LONGEST_MESSAGE], known[LONGEST_MESSAGE];
static size_t inflated_length, known_length;

void accept_deflate(const uint8_t *head, size_t length) {
    if (!memmem(head, length, "permessage-deflate", strlen("permessage-deflate")))
        die("permessage-deflate was not accepted");
    const char *without = "server_no_context_takeover";
    takeover = memmem(head, length, without, strlen(without)) == NULL;
}

static z_stream *stream_of(struct client *client) {
    z_stream *stream = takeover ? client->inflater : &shared;
    if (stream == NULL) stream = client->inflater = calloc(1, sizeof *stream);
    if (stream == NULL) die("out of memory");
    if (stream->state == NULL) {
        if (inflateInit2(stream, -MAX_WBITS) != Z_OK) die("no zlib");
    } else if (!takeover) {
        inflateReset(stream);
    }
    return stream;
}

static void feed(struct client *client, z_stream *stream, const uint8_t *bytes, size_t length) {
    stream->next_in = (uint8_t *)bytes;
    stream->avail_in = (uInt)length;
    int result = inflate(stream, Z_SYNC_FLUSH);
    if ((result != Z_OK && result != Z_BUF_ERROR) || stream->avail_in || !stream->avail_out)
        die("connection %u got what can't be inflated", client->number);
}

size_t inflate_message(struct client *client, const uint8_t *payload, size_t length, const uint8_t **out) {
    static const uint8_t tail[] = {0, 0, 0xff, 0xff};
    if (!manner.deflate) die("connection %u got a compressed message", client->number);
    compressed_messages++;
    *out = inflated;
    if (!takeover && length == known_length && !memcmp(payload, known, length)) return inflated_length;
    z_stream *stream = stream_of(client);
    stream->next_out = inflated;
    stream->avail_out = sizeof inflated;
    feed(client, stream, payload, length);
    feed(client, stream, tail, sizeof tail);
    known_length = length;
    memcpy(known, payload, length);
    return inflated_length = sizeof inflated - stream->avail_out;
}

void close_inflater(struct client *client) {
    if (client->inflater) inflateEnd(client->inflater);
    free(client->inflater);
    client->inflater = NULL;
}
