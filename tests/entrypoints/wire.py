"""A server for one test, and clients that speak the protocol as its page says, no more.

``Peer`` speaks envelopes over the ``websockets`` package. ``RawPeer`` writes and reads the
bytes of the handshake and of frames, also those that no package would let out.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from eyewall import Server
from tests.certificate import tls_contexts
from tests.ports import free_port

UNIT = float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))
"""Stretches every wait on slow machines."""

WITHIN = 15 * UNIT
"""Seconds that anything may take which is expected to happen, also where other tests use
the same cores."""

JSON = "eyewall.v1.json"

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

over_tls = False
"""Whether servers started here speak TLS; the fixture ``transport`` says so."""

FENCE = "test:fence"
"""A topic that every server of these tests answers, to show that nothing came before."""


async def _fence(ctx: Any, msg: Any) -> None:
    """Nothing to do: the ack is the answer."""


@contextlib.asynccontextmanager
async def running(server: Server | None = None, **options: Any) -> AsyncIterator[Server]:
    """Run ``server``, or one with these options, on a free port of this process."""
    server = server or Server(**options)
    server.handle(FENCE, _fence)
    await server.start(port=free_port(), ssl=tls_contexts()[0] if over_tls else None)
    try:
        yield server
    finally:
        await server.shutdown(timeout=1.0)


async def eventually(condition: Callable[[], Any]) -> Any:
    """Wait until ``condition()`` is true, and return what it gave."""
    async with asyncio.timeout(WITHIN):
        while not (found := condition()):
            await asyncio.sleep(0.005)
    return found


async def soon(awaitable: Any) -> Any:
    """Wait for something that is expected to happen."""
    return await asyncio.wait_for(awaitable, WITHIN)


class Peer:
    """A client of one connection: requests, and what comes in besides."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.welcome: dict[str, Any] | None = None
        self._ids = (f"q{n}" for n in itertools.count(1))

    @property
    def conn_id(self) -> str:
        assert self.welcome is not None, "only a negotiated subprotocol is welcomed"
        return str(self.welcome["data"]["conn_id"])

    # --- out

    async def send_text(self, text: str | bytes) -> None:
        """Send one frame as it is: text for ``str``, binary for ``bytes``."""
        await self.socket.send(text)

    async def send(self, topic: str, data: Any = None, **fields: Any) -> None:
        await self.send_text(json.dumps({"topic": topic, "data": data, **fields}))

    async def ask(self, topic: str, data: Any = None, **fields: Any) -> dict[str, Any]:
        """Send a request with ``ack: true``; return the envelope that answers it."""
        ref = fields.pop("id", None) or next(self._ids)
        await self.send(topic, data, id=ref, ack=True, **fields)
        return await self.until(lambda m: m.get("ref") == ref)

    async def request(self, topic: str, data: Any = None, **fields: Any) -> dict[str, Any]:
        """Ask, and return the data of the ack, which has to say ok."""
        answer = await self.ask(topic, data, **fields)
        assert answer["event"] == "ack", answer
        assert answer["data"]["status"] == "ok", answer
        return dict(answer["data"])

    async def refused(self, topic: str, data: Any = None, **fields: Any) -> dict[str, Any]:
        """Ask, and return the data of the nack, which has to be one."""
        answer = await self.ask(topic, data, **fields)
        assert answer["event"] == "ack", answer
        assert answer["data"]["status"] == "nack", answer
        assert answer["data"]["error"], "a nack says why"
        return dict(answer["data"])

    async def join(self, *rooms: str) -> Self:
        for room in rooms:
            await self.request("system:join", {"room": room})
        return self

    # --- in

    async def receive_frame(self) -> str | bytes:
        return await soon(self.socket.recv())

    async def receive(self) -> dict[str, Any]:
        """Return the next message, whatever it is."""
        frame = await self.receive_frame()
        assert isinstance(frame, str), "JSON travels in text frames"
        envelope = json.loads(frame)
        assert isinstance(envelope, dict)
        return envelope

    async def until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first message that fits; what comes before it is passed over."""
        while not fits(message := await self.receive()):
            pass
        return message

    async def expect(self, topic: str, event: str = "message") -> dict[str, Any]:
        """Return the next message of this topic and event."""
        return await self.until(
            lambda m: m["topic"] == topic and m.get("event", "message") == event
        )

    async def before_fence(self) -> list[dict[str, Any]]:
        """Return what came in before the answer to one more request."""
        ref = next(self._ids)
        await self.send(FENCE, id=ref, ack=True)
        came = []
        while (message := await self.receive()).get("ref") != ref:
            came.append(message)
        assert message["data"]["status"] == "ok", message
        return came

    # --- the end

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait until the server has closed; return its code and reason text."""
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(WITHIN):
                while True:
                    await self.socket.recv()
        return self.socket.close_code, self.socket.close_reason


