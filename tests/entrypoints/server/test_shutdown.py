"""The end of a server: in order, within its time, and from wherever it is asked for."""

from __future__ import annotations

import asyncio

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from eyewall import MemoryState, Server
from tests.application.fakes import RecordingLogger, settle
from tests.entrypoints.wire import UNIT, free_port, peer, raw_peer, running, soon

SHORT = 0.3 * UNIT
"""Seconds for a shutdown in which something hangs."""


@pytest.fixture
def logger():
    return RecordingLogger()


@pytest.fixture
def server(logger):
    return Server(logger=logger)


async def for_ever():
    await asyncio.Event().wait()


async def test_before_the_start_it_does_nothing_and_a_start_is_still_good(server):
    await server.shutdown()
    await server.hub.shutdown()

    async with running(server), peer(server):
        pass


# --- hooks


async def test_a_hook_that_raises_is_logged_and_keeps_nothing(server, logger):
    ran = []

    @server.on_shutdown
    async def broken():
        raise RuntimeError("no file")

    server.on_shutdown(lambda: ran.append(1))
    async with running(server), peer(server) as client:
        await server.shutdown(timeout=1)

        assert await client.closed() == (1012, "server_shutdown")

    assert ran == [1]
    assert server.port is None
    assert "no file" in logger.fields("on_shutdown_failed")["error"]


async def test_a_hook_that_never_ends_is_named_and_keeps_nothing(server, logger):
    """Nor does it take the next one's turn away."""
    order = []

    @server.on_shutdown
    async def hangs():
        try:
            await for_ever()
        finally:
            order.append("ended")

    server.on_shutdown(lambda: order.append("next"))
    await server.start(port=free_port())
    await soon(server.shutdown(timeout=SHORT))

    assert order == ["ended", "next"]
    assert server.port is None
    assert logger.fields("unfinished_at_shutdown")["steps"] == ["on_shutdown"]


async def test_a_hook_that_shuts_down_too_keeps_nothing(server):
    server.on_shutdown(server.shutdown)
    await server.start()

    await soon(server.shutdown(timeout=SHORT))

    assert server.hub.connection_ids() == []


# --- adapters


async def test_an_adapter_that_does_not_close_keeps_neither_the_port_nor_the_end(
    monkeypatch, logger
):
    class Hangs(MemoryState):
        async def close(self):
            await for_ever()

    monkeypatch.setattr("eyewall.server.server.RELEASE_TIMEOUT", SHORT)
    server = Server(state=Hangs(), logger=logger)
    await server.start(port=free_port())
    await soon(server.shutdown(timeout=1))

    assert server.port is None
    assert logger.fields("unfinished_at_shutdown")["steps"] == ["stop"]


async def test_an_adapter_that_fails_to_close_is_named_and_the_server_may_start_again(logger):
    class Broken(MemoryState):
        async def close(self):
            raise RuntimeError("no flush")

    server = Server(state=Broken(), logger=logger)
    for _ in range(2):
        await server.start(port=0)
        async with peer(server) as client:
            await server.shutdown(timeout=1)
            assert await client.closed() == (1012, "server_shutdown")
        assert "no flush" in logger.fields("close_failed")["error"]


# --- from within


async def test_a_handler_may_end_the_server_in_the_background(server):
    """It is not waited for by itself, and its answer still goes out."""

    @server.on("bye")
    async def bye(ctx, msg):
        server.background(ctx.hub.shutdown)
        return {"good": "bye"}

    async with running(server), peer(server) as client:
        assert (await client.request("bye"))["good"] == "bye"
        assert await client.closed() == (1012, "server_shutdown")
        await server.shutdown()

    assert server.port is None


@pytest.mark.parametrize("kind", ["async", "plain", "hub"])
async def test_a_handler_that_waits_for_the_shutdown_is_cut_at_the_deadline(server, kind):
    """It waits for its own end, and can't have it; the server ends all the same."""

    @server.on("async")
    async def bye(ctx, msg):
        await server.shutdown(timeout=SHORT)

    @server.on("plain")
    def in_thread(ctx, msg):
        ctx.from_thread(server.shutdown, SHORT)

    @server.on("hub")
    async def by_the_hub(ctx, msg):
        await ctx.hub.shutdown(timeout=SHORT)

    async with running(server), peer(server) as client:
        assert (await client.refused(kind))["code"] == "overloaded"
        assert await client.closed() == (1012, "server_shutdown")
        await soon(server.shutdown())

    assert server.port is None


