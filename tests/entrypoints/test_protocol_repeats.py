"""protocol.md, "Replies": a request that comes again in a session is answered again."""

from __future__ import annotations

import asyncio

import pytest

from eyewall import (
    Forbidden,
    Overloaded,
    RateLimited,
    Server,
    Unavailable,
)
from tests.entrypoints.wire import peer, running

pytestmark = pytest.mark.usefixtures("transport")

# --- repeats in a session


class Counting:
    """A handler that counts its calls, and answers with their number."""

    def __init__(self, server: Server) -> None:
        self.calls = 0
        self.errors: dict[int, Exception] = {}
        server.handle("count", self)

    async def __call__(self, ctx, msg):
        self.calls += 1
        if self.calls in self.errors:
            raise self.errors[self.calls]
        return {"call": self.calls}


async def test_a_repeat_in_a_session_gets_the_same_answer_and_is_not_handled_again():
    server = Server()
    count = Counting(server)
    async with running(server), peer(server) as client:
        first = await client.ask("count", id="r1")
        again = await client.ask("count", id="r1")
        other = await client.ask("count", id="r2")

    assert first == again
    assert other["data"]["call"] == 2
    assert count.calls == 2


async def test_a_repeat_without_a_session_is_handled_again():
    server = Server()
    count = Counting(server)
    async with running(server), peer(server, session=False) as client:
        await client.ask("count", id="r1")
        await client.ask("count", id="r1")

    assert count.calls == 2


async def test_a_refusal_is_repeated_too():
    server = Server()
    count = Counting(server)
    count.errors[1] = Forbidden("no")
    async with running(server), peer(server) as client:
        first = await client.ask("count", id="r1")
        again = await client.ask("count", id="r1")

    assert first == again
    assert first["data"]["code"] == "forbidden"
    assert count.calls == 1


@pytest.mark.parametrize("error", [RateLimited(0.1), Overloaded(), Unavailable("gone")], ids=repr)
async def test_a_refusal_that_passes_is_not_remembered(error):
    server = Server()
    count = Counting(server)
    count.errors[1] = error
    async with running(server), peer(server) as client:
        assert (await client.ask("count", id="r1"))["data"]["status"] == "nack"
        assert (await client.ask("count", id="r1"))["data"]["status"] == "ok"

    assert count.calls == 2


async def test_an_answer_that_came_from_no_handler_is_not_remembered():
    server = Server()
    async with running(server), peer(server) as client:
        assert (await client.refused("count", id="r1"))["code"] == "handler_not_found"
        Counting(server)

        assert (await client.request("count", id="r1"))["call"] == 1


async def test_an_answer_of_the_access_controller_is_not_remembered():
    class Door:
        open = False

        def can_publish(self, meta, topic, event):
            return self.open

        def can_subscribe(self, meta, room_id):
            return True

    door = Door()
    server = Server(access_controller=door)
    Counting(server)
    async with running(server), peer(server) as client:
        assert (await client.refused("count", id="r1"))["code"] == "forbidden"
        door.open = True

        assert (await client.request("count", id="r1"))["call"] == 1


async def test_a_repeat_while_the_first_is_in_work_waits_for_its_answer():
    server = Server()
    begun, go_on = asyncio.Event(), asyncio.Event()
    calls = []

    @server.on("slow", ordering_key=lambda ctx, msg: len(calls))
    async def slow(ctx, msg):
        calls.append(msg.id)
        begun.set()
        await go_on.wait()
        return {"done": True}

    async with running(server), peer(server) as client:
        await client.send("slow", id="r1", ack=True)
        await begun.wait()
        await client.send("slow", id="r1", ack=True)
        go_on.set()

        first = await client.until(lambda m: m.get("ref") == "r1")
        again = await client.until(lambda m: m.get("ref") == "r1")

    assert first == again
    assert first["data"]["done"] is True
    assert calls == ["r1"]


async def test_the_last_256_ids_are_remembered():
    server = Server()
    count = Counting(server)
    async with running(server), peer(server) as client:
        for n in range(256):
            await client.request("count", id=f"r{n}")
        assert (await client.request("count", id="r0"))["call"] == 1, "the 256th last"

        await client.request("count", id="r256")
        assert (await client.request("count", id="r1"))["call"] == 2
        assert (await client.request("count", id="r256"))["call"] == 257
        for n in range(300, 556):
            await client.request("count", id=f"r{n}")

        assert (await client.request("count", id="r5"))["call"] == 514
    assert count.calls == 514


async def test_sessions_do_not_share_their_ids():
    server = Server()
    count = Counting(server)
    async with running(server), peer(server) as one, peer(server) as two:
        assert (await one.request("count", id="r1"))["call"] == 1
        assert (await two.request("count", id="r1"))["call"] == 2

    assert count.calls == 2


async def test_a_repeated_command_is_not_done_again():
    async with running(client_commands=True) as server, peer(server) as client:
        await client.join("r")
        publish = {"room": "r", "data": "once"}
        first = await client.ask("system:publish", publish, id="p1")
        again = await client.ask("system:publish", publish, id="p1")
        came = await client.before_fence()

    assert first == again
    assert came == []
    assert server.hub.stats().drops == 0


async def test_a_repeat_without_ack_is_handled_again():
    """Only what asked for an ack can know that it needs no second time."""
    server = Server()
    count = Counting(server)
    async with running(server), peer(server) as client:
        await client.request("count", id="r1")
        await client.send("count", id="r1")
        await client.before_fence()

    assert count.calls == 2
