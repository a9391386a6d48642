import asyncio

import pytest

from eyewall.application.dispatch.command_fields import rfc3339
from eyewall.application.outbound.sender import Ids
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message, Priority, Raw
from eyewall.domain.errors import ConnectionClosed, Misuse, QueueFull, SlowConsumer
from eyewall.domain.outbox import DropPolicy, QueueConfig
from eyewall.domain.report import FailureReason
from tests.application.fakes import CODEC, START, RecordingMetrics, settle


@pytest.fixture
def failures(node):
    """The failures that the general handler was told of."""
    told = []
    node.hub.on_send_failure(told.append)
    return told


# --- messages


async def test_every_message_of_the_server_has_an_id(node):
    ada = await node.connect("ada")

    await ada.conn.send("t", "e", 1)
    await ada.conn.send("t")

    first, second = ada.heard()
    assert first == {"id": first["id"], "topic": "t", "event": "e", "data": 1}
    assert second == {"id": second["id"], "topic": "t"}
    assert first["id"] != second["id"]


def test_ids_of_two_nodes_never_meet():
    first, second = Ids("a-"), Ids("b-")

    assert len({first.new() for _ in range(20)} | {second.new() for _ in range(20)}) == 40


async def test_what_a_message_says_of_itself_is_sent(node):
    ada = await node.connect("ada")
    message = Message(
        "t", "e", {"k": [1]}, id="mine", namespace="n", version="v2", headers={"trace": "x"}
    )

    await node.hub.deliver(ada.id, message)

    assert ada.heard() == [
        {
            "id": "mine",
            "topic": "t",
            "event": "e",
            "namespace": "n",
            "version": "v2",
            "data": {"k": [1]},
            "headers": {"trace": "x"},
        }
    ]


async def test_a_raw_payload_travels_byte_for_byte(node):
    ada = await node.connect("ada")
    payload = b'{"b": 1.10, "a": 12345678901234567890123}'

    await ada.conn.send("t", "e", Raw(payload, CODEC.format))

    assert payload in ada.link.frames[0].payload


async def test_data_that_can_t_be_encoded_is_our_callers_fault(node):
    ada = await node.connect("ada")

    with pytest.raises(Misuse):
        await ada.conn.send("t", "e", object())


async def test_a_text_is_sent_as_it_is_and_no_envelope_is_counted(node):
    ada = await node.connect("ada")
    node.hub.reset_stats()

    await ada.conn.send_raw("plain ü")
    await ada.conn.send_raw(b"\x00\xff")

    assert ada.heard() == ["plain ü", b"\x00\xff"]
    assert node.hub.stats().out_messages == 0


def test_timestamps_are_rfc_3339_in_utc():
    assert rfc3339(START) == "2026-03-01T12:00:00.000Z"


# --- what does not arrive


async def test_sending_to_who_has_gone_raises_and_is_reported(node, failures):
    ada = await node.connect("ada")
    await ada.vanish()

    with pytest.raises(ConnectionClosed):
        await ada.conn.send("t")

    assert [(f.reason, f.recipient) for f in failures] == [(FailureReason.CONN_CLOSED, ada.id)]
    assert node.hub.stats().drops == 0


async def test_a_full_queue_raises_is_counted_and_reported(node, failures):
    ada = await node.connect("ada", queue=QueueConfig(size=1))
    ada.link.stalled = True
    await ada.conn.send("t", "e", 1)

    with pytest.raises(QueueFull):
        await ada.conn.send("t", "e", 2)

    [failure] = failures
    assert failure.reason is FailureReason.QUEUE_FULL
    assert failure.message.data == 2
    assert failure.recipient == ada.id
    assert failure.queue == 1
    assert isinstance(failure.error, QueueFull)
    assert node.hub.stats().drops == 1
    assert node.hub.stats().out_messages == 1


async def test_what_gave_way_to_a_newer_message_is_counted_and_reported(node, failures):
    ada = await node.connect("ada", queue=QueueConfig(size=1, drop_policy=DropPolicy.DROP_OLDEST))
    ada.link.stalled = True

    await ada.conn.send("t", "e", "old")
    await ada.conn.send("t", "e", "new")
    await settle()

    assert [f.message.data for f in failures] == ["old"]
    assert node.hub.stats().drops == 1
    ada.link.read()
    assert [m["data"] for m in ada.heard()] == ["new"]


async def test_an_overflow_that_disconnects_is_counted_and_reported_too(node, failures):
    ada = await node.connect(
        "ada", queue=QueueConfig(size=1, drop_policy=DropPolicy.DROP_AND_DISCONNECT)
    )
    ada.link.stalled = True
    await ada.conn.send("t")

    with pytest.raises(SlowConsumer):
        await ada.conn.send("t", "e", "too much")
    await settle()

    assert [f.reason for f in failures] == [FailureReason.QUEUE_FULL]
    assert failures[0].message.data == "too much"
    assert node.hub.stats().drops == 1
    assert ada.closed is DisconnectReason.SLOW_CONSUMER
    assert not ada.conn.is_open


async def test_on_queue_full_has_run_when_the_send_returns(node):
    told = []

    @node.hub.on_queue_full
    async def handler(failure):
        await settle()
        told.append(failure.reason)

    ada = await node.connect("ada")
    ada.link.full = True
    with pytest.raises(QueueFull):
        await ada.conn.send("t")

    assert told == [FailureReason.QUEUE_FULL]


async def test_a_member_whose_queue_is_full_in_a_fan_out_is_reported_soon(node, failures):
    ada, bob = await node.connect("ada"), await node.connect("bob")
    for client in (ada, bob):
        await node.hub.join("r", client.id)
    ada.link.full = True

    assert await node.hub.broadcast_room("r", "t", "e", 1) == 2
    await settle()

    [failure] = failures
    assert failure.reason is FailureReason.BROADCAST_FULL
    assert failure.recipient == "r"
    assert failure.message.data == 1
    assert [m["data"] for m in bob.heard()] == [1]
    assert node.hub.stats().drops == 1


async def test_a_higher_priority_overtakes_in_a_stalled_queue(node):
    ada = await node.connect("ada")
    ada.link.stalled = True

    for n, priority in enumerate((Priority.LOW, Priority.NORMAL, Priority.HIGH)):
        await node.hub.deliver(ada.id, Message("t", data=n, priority=priority))
    ada.link.read()

    assert [m["data"] for m in ada.heard()] == [2, 1, 0]


async def test_a_reply_that_is_dropped_is_reported_as_what_it_was(node, failures):
    """Also when it relays a payload that nobody here could decode."""

    @node.on("relay")
    async def relay(ctx, msg):
        await ctx.reply(msg.raw)

    ada = await node.connect("ada")
    ada.link.full = True
    ada.say('{"topic": "relay", "data": 1e999}')
    await settle()

    reply = failures[0].message
    assert reply.topic == "relay"
    assert reply.data.data == b"1e999"


async def test_who_publishes_faster_than_the_node_writes_is_slowed_down(node):
    ada = await node.connect("ada")
    node.outbound.crowded = True
    task = asyncio.ensure_future(node.hub.broadcast("t"))
    await settle()
    assert ada.heard() == []

    node.outbound.crowded = False
    await task
    assert [m["topic"] for m in ada.heard()] == ["t"]


async def test_metrics_hear_of_drops_by_reason(make_node):
    metrics = RecordingMetrics()
    node = await make_node(metrics=metrics)
    ada = await node.connect("ada")
    ada.link.full = True

    with pytest.raises(QueueFull):
        await ada.conn.send("t")

    assert metrics.of("dropped") == [("queue_full", 1)]
    assert metrics.of("sent") == []
