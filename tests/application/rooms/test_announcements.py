"""Gaps that nobody is told of, as long as they are short."""

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.application.rooms.announcements import RETRY_DELAY
from eyewall.domain.room import JoinOptions, RoomOptions
from tests.application.engines import Engine
from tests.application.fakes import settle

GRACE = 5.0


@pytest.fixture
def pair_config():
    return {"presence_grace": GRACE}


@pytest.fixture
async def one(one):
    """The first node of the pair, which has created a room."""
    await one.hub.create_room("lab", RoomOptions(announce=True))
    return one


async def joined(node, user):
    client = await node.connect(user)
    await node.hub.join("lab", client.id, JoinOptions())
    await settle()
    return client


def notices(client):
    """What the client has been told of the others since the last call."""
    return [
        (message["event"], message["data"]["user_id"], message["data"]["connections"])
        for message in client.heard()
        if message["event"] in ("join", "leave")
    ]


async def test_who_is_back_in_time_was_never_away(one, two):
    bob = await joined(one, "bob")
    ada = await joined(one, "ada")
    notices(bob)

    await ada.vanish()
    await one.advance(GRACE - 1)
    await joined(two, "ada")
    await one.advance(GRACE * 2)

    assert notices(bob) == []


async def test_who_stays_away_has_left_when_the_time_is_over(one):
    bob = await joined(one, "bob")
    ada = await joined(one, "ada")
    notices(bob)

    await ada.vanish()
    await one.advance(GRACE - 1)
    early = notices(bob)
    await one.advance(1)

    assert early == []
    assert notices(bob) == [("leave", "ada", 0)]


async def test_who_comes_back_later_joins_anew(one):
    bob = await joined(one, "bob")
    ada = await joined(one, "ada")
    await ada.vanish()
    await one.advance(GRACE)
    notices(bob)

    await joined(one, "ada")

    assert notices(bob) == [("join", "ada", 1)]


async def test_one_return_makes_good_one_cut(one):
    """Each device has its own absence."""
    bob = await joined(one, "bob")
    laptop, phone = await joined(one, "ada"), await joined(one, "ada")
    notices(bob)

    await laptop.vanish()
    await phone.vanish()
    await joined(one, "ada")
    await one.advance(GRACE)

    assert notices(bob) == [("leave", "ada", 1)]


async def test_leaving_in_words_is_told_at_once(one):
    bob = await joined(one, "bob")
    ada = await joined(one, "ada")
    notices(bob)

    await one.hub.leave("lab", ada.id)

    assert notices(bob) == [("leave", "ada", 0)]


async def test_being_kicked_is_not_made_good_by_coming_back(one):
    bob = await joined(one, "bob")
    await joined(one, "ada")
    notices(bob)

    await one.hub.kick_user_from_room("ada", "lab")
    await joined(one, "ada")

    assert [event for event, *_ in notices(bob)] == ["leave", "join"]


async def test_rooms_seats_and_hooks_never_wait(one):
    told = []
    one.hub.on_leave(lambda room, conn, reason: told.append((room, str(reason))))
    ada = await joined(one, "ada")

    await ada.vanish()

    assert told == [("lab", "disconnected")]
    assert await one.hub.members("lab") == []
    assert (await one.hub.room("lab")).members == 0


async def test_a_user_stays_online_for_as_long(one, two):
    ada = await joined(one, "ada")

    await ada.vanish()
    await one.advance(GRACE - 1)
    then = await two.hub.presence("ada")
    await one.advance(1)

    assert (then.online, then.connections) == (True, 0)
    assert not (await two.hub.presence("ada")).online


async def test_a_node_that_ends_tells_of_who_is_missing(one, two):
    """Nobody would do it later."""
    bob = await joined(two, "bob")
    ada = await joined(one, "ada")
    await ada.vanish()
    notices(bob)

    await one.stop()
    await settle()

    assert notices(bob) == [("leave", "ada", 0)]


async def test_an_absence_that_the_state_cant_be_asked_about_is_told_later(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(presence_grace=GRACE, state=engine)
    await node.hub.create_room("lab", RoomOptions(announce=True))
    bob, ada = await joined(node, "bob"), await joined(node, "ada")
    await ada.vanish()
    notices(bob)

    engine.away = True
    await node.advance(GRACE)
    engine.away = False

    assert notices(bob) == []
    assert "absence_not_told" in node.logger.of("warning")
    await node.advance(RETRY_DELAY)
    assert [(n["event"], n["data"]["user_id"]) for n in bob.heard()] == [("leave", "ada")]
    assert len(node.parts.rooms._announcements) == 0


async def test_without_a_grace_nothing_is_hidden(make_node):
    node = await make_node()
    await node.hub.create_room("lab", RoomOptions(announce=True))
    bob, ada = await joined(node, "bob"), await joined(node, "ada")
    notices(bob)

    await ada.vanish()

    assert notices(bob) == [("leave", "ada", 0)]
    assert not (await node.hub.presence("ada")).online
