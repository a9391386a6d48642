from __future__ import annotations

import asyncio
import time

import pytest

from eyewall import Unavailable
from eyewall.chat.room_list import RoomList
from tests.entrypoints.chat_support import WITHIN, chat_server, visitors


@pytest.fixture
async def server():
    async with chat_server() as server:
        yield server


@pytest.fixture
async def visit(server):
    async with visitors(server) as visit:
        yield visit


async def lists_until(visitor, wanted):
    """The lists that came, up to and with the first that is ``wanted``."""
    seen = []
    while not seen or seen[-1] != wanted:
        rooms = (await visitor.receive("chat:rooms", "rooms"))["rooms"]
        seen.append({room["id"]: room["members"] for room in rooms})
    return seen


async def test_who_has_asked_sees_the_list_change(visit):
    ada, ben = await visit("ada"), await visit("ben")
    await ada.request("chat:rooms")

    await ben.enter("plots")
    await lists_until(ada, {"general": 0, "plots": 1})
    await ben.request("system:leave", {"room": "plots"})

    assert await lists_until(ada, {"general": 0, "plots": 0})


async def test_who_has_not_asked_is_not_told(visit):
    """A program that tries the protocol gets nothing that it does not know."""
    ada, nobody = await visit("ada"), await visit()
    await ada.request("chat:rooms")

    await ada.enter("plots")
    await lists_until(ada, {"general": 0, "plots": 1})

    assert not nobody.inbox


async def test_a_storm_of_joins_is_a_few_messages(visit):
    """However many come, there are at most four lists a second."""
    ada = await visit("ada")
    await ada.request("chat:rooms")
    crowd = [await visit(f"v{n}") for n in range(20)]

    begun = time.monotonic()
    for visitor in crowd:
        await visitor.enter("general")
    seen = await lists_until(ada, {"general": 20})

    # The first comes at once, the last after the pause.
    assert len(seen) <= 2 + (time.monotonic() - begun) / 0.25


async def test_rooms_that_stay_empty_are_closed(server, visit):
    ada = await (await visit("ada")).enter("used")
    await ada.request("chat:create", {"room": "never used"})
    room_list = RoomList(server.hub)

    await room_list.close_empty()
    assert set(await server.hub.rooms()) == {"general", "used", "never used"}
    await room_list.close_empty()
    assert set(await server.hub.rooms()) == {"general", "used"}


async def test_the_sweep_goes_on_when_the_state_cannot_be_reached(server, visit, monkeypatch):
    room_list, calls, third = RoomList(server.hub), [], asyncio.Event()

    async def close_empty():
        calls.append(None)
        if len(calls) == 3:
            third.set()
        raise Unavailable("the state is away")

    monkeypatch.setattr(room_list, "close_empty", close_empty)
    sweep = asyncio.create_task(room_list.sweep(pause=0))
    await asyncio.wait_for(third.wait(), WITHIN)
    assert not sweep.done()
    sweep.cancel()


async def test_the_list_is_bounded(server, visit):
    nobody, ada = await visit(), await visit("ada")
    for number in range(60):
        await nobody.request("system:join", {"room": f"a{number}"})
    other = await visit()
    for number in range(60):
        await other.request("system:join", {"room": f"b{number}"})

    assert len((await ada.request("chat:rooms"))["rooms"]) == 100
