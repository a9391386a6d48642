"""The HTTP server before the sockets: requests have a size, a number and an end.

Tornado by itself waits an hour for a request's headers, and as long again for its body,
and takes in as many requests at the same time as come.

Rules of this file:

1. A request has ``handshake_timeout`` seconds to be read, body included, from the moment
   that the connection is there (or, on one that is kept alive, that the answer before is
   done). What answers it can ask for the same deadline: ``deadline_of``.
2. All deadlines are equally long, so the requests stand in their order, and one timer
   watches the first.
"""

from __future__ import annotations

import asyncio
import socket
import ssl as tls
from collections.abc import Awaitable
from typing import Any, Final

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)

MAX_HEADER_SIZE: Final = 16 * 1024
"""Bytes of a request's headers. Tokens fit well; Tornado's own limit is 64 KiB."""

MAX_BODY_SIZE: Final = 1024 * 1024
"""Bytes of a request's body. A handshake has none; the HTTP API's are small."""

MAX_UNREAD: Final = 4096
"""Requests that may be on their way at the same time, silent connections included: with
some 15 KiB for each, 64 MiB. A handshake is on its way for a few round trips, so this is
more of them than a node can answer; what is over it are clients that do not go on."""


class _Unread(HTTPMessageDelegate):
    """A request that is on its way."""

    __slots__ = ("_connection", "_inner", "_server", "deadline")

    def __init__(
        self,
        server: LimitedServer,
        connection: HTTP1ServerConnection,
        inner: HTTPMessageDelegate,
        deadline: float,
    ) -> None:
        self._server = server
        self._connection = connection
        self._inner = inner
        self.deadline = deadline

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        self._server.was_read(self._connection)
        self._inner.finish()

    def on_connection_close(self) -> None:
        self._inner.on_connection_close()


class LimitedServer(HTTPServer):
    """A server whose requests have to come in time."""

    def initialize(  # type: ignore[override]
        self, app: HTTPServerConnectionDelegate, *, request_timeout: float, **options: Any
    ) -> None:
        super().initialize(app, **options)
        self.conn_params.header_timeout = None  # ours is the deadline
        self._request_timeout = request_timeout
        self._unread: dict[object, _Unread] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        inner = super().start_request(server_conn, request_conn)
        if not isinstance(server_conn, HTTP1ServerConnection):
            return inner
        if len(self._unread) >= MAX_UNREAD:
            # The one that has taken the longest: of those that go on, none takes long.
            self._cut(next(iter(self._unread)))
        deadline = asyncio.get_running_loop().time() + self._request_timeout
        setattr(server_conn, "deadline", deadline)  # noqa: B010  (Tornado's object, our note)
        unread = self._unread[server_conn] = _Unread(self, server_conn, inner, deadline)
        if self._timer is None:
            self._arm()
        return unread

    def was_read(self, server_conn: object) -> None:
        """The request is there as a whole, or never will be."""
        self._unread.pop(server_conn, None)

    def on_close(self, server_conn: object) -> None:
        self.was_read(server_conn)
        super().on_close(server_conn)

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        # With TLS the standard library raises for a client that has sent something and
        # left. Tornado would let it through to the event loop, which reports a fault of
        # the server, one for each such client. There is no public way to step in.
        try:
            super()._handle_connection(connection, address)
        except OSError:
            connection.close()

    async def close_all_connections(self) -> None:
        """End the requests that are under way, and wait for them."""
        await super().close_all_connections()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        for unread in self._unread.values():
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(unread.deadline, self._look)
            break

    def _look(self) -> None:
        """Cut those whose time has run out."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        for server_conn, unread in list(self._unread.items()):
            if unread.deadline > now:
                break
            self._cut(server_conn)
        self._arm()

    def _cut(self, server_conn: Any) -> None:
        del self._unread[server_conn]
        server_conn.stream.close()


def deadline_of(request: HTTPServerRequest) -> float | None:
    """Return when a request has to be through, by the loop's clock.

    None where another server than ours has read it.
    """
    deadline: float | None = getattr(request.server_connection, "deadline", None)
    return deadline


def http_server(
    app: HTTPServerConnectionDelegate,
    *,
    ssl: tls.SSLContext | None = None,
    handshake_timeout: float = 10.0,
) -> HTTPServer:
    """Return a server whose limits suit handshakes."""
    return LimitedServer(
        app,
        request_timeout=handshake_timeout,
        ssl_options=ssl,
        max_header_size=MAX_HEADER_SIZE,
        max_body_size=MAX_BODY_SIZE,
        max_buffer_size=2 * MAX_BODY_SIZE,
    )
