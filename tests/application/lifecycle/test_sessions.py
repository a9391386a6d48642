"""Sessions: what a client finds again, here, on another node, and after a node's end."""

import asyncio
from functools import partial

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.application.lifecycle.sessions import IN_FLIGHT_TIMEOUT
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import Unavailable
from eyewall.domain.session import MAX_NAME
from tests.application.engines import Bus, Engine
from tests.application.fakes import settle

TTL = 60.0


@pytest.fixture
def pair_config():
    return {"session_ttl": TTL}


def counted(node, *, result=None):
    """Count how often the handler of a node ran."""
    runs = []

    @node.on("count")
    async def count(ctx, msg):
        runs.append(msg.id)
        if result is not None:
            await result.wait()
        return {"n": len(runs)}

    return runs


REQUEST = {"id": "r1", "topic": "count", "ack": True}


async def back(node, name, user="ada"):
    """Come back with a new connection; returns it and what was found."""
    client = await node.connect(user, session=True)
    return client, await node.parts.sessions.resume(name, client.conn)


async def test_a_session_keeps_its_rooms_over_a_cut(one):
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)
    await ada.vanish()

    _, found = await back(one, ada.welcome["session"])

    assert found.rooms == {"lab"}


async def test_what_was_handled_is_not_handled_again(one):
    runs = counted(one)
    ada = await one.connect("ada", session=True)
    [first] = await ada.ask(REQUEST)
    await ada.vanish()

    again, _ = await back(one, ada.welcome["session"])

    assert await again.ask(REQUEST) == [first]
    assert runs == ["r1"]


async def test_a_request_in_work_is_answered_to_who_came_back(one):
    go = asyncio.Event()
    runs = counted(one, result=go)
    ada = await one.connect("ada", session=True)
    ada.say(REQUEST)
    await settle()
    await ada.vanish()

    again, _ = await back(one, ada.welcome["session"])
    early = await again.ask(REQUEST)
    go.set()
    await settle()

    assert early == []
    assert [message["data"]["n"] for message in again.heard()] == [1]
    assert runs == ["r1"]


async def test_it_is_found_from_another_node(one, two):
    runs = counted(one) + counted(two)
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)
    [first] = await ada.ask(REQUEST)
    await ada.vanish()

    again, found = await back(two, ada.welcome["session"])

    assert found.rooms == {"lab"}
    assert await again.ask(REQUEST) == [first]
    assert runs == []


async def test_another_node_waits_for_what_is_in_work(one, two):
    go = asyncio.Event()
    counted(one, result=go)
    runs = counted(two)
    ada = await one.connect("ada", session=True)
    ada.say(REQUEST)
    await settle()
    await ada.vanish()
    again = await two.connect("ada", session=True)

    coming = asyncio.ensure_future(two.parts.sessions.resume(ada.welcome["session"], again.conn))
    await settle()
    waited = not coming.done()
    go.set()
    await coming

    assert waited
    assert [message["data"]["n"] for message in await again.ask(REQUEST)] == [1]
    assert runs == []


async def test_but_not_for_ever(one, two):
    counted(one, result=asyncio.Event())
    ada = await one.connect("ada", session=True)
    ada.say(REQUEST)
    await settle()
    await ada.vanish()
    again = await two.connect("ada", session=True)

    coming = asyncio.ensure_future(two.parts.sessions.resume(ada.welcome["session"], again.conn))
    await settle()
    await two.advance(IN_FLIGHT_TIMEOUT)

    assert (await coming) is not None


async def test_a_node_that_ends_leaves_its_sessions_to_the_others(one, two):
    counted(one)
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)
    [first] = await ada.ask(REQUEST)
    await ada.vanish(DisconnectReason.SERVER_SHUTDOWN)
    await one.stop()

    again, found = await back(two, ada.welcome["session"])

    assert found.rooms == {"lab"}
    assert await again.ask(REQUEST) == [first]


async def test_who_comes_back_before_the_cut_was_noticed_takes_it_over(one):
    """A half-open connection is the one that is given up."""
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)

    _, found = await back(one, ada.welcome["session"])
    await settle()

    assert found.rooms == {"lab"}
    assert ada.closed is DisconnectReason.CONNECTION_LOST
    assert one.hub.connection(ada.id) is None


async def test_and_so_it_does_from_another_node(one, two):
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)

    _, found = await back(two, ada.welcome["session"])

    assert found.rooms == {"lab"}
    assert ada.closed is DisconnectReason.CONNECTION_LOST


