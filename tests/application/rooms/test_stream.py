"""The order of rooms with history: the same for all members, whatever the bus does."""

import asyncio
import json

import pytest

from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.rooms import stream as gates
from eyewall.application.rooms import stream as module
from eyewall.application.rooms.stream import BufferedMessage
from eyewall.domain.envelope import Message
from eyewall.domain.errors import Misuse, Unavailable
from eyewall.domain.history import Entry, Position, Retention
from eyewall.domain.report import FailureReason
from eyewall.domain.room import RoomOptions
from tests.application.engines import Bus, Engine
from tests.application.fakes import finished, raw_kind, settle

KEEPS = RoomOptions(history_size=50)


@pytest.fixture
def history():
    return Engine(MemoryHistory())


@pytest.fixture
def bus():
    return Bus()


@pytest.fixture
def pair_config(bus, history):
    return {"pubsub": bus, "history": history, "client_commands": True}


async def joined(node, user, room="lab"):
    client = await node.connect(user)
    await node.hub.join(room, client.id)
    return client


def data(client):
    return [m["data"] for m in client.heard()]


def offsets(client):
    return [m["stream"]["offset"] for m in client.heard() if "stream" in m]


def room_of(node, room="lab"):
    return f"{node.node.config.cluster_channel}:room:{room}"


async def publish(node, *values, room="lab"):
    for value in values:
        await node.hub.broadcast_room(room, f"room:{room}", data=value)


# --- positions


async def test_a_message_says_where_it_stands_to_members_on_all_nodes(one, two):
    await one.hub.create_room("lab", KEEPS)
    ada, bob = await joined(one, "ada"), await joined(two, "bob")

    await publish(one, "a", "b")
    await settle()

    heard = ada.heard()
    epoch = heard[0]["stream"]["epoch"]
    assert [m["stream"] for m in heard] == [
        {"room": "lab", "epoch": epoch, "offset": 1},
        {"room": "lab", "epoch": epoch, "offset": 2},
    ]
    assert bob.heard() == heard


async def test_a_room_without_history_has_no_positions(one):
    ada = await joined(one, "ada")

    await publish(one, 1)

    (message,) = ada.heard()
    assert "stream" not in message
    assert len(one.parts.streams) == 0


async def test_a_message_is_encoded_once_and_its_position_put_into_it(one):
    """Its fields stay as they were, byte for byte; the position stands behind them."""
    await one.hub.create_room("lab", KEEPS)
    ada = await joined(one, "ada")
    await one.hub.emit_to_room("lab", Message("t", data={"b": 1, "a": [2]}, id="m"))

    (frame,) = ada.link.frames
    kept = (await one.history.read("lab", None, 1, one.clock.wall())).entries[0]

    assert frame.payload.startswith(kept.payload[:-1] + b',"stream":{"room":"lab"')
    assert (frame.stream, frame.position.offset) == ("lab", 1)
    assert frame.envelope.stream.offset == 1


async def test_notices_of_the_server_have_no_position(one):
    await one.hub.create_room("lab", RoomOptions(history_size=5, announce=True))
    ada = await joined(one, "ada")

    await one.hub.set_typing("bob", "lab")
    await joined(one, "carl")
    await settle()

    assert [(m["event"], "stream" in m) for m in ada.heard()] == [
        ("typing", False),
        ("join", False),
    ]
    assert (await one.hub.room("lab")).offset == 0


# --- what the bus loses


async def test_a_lost_message_is_filled_in_before_the_next_one(one, two, bus):
    await one.hub.create_room("lab", KEEPS)
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    await publish(one, 1)

    bus.deaf.add(room_of(one))
    await publish(one, 2, 3)
    bus.deaf.clear()
    await publish(one, 4)
    await settle()

    assert data(bob) == [1, 2, 3, 4]
    assert data(ada) == [1, 2, 3, 4]


async def test_a_lost_last_message_is_found_by_comparing(one, two, bus):
    """Nothing comes after it that would tell."""
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    bus.deaf.add(room_of(one))
    await publish(one, 1)
    await settle()
    assert data(bob) == []

    await two.advance(2 * module.CHECK_PERIOD)

    assert data(bob) == [1]


