"""The opening handshake (RFC 6455, 4.2): from an HTTP request to an open connection.

Tornado reads the request. This module checks it, answers it and detaches the socket.
Rules of this file:

1. An error before the connection is open is answered in HTTP, and releases the reservation.
   The answer is written first, the log line after it.
2. Every refusal goes through ``_refuse`` or ``_abort``, which count and log it (``refusals``).
3. A client that the authenticator refuses is answered in HTTP. With ``refuse_with="close"`` the
   upgrade is accepted and closed at once, and the application never sees the connection. A
   foreign origin is always answered in HTTP, so that its script learns nothing.
4. An exception from the application's code, ``CancelledError`` and ``SystemExit`` included, fails
   that handshake only.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import inspect
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tornado.httputil import HTTPHeaders, parse_cookie

from eyewall.adapters.web.http.credentials import error_fields, hint_for
from eyewall.adapters.web.http.origin import Hosts, Origins
from eyewall.adapters.web.http.proxies import TrustedProxies
from eyewall.adapters.web.http.refusals import RefusalLog, sanitized
from eyewall.adapters.web.http.request_target import AbsoluteFormMatcher, RedactingHandler
from eyewall.adapters.web.http.server import close_if_pipelined, deadline_of
from eyewall.adapters.web.protocol.deflate import CompressionConfig, DeflateFormat
from eyewall.adapters.web.protocol.frames import PlainFormat, WebSocketFormat
from eyewall.adapters.web.protocol.negotiation import negotiate
from eyewall.adapters.web.sockets.link import SocketLink
from eyewall.adapters.web.sockets.loop import SocketLoop
from eyewall.adapters.web.sockets.tcp import detach_socket
from eyewall.adapters.web.sockets.tls import create_link
from eyewall.application.concurrency.stalls import CHANCE
from eyewall.application.concurrency.tasks import is_end
from eyewall.application.ports.logging import shown
from eyewall.application.ports.message import Codec
from eyewall.application.ports.transport import ConnectionSlot
from eyewall.domain.connection import DisconnectReason, close_frame
from eyewall.domain.errors import (
    Overloaded,
    RateLimited,
    Refused,
    ShuttingDown,
    Unavailable,
    wait_of,
)
from eyewall.domain.handshake import Fields, Handshake, Headers, RefusalReason, RefuseWith
from eyewall.domain.identity import ConnMeta

T = TypeVar("T")

_RESERVED = frozenset({"self", "transforms"})
"""Names that a group of a path can't have: Tornado passes groups as keywords beside these."""

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 1.3."""

MAX_HEADERS: Final = 100
"""Header fields of a handshake. A browser behind two proxies sends some thirty. Each is parsed,
and kept in memory while an authenticator waits."""

MISSING_UPGRADE_HINT: Final = (
    "a WebSocket handshake came without its upgrade: the proxy in front must speak HTTP/1.1, "
    "and pass Upgrade and Connection on"
)

MAX_PENDING_DECISIONS: Final = 4096
"""Handshakes that may wait for an origin check or an authenticator at the same time: 80 MiB at
some 20 KiB each. An authenticator that takes 0.1 s then accepts 40,000 clients a second, and
one that hangs does not exhaust the node."""


class Refusal(Exception):
    """A handshake is refused with an HTTP status, a text for the body and header fields."""

    def __init__(
        self,
        reason: RefusalReason,
        status: int,
        text: str,
        *,
        hint: str | None = None,
        **headers: str,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.status = status
        self.hint = hint
        """A hint for the log: what the operator of the server can do about it."""
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def try_later(
    retry_after: float, reason: RefusalReason = RefusalReason.OVERLOADED, **headers: str
) -> Refusal:
    """Return a 503 that asks the client to come back after ``retry_after`` seconds."""
    wait = str(max(1, math.ceil(wait_of(retry_after))))
    return Refusal(reason, 503, "try again later", Retry_After=wait, **headers)


def draining() -> Refusal:
    """Return a 503 that sends the client to another node, or to this one when it runs again."""
    return try_later(1.0, RefusalReason.DRAINING, Connection="close")


def check_header_count(headers: HTTPHeaders) -> None:
    """Raise ``Refusal`` if there are more than ``MAX_HEADERS`` fields."""
    if sum(1 for _ in headers.get_all()) > MAX_HEADERS:
        raise Refusal(RefusalReason.HEADERS, 431, f"more than {MAX_HEADERS} header fields")


def check_upgrade(method: str | None, headers: HTTPHeaders, http: str = "HTTP/1.1") -> str:
    """Return the ``Sec-WebSocket-Accept`` for an upgrade request (RFC 6455, 4.2.1).

    ``http`` is the HTTP version of the request: in 1.0, ``Upgrade`` means nothing (RFC 9110,
    7.8). Raises ``Refusal`` if the request is no upgrade, or its key is wrong.
    """
    upgrade = {token.strip().lower() for token in headers.get("Upgrade", "").split(",")}
    connection = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    version = headers.get("Sec-WebSocket-Version", "").strip()
    is_upgrade = method == "GET" and http != "HTTP/1.0"
    is_upgrade = is_upgrade and "websocket" in upgrade and "upgrade" in connection
    if not is_upgrade or version != "13":
        raise Refusal(
            RefusalReason.NOT_AN_UPGRADE,
            426,
            "this is a WebSocket (version 13)",
            hint=None if is_upgrade or "Sec-WebSocket-Key" not in headers else MISSING_UPGRADE_HINT,
            Upgrade="websocket",
            Connection="Upgrade",
            Sec_WebSocket_Version="13",
        )
    key = headers.get("Sec-WebSocket-Key", "").strip()
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise Refusal(RefusalReason.KEY, 400, "Sec-WebSocket-Key must be 16 bytes in base64")
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()  # noqa: S324


def switching_protocols(accept: str, subprotocol: str | None, extensions: str | None) -> bytes:
    """Return the head of the answer 101."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept}",
    ]
    if subprotocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    if extensions is not None:
        lines.append(f"Sec-WebSocket-Extensions: {extensions}")
    return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeConfig:
    """The rules by which handshakes are accepted."""

    timeout: float
    """Seconds for a whole handshake, the decisions of the application included."""
    origins: Origins
    hosts: Hosts
    proxies: TrustedProxies
    refusals: RefusalLog
    refuse_with: RefuseWith


