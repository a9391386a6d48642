"""Joining with what was said before: against real servers, and one that says what it is told."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from eyewall import (
    AckOptions,
    AckTimeout,
    JoinForbidden,
    NotAMember,
    QueueConfig,
    RoomOptions,
    Target,
    Unavailable,
    ValidationError,
)
from eyewall import Message as ServerMessage
from eyewall.adapters.history import MemoryHistory
from eyewall.client import State
from tests.entrypoints.client_support import client, reopened, talking, through
from tests.entrypoints.house import commanded
from tests.entrypoints.test_client_recovery import Heard, at, recovered
from tests.entrypoints.wire import UNIT, WITHIN, eventually, soon
from tests.faults.proxy import TcpProxy

KEEPS = RoomOptions(history_size=500)


async def say(server, *numbers, room="r"):
    for number in numbers:
        await server.hub.broadcast_room(room, f"room:{room}", data=number)


@contextlib.asynccontextmanager
async def proxied(server):
    with TcpProxy("127.0.0.1", server.port) as proxy:
        yield proxy


# --- against a real server


@pytest.mark.parametrize(("since", "data"), [("start", [1, 2, 3]), (1, [3]), (0, [])])
async def test_the_callbacks_get_what_is_kept_and_then_what_is_live(since, data):
    async with commanded() as server, client(server.url) as c:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1, 2, 3)
        heard = Heard(c)

        answer = await c.join("r", since=since)
        await say(server, 4)

        await heard.until(*data, 4)
        assert answer["recovered"] is True
        assert (answer["role"], answer["members"], answer["offset"]) == ("member", 1, 3)


async def test_so_does_the_iteration():
    async with commanded() as server, client(server.url) as c:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1, 2)

        await c.join("r", "start")

        assert [(await soon(anext(c))).data for _ in range(2)] == [1, 2]


async def test_it_goes_on_from_whatever_has_a_position():
    async with commanded() as server, client(server.url) as c, client(server.url) as other:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1, 2, 3)
        await c.join("r", since="start")
        page = await c.history("r", limit=3)
        heard = Heard(other)

        await other.join("r", since=page.messages[1].stream)

        await heard.until(3)


async def test_what_is_kept_of_more_comes_and_is_not_said_to_be_all():
    async with commanded() as server, client(server.url) as c:
        await server.hub.create_room("r", RoomOptions(history_size=2))
        await say(server, 1, 2, 3)
        heard = Heard(c)

        answer = await c.join("r", since="start")
        await say(server, 4)

        assert answer["recovered"] is False
        await heard.until(2, 3, 4)
        assert heard.lost == [], "the answer says it"


async def test_a_room_without_history_is_joined():
    async with commanded() as server, client(server.url) as c:
        heard = Heard(c)

        answer = await c.join("r", since="start")
        await say(server, 1)

        assert answer["recovered"] is False
        await heard.until(1)


async def test_who_has_left_and_joins_again_gets_it_again():
    """However much of it was handled before, and also what came in between."""
    async with commanded() as server, client(server.url) as c:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1, 2)
        heard = Heard(c)
        await c.join("r", since="start")
        await say(server, 3)
        await heard.until(1, 2, 3)
        await c.leave("r")
        await say(server, 4)

        await c.join("r", since="start")
        await say(server, 5)

        await heard.until(1, 2, 3, 1, 2, 3, 4, 5)


async def test_who_is_in_already_gets_it_again_as_well():
    async with commanded() as server, client(server.url) as c:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1, 2)
        heard = Heard(c)
        await c.join("r")
        await say(server, 3)
        await heard.until(3)

        await c.join("r", since=2)
        await say(server, 4)
        await heard.until(3, 2, 3, 4)
        await asyncio.gather(c.join("r", since="start"), c.join("r", since=1))
        await say(server, 5)

        await heard.until(3, 2, 3, 4, 1, 2, 3, 4, 4, 5)


async def test_a_new_client_gets_everything():
    """As after a reload of a page."""
    async with commanded() as server:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1, 2)
        for _ in range(2):
            async with client(server.url) as c:
                heard = Heard(c)
                await c.join("r", since="start")
                await heard.until(1, 2)


async def test_more_than_its_queue_holds_comes_all_the_same():
    """Its own queue, and again where each of them was handled before."""
    async with commanded() as server, client(server.url, queue=16) as c:
        await server.hub.create_room("r", KEEPS)
        await say(server, *range(100))
        heard = Heard(c)

        await c.join("r", since="start")
        await heard.until(*range(100))
        await c.leave("r")
        await c.join("r", since="start")
        await say(server, 100)

        await heard.until(*range(100), *range(101))
        assert heard.lost == []


async def test_holes_of_messages_for_others_hold_up_nothing():
    async with commanded() as server, client(server.url) as c:
        await server.hub.create_room("r", KEEPS)
        for number in range(6):
            message = ServerMessage("room:r", data=number)
            skip = [c.conn_id] if number in (0, 2, 5) else []
            await server.hub.emit_to_room_except("r", skip, message)
        heard = Heard(c)

        answer = await c.join("r", since="start")
        await say(server, 6)

        await heard.until(1, 3, 4, 6)
        assert answer["recovered"]


async def test_a_message_that_asks_for_an_ack_is_handled_and_acked_once_meanwhile():
    """It overtakes the replay, which brings it in its turn, and the server asks only once."""

    class Slow(MemoryHistory):
        gate = asyncio.Event()
        slow = False

        async def read(self, *args):
            page = await super().read(*args)
            if self.slow and page.entries:
                await self.gate.wait()
            return page

    store = Slow()
    async with commanded(history=store) as server, client(server.url) as c:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1, 2)
        heard = Heard(c)
        store.slow = True
        joining = asyncio.ensure_future(c.join("r", since="start"))
        await eventually(lambda: server.hub.connection(c.conn_id).rooms == {"r"})

        message = ServerMessage("room:r", data=3)
        options = AckOptions(timeout=2 * WITHIN)
        sending = asyncio.ensure_future(
            server.hub.emit_with_ack(Target.room("r"), message, options)
        )
        await eventually(lambda: c.counts.gaps == 1)
        store.gate.set()
        await soon(joining)

        await heard.until(1, 2, 3)
        assert [acker.conn_id for acker in (await soon(sending)).acked] == [c.conn_id]
        assert heard.data == [1, 2, 3]


@pytest.mark.parametrize("since", ["end", -1, 1.5, True, [], {"epoch": "e"}, object()])
async def test_what_is_no_beginning_is_refused_before_anything_is_sent(since):
    async with talking() as (_, c, line):
        with pytest.raises(ValueError, match=r"since|position"):
            await c.join("r", since=since)
        asking = asyncio.ensure_future(c.request("next"))
        assert (await line.receive())["topic"] == "next"
        asking.cancel()


async def test_who_is_not_let_in_hears_nothing():
    async with commanded() as server, client(f"{server.url}?name=ada") as c:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1)
        await server.hub.ban("r", "ada")
        heard = Heard(c)

        with pytest.raises(JoinForbidden):
            await c.join("r", since="start")

        assert (heard.data, c.rooms) == ([], frozenset())


async def test_after_a_cut_it_goes_on_from_where_it_is():
    async with commanded() as server, proxied(server) as proxy:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1, 2)
        async with client(through(proxy)) as c:
            heard = Heard(c)
            await c.join("r", since="start")
            before = c.conn_id
            await heard.until(1, 2)
            proxy.cut()
            await say(server, 3)
            await reopened(c, before)
            await say(server, 4)

            await heard.until(1, 2, 3, 4)
            assert heard.lost == []


async def test_cut_again_and_again_while_it_is_sent_each_message_comes_once():
    async with commanded() as server, proxied(server) as proxy:
        await server.hub.create_room("r", KEEPS)
        for number in range(200):
            await server.hub.broadcast_room("r", "room:r", data=[number, "x" * 20_000])
        async with client(through(proxy)) as c:
            heard = []
            lost = []
            c.on("room:r", lambda message: heard.append(message.data[0]))
            c.on_lost(lambda room, code: lost.append(room))
            joining = asyncio.ensure_future(c.join("r", since="start", timeout=30))
            for count in (10, 60, 110):
                await eventually(lambda count=count: len(heard) >= count)
                proxy.cut()

            answer = await soon(joining)
            await eventually(lambda: len(heard) >= 200)
            await server.hub.broadcast_room("r", "room:r", data=["live"])

            assert answer["recovered"] is True
            await eventually(lambda: len(heard) > 200)
            assert heard == [*range(200), "live"]
            assert lost == []


async def test_a_join_while_away_is_made_when_it_is_back():
    async with commanded() as server, proxied(server) as proxy:
        await server.hub.create_room("r", KEEPS)
        async with client(through(proxy), first_delay=0.3 * UNIT, max_delay=0.3 * UNIT) as c:
            heard = Heard(c)
            proxy.cut()
            await eventually(lambda: c.state is State.WAITING)
            joining = asyncio.ensure_future(c.join("r", since="start"))
            await say(server, 1, 2)

            assert (await soon(joining))["recovered"]
            await heard.until(1, 2)


async def test_a_slow_client_is_brought_up_in_the_end():
    """The server's queue for it is small, and it reads nothing for a while."""
    async with (
        commanded(queue=QueueConfig(size=8)) as server,
        proxied(server) as proxy,
    ):
        await server.hub.create_room("r", KEEPS)
        for number in range(300):
            await server.hub.broadcast_room("r", "room:r", data=[number, "x" * 10_000])
        async with client(through(proxy)) as c:
            heard = []
            c.on("room:r", lambda message: heard.append(message.data[0]))

            answer = await c.join("r", since="start")
            await eventually(lambda: len(heard) == 300)

            assert heard == list(range(300))
            assert answer["recovered"]