async def test_comparing_brings_all_that_was_lost(one, two, bus, monkeypatch):
    monkeypatch.setattr(module, "MESSAGES_PER_READ", 3)
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    bus.deaf.add(room_of(one))
    await publish(one, *range(10))

    await two.advance(2 * module.CHECK_PERIOD)

    assert data(bob) == list(range(10))


async def test_a_room_where_something_happened_is_not_compared(one, history):
    """What comes tells by itself what is missing."""
    await one.hub.create_room("lab", KEEPS)
    await joined(one, "ada")
    history.calls.clear()

    for _ in range(3):
        await publish(one, 1)
        await one.advance(module.CHECK_PERIOD)

    assert "read" not in history.calls


async def test_rooms_are_compared_only_while_there_are_any(one, clock):
    await one.hub.create_room("lab", KEEPS)
    before = len(clock.timers)
    ada = await joined(one, "ada")
    assert len(clock.timers) == before + 1

    await one.hub.leave("lab", ada.id)
    await one.advance(2 * module.CHECK_PERIOD)

    assert len(clock.timers) == before


async def test_an_absent_store_is_asked_once_a_round_not_once_a_room(one, history):
    for room in ("lab", "den", "bar"):
        await one.hub.create_room(room, KEEPS)
        await joined(one, "ada", room)
    await one.advance(module.CHECK_PERIOD)
    history.away = True
    history.calls.clear()

    await one.advance(module.CHECK_PERIOD)

    assert history.calls == ["read"]


async def test_more_lost_messages_than_one_reading_brings_are_filled_in(one, two, bus, monkeypatch):
    monkeypatch.setattr(module, "MESSAGES_PER_READ", 3)
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    bus.deaf.add(room_of(one))
    await publish(one, *range(10))
    bus.deaf.clear()

    await publish(one, 10)
    await settle()

    assert data(bob) == list(range(11))


async def test_messages_that_arrive_in_the_wrong_order_pass_in_theirs(one, two, bus):
    """Two nodes' messages take different ways: only the offsets say which was first."""
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    bus.deaf.add(room_of(one))
    await publish(one, 1, 2, 3)
    first, second, third = [payload for name, payload in bus.published if name == room_of(one)]
    bus.deaf.clear()

    for payload in (third, first, second, second, third):
        await bus.publish(room_of(one), payload)
    await settle()

    assert data(bob) == [1, 2, 3]


async def test_what_waits_is_bounded_and_what_does_not_fit_is_in_the_store(
    one, two, bus, history, monkeypatch
):
    monkeypatch.setattr(gates, "MAX_WAITING", 2)
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    bus.deaf.add(room_of(one))
    await publish(one, 1)
    bus.deaf.clear()
    history.before.add("read")

    await publish(one, 2, 3, 4, 5)
    await settle()
    gate = two.parts.streams._sequencers["lab"]
    assert len(gate.waiting) == 2
    history.go_on()
    await settle()

    assert data(bob) == [1, 2, 3, 4, 5]
    assert gate.waiting == {}


async def test_one_reading_at_a_time_serves_a_room(one, two, bus, history):
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    bus.deaf.add(room_of(one))
    await publish(one, 1)
    bus.deaf.clear()
    history.before.add("read")
    history.calls.clear()

    await publish(one, 2, 3, 4)
    await settle()

    assert history.calls.count("read") == 1
    history.go_on()
    await settle()
    assert data(bob) == [1, 2, 3, 4]


async def test_two_nodes_that_publish_at_once_agree_on_the_order(one, two, history):
    """Their own messages too wait for those of the other that have come before."""
    await one.hub.create_room("lab", RoomOptions(history_size=500))
    ada, bob = await joined(one, "ada"), await joined(two, "bob")

    async def publisher(node, name):
        for n in range(40):
            await publish(node, f"{name}{n}")
            await asyncio.sleep(0)

    await asyncio.gather(
        *(publisher(node, name) for name, node in zip("abcd", [one, two, one, two], strict=True))
    )
    await settle()

    seen = ada.heard()
    assert bob.heard() == seen
    assert [m["stream"]["offset"] for m in seen] == list(range(1, 161))


