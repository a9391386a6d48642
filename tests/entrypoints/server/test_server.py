"""The life of a server: it starts whole or not at all, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import inspect
import socket

import pytest

from eyewall import MemoryPubSub, MemoryState, RoomOptions, RoomPolicy, Server
from tests.application.fakes import RecordingLogger, settle
from tests.entrypoints.wire import (
    FENCE,
    eventually,
    free_port,
    peer,
    running,
    soon,
)


@pytest.fixture
def logger():
    return RecordingLogger()


@pytest.fixture
def bus():
    return MemoryPubSub()


@pytest.fixture
def server(logger, bus):
    return Server(logger=logger, pubsub=bus, node_id="n1")


def is_free(port):
    """Whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def for_ever():
    await asyncio.Event().wait()


# --- start


async def test_a_second_start_is_refused_and_harms_nothing():
    """It is told before a second port is taken."""
    async with running() as server:
        port = free_port()
        with pytest.raises(RuntimeError, match="has been started"):
            await server.start(port=port)

        assert is_free(port)
        async with peer(server) as client:
            await client.request(FENCE)


async def test_a_second_start_is_refused_while_the_first_is_under_way(server):
    first = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="has been started"):
        await server.start()

    await first
    await server.shutdown()


async def test_started_again_it_keeps_the_state_that_it_was_given():
    """Only its own seats and users are taken back: rooms that were created stay."""
    state = MemoryState()
    server = Server(state=state, client_commands=True)
    await server.start(port=0)
    await server.hub.create_room("lab", RoomOptions(policy=RoomPolicy.PRIVATE))
    await server.hub.create_room("hall", RoomOptions(capacity=7))
    async with peer(server) as client:
        await client.join("hall")
        await server.shutdown(timeout=1)

    await server.start(port=0)
    async with peer(server) as client:
        assert (await server.hub.room("hall")).options.capacity == 7
        assert await server.hub.members("hall") == []
        assert (await client.refused("system:join", {"room": "lab"}))["code"] == "join_forbidden"
        await server.shutdown(timeout=1)


async def test_url_and_port_are_known_while_it_listens_only(server):
    assert server.port is None
    async with running(server):
        assert server.url.endswith(f":{server.port}/ws")

    assert server.port is None
    with pytest.raises(RuntimeError, match="does not listen"):
        _ = server.url


# --- background


async def test_a_coroutine_for_a_server_that_never_starts_is_closed(server):
    """Python would warn that it was never awaited."""
    work = for_ever()
    server.background(work)

    await server.shutdown()

    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", ["port in use", "async with", "after the end"])
async def test_however_it_comes_that_it_never_runs_it_is_closed(server, way):
    """(Tornado leaves a socket that could not be bound to the garbage collector.)"""
    work = for_ever()
    if way == "after the end":
        await server.start()
        await server.shutdown()
    server.background(work)
    if way == "port in use":
        async with running() as other:
            with pytest.raises(OSError, match="in use"):
                await server.start(port=other.port)
    if way == "async with":
        server.on_startup(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await server.__aenter__()
    else:
        await server.shutdown()

    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED


@pytest.mark.parametrize("kind", ["coroutine", "async function", "plain function"])
@pytest.mark.parametrize("when", ["before", "in a hook", "after"])
async def test_the_background_takes_coroutines_and_functions_at_any_time(server, kind, when):
    ran = asyncio.Event()

    async def work():
        ran.set()

    given = {"coroutine": work, "async function": lambda: work, "plain function": lambda: ran.set}

    def give():
        server.background(given[kind]())

    if when == "before":
        give()
    if when == "in a hook":
        server.on_startup(give)
        server.on_startup(ran.wait)
    async with server:
        if when == "after":
            give()
        await soon(ran.wait())


async def test_a_background_task_that_fails_is_logged_by_name(server, logger):
    def stumble():
        raise RuntimeError("the tide is out")

    async with server:
        server.background(stumble)
        await eventually(lambda: logger.of("error"))
        assert await server.hub.broadcast("a", "message", 1) == 0

    assert "the tide is out" in logger.fields("task_failed")["error"]
    assert logger.fields("task_failed")["task"].endswith("stumble")


async def test_background_tasks_end_after_the_hooks_and_before_the_adapters(bus):
    """Both may still use them."""
    order = []

    class State(MemoryState):
        async def close(self):
            order.append("adapter")

    server = Server(state=State(), pubsub=bus)

    async def work():
        try:
            await for_ever()
        finally:
            order.append("background")

    server.on_shutdown(lambda: order.append("hook"))
    async with server:
        server.background(work)
        await settle()

    assert order == ["hook", "background", "adapter"]
