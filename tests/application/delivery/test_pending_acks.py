import asyncio
from datetime import timedelta

import pytest

from eyewall.application.delivery.pending_acks import MAX_PENDING
from eyewall.domain.delivery import Plan
from eyewall.domain.envelope import Message
from eyewall.domain.errors import AckTimeout, ConnectionClosed, Misuse, Nacked, QueueFull
from eyewall.domain.report import DeliveryStatus, FailureReason, SendOptions
from tests.application.fakes import START, RecordingMetrics, settle

ONCE = Plan(ack_timeout=5.0, retry_max=0, retry_backoff=0.0, deadline=None)
THRICE = Plan(ack_timeout=5.0, retry_max=2, retry_backoff=1.0, deadline=None)


@pytest.fixture
def deliver(node):
    """Begin to deliver a message to clients; returns the task of the outcomes."""

    def begin(*clients, plan=ONCE, id=None):
        frame = node.parts.sender.encode(Message("t", data=1, id=id), ack=True)
        conns = [client.conn for client in clients]
        return asyncio.ensure_future(node.parts.pending_acks.deliver(conns, frame, plan))

    return begin


@pytest.fixture
async def ada(node):
    return await node.connect("ada")


async def begun(task):
    await settle()
    assert not task.done()


# --- answers


async def test_a_message_that_is_to_be_acked_says_so(ada, deliver):
    await begun(deliver(ada))

    [message] = ada.heard()
    assert message["ack"] is True
    assert message["id"]


async def test_an_ack_settles_it(ada, deliver, node):
    task = deliver(ada)
    await settle()
    await node.advance(2)
    ada.ack(ada.heard()[0], result={"n": 5})

    [outcome] = await task
    assert outcome.delivered
    assert outcome.result == {"n": 5}
    assert outcome.seconds == 2
    assert outcome.report().status is DeliveryStatus.OK
    assert len(node.parts.pending_acks) == 0


async def test_the_short_form_of_an_ack_means_ok(ada, deliver):
    """The topic may be missing too."""
    task = deliver(ada, id="m")
    await settle()

    ada.say({"event": "ack", "ref": "m"})

    assert (await task)[0].delivered


async def test_where_message_id_and_ref_differ_message_id_counts(ada, deliver):
    task = deliver(ada, id="m")
    await settle()

    ada.say({"event": "ack", "ref": "m", "topic": "t", "data": {"message_id": "other"}})
    await begun(task)
    ada.say({"event": "ack", "ref": "other", "topic": "t", "data": {"message_id": "m"}})

    assert (await task)[0].delivered


@pytest.mark.parametrize("data", ["null", "5", '{"message_id": null}', "1e999", "{}"])
async def test_an_ack_with_nothing_of_use_beside_its_ref_means_ok(ada, deliver, data):
    task = deliver(ada, id="m")
    await settle()

    ada.say('{"event": "ack", "ref": "m", "data": ' + data + "}")

    assert (await task)[0].delivered


@pytest.mark.parametrize(
    "ack",
    [
        {"ref": "unknown"},
        {},
        {"ref": "m", "data": {"message_id": 5}},
        {"ref": "m", "data": {"message_id": ["m"]}},
    ],
)
async def test_an_ack_that_nobody_waits_for_is_ignored_and_counted(ada, deliver, node, ack):
    task = deliver(ada, id="m")
    await settle()
    ada.heard()

    ada.say({"event": "ack", "topic": "t", **ack})
    await begun(task)

    assert node.hub.stats().stray_acks == 1
    assert ada.heard() == []


async def test_an_ack_counts_only_from_the_connection_that_the_message_went_to(node, ada, deliver):
    bob = await node.connect("bob")
    task = deliver(ada)
    await settle()

    bob.ack(ada.heard()[0])

    await begun(task)


async def test_a_nack_is_final(ada, deliver, node):
    task = deliver(ada, plan=THRICE)
    await settle()
    ada.nack(ada.heard()[0], "busy")

    [outcome] = await task
    assert outcome.reason is FailureReason.NACKED
    assert isinstance(outcome.error, Nacked)
    assert str(outcome.error) == "busy"
    assert outcome.attempts == 1
    await node.advance(60)
    assert ada.heard() == []