@contextlib.asynccontextmanager
async def peer(
    server: Server | str,
    *,
    session: bool = True,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Peer]:
    """Connect a client, in a session unless told otherwise, and take its welcome."""
    url = (server if isinstance(server, str) else server.url) + query
    options.setdefault("subprotocols", [Subprotocol(JSON)] if session else None)
    options.setdefault("compression", None)
    options.setdefault("ping_interval", None)
    options.setdefault("max_size", 1 << 24)
    options.setdefault("max_queue", None)
    if url.startswith("wss:"):
        options.setdefault("ssl", tls_contexts()[1])
    if origin := options.pop("origin", None):
        options["origin"] = Origin(origin)
    async with connect(url, additional_headers=headers, **options) as socket:
        client = Peer(socket)
        if socket.subprotocol is not None:
            client.welcome = await client.receive()
        yield client


@contextlib.asynccontextmanager
async def peers(server: Server, count: int = 2, **options: Any) -> AsyncIterator[list[Peer]]:
    """Connect several clients."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(peer(server, **options)) for _ in range(count)]


# --- bytes


@dataclass
class Response:
    """What the server answered to the handshake."""

    status: int
    headers: dict[str, str]


@dataclass
class WireFrame:
    """One frame as it came; a close has its code and text."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def close(self) -> tuple[int, str]:
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2]), self.payload[2:].decode()


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True, rsv: int = 0
) -> bytes:
    """Build a client's frame; ``mask=False`` and ``rsv`` build wrong ones."""
    head = bytes([(fin << 7) | (rsv << 4) | opcode])
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 1 << 16:
        head += bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(payload))
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(b ^ key[i % 4] for i, b in enumerate(payload))


UPGRADE: dict[str, str | None] = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
}


class RawPeer:
    """A connection to the server's port, of bytes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def get(self, path: str = "/ws", method: str = "GET", **changes: str | None) -> Response:
        """Ask for an upgrade; a header of None is left out (``_`` stands for ``-``)."""
        headers = {"Host": self._host, **UPGRADE}
        for name, value in changes.items():
            headers[name.replace("_", "-")] = value
        lines = [f"{method} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
        await self.write("\r\n".join([*lines, "", ""]).encode())
        return await self.response()

    async def response(self) -> Response:
        head = (await soon(self._reader.readuntil(b"\r\n\r\n"))).decode()
        status, *lines = head.strip().split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Response(int(status.split()[1]), headers)

    async def read_frame(self) -> WireFrame:
        first, second = await soon(self._reader.readexactly(2))
        assert not second & 0x80, "a server's frames are not masked"
        assert not first & 0x70, "no extension was negotiated"
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(await soon(self._reader.readexactly(2)))
        elif size == 127:
            size = int.from_bytes(await soon(self._reader.readexactly(8)))
        payload = await soon(self._reader.readexactly(size))
        return WireFrame(first & 0x0F, payload, bool(first & 0x80))

    async def read_envelope(self) -> dict[str, Any]:
        found = await self.read_frame()
        assert found.opcode == TEXT, found
        envelope = json.loads(found.payload)
        assert isinstance(envelope, dict)
        return envelope

    async def read_until(self, opcode: int) -> WireFrame:
        while (found := await self.read_frame()).opcode != opcode:
            pass
        return found

    def leave(self) -> None:
        """Close the TCP connection, without a word."""
        self._writer.close()

    def reset(self) -> None:
        """Reset the TCP connection."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def ended(self) -> bytes:
        """Wait for the end of the TCP connection; return what came before it."""
        return bytes(await soon(self._reader.read(-1)))


@contextlib.asynccontextmanager
async def raw_peer(server: Server, *, upgrade: bool = True) -> AsyncIterator[RawPeer]:
    """Connect, and upgrade without a subprotocol unless told otherwise."""
    host, port = "127.0.0.1", server.port
    trusting = tls_contexts()[1] if server.url.startswith("wss:") else None
    reader, writer = await asyncio.open_connection(host, port, ssl=trusting)
    try:
        client = RawPeer(reader, writer, f"{host}:{port}")
        if upgrade:
            answer = await client.get()
            assert answer.status == 101, answer
        yield client
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
