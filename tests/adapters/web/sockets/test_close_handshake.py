"""After our close frame: the socket stays open until the peer's has come (RFC 6455, 7.1.1).

Where no time has to pass the clock stands still: nothing here is ended by a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from eyewall.adapters.web.sockets.link import CLOSE_SENT, CLOSE_TIMEOUT, CLOSED, FIN_SENT
from eyewall.adapters.web.sockets.poller import LoopSource
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.outbox import QueueConfig
from tests.adapters.web.support import (
    CLOSE,
    UNIT,
    Clock,
    header,
    masked,
    raw,
    served,
    until,
)

pytestmark = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])

GOODBYE = masked(b"\x03\xe8", 0x88)
KICKED = (CLOSE, b"\x11\x97disconnected")


@pytest.fixture(params=["epoll", "loop"])
def source(request):
    return None if request.param == "epoll" else LoopSource()


@contextlib.asynccontextmanager
async def timeless(**options):
    async with served(clock=Clock(by_hand=True), **options) as here:
        yield here


@contextlib.asynccontextmanager
async def kicked(**options):
    """A node, a client that has read 100 messages and its close frame, and its link."""
    async with timeless(**options) as here:
        client, link = await here.pair()
        for n in range(100):
            link.send(raw(str(n)))
        link.close(Reason.DISCONNECTED)
        assert await client.texts(100) == [str(n) for n in range(100)]
        assert await client.frame() == KICKED
        yield here, client, link


async def chat(here, seconds=0.15):
    """Let others be served for a while."""
    other = await here.connect()
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < began + seconds:
        other.send("hello")
        assert await other.text() == "hello"


async def test_a_client_is_not_told_the_end_before_it_has_answered(tls, source):
    """Many that find it drop what they have not handled yet, and report 1006."""
    async with kicked(tls=tls, source=source) as (here, client, link):
        await chat(here)
        assert not client.reader.at_eof()
        assert link.state == CLOSE_SENT
        client.write(GOODBYE)

        assert await client.end() == b""
        client.leave()
        await until(lambda: link.state == CLOSED)
        assert here.transport_events.ends == []


async def test_the_server_is_the_first_to_close(tls, source):
    """So that what is left of the connection, TIME_WAIT, is not the client's."""
    async with kicked(tls=tls, source=source) as (_, client, link):
        client.write(GOODBYE)
        await until(lambda: link.state == FIN_SENT or client.reader.at_eof())
        assert await client.end() == b""


async def test_what_comes_while_lingering_is_neither_handled_nor_answered(tls, source):
    async with kicked(tls=tls, source=source) as (here, client, _):
        client.write(masked("late") + masked("ping", 0x89) + masked("x" * 100_000, 0x01))
        client.write(masked("ping", 0x89) + masked("x", 0x80) + GOODBYE + b"more")

        assert await client.end() == b""
        assert here.transport_events.messages == []


async def test_the_peers_end_without_a_close_frame_is_an_end_too(tls, source):
    async with kicked(tls=tls, source=source) as (_, client, link):
        client.leave()
        await until(lambda: link.state == CLOSED)


async def test_a_reset_while_lingering_is_an_end_too(tls, source):
    async with kicked(tls=tls, source=source) as (here, client, link):
        client.abort()
        await until(lambda: link.state == CLOSED)
        assert here.transport_events.ends == []


async def test_a_peer_that_never_answers_is_closed_at_the_deadline(tls):
    async with kicked(tls=tls) as (here, client, link):
        here.clock.advance(CLOSE_TIMEOUT - 2)
        assert link.state == CLOSE_SENT
        here.clock.advance(4)

        assert link.state == CLOSED
        assert await client.end() == b""


@pytest.mark.parametrize("data", [b"z" * 1000, header(1 << 62), masked("x" * 900)])
async def test_who_sends_for_ever_does_not_stay_longer(tls, data):
    """Whatever it is: garbage, a frame without an end, or messages."""
    async with kicked(tls=tls) as (here, client, link):
        with contextlib.suppress(OSError):
            for _ in range(1000):
                client.write(data)
                await client.writer.drain()
        assert link.state == CLOSE_SENT
        here.clock.advance(CLOSE_TIMEOUT + 1)
        assert link.state == CLOSED


async def test_the_time_for_the_answer_is_no_longer_than_write_wait(tls):
    times = HeartbeatConfig(write_wait=0.2 * UNIT)
    async with served(tls=tls, heartbeat=times) as here:
        client, link = await here.pair()
        link.close(Reason.NORMAL)
        await client.frame()

        assert await client.end() == b""
        assert link.state == CLOSED