async def test_the_text_of_a_nack_is_bounded(ada, deliver):
    task = deliver(ada)
    await settle()
    ada.nack(ada.heard()[0], "x" * 100_000)

    assert len(str((await task)[0].error)) == 1000


# --- time


async def test_without_an_answer_it_fails_in_time(ada, deliver, node):
    task = deliver(ada)
    await node.advance(4.9)
    await begun(task)
    await node.advance(0.2)

    [outcome] = await task
    assert outcome.reason is FailureReason.ACK_TIMEOUT
    assert isinstance(outcome.error, AckTimeout)
    assert outcome.report().status is DeliveryStatus.FAILED


async def test_retries_reuse_the_id(ada, deliver, node):
    """After each pause, which doubles."""
    task = deliver(ada, plan=THRICE)
    times = []
    for _ in range(40):
        times += [(node.clock.now() - 1000, m["id"]) for m in ada.heard()]
        await node.advance(0.5)

    assert [at for at, _ in times] == [0.5, 6.0, 13.0]
    assert len({message_id for _, message_id in times}) == 1
    [outcome] = await task
    assert (outcome.attempts, outcome.delivered) == (3, False)


async def test_a_late_ack_still_counts(ada, deliver, node):
    task = deliver(ada, plan=THRICE)
    await settle()
    [message] = ada.heard()
    await node.advance(5.5)
    ada.ack(message)

    [outcome] = await task
    assert (outcome.attempts, outcome.delivered) == (1, True)
    await node.advance(60)
    assert ada.heard() == []


async def test_one_slow_device_never_delays_the_others(node, ada, deliver):
    """The acks of many are awaited together: the time-out is waited for once."""
    silent = [await node.connect(f"u{n}") for n in range(20)]
    task = deliver(*silent, ada)
    await settle()
    ada.ack(ada.heard()[0])
    await node.advance(5)

    outcomes = await task
    assert [o.conn_id for o in outcomes if o.delivered] == [ada.id]
    assert len(outcomes) == 21


async def test_to_nobody_is_done_at_once(node):
    frame = node.parts.sender.encode(Message("t"), ack=True)

    assert await node.parts.pending_acks.deliver([], frame, ONCE) == []


async def test_all_that_wait_share_one_timer(node, ada, deliver):
    tasks = [deliver(ada) for _ in range(50)]
    before = len(node.clock.timers)
    await settle()

    assert len(node.clock.timers) == before + 1
    for task in tasks:
        task.cancel()


# --- the connection


async def test_the_end_of_the_connection_settles_it_at_once(ada, deliver):
    task = deliver(ada, plan=THRICE)
    await settle()

    await ada.vanish()

    [outcome] = await task
    assert outcome.reason is FailureReason.CONN_CLOSED
    assert isinstance(outcome.error, ConnectionClosed)


async def test_to_who_has_gone_it_fails_at_once(ada, deliver):
    await ada.vanish()

    [outcome] = await deliver(ada)

    assert outcome.reason is FailureReason.CONN_CLOSED


async def test_a_full_queue_is_tried_again(ada, deliver, node):
    ada.link.full = True
    task = deliver(ada, plan=THRICE)
    await settle()
    ada.link.full = False
    await node.advance(1)
    ada.ack(ada.heard()[0])

    [outcome] = await task
    assert (outcome.attempts, outcome.delivered) == (2, True)
    assert node.hub.stats().drops == 1


async def test_a_queue_that_stays_full_is_a_drop(ada, deliver):
    ada.link.full = True

    [outcome] = await deliver(ada)

    assert outcome.reason is FailureReason.QUEUE_FULL
    assert isinstance(outcome.error, QueueFull)
    assert outcome.report().status is DeliveryStatus.DROPPED