# --- against a server that says what it is told


async def asked(line):
    request = await line.expect("system:join")
    return request, request["data"].get("since")


async def test_cut_before_anything_came_it_asks_for_the_same_again():
    async with talking() as (script, c, line):
        heard = Heard(c)
        joining = asyncio.ensure_future(c.join("r", since="start"))
        assert (await asked(line))[1] == "start"
        line.cut()
        again = await script.line()
        assert (await again.resumed())["rooms"] == {}

        request, since = await asked(again)
        assert since == "start"
        await again.placed(1)
        await again.answer(request, **recovered(1))

        assert (await soon(joining))["recovered"] is True
        await heard.until(1)


@pytest.mark.parametrize(
    ("since", "first", "whole"),
    [
        ("start", 1, True),
        ("start", 2, False),
        (3, 4, True),
        (4, 4, False),
        (4, 1, True),
        (at(3), 4, True),
        (at(2), 4, False),
        (at(3, "old"), 4, False),
    ],
)
async def test_cut_in_the_middle_it_goes_on_and_says_itself_whether_that_was_all(
    since, first, whole
):
    async with talking() as (script, c, line):
        heard = Heard(c)
        joining = asyncio.ensure_future(c.join("r", since=since))
        await asked(line)
        for offset in range(first, 6):
            await line.placed(offset)
        await heard.until(*range(first, 6))
        line.cut()
        again = await script.line()
        request = await again.expect("system:resume")
        assert request["data"]["rooms"] == {"r": at(5)}
        await again.placed(6)
        await again.answer(request, rooms={"r": recovered(6)})

        request, since_now = await asked(again)
        assert since_now == at(6)
        await again.answer(request, **recovered(6))

        assert (await soon(joining))["recovered"] is whole
        await heard.until(*range(first, 7))
        assert heard.lost == []


