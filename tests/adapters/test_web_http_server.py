"""Requests have a size, a number and an end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from eyewall.adapters.web import http_server as module
from eyewall.adapters.web.http_server import (
    MAX_BODY_SIZE,
    MAX_HEADER_SIZE,
    deadline_of,
    http_server,
)
from tests.adapters.web_support import PATIENCE, UNIT, cut, tls_contexts

SOON = 0.3 * UNIT
HEAD = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """A server of one page, and its clients."""

    def __init__(self) -> None:
        self.port = 0
        self.asked = 0
        self.gate: asyncio.Event | None = None
        self.deadlines: list[float | None] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.tls = None

    async def dial(self, data: bytes = b"", *, plain: bool = False) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=None if plain else self.tls,
            server_hostname=None if plain or self.tls is None else "localhost",
        )
        self.writers.append(writer)
        writer.write(data)
        return reader


class Page(RequestHandler):
    def initialize(self, site: Site) -> None:
        self.site = site

    async def get(self) -> None:
        self.site.asked += 1
        self.site.deadlines.append(deadline_of(self.request))
        if self.site.gate is not None:
            await self.site.gate.wait()
        self.finish("read")

    post = get


@contextlib.asynccontextmanager
async def serving(timeout: float = PATIENCE, *, tls: bool = False) -> AsyncIterator[Site]:
    site = Site()
    context = None
    if tls:
        context, site.tls = tls_contexts()
    app = Application([("/page", Page, {"site": site})], log_function=lambda _: None)
    server = http_server(app, ssl=context, handshake_timeout=timeout)
    sockets = bind_sockets(0, "127.0.0.1")
    site.port = sockets[0].getsockname()[1]
    server.add_sockets(sockets)
    try:
        yield site
    finally:
        server.stop()
        await server.close_all_connections()
        for writer in site.writers:
            cut(writer)
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        assert not server._unread
        assert server._timer is None


async def ended(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def answered(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(PATIENCE):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(size)
    return int(head.split()[1])


# --- the deadline


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("data", [b"", b"GET /pa", HEAD[:-2]])
async def test_a_request_that_does_not_go_on_is_cut(data, tls):
    async with serving(SOON, tls=tls) as site:
        assert await ended(await site.dial(data)) == b""
        assert site.asked == 0


async def test_a_tls_handshake_that_does_not_begin_is_cut():
    async with serving(SOON, tls=True) as site:
        assert await ended(await site.dial(plain=True)) == b""


@pytest.mark.parametrize(
    "slow",
    [
        HEAD[:-2] + b"X: " + b"x" * 10_000,
        b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n",
    ],
    ids=["headers", "body"],
)
async def test_a_byte_now_and_then_does_not_keep_a_request_alive(slow):
    async with serving(SOON) as site:
        reader = await site.dial(slow)

        async def drip() -> None:
            while True:
                site.writers[0].write(b"x")
                await asyncio.sleep(SOON / 20)

        dripping = asyncio.ensure_future(drip())
        try:
            assert await ended(reader) == b""
        finally:
            dripping.cancel()
        assert site.asked == 0


async def test_each_request_of_a_connection_has_a_time_of_its_own():
    """And silence in between is part of the next one's."""
    async with serving(SOON) as site:
        reader = await site.dial(HEAD)
        assert await answered(reader) == 200
        site.writers[0].write(HEAD)
        assert await answered(reader) == 200
        first, second = site.deadlines
        assert first is not None
        assert second is not None
        assert first < second

        assert await ended(reader) == b""


async def test_a_page_that_takes_its_time_to_answer_is_not_cut():
    """The time is the client's: it has done all that it can."""
    async with serving(SOON) as site:
        site.gate = asyncio.Event()
        waiting = await site.dial(HEAD)
        silent = await site.dial()
        assert await ended(silent) == b""  # its time came later, and has run out
        site.gate.set()

        assert await answered(waiting) == 200


async def test_those_whose_time_has_not_come_stay():
    async with serving(SOON) as site:
        early = await site.dial()
        cut = asyncio.ensure_future(ended(early))
        await asyncio.sleep(SOON / 2)
        late = await site.dial(HEAD[:-2])
        await cut
        site.writers[1].write(b"\r\n")

        assert await answered(late) == 200


# --- the number


async def test_of_too_many_that_do_not_go_on_the_oldest_makes_room(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNREAD", 3)
    async with serving() as site:
        silent = [await site.dial() for _ in range(3)]
        reader = await site.dial(HEAD)

        assert await answered(reader) == 200
        assert await ended(silent[0]) == b""
        for n in (1, 2):
            site.writers[n].write(HEAD)
            assert await answered(silent[n]) == 200


async def test_requests_that_were_read_are_not_among_them(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNREAD", 1)
    async with serving() as site:
        site.gate = asyncio.Event()
        readers = [await site.dial(HEAD)]
        for n in range(2, 6):
            async with asyncio.timeout(PATIENCE):
                while site.asked < n - 1:
                    await asyncio.sleep(0.001)
            readers.append(await site.dial(HEAD))
        async with asyncio.timeout(PATIENCE):
            while site.asked < 5:
                await asyncio.sleep(0.001)
        site.gate.set()

        statuses = [(await reader.read(12))[9:] for reader in readers]
        assert statuses == [b"200"] * 5


# --- the size


async def test_headers_over_the_limit_close_the_connection():
    async with serving() as site:
        assert await ended(await site.dial(HEAD[:-2] + b"X: " + b"x" * MAX_HEADER_SIZE)) == b""
        assert site.asked == 0


async def test_a_body_over_the_limit_is_refused_before_it_comes():
    async with serving() as site:
        head = f"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_SIZE + 1}\r\n\r\n"
        told = await ended(await site.dial(head.encode()))

        assert told.startswith(b"HTTP/1.1 400 ")
        assert site.asked == 0
