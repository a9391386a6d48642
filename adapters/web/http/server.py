"""The HTTP server: Tornado's, with limits for the size, the number and the time of requests.

Tornado's own waits an hour for the headers of a request and as long for its body, and accepts
any number of requests at the same time.

Rules of this file:

1. A request must be read within ``handshake_timeout`` seconds, body included. The time starts
   with the connection or, on a connection that is kept alive, with the first bytes of the
   request (which may be noticed up to ``handshake_timeout`` late). A handler gets the same
   deadline from ``deadline_of``.
2. A connection that is kept alive may be idle for ``KEEP_ALIVE`` seconds between requests.
3. All deadlines of a kind are equally long, so pending requests are in the order of their
   deadlines, and one timer watches the first of each kind.
4. A request that is refused or aborted before it has a handler is reported to ``refusals``, as
   handlers report theirs.
5. While the server drains, a half-read request is answered with 503.
6. The time of a stall of the event loop does not count, and input that has arrived is read
   before a connection is aborted (``application.stalls``).
7. An answer reaches its client even if the client's input is unread: see ``lingering_close``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl as tls
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, cast

from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
    parse_request_start_line,
)
from tornado.iostream import UnsatisfiableReadError
from tornado.netutil import ssl_wrap_socket

from eyewall.adapters.web.http.acceptor import Acceptor
from eyewall.adapters.web.http.lingering_close import (
    LingeringCloser,
    LingeringStream,
    TlsLingeringStream,
)
from eyewall.adapters.web.http.refusals import RefusalLog
from eyewall.adapters.web.http.request_target import normalize
from eyewall.application.concurrency.stalls import CHANCE, Stalls
from eyewall.domain.handshake import RefusalReason

MAX_HEADER_SIZE: Final = 16 * 1024
"""Bytes of a request's headers. Tokens fit well; Tornado's own limit is 64 KiB."""

MAX_BODY_SIZE: Final = 1024 * 1024
"""Bytes of a request's body. A handshake has none; the HTTP API's are small."""

MAX_PENDING_REQUESTS: Final = 4096
"""Requests that may be half read at the same time, idle connections included: 64 MiB at some
15 KiB each. A handshake takes a few round trips, so a node can't answer more of them. Beyond
the limit, the oldest are clients that do not finish."""

KEEP_ALIVE: Final = 75.0
"""Seconds that a connection may be idle between two requests. Proxies close after 60, and must
be the first to close: otherwise a request meets a closed connection."""

DRAIN_GRACE: Final = 0.5
"""Seconds for the clients of half-read requests to read the 503 and to close."""


def _final_answer(status: str, text: str, *fields: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        *fields,
        "Connection: close",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(text) + 1}",
    ]
    return "\r\n".join([*lines, "", f"{text}\n"]).encode()


_DRAINING_ANSWER: Final = _final_answer(
    "503 Service Unavailable", "try again later", "Retry-After: 1"
)

_HEADERS_TOO_LARGE_ANSWER: Final = _final_answer(
    "431 Request Header Fields Too Large", f"more than {MAX_HEADER_SIZE} bytes of headers"
)

_BAD_REQUEST_ANSWER: Final = _final_answer(
    "400 Bad Request", "this is no request that is served here"
)

_MALFORMED_TEXT: Final = "the request can't be read"
"""The text for the log. Tornado's own texts quote headers, which may contain a token."""


