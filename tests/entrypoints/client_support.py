"""A server that says what a test has it say, and clients that come back quickly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from eyewall.client import Client, State
from tests.application.fakes import RecordingLogger
from tests.entrypoints.wire import JSON, eventually, soon
from tests.faults.proxy import TcpProxy
from tests.ports import free_port

RESUME = "system:resume"


def client(url: str, **options: Any) -> Client:
    """A client that comes back within a moment."""
    quick = {"first_delay": 0.02, "max_delay": 0.05, "logger": RecordingLogger()}
    return Client(url, **{**quick, **options})


def through(proxy: TcpProxy, query: str = "") -> str:
    """The address of the server behind a proxy."""
    return f"ws://127.0.0.1:{proxy.port}/ws{query}"


async def reopened(c: Client, before: str | None) -> None:
    """Wait until a client is open, on another connection than before."""
    await eventually(lambda: c.state is State.OPEN and c.conn_id != before)


class Line:
    """The server's end of one connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket

    async def send(self, topic: str, data: Any = None, **fields: Any) -> None:
        await self.socket.send(json.dumps({"topic": topic, "data": data, **fields}))

    async def placed(self, offset: int, *, epoch: str = "e", room: str = "r", **more: Any) -> None:
        """Send message ``m<offset>`` of a room with history."""
        place = {"room": room, "epoch": epoch, "offset": offset}
        fields = {"id": f"{epoch}{offset}", "stream": place, **more}
        await self.send(f"room:{room}", offset, **fields)

    async def receive(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await soon(self.socket.recv()))
        return found

    async def expect(self, topic: str) -> dict[str, Any]:
        """The next message, which has to be of this topic."""
        message = await self.receive()
        assert message["topic"] == topic, message
        return message

    async def answer(self, request: dict[str, Any], **data: Any) -> None:
        ref = request["id"]
        data = {"message_id": ref, "status": "ok", **data}
        await self.send(request["topic"], data, event="ack", ref=ref)

    async def refuse(self, request: dict[str, Any], code: str, **more: Any) -> None:
        await self.answer(request, status="nack", code=code, error="no", **more)

    async def resumed(self, **rooms: Any) -> dict[str, Any]:
        """Take the resume and answer it; return what was asked."""
        request = await self.expect(RESUME)
        await self.answer(request, rooms=rooms)
        found: dict[str, Any] = request["data"]
        return found

    async def close(self, code: int = 1012, reason: str = "") -> None:
        await self.socket.close(code, reason)

    def cut(self) -> None:
        self.socket.transport.abort()


class Script:
    """A server for one test. ``refusals`` are the answers to the next handshakes."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.lets_in: Callable[[Request], bool] = lambda _: True
        """Whether a handshake is accepted; the others are answered with 503."""
        self.requests: list[Request] = []
        self.welcome: dict[str, Any] | None = {}
        self.before_welcome: Callable[[ServerConnection], Any] | None = None
        self.subprotocols: list[Subprotocol] | None = [Subprotocol(JSON)]
        self._lines: asyncio.Queue[Line] = asyncio.Queue()
        self._count = 0

    async def line(self) -> Line:
        """The next connection, welcomed as ``s1``, ``s2`` and so on."""
        return await soon(self._lines.get())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with serve(
            self._serve,
            "127.0.0.1",
            self.port,
            process_request=self._process,
            subprotocols=self.subprotocols,
            close_timeout=0.2,
        ):
            yield

    def _process(self, _: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        if not self.refusals and self.lets_in(request):
            return None
        status, headers = self.refusals.pop(0) if self.refusals else (503, {})
        length = {"Content-Length": "0"}
        return Response(status, HTTPStatus(status).phrase, Headers({**headers, **length}), b"")

    async def _serve(self, socket: ServerConnection) -> None:
        self._count += 1
        line = Line(socket)
        with contextlib.suppress(ConnectionClosed):
            if self.before_welcome is not None:
                await self.before_welcome(socket)
            if self.welcome is not None:
                name = f"s{self._count}"
                data = {"conn_id": name, "session": name, "heartbeat": 30.0, **self.welcome}
                await line.send("system:welcome", data, event="welcome")
            self._lines.put_nowait(line)
        await socket.wait_closed()


@contextlib.asynccontextmanager
async def scripted() -> AsyncIterator[Script]:
    script = Script()
    async with script.running():
        yield script


@contextlib.asynccontextmanager
async def talking(**options: Any) -> AsyncIterator[tuple[Script, Client, Line]]:
    """A scripted server, and a client whose connection is open."""
    async with scripted() as script, client(script.url, **options) as c:
        yield script, c, await script.line()
