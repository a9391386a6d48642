"""What a server runs on: TLS, another event loop, threads, somebody's application."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from eyewall import MemoryPubSub, MemoryState, Message, Server
from tests.certificate import tls_contexts
from tests.entrypoints.house import by_name
from tests.entrypoints.wire import WITHIN, free_port, peer, running, soon


def make_server(**options):
    server = Server(client_commands=True, authenticator=by_name, **options)

    @server.on("echo")
    async def echo(ctx, msg):
        return {"echo": msg.data}

    @server.on("plain")
    def plain(ctx, msg):
        return {"thread": threading.current_thread() is not threading.main_thread()}

    return server


# --- TLS


async def test_over_tls_everything_works_to_the_goodbye():
    """A request larger than a TLS record, a fan-out, and a shutdown that is told."""
    server_side, client_side = tls_contexts()
    server = make_server()
    await server.start(port=free_port(), ssl=server_side)
    async with (
        peer(server, query="?name=ada", ssl=client_side) as ada,
        peer(server, query="?name=ben", ssl=client_side) as ben,
    ):
        assert server.url.startswith("wss://")
        assert (await ada.request("echo", "x" * 100_000))["echo"] == "x" * 100_000
        await ada.join("lab")
        await ben.join("lab")
        assert await server.hub.broadcast_room("lab", "room:lab", "message", "y" * 50_000) == 2
        for client in (ada, ben):
            assert (await client.expect("room:lab"))["data"] == "y" * 50_000

        await server.shutdown(timeout=1)

        for client in (ada, ben):
            assert await client.closed() == (1012, "server_shutdown")


async def test_a_client_without_tls_gets_nowhere_and_harms_nobody():
    server_side, client_side = tls_contexts()
    server = make_server()
    await server.start(port=free_port(), ssl=server_side)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /ws HTTP/1.1\r\nHost: here\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"HTTP" not in await soon(reader.read())
        writer.close()

        async with peer(server, ssl=client_side) as client:
            assert (await client.request("echo", 1))["echo"] == 1
    finally:
        await server.shutdown(timeout=1)


# --- uvloop


def test_it_runs_on_uvloop():
    """A request, one to a plain handler, a fan-out, a clean shutdown, and that twice."""
    uvloop = pytest.importorskip("uvloop")

    async def scenario():
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        server, tasks = make_server(), asyncio.all_tasks()
        for _ in range(2):
            await server.start(port=free_port())
            async with (
                peer(server, query="?name=ada") as ada,
                peer(server, query="?name=ben") as ben,
            ):
                assert (await ada.request("echo", "x" * 200_000))["echo"] == "x" * 200_000
                assert (await ada.request("plain"))["thread"] is True
                await ada.join("lab")
                await ben.join("lab")
                for n in range(100):
                    assert await server.hub.broadcast_room("lab", "room:lab", "n", n) == 2
                for client in (ada, ben):
                    heard = [(await client.expect("room:lab", "n"))["data"] for _ in range(100)]
                    assert heard == list(range(100))

                await server.shutdown(timeout=1)

                for client in (ada, ben):
                    assert await client.closed() == (1012, "server_shutdown")
        assert server.port is None
        assert asyncio.all_tasks() == tasks

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


# --- threads


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine):
        """Run it there; return the result here."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WITHIN)

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def in_thread(**options):
    loop, server = Loop(), make_server(**options)
    try:
        loop.run(server.start(port=free_port()))
        try:
            yield loop, server
        finally:
            loop.run(server.shutdown(timeout=1))
    finally:
        loop.close()


def test_two_servers_in_two_threads_share_a_bus_and_a_state():
    """They are one cluster: rooms, users and presence of the one are the other's too."""
    shared = {"pubsub": MemoryPubSub(), "state": MemoryState()}

    async def clients(here, there, one, other):
        async with peer(one, query="?name=ada") as ada, peer(other, query="?name=ben") as ben:
            await ada.join("lab")
            await ben.join("lab")
            await ada.request("system:publish", {"room": "lab", "data": "from ada"})
            assert (await ben.expect("room:lab"))["data"] == "from ada"

            members = await asyncio.to_thread(here.run, one.hub.members("lab"))
            assert {member.user_id for member in members} == {"ada", "ben"}
            presence = await asyncio.to_thread(here.run, one.hub.presence("ben"))
            assert presence.online
            sent = one.hub.send_to_user("ben", Message("news", "flash", 1))
            assert (await asyncio.to_thread(here.run, sent)).forwarded == 1
            assert (await ben.expect("news", "flash"))["data"] == 1
            ended = await asyncio.to_thread(there.run, other.hub.disconnect_user("ada", "normal"))
            assert ended == 1
            await ada.closed()

    with (
        in_thread(node_id="n1", **shared) as (here, one),
        in_thread(node_id="n2", **shared) as (there, other),
    ):
        asyncio.run(clients(here, there, one, other))


def test_when_one_of_two_threads_has_ended_the_other_goes_on():
    """The bus stays open until the last has closed it, and what the first had is gone."""
    shared = {"pubsub": MemoryPubSub(), "state": MemoryState()}

    async def alone(server):
        async with peer(server, query="?name=ben") as ben:
            await ben.join("lab")
            assert (await ben.request("echo", 1))["echo"] == 1

    with in_thread(node_id="n1", **shared) as (here, one):
        with in_thread(node_id="n2", **shared) as (_, other):
            asyncio.run(alone(other))
        asyncio.run(alone(one))

        assert here.run(one.hub.members("lab")) == []
        assert shared["pubsub"].listeners("eyewall:all") == 1


# --- an application that is there already


async def test_in_somebody_s_application_it_has_its_routes_and_no_port():
    server = make_server()
    sock, port = bind_unused_port()
    http = HTTPServer(Application(server.routes("/live")))
    http.add_sockets([sock])
    try:
        async with server, peer(f"ws://127.0.0.1:{port}/live") as client:
            assert server.port is None
            assert (await client.request("echo", 1))["echo"] == 1

            await server.shutdown(timeout=1)
            assert await client.closed() == (1012, "server_shutdown")
    finally:
        http.stop()
        await http.close_all_connections()


async def test_two_servers_in_one_loop_have_nothing_in_common():
    async with running(make_server()) as one, running(make_server()) as other, peer(one) as client:
        assert one.port != other.port
        assert await other.hub.broadcast("news", "flash", 1) == 0
        assert await client.before_fence() == []
