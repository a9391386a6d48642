"""A whole node, with real clients."""

from __future__ import annotations

import asyncio
import gc
import weakref

import aiohttp
import pytest
import websockets
from tornado.websocket import websocket_connect

from eyewall.adapters.web.sockets.link import CLOSED
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.connection import HeartbeatConfig
from tests.adapters.web.support import Client, masked, raw, request, served, turns, until

WAYS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@WAYS
async def test_messages_of_every_size_and_kind_come_back_whole(tls):
    async with served(tls=tls) as here:
        async with websockets.connect(here.url, ssl=here.tls, max_size=None) as ws:
            for size in (0, 1, 125, 126, 65535, 65536, 1 << 20):
                await ws.send("x" * size)
                assert await ws.recv() == "x" * size
            await ws.send("é" * 60)
            assert await ws.recv() == "é" * 60
            await ws.send(b"\x00\xff")
            assert await ws.recv() == b"\x00\xff"
            await ws.send(["fr", "ag", "ment"])
            assert await ws.recv() == "fragment"
            await (await ws.ping(b"zz"))
        assert ws.close_code == 1000
        await until(lambda: here.transport_events.reasons() == [Reason.CLIENT_CLOSED])


async def test_other_clients_are_served_too():
    async with served() as here:
        async with aiohttp.ClientSession() as session, session.ws_connect(here.url) as ws:
            await ws.send_str("aiohttp")
            assert await ws.receive_str() == "aiohttp"
        ws = await websocket_connect(here.url)
        await ws.write_message("tornado")
        assert await ws.read_message() == "tornado"
        ws.close()
        assert await ws.read_message() is None
        await until(lambda: len(here.transport_events.ends) == 2)
        assert here.transport_events.reasons() == [Reason.CLIENT_CLOSED] * 2


@WAYS
async def test_a_thousand_members_get_everything_in_order(tls):
    """Slices, rooms and direct messages, and a member that goes in the middle."""
    count = 300 if tls else 1000
    async with served(tls=tls) as here:
        for _ in range(0, count, 50):
            await asyncio.gather(*(Client.connect(here) for _ in range(50)))
        await until(lambda: len(here.transport_events.links) == count)
        links = here.transport_events.links
        room = here.sockets.outbound.new_group()
        for link in links:
            room.add(link)
        for n in range(20):
            assert room.broadcast(raw(str(n))) == count
            links[n].send(raw(f"own {n}"))
            if n == 10:
                await turns(3)
                links[-1].abort()

        owns = []
        cut = 0
        for client in here.clients:
            got = []
            try:
                while "19" not in got:
                    got.append(await client.text())
                own = [text for text in got if text.startswith("own")]
                owns += own
                assert [got[got.index(o) - 1] for o in own] == [o[4:] for o in own]
                assert [t for t in got if not t.startswith("own")] == [str(n) for n in range(20)]
            except asyncio.IncompleteReadError:
                cut += 1
        assert cut == 1
        assert len(owns) >= 19  # the last one comes behind the message that ends the reading


async def test_a_ping_is_answered_during_a_large_fan_out():
    async with served() as here:
        clients = [await here.connect() for _ in range(100)]
        client = clients[0]
        rooms = [here.sockets.outbound.new_group() for _ in range(100)]
        for room in rooms:
            for link in here.transport_events.links:
                room.add(link)
        client.write(masked("now", 0x89))
        for room in rooms:
            for _ in range(10):
                room.broadcast(raw("x" * 20_000))
        frames = [await client.frame()]
        while frames[-1][0] != 10:
            frames.append(await client.frame())

        assert len(frames) < 1000


async def test_stop_waits_for_the_closes_and_cuts_off_the_rest():
    times = HeartbeatConfig(interval=30, pong_timeout=60, write_wait=30)
    async with served(heartbeat=times) as here:
        polite, link = await here.pair()
        rude, stubborn = await here.pair()
        rude.pause()
        for one in here.transport_events.links:
            one.send(raw("bye"))
            one.close(Reason.SERVER_SHUTDOWN)
        stopping = asyncio.create_task(here.sockets.stop(0.5))
        assert await polite.text() == "bye"
        assert await polite.closed() == (1012, "server_shutdown")
        polite.leave()
        await until(lambda: link.state == CLOSED)
        assert not stopping.done()
        await stopping

        assert stubborn.state == CLOSED
        assert len(here.sockets) == 0
        assert here.transport_events.ends == []


async def test_it_can_be_started_again():
    async with served() as here:
        for n in range(3):
            client, link = await here.pair()
            client.send(str(n))
            assert await client.text() == str(n)
            link.close(Reason.NORMAL)
            assert await client.closed() == (1000, "normal")
            client.leave()
            await here.sockets.stop(5)
            here.sockets.start()


class Owner:
    """Stands for the application's connection."""


@WAYS
async def test_a_connection_that_has_ended_is_not_kept(tls):
    async with served(tls=tls) as here:
        client, link = await here.pair()
        link.owner = Owner()
        owner = weakref.ref(link.owner)
        room = here.sockets.outbound.new_group()
        room.add(link)
        room.broadcast(raw("x"))
        assert await client.text() == "x"
        client.write(masked("half")[:3])
        await until(lambda: here.transport_events.links[0]._parser)
        room.discard(link)
        client.abort()
        await until(lambda: here.transport_events.ends)
        await turns()
        del link
        here.transport_events.links.clear()
        here.transport_events.ends.clear()
        gc.collect()

        assert owner() is None


async def test_early_bytes_of_many_clients_at_once():
    async with served() as here:

        async def one(n):
            client = await Client.dial(here)
            client.write(request() + masked(str(n)))
            await client.answered()
            assert await client.text() == str(n)

        await asyncio.gather(*(one(n) for n in range(100)))
        assert len(here.sockets) == 100


async def test_what_was_sent_before_is_read_up():
    """Also what the parser has whole, but has not handed on yet."""
    async with served() as here:
        clients = [await here.connect() for _ in range(3)]
        for client in clients:
            client.send(*(str(n) for n in range(2000)))
        await here.sockets.drain_input()

        assert len(here.transport_events.messages) == 6000


async def test_with_nobody_there_nothing_is_read_up():
    async with served() as here:
        await asyncio.wait_for(here.sockets.drain_input(), 0.01)