async def test_an_answer_that_is_late_does_not_change_the_order(one, two, history):
    """The first publisher hears of its offset after the second: both messages pass in
    the order of the store."""
    await one.hub.create_room("lab", KEEPS)
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    history.after.add("append")
    slow = asyncio.ensure_future(publish(one, "first"))
    await settle()
    history.after.clear()

    await publish(one, "second")
    await settle()
    history.go_on()
    await slow
    await settle()

    assert data(ada) == ["first", "second"]
    assert data(bob) == ["first", "second"]


# --- the store is away


async def test_what_the_store_does_not_take_nobody_gets(one, two, history):
    await one.hub.create_room("lab", KEEPS)
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    history.away = True

    with pytest.raises(Unavailable):
        await publish(one, 1)
    await settle()

    assert (data(ada), data(bob)) == ([], [])
    assert ada.conn.rooms == {"lab"}, "members stay members"


async def test_what_could_not_be_read_comes_when_the_store_is_back(one, two, bus, history):
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    bus.deaf.add(room_of(one))
    await publish(one, 1)
    bus.deaf.clear()
    history.before.add("read")
    await publish(one, 2)
    await settle()
    history.away = True
    history.go_on()
    await settle()
    assert data(bob) == []
    assert two.logger.of("warning") == ["history_not_read"]

    history.away = False
    await publish(one, 3)
    await settle()

    assert data(bob) == [1, 2, 3]


async def test_nobody_comes_in_while_the_store_is_away(one, history):
    await one.hub.create_room("lab", KEEPS)
    ada = await one.connect("ada")
    history.away = True

    with pytest.raises(Unavailable):
        await one.hub.join("lab", ada.id)
    await settle()

    assert ada.conn.rooms == frozenset()
    history.away = False
    assert (await one.hub.room("lab")).members == 0, "its seat was given back"
    assert len(one.parts.streams) == 0


class _Releases:
    """Waits for the release of a message."""

    def __init__(self):
        self.heard = []

    def begin(self, frame):
        self.heard.append(frame)
        return ()

    def fail(self, error):
        self.heard.append(error)


@pytest.mark.parametrize("error", [LookupError, Misuse, asyncio.CancelledError, SystemExit])
async def test_whatever_error_ends_a_reading_the_awaited_releases_fail(one, error, monkeypatch):
    await one.hub.create_room("lab", KEEPS)
    await joined(one, "ada")
    at = one.parts.streams.position("lab")
    on_release = _Releases()

    async def read(*_):
        raise error

    monkeypatch.setattr(one.parts.streams._history, "read", read)
    frame = one.parts.sender.encode(Message("t"))
    one.parts.streams.accept(
        "lab", Position(at.epoch, 2), BufferedMessage(frame, on_release=on_release)
    )
    await settle()

    [told] = on_release.heard
    assert isinstance(told, Unavailable)


# --- coming in


async def test_a_join_says_where_the_room_stands(one):
    await one.hub.create_room("lab", KEEPS)
    await publish(one, 1, 2)
    ada = await one.connect("ada")

    membership = await one.hub.join("lab", ada.id)

    info = await one.hub.room("lab")
    assert (membership.epoch, membership.offset) == (info.epoch, 2)
    assert await one.hub.join("lab", ada.id) == membership, "also when one is in already"


async def test_a_join_through_another_node_says_it_too(one, two):
    await one.hub.create_room("lab", KEEPS)
    await publish(one, 1)
    ada = await one.connect("ada")

    membership = await two.hub.join("lab", ada.id)

    assert membership.offset == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_is_published_while_a_member_comes_in_is_told_or_delivered(
    one, two, history, when
):
    """The position in the answer and the first message that arrives fit together."""
    await one.hub.create_room("lab", KEEPS)
    await publish(two, 1)
    ada = await one.connect("ada")
    getattr(history, when).add("position")
    joining = asyncio.ensure_future(one.hub.join("lab", ada.id))
    await settle()

    await publish(two, 2, 3)
    await settle()
    history.go_on()
    membership = await joining
    await publish(two, 4)
    await settle()

    assert offsets(ada) == list(range(membership.offset + 1, 5))


