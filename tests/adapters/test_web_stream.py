"""Connections that stay on Tornado's stream."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket

import pytest
import websockets

from eyewall.adapters.web.outgoing import GONE
from eyewall.adapters.web.stream import StreamLink
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.outbox import Offer, QueueConfig
from tests.adapters.web_support import Client, masked, raw, request, served, turns, until


def no_descriptors(monkeypatch):
    def dup(self):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket.socket, "dup", dup)


async def test_tls_stays_on_the_stream():
    async with served(tls=True) as here:
        _, link = await here.pair()
        assert type(link) is StreamLink


async def test_without_a_descriptor_to_spare_the_connection_stays_on_the_stream(monkeypatch):
    async with served() as here:
        no_descriptors(monkeypatch)
        client, link = await here.pair()
        assert type(link) is StreamLink
        client.send("hello", "é" * 40_000)

        assert await client.texts(2) == ["hello", "é" * 40_000]
        link.close(Reason.SERVER_SHUTDOWN)
        assert await client.closed() == (1012, "server_shutdown")


async def test_the_last_descriptor_of_the_process_is_enough_for_a_connection():
    """The limit is real here, and just one descriptor is left when the client dials."""
    async with served() as here:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = socket.socket()
        client.setblocking(False)
        spare = os.dup(client.fileno())  # the lowest free number, for the server's side
        os.close(spare)
        used = [os.dup(client.fileno())]
        os.close(used.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest_in_use() + 2, before[1]))
        try:
            while True:
                try:
                    used.append(os.dup(client.fileno()))
                except OSError:
                    break
            os.close(used.pop())
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", here.port))
            await loop.sock_sendall(client, request() + masked("hello"))
            await until(lambda: here.intake.messages)
        finally:
            for fd in used:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        (link,) = here.intake.links
        assert type(link) is StreamLink
        data = b""
        while not data.endswith(b"\x81\x05hello"):
            data += await loop.sock_recv(client, 1000)
        client.close()


def highest_in_use() -> int:
    return max(int(name) for name in os.listdir("/proc/self/fd"))


async def test_the_streams_own_buffer_never_holds_more_than_what_is_next():
    async with served(tls=True, queue=QueueConfig(size=50)) as here:
        client, link = await here.pair(small=True)
        client.pause()
        for _ in range(1000):
            link.send(raw(b"x" * 30_000))
            await asyncio.sleep(0)
            assert len(link._stream._write_buffer) <= 16 * 1024
        assert link.queued <= 51
        assert link.send(raw("full")) is Offer.DROPPED_NEWEST


async def test_a_large_frame_over_tls_is_whole_after_a_stall():
    """OpenSSL wants refused bytes again exactly as they were."""
    async with served(tls=True) as here:
        client, link = await here.pair(small=True)
        client.pause()
        parts = [os.urandom(3_000_000 + n) for n in range(3)]
        for part in parts:
            link.send(raw(part, binary=True))
            await turns()
        assert link._backlog is not None
        client.resume()

        for part in parts:
            assert (await client.frame())[1] == part


async def test_early_frames_are_read_over_tls_too():
    async with served(tls=True) as here:
        client = await Client.dial(here)
        client.write(request() + masked("1") + masked("2")[:3])
        await until(lambda: here.intake.links)
        client.write(masked("2")[3:])
        await client.answered()
        assert await client.texts(2) == ["1", "2"]


async def test_a_peer_that_vanishes_while_the_connection_is_being_opened_is_lost_once():
    gate = asyncio.Event()

    async def slow(_link):
        await gate.wait()
        return True

    async with served(tls=True) as here:
        here.intake.on_open = slow
        client, link = await here.pair()
        client.abort()
        await until(lambda: here.intake.ends)
        gate.set()
        await turns()
        assert here.intake.reasons() == [Reason.CONNECTION_LOST]
        assert link.state == GONE


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_fan_out_reaches_tls_and_plain_connections_alike(size, monkeypatch):
    async with served(tls=True) as here:
        clients = [await here.connect() for _ in range(10)]
        room = here.sockets.outbound.audience()
        for link in here.intake.links:
            room.add(link)
        for n in range(20):
            room.publish(raw(f"{n:06}".ljust(size)))
        for client in clients:
            assert [int(text[:6]) for text in await client.texts(20)] == list(range(20))


async def test_a_real_client_closes_cleanly_over_tls():
    async with served(tls=True) as here:
        async with websockets.connect(here.url, ssl=here.tls) as ws:
            await ws.send("hello")
            assert await ws.recv() == "hello"
            here.intake.links[0].close(Reason.REPLACED)
            with pytest.raises(websockets.ConnectionClosed):
                await ws.recv()
        assert (ws.close_code, ws.close_reason) == (4501, "replaced")
        await until(lambda: not len(here.sockets))
