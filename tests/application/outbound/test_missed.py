"""A failure names the connection and the user that missed the message, where that is known."""

import asyncio

import pytest

from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message
from eyewall.domain.outbox import DropPolicy, QueueConfig
from eyewall.domain.report import AckOptions, FailureReason, SendOptions, Target
from tests.application.fakes import RecordingMetrics, settle

NEWS = Message("news")


@pytest.fixture
def failures(node):
    found = []
    node.hub.on_send_failure(found.append)
    return found


def named(failure):
    return failure.recipient, failure.reason, failure.conn_id, failure.user_id


@pytest.fixture
async def ada(node):
    ada = await node.connect("ada")
    await node.hub.join("r", ada.id)
    return ada


async def test_of_a_room_whose_member_does_not_read(node, failures, ada):
    ada.link.full = True

    await node.hub.broadcast_room("r", "room:r", "message", 1)
    await settle()

    assert [named(f) for f in failures] == [("r", FailureReason.BROADCAST_FULL, ada.id, "ada")]


async def test_of_all(node, failures, ada):
    ada.link.full = True

    await node.hub.broadcast("t", "message", 1)
    await settle()

    assert [named(f) for f in failures] == [("*", FailureReason.BROADCAST_FULL, ada.id, "ada")]


async def test_of_a_connection_of_nobody(node, failures):
    guest = await node.connect()
    guest.link.full = True

    await node.hub.send_to_conn(guest.id, "t", "message", 1)

    assert [named(f) for f in failures] == [(guest.id, FailureReason.QUEUE_FULL, guest.id, None)]


async def test_of_a_user_who_is_away(node, failures):
    await node.hub.send_to_user("ben", NEWS)

    assert [named(f) for f in failures] == [("ben", FailureReason.USER_OFFLINE, None, "ben")]


async def test_of_a_connection_that_is_gone(node, failures):
    await node.hub.send_to_conn("c@n1", "t", "message", 1)

    assert [named(f) for f in failures] == [("c@n1", FailureReason.CONN_CLOSED, "c@n1", None)]


@pytest.mark.parametrize("target", [Target.user("ada"), Target.room("r")], ids=lambda t: t.kind)
async def test_of_one_that_did_not_acknowledge(make_node, target):
    """Also where another node has the connection."""
    one, two = await make_node("one"), await make_node("two")
    found = []
    one.hub.on_send_failure(found.append)
    clients = [await node.connect("ada") for node in (one, two)]
    for node, client in zip((one, two), clients, strict=True):
        await node.hub.join("r", client.id)

    task = asyncio.ensure_future(one.hub.emit_with_ack(target, NEWS, AckOptions(timeout=5)))
    await settle()
    for client in clients:
        for message in client.heard():
            if message["topic"] == "news":
                client.nack(message)
    await task

    told = {named(failure) for failure in found}
    assert told == {(target.id, FailureReason.NACKED, c.id, "ada") for c in clients}


async def test_of_one_that_ends_before_it_has_read(node, failures, ada):
    await node.hub.emit_to_room("r", NEWS, SendOptions())
    frame = ada.link.frames[-1]
    node.parts.sender.lost(ada.conn, frame, FailureReason.CONN_CLOSED)
    await settle()

    assert [named(f)[2:] for f in failures] == [(ada.id, "ada")]


async def test_a_handler_of_failures_that_fails_is_logged_with_them(node, ada):
    @node.hub.on_queue_full
    def handler(failure):
        raise ValueError

    ada.link.full = True
    await node.hub.broadcast_room("r", "room:r", "message", 1)
    await settle()

    fields = node.logger.fields("failure_handler_failed")
    assert (fields["recipient"], fields["conn_id"], fields["user_id"]) == ("r", ada.id, "ada")


async def test_the_message_has_the_id_that_it_has_on_the_wire(make_node):
    node = await make_node(queue=QueueConfig(size=1, drop_policy=DropPolicy.DROP_OLDEST))
    ada = await node.connect("ada")
    found = []
    node.hub.on_send_failure(found.append)
    ada.link.stalled = True

    for n in range(2):
        await node.hub.broadcast("t", "message", n)
    await settle()
    await ada.vanish()
    await settle()
    ada.link.stalled = False

    assert [f.message.data for f in found] == [0, 1]
    ids = {f.message.id for f in found}
    assert len(ids) == 2
    assert None not in ids
    given = Message("t", data=2, id="mine")
    await node.hub.send_to_user("ada", given)
    assert found[-1].message.id == "mine"


async def test_a_drop_has_one_reason_for_the_metrics_and_the_handlers(make_node):
    metrics = RecordingMetrics()
    node = await make_node(metrics=metrics)
    ada = await node.connect("ada")
    await node.hub.join("r", ada.id)
    found = []
    node.hub.on_send_failure(found.append)
    ada.link.full = True

    await node.hub.broadcast_room("r", "room:r", "message", 1)
    await node.hub.broadcast_with_filter(Message("t"), lambda _: True)
    await node.hub.send_to_user("ada", NEWS)
    await settle()

    assert all(f.message.id for f in found)
    reasons = ["broadcast_full", "broadcast_full", "queue_full"]
    assert sorted(f.reason.value for f in found) == reasons
    assert sorted(reason for reason, _ in metrics.of("dropped")) == reasons


async def test_what_has_waited_for_a_member_whose_link_is_closed_is_told(make_node):
    """The hook has let it in, and the end of its link is not told yet."""
    metrics = RecordingMetrics()
    node = await make_node(metrics=metrics)
    found = []
    node.hub.on_send_failure(found.append)
    gate = asyncio.Event()

    @node.hub.on_connect
    async def hook(conn):
        await node.hub.join("r", conn.id)
        await gate.wait()

    coming = asyncio.ensure_future(node.connect("ada"))
    await settle()
    [conn] = node.hub.connections()
    assert await node.hub.broadcast_room("r", "waits") == 1
    gate.set()
    [here] = node.parts.connections
    here.link.vanish(DisconnectReason.CONNECTION_LOST)
    await coming
    await settle()

    assert [named(f) for f in found] == [("r", FailureReason.CONN_CLOSED, conn.id, "ada")]
    assert metrics.of("dropped") == [("conn_closed", 1)]
