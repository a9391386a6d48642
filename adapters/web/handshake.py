"""From an HTTP request to an open connection.

Tornado reads the request; what follows is here: who may come in, the answer, and the
hand-over of the socket. Whatever goes wrong before the connection is open is answered
in HTTP (protocol.md, "Handshake") and gives the reserved place back.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import socket
import ssl as tls
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerConnectionDelegate
from tornado.iostream import IOStream
from tornado.web import RequestHandler

from eyewall.adapters.web.connection import PlainLink, can_be_taken, take_socket
from eyewall.adapters.web.deflate import CompressionConfig, DeflateWire
from eyewall.adapters.web.extensions import agree
from eyewall.adapters.web.link import SocketLink
from eyewall.adapters.web.node import Node
from eyewall.adapters.web.origin import Origins
from eyewall.adapters.web.proxies import TrustedProxies
from eyewall.adapters.web.stream import StreamLink
from eyewall.adapters.web.wire import SocketWire, TextWire
from eyewall.application.ports import Codec, Reservation
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import Overloaded, RateLimited, Unauthorized, Unavailable
from eyewall.domain.handshake import Fields, Handshake, Headers
from eyewall.domain.identity import ConnMeta

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 1.3."""

MAX_HEADER_SIZE: Final = 16 * 1024
"""Bytes of a request's headers. Tokens fit well; Tornado's own limit is 64 KiB."""

MAX_BODY_SIZE: Final = 1024 * 1024
"""Bytes of a request's body. A handshake has none; the HTTP API's are small."""


@dataclass(frozen=True, slots=True)
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

    @classmethod
    def of(
        cls,
        node: Node,
        codecs: Sequence[Codec],
        origins: Origins,
        proxies: TrustedProxies,
        timeout: float,
        compression: CompressionConfig | None = None,
    ) -> Door:
        wires = [TextWire(codec) for codec in codecs]
        deflated = (
            {} if compression is None else {w.name: DeflateWire(w, compression) for w in wires}
        )
        pairs = list(zip(codecs, wires, strict=True))
        return cls(node, pairs, deflated, origins, proxies, timeout)

    def choose(self, offered: Sequence[str]) -> tuple[Codec, SocketWire, bool]:
        """Return the codec for a client, and whether it was negotiated."""
        known = {codec.subprotocol: (codec, wire) for codec, wire in self.codecs}
        for name in offered:
            if name in known:
                return *known[name], True
        return *self.codecs[0], False

    def compress(self, wire: SocketWire, offers: Sequence[str]) -> tuple[SocketWire, str | None]:
        """Return the wire for a client that made these offers, and what to answer to them."""
        answer = agree(offers) if self.deflated else None
        return (wire, None) if answer is None else (self.deflated[wire.name], answer)