async def test_what_was_lost_on_the_way_is_not_said_to_have_come():
    async with talking() as (script, c, line):
        heard = Heard(c)
        joining = asyncio.ensure_future(c.join("r", since="start"))
        await asked(line)
        await line.placed(1)
        await heard.until(1)
        line.cut()
        again = await script.line()
        await again.resumed(r={"recovered": False, **at(9)})
        request, since_now = await asked(again)
        assert since_now == at(9)
        await again.answer(request, **recovered(9))

        assert (await soon(joining))["recovered"] is False
        assert heard.lost == [("r", None)]


async def test_cut_in_a_replay_to_a_member_it_goes_on_from_where_that_was():
    async with talking() as (script, c, line):
        heard = Heard(c)
        await line.placed(4)
        await line.placed(5)
        await heard.until(4, 5)
        joining = asyncio.ensure_future(c.join("r", since=4))
        await asked(line)
        await line.placed(6)  # live, before the server has read the request
        await line.placed(3)
        await line.placed(4)
        await heard.until(4, 5, 6, 3, 4)
        line.cut()
        again = await script.line()
        request = await again.expect("system:resume")
        assert request["data"]["rooms"] == {"r": at(4)}
        await again.placed(5)
        await again.placed(6)
        await again.answer(request, rooms={"r": recovered(6)})
        request, since_now = await asked(again)
        assert since_now == at(6)
        await again.answer(request, **recovered(6))

        assert (await soon(joining))["recovered"] is True
        await heard.until(4, 5, 6, 3, 4, 5, 6)


