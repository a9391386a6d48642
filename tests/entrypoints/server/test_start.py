"""A start that fails: nothing is left behind, and it may be tried again."""

from __future__ import annotations

import asyncio
import socket

import pytest

from eyewall import MemoryPubSub, MemoryState, Server, Unavailable
from tests.application.fakes import RecordingLogger, settle
from tests.entrypoints.wire import free_port, soon


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


def assert_nothing_is_left(server, bus, port, tasks):
    assert server.port is None
    assert is_free(port)
    assert asyncio.all_tasks() == tasks
    assert bus.listeners("eyewall:all") == 0


async def for_ever():
    await asyncio.Event().wait()


class Away(MemoryState):
    """A state that can't be had."""

    async def open(self):
        raise Unavailable("the engine is away")


@pytest.mark.parametrize("fault", ["hook", "adapter", "pages"])
async def test_a_start_that_fails_leaves_nothing_behind(bus, logger, fault):
    """The port is free, tasks are ended, channels are left, and a second try is as good
    as the first."""
    state = Away() if fault == "adapter" else MemoryState()
    server, port, before = Server(state=state, pubsub=bus, logger=logger), free_port(), []

    @server.on_startup
    def fails():
        before.append(server.background(for_ever))
        if fault == "hook":
            raise Unavailable("no database")

    for _ in range(2):
        tasks = asyncio.all_tasks()
        with pytest.raises((Unavailable, AttributeError)):
            await server.start(port=port, pages=[42] if fault == "pages" else ())
        await settle()
        assert_nothing_is_left(server, bus, port, tasks)

    assert len(before) == (0 if fault == "adapter" else 2)


async def test_what_waits_in_the_background_waits_for_a_start_that_succeeds(server):
    ran, tries = asyncio.Event(), []

    async def work():
        ran.set()

    @server.on_startup
    def fails_once():
        tries.append(1)
        if len(tries) == 1:
            raise Unavailable("no database")

    server.background(work())
    with pytest.raises(Unavailable):
        await server.start()
    assert not ran.is_set()

    async with server:
        await soon(ran.wait())


async def test_a_start_that_is_cancelled_leaves_nothing_behind(server, bus):
    tasks, port = asyncio.all_tasks(), free_port()
    server.on_startup(for_ever)
    starting = asyncio.ensure_future(server.start(port=port))
    await settle()

    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(starting)

    assert_nothing_is_left(server, bus, port, tasks)


@pytest.mark.parametrize("deaf", [False, True], ids=["", "a hook swallows its end"])
async def test_a_shutdown_ends_a_start_that_is_under_way(server, bus, deaf):
    """Who started it is told that there is no server."""
    tasks, port, hung = asyncio.all_tasks(), free_port(), asyncio.Event()

    @server.on_startup
    async def hangs():
        try:
            hung.set()
            await for_ever()
        except asyncio.CancelledError:
            if not deaf:
                raise

    server.background(for_ever)
    starting = asyncio.ensure_future(server.start(port=port))
    await soon(hung.wait())

    await soon(server.shutdown(timeout=1))
    with pytest.raises(RuntimeError, match="shut down while it started"):
        await starting

    await settle()
    assert_nothing_is_left(server, bus, port, tasks)


async def test_a_startup_hook_may_shut_it_down(server, bus):
    tasks, port = asyncio.all_tasks(), free_port()
    server.on_startup(server.shutdown)

    with pytest.raises(RuntimeError, match="shut down while it started"):
        await soon(server.start(port=port))

    assert_nothing_is_left(server, bus, port, tasks)