class _ReportingConnection(HTTP1Connection):
    """Tornado's reader of a request, which reports malformed ones to ``malformed``."""

    malformed: Callable[[HTTPHeaders | None], None]

    def _can_keep_alive(self, start_line: RequestStartLine, headers: HTTPHeaders) -> bool:
        # Connection is a list (RFC 9110, 7.6.1). Tornado's own finds "close" only alone.
        options = {option.strip().lower() for option in headers.get("Connection", "").split(",")}
        return "close" not in options and super()._can_keep_alive(start_line, headers)

    def _parse_headers(self, data: bytes) -> tuple[str, HTTPHeaders]:
        try:
            line, headers = super()._parse_headers(data)
            parse_request_start_line(line)  # Tornado's next step, which reports no error
            return line, headers
        except HTTPInputError:
            self.malformed(None)
            raise HTTPInputError(_MALFORMED_TEXT) from None

    def _read_body(
        self, code: int, headers: HTTPHeaders, delegate: HTTPMessageDelegate
    ) -> Awaitable[None] | None:
        try:
            body = super()._read_body(code, headers, delegate)
        except HTTPInputError:
            self.malformed(headers)
            raise HTTPInputError(_MALFORMED_TEXT) from None
        return None if body is None else self._report_malformed_body(body, headers)

    async def _report_malformed_body(self, body: Awaitable[None], headers: HTTPHeaders) -> None:
        try:
            await body
        except HTTPInputError:
            self.malformed(headers)
            raise HTTPInputError(_MALFORMED_TEXT) from None

    def close(self) -> None:
        if isinstance(self.stream, LingeringStream):  # None once detached
            self.stream.close_gracefully()
        super().close()


class _PendingRequest(HTTPMessageDelegate):
    """A request that is half read, or a connection that waits for one."""

    __slots__ = ("_connection", "_inner", "_server", "deadline", "had_grace", "headers")

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
        self.had_grace = False
        """Whether it has had the ``CHANCE`` seconds after a stall."""
        self.headers: HTTPHeaders | None = None
        _stream_of(connection).overflow_answer = _HEADERS_TOO_LARGE_ANSWER

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self.headers = headers
        _stream_of(
            self._connection
        ).overflow_answer = _BAD_REQUEST_ANSWER  # from now on, a chunk size
        self._server.request_started(self._connection)
        try:
            line = normalize(cast("RequestStartLine", start_line), headers)
            return self._inner.headers_received(line, headers)
        except HTTPInputError:
            self._server.malformed(self._connection, headers)
            raise HTTPInputError(_MALFORMED_TEXT) from None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        self._server.request_read(self._connection)
        self._inner.finish()

    def on_connection_close(self) -> None:
        if self.headers is not None:  # otherwise it has no handler yet
            self._inner.on_connection_close()