async def test_who_comes_in_while_others_are_served_misses_nothing_after_its_position(
    one, two, bus, history
):
    await one.hub.create_room("lab", KEEPS)
    ada = await joined(one, "ada")
    bus.deaf.add(room_of(one))
    await publish(two, 1)
    bus.deaf.clear()
    history.before.add("read")
    await publish(two, 2)
    await settle()

    bob = await one.connect("bob")
    membership = await one.hub.join("lab", bob.id)
    history.go_on()
    await settle()

    assert membership.offset == 0
    assert offsets(bob) == [1, 2]
    assert offsets(ada) == [1, 2]


async def test_two_that_come_in_at_once_share_one_question(one, history):
    await one.hub.create_room("lab", KEEPS)
    ada, bob = await one.connect("ada"), await one.connect("bob")
    history.calls.clear()
    history.before.add("position")
    joins = [asyncio.ensure_future(one.hub.join("lab", c.id)) for c in (ada, bob)]
    await settle()
    history.go_on()

    await asyncio.gather(*joins)

    assert history.calls.count("position") == 1


async def test_a_cancelled_join_does_not_take_the_sequencer_from_the_other(one, history):
    await one.hub.create_room("lab", KEEPS)
    ada, bob = await one.connect("ada"), await one.connect("bob")
    history.before.add("position")
    first = asyncio.ensure_future(one.hub.join("lab", ada.id))
    await settle()
    second = asyncio.ensure_future(one.hub.join("lab", bob.id))
    await settle()
    first.cancel()
    await settle()
    history.go_on()

    membership = await second
    await publish(one, 1)

    assert membership.offset == 0
    assert offsets(bob) == [1]


async def test_the_sequencer_goes_with_the_last_member(one):
    await one.hub.create_room("lab", KEEPS)
    ada, bob = await joined(one, "ada"), await joined(one, "bob")

    await one.hub.leave("lab", ada.id)
    assert len(one.parts.streams) == 1
    await bob.vanish()

    assert len(one.parts.streams) == 0
    await publish(one, 1)
    assert (await one.hub.room("lab")).offset == 1


# --- what can't be filled in


async def test_members_are_told_of_what_was_trimmed_before_they_had_it(one, two, bus):
    await one.hub.create_room("lab", RoomOptions(history_size=2))
    bob = await joined(two, "bob")
    await publish(one, 1)
    await settle()
    bus.deaf.add(room_of(one))
    await publish(one, 2, 3, 4)
    bus.deaf.clear()

    await publish(one, 5)
    await settle()

    first, gap, *rest = bob.heard()
    assert gap["topic"] == "system:gap"
    assert gap["event"] == "gap"
    epoch = first["stream"]["epoch"]
    assert gap["data"] == {"room": "lab", "epoch": epoch, "offset": 1}
    assert [m["stream"]["offset"] for m in rest] == [4, 5]


async def test_a_new_epoch_is_told_at_the_old_place_and_served_from_its_beginning(
    one, two, bus, history
):
    """Resuming from there says that it was not recovered: nobody pretends."""
    await one.hub.create_room("lab", KEEPS)
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    await publish(one, 1, 2)
    await settle()
    await history.inner.remove("lab")
    bus.deaf.add(room_of(one))
    await publish(one, 3)
    bus.deaf.clear()

    await publish(one, 4)
    await settle()

    for client in (ada, bob):
        old, _, gap, *new = client.heard()
        assert gap["topic"] == "system:gap"
        assert gap["data"] == {"room": "lab", "epoch": old["stream"]["epoch"], "offset": 2}
        assert [(m["data"], m["stream"]["offset"]) for m in new] == [(3, 1), (4, 2)]
        assert len({m["stream"]["epoch"] for m in (old, *new)}) == 2


async def test_a_new_epoch_that_was_trimmed_already_is_served_from_what_is_left(
    one, two, bus, history
):
    await one.hub.create_room("lab", RoomOptions(history_size=2))
    bob = await joined(two, "bob")
    await publish(one, 1)
    await settle()
    await history.inner.remove("lab")
    bus.deaf.add(room_of(one))
    await publish(one, 2, 3, 4)
    bus.deaf.clear()

    await publish(one, 5)
    await settle()

    assert [m["data"] for m in bob.heard() if "stream" in m] == [1, 4, 5]


