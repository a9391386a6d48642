"""Requests have a size, a number and an end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from eyewall.adapters.clock.system import SystemClock
from eyewall.adapters.web.http import lingering_close
from eyewall.adapters.web.http import server as module
from eyewall.adapters.web.http.proxies import TrustedProxies
from eyewall.adapters.web.http.refusals import RefusalLog
from eyewall.adapters.web.http.server import (
    MAX_BODY_SIZE,
    MAX_HEADER_SIZE,
    LimitedServer,
    deadline_of,
    http_server,
)
from eyewall.testing.logs import RecordingLogger
from tests.adapters.web.support import PATIENCE, UNIT, cut, tls_contexts

SOON = 0.3 * UNIT
HEAD = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """A server of one page, and its clients."""

    def __init__(self) -> None:
        self.port = 0
        self.server: LimitedServer | None = None
        self.log = RecordingLogger()
        self.refused: list[str] = []
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
    refusals = RefusalLog(SystemClock(), site.log, TrustedProxies())
    refusals.count = site.refused.append
    server = http_server(app, ssl=context, handshake_timeout=timeout, refusals=refusals)
    site.server = server
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
        refusals.close()
        assert not server._pending
        assert not server._idle
        assert not server._closer._lingering
        assert server._timer is None


async def ended(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """All until the server's end; a reset raises ``ConnectionError``."""
    async with asyncio.timeout(PATIENCE):
        return await reader.read()


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


async def test_each_request_of_a_connection_has_a_time_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "KEEP_ALIVE", SOON)
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
    monkeypatch.setattr(module, "MAX_PENDING_REQUESTS", 3)
    async with serving() as site:
        silent = [await site.dial() for _ in range(3)]
        reader = await site.dial(HEAD)

        assert await answered(reader) == 200
        assert await ended(silent[0]) == b""
        for n in (1, 2):
            site.writers[n].write(HEAD)
            assert await answered(silent[n]) == 200