class HandshakeEndpoint:
    """Accepts handshakes for one gateway, from ``open`` to ``close``.

    The first of ``codecs`` serves clients that name no subprotocol. Without ``compression`` no
    message is compressed.
    """

    def __init__(
        self,
        io: SocketLoop,
        config: HandshakeConfig,
        codecs: Sequence[Codec],
        compression: CompressionConfig | None = None,
    ) -> None:
        self.io = io
        self.config = config
        plain = [PlainFormat(codec) for codec in codecs]
        self._codecs: Sequence[tuple[Codec, WebSocketFormat]] = list(
            zip(codecs, plain, strict=True)
        )
        self._compressed: Mapping[str, WebSocketFormat] = (
            {}
            if compression is None
            else {each.name: DeflateFormat(each, compression) for each in plain}
        )
        """The format for a client that accepts compression, by the name of the plain one."""
        self.is_open = False
        self.pending_decisions: dict[asyncio.Timeout, HandshakeHandler] = {}
        """Handshakes that wait for an origin check or an authenticator, by the timeout of each."""

    def routes(self, path: str) -> list[Any]:
        """Return rules for a Tornado application, which accept handshakes at ``path``.

        Raises ``ValueError`` for a path that is no regular expression, or whose groups have
        names that Tornado reserves.
        """
        try:
            names = set(re.compile(path).groupindex)
        except re.error as error:
            raise ValueError(f"routes: {path!r} is no regular expression: {error}") from None
        if names & _RESERVED:
            raise ValueError(f"routes: no group may be called {' or '.join(names & _RESERVED)}")
        options = {"endpoint": self}
        return [
            (path, HandshakeHandler, options),
            (AbsoluteFormMatcher(path), HandshakeHandler, options),
        ]

    def open(self) -> None:
        """Accept handshakes from now on."""
        self.is_open = True

    def close(self) -> None:
        """Accept no more handshakes, and answer those that wait for a decision with 503."""
        self.is_open = False
        for limit, handler in list(self.pending_decisions.items()):
            handler.refuse_draining()
            if not limit.expired():
                limit.reschedule(self.io.loop.time())

    def choose_codec(self, offered: Sequence[str]) -> tuple[Codec, WebSocketFormat, bool]:
        """Return the codec for the subprotocols that a client offers, its format, and whether a
        subprotocol was negotiated."""
        known = {codec.subprotocol: (codec, wire) for codec, wire in self._codecs}
        for name in offered:
            if name in known:
                return *known[name], True
        return *self._codecs[0], False

    def negotiate_compression(
        self, wire: WebSocketFormat, offers: Sequence[str]
    ) -> tuple[WebSocketFormat, str | None]:
        """Return the format for a client that made these offers, and the
        ``Sec-WebSocket-Extensions`` to answer with; None if there is no compression."""
        agreed = negotiate(offers) if self._compressed else None
        return (wire, None) if agreed is None else (self._compressed[wire.name], agreed)