async def test_a_place_that_the_store_does_not_know_moves_nobody(one, two, bus):
    """The bus is not trusted: only the store says what comes next."""
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    await publish(one, 1)
    await settle()
    here = two.parts.streams.position("lab")
    frame = two.parts.sender.encode(Message("room:lab", data="forged"))

    for at in (Position(here.epoch, 9), Position("forged", 1), Position(here.epoch, 1)):
        two.parts.streams.accept("lab", at, BufferedMessage(frame))
    await settle()
    await publish(one, 2)
    await settle()

    assert data(bob) == [1, 2]
    assert two.parts.streams._sequencers["lab"].waiting == {}


async def test_a_forged_place_in_a_room_without_history_lasts_until_the_state_is_asked(one):
    ada = await joined(one, "ada")
    frame = one.parts.sender.encode(Message("room:lab", data="forged"))
    one.parts.streams.accept("lab", Position("forged", 1), BufferedMessage(frame))
    ada.heard()

    await publish(one, 1)

    assert len(one.parts.streams) == 0
    (message,) = ada.heard()
    assert "stream" not in message


async def test_an_entry_that_can_not_be_read_holds_up_nobody(one, two, history):
    """Each member that misses it is told and counted. No gap: a client that fetched it would meet
    the same entry."""
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    ann = await joined(two, "ann")
    failures = []
    two.hub.on_send_failure(failures.append)
    bad = Entry(b"not a message", skip=(ann.id,))
    await history.inner.append("lab", bad, Retention(50), two.clock.wall())

    await publish(one, 2)
    await settle()

    assert data(bob) == [2]
    assert "entry_not_read" in two.logger.of("error")
    (failure,) = failures
    assert (failure.reason, failure.conn_id) == (FailureReason.VALIDATION, bob.id)
    assert (failure.recipient, failure.message.data) == ("lab", b"not a message")


# --- what is asked, and what is remembered


async def test_what_comes_while_the_first_member_comes_in_is_not_lost(one, two, history):
    """Nothing has to come after it that would tell."""
    await one.hub.create_room("lab", KEEPS)
    bob = await two.connect("bob")
    history.after.add("position")
    joining = asyncio.ensure_future(two.hub.join("lab", bob.id))
    await settle()

    await publish(one, 1, 2)
    await settle()
    history.go_on()
    membership = await joining
    await settle()

    assert offsets(bob) == list(range(membership.offset + 1, 3)), "told of, or delivered"


@pytest.fixture
async def asked(make_node, bus, history):
    """A node, and what its state is asked."""
    state = Engine(MemoryState())
    return await make_node(pubsub=bus, history=history, state=state, client_commands=True), state


@pytest.mark.parametrize("options", [KEEPS, RoomOptions()], ids=["history", "plain"])
async def test_a_publish_to_a_room_with_members_here_asks_the_state_nothing(asked, options):
    node, state = asked
    await node.hub.create_room("lab", options)
    ada = await joined(node, "ada")
    state.calls.clear()

    await publish(node, 1)
    command = {"id": "1", "topic": "system:publish", "ack": True}
    *_, ack = await ada.ask(command | {"data": {"room": "lab", "event": "say", "data": 2}})

    assert ack["data"]["status"] == "ok"
    assert state.calls == []


async def test_a_history_that_began_unheard_of_is_asked_for_once(one, two, bus):
    """The sequencer that the first message made stays, and so does its position."""
    bob = await joined(two, "bob")
    two.parts.cluster.on_request(raw_kind("keeps"), lambda header, payload: settle())
    await one.hub.update_room("lab", history_size=5)
    await publish(one, 1)
    await settle()
    gate = two.parts.streams._sequencers["lab"]
    bus.deaf.add(room_of(one))
    await publish(one, 2)
    bus.deaf.clear()

    await publish(two, 3)
    await settle()

    assert offsets(bob) == [1, 2, 3]
    assert two.parts.streams._sequencers["lab"] is gate
    assert gate.retention == Retention(5)


