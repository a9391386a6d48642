"""From an HTTP request to an open connection.

Tornado reads the request; what follows is here: who may come in, the answer, and the
hand-over of the socket. Rules of this file:

1. Whatever goes wrong before the connection is open is answered in HTTP, and gives the
   reserved place back. The answer goes first, what is to be logged after it.
2. Every refusal, whatever raised it, goes through ``_refuse`` or ``_cut``, and leaves a
   trace: see ``refusals``.
3. A client that the authenticator refuses is answered in HTTP. With ``refuse_with="close"`` the
   upgrade is accepted and closed at once; the application never sees that connection. A page
   of a foreign origin is always answered in HTTP, so that its script learns nothing.
4. What an application's function raises, a ``CancelledError`` of its own or a
   ``SystemExit`` too, is a failure of that handshake and of nothing else.
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
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from tornado.httputil import HTTPHeaders, parse_cookie

from eyewall.adapters.web.http.credentials import reported, why
from eyewall.adapters.web.http.origin import Hosts, Origins
from eyewall.adapters.web.http.proxies import TrustedProxies
from eyewall.adapters.web.http.refusals import Refusals, harmless
from eyewall.adapters.web.http.request_target import AbsoluteForm, DiscreetHandler
from eyewall.adapters.web.http.server import deadline_of, end_if_followed
from eyewall.adapters.web.protocol.deflate import CompressionConfig, DeflateWire
from eyewall.adapters.web.protocol.frames import SocketWire, TextWire
from eyewall.adapters.web.protocol.negotiation import agree
from eyewall.adapters.web.sockets.link import SocketLink
from eyewall.adapters.web.sockets.loop import Node
from eyewall.adapters.web.sockets.tcp import take_socket
from eyewall.adapters.web.sockets.tls import link_on
from eyewall.application.logs import shown
from eyewall.application.ports import Codec, Reservation
from eyewall.application.stalls import CHANCE
from eyewall.application.tasks import is_end
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

_TAKEN = frozenset({"self", "transforms"})
"""Names that a group of a path can't have: Tornado hands groups over beside these."""

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 1.3."""

MAX_HEADERS: Final = 100
"""Header fields of a handshake. A browser behind two proxies sends some thirty; each one
is looked at, and kept while an authenticator waits."""


CUT_OFF: Final = (
    "a WebSocket handshake came without its upgrade: the proxy in front must speak HTTP/1.1, "
    "and pass Upgrade and Connection on"
)

MAX_DECIDING: Final = 4096
"""Handshakes that may wait for an origin check or authenticator at the same time. With
some 20 KiB for each, 80 MiB; an authenticator that takes a tenth of a second then lets
in 40,000 clients in a second, and one that hangs does not take the node along."""


class Refusal(Exception):
    """The handshake ends with this answer."""

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
        """What the log says of it beside, for whoever runs the server."""
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def busy(
    retry_after: float, reason: RefusalReason = RefusalReason.OVERLOADED, **headers: str
) -> Refusal:
    """Come back after so many seconds."""
    wait = str(max(1, math.ceil(wait_of(retry_after))))
    return Refusal(reason, 503, "try again later", Retry_After=wait, **headers)


def draining() -> Refusal:
    """Come back to another node, or when this one runs again."""
    return busy(1.0, RefusalReason.DRAINING, Connection="close")


def check_number(headers: HTTPHeaders) -> None:
    """Raise ``Refusal`` if there are more fields than anybody needs."""
    if sum(1 for _ in headers.get_all()) > MAX_HEADERS:
        raise Refusal(RefusalReason.HEADERS, 431, f"more than {MAX_HEADERS} header fields")


def accept_key(method: str | None, headers: HTTPHeaders, http: str = "HTTP/1.1") -> str:
    """Check that this is an upgrade (RFC 6455, 4.2.1); returns the key to answer with.

    ``http`` is the version of the request: in 1.0 an ``Upgrade`` means nothing (RFC 9110, 7.8).
    """
    upgrade = {token.strip().lower() for token in headers.get("Upgrade", "").split(",")}
    connection = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    version = headers.get("Sec-WebSocket-Version", "").strip()
    asked = method == "GET" and http != "HTTP/1.0"
    asked = asked and "websocket" in upgrade and "upgrade" in connection
    if not asked or version != "13":
        raise Refusal(
            RefusalReason.NOT_AN_UPGRADE,
            426,
            "this is a WebSocket (version 13)",
            hint=None if asked or "Sec-WebSocket-Key" not in headers else CUT_OFF,
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


def answer(accept: str, subprotocol: str | None, extensions: str | None) -> bytes:
    """Return the 101."""
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


@dataclass(slots=True)
class Door:
    """By which rules connections come in."""

    node: Node
    codecs: Sequence[tuple[Codec, SocketWire]]
    """The first is for clients that name no subprotocol."""
    deflated: Mapping[str, SocketWire]
    """The wire for a client that compresses, by the name of its codec's own; none while
    compression is off."""
    origins: Origins
    proxies: TrustedProxies
    timeout: float
    hosts: Hosts
    refusals: Refusals
    refuse_with: RefuseWith
    is_open: bool = False
    """Whether anybody may come in: not before the start, and not once it drains."""
    deciding: dict[asyncio.Timeout, SocketHandler] = field(default_factory=dict)
    """Handshakes that wait for somebody's decision, by what ends the wait."""

    @classmethod
    def of(
        cls,
        node: Node,
        codecs: Sequence[Codec],
        origins: Origins,
        proxies: TrustedProxies,
        timeout: float,
        *,
        hosts: Hosts,
        refusals: Refusals,
        refuse_with: RefuseWith = RefuseWith.HTTP,
        compression: CompressionConfig | None = None,
    ) -> Door:
        wires = [TextWire(codec) for codec in codecs]
        deflated = (
            {} if compression is None else {w.name: DeflateWire(w, compression) for w in wires}
        )
        pairs = list(zip(codecs, wires, strict=True))
        return cls(node, pairs, deflated, origins, proxies, timeout, hosts, refusals, refuse_with)

    def routes(self, path: str) -> list[Any]:
        """Return rules for a Tornado application, which let clients in at ``path``.

        Raises ``ValueError`` for a path that is no regular expression, or whose groups have
        names that Tornado needs itself.
        """
        try:
            names = set(re.compile(path).groupindex)
        except re.error as error:
            raise ValueError(f"routes: {path!r} is no regular expression: {error}") from None
        if names & _TAKEN:
            raise ValueError(f"routes: no group may be called {' or '.join(names & _TAKEN)}")
        options = {"door": self}
        return [(path, SocketHandler, options), (AbsoluteForm(path), SocketHandler, options)]

    def close(self) -> None:
        """Let nobody in any more, and answer those who wait for a decision."""
        self.is_open = False
        for limit, handler in list(self.deciding.items()):
            handler.turn_away()
            if not limit.expired():
                limit.reschedule(self.node.loop.time())

    def choose(self, offered: Sequence[str]) -> tuple[Codec, SocketWire, bool]:
        """Return the codec for a client, and whether it was negotiated."""
        known = {codec.subprotocol: (codec, wire) for codec, wire in self.codecs}
        for name in offered:
            if name in known:
                return *known[name], True
        return *self.codecs[0], False

    def compress(self, wire: SocketWire, offers: Sequence[str]) -> tuple[SocketWire, str | None]:
        """Return the wire for a client that made these offers, and what to answer to them."""
        agreed = agree(offers) if self.deflated else None
        return (wire, None) if agreed is None else (self.deflated[wire.name], agreed)


