"""A node's sockets with a small application behind them, and raw clients for it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from datetime import UTC
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.util import _websocket_mask
from tornado.web import Application, RequestHandler

from eyewall.adapters.web.gateway import WebSocketGateway
from eyewall.adapters.web.http.server import http_server
from eyewall.application.ports.message import EncodedMessage
from eyewall.domain.connection import DisconnectReason, HeartbeatConfig
from eyewall.domain.identity import ConnMeta
from eyewall.domain.outbox import Offer, QueueConfig
from eyewall.testing.logs import RecordingLogger
from tests.certificate import tls_contexts

UNIT = float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))
"""Stretches every patience of these tests, for slow machines."""

PATIENCE = 20 * UNIT

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


# --- the application's side


class PlainCodec:
    """Stands for a codec; these tests send what they like."""

    format: Any = None

    def __init__(self, name: str = "json", *, binary: bool = False) -> None:
        self.name = name
        self.subprotocol = f"eyewall.v1.{name}"
        self.binary = binary

    def decode(self, payload: bytes | str) -> Any:
        return payload

    def encode(self, envelope: Any) -> bytes:
        return f"{self.name}:{envelope}".encode()


class Clock:
    """Real time, or with ``by_hand`` time that only ``advance`` moves."""

    def __init__(self, *, by_hand: bool = False) -> None:
        self._by_hand = by_hand
        self._now = 1000.0
        self._timers: list[_Timer] = []

    def now(self) -> float:
        return self._now if self._by_hand else asyncio.get_running_loop().time()

    def wall(self) -> datetime.datetime:
        return datetime.datetime.now(UTC)

    def call_later(self, delay: float, fn: Callable[[], None]) -> Any:
        if not self._by_hand:
            return asyncio.get_running_loop().call_later(delay, fn)
        timer = _Timer(self._now + delay, fn)
        self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass, timers included."""
        end = self._now + seconds
        while True:
            due = [t for t in self._timers if not t.cancelled and t.when <= end]
            if not due:
                break
            timer = min(due, key=lambda t: t.when)
            self._timers.remove(timer)
            self._now = max(self._now, timer.when)
            timer.fn()
        self._now = end

    def stand_still(self, seconds: float) -> None:
        """Let time pass in which nothing runs; timers ring late, with the next ``advance``."""
        self._now += seconds

    @property
    def pending(self) -> int:
        return sum(not timer.cancelled for timer in self._timers)


class _Timer:
    def __init__(self, when: float, fn: Callable[[], None]) -> None:
        self.when = when
        self.fn = fn
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Place:
    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


class FakeTransportEvents:
    """Remembers what it was told. ``on_message`` says what to do with a message."""

    def __init__(self) -> None:
        self.links: list[Any] = []
        self.metas: list[ConnMeta] = []
        self.sessions: list[bool] = []
        self.handshakes: list[Any] = []
        self.places: list[Place] = []
        self.messages: list[tuple[Any, bytes, bool]] = []
        self.drops: list[tuple[Any, EncodedMessage, Offer]] = []
        self.drained_links: list[Any] = []
        self.ends: list[tuple[Any, DisconnectReason, BaseException | None]] = []
        self.on_message: Callable[[Any, bytes, bool], None] = self.echo
        self.on_reserve: Callable[[str | None], None] = lambda _ip: None
        self.on_authenticate: Callable[[Any], Any] | None = None
        self.on_open: Callable[[Any], Any] | None = None

    def echo(self, link: Any, payload: bytes, binary: bool) -> None:
        link.send(raw(payload, binary=binary))

    def reserve(self, ip: str | None) -> Place:
        self.on_reserve(ip)
        place = Place()
        self.places.append(place)
        return place

    async def authenticate(self, handshake: Any) -> ConnMeta:
        self.handshakes.append(handshake)
        if self.on_authenticate is not None:
            await self.on_authenticate(handshake)
        return ConnMeta(ip=handshake.ip)

    async def open(self, link: Any, meta: ConnMeta, reservation: Any, *, session: bool) -> bool:
        self.links.append(link)
        self.metas.append(meta)
        self.sessions.append(session)
        if self.on_open is not None:
            return bool(await self.on_open(link))
        return True

    def received(self, link: Any, payload: bytes, *, binary: bool) -> None:
        assert type(payload) is bytes
        self.messages.append((link, payload, binary))
        self.on_message(link, payload, binary)

    def dropped(self, link: Any, frame: EncodedMessage, offer: Offer) -> None:
        self.drops.append((link, frame, offer))

    def drained(self, link: Any) -> None:
        self.drained_links.append(link)

    def lost(self, link: Any, reason: DisconnectReason, error: BaseException | None = None) -> None:
        self.ends.append((link, reason, error))

    def reasons(self, link: Any = None) -> list[DisconnectReason]:
        return [reason for one, reason, _ in self.ends if link is None or one is link]