@pytest.mark.parametrize("place", ["one", "two"])
async def test_a_client_that_never_heard_of_its_new_session_finds_it_by_the_old(one, two, place):
    """The answer to the resume may be lost like anything else."""
    counted(one), counted(two)
    node = {"one": one, "two": two}[place]
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)
    [first] = await ada.ask(REQUEST)
    await ada.vanish()
    middle, _ = await back(node, ada.welcome["session"])
    await node.hub.join("lab", middle.id)
    await middle.vanish()

    again, found = await back(one, ada.welcome["session"])

    assert found.rooms == {"lab"}
    assert await again.ask(REQUEST) == [first]


async def test_it_is_worth_nothing_to_another_user(one, two):
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)

    for node in (one, two):
        _, found = await back(node, ada.welcome["session"], user="eve")
        assert found is None
    assert ada.closed is None


async def left_to_the_state(node, user="ada"):
    """The name of a session whose node has ended in order."""
    client = await node.connect(user, session=True)
    await node.hub.join("lab", client.id)
    await client.vanish(DisconnectReason.SERVER_SHUTDOWN)
    await node.stop()
    return client.welcome["session"]


async def test_who_is_sent_away_finds_nothing_that_a_node_has_left_to_the_state(
    one, two, make_node
):
    """On no node, also on one that has begun since; nobody else loses anything by it."""
    other = await make_node(session_ttl=TTL)
    bobs, names = await left_to_the_state(other, "bob"), []
    for _ in range(2):
        node = await make_node(session_ttl=TTL)
        names.append(await left_to_the_state(node))
    await one.advance(1.0)
    assert await one.hub.disconnect_user("ada") == 0

    late = await make_node(session_ttl=TTL)
    for node, name in zip((two, late), names, strict=True):
        assert (await back(node, name))[1] is None
    assert (await back(late, bobs, "bob"))[1].rooms == {"lab"}


async def test_what_is_cut_after_that_is_found(one, two):
    await two.hub.disconnect_user("ada")
    await two.advance(1.0)
    name = await left_to_the_state(one)

    assert (await back(two, name))[1].rooms == {"lab"}


@pytest.mark.parametrize("name", ["sent away: ada", "sent away: "])
async def test_the_mark_of_who_was_sent_away_is_no_session(one, two, name):
    left = await left_to_the_state(one)
    await two.advance(1.0)
    await two.hub.disconnect_user("ada")

    assert (await back(two, name))[1] is None
    assert (await back(two, left))[1] is None


async def test_who_is_sent_away_while_it_comes_back_does_not(make_node, clock):
    """The state has been asked, and its answer is on the way."""
    state = Engine(MemoryState(clock=clock.now))
    one = await make_node(session_ttl=TTL)
    two = await make_node(session_ttl=TTL, state=state)
    one_state = one.state
    state.inner = one_state
    name = await left_to_the_state(one)
    again = await two.connect(session=True)
    two.hub.set_meta(again.id, user_id="ada")
    await settle()
    state.after.add("take_session")
    coming = asyncio.ensure_future(two.parts.sessions.resume(name, again.conn))
    await settle()
    two.hub.set_meta(again.id, user_id="eve")
    two.hub.set_meta(again.id, user_id="ada")
    await two.parts.sessions.forget("ada")
    state.go_on()

    assert (await coming) is None


@pytest.mark.parametrize("held_by", ["keep_sessions", "connections_of"])
async def test_who_is_cut_off_while_it_is_sent_away_has_nothing_to_come_back_to(
    make_node, clock, held_by
):
    state = Engine(MemoryState(clock=clock.now))
    node = await make_node(session_ttl=TTL, state=state)
    ada = await node.connect("ada", session=True)
    state.after.add(held_by)
    going = asyncio.ensure_future(node.hub.disconnect_user("ada"))
    await settle()
    await ada.vanish()
    state.go_on()

    assert await going == 0
    assert (await back(node, ada.welcome["session"]))[1] is None


async def test_a_session_left_to_the_state_is_not_another_users_either(one, two):
    ada = await one.connect("ada", session=True)
    await ada.vanish()
    await one.stop()

    _, found = await back(two, ada.welcome["session"], user="eve")

    assert found is None