class LimitedServer(HTTPServer):
    """An HTTP server whose requests are limited in size, number and time.

    Requests without a handler are reported to ``refusals``. ``paused`` is called for each pause
    in accepting. ``stalls`` watches the event loop.
    """

    def initialize(  # type: ignore[override]
        self,
        app: HTTPServerConnectionDelegate,
        *,
        request_timeout: float,
        refusals: RefusalLog | None = None,
        paused: Callable[[OSError], None] | None = None,
        stalls: Stalls | None = None,
        **options: Any,
    ) -> None:
        super().initialize(app, **options)
        self.conn_params.header_timeout = None  # replaced by the deadlines of this class
        self._request_timeout = request_timeout
        self._idle_timeout = max(KEEP_ALIVE, request_timeout)
        self._refusals = refusals
        self._acceptor = Acceptor(paused or (lambda _: None))
        self._closer = LingeringCloser()
        self._pending: dict[HTTP1ServerConnection, _PendingRequest] = {}
        self._idle: dict[HTTP1ServerConnection, _PendingRequest] = {}
        """Connections that have had an answer, and wait for their next request."""
        self._timer: asyncio.TimerHandle | None = None
        self._stalls = stalls
        if stalls is not None:
            stalls.on_stall(self._on_stall)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        for sock in sockets:
            self._sockets[sock.fileno()] = sock
            self._handlers[sock.fileno()] = self._acceptor.add(sock, self._handle_connection)

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        inner = super().start_request(server_conn, request_conn)
        if not isinstance(server_conn, HTTP1ServerConnection):
            return inner
        if isinstance(request_conn, HTTP1Connection):
            request_conn.__class__ = _ReportingConnection
            cast("_ReportingConnection", request_conn).malformed = partial(
                self.malformed, server_conn
            )
        if len(self._pending) + len(self._idle) >= MAX_PENDING_REQUESTS:
            self._evict_one()
        is_first = not hasattr(server_conn, "deadline")
        waiting, within = (
            (self._pending, self._request_timeout)
            if is_first or _has_bytes(server_conn)
            else (self._idle, self._idle_timeout)
        )
        deadline = asyncio.get_running_loop().time() + within
        setattr(server_conn, "deadline", deadline)  # noqa: B010  (an attribute on Tornado's object)
        unread = waiting[server_conn] = _PendingRequest(self, server_conn, inner, deadline)
        self._schedule_check()
        return unread

    def request_started(self, server_conn: HTTP1ServerConnection) -> None:
        """Start the deadline of a request: its first bytes have arrived."""
        unread = self._idle.pop(server_conn, None)
        if unread is not None:
            unread.deadline = asyncio.get_running_loop().time() + self._request_timeout
            setattr(server_conn, "deadline", unread.deadline)  # noqa: B010
            self._pending[server_conn] = unread
            self._schedule_check()

    def request_read(self, server_conn: HTTP1ServerConnection) -> None:
        """Forget a request that was read or whose connection is closed."""
        self._pending.pop(server_conn, None)
        self._idle.pop(server_conn, None)

    def malformed(self, server_conn: HTTP1ServerConnection, headers: HTTPHeaders | None) -> None:
        """Report a request that is no HTTP. Tornado answers it with 400."""
        self._report(server_conn, RefusalReason.MALFORMED, 400, headers)

    def on_close(self, server_conn: object) -> None:
        conn = cast("HTTP1ServerConnection", server_conn)
        self.request_read(conn)
        if isinstance(conn.stream.error, UnsatisfiableReadError):
            if _stream_of(conn).overflow_answer is _HEADERS_TOO_LARGE_ANSWER:
                self._report(conn, RefusalReason.HEADERS, 431)
            else:
                self._report(conn, RefusalReason.MALFORMED, 400)
        super().on_close(server_conn)

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        # Replaces Tornado's own, for two reasons. It creates lingering streams. And with TLS
        # the standard library raises for a client that has sent something and left; that is no
        # error of the server to be reported by the event loop.
        try:
            stream = self._stream(connection)
        except OSError:
            connection.close()
            return
        stream.closer = self._closer
        self.handle_stream(stream, address)

    def _stream(self, connection: socket.socket) -> LingeringStream:
        sizes = {"max_buffer_size": self.max_buffer_size, "read_chunk_size": self.read_chunk_size}
        if self.ssl_options is None:
            return LingeringStream(connection, **sizes)
        secured = ssl_wrap_socket(
            connection, self.ssl_options, server_side=True, do_handshake_on_connect=False
        )
        return TlsLingeringStream(secured, **sizes)

    async def refuse_pending(self) -> None:
        """Answer half-read requests with 503, and wait up to ``DRAIN_GRACE`` for their clients."""
        for conn, unread in [*self._pending.items(), *self._idle.items()]:
            if unread.headers is None and not _has_bytes(conn):
                continue  # an idle connection
            _stream_of(conn).close_gracefully(_DRAINING_ANSWER)
            self._report(conn, RefusalReason.DRAINING, 503, unread.headers)
        await self._closer.wait_closed(DRAIN_GRACE)

    async def close_all_connections(self) -> None:
        """Close all connections, and wait for that."""
        await super().close_all_connections()
        if self._stalls is not None:
            self._stalls.forget(self._on_stall)
        self._closer.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule_check(self) -> None:
        if self._timer is None and (self._pending or self._idle):
            loop = asyncio.get_running_loop()
            # The first bytes on an idle connection are not reported, so it is polled.
            due = loop.time() + self._request_timeout
            for waiting in (self._pending, self._idle):
                if waiting:
                    due = min(due, next(iter(waiting.values())).deadline)
            self._timer = loop.call_at(due, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """Abort the requests and close the idle connections whose deadlines have passed."""
        self._timer = None
        if self._stalls is not None:
            self._stalls.detect()  # extends the deadlines after a stall
        now = asyncio.get_running_loop().time()
        for server_conn in [conn for conn in self._idle if _has_bytes(conn)]:
            self.request_started(server_conn)
        for server_conn, unread in list(self._pending.items()):
            if unread.deadline > now:
                break
            self._abort(server_conn, RefusalReason.TIMEOUT)
        for server_conn, unread in list(self._idle.items()):
            if unread.deadline > now:
                break
            self._close_idle(server_conn)
        self._schedule_check()

    def _on_stall(self, seconds: float) -> None:
        """Extend all deadlines by a stall. Each request has, once, at least ``CHANCE`` seconds
        after it."""
        soon = asyncio.get_running_loop().time() + min(CHANCE, self._request_timeout)
        for server_conn, unread in [*self._pending.items(), *self._idle.items()]:
            unread.deadline += seconds
            if unread.deadline < soon and not unread.had_grace:
                unread.had_grace = True
                unread.deadline = soon
            setattr(server_conn, "deadline", unread.deadline)  # noqa: B010

    def _evict_one(self) -> None:
        """Close the oldest idle connection, or abort the oldest pending request."""
        if self._idle:
            self._close_idle(next(iter(self._idle)))
        else:
            self._abort(next(iter(self._pending)), RefusalReason.OVERLOADED)

    def _abort(self, server_conn: HTTP1ServerConnection, reason: RefusalReason) -> None:
        unread = self._pending.pop(server_conn)
        server_conn.stream.close()
        self._report(server_conn, reason, None, unread.headers)

    def _close_idle(self, server_conn: HTTP1ServerConnection) -> None:
        del self._idle[server_conn]
        server_conn.stream.close()

    def _report(
        self,
        server_conn: HTTP1ServerConnection,
        reason: RefusalReason,
        status: int | None,
        headers: HTTPHeaders | None = None,
    ) -> None:
        if self._refusals is not None:
            peer = getattr(server_conn.context, "remote_ip", None)
            self._refusals.report(reason, status, headers=headers, peer=peer)


def _has_bytes(server_conn: HTTP1ServerConnection) -> bool:
    """Whether input was read ahead that no request has taken yet."""
    return bool(server_conn.stream._read_buffer)  # noqa: SLF001  (there is no public way)


def _stream_of(server_conn: HTTP1ServerConnection) -> LingeringStream:
    return cast("LingeringStream", server_conn.stream)  # created by ``_handle_connection``


def close_if_pipelined(request: HTTPServerRequest) -> None:
    """Close the connection after the answer if the client has sent more already.

    Behind an upgrade request these are frames, which would be read as a request.
    """
    connection = request.connection
    if isinstance(connection, HTTP1Connection) and connection.stream._read_buffer:  # noqa: SLF001
        connection._disconnect_on_finish = True  # noqa: SLF001  (there is no public way)


def deadline_of(request: HTTPServerRequest) -> float | None:
    """Return the deadline of a request by the event loop's clock.

    None if another server than ``LimitedServer`` has read it.
    """
    deadline: float | None = getattr(request.server_connection, "deadline", None)
    return deadline


def http_server(
    app: HTTPServerConnectionDelegate,
    *,
    ssl: tls.SSLContext | None = None,
    handshake_timeout: float = 10.0,
    refusals: RefusalLog | None = None,
    paused: Callable[[OSError], None] | None = None,
    stalls: Stalls | None = None,
) -> LimitedServer:
    """Return a server with limits that suit handshakes."""
    return LimitedServer(
        app,
        request_timeout=handshake_timeout,
        refusals=refusals,
        paused=paused,
        stalls=stalls,
        ssl_options=ssl,
        max_header_size=MAX_HEADER_SIZE,
        max_body_size=MAX_BODY_SIZE,
        max_buffer_size=2 * MAX_BODY_SIZE,
    )
