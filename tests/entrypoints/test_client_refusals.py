"""Connects that fail in every way that servers, proxies and settings have found.

Each is ``Unavailable`` for whoever enters a client, and tried again by one that was open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Callable

import pytest
from websockets.utils import accept_key

from eyewall import Forbidden, Server, Unauthorized, Unavailable
from eyewall.client import Client, State
from eyewall.testing import RecordingLogger
from tests.certificate import tls_contexts
from tests.entrypoints.client_support import client, reopened, scripted
from tests.entrypoints.wire import eventually, running, soon

SECRET = "s3cret"
OK = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %ACCEPT%\r\n"
)
SPEAKS = OK + b"Sec-WebSocket-Protocol: eyewall.v1.json\r\n"

ANSWERS: dict[str, bytes] = {
    "nothing at all": b"",
    "half a status line": b"HTTP/1.1 10",
    "half a header": b"HTTP/1.1 101 Switching Protocols\r\nUpgr",
    "another protocol": b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n",
    "bytes": bytes(range(256)) * 40,
    "zeros": bytes(100_000),
    "one long line": b"x" * 200_000 + b"\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 1010 OK\r\n\r\n",
    "a status that nobody knows": b"HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n",
    "status 0": b"HTTP/1.1 000 Zero\r\n\r\n",
    "status 100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "status 200": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status 204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "status 407": b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
    "no length": b"HTTP/1.1 500 Oops\r\n\r\nthe rest",
    "a length that is none": b"HTTP/1.1 500 Oops\r\nContent-Length: many\r\n\r\n",
    "a negative length": b"HTTP/1.1 500 Oops\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a huge length": b"HTTP/1.1 500 Oops\r\nContent-Length: 99999999999999\r\n\r\n",
    "bad chunks": b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "another coding": b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    "two waits": b"HTTP/1.1 503 No\r\nRetry-After: 0\r\nRetry-After: 0\r\n\r\n",
    "an odd wait": b"HTTP/1.1 503 No\r\nRetry-After: 1e999\r\nContent-Length: 0\r\n\r\n",
    "a wait with odd digits": "HTTP/1.1 503 No\r\nRetry-After: ٣\r\n\r\n".encode(),
    "a header without a name": b"HTTP/1.1 101 OK\r\n: x\r\n\r\n",
    "a header without a colon": b"HTTP/1.1 101 OK\r\nhello\r\n\r\n",
    "a folded header": b"HTTP/1.1 101 OK\r\nUpgrade:\r\n websocket\r\n\r\n",
    "a header of bytes": b"HTTP/1.1 101 OK\r\nUpgrade: \xff\xfe\x00\r\n\r\n",
    "a thousand headers": b"HTTP/1.1 101 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "bare line feeds": b"HTTP/1.1 101 OK\nUpgrade: websocket\n\n",
    "no upgrade": b"HTTP/1.1 101 OK\r\n\r\n",
    "upgraded to another": b"HTTP/1.1 101 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "two upgrades": SPEAKS + b"Upgrade: websocket\r\n\r\n",
    "no accept": SPEAKS.replace(b"%ACCEPT%", b"") + b"\r\n",
    "a wrong accept": SPEAKS.replace(b"%ACCEPT%", b"AAAA") + b"\r\n",
    "two accepts": SPEAKS + b"Sec-WebSocket-Accept: x\r\n\r\n",
    "no subprotocol": OK + b"\r\n",
    "another subprotocol": OK + b"Sec-WebSocket-Protocol: mqtt\r\n\r\n",
    "two subprotocols": SPEAKS + b"Sec-WebSocket-Protocol: eyewall.v1.json\r\n\r\n",
    "a subprotocol that is none": OK + b"Sec-WebSocket-Protocol: ,;=\r\n\r\n",
    "an extension that was not asked for": SPEAKS + b"Sec-WebSocket-Extensions: x-y\r\n\r\n",
    "an extension with odd words": SPEAKS
    + b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99\r\n\r\n",
    "an extension that is none": SPEAKS + b'Sec-WebSocket-Extensions: ;"=\r\n\r\n',
    "the end after the handshake": SPEAKS + b"\r\n",
    "a page after the handshake": SPEAKS + b"\r\n<html>sign in</html>",
    "a frame with a mask": SPEAKS + b"\r\n\x81\x85abcdefghi",
    "a frame that nobody can hold": SPEAKS + b"\r\n\x81\x7f" + b"\xff" * 8,
    "a frame of the wrong kind": SPEAKS + b"\r\n\x83\x00",
    "text that is none": SPEAKS + b"\r\n\x81\x02\xff\xfe",
    "a welcome that is none": SPEAKS + b"\r\n\x81\x02{}",
    "a welcome that Python can't hold": SPEAKS
    + b'\r\n\x81\x29{"topic":"system:welcome","data":[1e9999]}',
    "a ping and the end": SPEAKS + b"\r\n\x89\x00",
    "a redirect to itself": b"HTTP/1.1 302 Found\r\nLocation: /ws\r\nContent-Length: 0\r\n\r\n",
    "a redirect to nowhere": b"HTTP/1.1 307 Go\r\nLocation: \r\nContent-Length: 0\r\n\r\n",
    "a redirect to what is none": b"HTTP/1.1 301 Go\r\nLocation: http://[\r\n\r\n",
    "two redirects": b"HTTP/1.1 308 Go\r\nLocation: /a\r\nLocation: /b\r\n\r\n",
    "choices": b"HTTP/1.1 300 Which\r\nLocation: mailto:x@y\r\nContent-Length: 0\r\n\r\n",
}


class Door:
    """Passes connections on to a hub, or answers some of them itself, as a test says."""

    def __init__(self, hub: int = 0) -> None:
        self.answers: list[bytes] = []
        self.answered = 0
        self.asked: list[bytes] = []
        self._hub = hub
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def open(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
        try:
            yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        finally:
            server.close()
            self.cut()
            await server.wait_closed()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            if self.answers:
                await self._answer(self.answers.pop(0), reader, writer)
            else:
                await self._pass_on(reader, writer)
        writer.transport.abort()

    async def _answer(
        self, answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.answered += 1
        request = await reader.readexactly(1)
        if request != b"\x16":  # nor is the beginning of TLS
            request += await reader.readuntil(b"\r\n\r\n")
        self.asked.append(request)
        writer.write(answer.replace(b"%ACCEPT%", _accept_key(request)))
        await writer.drain()
        writer.write_eof()
        await reader.read()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._hub)
        self._writers += [writer, back]
        await asyncio.gather(_carry(reader, back), _carry(there, writer))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
    writer.close()


def _accept_key(request: bytes) -> bytes:
    for line in request.split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if name.lower() == b"sec-websocket-key":
            return accept_key(value.decode()).encode()
    return b""


@pytest.fixture
async def hub() -> AsyncIterator[Server]:
    async with running() as server:
        yield server


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_that_makes_no_sense_is_unavailable(answer):
    door = Door()
    door.answers.append(answer)
    async with door.open() as url:
        with pytest.raises(Unavailable) as raised:
            await soon(client(url, token=SECRET).__aenter__())

    assert SECRET not in str(raised.value)


async def test_a_client_that_was_open_tries_again_after_each_of_them(hub):
    door = Door(hub.port)
    async with door.open() as url, client(url, first_delay=0.005, max_delay=0.01) as c:
        for name, answer in ANSWERS.items():
            before = c.conn_id
            door.answers += [answer, answer]
            door.cut()
            await eventually(lambda: c.state is State.CLOSED or not door.answers)
            assert c.state is not State.CLOSED, name
            await reopened(c, before)

    assert door.answered == 2 * len(ANSWERS)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", Unauthorized),
        (b"HTTP/1.1 401 No\r\nWWW-Authenticate: a\r\nWWW-Authenticate: b\r\n\r\n", Unauthorized),
        (b"HTTP/1.1 403 No\r\nRetry-After: 1\r\nRetry-After: 2\r\n\r\nno", Forbidden),
    ],
)
async def test_only_a_refusal_is_for_good(hub, answer, kind):
    door = Door(hub.port)
    async with door.open() as url:
        door.answers.append(answer)
        with pytest.raises(kind):
            await soon(client(url).__aenter__())
        async with client(url) as c:
            door.answers.append(answer)
            door.cut()

            await eventually(lambda: c.state is State.CLOSED)


# --- where the answer does not even come from the server


@pytest.mark.parametrize(
    "host",
    [
        "a" * 64 + ".invalid",
        "a..b",
        "bücher..invalid",
        "ü" * 64 + ".invalid",
    ],
)
async def test_a_host_that_no_name_server_can_know_is_unavailable(host):
    with pytest.raises(Unavailable):
        await soon(client(f"ws://{host}:9/ws").__aenter__())


async def test_a_host_that_is_not_found_is_unavailable(monkeypatch):
    def nobody(*_args, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(Unavailable, match="not known"):
        await soon(client("ws://hub.example:9/ws").__aenter__())


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://ada:pa55word@127.0.0.1:9",
        "socks9://ada:pa55word@127.0.0.1:9",
        "http://ada:pa55word@127.0.0.1:9",
        "https://ada:pa55word@127.0.0.1:9",
        "http://ada:pa55word@127.0.0.1:9/path",
        "ada:pa55word@127.0.0.1:9",
        "http://127.0.0.1:port",
        "http://[pa55word",
        "://",
    ],
)
@pytest.mark.parametrize("name", ["http_proxy", "SOCKS_PROXY"])
async def test_a_proxy_that_is_none_is_unavailable_until_the_settings_are_right(
    hub, monkeypatch, name, proxy
):
    for other in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(other)
    monkeypatch.setenv(name, proxy)
    door = Door(hub.port)
    async with door.open() as url:
        async with contextlib.AsyncExitStack() as used:
            (outcome,) = await asyncio.gather(
                used.enter_async_context(client(url)), return_exceptions=True
            )
        # Where nobody takes it for one, it is in nobody's way.
        assert isinstance(outcome, (Unavailable, Client))
        assert "pa55word" not in str(outcome)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with client(url) as c:
            before = c.conn_id
            monkeypatch.delenv("NO_PROXY")
            door.cut()
            await eventually(lambda: c.conn_id != before or c.state is State.WAITING)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")

            await reopened(c, before)


async def test_tls_that_fails_is_unavailable(hub):
    served, _ = tls_contexts()
    door = Door(hub.port)
    door.answers.append(ANSWERS["another protocol"])
    async with door.open() as plain, Door(hub.port).open(served) as unknown:
        for url in (plain, unknown):
            with pytest.raises(Unavailable):
                await soon(client(url.replace("ws:", "wss:")).__aenter__())
        with pytest.raises(Unavailable):  # and the other way round
            await soon(client(unknown, connect_timeout=2).__aenter__())


async def test_a_server_that_takes_and_resets_is_unavailable():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    loop = asyncio.get_running_loop()

    async def reset():
        taken, _ = await loop.sock_accept(listener)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        taken.close()

    resetting = asyncio.ensure_future(reset())
    with listener, pytest.raises(Unavailable):
        await soon(client(f"ws://127.0.0.1:{listener.getsockname()[1]}/ws").__aenter__())
    await resetting


# --- whom the credentials are for


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_takes_no_credentials_anywhere(hub, status):
    elsewhere, door = Door(hub.port), Door(hub.port)
    async with elsewhere.open() as there, door.open() as url:
        elsewhere.answers.append(b"HTTP/1.1 500 No\r\n\r\n")
        for target in (there.replace("ws:", "http:"), there, f"{url}/../ws"):
            location = f"Location: {target}?token={SECRET}\r\nContent-Length: 0\r\n\r\n"
            door.answers.append(f"HTTP/1.1 {status} Go\r\n{location}".encode())
            c = client(url, token=SECRET, headers={"Cookie": f"session={SECRET}"})
            with pytest.raises(Unavailable, match=f"{status}, a redirect") as raised:
                await soon(c.__aenter__())
            assert SECRET not in str(raised.value)

        assert len(door.asked) == 3, "nor anywhere on the same server"
        assert elsewhere.asked == []


async def test_one_who_logs_in_by_token_shows_nothing_else():
    async with scripted() as script:
        headers = {"authorization": "Basic eDp5", "X-Shop": "1"}
        async with client(script.url, token="t0ken", headers=headers):
            (request,) = script.requests

    assert request.headers.get_all("Authorization") == ["Bearer t0ken"]
    assert request.headers["X-Shop"] == "1"


@pytest.mark.parametrize("how", ["text", "callback", "mapping"])
async def test_a_line_s_end_around_a_token_is_none_of_it(how):
    ways: dict[str, object] = {
        "text": f" {SECRET}\r\n",
        "callback": lambda: f"{SECRET}\n",
        "mapping": lambda: {"token": f"\t{SECRET}\n"},
    }
    async with scripted() as script, client(script.url, token=ways[how]):
        (request,) = script.requests

    assert request.headers["Authorization"] == f"Bearer {SECRET}"


async def test_no_line_of_any_log_shows_a_token(hub, caplog):
    """Not even with everything at debug: what websockets logs there has every header."""
    caplog.set_level(logging.DEBUG)
    tokens = iter([f"{SECRET}-1", f"{SECRET}\n-2", f"{SECRET}-3"])
    door, logger = Door(hub.port), RecordingLogger()
    async with door.open() as url:
        c = client(f"{url}?key={SECRET}", token=lambda: next(tokens), logger=logger)
        async with c:
            before = c.conn_id
            door.cut()
            await reopened(c, before)
    traces = [
        "".join(traceback.format_exception(fields["exc_info"]))
        for _, event, fields in logger.entries
        if event == "token_failed"
    ]

    assert traces
    assert SECRET not in f"{logger.entries} {traces} {caplog.text}"


FOREIGN: dict[str, Callable[[], BaseException]] = {
    "one that was cancelled": asyncio.CancelledError,
    "a group": lambda: ExceptionGroup("several", [OSError("a"), ValueError("b")]),
    "no text": LookupError,
}


@pytest.mark.parametrize("error", FOREIGN.values(), ids=FOREIGN)
async def test_whatever_a_token_callback_raises_is_tried_again(hub, error):
    asked: list[int] = []

    async def token() -> str:
        asked.append(1)
        if len(asked) in (2, 3):
            raise error()
        return "t0ken"

    door = Door(hub.port)
    async with door.open() as url, client(url, token=token) as c:
        before = c.conn_id
        door.cut()
        await reopened(c, before)

    assert len(asked) == 4
