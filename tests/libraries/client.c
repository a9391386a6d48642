/* A client on libwebsockets: client HOST PORT TLS DEFLATE SLOW TRUSTED
 *
 * Asks for 100 messages and a close; prints each message on a line, then the close code.
 * TLS, DEFLATE and SLOW are 0 or 1, TRUSTED is a certificate's file.
 */

#include <libwebsockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char ask[] = "{\"topic\": \"go\"}";
static int slow, asked, done;
static unsigned code = 1006;

static int on_event(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
                    size_t len)
{
    (void)user;
    switch (reason) {
    case LWS_CALLBACK_CLIENT_ESTABLISHED:
        lws_callback_on_writable(wsi);
        break;
    case LWS_CALLBACK_CLIENT_WRITEABLE:
        if (!asked) {
            unsigned char buffer[LWS_PRE + sizeof ask];
            asked = 1;
            memcpy(buffer + LWS_PRE, ask, sizeof ask - 1);
            lws_write(wsi, buffer + LWS_PRE, sizeof ask - 1, LWS_WRITE_TEXT);
        }
        break;
    case LWS_CALLBACK_CLIENT_RECEIVE:
        fwrite(in, 1, len, stdout);
        if (lws_is_final_fragment(wsi)) {
            putchar('\n');
            if (slow)
                usleep(2000);
        }
        break;
    case LWS_CALLBACK_WS_PEER_INITIATED_CLOSE:
        if (len >= 2)
            code = ((unsigned char *)in)[0] << 8 | ((unsigned char *)in)[1];
        break;
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
    case LWS_CALLBACK_CLIENT_CLOSED:
        done = 1;
        lws_cancel_service(lws_get_context(wsi));
        break;
    default:
        break;
    }
    return 0;
}

static const struct lws_protocols protocols[] = {
    {"eyewall.v1.none", on_event, 0, 8192, 0, NULL, 0},
    {NULL, NULL, 0, 0, 0, NULL, 0},
};

static const struct lws_extension extensions[] = {
    {"permessage-deflate", lws_extension_callback_pm_deflate,
     "permessage-deflate; client_no_context_takeover; client_max_window_bits"},
    {NULL, NULL, NULL},
};

int main(int argc, char **argv)
{
    if (argc != 7)
        return 2;
    slow = atoi(argv[5]);
    lws_set_log_level(LLL_ERR, NULL);
    struct lws_context_creation_info info = {
        .port = CONTEXT_PORT_NO_LISTEN,
        .protocols = protocols,
        .options = LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT,
        .client_ssl_ca_filepath = argv[6],
        .extensions = atoi(argv[4]) ? extensions : NULL,
        .gid = -1,
        .uid = -1,
    };
    struct lws_context *context = lws_create_context(&info);
    struct lws_client_connect_info to = {
        .context = context,
        .address = argv[1],
        .port = atoi(argv[2]),
        .path = "/ws",
        .host = argv[1],
        .ssl_connection = atoi(argv[3]) ? LCCSCF_USE_SSL : 0,
        .local_protocol_name = protocols[0].name,
    };
    if (context == NULL || lws_client_connect_via_info(&to) == NULL)
        return 1;
    while (!done && lws_service(context, 0) >= 0)
        ;
    lws_context_destroy(context);
    printf("%u\n", code);
    return 0;
}