def raw(payload: bytes | str, *, binary: bool = False, **fields: Any) -> EncodedMessage:
    data = payload.encode() if isinstance(payload, str) else payload
    return EncodedMessage(data, raw=True, binary=binary, **fields)


class Served:
    """A running node."""

    def __init__(
        self,
        sockets: WebSocketGateway,
        transport_events: FakeTransportEvents,
        log: RecordingLogger,
        clock: Clock,
    ) -> None:
        self.sockets = sockets
        self.transport_events = transport_events
        self.log = log
        self.clock = clock
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        """What a client needs to trust it; None for a plain one."""
        self.clients: list[Client] = []
        self.requests: list[int] = []
        """The status of each request that was logged."""

    @property
    def url(self) -> str:
        return f"ws{'s' if self.tls else ''}://127.0.0.1:{self.port}/ws"

    @property
    def io(self) -> Any:
        return self.sockets._io

    def log_request(self, handler: RequestHandler) -> None:
        self.requests.append(handler.get_status())

    async def connect(self, **options: Any) -> Client:
        """Return a client whose connection is open on both sides."""
        before = len(self.transport_events.links)
        client = await Client.connect(self, **options)
        await until(lambda: len(self.transport_events.links) > before)
        return client

    async def pair(self, **options: Any) -> tuple[Client, Any]:
        """Return a client and the server's link to it."""
        client = await self.connect(**options)
        return client, self.transport_events.links[-1]

    async def end(self, server: HTTPServer) -> None:
        """End the node, the server that listens for it, and the clients."""
        server.stop()
        for link in list(self.io.links):
            link.close(DisconnectReason.NORMAL)
            link.abort()
        await self.sockets.stop(PATIENCE)
        await server.close_all_connections()
        for client in self.clients:
            cut(client.writer)
        for client in self.clients:
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()