class _Refusal(Exception):
    """The handshake ends with this answer."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class SocketHandler(RequestHandler):
    """Lets WebSocket connections in."""

    def initialize(self, door: Door) -> None:
        self._door = door

    async def get(self, *_: str) -> None:
        """Answer a request of any method: only a GET can be an upgrade."""
        reservation: Reservation | None = None
        try:
            async with asyncio.timeout(self._door.timeout):
                accept = _accept_key(self.request.method, self.request.headers)
                handshake = self._handshake()
                await self._check_origin(handshake)
                reservation = self._reserve(handshake)
                meta = await self._authenticate(handshake)
            link, session, ahead = self._upgrade(accept, handshake)
        except _Refusal as refusal:
            self._refuse(refusal)
        except TimeoutError:
            self.detach().close()
        except OSError:
            pass  # the client has left meanwhile
        else:
            place, reservation = reservation, None  # from here on the connection's
            await self._open(link, meta, place, session=session, ahead=ahead)
        finally:
            if reservation is not None:
                reservation.release()

    head = post = put = patch = delete = options = get

    def check_xsrf_cookie(self) -> None:
        """Nothing is done for a form: only the upgrade counts, and its origin is checked."""

    # --- who knocks

    def _handshake(self) -> Handshake:
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
        peer = request.remote_ip
        cookies = request.cookies if "Cookie" in request.headers else {}
        return Handshake(
            path=request.path,
            query=Fields(query),
            headers=headers,
            cookies={name: morsel.value for name, morsel in cookies.items()},
            ip=self._door.proxies.client(peer, headers.all("X-Forwarded-For")),
            subprotocols=tuple(name for name in offered if name),
        )

    async def _check_origin(self, handshake: Handshake) -> None:
        origins = handshake.headers.all("Origin")
        try:
            allowed = await self._door.origins.allow(origins, handshake)
        except Exception as error:
            self._door.node.logger.error("origin_check_failed", exc_info=error)
            raise _Refusal(500, "internal error") from error
        if not allowed:
            raise _Refusal(403, "this origin is not allowed")

    def _reserve(self, handshake: Handshake) -> Reservation:
        try:
            return self._door.node.intake.reserve(handshake.ip)
        except Overloaded as error:
            raise _busy(error.retry_after) from error

    async def _authenticate(self, handshake: Handshake) -> ConnMeta:
        try:
            return await self._door.node.intake.authenticate(handshake)
        except Unauthorized as error:
            raise _Refusal(401, "authentication failed") from error
        except (Overloaded, RateLimited) as error:
            raise _busy(error.retry_after) from error
        except Unavailable as error:
            raise _busy(1.0) from error
        except Exception as error:
            self._door.node.logger.error("authenticator_failed", exc_info=error)
            raise _Refusal(500, "internal error") from error

    def _refuse(self, refusal: _Refusal) -> None:
        self.set_status(refusal.status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        self.finish(f"{refusal}\n")

    # --- the upgrade

    def _upgrade(self, accept: str, handshake: Handshake) -> tuple[SocketLink, bool, bytes]:
        """Answer 101 and take the connection out of Tornado's hands.

        Returns the link, whether a subprotocol was negotiated, and what came behind
        the request. Raises ``OSError`` if the client is gone.
        """
        codec, wire, session = self._door.choose(handshake.subprotocols)
        wire, extensions = self._door.compress(
            wire, handshake.headers.all("Sec-WebSocket-Extensions")
        )
        answer = _answer(accept, codec.subprotocol if session else None, extensions)
        self.set_status(101)
        self.application.log_request(self)
        stream: IOStream = self.detach()
        if stream.closed():
            raise ConnectionResetError
        node = self._door.node
        if can_be_taken(stream):
            # Straight to the socket: the way through Tornado's buffers costs more than
            # the rest of the answer, and whoever takes the socket over has no use for it.
            answer = answer[_send(stream.socket, answer) :]
            if not answer:
                try:
                    sock, ahead = take_socket(stream)
                    return PlainLink(node, codec, wire, sock), session, ahead
                except OSError as error:
                    if stream.closed():
                        raise
                    node.logger.warning("socket_not_taken", error=repr(error))
        if answer:
            stream.write(answer)
        return StreamLink(node, codec, wire, stream), session, b""

    async def _open(
        self,
        link: SocketLink,
        meta: ConnMeta,
        reservation: Reservation,
        *,
        session: bool,
        ahead: bytes,
    ) -> None:
        node = self._door.node
        try:
            opened = await node.intake.open(link, meta, reservation, session=session)
        except Exception as error:
            node.logger.error("open_failed", exc_info=error)
            link.close(DisconnectReason.INTERNAL_ERROR)
        else:
            if opened:
                link.begin(ahead)


def _accept_key(method: str | None, headers: HTTPHeaders) -> str:
    """Check that this is an upgrade (RFC 6455, 4.2.1); returns the key to answer with."""
    upgrade = {token.strip().lower() for token in headers.get("Upgrade", "").split(",")}
    connection = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    version = headers.get("Sec-WebSocket-Version", "").strip()
    asked = method == "GET" and "websocket" in upgrade and "upgrade" in connection
    if not asked or version != "13":
        raise _Refusal(
            426,
            "this is a WebSocket (version 13)",
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
        raise _Refusal(400, "Sec-WebSocket-Key must be 16 bytes in base64")
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()  # noqa: S324


def _answer(accept: str, subprotocol: str | None, extensions: str | None) -> bytes:
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


def _send(sock: socket.socket, data: bytes) -> int:
    """Return how much of ``data`` the kernel took."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


def _busy(retry_after: float) -> _Refusal:
    return _Refusal(503, "try again later", Retry_After=str(max(1, math.ceil(retry_after))))


def http_server(
    app: HTTPServerConnectionDelegate,
    *,
    ssl: tls.SSLContext | None = None,
    handshake_timeout: float = 10.0,
) -> HTTPServer:
    """Return a server whose limits suit handshakes.

    Tornado would wait an hour for a request's headers, and take in a body of 100 MiB.
    """
    return HTTPServer(
        app,
        ssl_options=ssl,
        idle_connection_timeout=handshake_timeout,
        body_timeout=handshake_timeout,
        max_header_size=MAX_HEADER_SIZE,
        max_body_size=MAX_BODY_SIZE,
        max_buffer_size=2 * MAX_BODY_SIZE,
    )
