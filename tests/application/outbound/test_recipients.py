"""Whom a message is for is asked again when it is written, and for each try."""

import asyncio
from functools import partial

import pytest

from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.cluster.packet import BadPacket
from eyewall.application.cluster.protocol import Recipients
from eyewall.application.outbound.recipients import ANY_RECIPIENT, RecipientFilter
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message
from eyewall.domain.errors import ConnectionClosed
from eyewall.domain.identity import Where
from eyewall.domain.report import DeliveryStatus, FailureReason, SendOptions, Target
from eyewall.domain.retry import RetryPolicy
from eyewall.domain.room import RoomOptions
from tests.application.engines import Engine
from tests.application.fakes import RecordingMetrics, settle

NEWS = Message("news", data={"n": 1})
ACKED = SendOptions(require_ack=True, ack_timeout=1.0)
STORE = SendOptions(offline="store", ack_timeout=1.0)


async def going_on(work):
    task = asyncio.ensure_future(work)
    await settle()
    return task


def topics(client):
    return [m["topic"] for m in client.heard() if m.get("event") != "ack"]


@pytest.fixture
def pair_config():
    return {"offline": MemoryOffline()}


# --- while the sender waits


@pytest.mark.parametrize("options", [None, ACKED], ids=["plain", "acked"])
async def test_who_becomes_another_user_meanwhile_gets_nothing(one, options):
    """The look for the user's connections and the writing are two moments."""
    client = await one.connect("ada")
    one.outbound.crowded = True
    task = await going_on(one.hub.send_to_user("ada", NEWS, options))

    one.hub.set_meta(client.id, user_id="eve")
    one.outbound.crowded = False
    report = await task

    assert topics(client) == []
    assert (report.success, report.failed) == (0, 1)
    assert isinstance(report.reports[0].error, ConnectionClosed)


@pytest.mark.parametrize("options", [None, ACKED], ids=["plain", "acked"])
async def test_so_does_one_of_another_node(one, two, options):
    """The node that has the connection says whose it is."""
    client = await two.connect("ada")
    state = one.state
    asked = Engine(state)
    one.parts.messages._locate._state = asked
    asked.after.add("connections_of")
    task = await going_on(one.hub.send_to_user("ada", NEWS, options))

    two.hub.set_meta(client.id, user_id="eve")
    asked.go_on()
    await settle()
    await one.advance(3)
    await task

    assert topics(client) == []


@pytest.mark.parametrize(
    "send",
    [
        lambda hub: hub.emit_to_room("lab", NEWS, ACKED),
        lambda hub: hub.emit_with_ack(Target.room("lab"), NEWS),
    ],
    ids=["emit_to_room", "emit_with_ack"],
)
@pytest.mark.parametrize("kept", [0, 10], ids=["plain", "history"])
async def test_who_is_put_out_of_the_room_meanwhile_gets_nothing(one, send, kept):
    await one.hub.create_room("lab", RoomOptions(history_size=kept))
    client = await one.connect("ada")
    await one.hub.join("lab", client.id)
    one.outbound.crowded = True
    task = await going_on(send(one.hub))

    await one.hub.kick_user_from_room("ada", "lab")
    one.outbound.crowded = False
    await settle()
    await one.advance(6)
    await task

    assert topics(client) == ["system:kicked"]


async def test_who_fits_no_longer_gets_nothing(one):
    client = await one.connect("ada", roles={"admin"})
    one.outbound.crowded = True
    where = Where(roles={"admin"})
    task = await going_on(one.hub.broadcast_with_filter(NEWS, where, ACKED))

    one.hub.set_meta(client.id, roles=())
    one.outbound.crowded = False
    await settle()
    await one.advance(2)
    await task

    assert topics(client) == []


@pytest.mark.parametrize("gone", ["not let in", "another user's", "not there"])
async def test_the_other_node_tells_of_what_it_could_not_hand_on(one, make_node, gone):
    """A plain send to it is reported as forwarded: nobody else can say more."""
    metrics = RecordingMetrics()
    two, failures, gate = await make_node(metrics=metrics), [], asyncio.Event()
    two.hub.on_send_failure(failures.append)

    @two.hub.on_connect
    async def hook(conn):
        if gone == "not let in":
            await gate.wait()

    opening = asyncio.ensure_future(two.connect("ada"))
    await settle()
    [conn] = two.hub.connections()
    await opening if gone != "not let in" else None
    asked = Engine(one.state)
    one.parts.messages._locate._state = asked
    asked.after.add("connections_of")
    task = await going_on(one.hub.send_to_user("ada", NEWS))
    if gone == "another user's":
        two.hub.set_meta(conn.id, user_id="eve")
    elif gone == "not there":
        await conn.close()
    asked.go_on()
    report = await task
    await settle()
    gate.set()
    client = await opening

    assert report.forwarded == 1
    assert topics(client) == []
    [failure] = failures
    assert (failure.message.topic, failure.recipient, failure.conn_id) == ("news", "ada", conn.id)
    assert failure.reason is FailureReason.CONN_CLOSED
    assert metrics.of("dropped") == [("conn_closed", 1)]


