"""Resuming, against a server that says what the test has it say."""

from __future__ import annotations

import asyncio

import pytest

from eyewall import ConnectionClosed
from eyewall.client import State, recover
from tests.entrypoints.client_support import RESUME, talking
from tests.entrypoints.wire import eventually, soon


def at(offset: int, epoch: str = "e") -> dict:
    return {"epoch": epoch, "offset": offset}


def recovered(offset: int, epoch: str = "e") -> dict:
    return {"recovered": True, **at(offset, epoch)}


class Heard:
    """What a client is told: the data of its messages, the rooms that it lost, its states."""

    def __init__(self, client) -> None:
        self.data: list = []
        self.lost: list = []
        self.states: list = []
        client.on("room:*", lambda message: self.data.append(message.data))
        client.on_lost(lambda room, code: self.lost.append((room, code)))
        client.on_state(self.states.append)

    async def until(self, *data) -> None:
        await eventually(lambda: self.data == list(data))


# --- after a cut


async def test_the_old_session_and_every_room_are_resumed_before_it_is_open():
    async with talking() as (script, client, first):
        line = first
        heard = Heard(client)
        joining = asyncio.ensure_future(client.join("plain"))
        await line.answer(await line.expect("system:join"))
        await joining
        await line.placed(1)
        await heard.until(1)
        line.cut()

        line = await script.line()
        request = await line.expect(RESUME)
        assert request["ack"]
        assert request["data"] == {"session": "s1", "rooms": {"r": at(1), "plain": {}}}
        assert client.state is State.CONNECTING
        await line.placed(2)
        await line.answer(request, rooms={"r": recovered(2), "plain": {"recovered": True}})
        await line.placed(3)
        await heard.until(1, 2, 3)
        await eventually(lambda: client.state is State.OPEN)
        assert client.conn_id == "s2"
    assert heard.lost == []


async def test_from_a_resume_on_the_session_is_the_new_one():
    async with talking() as (script, _, first):
        line = first
        line.cut()
        line = await script.line()
        assert (await line.resumed())["session"] == "s1"
        line.cut()

        assert (await (await script.line()).resumed())["session"] == "s2"


async def test_the_old_session_is_kept_until_a_resume_was_answered():
    async with talking() as (script, _, first):
        line = first
        line.cut()
        line = await script.line()
        await line.expect(RESUME)
        line.cut()
        line = await script.line()
        await line.refuse(await line.expect(RESUME), "unavailable")

        assert (await (await script.line()).resumed())["session"] == "s1"


async def test_a_server_that_is_overloaded_is_asked_again_when_it_says():
    async with talking() as (script, client, first):
        line = first
        line.cut()
        line = await script.line()
        await line.refuse(await line.expect(RESUME), "overloaded", retry_after=0.01)

        await (await script.line()).resumed()
        await eventually(lambda: client.state is State.OPEN)


async def test_a_server_that_does_not_answer_is_left(monkeypatch):
    monkeypatch.setattr(recover, "PATIENCE", 0.05)
    async with talking() as (script, client, line):
        line.cut()
        await (await script.line()).expect(RESUME)
        await (await script.line()).resumed()

        await eventually(lambda: client.state is State.OPEN)


async def test_a_server_that_resumes_nobody_has_lost_the_rooms():
    async with talking() as (script, client, first):
        line = first
        heard = Heard(client)
        await line.placed(1)
        await heard.until(1)
        line.cut()
        line = await script.line()
        await line.refuse(await line.expect(RESUME), "handler_not_found")
        await eventually(lambda: client.state is State.OPEN)
        await eventually(lambda: heard.lost == [("r", "handler_not_found")])

        assert client.rooms == frozenset()


async def test_what_cannot_be_recovered_is_told_and_goes_on_from_there():
    async with talking() as (script, client, first):
        line = first
        heard = Heard(client)
        await line.placed(1)
        await heard.until(1)
        line.cut()
        line = await script.line()
        await line.resumed(r={"recovered": False, **at(7, "f")})
        await line.placed(8, epoch="f")
        await heard.until(1, 8)

        assert heard.lost == [("r", None)]
        assert client.rooms == {"r"}


async def test_who_is_not_let_in_again_is_told():
    async with talking() as (script, client, first):
        line = first
        heard = Heard(client)
        await line.placed(1)
        await heard.until(1)
        line.cut()
        line = await script.line()
        await line.resumed(r={"recovered": False, "code": "join_forbidden"})
        await eventually(lambda: heard.lost == [("r", "join_forbidden")])

        assert client.rooms == frozenset()