async def test_what_waits_for_one_connection_is_bounded(node, ada, deliver):
    """A client that never acks costs at most so many entries."""
    told = []
    node.hub.on_queue_full(lambda failure: told.append(failure.reason))
    tasks = [deliver(ada) for _ in range(MAX_PENDING)]
    await settle()
    bob = await node.connect("bob")

    report = await node.hub.deliver(ada.id, Message("t"), SendOptions(require_ack=True))

    assert report.status is DeliveryStatus.DROPPED
    assert told == [FailureReason.PENDING_FULL]
    assert len(node.hub.pending_acks(ada.id)) == MAX_PENDING
    assert node.hub.stats().drops == 1
    await begun(deliver(bob))
    for task in tasks:
        task.cancel()


async def test_two_messages_of_one_id_can_t_be_on_their_way_to_one_connection(ada, deliver):
    first, second = deliver(ada, id="m"), deliver(ada, id="m")

    [outcome] = await second
    assert isinstance(outcome.error, Misuse)
    assert [m["id"] for m in ada.heard()] == ["m"]
    await begun(first)


# --- who no longer waits


async def test_a_caller_that_gives_up_leaves_nothing_behind(ada, deliver, node):
    """A deadline may have ended it; the ack that then comes is a stray one."""
    task = deliver(ada)
    await settle()
    task.cancel()
    await settle()

    assert len(node.parts.pending_acks) == 0
    assert node.hub.pending_acks(ada.id) == []
    ada.ack(ada.heard()[0])
    assert node.hub.stats().stray_acks == 1


async def test_a_caller_that_gives_up_takes_nobody_else_s_along(node, ada, deliver):
    """It was refused at one connection because somebody else's message has that id."""
    bob = await node.connect("bob")
    theirs = deliver(ada, id="m")
    ours = deliver(ada, bob, id="m")
    await settle()

    ours.cancel()
    await settle()
    ada.ack(ada.heard()[0])

    assert (await theirs)[0].delivered


async def test_nor_a_later_message_of_the_same_id(node, ada, deliver):
    """An application may send a message again whose first sending has been answered."""
    bob = await node.connect("bob")
    first = deliver(ada, bob, id="m")
    await settle()
    ada.ack(ada.heard()[0])
    again = deliver(ada, id="m")
    await settle()

    first.cancel()
    await settle()
    ada.ack(ada.heard()[0])

    assert (await again)[0].delivered


# --- seen from outside


async def test_pending_acks_are_listed_oldest_first(node, ada, deliver):
    first = deliver(ada, id="a", plan=THRICE)
    await node.advance(6.5)
    second = deliver(ada, id="b")
    await settle()

    one, two = node.hub.pending_acks(ada.id)

    assert (one.message.topic, one.message.id, one.attempt) == ("t", "a", 2)
    assert (two.message.id, two.attempt, two.conn_id) == ("b", 1, ada.id)
    assert one.since == START
    assert two.since == START + timedelta(seconds=6.5)
    assert two.deadline == START + timedelta(seconds=11.5)
    first.cancel()
    second.cancel()


async def test_settled_returns_when_nothing_waits(node, ada, deliver):
    task = deliver(ada)
    await settle()
    settled = asyncio.ensure_future(node.parts.pending_acks.settled())
    await settle()
    assert not settled.done()

    ada.ack(ada.heard()[0])
    await settled
    await task


async def test_close_settles_everything_as_lost(node, ada, deliver):
    tasks = [deliver(ada), deliver(ada)]
    await settle()

    node.parts.pending_acks.close()

    assert [(await t)[0].reason for t in tasks] == [FailureReason.CONN_CLOSED] * 2


async def test_metrics_hear_how_each_ended(make_node):
    metrics = RecordingMetrics()
    node = await make_node(metrics=metrics)
    ada, bob, eve, dan = [await node.connect(u) for u in ("ada", "bob", "eve", "dan")]
    frame = node.parts.sender.encode(Message("t"), ack=True)
    conns = [c.conn for c in (ada, bob, eve, dan)]
    task = asyncio.ensure_future(node.parts.pending_acks.deliver(conns, frame, ONCE))
    await settle()
    ada.ack(ada.heard()[0])
    bob.nack(bob.heard()[0])
    await eve.vanish()
    await node.advance(5)
    await task

    assert metrics.of("acked") == [("ok", 0), ("nack", 0), ("closed", 0), ("timeout", 5)]