class _HandshakeTimeout(Exception):
    """The time for the handshake is over."""


class _AlreadyOver(Exception):
    """The client has left, or was answered already."""


class HandshakeHandler(RedactingHandler):
    """Answers one handshake."""

    def initialize(self, endpoint: HandshakeEndpoint) -> None:
        self._endpoint = endpoint
        self._config = endpoint.config
        self._io = endpoint.io

    async def get(self, /, *_: str, **params: str | None) -> None:
        """Answer a request of any method: only a GET can be an upgrade."""
        reservation: ConnectionSlot | None = None
        request = self.request
        try:
            if not self._endpoint.is_open:
                raise draining()
            check_header_count(request.headers)
            if not self._config.hosts.allow(request.headers.get_list("Host")):
                raise Refusal(RefusalReason.HOST, 403, "this host is not served here")
            accept = check_upgrade(request.method, request.headers, request.version)
            handshake = self._handshake(params)
            await self._check_origin(handshake)
            reservation = self._reserve(handshake)
            meta = await self._authenticate_or_close(handshake, accept)
            link, session = await self._upgrade(accept, handshake)
        except Refusal as refusal:
            self._refuse(refusal)
        except _HandshakeTimeout:
            self._abort()
        except _AlreadyOver:
            pass
        else:
            reserved, reservation = reservation, None  # the connection releases it
            await self._open(link, meta, reserved, session=session)
        finally:
            if reservation is not None:
                reservation.release()

    head = post = put = patch = delete = options = get

    def check_xsrf_cookie(self) -> None:
        """Do nothing: a handshake has its origin checked instead."""

    def refuse_draining(self) -> None:
        """Answer with 503 now, before the pending decision."""
        self._refuse(draining())

    # --- checks

    def _handshake(self, params: Mapping[str, str | None]) -> Handshake:
        request = self.request
        headers = Headers(request.headers.get_all())
        offered = [
            name.strip() for v in headers.all("Sec-WebSocket-Protocol") for name in v.split(",")
        ]
        query = [
            (name, value.decode(errors="replace"))
            for name, values in request.query_arguments.items()
            for value in values
        ]
        return Handshake(
            path=request.path,
            query=Fields(query),
            headers=headers,
            # HTTP/2 splits cookies into several fields, and a proxy may forward them so.
            # Joined they are one list (RFC 9113, 8.2.3).
            cookies=parse_cookie("; ".join(headers.all("Cookie"))),
            ip=self._config.proxies.client(request.remote_ip, headers.all("X-Forwarded-For")),
            subprotocols=tuple(name for name in offered if name),
            params={name: value for name, value in params.items() if value is not None},
        )

    async def _check_origin(self, handshake: Handshake) -> None:
        origins, hosts = handshake.headers.all("Origin"), self._hosts(handshake)
        try:
            allowed = self._config.origins.allow(origins, handshake, hosts)
            if inspect.isawaitable(allowed):
                allowed = await self._in_time(allowed)
        except (Refusal, _HandshakeTimeout, _AlreadyOver):
            raise
        except BaseException as error:
            raise _internal_error(error, RefusalReason.ORIGIN_CHECK_FAILED) from error
        if not allowed:
            hint = self._config.origins.why_refused(
                [sanitized(text) for text in origins], [sanitized(text) for text in hosts]
            )
            raise Refusal(RefusalReason.ORIGIN, 403, "this origin is not allowed", hint=hint)

    def _hosts(self, handshake: Handshake) -> list[str]:
        headers, peer = handshake.headers, self.request.remote_ip
        return self._config.proxies.hosts(
            peer, headers.all("Host"), headers.all("X-Forwarded-Host")
        )

    def _reserve(self, handshake: Handshake) -> ConnectionSlot:
        try:
            return self._io.transport_events.reserve(handshake.ip)
        except ShuttingDown as error:
            raise draining() from error
        except Overloaded as error:
            raise try_later(error.retry_after, RefusalReason.CONNECTIONS) from error

    async def _authenticate_or_close(self, handshake: Handshake, accept: str) -> ConnMeta:
        """Return the metadata of an authenticated client.

        If the authenticator refuses it, raises ``Refusal`` for an answer in HTTP, or, with
        ``refuse_with="close"``, sends the close code and raises ``_AlreadyOver``.
        """
        try:
            return await self._authenticate(handshake)
        except Refusal as refusal:
            unauthorized = refusal.reason is RefusalReason.UNAUTHORIZED
            if not unauthorized or self._config.refuse_with is RefuseWith.HTTP:
                raise
            refused = refusal
        await self._accept_and_close(accept, handshake, refused)
        raise _AlreadyOver

    async def _authenticate(self, handshake: Handshake) -> ConnMeta:
        try:
            meta = self._io.transport_events.authenticate(handshake)
            return await self._in_time(meta) if inspect.isawaitable(meta) else meta
        except (Refusal, _HandshakeTimeout, _AlreadyOver):
            raise
        except ShuttingDown as error:
            raise draining() from error
        except RateLimited as error:
            raise try_later(error.retry_after, RefusalReason.RATE_LIMITED) from error
        except Overloaded as error:
            raise try_later(error.retry_after) from error
        except Unavailable as error:
            raise try_later(1.0, RefusalReason.UNAVAILABLE) from error
        except Refused as error:
            if error.retryable:
                raise try_later(1.0, RefusalReason.UNAVAILABLE) from error
            # RFC 9110, 15.5.2: a 401 names a scheme of authentication.
            raise Refusal(
                RefusalReason.UNAUTHORIZED, 401, "authentication failed", WWW_Authenticate="Bearer"
            ) from error
        except BaseException as error:
            raise _internal_error(error, RefusalReason.AUTHENTICATOR_FAILED) from error

    async def _in_time(self, decision: Awaitable[T]) -> T:
        """Return what ``decision`` comes to.

        Raises ``_HandshakeTimeout`` when the time for the handshake has run out, and
        ``_AlreadyOver`` when the handshake was answered meanwhile.
        """
        io, pending = self._io, self._endpoint.pending_decisions
        if len(pending) >= MAX_PENDING_DECISIONS:
            _cancel(decision)
            raise try_later(1.0)
        loop = io.loop
        deadline = deadline_of(self.request) or loop.time() + self._config.timeout
        limit = asyncio.timeout(None)
        # The timeout's own timer could fire before an answer that has arrived is read. The
        # deadlines of the node fire after that.
        left = deadline - loop.time()
        until = io.clock.now() + (max(left, CHANCE) if io.stalls.is_recent else left)
        timer = io.deadlines.at(until, lambda: _expire(limit, loop.time()))
        pending[limit] = self
        try:
            async with limit:
                decided = await decision
        except TimeoutError:
            if limit.expired():
                raise (_AlreadyOver if self._finished else _HandshakeTimeout) from None
            raise
        finally:
            timer.cancel()
            del pending[limit]
        if self._finished:  # answered meanwhile, and the decision ignored its cancellation
            raise _AlreadyOver
        return decided

    # --- refusals

    def _refuse(self, refusal: Refusal) -> None:
        if self._finished:
            return
        self.set_status(refusal.status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        if "Upgrade" in self.request.headers:
            close_if_pipelined(self.request)
        self.finish(f"{refusal}\n")
        if refusal.__cause__ is not None and refusal.status == 500:
            is_internal = refusal.reason is RefusalReason.INTERNAL
            event = "handshake_failed" if is_internal else refusal.reason.value
            self._io.logger.error(event, **error_fields(refusal.__cause__, self.request))
        self._report(refusal.reason, refusal.status, hint=self._hint(refusal))

    def _hint(self, refusal: Refusal) -> Callable[[], str | None]:
        """Return a function for the log's hint: the refusal's own, or that of its cause."""
        return lambda: refusal.hint or hint_for(refusal.__cause__, self.request)

    async def _accept_and_close(self, accept: str, handshake: Handshake, refusal: Refusal) -> None:
        """Accept the upgrade and close with a code that the client's script can read."""
        try:
            link, _ = await self._upgrade(accept, handshake)
        except _AlreadyOver as over:
            if not isinstance(over.__cause__, ConnectionError):
                raise  # reported already
        else:
            self._io.close_refused(link)
        code, _ = close_frame(DisconnectReason.AUTH_FAILED)
        self._report(refusal.reason, 101, hint=self._hint(refusal), close=code)

    def _abort(self) -> None:
        self.detach().close()
        self._report(RefusalReason.TIMEOUT, None)

    def _report(self, reason: RefusalReason, status: int | None, **more: Any) -> None:
        request = self.request
        self._config.refusals.report(
            reason, status, headers=request.headers, peer=request.remote_ip, **more
        )

    def log_exception(self, *_: Any) -> None:
        """Do nothing: ``_refuse`` logs after the answer."""

    def write_error(self, status_code: int, **known: Any) -> None:
        """Answer an error that Tornado found in a request, or in this handler."""
        is_internal = status_code >= 500
        reason = RefusalReason.INTERNAL if is_internal else RefusalReason.MALFORMED
        text = "internal error" if is_internal else "this is no request that is served here"
        refusal = Refusal(reason, status_code, text)
        refusal.__cause__ = known.get("exc_info", (None, None))[1]
        self._refuse(refusal)

    # --- the upgrade

    async def _upgrade(self, accept: str, handshake: Handshake) -> tuple[SocketLink, bool]:
        """Answer 101, and detach the socket from Tornado.

        Returns the link, and whether a subprotocol was negotiated. Raises ``_AlreadyOver`` if the
        client is gone.
        """
        codec, wire, session = self._endpoint.choose_codec(handshake.subprotocols)
        wire, extensions = self._endpoint.negotiate_compression(
            wire, handshake.headers.all("Sec-WebSocket-Extensions")
        )
        head = switching_protocols(accept, codec.subprotocol if session else None, extensions)
        self.set_status(101)
        stream = self.detach()
        # Breaks the handler's reference to itself, which is for templates. It would keep the
        # whole handshake in memory until the garbage collector runs.
        self.ui.clear()
        try:
            sock, ahead = await detach_socket(stream, self._config.timeout)
            link = create_link(self._io, codec, wire, sock)
            link.answer(head)
            link.prepend_input(ahead)
        except OSError as error:
            if not isinstance(error, ConnectionError):  # a shortage of the machine
                self._io.logger.error("take_over_failed", error=shown(error))
                self._report(RefusalReason.INTERNAL, None)
            raise _AlreadyOver from error
        self._log()
        return link, session

    async def _open(
        self,
        link: SocketLink,
        meta: ConnMeta,
        reservation: ConnectionSlot,
        *,
        session: bool,
    ) -> None:
        io = self._io
        try:
            opened = await io.transport_events.open(link, meta, reservation, session=session)
        except BaseException as error:
            link.close(DisconnectReason.INTERNAL_ERROR)
            if is_end(error):
                raise
            io.logger.error("open_failed", exc_info=error)
        else:
            if opened:
                link.start_reading()


def _internal_error(error: BaseException, reason: RefusalReason) -> Refusal:
    """Return the 500 for an exception of the application's code.

    Raises ``error`` again if it is the cancellation of this task.
    """
    if is_end(error):
        raise error
    return Refusal(reason, 500, "internal error")


def _expire(limit: asyncio.Timeout, now: float) -> None:
    if not limit.expired():
        limit.reschedule(now)


def _cancel(decision: Awaitable[Any]) -> None:
    """Cancel a decision that is not awaited."""
    if inspect.iscoroutine(decision):
        decision.close()
    elif isinstance(decision, asyncio.Future):
        decision.cancel()
