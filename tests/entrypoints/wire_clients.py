"""Servers on a free port, and clients of either codec for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import websockets

from eyewall import Server
from tests.certificate import tls_contexts
from tests.entrypoints import wire

PATIENCE = 10 * float(os.environ.get("EYEWALL_TEST_TIME_UNIT", "1"))

JSON, MSGPACK = "eyewall.v1.json", "eyewall.v1.msgpack"


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Server]:
    server = Server(**{"client_commands": True, **options})
    await server.start(port=0, ssl=tls_contexts()[0] if wire.over_tls else None)
    try:
        yield server
    finally:
        await server.shutdown(1)


class Talker:
    """A client that speaks one codec, and has read its welcome."""

    def __init__(self, socket: websockets.ClientConnection, codec: str) -> None:
        self.socket = socket
        self.codec = codec
        self.welcome: dict[str, Any] = {}

    async def send(self, topic: str, data: Any = None, **fields: Any) -> None:
        message = {"topic": topic, "data": data, **fields}
        packed = self.codec == MSGPACK
        await self.socket.send(msgspec.msgpack.encode(message) if packed else json.dumps(message))

    async def raw(self) -> str | bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.socket.recv()

    async def receive(self) -> dict[str, Any]:
        frame = await self.raw()
        assert isinstance(frame, bytes) is (self.codec == MSGPACK), frame
        found = msgspec.msgpack.decode(frame) if isinstance(frame, bytes) else json.loads(frame)
        assert isinstance(found, dict)
        return found

    async def ask(self, topic: str, data: Any = None, *, id: str = "q", **fields: Any) -> Any:
        """Return the data of the ack to a request; what else comes meanwhile is lost."""
        await self.send(topic, data, id=id, ack=True, **fields)
        while (message := await self.receive()).get("ref") != id:
            pass
        return message["data"]


@contextlib.asynccontextmanager
async def talking(server: Server, codec: str = MSGPACK, **options: Any) -> AsyncIterator[Talker]:
    options = {"compression": None, **options}
    async with websockets.connect(
        server.url, subprotocols=[websockets.Subprotocol(codec)], **options
    ) as socket:
        assert socket.subprotocol == codec
        talker = Talker(socket, codec)
        talker.welcome = await talker.receive()
        yield talker