async def test_a_background_task_may_wait_for_the_shutdown(server, logger):
    """It is ended by it, and nobody waits for anybody."""
    async with running(server), peer(server) as client:
        server.background(server.shutdown())

        assert await client.closed() == (1012, "server_shutdown")
        await soon(server.shutdown())

    assert "unfinished_at_shutdown" not in logger.of("warning")


# --- who asks


async def test_who_gives_up_waiting_does_not_end_the_shutdown(server):
    ended = asyncio.Event()
    server.on_shutdown(ended.wait)
    async with running(server), peer(server) as client:
        impatient = asyncio.ensure_future(server.shutdown(timeout=5 * UNIT))
        assert await client.closed() == (1012, "server_shutdown")
        impatient.cancel()
        await settle()

        ended.set()
        await soon(server.shutdown())

    assert server.port is None


async def test_a_start_during_the_shutdown_is_refused(server):
    held, go = asyncio.Event(), asyncio.Event()

    @server.on_shutdown
    async def hold():
        held.set()
        await go.wait()

    await server.start()
    ending = asyncio.ensure_future(server.shutdown())
    await soon(held.wait())
    with pytest.raises(RuntimeError, match="has been started"):
        await server.start()

    go.set()
    await soon(ending)
    await server.start()
    await server.shutdown()


@pytest.mark.parametrize("wrong", [-1, "soon", float("nan")])
async def test_a_wrong_time_is_refused_and_the_server_goes_on(server, wrong):
    async with running(server):
        with pytest.raises((ValueError, TypeError)):
            await server.shutdown(timeout=wrong)

        async with peer(server):
            assert len(server.hub.connection_ids()) == 1


async def test_while_it_drains_it_answers_that_it_is_busy(server):
    """Who comes now is sent elsewhere, not left without an answer."""
    held, go = asyncio.Event(), asyncio.Event()

    @server.on("hold")
    async def hold(ctx, msg):
        held.set()
        await go.wait()

    async with running(server), peer(server) as client, raw_peer(server, upgrade=False) as late:
        await client.send("hold", id="1", ack=True)
        await soon(held.wait())
        ending = asyncio.ensure_future(server.shutdown(timeout=5 * UNIT))
        await client.expect("system:draining", "draining")

        assert (await late.get("/readyz")).status == 503
        go.set()
        await soon(ending)


# --- handshakes that are under way


async def asked(server, data):
    """Send the bytes of a request; returns the answer's reader and the writer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    return reader, writer


UPGRADE_HEAD = (
    b"GET /ws HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.mark.parametrize("deaf", [False, True], ids=["that ends", "that will not"])
@pytest.mark.parametrize("where", ["authenticator", "check_origin"])
async def test_a_handshake_that_waits_for_a_decision_is_told_to_come_back(logger, where, deaf):
    """At once, and not when the decision or the shutdown is through."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def decide(*_):
        begun.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                if not deaf:
                    raise

    server = Server(logger=logger, **{where: decide})
    async with running(server):
        reader, writer = await asked(server, UPGRADE_HEAD + b"Origin: http://here\r\n\r\n")
        await soon(begun.wait())
        stopping = asyncio.ensure_future(server.shutdown(timeout=1))
        answer = await soon(reader.readuntil(b"\r\n\r\n"))
        go_on.set()
        await stopping
        writer.close()

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in answer
    assert b"\r\nConnection: close\r\n" in answer
    assert server.hub.stats().refused == {"draining": 1}
    assert logger.of("error") == []


async def test_a_request_that_is_half_read_is_told_to_come_back(server, logger):
    async with running(server):
        reader, writer = await asked(server, UPGRADE_HEAD)
        async with peer(server):  # it came later, so the half has been read
            pass
        stopping = asyncio.ensure_future(server.shutdown(timeout=1))
        answer = await soon(reader.readuntil(b"\r\n\r\n"))
        writer.close()
        await stopping

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in answer
    assert server.hub.stats().refused == {"draining": 1}


async def test_before_the_start_and_after_the_end_nobody_is_let_in(server):
    """In an application of somebody's whose port is open already."""
    sock, port = bind_unused_port()
    http = HTTPServer(Application(server.routes()))
    http.add_sockets([sock])

    async def status():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE_HEAD + b"\r\n")
        answer = await soon(reader.readuntil(b"\r\n\r\n"))
        writer.close()
        return int(answer.split()[1])

    try:
        assert await status() == 503
        await server.start()
        assert await status() == 101
        await server.shutdown(timeout=1)
        assert await status() == 503
        await server.start()
        assert await status() == 101
        await server.shutdown(timeout=1)
    finally:
        http.stop()
        await http.close_all_connections()
