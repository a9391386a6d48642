"""What a full queue has dropped of rooms with history, and how it is told."""

import pytest

from eyewall.application.outbound.sender import Gaps
from eyewall.application.ports.message import EncodedMessage
from eyewall.domain.envelope import Message, Priority
from eyewall.domain.history import Position
from eyewall.domain.outbox import DropPolicy, QueueConfig
from eyewall.domain.report import SendOptions
from eyewall.domain.room import RoomOptions
from tests.application.fakes import settle


async def joined(node, *rooms, user="ada", queue=None, history=50):
    client = await node.connect(user, queue=queue)
    for room in rooms:
        await node.hub.create_room(room, RoomOptions(history_size=history))
        await node.hub.join(room, client.id)
    return client


async def publish(node, room, *values, priority=Priority.NORMAL):
    for value in values:
        message = Message(f"room:{room}", data=value, priority=priority)
        await node.hub.emit_to_room(room, message)
    await settle()


def gaps(heard):
    return [m["data"] for m in heard if m["topic"] == "system:gap"]


async def test_a_gap_is_told_when_the_queue_has_drained(node):
    ada = await joined(node, "lab", queue=QueueConfig(size=2))
    await publish(node, "lab", 1)
    ada.link.stalled = True
    await publish(node, "lab", 2, 3, 4, 5)
    assert [m["data"] for m in ada.heard()] == [1]

    ada.link.read()
    await settle()

    *messages, gap = ada.heard()
    assert [m["data"] for m in messages] == [2, 3]
    epoch = messages[0]["stream"]["epoch"]
    assert (gap["topic"], gap["event"]) == ("system:gap", "gap")
    assert gap["data"] == {"room": "lab", "epoch": epoch, "offset": 3}
    assert gap["id"]


async def test_it_is_told_once(node):
    ada = await joined(node, "lab", queue=QueueConfig(size=1))
    ada.link.stalled = True
    await publish(node, "lab", 1, 2)
    ada.link.read()
    await settle()
    ada.heard()

    ada.link.stalled = True
    await publish(node, "lab", 3)
    ada.link.read()
    await settle()

    assert gaps(ada.heard()) == []


async def test_each_room_has_its_gap(node):
    ada = await joined(node, "lab", "den", queue=QueueConfig(size=2))
    ada.link.stalled = True
    await publish(node, "lab", 1)
    await publish(node, "den", 1, 2)
    await publish(node, "lab", 2)

    ada.link.read()
    await settle()

    told = gaps(ada.heard())
    assert {(gap["room"], gap["offset"]) for gap in told} == {("lab", 1), ("den", 1)}
    assert len(told) == 2


async def test_the_oldest_that_give_way_are_the_gap(node):
    queue = QueueConfig(size=2, drop_policy=DropPolicy.DROP_OLDEST)
    ada = await joined(node, "lab", queue=queue)
    ada.link.stalled = True
    await publish(node, "lab", 1, 2, 3, 4)

    ada.link.read()
    await settle()

    heard = ada.heard()
    assert [m["data"] for m in heard if "stream" in m] == [3, 4]
    assert [gap["offset"] for gap in gaps(heard)] == [0]


async def test_a_message_that_was_sent_with_acks_is_a_gap_too(node):
    """One that was sent with acks is handed to each link, not to the broadcast group."""
    ada = await joined(node, "lab", queue=QueueConfig(size=1))
    ada.link.stalled = True
    await publish(node, "lab", 1)

    await node.hub.emit_to_room("lab", Message("t", data=2), SendOptions(require_ack=True))
    ada.link.read()
    await settle()

    assert [gap["offset"] for gap in gaps(ada.heard())] == [1]


async def test_a_room_without_history_has_no_gaps(node):
    ada = await node.connect("ada", queue=QueueConfig(size=1))
    await node.hub.join("lab", ada.id)
    ada.link.stalled = True
    await publish(node, "lab", 1, 2)

    ada.link.read()
    await settle()

    assert [m["data"] for m in ada.heard()] == [1]
    assert len(node.parts.sender.gaps) == 0


async def test_a_gap_that_could_not_be_told_is_told_later(node):
    queue = QueueConfig(size=1, drop_policy=DropPolicy.DROP_OLDEST)
    ada = await joined(node, "lab", queue=queue)
    ada.link.stalled = True
    await publish(node, "lab", 1, 2)
    ada.link.read()
    ada.link.stalled = True  # before it could be told
    await settle()
    await node.hub.send_to_conn(ada.id, "news", data="pushes it out")
    await settle()

    ada.link.read()
    await settle()

    assert [gap["offset"] for gap in gaps(ada.heard())] == [0]


async def test_who_has_left_the_room_is_not_told(node):
    ada = await joined(node, "lab", queue=QueueConfig(size=1))
    ada.link.stalled = True
    await publish(node, "lab", 1, 2)
    await node.hub.leave("lab", ada.id)

    ada.link.read()
    await settle()

    assert gaps(ada.heard()) == []


@pytest.mark.parametrize("policy", list(DropPolicy))
async def test_a_connection_that_ends_leaves_no_notes(node, policy):
    ada = await joined(node, "lab", queue=QueueConfig(size=1, drop_policy=policy))
    ada.link.stalled = True
    await publish(node, "lab", 1, 2, 3)

    await ada.vanish()

    assert len(node.parts.sender.gaps) == 0


async def test_the_note_is_of_the_first_that_was_dropped_whenever_it_was(node):
    ada = await joined(node, "lab")
    notes = Gaps()

    for offset in (7, 5, 9):
        notes.note(ada.conn, EncodedMessage(b"", stream="lab", position=Position("e", offset)))

    assert notes.take(ada.conn) == {"lab": Position("e", 4)}
    assert notes.take(ada.conn) == {}


async def test_what_was_dropped_in_an_old_epoch_counts_first(node):
    """Its position is the one from which resuming says that something was lost."""
    ada = await joined(node, "lab")
    notes = Gaps()

    for epoch, offset in (("old", 7), ("new", 1)):
        notes.note(ada.conn, EncodedMessage(b"", stream="lab", position=Position(epoch, offset)))

    assert notes.take(ada.conn) == {"lab": Position("old", 6)}
