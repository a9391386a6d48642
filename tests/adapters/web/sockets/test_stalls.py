"""Real sockets before a loop that stands still: time is moved by hand, and jumps."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from eyewall.application.concurrency.stalls import CHANCE
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.connection import HeartbeatConfig
from tests.adapters.web.support import (
    PING,
    PONG,
    UNIT,
    Client,
    Clock,
    masked,
    raw,
    request,
    served,
    turns,
    until,
)

CLIENTS = 80
"""More than are read in one turn of the loop."""


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request):
    return request.param


@contextlib.asynccontextmanager
async def stood(tls=False, **options):
    clock = Clock(by_hand=True)
    async with served(tls=tls, clock=clock, **options) as here:
        yield here, clock


async def answer_pings(client):
    """Read, and answer every ping, until the end."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError, TimeoutError):
        while True:
            opcode, payload = await client.frame()
            if opcode == PING:
                client.write(masked(payload, 0x80 | PONG))


async def live(clock, seconds):
    """Time passes as it does: something is read and written now and then."""
    for _ in range(round(seconds)):
        clock.advance(1)
        await turns(20)


@pytest.mark.parametrize("seconds", [45, 61, 600])
async def test_no_stall_ends_clients_that_answer_with_the_default_times(tls, seconds):
    async with stood(tls) as (here, clock), asyncio.TaskGroup() as readers:
        clients = [await here.connect() for _ in range(CLIENTS)]
        reading = [readers.create_task(answer_pings(client)) for client in clients]
        gone = await here.connect()
        end = here.transport_events.links[-1]
        await live(clock, 24)
        for _ in range(3):
            clock.stand_still(seconds)
            clock.advance(0)  # every timer rings before anything is read
            await turns(20)
            await live(clock, 5)
        assert here.transport_events.ends == []

        await live(clock, 70)
        assert here.transport_events.reasons() == [Reason.HEARTBEAT_TIMEOUT]
        assert here.transport_events.reasons(end) == [Reason.HEARTBEAT_TIMEOUT]
        for task in reading:
            task.cancel()
        gone.leave()


async def test_a_message_that_had_begun_has_its_time_for_the_rest(tls):
    async with stood(tls, max_message_size=1024) as (here, clock):
        client, _ = await here.pair()
        whole = masked("x" * 100)
        client.write(whole[:50])
        await until(lambda: here.transport_events.links[-1]._parser is not None)
        clock.stand_still(300)
        client.write(whole[50:])
        clock.advance(0)
        await until(lambda: here.transport_events.messages)

        assert here.transport_events.ends == []


async def test_a_write_is_tried_again_before_it_is_given_up():
    """Without a stall, too: what the peer has read since the last try is progress."""
    async with stood() as (here, clock):
        client, link = await here.pair(small=True)
        client.pause()
        while link._backlog is None:
            link.send(raw(b"x" * 50_000))
            await turns(2)
        here.io.poller.unwatch(link._fd)  # nobody will say that there is room again
        client.resume()
        reader = asyncio.create_task(client.end())
        before = link._backlog.last_progress
        await asyncio.sleep(0.1)
        clock.advance(11)

        assert here.transport_events.ends == []
        assert link._backlog is None or link._backlog.last_progress > before
        link.abort()
        await reader


async def test_a_peer_that_reads_after_the_stall_is_no_slow_consumer(tls):
    async with stood(tls) as (here, clock):
        client, link = await here.pair(small=True)
        client.pause()
        while link._backlog is None:
            link.send(raw(b"x" * 50_000))
            await turns(2)
        clock.stand_still(60)
        clock.advance(0)
        await live(clock, 5)
        assert here.transport_events.ends == []
        client.resume()
        reader = asyncio.create_task(client.end())
        await until(lambda: link._backlog is None)

        assert here.transport_events.ends == []
        link.close(Reason.NORMAL)
        client.write(masked(b"\x03\xe8", 0x88))
        await reader


async def test_a_peer_that_never_reads_is_one_after_a_stall_too(tls):
    async with stood(tls) as (here, clock):
        client, link = await here.pair(small=True)
        client.pause()
        while link._backlog is None:
            link.send(raw(b"x" * 50_000))
            await turns(2)
        clock.stand_still(60)
        clock.advance(0)
        await live(clock, 12)

        assert here.transport_events.reasons(link) == [Reason.SLOW_CONSUMER]


async def test_pings_that_came_during_a_stall_are_no_flood(tls):
    async with stood(tls) as (here, clock):
        client, link = await here.pair()
        clock.stand_still(45)
        for _ in range(450):
            client.write(masked("", 0x89))
        client.send("behind them")
        clock.advance(0)
        await until(lambda: here.transport_events.messages)
        assert here.transport_events.ends == []

        await live(clock, CHANCE + 5)
        for _ in range(450):
            client.write(masked("", 0x89))
        await until(lambda: here.transport_events.ends)
        assert here.transport_events.reasons(link) == [Reason.POLICY_VIOLATION]


async def test_a_close_that_was_under_way_has_its_time(tls):
    async with stood(tls) as (here, clock):
        client, link = await here.pair()
        link.close(Reason.DISCONNECTED)
        await turns(5)
        clock.stand_still(60)
        clock.advance(0)
        assert await client.frame() == (8, b"\x11\x97disconnected")
        client.write(masked(b"\x11\x97", 0x88))
        assert await client.end() == b""


async def test_a_client_that_reads_slowly_is_not_silent():
    """No ping can be written to it, so it has nothing to answer."""
    times = HeartbeatConfig(interval=25, pong_timeout=60, write_wait=600)
    async with stood(heartbeat=times) as (here, clock):
        client, link = await here.pair(small=True)
        client.pause()
        while link._backlog is None:
            link.send(raw(b"x" * 50_000))
            await turns(2)
        await live(clock, 200)

        assert here.transport_events.ends == []
        client.abort()


async def test_a_decision_that_came_during_a_stall_lets_in(tls):
    """What the authenticator waits for has come, and the time for the handshake is over."""
    async with served(tls=tls, handshake_timeout=0.5 * UNIT) as here:
        decided = asyncio.Event()
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def ask(_handshake):
            asked.set()
            await decided.wait()
            for _ in range(10):
                await asyncio.sleep(0)

        here.transport_events.on_authenticate = ask
        client = await Client.dial(here)
        client.write(request())
        await asked.wait()
        threading.Timer(0.1, loop.call_soon_threadsafe, [decided.set]).start()
        time.sleep(1.0 * UNIT)
        await client.answered()

        assert client.status == 101
