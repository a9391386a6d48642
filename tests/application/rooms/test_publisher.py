"""Messages to rooms: which get a position, and what becomes of them then."""

import asyncio

import pytest

from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.cluster.packet import BadPacket, Packet
from eyewall.application.cluster.protocol import RoomPosition
from eyewall.domain.envelope import Message
from eyewall.domain.errors import AckTimeout, Misuse, Unavailable
from eyewall.domain.history import Position
from eyewall.domain.report import AckOptions, SendOptions, Target
from eyewall.domain.room import RoomOptions
from tests.application.engines import Bus, Engine
from tests.application.fakes import finished, settle

ACKED = SendOptions(require_ack=True, ack_timeout=5.0)
LAB = "eyewall:room:lab"


@pytest.fixture
def history():
    return Engine(MemoryHistory())


@pytest.fixture
def state():
    return Engine(MemoryState())


@pytest.fixture
def bus():
    return Bus()


@pytest.fixture
def pair_config(bus, history, state):
    return {"pubsub": bus, "history": history, "state": state}


@pytest.fixture
async def one(one):
    """The first node of the pair, which has created a room."""
    await one.hub.create_room("lab", RoomOptions(history_size=50))
    return one


async def joined(node, user, room="lab"):
    client = await node.connect(user)
    await node.hub.join(room, client.id)
    return client


def places(client):
    return [(m["data"], m["stream"]["offset"]) for m in client.heard() if "stream" in m]


async def kept(node, room="lab"):
    return (await node.hub.history(room)).messages


# --- plain messages


async def test_who_is_not_in_the_room_publishes_with_a_place_too(one, two):
    """The state says whether the room keeps a history."""
    bob = await joined(two, "bob")

    assert await one.hub.broadcast_room("lab", "t", data=1) == 0
    await settle()

    assert places(bob) == [(1, 1)]


async def test_a_message_that_nobody_hears_is_kept(one):
    await one.hub.broadcast_room("lab", "t", data=1)

    assert [m.data for m in await kept(one)] == [1]


async def test_a_room_that_is_not_there_keeps_nothing(one, history):
    history.calls.clear()

    assert await one.hub.broadcast_room("nowhere", "t") == 0
    assert history.calls == []


async def test_a_room_without_history_asks_nobody(one, history, state):
    """With members here it is known: no store and no state is asked."""
    await joined(one, "ada", "den")
    history.calls.clear()
    state.calls.clear()

    await one.hub.broadcast_room("den", "t")

    assert (history.calls, state.calls) == ([], [])


async def test_whether_a_room_keeps_a_history_must_be_known(one, state):
    """If the state is away, the room does not count as one that keeps none."""
    state.away = True

    with pytest.raises(Unavailable):
        await one.hub.broadcast_room("lab", "t")


async def test_those_who_are_left_out_are_left_out_everywhere(one, two):
    ada, bob, carl = await joined(one, "ada"), await joined(two, "bob"), await joined(two, "carl")

    reached = await one.hub.emit_to_room_except("lab", [ada.id, bob.id], Message("t", data=1))
    await settle()

    assert reached == 0
    assert (places(ada), places(bob), places(carl)) == ([], [], [(1, 1)])


async def test_those_who_are_left_out_are_left_out_of_what_is_read_later(one, two, bus):
    bob, carl = await joined(two, "bob"), await joined(two, "carl")
    bus.deaf.add(LAB)
    await one.hub.emit_to_room_except("lab", bob.id, Message("t", data=1))
    bus.deaf.clear()

    await one.hub.broadcast_room("lab", "t", data=2)
    await settle()

    assert places(bob) == [(2, 2)]
    assert places(carl) == [(1, 1), (2, 2)]


async def test_what_was_given_a_place_goes_out_though_the_publisher_is_cancelled(one, two, history):
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    history.after.add("append")
    task = asyncio.ensure_future(one.hub.broadcast_room("lab", "t", data=1))
    await settle()
    task.cancel()
    await settle()

    history.go_on()
    await settle()

    assert task.cancelled()
    assert places(ada) == [(1, 1)]
    assert places(bob) == [(1, 1)]


async def test_data_that_can_not_be_sent_takes_no_position(one):
    with pytest.raises(Misuse):
        await one.hub.broadcast_room("lab", "t", data=object())

    assert await kept(one) == []


