"""A server that is started again: in the same event loop, or in another one."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from websockets.exceptions import InvalidStatus

from eyewall import Message, SendOptions, Server
from tests.application.fakes import RecordingLogger
from tests.entrypoints.wire import UNIT, peer, soon

WORK_TIME = 0.2
"""Seconds that work goes on after its client was told of the shutdown: longer than it takes
until nothing but the work is waited for."""


class InThread:
    """A plain handler that is at work when the server is told to end."""

    def __init__(self):
        self.begun, self.go_on, self.ended = asyncio.Event(), threading.Event(), 0

    def slow(self, ctx, msg):
        ctx.from_thread(self.begin)
        self.go_on.wait(5 * UNIT)
        self.ended += 1

    async def begin(self):
        self.begun.set()


class Async(InThread):
    """An async one."""

    def __init__(self):
        super().__init__()
        self.go_on = asyncio.Event()

    async def slow(self, ctx, msg):
        self.begun.set()
        await self.go_on.wait()
        self.ended += 1


WORK = {"async": Async, "thread": InThread}


@pytest.mark.parametrize("kind", WORK)
def test_shutdown_waits_for_a_handler_in_each_event_loop(kind):
    logger = RecordingLogger()
    server = Server(logger=logger)

    async def life(topic):
        work = WORK[kind]()
        server.handle(topic, work.slow)
        await server.start(port=0)
        async with peer(server) as client:
            await client.send(topic)
            await soon(work.begun.wait())
            ending = asyncio.ensure_future(server.shutdown(timeout=5 * UNIT))
            await client.expect("system:draining", "draining")
            await asyncio.sleep(WORK_TIME)
            work.go_on.set()
            await soon(ending)
        assert work.ended == 1

    for topic in ("one", "two"):
        asyncio.run(life(topic))

    assert set(logger.of("warning")) <= {"loop_stalled"}  # on a slow machine
    assert logger.of("error") == []


def test_shutdown_waits_for_acks_in_each_event_loop():
    logger = RecordingLogger()
    server = Server(logger=logger)
    message, options = Message("news", data=1), SendOptions(require_ack=True)

    async def life():
        await server.start(port=0)
        async with peer(server) as client:
            server.hub.set_meta(client.conn_id, user_id="ada")
            sending = asyncio.ensure_future(server.hub.send_to_user("ada", message, options))
            got = await client.expect("news")
            ending = asyncio.ensure_future(server.shutdown(timeout=5 * UNIT))
            await client.expect("system:draining", "draining")
            await asyncio.sleep(WORK_TIME)
            await client.send("news", event="ack", ref=got["id"])
            assert (await soon(sending)).success == 1
            await soon(ending)

    for _ in range(2):
        asyncio.run(life())

    assert set(logger.of("warning")) <= {"loop_stalled"}  # on a slow machine


def test_all_that_is_registered_serves_in_each_life():
    """Routes, middleware, hooks, failure handlers; what was added between two lives too,
    and what was taken back is gone."""
    server, heard = Server(), []

    async def middleware(ctx, msg, then):
        heard.append("middleware")
        return await then(ctx, msg)

    def note(name):
        return lambda *_: heard.append(name)

    server.handle("echo", lambda ctx, msg: msg.data)
    server.use(middleware)
    server.on_startup(note("startup"))
    server.on_shutdown(note("shutdown"))
    server.hub.on_connect(note("connect"))
    server.hub.on_disconnect(note("disconnect"))
    server.hub.on_user_offline(note("offline"))
    going = server.hub.on_connect(note("going"))

    async def life():
        await server.start(port=0)
        async with peer(server) as client:
            assert (await client.request("echo", 1))["result"] == 1
        await server.hub.send_to_user("nobody", Message("a"))
        await server.shutdown(timeout=UNIT)

    asyncio.run(life())
    first, heard[:] = list(heard), []
    server.hub.remove_hook(going)
    server.hub.on_join(note("join"))
    asyncio.run(life())

    assert first == ["startup", "connect", "going", "middleware", *first[4:]]
    assert sorted(first[4:]) == ["disconnect", "offline", "shutdown"]
    assert heard == [entry for entry in first if entry != "going"]
    assert server.hub.remove_hook(going) is False


@pytest.mark.parametrize("loops", ["one loop", "a loop each"])
def test_functions_in_the_background_run_in_each_life(loops):
    """A coroutine runs once, and what a running server was given is part of that life."""
    server, ran = Server(), []

    async def work(name):
        ran.append(name)
        await asyncio.Event().wait()

    async def life(number):
        async with server:
            server.background(partial(work, f"of life {number}"))
            await asyncio.sleep(0)

    async def lives():
        for number in range(1, 4):
            await life(number)

    server.background(partial(work, "function"))
    server.background(work("coroutine"))
    server.on_startup(lambda: server.background(partial(work, "of the startup")))
    if loops == "one loop":
        asyncio.run(lives())
    else:
        for number in range(1, 4):
            asyncio.run(life(number))

    each = ["of the startup", "function"]
    assert ran[:4] == [*each, "coroutine", "of life 1"]
    assert ran[4:] == [*each, "of life 2", *each, "of life 3"]


async def test_what_is_given_between_two_lives_runs_in_the_next_ones():
    server, ran = Server(), []
    async with server:
        pass
    server.background(lambda: ran.append(1))
    for _ in range(2):
        async with server:
            await asyncio.sleep(0)

    assert ran == [1, 1]


async def test_each_life_has_an_id_of_its_own_unless_one_was_given():
    """What was read before the start holds for the first life."""
    server, given, seen = Server(), Server(node_id="n1"), [Server().hub.node_id]
    before = server.hub.node_id
    for _ in range(2):
        async with server, given:
            seen.append(server.hub.node_id)
            assert given.hub.node_id == "n1"

    assert seen[1] == before
    assert len(set(seen)) == 3


async def test_the_counts_and_the_uptime_are_those_of_the_life():
    server = Server()
    server.handle("echo", lambda ctx, msg: msg.data)
    lives = []
    for _ in range(2):
        before = time.monotonic()
        await server.start(port=0)
        begun = server.hub.stats()
        async with peer(server) as client:
            await client.request("echo", 1)
            stats = server.hub.stats()
            assert begun.uptime < stats.uptime <= time.monotonic() - before
            lives.append((begun, stats))
        await server.shutdown(timeout=UNIT)

    for begun, stats in lives:
        assert stats.in_messages == 1
        assert stats.connections == 1
        assert stats.started_at == begun.started_at
    assert lives[0][1].started_at < lives[1][1].started_at


async def test_a_session_of_the_first_life_goes_on_in_the_second():
    """With its rooms: a client that was told to come back finds what it had."""
    server = Server(client_commands=True)
    await server.start(port=0)
    async with peer(server) as client:
        await client.join("lobby")
        session = client.welcome["data"]["session"]
        await server.shutdown(timeout=UNIT)

    await server.start(port=0)
    async with peer(server) as client:
        answer = await client.ask("system:resume", {"session": session, "rooms": {"lobby": {}}})
        assert answer["data"]["status"] == "ok"
        members = await client.request("system:members", {"room": "lobby"})
        assert len(members["members"]) == 1
    await server.shutdown(timeout=UNIT)


async def test_who_has_kept_the_hub_reaches_the_life_that_is():
    server = Server()
    hub = server.hub
    for _ in range(2):
        await server.start(port=0)
        async with peer(server) as client:
            assert hub.connection_ids() == [client.conn_id]
            assert (await hub.send_to_conn(client.conn_id, "a", "message", 1)).error is None
            await client.expect("a")
        await server.shutdown(timeout=UNIT)


async def test_who_comes_while_the_server_does_not_run_is_told_to_come_again():
    """An application accepts by itself: before the start, and between two lives."""
    server, sockets = Server(), bind_sockets(0, "127.0.0.1")
    http = HTTPServer(Application(server.routes("/ws"), log_function=lambda _: None))
    http.add_sockets(sockets)
    url = f"ws://127.0.0.1:{sockets[0].getsockname()[1]}/ws"
    answers = []
    for _ in range(2):
        with pytest.raises(InvalidStatus) as refused:
            async with peer(url):
                """It must not come to this."""
        answers.append(refused.value.response.status_code)
        async with server, peer(url) as client:
            assert client.conn_id
    http.stop()

    assert answers == [503, 503]
