"""How a client begins, sends and ends, with everything that it began."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys

import pytest

from eyewall import ConnectionClosed, InvalidEnvelope, Misuse, Server
from eyewall.client import State, engine
from tests.entrypoints.client_support import client, scripted, talking
from tests.entrypoints.wire import eventually, peer, running, soon


def others(before: set) -> set:
    """Tasks of this client: not those that were there, nor the server's."""
    return {task for task in asyncio.all_tasks() - before if "eyewall client" in task.get_name()}


# --- the end


async def test_nothing_is_left_after_the_end():
    async with running() as server:
        c = client(server.url)
        async with c:
            assert len(others(set())) >= 5
            await c.send("t")

        assert others(set()) == set()
        await eventually(lambda: server.hub.connection_ids() == [])
    assert c.state is State.CLOSED


async def test_nothing_is_left_after_an_end_while_it_is_away():
    async with talking() as (script, c, line):
        script.refusals.append((503, {"Retry-After": "60"}))
        line.cut()
        await eventually(lambda: c.state is State.WAITING and len(script.requests) == 2)
        await soon(c.close())

        assert others(set()) == set()


async def test_nothing_is_left_when_entering_fails():
    async with scripted() as script:
        script.refusals.append((403, {}))
        with pytest.raises(Exception, match="403"):
            await client(script.url).__aenter__()

        assert others(set()) == set()


async def test_a_client_that_was_never_entered_costs_nothing():
    c = client("ws://127.0.0.1:1/ws")
    assert c.state is State.CONNECTING
    await c.close()

    assert c.state is State.CLOSED
    with pytest.raises(Misuse):
        await c.__aenter__()


async def test_no_client_is_entered_twice():
    async with running() as server, client(server.url) as c:
        with pytest.raises(Misuse):
            await c.__aenter__()
        assert c.state is State.OPEN


async def test_closing_twice_is_closing_once():
    async with running() as server, client(server.url) as c:
        await soon(asyncio.gather(c.close(), c.close()))
        assert c.state is State.CLOSED


async def test_what_was_sent_is_written_before_the_end():
    server = Server()
    came: list = []
    server.handle("t", lambda ctx, msg: came.append(msg.data))
    async with running(server):
        async with client(server.url) as c:
            for number in range(50):
                await c.send("t", number)
        await eventually(lambda: len(came) == 50)

    assert came == list(range(50))


async def test_requests_without_an_answer_are_told_of_the_end():
    async with talking() as (_, c, line):
        pending = asyncio.ensure_future(c.request("t"))
        await line.expect("t")
        await c.close()

        with pytest.raises(ConnectionClosed):
            await soon(pending)
        with pytest.raises(ConnectionClosed):
            await c.request("t")


async def test_a_callback_that_runs_may_finish_and_is_acked():
    async with talking() as (_, c, line):
        begun, go, done = asyncio.Event(), asyncio.Event(), []

        @c.on("order")
        async def order(message):
            begun.set()
            await go.wait()
            done.append(message.data)

        await line.send("order", 1, id="m1", ack=True)
        await line.send("order", 2, id="m2", ack=True)
        await soon(begun.wait())
        closing = asyncio.ensure_future(c.close())
        await eventually(lambda: c.state is State.CLOSED)
        go.set()
        await soon(closing)

        assert (await line.expect("order"))["data"]["message_id"] == "m1"
    assert done == [1], "what waits is the server's to try again"


@pytest.mark.parametrize("open_at_the_end", [True, False])
async def test_who_closes_does_not_come_back_meanwhile(open_at_the_end):
    """Not while the last callback takes its time."""
    async with talking() as (script, c, line):
        begun, go, states = asyncio.Event(), asyncio.Event(), []
        c.on_state(states.append)

        @c.on("order")
        async def order(message):
            begun.set()
            await go.wait()

        await line.send("order", 1)
        await soon(begun.wait())
        if not open_at_the_end:
            script.refusals.extend([(503, {})] * 1000)
            line.cut()
            await eventually(lambda: c.state is not State.OPEN)
        closing = asyncio.ensure_future(c.close())
        await eventually(lambda: c.state is State.CLOSED)
        line.cut()
        await eventually(lambda: others(set()) == {c._engine._callbacks})
        go.set()
        await soon(closing)

        assert states[-1] is State.CLOSED