async def test_a_member_whose_replay_had_not_begun_asks_for_it_again():
    async with talking() as (script, c, line):
        heard = Heard(c)
        await line.placed(5)
        await heard.until(5)
        joining = asyncio.ensure_future(c.join("r", since="start"))
        await asked(line)
        await line.placed(6)
        await heard.until(5, 6)
        line.cut()
        again = await script.line()
        await again.resumed(r=recovered(6))

        request, since_now = await asked(again)
        assert since_now == "start"
        for offset in range(1, 7):
            await again.placed(offset)
        await again.answer(request, **recovered(6))

        assert (await soon(joining))["recovered"] is True
        await heard.until(5, 6, *range(1, 7))


async def test_a_server_that_does_not_know_since_has_not_sent_it():
    async with talking() as (_, c, line):
        joining = asyncio.ensure_future(c.join("r", since="start"))
        request, _since = await asked(line)
        await line.answer(request, **at(7))

        assert (await soon(joining))["recovered"] is False


async def test_a_hole_is_filled_from_what_was_kept_aside_whatever_the_answer_says():
    """What is trimmed while it is sent leaves one, and `recovered` false."""
    async with talking() as (_, c, line):
        heard = Heard(c)
        joining = asyncio.ensure_future(c.join("r", since="start"))
        request, _since = await asked(line)
        for offset in (1, 2, 5, 6):
            await line.placed(offset)
        await line.answer(request, **{**recovered(6), "recovered": False})
        await line.placed(7)

        assert (await soon(joining))["recovered"] is False
        await heard.until(1, 2, 5, 6, 7)
        assert heard.lost == []


async def test_a_repeat_in_the_replay_is_one():
    async with talking() as (_, c, line):
        heard = Heard(c)
        joining = asyncio.ensure_future(c.join("r", since="start"))
        request, _since = await asked(line)
        for offset in (1, 2, 2, 1, 3):
            await line.placed(offset)
        await line.answer(request, **recovered(3))
        await soon(joining)

        await heard.until(1, 2, 3)


async def test_while_messages_come_the_answer_is_waited_for():
    async with talking() as (_, c, line):
        heard = Heard(c)
        within = 0.2 * UNIT
        joining = asyncio.ensure_future(c.join("r", since="start", timeout=within))
        request, _since = await asked(line)
        for offset in range(1, 6):
            await line.placed(offset)
            await asyncio.wait([joining], timeout=within * 0.6)
        await line.answer(request, **recovered(5))

        assert (await soon(joining))["recovered"] is True
        await heard.until(1, 2, 3, 4, 5)


async def test_without_any_it_is_not_and_what_comes_later_is_taken_all_the_same():
    async with talking() as (_, c, line):
        heard = Heard(c)
        await line.placed(1)
        await line.placed(2)
        await heard.until(1, 2)
        joining = asyncio.ensure_future(c.join("r", since="start", timeout=0.2 * UNIT))
        await asked(line)
        await line.placed(1)
        with pytest.raises(AckTimeout):
            await soon(joining)

        await line.placed(2)
        await line.placed(3)

        await heard.until(1, 2, 1, 2, 3)


@pytest.mark.parametrize(
    ("code", "error"),
    [("not_a_member", NotAMember), ("unavailable", Unavailable), ("validation", ValidationError)],
)
async def test_a_refusal_is_raised(code, error):
    async with talking() as (_, c, line):
        joining = asyncio.ensure_future(c.join("r", since=5))
        request, since = await asked(line)
        assert since == 5
        await line.refuse(request, code)

        with pytest.raises(error):
            await soon(joining)
        assert c.rooms == frozenset()


async def test_who_leaves_before_the_answer_is_out():
    async with talking() as (_, c, line):
        joining = asyncio.ensure_future(c.join("r", since="start"))
        first, _since = await asked(line)
        leaving = asyncio.ensure_future(c.leave("r"))
        second = await line.expect("system:leave")
        await line.placed(1)
        await line.answer(first, **recovered(1))
        await line.answer(second, room="r")
        await soon(asyncio.gather(joining, leaving))

        assert c.rooms == frozenset()


async def test_emit_with_ack_reaches_who_joins_with_since():
    async with commanded() as server, client(server.url) as c:
        await server.hub.create_room("r", KEEPS)
        await say(server, 1)
        heard = Heard(c)
        await c.join("r", since="start")

        done = await server.hub.emit_with_ack(Target.room("r"), ServerMessage("room:r", data=2))

        assert done.received == 1
        await heard.until(1, 2)