class _TooLate(Exception):
    """The time for the handshake has run out."""


class _Over(Exception):
    """There is nobody to answer: the client has left, or was answered already."""


class SocketHandler(DiscreetHandler):
    """Lets WebSocket connections in."""

    def initialize(self, door: Door) -> None:
        self._door = door

    async def get(self, /, *_: str, **params: str | None) -> None:
        """Answer a request of any method: only a GET can be an upgrade."""
        reservation: Reservation | None = None
        request = self.request
        try:
            if not self._door.is_open:
                raise draining()
            check_number(request.headers)
            if not self._door.hosts.allow(request.headers.get_list("Host")):
                raise Refusal(RefusalReason.HOST, 403, "this host is not served here")
            accept = accept_key(request.method, request.headers, request.version)
            handshake = self._handshake(params)
            await self._check_origin(handshake)
            reservation = self._reserve(handshake)
            meta = await self._let_in(handshake, accept)
            link, session = await self._upgrade(accept, handshake)
        except Refusal as refusal:
            self._refuse(refusal)
        except _TooLate:
            self._cut()
        except _Over:
            pass
        else:
            place, reservation = reservation, None  # from here on the connection's
            await self._open(link, meta, place, session=session)
        finally:
            if reservation is not None:
                reservation.release()

    head = post = put = patch = delete = options = get

    def check_xsrf_cookie(self) -> None:
        """Nothing is done for a form: only the upgrade counts, and its origin is checked."""

    def turn_away(self) -> None:
        """Answer now, whatever is still to be decided."""
        self._refuse(draining())

    # --- who knocks

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
            # HTTP/2 splits them into fields of their own, and a proxy may pass them on like
            # that; together they are one list (RFC 9113, 8.2.3).
            cookies=parse_cookie("; ".join(headers.all("Cookie"))),
            ip=self._door.proxies.client(request.remote_ip, headers.all("X-Forwarded-For")),
            subprotocols=tuple(name for name in offered if name),
            params={name: value for name, value in params.items() if value is not None},
        )

    async def _check_origin(self, handshake: Handshake) -> None:
        origins, hosts = handshake.headers.all("Origin"), self._hosts(handshake)
        try:
            allowed = self._door.origins.allow(origins, handshake, hosts)
            if inspect.isawaitable(allowed):
                allowed = await self._in_time(allowed)
        except (Refusal, _TooLate, _Over):
            raise
        except BaseException as error:
            raise _failure(error, RefusalReason.ORIGIN_CHECK_FAILED) from error
        if not allowed:
            hint = self._door.origins.why_not(
                [harmless(text) for text in origins], [harmless(text) for text in hosts]
            )
            raise Refusal(RefusalReason.ORIGIN, 403, "this origin is not allowed", hint=hint)

    def _hosts(self, handshake: Handshake) -> list[str]:
        headers, peer = handshake.headers, self.request.remote_ip
        return self._door.proxies.hosts(peer, headers.all("Host"), headers.all("X-Forwarded-Host"))

    def _reserve(self, handshake: Handshake) -> Reservation:
        try:
            return self._door.node.intake.reserve(handshake.ip)
        except ShuttingDown as error:
            raise draining() from error
        except Overloaded as error:
            raise busy(error.retry_after, RefusalReason.CONNECTIONS) from error

    async def _let_in(self, handshake: Handshake, accept: str) -> ConnMeta:
        """Authenticate the client. A refusal is raised, to be answered in HTTP, or told by a close
        code, after which ``_Over`` is raised."""
        try:
            return await self._authenticate(handshake)
        except Refusal as refusal:
            told = refusal.reason is RefusalReason.UNAUTHORIZED
            if not told or self._door.refuse_with is RefuseWith.HTTP:
                raise
            refused = refusal
        await self._turn_down(accept, handshake, refused)
        raise _Over

    async def _authenticate(self, handshake: Handshake) -> ConnMeta:
        try:
            meta = self._door.node.intake.authenticate(handshake)
            return await self._in_time(meta) if inspect.isawaitable(meta) else meta
        except (Refusal, _TooLate, _Over):
            raise
        except ShuttingDown as error:
            raise draining() from error
        except RateLimited as error:
            raise busy(error.retry_after, RefusalReason.RATE_LIMITED) from error
        except Overloaded as error:
            raise busy(error.retry_after) from error
        except Unavailable as error:
            raise busy(1.0, RefusalReason.UNAVAILABLE) from error
        except Refused as error:
            if error.retryable:
                raise busy(1.0, RefusalReason.UNAVAILABLE) from error
            # RFC 9110, 15.5.2: how to come in is said with it.
            raise Refusal(
                RefusalReason.UNAUTHORIZED, 401, "authentication failed", WWW_Authenticate="Bearer"
            ) from error
        except BaseException as error:
            raise _failure(error, RefusalReason.AUTHENTICATOR_FAILED) from error

    async def _in_time(self, decision: Awaitable[T]) -> T:
        """Wait for a decision, until the time for the handshake has run out."""
        door = self._door
        if len(door.deciding) >= MAX_DECIDING:
            _drop(decision)
            raise busy(1.0)
        deadline = deadline_of(self.request) or door.node.loop.time() + door.timeout
        loop, node = door.node.loop, door.node
        limit = asyncio.timeout(None)
        # Not the limit's own timer: that would ring before what was waited for is read.
        left = deadline - loop.time()
        until = node.clock.now() + (max(left, CHANCE) if node.stalls.is_recent else left)
        bell = node.deadlines.at(until, lambda: _expire(limit, loop.time()))
        door.deciding[limit] = self
        try:
            async with limit:
                decided = await decision
        except TimeoutError:
            if limit.expired():
                raise (_Over if self._finished else _TooLate) from None
            raise
        finally:
            bell.cancel()
            del door.deciding[limit]
        if self._finished:  # turned away, and the decision would not be ended
            raise _Over
        return decided

    # --- and does not get in

    def _refuse(self, refusal: Refusal) -> None:
        if self._finished:
            return
        self.set_status(refusal.status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        if "Upgrade" in self.request.headers:
            end_if_followed(self.request)
        self.finish(f"{refusal}\n")
        if refusal.__cause__ is not None and refusal.status == 500:
            ours = refusal.reason is RefusalReason.INTERNAL
            event = "handshake_failed" if ours else refusal.reason.value
            self._door.node.logger.error(event, **reported(refusal.__cause__, self.request))
        self._tell(refusal.reason, refusal.status, hint=self._hint(refusal))

    def _hint(self, refusal: Refusal) -> Callable[[], str | None]:
        """What the log says of a refusal: our own words, or those of who has raised it."""
        return lambda: refusal.hint or why(refusal.__cause__, self.request)

    async def _turn_down(self, accept: str, handshake: Handshake, refusal: Refusal) -> None:
        """Accept the upgrade, only to close with a code that the client's script sees."""
        try:
            link, _ = await self._upgrade(accept, handshake)
        except _Over as over:
            if not isinstance(over.__cause__, ConnectionError):
                raise  # and it was told
        else:
            self._door.node.turn_down(link)
        code, _ = close_frame(DisconnectReason.AUTH_FAILED)
        self._tell(refusal.reason, 101, hint=self._hint(refusal), close=code)

    def _cut(self) -> None:
        self.detach().close()
        self._tell(RefusalReason.TIMEOUT, None)

    def _tell(self, reason: RefusalReason, status: int | None, **more: Any) -> None:
        request = self.request
        self._door.refusals.tell(
            reason, status, headers=request.headers, peer=request.remote_ip, **more
        )

    def log_exception(self, *_: Any) -> None:
        """Nothing yet: the answer goes first."""

    def write_error(self, status_code: int, **known: Any) -> None:
        """Answer for what Tornado finds wrong with a request, or with this handler."""
        is_ours = status_code >= 500
        reason = RefusalReason.INTERNAL if is_ours else RefusalReason.MALFORMED
        text = "internal error" if is_ours else "this is no request that is served here"
        refusal = Refusal(reason, status_code, text)
        refusal.__cause__ = known.get("exc_info", (None, None))[1]
        self._refuse(refusal)

    # --- the upgrade

    async def _upgrade(self, accept: str, handshake: Handshake) -> tuple[SocketLink, bool]:
        """Answer 101 and take the connection out of Tornado's hands.

        Returns the link, and whether a subprotocol was negotiated. Raises ``_Over`` if the
        client is gone.
        """
        codec, wire, session = self._door.choose(handshake.subprotocols)
        wire, extensions = self._door.compress(
            wire, handshake.headers.all("Sec-WebSocket-Extensions")
        )
        head = answer(accept, codec.subprotocol if session else None, extensions)
        self.set_status(101)
        stream = self.detach()
        # Templates, which are not used here, make a handler refer to itself: without this
        # all of the handshake would stay until the collector finds it.
        self.ui.clear()
        try:
            sock, ahead = await take_socket(stream, self._door.timeout)
            link = link_on(self._door.node, codec, wire, sock)
            link.answer(head)
            link.keep(ahead)
        except OSError as error:
            if not isinstance(error, ConnectionError):  # the machine is short of something
                self._door.node.logger.error("take_over_failed", error=shown(error))
                self._tell(RefusalReason.INTERNAL, None)
            raise _Over from error
        self._log()
        return link, session

    async def _open(
        self,
        link: SocketLink,
        meta: ConnMeta,
        reservation: Reservation,
        *,
        session: bool,
    ) -> None:
        node = self._door.node
        try:
            opened = await node.intake.open(link, meta, reservation, session=session)
        except BaseException as error:
            link.close(DisconnectReason.INTERNAL_ERROR)
            if is_end(error):
                raise
            node.logger.error("open_failed", exc_info=error)
        else:
            if opened:
                link.begin()


def _failure(error: BaseException, reason: RefusalReason) -> Refusal:
    """Return the answer to a handshake for which an application's function failed.

    Raises ``error`` again if it is the end of this very task.
    """
    if is_end(error):
        raise error
    return Refusal(reason, 500, "internal error")


def _expire(limit: asyncio.Timeout, now: float) -> None:
    if not limit.expired():  # nor is it about to
        limit.reschedule(now)


def _drop(decision: Awaitable[Any]) -> None:
    """Leave undone what nobody waits for."""
    if inspect.iscoroutine(decision):
        decision.close()
    elif isinstance(decision, asyncio.Future):
        decision.cancel()