# --- with acks


async def test_a_message_with_acks_has_a_place_and_its_answers_count(one, two):
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    task = asyncio.ensure_future(
        one.hub.emit_with_ack(Target.room("lab"), Message("t", data=1), AckOptions(timeout=5))
    )
    await settle()

    for client in (ada, bob):
        (message,) = client.heard()
        assert (message["ack"], message["stream"]["offset"]) == (True, 1)
        client.ack(message)
    await settle()

    result = await task
    assert (result.expected, result.received, result.errors) == (2, 2, [])


async def test_who_reads_it_later_is_not_asked_for_an_ack(one, two):
    bob = await joined(two, "bob")
    task = asyncio.ensure_future(one.hub.emit_to_room("lab", Message("t", data=1), ACKED))
    await settle()
    (live,) = bob.heard()
    bob.ack(live)
    await settle()
    assert await task == 0

    (message,) = await kept(one)
    assert (message.ack, message.id) == (False, live["id"])


async def test_messages_with_and_without_acks_stand_in_one_order(one, two):
    """A request that arrives after the next message repeats its message under the same id
    and position."""
    ada, bob = await joined(one, "ada"), await joined(two, "bob")

    tasks = [
        asyncio.ensure_future(node.hub.emit_to_room("lab", Message("t", data=n), options))
        for n, (node, options) in enumerate([(one, None), (one, ACKED), (two, ACKED), (two, None)])
    ]
    await settle()

    for client in (ada, bob):
        messages = client.heard()
        places = {m["id"]: m["stream"]["offset"] for m in messages}
        assert list(places.values()) == [1, 2, 3, 4]
        assert all(m["stream"]["offset"] == places[m["id"]] for m in messages)
        for message in messages:
            if "ack" in message:
                client.ack(message)
    await settle()
    assert await asyncio.gather(*tasks) == [1, 1, 1, 1]


async def test_a_member_that_has_come_since_gets_it_too(one, state):
    """The targets were located before the message had its position."""
    ada = await joined(one, "ada")
    bob = await one.connect("bob")
    state.after.add("standings")
    task = asyncio.ensure_future(one.hub.emit_with_ack(Target.room("lab"), Message("t", data=1)))
    await settle()
    history = one.history
    history.before.add("append")
    state.go_on()
    await settle()
    await one.hub.join("lab", bob.id)
    history.go_on()
    await settle()

    assert places(bob) == [(1, 1)]
    ada.ack(ada.heard()[0])
    await settle()
    assert (await task).expected == 1


async def test_a_release_waits_for_the_messages_before_it(one, two, bus, history):
    bob = await joined(two, "bob")
    bus.deaf.add(LAB)
    await one.hub.broadcast_room("lab", "t", data=1)
    bus.deaf.clear()
    history.before.add("read")
    task = asyncio.ensure_future(one.hub.emit_with_ack(Target.room("lab"), Message("t", data=2)))
    await settle()
    assert bob.heard() == []

    history.go_on()
    await settle()

    first, second = bob.heard()
    assert (first["data"], second["data"], second["ack"]) == (1, 2, True)
    bob.ack(second)
    await settle()
    assert (await task).received == 1


async def test_outcomes_of_a_message_that_is_not_released_are_unknown(one, two, bus, history):
    bob = await joined(two, "bob")
    bus.deaf.add(LAB)
    await one.hub.broadcast_room("lab", "t", data=1)
    bus.deaf.clear()
    history.before.add("read")
    task = asyncio.ensure_future(one.hub.emit_with_ack(Target.room("lab"), Message("t", data=2)))
    await settle()
    history.away = True
    history.go_on()
    await settle()

    result = await finished(task)

    assert (result.expected, result.received, result.timed_out) == (1, 0, True)
    history.away = False
    await one.hub.broadcast_room("lab", "t", data=3)
    await settle()
    assert places(bob) == [(1, 1), (2, 2), (3, 3)], "it comes all the same"


