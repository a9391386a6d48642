"""From an HTTP request to an open connection.

Tornado reads the request; what follows is here: who may come in, the answer, and the
hand-over of the socket. Whatever goes wrong before the connection is open is answered
in HTTP, and gives the reserved place back.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tornado.web import RequestHandler

from eyewall.adapters.web.connection import take_socket
from eyewall.adapters.web.deflate import CompressionConfig, DeflateWire
from eyewall.adapters.web.extensions import agree
from eyewall.adapters.web.http_server import deadline_of
from eyewall.adapters.web.link import SocketLink
from eyewall.adapters.web.node import Node
from eyewall.adapters.web.origin import Origins
from eyewall.adapters.web.proxies import TrustedProxies
from eyewall.adapters.web.tls import link_on
from eyewall.adapters.web.upgrade import Refusal, accept_key, answer, busy, check_number
from eyewall.adapters.web.wire import SocketWire, TextWire
from eyewall.application.ports import Codec, Reservation
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import Overloaded, RateLimited, Unauthorized, Unavailable
from eyewall.domain.handshake import Fields, Handshake, Headers
from eyewall.domain.identity import ConnMeta

T = TypeVar("T")

MAX_DECIDING: Final = 4096
"""Handshakes that may wait for an origin check or authenticator at the same time. With
some 20 KiB for each, 80 MiB; an authenticator that takes a tenth of a second then lets
in 40,000 clients in a second, and one that hangs does not take the node along."""


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
    deciding: int = 0
    """Handshakes that wait for somebody's decision."""

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


class _TooLate(Exception):
    """The time for the handshake has run out."""


class SocketHandler(RequestHandler):
    """Lets WebSocket connections in."""

    def initialize(self, door: Door) -> None:
        self._door = door

    async def get(self, *_: str) -> None:
        """Answer a request of any method: only a GET can be an upgrade."""
        reservation: Reservation | None = None
        try:
            check_number(self.request.headers)
            accept = accept_key(self.request.method, self.request.headers)
            handshake = self._handshake()
            await self._check_origin(handshake)
            reservation = self._reserve(handshake)
            meta = await self._authenticate(handshake)
            link, session, ahead = await self._upgrade(accept, handshake)
        except Refusal as refusal:
            self._refuse(refusal)
        except _TooLate:
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
            allowed = self._door.origins.allow(origins, handshake)
            if inspect.isawaitable(allowed):
                allowed = await self._in_time(allowed)
        except (Refusal, _TooLate):
            raise
        except Exception as error:
            self._door.node.logger.error("origin_check_failed", exc_info=error)
            raise Refusal(500, "internal error") from error
        if not allowed:
            raise Refusal(403, "this origin is not allowed")

    def _reserve(self, handshake: Handshake) -> Reservation:
        try:
            return self._door.node.intake.reserve(handshake.ip)
        except Overloaded as error:
            raise busy(error.retry_after) from error

    async def _authenticate(self, handshake: Handshake) -> ConnMeta:
        try:
            meta = self._door.node.intake.authenticate(handshake)
            return await self._in_time(meta) if inspect.isawaitable(meta) else meta
        except (Refusal, _TooLate):
            raise
        except Unauthorized as error:
            raise Refusal(401, "authentication failed") from error
        except (Overloaded, RateLimited) as error:
            raise busy(error.retry_after) from error
        except Unavailable as error:
            raise busy(1.0) from error
        except Exception as error:
            self._door.node.logger.error("authenticator_failed", exc_info=error)
            raise Refusal(500, "internal error") from error

    async def _in_time(self, decision: Awaitable[T]) -> T:
        """Wait for a decision, until the time for the handshake has run out."""
        door = self._door
        if door.deciding >= MAX_DECIDING:
            _drop(decision)
            raise busy(1.0)
        deadline = deadline_of(self.request) or door.node.loop.time() + door.timeout
        limit = asyncio.timeout_at(deadline)
        door.deciding += 1
        try:
            async with limit:
                return await decision
        except TimeoutError:
            if limit.expired():
                raise _TooLate from None
            raise
        finally:
            door.deciding -= 1

    def _refuse(self, refusal: Refusal) -> None:
        self.set_status(refusal.status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        self.finish(f"{refusal}\n")

    # --- the upgrade

    async def _upgrade(self, accept: str, handshake: Handshake) -> tuple[SocketLink, bool, bytes]:
        """Answer 101 and take the connection out of Tornado's hands.

        Returns the link, whether a subprotocol was negotiated, and what came behind
        the request. Raises ``OSError`` if the client is gone.
        """
        codec, wire, session = self._door.choose(handshake.subprotocols)
        wire, extensions = self._door.compress(
            wire, handshake.headers.all("Sec-WebSocket-Extensions")
        )
        head = answer(accept, codec.subprotocol if session else None, extensions)
        self.set_status(101)
        self.application.log_request(self)
        stream = self.detach()
        # Templates, which are not used here, make a handler refer to itself: without this
        # all of the handshake would stay until the collector finds it.
        self.ui.clear()
        sock, ahead = await take_socket(stream, self._door.timeout)
        link = link_on(self._door.node, codec, wire, sock)
        link.answer(head)
        return link, session, ahead

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


def _drop(decision: Awaitable[Any]) -> None:
    """Leave undone what nobody waits for."""
    if inspect.iscoroutine(decision):
        decision.close()
    elif isinstance(decision, asyncio.Future):
        decision.cancel()
