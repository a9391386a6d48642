"""A room that a program has left is not joined again, whether or not the server answered."""

from __future__ import annotations

import asyncio

import pytest

from eyewall import AckTimeout, JoinForbidden, NotAMember, Overloaded, RateLimited
from eyewall.client import State
from tests.entrypoints.client_support import RESUME, client, reopened, talking, through
from tests.entrypoints.house import commanded
from tests.entrypoints.wire import eventually, soon
from tests.faults.proxy import TcpProxy

GONE = 0.02
"""Seconds until a leave times out."""


async def join(c, line, *rooms: str, **place) -> None:
    for room in rooms:
        joining = asyncio.ensure_future(c.join(room))
        await line.answer(await line.expect("system:join"), room=room, **place)
        await soon(joining)


async def asked(script) -> set[str]:
    """Take a resume; return the rooms that it names."""
    line = await script.line()
    return set((await line.resumed())["rooms"])


async def away(script, c, line, tries: int = 1) -> None:
    script.refusals.extend([(503, {})] * tries)
    line.cut()
    await eventually(lambda: c.state is not State.OPEN)


async def test_a_leave_that_timed_out_while_away_is_one():
    async with talking() as (script, c, line):
        await join(c, line, "r", "other")
        await away(script, c, line, 1000)
        with pytest.raises(AckTimeout):
            await c.leave("r", timeout=GONE)
        script.refusals.clear()

        assert await asked(script) == {"other"}
        assert c.rooms == {"other"}


async def test_the_server_agrees():
    async with commanded() as server:
        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy)) as c:
                await c.join("r")
                await c.join("other")
                before = c.conn_id
                proxy.refuse()
                proxy.cut()
                with pytest.raises(AckTimeout):
                    await c.leave("r", timeout=GONE)
                proxy.resume()
                await reopened(c, before)

                (connection,) = server.hub.connections()
                assert connection.rooms == {"other"}


@pytest.mark.parametrize("how", ["under way", "timed out", "given up"])
async def test_a_leave_that_was_not_answered_at_a_cut_is_one(how):
    async with talking() as (script, c, line):
        await join(c, line, "r", "other")
        timeout = 0.2 if how == "timed out" else 30
        leaving = asyncio.ensure_future(c.leave("r", timeout=timeout))
        request = await line.expect("system:leave")
        if how == "timed out":
            with pytest.raises(AckTimeout):
                await leaving
        elif how == "given up":
            leaving.cancel()
            await asyncio.wait([leaving])
        line.cut()
        line = await script.line()  # noqa: PLW2901

        assert set((await line.resumed())["rooms"]) == {"other"}
        if how == "under way":
            again = await line.expect("system:leave")
            assert again["data"] == request["data"]
            assert again["id"] != request["id"], "the old connection's answer is of no use"
            await line.answer(again, room="r")
            await soon(leaving)
        line.cut()
        assert await asked(script) == {"other"}


async def test_with_the_outbox_full_too():
    async with talking(outbox=1) as (script, c, line):
        await join(c, line, "r")
        await away(script, c, line, 1000)
        await c.send("t")
        with pytest.raises(Overloaded):
            await c.leave("r")
        script.refusals.clear()

        assert await asked(script) == set()


async def test_what_is_still_to_be_done_in_a_room_is_done_before_it_is_left():
    async with talking() as (script, c, line):
        await join(c, line, "r")
        await away(script, c, line, 3)
        saying = asyncio.ensure_future(c.publish("r", "bye", timeout=30))
        await asyncio.sleep(0)
        leaving = asyncio.ensure_future(c.leave("r", timeout=30))
        line = await script.line()  # noqa: PLW2901
        assert set((await line.resumed())["rooms"]) == {"r"}
        for topic, waiting in (("system:publish", saying), ("system:leave", leaving)):
            await line.answer(await line.expect(topic))
            await soon(waiting)
        line.cut()

        assert await asked(script) == set()


async def test_a_room_that_is_joined_again_is_one_to_be_in():
    async with talking() as (script, c, line):
        await join(c, line, "r")
        with pytest.raises(AckTimeout):
            await c.leave("r", timeout=GONE)
        await line.expect("system:leave")
        plain = await line.expect("system:leave")
        assert "ack" not in plain
        await join(c, line, "r")
        line.cut()

        assert await asked(script) == {"r"}


@pytest.mark.parametrize(
    ("code", "kind", "stays"),
    [
        ("rate_limited", RateLimited, True),
        ("join_forbidden", JoinForbidden, True),
        ("not_a_member", NotAMember, False),
    ],
)
async def test_only_a_refusal_leaves_it_where_it_is(code, kind, stays):
    async with talking() as (script, c, line):
        await join(c, line, "r")
        leaving = asyncio.ensure_future(c.leave("r"))
        await line.refuse(await line.expect("system:leave"), code)
        with pytest.raises(kind):
            await soon(leaving)
        assert c.rooms == ({"r"} if stays else frozenset())
        line.cut()

        assert await asked(script) == c.rooms


async def test_what_still_comes_from_it_does_not_bring_it_back():
    async with talking() as (script, c, line):
        heard: list = []
        c.on("room:r", lambda message: heard.append(message.data))
        await join(c, line, "r", epoch="e", offset=2)
        with pytest.raises(AckTimeout):
            await c.leave("r", timeout=GONE)
        await line.placed(3)
        await line.placed(9)
        await line.send("system:gap", {"room": "r", "epoch": "e", "offset": 3}, event="gap")
        await eventually(lambda: heard == [3, 9])
        assert c.rooms == frozenset()
        line.cut()
        line = await script.line()  # noqa: PLW2901
        assert (await line.resumed())["rooms"] == {}
        await line.placed(10)  # a handler of the server has joined it again
        await eventually(lambda: c.rooms == {"r"})
        line.cut()

        assert await asked(script) == {"r"}


async def test_a_room_that_is_left_while_it_is_resumed_is_left_at_the_server_too():
    async with talking() as (script, c, line):
        await join(c, line, "r")
        line.cut()
        line = await script.line()  # noqa: PLW2901
        request = await line.expect(RESUME)
        with pytest.raises(AckTimeout):
            await c.leave("r", timeout=GONE)
        await line.answer(request, rooms={"r": {"recovered": False}})

        assert (await line.expect("system:leave"))["data"] == {"room": "r"}
        line.cut()
        assert await asked(script) == set()