@contextlib.asynccontextmanager
async def served(
    *,
    tls: bool = False,
    queue: QueueConfig | None = None,
    heartbeat: HeartbeatConfig | None = None,
    clock: Clock | None = None,
    max_message_size: int = 1 << 20,
    handshake_timeout: float = 5.0,
    codecs: list[Any] | None = None,
    own_server: Callable[[Application], HTTPServer] | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    clock = clock or Clock()
    log = RecordingLogger()
    sockets = WebSocketGateway(
        codecs=codecs or [PlainCodec()],
        clock=clock,
        logger=log,
        queue=queue or QueueConfig(),
        heartbeat=heartbeat or HeartbeatConfig(),
        max_message_size=max_message_size,
        handshake_timeout=handshake_timeout,
        **options,
    )
    transport_events = FakeTransportEvents()
    sockets.transport_events = transport_events
    sockets.start()
    here = Served(sockets, transport_events, log, clock)
    context = None
    if tls:
        context, here.tls = tls_contexts()
    listening = bind_sockets(0, "127.0.0.1")
    here.port = listening[0].getsockname()[1]
    app = Application(sockets.routes("/ws"), log_function=here.log_request)
    if own_server is None:
        server = http_server(app, ssl=context, handshake_timeout=handshake_timeout)
    else:
        server = own_server(app)
    server.add_sockets(listening)
    try:
        yield here
    finally:
        await here.end(server)


# --- the client's side


def masked(payload: bytes | str, first: int = 0x81, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    """Return a client frame."""
    data = payload.encode() if isinstance(payload, str) else payload
    return header(len(data), first, mask) + _websocket_mask(mask, data)


def header(size: int, first: int = 0x81, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    if size < 126:
        return bytes((first, 0x80 | size)) + mask
    if size < 1 << 16:
        return bytes((first, 0xFE)) + size.to_bytes(2, "big") + mask
    return bytes((first, 0xFF)) + size.to_bytes(8, "big") + mask


def request(path: str = "/ws", host: str = "localhost", **headers: str | None) -> bytes:
    """Return an upgrade request; underscores stand for dashes, None leaves a field out."""
    fields: dict[str, str | None] = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


class Client:
    """A client of bytes and frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.response = b""

    @classmethod
    async def dial(cls, here: Served, *, small: bool = False) -> Client:
        """Open the TCP (or TLS) connection only; ``small``: with a small receive buffer."""
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", here.port))
        reader, writer = await asyncio.open_connection(
            sock=sock,
            ssl=here.tls,
            server_hostname="localhost" if here.tls else None,
            limit=4096 if small else 1 << 20,
        )
        if small and here.tls:  # asyncio would take in 256 KiB while its user does not read
            writer.transport.set_read_buffer_limits(high=4096)
        client = cls(reader, writer)
        here.clients.append(client)
        return client

    @classmethod
    async def connect(cls, here: Served, *, small: bool = False, **headers: Any) -> Client:
        client = await cls.dial(here, small=small)
        client.write(request(**headers))
        await client.answered()
        assert client.status == 101, client.response
        return client

    async def answered(self) -> None:
        """Read the answer's head."""
        async with asyncio.timeout(PATIENCE):
            self.response = await self.reader.readuntil(b"\r\n\r\n")

    @property
    def status(self) -> int:
        return int(self.response.split(b" ", 2)[1])

    @property
    def fields(self) -> dict[str, str]:
        lines = self.response.decode().split("\r\n")[1:]
        return {k.lower(): v for k, _, v in (line.partition(": ") for line in lines) if k}

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def send(self, *payloads: bytes | str) -> None:
        self.write(b"".join(masked(payload) for payload in payloads))

    async def frame(self) -> tuple[int, bytes]:
        """Return the next frame's opcode and payload; raises ``IncompleteReadError`` at the end."""
        async with asyncio.timeout(PATIENCE):
            first, size = await self.reader.readexactly(2)
            if size == 126:
                size = int.from_bytes(await self.reader.readexactly(2), "big")
            elif size == 127:
                size = int.from_bytes(await self.reader.readexactly(8), "big")
            assert first & 0x80
            return first & 15, await self.reader.readexactly(size)

    async def text(self) -> str:
        """Return the next text message; pings are passed over."""
        opcode, payload = await self.frame()
        while opcode == PING:
            opcode, payload = await self.frame()
        assert opcode == TEXT, (opcode, payload)
        return payload.decode()

    async def texts(self, count: int) -> list[str]:
        return [await self.text() for _ in range(count)]

    async def closed(self) -> tuple[int, str]:
        """Answer the close frame that comes next, before the end; return its code and reason."""
        opcode, payload = await self.frame()
        assert opcode == CLOSE, (opcode, payload)
        self.write(masked(payload[:2], 0x88))
        async with asyncio.timeout(PATIENCE):
            assert await self.reader.read() == b""
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    async def end(self) -> bytes:
        """Return everything up to the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    def pause(self) -> None:
        """Stop reading, so that the server's writes pile up."""
        self.writer.transport.pause_reading()

    def resume(self) -> None:
        self.writer.transport.resume_reading()

    def abort(self) -> None:
        """Reset the connection."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        cut(self.writer)

    def leave(self) -> None:
        self.writer.close()


def cut(writer: asyncio.StreamWriter) -> None:
    """Close the connection now, if that has not happened yet.

    In Python 3.11.2, which is Debian 12's, a TLS transport that was closed twice has let go of
    its protocol, and its ``abort()`` raises.
    """
    with contextlib.suppress(AttributeError):
        writer.transport.abort()


async def until(condition: Callable[[], Any]) -> None:
    """Return when ``condition`` holds; fails when it does not in time."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count: int = 5) -> None:
    """Let the loop go round a few times."""
    for _ in range(count):
        await asyncio.sleep(0)