async def test_so_it_does_of_a_text_for_a_connection_that_has_just_gone(one, make_node):
    two, failures = await make_node(), []
    two.hub.on_connection_error(failures.append)
    client = await two.connect("ada")
    report = await one.hub.send_text_to_conn(client.id, "one")
    await settle()
    await client.vanish()
    gone = await one.hub.send_text_to_conn(client.id, "two")
    await settle()

    assert report.status is gone.status is DeliveryStatus.FORWARDED
    assert client.heard() == ["one"]
    assert [(f.recipient, f.conn_id) for f in failures] == [(client.id, client.id)]


# --- between two tries


async def test_a_retry_is_not_for_who_the_connection_is_by_then(one):
    client = await one.connect("ada")
    options = SendOptions(require_ack=True, ack_timeout=1.0, retry_max=3)
    task = await going_on(one.hub.send_to_user("ada", NEWS, options))
    assert topics(client) == ["news"]

    one.hub.set_meta(client.id, user_id="eve")
    await settle()
    assert one.hub.pending_acks(client.id) == []
    report = await task
    await one.advance(10)

    assert topics(client) == []
    assert report.reports[0].status is DeliveryStatus.FAILED


async def test_a_retry_is_not_for_who_has_left_the_room(one):
    client = await one.connect("ada")
    await one.hub.join("lab", client.id)
    options = SendOptions(require_ack=True, ack_timeout=1.0, retry_max=3)
    task = await going_on(one.hub.emit_to_room("lab", NEWS, options))
    client.heard()

    await one.hub.leave("lab", client.id)
    await one.advance(10)
    await task

    assert topics(client) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, asyncio.CancelledError])
async def test_a_filter_that_fails_at_a_retry_means_nobody(one, error):
    client, calls = await one.connect("ada"), []

    def fits(meta):
        calls.append(meta)
        if len(calls) > 2:
            raise error
        return True

    options = SendOptions(require_ack=True, ack_timeout=1.0, retry_max=3)
    task = await going_on(one.hub.broadcast_with_filter(NEWS, fits, options))
    client.heard()
    await one.advance(10)
    await task

    assert topics(client) == []


async def test_the_tries_of_a_policy_look_for_the_user_each_time(one):
    client, policy = await one.connect("ada"), RetryPolicy(max_retries=2, base_delay=1.0, jitter=0)
    task = await going_on(one.hub.send_to_user_with_retry("ada", NEWS, policy, ACKED))
    assert topics(client) == ["news"]
    await one.advance(1)

    one.hub.set_meta(client.id, user_id="eve")
    await settle()
    other = await one.connect("ada")
    await one.advance(1)
    [message] = other.heard()
    other.ack(message)
    await settle()

    assert task.done()
    assert task.result().success
    assert topics(client) == []


async def test_what_is_for_a_connection_goes_to_it_whoever_it_is(one):
    client = await one.connect("ada")
    task = await going_on(one.hub.request(client.id, NEWS))

    one.hub.set_meta(client.id, user_id="eve")
    [question] = client.heard()
    client.ack(question, "yes")

    assert await task == "yes"


# --- what is stored


async def stored_for(node, user, *topic_names):
    for topic in topic_names:
        await node.hub.send_to_user(user, Message(topic), STORE)


async def test_stored_messages_are_not_for_who_the_connection_is_by_then(one):
    await stored_for(one, "ada", "first", "second")
    one.outbound.crowded = True
    link = one.link()
    task = asyncio.ensure_future(one.connect("ada", link=link))
    await settle()

    one.hub.set_meta(link.owner.id, user_id="eve")
    one.outbound.crowded = False
    eve = await task
    await one.advance(6)
    assert topics(eve) == []

    ada = await one.connect("ada")
    assert topics(ada) == ["first", "second"]


async def test_stored_messages_that_were_not_answered_are_there_for_the_user(one):
    """They went out, and then the connection became another's before it had answered."""
    await stored_for(one, "ada", "first")
    client = await one.connect("ada")
    assert topics(client) == ["first"]

    one.hub.set_meta(client.id, user_id="eve")
    await one.advance(6)

    assert one.hub.pending_acks(client.id) == []
    assert topics(await one.connect("ada")) == ["first"]