async def test_requests_that_were_read_are_not_among_them(monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING_REQUESTS", 1)
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


@pytest.mark.parametrize("size", [MAX_HEADER_SIZE, 500_000])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_headers_over_the_limit_are_answered(size, tls):
    async with serving(tls=tls) as site:
        told = await all_of(await site.dial(HEAD[:-2] + b"X: " + b"x" * size))

        assert told.startswith(b"HTTP/1.1 431 ")
        assert b"\r\nConnection: close\r\n" in told
        assert told.count(b"HTTP/1.1") == 1
        assert site.refused == ["headers"]
        assert site.log.fields("handshake_refused")["status"] == 431
        assert site.asked == 0


FILLER = b"x" * 500_000
"""More than is read before the answer."""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n", b"400"),
        (b"POST /page HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
    ],
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_an_answer_arrives_whatever_is_unread(request_, status, tls):
    """A reset would show as ``ConnectionResetError``, or take the answer away."""
    async with serving(tls=tls) as site:
        told = await all_of(await site.dial(request_ + FILLER))

        assert told.startswith(b"HTTP/1.1 " + status)
        assert told.count(b"HTTP/1.1") == 1


async def test_who_does_not_close_behind_an_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(lingering_close, "LINGER_TIMEOUT", SOON)
    async with serving() as site:
        told = await all_of(await site.dial(b"nonsense\r\n\r\n"))
        assert told.startswith(b"HTTP/1.1 400 ")

        async with asyncio.timeout(PATIENCE):
            while not site.writers[0].transport.is_closing():  # until it was reset
                site.writers[0].write(b"more")
                await asyncio.sleep(0.001)


async def test_of_too_many_that_do_not_close_the_first_is_cut_off(monkeypatch):
    monkeypatch.setattr(lingering_close, "MAX_LINGERING", 1)
    async with serving() as site:
        for _ in range(3):
            told = await all_of(await site.dial(b"nonsense\r\n\r\n"))
            assert told.startswith(b"HTTP/1.1 400 ")

        assert len(site.server._closer._lingering) == 1


async def test_an_end_waits_for_those_who_were_just_answered():
    async with serving() as site:
        await all_of(await site.dial(b"nonsense\r\n\r\n"))
        site.server.stop()
        ending = asyncio.ensure_future(site.server.refuse_pending())
        await asyncio.sleep(0)
        assert not ending.done()
        site.writers[0].close()
        await ending

        assert not site.server._closer._lingering


async def test_a_body_over_the_limit_is_refused_before_it_comes():
    async with serving() as site:
        head = f"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_SIZE + 1}\r\n\r\n"
        told = await ended(await site.dial(head.encode()))

        assert told.startswith(b"HTTP/1.1 400 ")
        assert site.asked == 0


# --- kept alive


@pytest.mark.parametrize(
    "options",
    ["Connection: close", "Connection: TE, close", "Connection: TE\r\nConnection: CLOSE"],
)
async def test_a_client_that_wants_the_end_gets_it_whatever_else_it_says(options):
    async with serving() as site:
        request_ = f"GET /page HTTP/1.1\r\nHost: x\r\n{options}\r\n\r\n"
        told = await all_of(await site.dial(request_.encode()))

        assert told.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in told


def test_a_connection_is_kept_alive_for_longer_than_proxies_keep_theirs():
    """They reuse one that they have had for up to 60 s."""
    assert module.KEEP_ALIVE > 60


async def test_a_silent_connection_outlives_the_time_of_a_request_and_is_served():
    async with serving(SOON) as site:
        reader = await site.dial(HEAD)
        assert await answered(reader) == 200
        for _ in range(2):  # each of them as silent as may be, and cut after SOON
            assert await ended(await site.dial()) == b""
        site.writers[0].write(HEAD)

        assert await answered(reader) == 200
        assert site.refused == ["timeout", "timeout"]  # the first is none of them


@pytest.mark.parametrize("begun", [b"G", HEAD[:-2]], ids=["first byte", "headers"])
async def test_a_request_that_was_begun_on_a_kept_connection_has_to_go_on(begun):
    async with serving(SOON) as site:
        reader = await site.dial(HEAD)
        assert await answered(reader) == 200
        site.writers[0].write(begun)

        assert await ended(reader) == b""
        assert site.refused == ["timeout"]


async def test_two_requests_in_one_piece_are_both_served():
    async with serving(SOON) as site:
        reader = await site.dial(HEAD + HEAD)

        assert await answered(reader) == 200
        assert await answered(reader) == 200


async def test_of_too_many_a_silent_one_that_had_its_answer_makes_room_first(monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING_REQUESTS", 2)
    async with serving() as site:
        waiting = await site.dial(HEAD[:-2])
        kept = await site.dial(HEAD)
        assert await answered(kept) == 200
        await site.dial()

        assert await ended(kept) == b""
        site.writers[0].write(b"\r\n")
        assert await answered(waiting) == 200
        assert site.refused == []


# --- what is no request


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET /page?token=s3cret HTTP/1.1\r\n\r\n",
        b"GET /page HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /page HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\x01\r\n\r\n",
        b"GET http:///page?token=s3cret HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://x:y/page?token=s3cret HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /page HTTP/1.1\r\nHost: x\r\nContent-Length: s3cret\r\n\r\n",
        b"POST /page HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\ns3cret\r\n",
        b"POST /page HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: s3cret\r\n\r\n",
    ],
)
async def test_what_can_t_be_read_gets_400_and_leaves_a_trace(request_, caplog):
    """Tornado's own line quotes what it can't read: that may be a token."""
    caplog.set_level("DEBUG")
    async with serving() as site:
        assert (await ended(await site.dial(request_))).startswith(b"HTTP/1.1 400 ")

        assert site.asked == 0
        assert site.refused == ["malformed"]
        assert site.log.fields("handshake_refused")["status"] == 400
        assert "s3cret" not in f"{caplog.text}{site.log.entries}"
        assert [record.levelname for record in caplog.records if record.levelno > 20] == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/page",
        "https://example.com/page",
        "ws://example.com:8080/page",
        "WSS://ada:s3cret@example.com/page",
        "http://[::1]:80/page?a=b",
        "http://example.com:/page",
    ],
)
async def test_a_request_may_name_the_whole_url(url):
    async with serving() as site:
        reader = await site.dial(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

        assert await answered(reader) == 200


@pytest.mark.parametrize("hosts", ["", "Host: x\r\nHost: y\r\n"], ids=["no host", "two"])
async def test_a_whole_url_does_not_stand_for_the_host_field(hosts):
    """RFC 9112, 3.2: without one, and with two, the answer is 400 all the same."""
    async with serving() as site:
        told = await ended(await site.dial(f"GET http://x/page HTTP/1.1\r\n{hosts}\r\n".encode()))

        assert told.startswith(b"HTTP/1.1 400 ")


# --- the end


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    "half", [b"G", HEAD[:-2], b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"]
)
async def test_a_request_that_is_half_read_at_the_end_is_told_to_come_back(half, tls):
    async with serving(tls=tls) as site:
        reader = await site.dial(half)
        silent = await site.dial()
        kept = await site.dial(HEAD)
        assert await answered(kept) == 200
        async with asyncio.timeout(PATIENCE):
            while not any(map(module._has_bytes, site.server._pending)) and not any(
                unread.headers for unread in site.server._pending.values()
            ):
                await asyncio.sleep(0.001)
        site.server.stop()
        ending = asyncio.ensure_future(site.server.refuse_pending())
        told = await reader.readuntil(b"try again later\n")
        site.writers[0].close()
        await ending

        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: " in told
        assert b"\r\nConnection: close\r\n" in told
        assert site.refused == ["draining"]
        await site.server.close_all_connections()
        assert await ended(silent) == await ended(kept) == b""


async def test_a_request_that_was_told_to_come_back_is_not_answered_twice():
    async with serving() as site:
        reader = await site.dial(HEAD[:-2])
        async with asyncio.timeout(PATIENCE):
            while not any(map(module._has_bytes, site.server._pending)):
                await asyncio.sleep(0.001)
        ending = asyncio.ensure_future(site.server.refuse_pending())
        told = await reader.readuntil(b"try again later\n")
        site.writers[0].write(b"\r\n")
        told += await ended(reader)
        await ending

        assert told.count(b"HTTP/1.1") == 1
        assert site.asked == 0