async def test_it_is_over_after_its_time(one):
    ada = await one.connect("ada", session=True)
    await ada.vanish()

    await one.advance(TTL)
    _, found = await back(one, ada.welcome["session"])

    assert found is None
    assert len(one.parts.sessions) == 0


@pytest.mark.parametrize("reason", [DisconnectReason.DISCONNECTED, DisconnectReason.REPLACED])
async def test_who_was_sent_away_has_nothing_to_come_back_to(one, reason):
    ada = await one.connect("ada", session=True)
    await one.hub.disconnect_conn(ada.id, reason)
    await settle()

    _, found = await back(one, ada.welcome["session"])

    assert found is None


@pytest.mark.parametrize(
    "name", ["", "x", "x.y", "x.y@n1", "x.y@gone", "." * 40, "a@b@c", "y" * (MAX_NAME + 1)]
)
async def test_a_name_that_is_none_finds_nothing(one, name):
    _, found = await back(one, name)

    assert found is None


async def test_a_guess_at_the_secret_finds_nothing(one):
    ada = await one.connect("ada", session=True)

    _, found = await back(one, f"guess.{ada.id}")

    assert found is None
    assert ada.closed is None


async def test_ones_own_session_is_no_earlier_one(one):
    ada = await one.connect("ada", session=True)

    assert await one.parts.sessions.resume(ada.welcome["session"], ada.conn) is None
    assert ada.closed is None


async def test_a_state_that_is_away_costs_the_sessions_and_a_warning(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine)
    ada = await node.connect("ada", session=True)
    await ada.vanish()

    engine.away = True
    await node.stop()

    assert "sessions_not_kept" in node.logger.of("warning")


@pytest.mark.parametrize("place", ["here", "elsewhere"])
async def test_who_is_cut_while_it_takes_its_session_up_loses_nothing(one, two, place):
    """The session arrives when the connection that it was for has ended."""
    go = asyncio.Event()
    runs = counted(one, result=go) + counted(two)
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)
    ada.say(REQUEST)
    await settle()
    await ada.vanish()
    second = await two.connect("ada", session=True)
    taking = asyncio.create_task(two.parts.sessions.resume(ada.welcome["session"], second.conn))
    await settle()
    await second.vanish()

    returning = asyncio.create_task(back(two if place == "here" else one, ada.welcome["session"]))
    await settle()
    assert not returning.done()
    go.set()
    await taking
    again, found = await returning

    assert found.rooms == {"lab"}
    assert [answer["data"]["n"] for answer in await again.ask(REQUEST)] == [1]
    assert runs in ([], ["r1"])


async def returning_during_a_take(node, engine):
    """Come back while the state still looks for the session that the lost connection has asked
    for; returns the tasks of both calls, and the second call itself."""
    ada = await node.connect("ada", session=True)
    engine.before.add("take_session")
    taking = asyncio.create_task(node.parts.sessions.resume("secret.conn@gone", ada.conn))
    await settle()
    await ada.vanish()
    again = await node.connect("ada", session=True)
    resume = partial(node.parts.sessions.resume, ada.welcome["session"], again.conn)
    returning = asyncio.create_task(resume())
    await settle()
    assert not returning.done()
    return taking, returning, resume


async def test_but_it_is_not_waited_for_without_end(make_node):
    engine = Engine(MemoryState())
    node = await make_node(session_ttl=TTL, state=engine)
    taking, returning, resume = await returning_during_a_take(node, engine)

    await node.advance(IN_FLIGHT_TIMEOUT)

    with pytest.raises(Unavailable):
        await returning
    engine.go_on()
    assert await taking is None
    assert await resume() is not None


async def test_who_has_gone_takes_nothing_up(one):
    """Its request was read too late: the session stays where it can be found."""
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)
    await ada.vanish()
    late = await one.connect("ada", session=True)
    await late.vanish()

    assert await one.parts.sessions.resume(ada.welcome["session"], late.conn) is None
    _, found = await back(one, ada.welcome["session"])

    assert found.rooms == {"lab"}


async def test_who_is_cut_before_it_is_back_in_its_rooms_may_still_come_back(one):
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)
    await ada.vanish()
    second, _ = await back(one, ada.welcome["session"])
    await second.vanish()

    _, found = await back(one, ada.welcome["session"])

    assert found.rooms == {"lab"}