async def test_a_token_callback_may_close_the_client():
    async with scripted() as script:
        asked: list = []

        async def token():
            asked.append(1)
            if len(asked) == 2:
                await c.close()
            return "t"

        c = client(script.url, token=token)
        async with c:
            (await script.line()).cut()
            await eventually(lambda: c.state is State.CLOSED and not others(set()))
        assert len(script.requests) == 1


async def test_a_callback_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(engine, "CLOSE_TIMEOUT", 0.05)
    async with talking() as (_, c, line):
        begun = asyncio.Event()

        @c.on("order")
        async def order(message):
            begun.set()
            await asyncio.Event().wait()

        await line.send("order", 1)
        await soon(begun.wait())
        await soon(c.close())

        assert others(set()) == set()


async def test_a_callback_may_close_the_client():
    async with talking() as (_, c, line):
        closed = asyncio.Event()

        @c.on("bye")
        async def bye(message):
            await c.close()
            closed.set()

        await line.send("bye")
        await soon(closed.wait())

        assert c.state is State.CLOSED
        await eventually(lambda: others(set()) == set())


async def test_nothing_of_a_connection_is_left_after_many():
    async with talking() as (script, c, line):
        await c.send("t")
        await line.receive()
        names = []
        for _ in range(5):
            line.cut()
            line = await script.line()  # noqa: PLW2901
            await line.resumed()
            await eventually(lambda: c.state is State.OPEN)
            names.append(sorted(task.get_name() for task in others(set())))
        gc.collect()

        assert names[0] == names[-1]


# --- sending


async def test_while_it_is_open_a_full_outbox_makes_the_sender_wait():
    async with talking(outbox=2) as (_, c, line):
        line.socket.transport.pause_reading()
        text = "x" * 500_000
        sending = asyncio.gather(*(c.send("t", text) for _ in range(100)))
        await eventually(lambda: len(c._engine._outbox) == 2)
        assert not sending.done()
        line.socket.transport.resume_reading()
        for _ in range(100):
            await line.expect("t")

        await soon(sending)


async def test_what_the_server_would_not_take_is_not_sent():
    """It would close the connection for good."""
    async with running(max_message_size=1000) as server, client(server.url) as c:
        with pytest.raises(InvalidEnvelope, match="1000"):
            await c.send("t", "x" * 1000)
        with pytest.raises(InvalidEnvelope):
            await c.request("t", "x" * 1000)
        assert c.state is State.OPEN


async def test_more_requests_than_the_server_remembers_wait_for_their_turn():
    async with talking() as (_, c, line):
        asking = [asyncio.ensure_future(c.request("t", n, timeout=30)) for n in range(300)]
        first = [await line.expect("t") for _ in range(256)]
        fence = c.send("fence")
        await fence
        await line.expect("fence")
        for request in first:
            await line.answer(request)
        for _ in range(300 - 256):
            await line.answer(await line.expect("t"))

        await soon(asyncio.gather(*asking))


async def test_what_cannot_be_sent_is_told_at_once():
    async with talking() as (_, c, _line):
        for wrong in (object(), print, "\ud800"):
            with pytest.raises(ValueError):  # noqa: PT011
                await c.send("t", wrong)
            with pytest.raises(ValueError):  # noqa: PT011
                await c.request("t", wrong)
        assert len(c._engine._requests) == 0


# --- in its place


async def test_other_clients_need_nothing_of_it():
    async with running() as server, client(server.url) as c, peer(server) as other:
        await server.hub.broadcast("news", data=1)
        assert (await other.receive())["data"] == 1
        assert (await soon(anext(c))).data == 1


def test_the_package_does_not_need_websockets():
    script = "import eyewall, sys; print('websockets' in sys.modules)"
    assert output(script) == "False"


def test_without_the_extra_the_client_says_what_to_install():
    script = (
        "import sys; sys.modules['websockets'] = None\n"
        "try:\n    import eyewall.client\n"
        "except ImportError as error:\n    print(error.name, error)"
    )
    told = output(script)
    assert told.startswith("websockets eyewall.client needs the extra eyewall[client]")
    assert "pip install 'eyewall[client]'" in told


def output(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