# --- a gap while it is open


async def test_a_gap_is_asked_for_once_and_filled_in_order():
    async with talking() as (_, client, line):
        heard = Heard(client)
        for offset in (1, 3, 4):
            await line.placed(offset)
        request = await line.expect(RESUME)
        assert request["data"] == {"rooms": {"r": at(1)}}
        for offset in (2, 3, 4):
            await line.placed(offset)
        await line.answer(request, rooms={"r": recovered(4)})
        await line.placed(5)
        await heard.until(1, 2, 3, 4, 5)

        fence = asyncio.ensure_future(client.request("fence"))
        await line.answer(await line.expect("fence"))
        await soon(fence)
    assert client.counts.gaps == 2
    assert heard.lost == []


async def test_a_hole_that_was_for_others_does_not_hold_up_the_rest():
    async with talking() as (_, client, line):
        heard = Heard(client)
        await line.placed(1)
        await line.placed(3)
        request = await line.expect(RESUME)
        await line.placed(3)
        await line.answer(request, rooms={"r": recovered(4)})
        await line.placed(5)

        await heard.until(1, 3, 5)


async def test_a_gap_that_the_server_tells_of_is_filled():
    async with talking() as (_, client, line):
        heard = Heard(client)
        await line.placed(1)
        await line.send("system:gap", {"room": "r", **at(1)}, event="gap")
        request = await line.expect(RESUME)
        await line.placed(2)
        await line.answer(request, rooms={"r": recovered(2)})

        await heard.until(1, 2)


async def test_a_server_that_cannot_say_now_is_asked_again(monkeypatch):
    monkeypatch.setattr(recover, "AGAIN", 0.01)
    async with talking() as (_, client, line):
        heard = Heard(client)
        await line.placed(1)
        await line.placed(3)
        await line.refuse(await line.expect(RESUME), "unavailable")
        request = await line.expect(RESUME)
        await line.placed(2)
        await line.placed(3)
        await line.answer(request, rooms={"r": recovered(3)})

        await heard.until(1, 2, 3)


async def test_a_server_that_says_no_for_good_is_not_asked_again():
    async with talking() as (_, client, line):
        heard = Heard(client)
        await line.placed(1)
        await line.placed(3)
        await line.refuse(await line.expect(RESUME), "forbidden")
        await eventually(lambda: heard.lost == [("r", "forbidden")])
        await line.placed(4)

        await heard.until(1, 4)


async def test_a_slow_callback_loses_nothing_of_a_room_with_history():
    """What has no place in the queue is asked for when it has drained."""
    async with talking(queue=2) as (_, client, line):
        go, heard = asyncio.Event(), []

        @client.on("room:r")
        async def slow(message):
            await go.wait()
            heard.append(message.data)

        for offset in range(1, 9):
            await line.placed(offset)
        await eventually(lambda: client.counts.gaps)
        go.set()
        upto = 0
        while upto < 8:
            request = await line.expect(RESUME)
            since = request["data"]["rooms"]["r"]["offset"]
            upto = min(8, since + 2)
            for offset in range(since + 1, upto + 1):
                await line.placed(offset)
            await line.answer(request, rooms={"r": recovered(upto)})
            if upto < 8:
                await line.send("system:gap", {"room": "r", **at(upto)}, event="gap")

        await eventually(lambda: heard == list(range(1, 9)))
        assert client.counts.dropped == 0


async def test_a_cut_in_the_middle_of_a_gap_resumes_from_the_last_place():
    async with talking() as (script, client, first):
        line = first
        heard = Heard(client)
        await line.placed(1)
        await line.placed(3)
        await line.expect(RESUME)
        line.cut()
        line = await script.line()
        request = await line.expect(RESUME)
        assert request["data"] == {"session": "s1", "rooms": {"r": at(1)}}
        for offset in (2, 3):
            await line.placed(offset)
        await line.answer(request, rooms={"r": recovered(3)})

        await heard.until(1, 2, 3)


@pytest.mark.parametrize("answer", [None, [], {"r": 5}])
async def test_an_answer_that_says_nothing_is_a_loss(answer):
    async with talking() as (script, client, first):
        line = first
        heard = Heard(client)
        await line.placed(1)
        await heard.until(1)
        line.cut()
        line = await script.line()
        await line.answer(await line.expect(RESUME), rooms=answer)

        await eventually(lambda: heard.lost == [("r", None)])
        assert client.state is State.OPEN


def test_a_cut_is_no_answer():
    assert recover._passes(ConnectionClosed("cut"))