async def test_a_message_that_is_quicker_than_the_word_of_the_history_comes_once(one, two):
    bob = await joined(two, "bob")
    take, heard = two.parts.cluster._request_handlers["keeps"], asyncio.Event()

    async def later(header, payload):
        await heard.wait()
        return await take(header, payload)

    two.parts.cluster.on_request(raw_kind("keeps"), later)
    changing = asyncio.ensure_future(one.hub.update_room("lab", history_size=5))
    await settle()
    await publish(one, 1)
    await settle()
    heard.set()
    await changing
    await publish(one, 2)
    await settle()

    assert offsets(bob) == [1, 2]


async def test_who_missed_the_end_of_a_history_begins_the_next_one_with_the_others(one, two):
    """What lay between the two was delivered: there is no gap to be told of."""
    await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    await publish(one, 1)
    await settle()
    take = two.parts.cluster._request_handlers["keeps"]
    two.parts.cluster.on_request(raw_kind("keeps"), lambda header, payload: settle())
    await one.hub.update_room("lab", history_size=0)
    two.parts.cluster.on_request(raw_kind("keeps"), take)

    await one.hub.update_room("lab", history_size=5)
    await publish(one, 2)
    await settle()

    assert [(m["topic"], m["data"]) for m in bob.heard()] == [("room:lab", 1), ("room:lab", 2)]


async def test_who_missed_the_beginning_of_a_history_learns_of_it_with_its_next_change(one, two):
    bob = await joined(two, "bob")
    take = two.parts.cluster._request_handlers["keeps"]
    two.parts.cluster.on_request(raw_kind("keeps"), lambda header, payload: settle())
    info = await one.hub.update_room("lab", history_size=5)
    two.parts.cluster.on_request(raw_kind("keeps"), take)

    await one.hub.update_room("lab", history_ttl=60)
    await settle()
    await publish(two, 1)
    await settle()

    assert two.parts.streams.position("lab") == Position(info.epoch, 1)
    assert offsets(bob) == [1]
    assert two.logger.of("error") == []


async def test_who_comes_in_brings_word_of_a_history_that_is_none(one):
    """A forged position made a sequencer, for members of a room without history."""
    ada = await joined(one, "ada")
    frame = one.parts.sender.encode(Message("room:lab", data="forged"))
    one.parts.streams.accept("lab", Position("forged", 1), BufferedMessage(frame))
    ada.heard()
    assert len(one.parts.streams) == 1

    bob = await one.connect("bob")
    membership = await one.hub.join("lab", bob.id)

    assert membership.epoch is None
    assert len(one.parts.streams) == 0


async def test_who_comes_in_brings_word_of_a_history_that_began_unheard_of(asked):
    """The first message of it made a sequencer, and the state need not be asked any more."""
    node, state = asked
    await joined(node, "ada")
    await state.inner.decide("lab", None, _keeps_history)
    frame = node.parts.sender.encode(Message("room:lab", data=1))
    node.parts.streams.accept(
        "lab", Position((await node.history.position("lab")).epoch, 1), BufferedMessage(frame)
    )
    bob = await node.connect("bob")
    await node.hub.join("lab", bob.id)
    state.calls.clear()

    await node.parts.publisher.publish("lab", Message("room:lab", data=2))

    assert state.calls == []


def _keeps_history(room, standing):
    room.change({"history_size": 5})
    return room, None


async def test_a_word_of_history_to_a_room_without_one_changes_nothing(one, two):
    ada, bob = await joined(one, "ada"), await joined(two, "bob")

    info = await one.hub.update_room("lab", history_ttl=5)
    await publish(two, 1)
    await settle()

    assert info.epoch is None
    assert data(ada) == data(bob) == [1]
    assert two.logger.of("error") == []


# --- options that change


async def test_a_room_begins_to_keep_a_history_while_members_are_in_it(one, two):
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    await publish(one, 0)

    info = await one.hub.update_room("lab", history_size=10)
    await publish(two, 1)
    await publish(one, 2)
    await settle()

    for client in (ada, bob):
        before, *after = client.heard()
        assert "stream" not in before
        assert [m["stream"] for m in after] == [
            {"room": "lab", "epoch": info.epoch, "offset": n} for n in (1, 2)
        ]


async def test_a_room_that_is_created_over_its_members_begins_too(one, two):
    bob = await joined(two, "bob")

    await one.hub.create_room("lab", KEEPS)
    await publish(two, 1)
    await settle()

    assert offsets(bob) == [1]