async def test_who_answers_as_another_user_has_had_it_all_the_same(one):
    """It went to this client when it was ada's; the ack was on its way."""
    client = await one.connect("ada")
    task = await going_on(one.hub.send_to_user("ada", NEWS, STORE))
    [message] = client.heard()
    one.hub.set_meta(client.id, user_id="eve")
    report = await task
    assert report.stored == 1

    client.ack(message)
    await settle()

    assert topics(await one.connect("ada")) == []


# --- limits, and ends


async def test_who_becomes_a_user_counts_as_the_users_newest(make_node):
    one, two = [await make_node(max_connections_per_user=1) for _ in range(2)]
    first, guest = await two.connect("ada"), await one.connect()

    one.hub.set_meta(guest.id, user_id="ada")
    await settle()

    assert first.closed is DisconnectReason.REPLACED
    assert guest.closed is None


async def test_a_hook_that_says_who_it_is_counts_too(make_node):
    node = await make_node(max_connections_per_user=1)
    node.hub.on_connect(lambda conn: node.hub.set_meta(conn.id, user_id="ada"))

    first, second = await node.connect(), await node.connect()
    await settle()

    assert first.closed is DisconnectReason.REPLACED
    assert second.closed is None


async def test_an_end_meant_for_a_user_is_not_another_ones(make_node, clock):
    state = MemoryState(clock=clock.now)
    asked = Engine(state)
    one, two = await make_node(state=asked), await make_node(state=state)
    client = await two.connect("ada")
    asked.after.add("connections_of")
    task = await going_on(one.hub.disconnect_user("ada"))

    two.hub.set_meta(client.id, user_id="eve")
    asked.go_on()

    assert await task == 0
    assert client.closed is None


# --- typing


async def test_who_becomes_another_user_has_stopped_typing(one):
    ben, ada = await one.connect("ben"), await one.connect("ada")
    for client in (ben, ada):
        await one.hub.join("lab", client.id)
    await one.hub.set_typing("ada", "lab", ttl=60)
    ben.heard()

    one.hub.set_meta(ada.id, user_id="eve")
    await settle()

    typing = [m["data"] for m in ben.heard() if m.get("event") == "typing"]
    assert typing == [{"user_id": "ada", "typing": False}]


async def test_who_is_put_out_while_its_typing_is_noted_does_not_type_on(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine, client_commands=True)
    ben, ada = await node.connect("ben"), await node.connect("ada")
    for client in (ben, ada):
        await node.hub.join("lab", client.id)
    engine.after.add("set_typing")
    ada.say({"topic": "system:typing", "data": {"room": "lab", "typing": True}})
    await settle()
    await node.hub.kick_user_from_room("ada", "lab")
    ben.heard()
    engine.go_on()
    await settle()

    told = [m["data"]["typing"] for m in ben.heard() if m.get("event") == "typing"]
    assert told == [False]
    assert (await node.hub.presence("ada")).typing == {}


# --- on its way to another node


@pytest.mark.parametrize(
    "whom",
    [
        RecipientFilter(user="ada"),
        RecipientFilter(room="lab"),
        RecipientFilter(fits=Where(tags={"red"})),
        ANY_RECIPIENT,
    ],
)
def test_another_node_reads_the_same(whom):
    assert RecipientFilter.of(Recipients.read(whom.named().header())) == whom


@pytest.mark.parametrize("header", [{"u": 1}, {"r": ["lab"]}, {"where": 3}, {"where": {"x": 1}}])
def test_what_can_not_be_read_is_a_bad_packet(header):
    with pytest.raises(BadPacket):
        Recipients.read(header)


# --- a filter is asked, and never awaited


async def nobody(meta):
    return False


class Nobody:
    async def __call__(self, meta):
        return False


@pytest.mark.parametrize("options", [None, ACKED], ids=["plain", "acked"])
@pytest.mark.parametrize(
    "fits",
    [nobody, partial(nobody), Nobody(), Nobody().__call__, lambda meta: nobody(meta)],
    ids=["function", "partial", "object", "method", "lambda"],
)
async def test_an_async_filter_is_refused_and_nobody_gets_anything(one, fits, options):
    """Its coroutine would be true of everybody."""
    ada = await one.connect("ada")

    with pytest.raises(ValueError, match="can't be async"):
        await one.hub.broadcast_with_filter(NEWS, fits, options)

    assert topics(ada) == []


@pytest.mark.parametrize("options", [None, ACKED], ids=["plain", "acked"])
async def test_what_is_no_filter_is_refused(one, options):
    with pytest.raises(ValueError, match="a filter is a callable"):
        await one.hub.broadcast_with_filter(NEWS, "admins", options)


@pytest.mark.parametrize("said", [1, "yes", [0]])
async def test_a_filter_may_say_yes_in_its_own_way(one, said):
    ada = await one.connect("ada")

    assert await one.hub.broadcast_with_filter(NEWS, lambda meta: said) == 1
    assert topics(ada) == ["news"]
