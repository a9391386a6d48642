"""Clients that nobody here wrote: each connects, asks, joins, gets a large message, leaves."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from eyewall import DisconnectReason, Server
from tests.certificate import tls_contexts
from tests.entrypoints.wire import JSON, WITHIN, eventually, running, soon

pytestmark = pytest.mark.usefixtures("transport")

BIG = "b" * 100_000

NODE_CLIENT = Path(__file__).with_name("wire_client.mjs")

SUBPROTOCOLS = pytest.mark.parametrize("subprotocol", [None, JSON])


class Client(Protocol):
    """What the three Python clients have in common."""

    subprotocol: str | None

    async def send(self, text: str) -> None: ...

    async def receive(self) -> str | None:
        """The next text; None at the end."""

    async def close(self) -> None: ...

    @property
    def code(self) -> int | None: ...


class Websockets:
    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.subprotocol = socket.subprotocol

    @classmethod
    async def open(cls, url: str, subprotocol: str | None) -> Client:
        # With its own defaults: it offers compression, and pings by itself.
        return cls(await connect(url, subprotocols=[subprotocol] if subprotocol else None))

    async def send(self, text: str) -> None:
        await self._socket.send(text)

    async def receive(self) -> str | None:
        try:
            return await self._socket.recv()
        except ConnectionClosed:
            return None

    async def close(self) -> None:
        await self._socket.close()

    @property
    def code(self) -> int | None:
        return self._socket.close_code


class Aiohttp:
    def __init__(self, session: aiohttp.ClientSession, socket: Any) -> None:
        self._session = session
        self._socket = socket
        self.subprotocol = socket.protocol

    @classmethod
    async def open(cls, url: str, subprotocol: str | None) -> Client:
        session = aiohttp.ClientSession()
        protocols = [subprotocol] if subprotocol else []
        return cls(
            session,
            await session.ws_connect(
                url, protocols=protocols, heartbeat=1.0, ssl=tls_contexts()[1]
            ),
        )

    async def send(self, text: str) -> None:
        await self._socket.send_str(text)

    async def receive(self) -> str | None:
        message = await self._socket.receive()
        return message.data if message.type is aiohttp.WSMsgType.TEXT else None

    async def close(self) -> None:
        await self._socket.close()
        await self._session.close()

    @property
    def code(self) -> int | None:
        return self._socket.close_code


class Tornado:
    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._ended = False
        self.subprotocol = socket.selected_subprotocol

    @classmethod
    async def open(cls, url: str, subprotocol: str | None) -> Client:
        offered = [subprotocol] if subprotocol else None
        return cls(
            await websocket_connect(
                HTTPRequest(url, ssl_options=tls_contexts()[1]),
                subprotocols=offered,
                compression_options={},
            )
        )

    async def send(self, text: str) -> None:
        await self._socket.write_message(text)

    async def receive(self) -> str | None:
        message = await self._socket.read_message()
        self._ended = message is None
        return message

    async def close(self) -> None:
        self._socket.close(1000, "done")
        while not self._ended:  # a second read after the end would wait for ever
            await self.receive()

    @property
    def code(self) -> int | None:
        return self._socket.close_code


CLIENTS = pytest.mark.parametrize("kind", [Websockets, Aiohttp, Tornado])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(client_commands=True)
    server.reasons = []
    server.hub.on_disconnect(lambda conn, reason: server.reasons.append(reason))

    @server.on("echo")
    async def echo(ctx, msg):
        return {"echo": msg.data["text"]}

    async with running(server):
        yield server


async def envelope(client: Client) -> dict[str, Any]:
    text = await soon(client.receive())
    assert text is not None, "it was closed"
    return json.loads(text)


async def ask(client: Client, topic: str, data: Any, ref: str) -> dict[str, Any]:
    await client.send(json.dumps({"topic": topic, "data": data, "id": ref, "ack": True}))
    while (message := await envelope(client)).get("ref") != ref:
        pass
    return message["data"]


@CLIENTS
@SUBPROTOCOLS
async def test_a_client_does_all_that_clients_do(server, kind, subprotocol):
    client = await kind.open(server.url, subprotocol)

    assert client.subprotocol == subprotocol
    if subprotocol is not None:
        assert (await envelope(client))["topic"] == "system:welcome"
    assert (await ask(client, "echo", {"text": "høi ☕"}, "r1"))["echo"] == "høi ☕"
    assert (await ask(client, "system:join", {"room": "r"}, "r2"))["members"] == 1
    await server.hub.broadcast_room("r", "big", "message", BIG)
    assert (await envelope(client))["data"] == BIG
    assert (await ask(client, "echo", {"text": BIG}, "r3"))["echo"] == BIG
    assert (await ask(client, "nowhere", None, "r4"))["code"] == "handler_not_found"
    await soon(client.close())

    assert client.code == 1000
    await eventually(lambda: server.reasons == [DisconnectReason.CLIENT_CLOSED])
    assert server.hub.connection_ids() == []


@CLIENTS
async def test_a_client_is_told_why_the_server_closes(server, kind):
    client = await kind.open(server.url, JSON)
    await envelope(client)
    (conn,) = server.hub.connections()

    await conn.close(DisconnectReason.DISCONNECTED)

    assert await soon(client.receive()) is None
    assert client.code == 4503
    await client.close()


@CLIENTS
async def test_two_clients_talk_in_a_room(server, kind):
    one, two = await kind.open(server.url, JSON), await kind.open(server.url, None)
    for client in (one, two):
        await ask(client, "system:join", {"room": "r"}, "j")
    answer = await ask(one, "system:publish", {"room": "r", "data": {"text": "hi"}}, "p")

    assert answer["delivered"] == 2
    heard = await envelope(two)
    assert (heard["topic"], heard["data"]) == ("room:r", {"text": "hi"})
    for client in (one, two):
        await soon(client.close())


@SUBPROTOCOLS
async def test_nodes_own_websocket(server, subprotocol):
    """The browser's interface, without a browser."""
    node = shutil.which("node")
    assert node, "the tests need Node 20 or newer"
    arguments = [str(NODE_CLIENT), server.url, *([subprotocol] if subprotocol else [])]

    process = await asyncio.create_subprocess_exec(
        node,
        "--experimental-websocket",
        "--no-warnings",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 4 * WITHIN)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 0, err.decode()
    found = json.loads(out)
    assert found["protocol"] == (subprotocol or "")
    assert found["first"] == ("system:welcome" if subprotocol else None)
    assert found["echo"] == "høi ☕"
    assert (found["join"]["room"], found["join"]["members"]) == ("r", 1)
    assert found["big"] is True
    assert found["refused"] == "handler_not_found"
    assert (found["code"], found["wasClean"]) == (1000, True)
    assert server.reasons == [DisconnectReason.CLIENT_CLOSED]
