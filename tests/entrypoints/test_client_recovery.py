"""Resuming, against a server that says what the test has it say."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from eyewall import ConnectionClosed, Message, RateLimited, RoomOptions, Unavailable
from eyewall.client import State, recovery
from eyewall.client.link import MAX_REQUESTED_WAIT
from tests.entrypoints.client_support import RESUME, client, reopened, talking, through
from tests.entrypoints.house import commanded
from tests.entrypoints.wire import WITHIN, eventually, soon
from tests.faults.proxy import TcpProxy


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
        """Wait until it was told exactly this, in this order."""
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: self.data == list(data))
        assert self.data == list(data)


# --- after a cut


async def test_the_old_session_and_every_room_are_resumed_before_it_is_open():
    async with talking() as (script, c, first):
        line = first
        heard = Heard(c)
        joining = asyncio.ensure_future(c.join("plain"))
        await line.answer(await line.expect("system:join"))
        await joining
        await line.placed(1)
        await heard.until(1)
        line.cut()

        line = await script.line()
        request = await line.expect(RESUME)
        assert request["ack"]
        assert request["data"] == {"session": "s1", "rooms": {"r": at(1), "plain": {}}}
        assert c.state is State.CONNECTING
        await line.placed(2)
        await line.answer(request, rooms={"r": recovered(2), "plain": {"recovered": True}})
        await line.placed(3)
        await heard.until(1, 2, 3)
        await eventually(lambda: c.state is State.OPEN)
        assert c.conn_id == "s2"
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
    async with talking() as (script, c, first):
        line = first
        line.cut()
        line = await script.line()
        await line.refuse(await line.expect(RESUME), "overloaded", retry_after=0.01)

        await (await script.line()).resumed()
        await eventually(lambda: c.state is State.OPEN)


async def test_a_server_that_does_not_answer_is_left(monkeypatch):
    monkeypatch.setattr(recovery, "RESUME_TIMEOUT", 0.05)
    async with talking() as (script, c, line):
        line.cut()
        await (await script.line()).expect(RESUME)
        await (await script.line()).resumed()

        await eventually(lambda: c.state is State.OPEN)


async def test_a_server_that_resumes_nobody_has_lost_the_rooms():
    async with talking() as (script, c, first):
        line = first
        heard = Heard(c)
        await line.placed(1)
        await heard.until(1)
        line.cut()
        line = await script.line()
        await line.refuse(await line.expect(RESUME), "handler_not_found")
        await eventually(lambda: c.state is State.OPEN)
        await eventually(lambda: heard.lost == [("r", "handler_not_found")])

        assert c.rooms == frozenset()


async def test_what_cannot_be_recovered_is_told_and_goes_on_from_there():
    async with talking() as (script, c, first):
        line = first
        heard = Heard(c)
        await line.placed(1)
        await heard.until(1)
        line.cut()
        line = await script.line()
        await line.resumed(r={"recovered": False, **at(7, "f")})
        await line.placed(8, epoch="f")
        await heard.until(1, 8)

        assert heard.lost == [("r", None)]
        assert c.rooms == {"r"}


async def test_who_is_not_let_in_again_is_told():
    async with talking() as (script, c, first):
        line = first
        heard = Heard(c)
        await line.placed(1)
        await heard.until(1)
        line.cut()
        line = await script.line()
        await line.resumed(r={"recovered": False, "code": "join_forbidden"})
        await eventually(lambda: heard.lost == [("r", "join_forbidden")])

        assert c.rooms == frozenset()


async def test_a_room_that_cannot_be_joined_now_is_joined_later(monkeypatch):
    monkeypatch.setattr(recovery, "RETRY_DELAY", 0.01)
    async with talking() as (script, c, first):
        heard = Heard(c)
        await first.placed(1)
        await heard.until(1)
        first.cut()
        line = await script.line()
        for _ in range(2):
            await line.resumed(r={"recovered": False, "code": "unavailable"})
        request = await line.expect(RESUME)
        assert request["data"] == {"rooms": {"r": at(1)}}
        await line.placed(2)
        await line.answer(request, rooms={"r": recovered(2)})
        await heard.until(1, 2)

    assert heard.lost == []


async def test_such_a_room_is_not_asked_for_without_end(monkeypatch):
    monkeypatch.setattr(recovery, "RETRY_DELAY", 60.0)
    async with talking() as (script, c, first):
        await first.placed(1)
        await soon(anext(c))
        first.cut()
        line = await script.line()
        for _ in range(2):
            await line.resumed(r={"recovered": False, "code": "unavailable"})

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(line.socket.recv(), 0.1)


# --- a gap while it is open


async def test_a_gap_is_asked_for_once_and_filled_in_order():
    async with talking() as (_, c, line):
        heard = Heard(c)
        for offset in (1, 3, 4):
            await line.placed(offset)
        request = await line.expect(RESUME)
        assert request["data"] == {"rooms": {"r": at(1)}}
        for offset in (2, 3, 4):
            await line.placed(offset)
        await line.answer(request, rooms={"r": recovered(4)})
        await line.placed(5)
        await heard.until(1, 2, 3, 4, 5)

        fence = asyncio.ensure_future(c.request("fence"))
        await line.answer(await line.expect("fence"))
        await soon(fence)
    assert c.counts.gaps == 2
    assert heard.lost == []


async def test_a_hole_that_was_for_others_does_not_hold_up_the_rest():
    async with talking() as (_, c, line):
        heard = Heard(c)
        await line.placed(1)
        await line.placed(3)
        request = await line.expect(RESUME)
        await line.placed(3)
        await line.answer(request, rooms={"r": recovered(4)})
        await line.placed(5)

        await heard.until(1, 3, 5)


async def test_what_was_kept_aside_and_has_no_place_is_asked_for_again():
    async with talking(queue=2) as (_, c, line):
        begun, go, heard = asyncio.Event(), asyncio.Event(), []

        @c.on("room:r")
        async def slow(message):
            begun.set()
            await go.wait()
            heard.append(message.data)

        await line.placed(1)
        await soon(begun.wait())
        await line.placed(3)
        request = await line.expect(RESUME)
        for offset in (3, 4, 5, 6):
            await line.placed(offset)
        await line.answer(request, rooms={"r": recovered(6)})
        await eventually(lambda: c.counts.gaps == 6)
        go.set()
        request = await line.expect(RESUME)
        assert request["data"] == {"rooms": {"r": at(4)}}
        for offset in (5, 6):
            await line.placed(offset)
        await line.answer(request, rooms={"r": recovered(6)})

        await eventually(lambda: heard == [1, 3, 4, 5, 6])


async def test_a_gap_that_the_server_tells_of_is_filled():
    async with talking() as (_, c, line):
        heard = Heard(c)
        await line.placed(1)
        await line.send("system:gap", {"room": "r", **at(1)}, event="gap")
        request = await line.expect(RESUME)
        await line.placed(2)
        await line.answer(request, rooms={"r": recovered(2)})

        await heard.until(1, 2)


async def test_a_server_that_cannot_say_now_is_asked_again(monkeypatch):
    monkeypatch.setattr(recovery, "RETRY_DELAY", 0.01)
    async with talking() as (_, c, line):
        heard = Heard(c)
        await line.placed(1)
        await line.placed(3)
        await line.refuse(await line.expect(RESUME), "unavailable")
        request = await line.expect(RESUME)
        await line.placed(2)
        await line.placed(3)
        await line.answer(request, rooms={"r": recovered(3)})

        await heard.until(1, 2, 3)


async def test_a_server_that_says_no_for_good_is_not_asked_again():
    async with talking() as (_, c, line):
        heard = Heard(c)
        await line.placed(1)
        await line.placed(3)
        await line.refuse(await line.expect(RESUME), "forbidden")
        await eventually(lambda: heard.lost == [("r", "forbidden")])
        await line.placed(4)

        await heard.until(1, 4)


async def test_a_slow_callback_loses_nothing_of_a_room_with_history():
    """What has no place in the queue is asked for when it has drained."""
    async with talking(queue=2) as (_, c, line):
        go, heard = asyncio.Event(), []

        @c.on("room:r")
        async def slow(message):
            await go.wait()
            heard.append(message.data)

        for offset in range(1, 9):
            await line.placed(offset)
        await eventually(lambda: c.counts.gaps)
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
        assert c.counts.dropped == 0


async def test_a_cut_in_the_middle_of_a_gap_resumes_from_the_last_place():
    async with talking() as (script, c, first):
        line = first
        heard = Heard(c)
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
    async with talking() as (script, c, first):
        line = first
        heard = Heard(c)
        await line.placed(1)
        await heard.until(1)
        line.cut()
        line = await script.line()
        await line.answer(await line.expect(RESUME), rooms=answer)

        await eventually(lambda: heard.lost == [("r", None)])
        assert c.state is State.OPEN


def test_a_server_cannot_keep_a_client_away_for_years():
    assert recovery._wait_of(RateLimited(1e8)) == MAX_REQUESTED_WAIT
    assert recovery._wait_of(RateLimited(2.5)) == 2.5
    assert recovery._wait_of(Unavailable("no time")) is None


def test_a_cut_is_no_answer():
    assert recovery._is_transient(ConnectionClosed("cut"))


# --- with a real server


KEEPS = RoomOptions(history_size=1000)


@contextlib.asynccontextmanager
async def cuttable(options: RoomOptions = KEEPS, *, queue: int = 256, **server_options):
    """A server with the room ``r``, and a member of it whose line can be cut."""
    async with commanded(**server_options) as server:
        await server.hub.create_room("r", options)
        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy, "?name=ada"), queue=queue) as c:
                await c.join("r")
                yield server, proxy, c


async def say(server, *numbers: int) -> None:
    for number in numbers:
        await server.hub.broadcast_room("r", "room:r", "message", number)


async def test_what_was_said_meanwhile_comes_after_a_cut():
    async with cuttable() as (server, proxy, c):
        heard = Heard(c)
        await say(server, 1, 2)
        await heard.until(1, 2)
        before = c.conn_id
        proxy.refuse()
        proxy.cut()
        await eventually(lambda: c.state is not State.OPEN)
        await say(server, 3, 4)
        proxy.resume()
        await reopened(c, before)
        await say(server, 5)

        await heard.until(1, 2, 3, 4, 5)
        assert heard.lost == []


async def test_many_cuts_while_much_is_said_lose_and_repeat_nothing():
    async with cuttable() as (server, proxy, c):
        heard = Heard(c)

        async def talk():
            for number in range(600):
                await say(server, number)
                await asyncio.sleep(0.001)

        talking = asyncio.ensure_future(talk())
        while not talking.done():
            before = c.conn_id
            proxy.cut()
            async with asyncio.timeout(4 * WITHIN):
                await reopened(c, before)
        await talking

        await heard.until(*range(600))
        assert heard.lost == []


async def test_what_was_trimmed_is_lost_and_told():
    async with cuttable(RoomOptions(history_size=2)) as (server, proxy, c):
        heard = Heard(c)
        await say(server, 1)
        await heard.until(1)
        before = c.conn_id
        proxy.refuse()
        proxy.cut()
        await eventually(lambda: c.state is not State.OPEN)
        await say(server, 2, 3, 4, 5)
        proxy.resume()
        await reopened(c, before)
        await eventually(lambda: heard.lost == [("r", None)])
        await say(server, 6)

        await eventually(lambda: heard.data[-1] == 6)
        assert (await c.history("r")).messages[-1].data == 6


async def test_who_was_banned_meanwhile_is_told():
    async with cuttable() as (server, proxy, c):
        heard = Heard(c)
        proxy.refuse()
        proxy.cut()
        await eventually(lambda: c.state is not State.OPEN)
        await server.hub.ban("r", "ada")
        proxy.resume()

        await eventually(lambda: heard.lost == [("r", "join_forbidden")])
        assert c.rooms == frozenset()


async def test_a_message_to_all_but_this_client_is_no_gap_for_long():
    async with cuttable() as (server, _, c):
        heard = Heard(c)
        await say(server, 1)
        message = Message("room:r", data="for the others")
        await server.hub.emit_to_room_except("r", [c.conn_id], message)
        await say(server, 2)

        await heard.until(1, 2)
        assert heard.lost == []


async def test_a_slow_callback_gets_everything_in_time():
    async with cuttable(queue=5) as (server, _, c):
        heard: list = []
        go = asyncio.Event()

        @c.on("room:r")
        async def slow(message):
            await go.wait()
            heard.append(message.data)

        await say(server, *range(200))
        await eventually(lambda: c.counts.gaps)
        go.set()
        await eventually(lambda: len(heard) >= 200)

        assert heard == list(range(200))
        assert c.counts.gaps > 0
        assert c.counts.dropped == 0


async def test_what_the_servers_queue_has_dropped_comes_later():
    """The line is stalled for so long that the server's queue is full."""
    async with cuttable(queue=256) as (server, proxy, c):
        heard = Heard(c)
        (conn,) = server.hub.connections()
        proxy.stall()
        text = "x" * 200_000
        for _ in range(80):
            await server.hub.broadcast_room("r", "room:r", "message", text)
        assert server.hub.stats().drops > 0
        proxy.resume()

        await eventually(lambda: len(heard.data) == 80)
        assert conn.is_open
        assert heard.lost == []


async def test_a_room_that_a_handler_joined_is_resumed_by_its_session():
    """Also where clients may not join by themselves."""
    async with cuttable_by_handler() as (server, proxy, c):
        heard = Heard(c)
        await c.request("enter")
        await say(server, 1)
        await heard.until(1)
        before = c.conn_id
        proxy.cut()
        await reopened(c, before)
        await say(server, 2)

        await heard.until(1, 2)
        assert heard.lost == []


@contextlib.asynccontextmanager
async def cuttable_by_handler():
    async with commanded(client_commands=False) as server:
        await server.hub.create_room("r", KEEPS)

        @server.on("enter")
        async def enter(ctx, msg):
            await ctx.hub.join("r", ctx.conn.id)

        with TcpProxy("127.0.0.1", server.port) as proxy:
            async with client(through(proxy, "?name=ada")) as c:
                yield server, proxy, c
