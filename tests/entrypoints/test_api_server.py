"""api.md, "Server": starting, stopping, and what stands around the handlers."""

from __future__ import annotations

import asyncio
import datetime
import socket

import pytest

import eyewall
from eyewall import BackgroundTask, Context, Envelope, Server
from tests.certificate import tls_contexts
from tests.entrypoints.wire import (
    FENCE,
    UNIT,
    eventually,
    free_port,
    peer,
    running,
    soon,
)


async def pong(ctx: Context, msg: Envelope) -> dict:
    return {"pong": msg.data}


# --- the first example of the page


async def test_the_example_of_the_page():
    server = Server()

    @server.on("echo:ping")
    async def ping(ctx: Context, msg: Envelope) -> None:
        await ctx.send("echo:pong", "message", {"echo": msg.data["text"]})

    async with running(server), peer(server, session=False) as client:
        await client.send("echo:ping", {"text": "hello"})

        assert (await client.receive())["data"] == {"echo": "hello"}


def test_every_name_of_the_package_is_documented():
    """Every public name has a docstring."""
    for name in eyewall.__all__:
        found = getattr(eyewall, name)
        if not name.startswith("__") and isinstance(found, type):
            assert found.__doc__, name


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": -1},
        {"worker_queue": 0},
        {"lane_queue": 0},
        {"max_message_size": 0},
        {"max_connections": 0},
        {"max_connections": -1},
        {"max_connections_per_user": 0},
        {"max_connections_per_address": 0},
        {"handshake_timeout": 0},
        {"handshake_timeout": -1.0},
        {"lease": 0},
        {"trusted_proxies": ("nonsense",)},
        {"cluster_channel": ""},
    ],
    ids=str,
)
def test_a_wrong_option_raises_where_the_server_is_built(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Server(**options)


def test_options_have_to_be_named():
    with pytest.raises(TypeError):
        Server(64)


def test_times_may_be_timedeltas():
    server = Server(
        handshake_timeout=datetime.timedelta(seconds=5),
        lease=datetime.timedelta(seconds=20),
    )

    assert (server._handshake_timeout, server._node.config.lease) == (5.0, 20.0)


# --- start, port, url


async def test_port_0_takes_a_free_one():
    server = Server()
    await server.start(port=0)
    try:
        assert server.port
        assert server.port > 0
        assert server.url == f"ws://127.0.0.1:{server.port}/ws"
        async with peer(server):
            pass
    finally:
        await server.shutdown(timeout=1)


async def test_a_given_port_is_taken():
    server, port = Server(), free_port()
    await server.start(port=port)
    try:
        assert server.port == port
    finally:
        await server.shutdown(timeout=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_taken_port_raises_and_it_can_be_started_when_it_is_free():
    """(Tornado leaves the socket that could not be bound to the garbage collector.)"""
    with socket.socket() as other:
        port = free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        server = Server()

        with pytest.raises(OSError, match="in use"):
            await server.start(port=port)

    await server.start(port=port)
    await server.shutdown(timeout=1)


async def test_without_a_port_it_does_not_listen():
    server = Server()
    await server.start()
    try:
        assert server.port is None
    finally:
        await server.shutdown(timeout=1)


async def test_it_listens_on_the_host_that_is_named():
    server = Server()
    await server.start(host="localhost", port=0)
    try:
        assert server.url == f"ws://localhost:{server.port}/ws"
        async with peer(server):
            pass
    finally:
        await server.shutdown(timeout=1)


async def test_async_with_is_start_without_a_port_and_shutdown():
    server = Server()
    order = []
    server.on_startup(lambda: order.append("up"))
    server.on_shutdown(lambda: order.append("down"))

    async with server as same:
        assert same is server
        assert server.port is None
        assert await server.hub.broadcast("a", "message", 1) == 0
        assert order == ["up"]

    assert order == ["up", "down"]


async def test_shutdown_may_be_called_twice():
    async with running() as server, peer(server) as client:
        await server.shutdown(timeout=1)
        await server.shutdown(timeout=1)

        assert await client.closed() == (1012, "server_shutdown")


async def test_shutdown_may_be_called_twice_at_once():
    async with running() as server, peer(server):
        await asyncio.gather(server.shutdown(timeout=1), server.shutdown(timeout=1))

        assert server.hub.connection_ids() == []


async def test_shutdown_before_start_does_nothing():
    server, ended = Server(), []
    server.on_shutdown(lambda: ended.append(1))
    await server.shutdown()
    await server.shutdown(timeout=datetime.timedelta(seconds=1))

    assert ended == []
    async with running(server), peer(server) as client:
        await client.request(FENCE)


async def test_shutdown_of_the_hub_is_shutdown_of_the_server():
    async with running() as server, peer(server) as client:
        await server.hub.shutdown(timeout=1.0)

        assert await client.closed() == (1012, "server_shutdown")


async def test_shutdown_ends_at_its_deadline():
    """A handler that hangs does not hold up the end."""
    server = Server()
    begun, ended = asyncio.Event(), asyncio.Event()

    @server.on("hang")
    async def hang(ctx, msg):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with running(server), peer(server) as client:
        await client.send("hang")
        await begun.wait()

        await soon(server.shutdown(timeout=0.3 * UNIT))

        await soon(ended.wait())
        assert await client.closed() == (1012, "server_shutdown")


async def test_a_server_may_be_started_again():
    server = Server()
    server.handle("pong", pong)
    for _ in range(2):
        await server.start(port=0)
        async with peer(server) as client:
            assert (await client.request("pong", 1))["pong"] == 1
        await server.shutdown(timeout=1)


async def test_with_a_tls_context_the_url_is_wss():
    server_side, client_side = tls_contexts()
    server = Server()
    server.handle("pong", pong)
    await server.start(port=0, ssl=server_side)
    try:
        assert server.url == f"wss://127.0.0.1:{server.port}/ws"
        async with peer(server, ssl=client_side) as client:
            assert (await client.request("pong", "x" * 200_000))["pong"] == "x" * 200_000
    finally:
        await server.shutdown(timeout=1)


# --- startup, shutdown, background


async def test_startup_hooks_run_before_anybody_is_let_in():
    server = Server()
    order = []

    @server.on_startup
    async def first():
        await asyncio.sleep(0)
        order.append("async")

    @server.on_startup
    def second():
        order.append("plain")

    @server.hub.on_connect
    async def connected(conn):
        order.append("connect")

    async with running(server), peer(server) as client:
        await client.before_fence()

    assert order == ["async", "plain", "connect"]


async def test_shutdown_hooks_run_when_everybody_has_gone():
    server = Server()
    there = []

    @server.on_shutdown
    async def last():
        there.append(len(server.hub.connection_ids()))

    @server.on_shutdown
    def plain():
        there.append("plain")

    async with running(server), peer(server):
        await server.shutdown(timeout=1)

    assert there == [0, "plain"]


async def test_a_shutdown_hook_that_raises_does_not_stop_the_others():
    server = Server()
    ran = []

    @server.on_shutdown
    def broken():
        raise RuntimeError("broken")

    server.on_shutdown(lambda: ran.append(1))
    async with server:
        pass

    assert ran == [1]


async def test_a_startup_hook_that_raises_stops_the_start():
    server = Server()

    @server.on_startup
    async def broken():
        raise RuntimeError("no database")

    with pytest.raises(RuntimeError, match="no database"):
        await server.start(port=0)

    assert server.port is None


@pytest.mark.parametrize("before", [True, False])
async def test_a_background_task_runs_and_is_ended_at_shutdown(before):
    server = Server()
    begun, ended = asyncio.Event(), asyncio.Event()

    async def tick():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    if before:
        server.background(tick())
    async with server:
        if not before:
            server.background(tick())
        await soon(begun.wait())
        assert not ended.is_set()

    assert ended.is_set()


@pytest.mark.parametrize("kind", ["async handler", "plain handler"])
async def test_a_handler_begins_work_with_its_arguments_and_a_stop_button_ends_it(kind):
    """A plain handler runs in a thread: it may do so there."""
    begun, ended = [], asyncio.Event()
    tasks: dict[str, BackgroundTask] = {}

    async def tell(name, *, pace):
        begun.append((name, pace))
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    server = Server()

    def start(name):
        tasks[name] = server.background(tell, name, pace=0.5)
        return {"done": tasks[name].done}

    def stop(name):
        tasks[name].cancel()

    if kind == "async handler":

        @server.on("tell:start")
        async def on_start(ctx, msg):
            return start(msg.data)

        @server.on("tell:stop")
        async def on_stop(ctx, msg):
            stop(msg.data)
    else:

        @server.on("tell:start")
        def on_start(ctx, msg):
            return start(msg.data)

        @server.on("tell:stop")
        def on_stop(ctx, msg):
            stop(msg.data)

    async with running(server), peer(server) as client:
        assert (await client.request("tell:start", "ada"))["done"] is False
        await eventually(lambda: begun == [("ada", 0.5)])
        await client.request("tell:stop", "ada")
        await soon(ended.wait())
        await eventually(lambda: tasks["ada"].done)
        await client.request("tell:stop", "ada")
        await client.request(FENCE)


async def test_what_was_cancelled_in_one_life_does_not_run_in_the_next():
    server, ran = Server(), []

    async def poll(name):
        ran.append(name)
        await asyncio.Event().wait()

    tasks = {name: server.background(poll, name) for name in ("kept", "cancelled")}
    assert [task.done for task in tasks.values()] == [False, False]
    for _ in range(2):
        async with server:
            await eventually(lambda: not tasks["kept"].done)
            tasks["cancelled"].cancel()
        assert [task.done for task in tasks.values()] == [True, True]

    assert ran == ["kept", "cancelled", "kept"]


async def test_a_background_task_that_fails_is_reported_and_harms_nobody():
    class Log:
        def __init__(self):
            self.errors = []

        def debug(self, event, **fields): ...
        def info(self, event, **fields): ...
        def warning(self, event, **fields): ...
        def error(self, event, **fields):
            self.errors.append((event, fields))

    async def broken():
        raise RuntimeError("the tide is out")

    log = Log()
    async with running(logger=log) as server, peer(server) as client:
        server.background(broken())
        await eventually(lambda: log.errors)

        await client.request(FENCE)

    assert "the tide is out" in str(log.errors)