async def test_a_room_ends_to_keep_a_history(one, two, history):
    await one.hub.create_room("lab", KEEPS)
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    await publish(one, 1)

    info = await two.hub.update_room("lab", history_size=0)
    await publish(one, 2)
    await settle()

    assert (info.epoch, info.offset) == (None, None)
    for client in (ada, bob):
        assert [(m["data"], "stream" in m) for m in client.heard()] == [(1, True), (2, False)]
    assert history.inner._logs == {}


async def test_messages_that_nobody_kept_lie_between_two_epochs(one):
    """A position of before must not be taken for one in what came later."""
    await one.hub.create_room("lab", KEEPS)
    ada = await joined(one, "ada")
    await publish(one, 1)
    await one.hub.update_room("lab", history_size=0)
    await publish(one, 2)

    info = await one.hub.update_room("lab", history_size=5)
    await publish(one, 3)
    await settle()

    first, _, last = ada.heard()
    assert last["stream"] == {"room": "lab", "epoch": info.epoch, "offset": 1}
    assert first["stream"]["epoch"] != info.epoch


async def test_another_size_goes_on_in_the_same_epoch(one, two):
    before = await one.hub.create_room("lab", KEEPS)
    bob = await joined(two, "bob")
    await publish(two, 1, 2, 3)

    after = await one.hub.update_room("lab", history_size=1, history_ttl=60)
    await publish(two, 4)
    await settle()

    assert (after.epoch, after.offset) == (before.epoch, 3)
    assert offsets(bob) == [1, 2, 3, 4]
    page = await one.hub.history("lab")
    assert [m.data for m in page.messages] == [4]
    two.clock.pass_time(60)
    assert (await one.hub.history("lab")).messages == []


async def test_a_change_while_a_member_comes_in_counts_for_it(make_node, bus, history):
    """What the state said when its seat was taken is old by then."""
    state = Engine(MemoryState())
    one = await make_node(pubsub=bus, history=history, state=state)
    await joined(one, "bob")
    ada = await one.connect("ada")
    state.after.add("decide")
    joining = asyncio.ensure_future(one.hub.join("lab", ada.id))
    await settle()
    state.after.clear()
    await one.hub.update_room("lab", history_size=5)
    state.go_on()

    membership = await joining
    await publish(one, 1)

    assert membership.offset == 0
    assert offsets(ada) == [1]


async def test_a_node_that_missed_the_change_learns_of_it_by_the_next_message(one, two, bus):
    """Its members get the message with its position, and so does what they publish."""
    bob = await joined(two, "bob")
    two.parts.cluster.on_request(raw_kind("keeps"), lambda header, payload: settle())
    await one.hub.update_room("lab", history_size=5)

    await publish(one, 1)
    await settle()
    await publish(two, 2)
    await settle()

    assert offsets(bob) == [1, 2]


async def test_a_deleted_room_begins_anew(one):
    before = await one.hub.create_room("lab", KEEPS)
    await joined(one, "ada")
    await publish(one, 1)

    await one.hub.delete_room("lab")
    assert len(one.parts.streams) == 0
    after = await one.hub.create_room("lab", KEEPS)

    assert after.offset == 0
    assert after.epoch != before.epoch
    assert (await one.hub.history("lab")).messages == []


async def test_a_room_whose_history_can_not_be_forgotten_is_not_deleted(one, history):
    await one.hub.create_room("lab", KEEPS)
    ada = await joined(one, "ada")
    history.away = True

    with pytest.raises(Unavailable):
        await one.hub.delete_room("lab")

    history.away = False
    assert ada.conn.rooms == {"lab"}
    assert await one.hub.rooms() == ["lab"]


async def test_a_node_that_stops_leaves_nothing_running(make_node, bus, history):
    three = await make_node(pubsub=bus, history=history)
    await three.hub.create_room("lab", KEEPS)
    await joined(three, "ada")
    history.before.add("read")
    three.parts.streams.accept(
        "lab",
        Position(three.parts.streams.position("lab").epoch, 5),
        BufferedMessage(three.parts.sender.encode(Message("t"))),
    )
    await settle()

    await finished(three.stop())

    assert json.dumps(three.logger.of("error")) == "[]"