async def test_but_not_into_those_that_did_not_let_it_in(one):
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)
    await ada.vanish()
    second, _ = await back(one, ada.welcome["session"])
    one.parts.sessions.returned(second.conn)
    await second.vanish()

    _, found = await back(one, second.welcome["session"])

    assert found.rooms == frozenset()


async def test_a_join_that_is_sent_again_after_a_cut_is_a_join_of_the_new_connection(make_node):
    """The answer to the first one was about a connection that is gone."""
    node = await make_node(client_commands=True)
    ada = await node.connect("ada", session=True)
    join = {"id": "j", "topic": "system:join", "ack": True, "data": {"room": "lab"}}
    await ada.ask(join)
    await ada.vanish()

    again, _ = await back(node, ada.welcome["session"])
    await again.ask(join)

    assert again.conn.rooms == {"lab"}


@pytest.mark.parametrize("place", ["one", "two"])
async def test_a_connection_that_was_given_up_takes_nothing_from_a_newer_one(one, two, place):
    """Its resume may have been under way for long."""
    node = {"one": one, "two": two}[place]
    ada = await one.connect("ada", session=True)
    await ada.vanish()
    stuck = await node.connect("ada", session=True)
    await one.advance(2.0)
    newer, found = await back(one, ada.welcome["session"])

    late = await node.parts.sessions.resume(ada.welcome["session"], stuck.conn)

    assert found is not None
    assert late is None
    assert newer.closed is None


async def test_a_client_without_a_session_leaves_none_and_takes_none_up(one):
    guest = await one.connect("ada")
    await one.hub.join("lab", guest.id)
    await guest.vanish()
    assert len(one.parts.sessions) == 0
    ada = await one.connect("ada", session=True)
    await one.hub.join("lab", ada.id)
    await ada.vanish()

    plain = await one.connect("ada")
    assert await one.parts.sessions.resume(ada.welcome["session"], plain.conn) is None

    _, found = await back(one, ada.welcome["session"])
    assert found.rooms == {"lab"}, "it is there for who comes back with one"


async def test_a_name_that_is_too_long_is_asked_of_nobody(make_node):
    bus = Bus()
    one, two = [await make_node(session_ttl=TTL, pubsub=bus) for _ in range(2)]
    ada = await one.connect("ada", session=True)
    before = len(bus.published)

    name = "x" * MAX_NAME + f".c@{two.node.config.node_id}"
    assert await one.parts.sessions.resume(name, ada.conn) is None

    assert len(bus.published) == before


async def test_nothing_is_remembered_of_a_return_that_was_broken_off(one):
    """Neither of one who may come back, nor of one who may not."""
    for reason in (DisconnectReason.CONNECTION_LOST, DisconnectReason.POLICY_VIOLATION):
        ada = await one.connect("ada", session=True)
        await one.hub.join("lab", ada.id)
        await ada.vanish()
        again, _ = await back(one, ada.welcome["session"])
        assert one.parts.sessions._returning

        await again.vanish(reason)

        assert not one.parts.sessions._returning


async def test_what_was_asked_before_the_session_was_taken_up_is_not_handled_again(one):
    runs = counted(one)
    ada = await one.connect("ada", session=True)
    await ada.ask(REQUEST)
    await ada.vanish()
    again = await one.connect("ada", session=True)
    [first] = await again.ask(REQUEST | {"id": "r2"})

    await one.parts.sessions.resume(ada.welcome["session"], again.conn)

    assert await again.ask(REQUEST | {"id": "r2"}) == [first]
    assert runs == ["r1", "r2"]


async def test_who_was_taken_over_keeps_no_session_of_its_own(one):
    """Its name leads to the one that goes on, also when its end comes later."""
    runs = counted(one)
    ada = await one.connect("ada", session=True)
    again, _ = await back(one, ada.welcome["session"])
    await settle()
    assert ada.closed is not None
    [first] = await again.ask(REQUEST)

    third, found = await back(one, ada.welcome["session"])

    assert found is not None
    assert again.closed is not None, "it goes on with the newest"
    assert await third.ask(REQUEST) == [first]
    assert runs == ["r1"]


async def test_who_waits_for_a_session_on_its_way_is_told_when_it_has_come(make_node, clock):
    """And not only when the patience is over."""
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(session_ttl=TTL, state=engine)
    taking, returning, _ = await returning_during_a_take(node, engine)

    engine.go_on()
    await settle()

    assert taking.done()
    assert returning.done()
    assert (await returning) is not None
