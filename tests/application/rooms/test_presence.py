"""Who is there and who is typing, in the whole cluster."""

import asyncio
from datetime import timedelta

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.domain.errors import Unavailable
from tests.application.engines import Engine
from tests.application.fakes import settle


@pytest.fixture
async def slow(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    return await make_node(state=engine), engine


async def joined(node, user, room="lab"):
    client = await node.connect(user)
    await node.hub.join(room, client.id)
    return client


async def typing_heard(client):
    await settle()
    return [m["data"]["typing"] for m in client.heard() if m["event"] == "typing"]


# --- presence


async def test_a_user_is_there_on_all_nodes_with_all_connections(one, two):
    await one.connect("ada")
    await two.connect("ada")

    state = await one.hub.presence("ada")

    assert (state.online, state.connections, state.typing) == (True, 2, {})
    assert await two.hub.presence("ada") == state


async def test_who_was_never_there_was_never_seen(one):
    state = await one.hub.presence("ada")

    assert (state.online, state.connections, state.last_seen) == (False, 0, None)


async def test_who_has_gone_was_seen_last_when_it_went(one, two, clock):
    phone, laptop = await one.connect("ada"), await two.connect("ada")
    await clock.advance(5)
    await phone.vanish()
    assert (await two.hub.presence("ada")).connections == 1
    await laptop.vanish()
    gone = clock.wall()
    await clock.advance(5)

    state = await one.hub.presence("ada")

    assert (state.online, state.last_seen) == (False, gone)


async def test_many_are_asked_for_at_once(one):
    await one.connect("ada")

    states = await one.hub.presence_many(["ada", "bob"])

    assert {user: state.online for user, state in states.items()} == {"ada": True, "bob": False}


async def test_a_node_that_ends_in_order_takes_its_users_along(one, two):
    await two.connect("ada")

    await two.stop()

    assert not (await one.hub.presence("ada")).online


async def test_who_ends_before_it_has_appeared_does_not_stay(slow):
    """The end may overtake the beginning on its way to the state."""
    node, engine = slow
    engine.before.add("appear")
    connecting = asyncio.create_task(node.connect("ada"))
    await settle()
    (conn,) = node.hub.connections()
    await conn.close()
    await settle()

    engine.go_on()
    await connecting

    assert not (await node.hub.presence("ada")).online


async def test_who_becomes_another_user_before_it_has_appeared_is_that_one_only(slow):
    node, engine = slow
    engine.before.add("appear")
    connecting = asyncio.create_task(node.connect("ada"))
    await settle()
    (conn,) = node.hub.connections()
    node.hub.set_meta(conn.id, user_id="bob")
    await settle()

    engine.go_on()
    await connecting
    await settle()

    states = await node.hub.presence_many(["ada", "bob"])
    assert [state.online for state in states.values()] == [False, True]


async def test_a_state_that_is_away_keeps_nobody_out(slow):
    node, engine = slow
    engine.away = True

    ada = await node.connect("ada")

    assert ada.closed is None
    with pytest.raises(Unavailable):
        await node.hub.presence("ada")


# --- typing


async def test_the_other_members_hear_who_types(one, two):
    ada, phone, bob, eve = (
        await joined(one, "ada"),
        await joined(two, "ada"),
        await joined(two, "bob"),
        await joined(one, "eve"),
    )

    await one.hub.set_typing("ada", "lab")
    await settle()

    (heard,) = bob.heard()
    assert (heard["topic"], heard["event"]) == ("room:lab", "typing")
    assert heard["data"] == {"user_id": "ada", "typing": True}
    assert len(eve.heard()) == 1
    assert ada.heard() == phone.heard() == [], "the user's own devices know"


async def test_typing_stands_in_the_presence_until_its_end(one, two, clock):
    await joined(one, "ada")
    await one.hub.set_typing("ada", "lab", ttl=3.0)

    typing = (await two.hub.presence("ada")).typing

    assert typing == {"lab": clock.wall() + timedelta(seconds=3)}
    await clock.advance(3)
    assert (await two.hub.presence("ada")).typing == {}


async def test_typing_runs_out_and_the_others_hear_of_it(one, two, clock):
    await joined(one, "ada")
    bob = await joined(two, "bob")
    await one.hub.set_typing("ada", "lab", ttl=3.0)
    await clock.advance(2.9)
    assert await typing_heard(bob) == [True]

    await clock.advance(0.1)

    assert await typing_heard(bob) == [False]
    await clock.advance(60)
    assert await typing_heard(bob) == []


async def test_typing_on_pushes_the_end_away(one, clock):
    bob = await joined(one, "bob")
    await one.hub.set_typing("ada", "lab", ttl=3.0)
    await clock.advance(2)
    await one.hub.set_typing("ada", "lab", ttl=timedelta(seconds=3))
    await clock.advance(2.9)
    assert await typing_heard(bob) == [True, True]

    await clock.advance(0.1)

    assert await typing_heard(bob) == [False]


async def test_who_stops_is_told_once(one, two, clock):
    bob = await joined(two, "bob")
    await one.hub.set_typing("ada", "lab")

    await one.hub.set_typing("ada", "lab", False)
    await clock.advance(60)

    assert await typing_heard(bob) == [True, False]


async def test_who_types_on_by_another_node_has_not_stopped(one, two, clock):
    bob = await joined(one, "bob")
    await one.hub.set_typing("ada", "lab", ttl=3.0)
    await clock.advance(2)
    await two.hub.set_typing("ada", "lab", ttl=10.0)
    await clock.advance(5)
    assert await typing_heard(bob) == [True, True]

    await clock.advance(5)

    assert await typing_heard(bob) == [False]


@pytest.mark.parametrize(
    "end",
    [
        lambda node, client: node.hub.leave("lab", client.id),
        lambda node, client: node.hub.kick_user_from_room("ada", "lab"),
        lambda node, client: client.vanish(),
    ],
    ids=["leave", "kick", "end"],
)
async def test_who_is_out_of_the_room_types_there_no_longer(one, two, clock, end):
    bob = await joined(two, "bob")
    ada = await joined(one, "ada")
    await one.hub.set_typing("ada", "lab", ttl=30.0)

    await end(one, ada)

    assert await typing_heard(bob) == [True, False]
    assert (await two.hub.presence("ada")).typing == {}
    await clock.advance(60)
    assert await typing_heard(bob) == []


async def test_who_is_in_the_room_with_another_device_types_on(one, two):
    bob = await joined(two, "bob")
    phone, _ = await joined(one, "ada"), await joined(one, "ada")
    await one.hub.set_typing("ada", "lab", ttl=30.0)

    await one.hub.leave("lab", phone.id)

    assert await typing_heard(bob) == [True]
    assert list((await two.hub.presence("ada")).typing) == ["lab"]


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), "5"])
async def test_typing_has_an_end(one, ttl):
    with pytest.raises(ValueError, match="ttl"):
        await one.hub.set_typing("ada", "lab", ttl=ttl)


async def test_a_state_that_is_away_is_told_to_who_sets_and_not_at_the_end(slow, clock):
    node, engine = slow
    bob = await joined(node, "bob")
    await node.hub.set_typing("ada", "lab", ttl=3.0)
    engine.away = True

    with pytest.raises(Unavailable):
        await node.hub.set_typing("eve", "lab")
    await clock.advance(3)

    assert await typing_heard(bob) == [True, False]
    assert node.logger.of("error") == []


async def test_one_timer_serves_all_who_type(one, clock):
    before = len(clock.timers)
    for number in range(50):
        await one.hub.set_typing(f"u{number}", "lab", ttl=1.0 + number)

    assert len(clock.timers) == before + 1


async def test_a_node_that_stops_leaves_no_timer(make_node, clock):
    node = await make_node()
    await node.hub.set_typing("ada", "lab")

    await node.stop()

    assert clock.timers == set()