async def test_a_close_that_came_before_ours_was_written_is_not_waited_for_again(tls):
    """Ours was on its way, behind what a slow peer had not read."""
    async with timeless(tls=tls, queue=QueueConfig(size=1000)) as here:
        client, link = await here.pair(small=True)
        client.pause()
        sent = 0
        while link._backlog is None:
            link.send(raw(f"{sent:06}".ljust(10_000)))
            sent += 1
            await asyncio.sleep(0)
        link.close(Reason.DISCONNECTED)
        client.write(masked("late") + GOODBYE)
        await until(lambda: link._close_scanner is None)
        client.resume()

        assert [int(text[:6]) for text in await client.texts(sent)] == list(range(sent))
        assert await client.frame() == KICKED
        assert await client.end() == b""


async def test_a_close_behind_the_message_whose_handler_closes_is_not_overlooked(tls):
    """Both come in one read, whole or in part."""
    async with timeless(tls=tls) as here:
        here.transport_events.on_message = lambda link, *_: link.close(Reason.DISCONNECTED)
        for cut in (*range(len(GOODBYE) + 1), None):
            client = await here.connect()
            client.write(masked("bye") + masked("later") * 40 + GOODBYE[:cut])
            assert await client.frame() == KICKED
            client.write(b"" if cut is None else GOODBYE[cut:])
            assert await client.end() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x02hi",
        masked("x", 0xF1),
        masked("", 0x09),
        masked("x" * 126, 0x89),
        masked(b"\xff\xfe"),
        masked("fr", 0x01) + masked(b"\xff", 0x80),
        header((1 << 20) + 1) + b"z" * ((1 << 20) + 1),
    ],
)
async def test_a_close_behind_a_violation_ends_the_connection_at_once(tls, data):
    """Its frames are not processed any more, but a peer that keeps to them is not kept."""
    async with timeless(tls=tls) as here:
        for behind in (0, 1, 1000):
            client = await here.connect()
            client.write(masked("good") + data + masked("x" * behind) + GOODBYE)
            await until(lambda: here.transport_events.ends)
            here.transport_events.ends.clear()

            assert (await client.end())[6:7] == b"\x88"


@pytest.mark.parametrize(
    ("payload", "first"),
    [
        (b"\x03", 0x88),
        (b"\x03\xed", 0x88),
        (b"\x03\xe8\xff", 0x88),
        (b"\x03\xe8" + b"x" * 124, 0x88),
        (b"\x03\xe8", 0x08),
        (b"\x03\xe8", 0xC8),
    ],
)
async def test_a_close_frame_that_is_wrong_is_one_all_the_same(tls, payload, first):
    async with timeless(tls=tls) as here:
        client = await here.connect()
        client.write(masked(payload, first))

        assert (await client.frame())[0] == CLOSE
        assert await client.end() == b""


async def test_who_is_refused_while_the_connection_is_opened_may_answer_too(tls):
    async def refuse(link):
        link.close(Reason.POLICY_VIOLATION)
        return False

    async with timeless(tls=tls) as here:
        here.transport_events.on_open = refuse
        client, link = await here.pair()
        assert (await client.frame())[1] == b"\x03\xf0policy_violation"
        await chat_without_links(here)
        assert link.state == CLOSE_SENT
        client.write(GOODBYE)

        assert await client.end() == b""


async def chat_without_links(here):
    """Let some time pass in which others are refused."""
    for _ in range(10):
        client = await here.connect()
        assert (await client.frame())[0] == CLOSE


async def test_a_stop_waits_for_those_who_have_not_answered_yet(tls):
    async with timeless(tls=tls) as here:
        client, link = await here.pair()
        link.close(Reason.SERVER_SHUTDOWN)
        stopping = asyncio.create_task(here.sockets.stop(60.0))
        await client.frame()
        assert not stopping.done()
        client.write(GOODBYE)
        assert await client.end() == b""
        client.leave()

        await stopping


async def test_a_stop_cuts_off_those_who_do_not_answer_in_its_time(tls):
    async with timeless(tls=tls) as here:
        client, link = await here.pair()
        link.close(Reason.SERVER_SHUTDOWN)
        await here.sockets.stop(0.05)

        assert link.state == CLOSED
        assert (await client.frame())[1] == b"\x03\xf4server_shutdown"
        assert await client.end() == b""