async def test_a_release_does_not_wait_for_a_sequencer_that_was_removed(one, two, bus, history):
    """The room's history has ended while others were missing before it."""
    bob = await joined(two, "bob")
    bus.deaf.add(LAB)
    await one.hub.broadcast_room("lab", "t", data=1)
    bus.deaf.clear()
    history.before.add("read")
    task = asyncio.ensure_future(one.hub.emit_with_ack(Target.room("lab"), Message("t", data=2)))
    await settle()

    await one.hub.update_room("lab", history_size=0)
    await settle()

    (message,) = bob.heard()
    bob.ack(message)
    await settle()
    assert (await task).received == 1
    history.go_on()


async def test_a_request_after_the_release_sends_it_again(one, two, bus):
    """The request was lost, and the members had the message from the store: it is sent again
    with the same id and position, and asks for the ack."""
    bob = await joined(two, "bob")
    node_channel = "eyewall:node:n2"
    bus.deaf.add(node_channel)
    task = asyncio.ensure_future(one.hub.emit_with_ack(Target.room("lab"), Message("t", data=1)))
    await settle()
    (question,) = [payload for name, payload in bus.published if name == node_channel]
    bus.deaf.clear()
    await one.hub.broadcast_room("lab", "t", data=2)
    await settle()
    first, second = bob.heard()
    assert ("ack" in first, second["data"]) == (False, 2)

    await bus.publish(node_channel, question)
    await settle()

    (again,) = bob.heard()
    assert (again["id"], again["stream"], again["ack"]) == (first["id"], first["stream"], True)
    bob.ack(again)
    await settle()
    assert (await task).received == 1


async def test_what_the_store_does_not_take_is_nobodys_also_with_acks(one, two, history):
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    history.away = True

    with pytest.raises(Unavailable):
        await one.hub.emit_to_room("lab", Message("t"), ACKED)
    await settle()

    assert (ada.heard(), bob.heard()) == ([], [])


async def test_a_message_with_acks_to_nobody_is_kept(one):
    result = await one.hub.emit_with_ack(Target.room("lab"), Message("t", data=1))

    assert (result.expected, result.timed_out) == (0, False)
    assert [m.data for m in await kept(one)] == [1]


async def test_silence_is_a_time_out_in_a_room_with_history_too(one, two):
    await joined(one, "ada")
    await joined(two, "bob")
    task = asyncio.ensure_future(
        one.hub.emit_with_ack(
            Target.room("lab"), Message("t"), AckOptions(timeout=5, require_all=True)
        )
    )
    await one.advance(5)

    with pytest.raises(AckTimeout):
        await finished(task)


async def test_who_gives_up_waiting_leaves_no_delivery_behind(one, history):
    ada = await joined(one, "ada")
    history.after.add("append")
    task = asyncio.ensure_future(one.hub.emit_with_ack(Target.room("lab"), Message("t", data=1)))
    await settle()
    task.cancel()
    await settle()
    history.go_on()
    await settle()

    assert places(ada) == [(1, 1)]
    assert one.hub.pending_acks(ada.id) == []


# --- what other nodes say


def test_a_place_travels_as_it_is():
    at = Position("e", 3)

    for skip in (("c1",), ()):
        position = RoomPosition("lab", at, skip)
        assert RoomPosition.read(position.header()) == position


@pytest.mark.parametrize(
    "changes",
    [{"room": 1}, {"e": None}, {"e": ""}, {"o": 0}, {"o": -1}, {"o": "1"}, {"x": "c1"}],
    ids=repr,
)
def test_what_is_no_place_is_a_bad_packet(changes):
    with pytest.raises(BadPacket):
        RoomPosition.read(RoomPosition("lab", Position("e", 3)).header() | changes)


@pytest.mark.parametrize(
    "header", [{}, {"room": "lab", "e": "e", "o": 1}, {"room": "lab", "e": "e", "o": 1, "d": 1}]
)
async def test_a_bad_packet_is_counted_and_moves_nothing(one, two, bus, header):
    bob = await joined(two, "bob")

    await bus.publish(LAB, Packet("n9", "stream", header, b'{"topic":"t"}').pack())
    await settle()

    assert two.hub.stats().bad_packets == 1
    assert bob.heard() == []


async def test_a_node_where_nobody_is_in_the_room_reads_no_message_of_it(one, two, bus):
    """It may hear the room while somebody comes in."""
    await two.parts.cluster.hear_room("lab")

    await one.hub.broadcast_room("lab", "t", data=1)
    await settle()

    assert len(two.parts.streams) == 0
