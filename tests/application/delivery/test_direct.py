"""To named recipients: a report for every one."""

import asyncio
from dataclasses import replace

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.application.cluster.packet import Packet
from eyewall.domain.envelope import Message, Priority
from eyewall.domain.errors import (
    AckTimeout,
    ConnectionClosed,
    Misuse,
    Nacked,
    QueueFull,
    Unavailable,
    UserOffline,
)
from eyewall.domain.report import (
    AckOptions,
    DeliveryStatus,
    FailureReason,
    SendOptions,
    Target,
)
from tests.application.engines import Bus, Engine
from tests.application.fakes import finished, settle

ACKED = SendOptions(require_ack=True, ack_timeout=3.0)
NEWS = Message("news", data=1)


def watch(node):
    """Remember the failures of a node: the specific handler's name, and what it got."""
    told = []
    hub = node.hub
    for name in (
        "on_queue_full",
        "on_user_offline",
        "on_connection_error",
        "on_timeout",
        "on_send_failure",
    ):
        getattr(hub, name)(lambda failure, name=name: told.append((name, failure)))
    return told


def counts(report):
    return {
        name: getattr(report, name)
        for name in ("success", "dropped", "failed", "stored", "forwarded", "unknown")
        if getattr(report, name)
    } | {"total": report.total}


async def answer(*clients):
    """Ack what the clients have heard."""
    await settle()
    for client in clients:
        for message in client.heard():
            client.ack(message)
    await settle()


# --- one connection


async def test_to_a_connection_here(one):
    ada = await one.connect("ada")

    report = await one.hub.send_to_conn(ada.id, "news", "flash", {"n": 1})

    assert (report.target, report.status, report.error) == (ada.id, DeliveryStatus.OK, None)
    (heard,) = ada.heard()
    assert (heard["topic"], heard["event"], heard["data"]) == ("news", "flash", {"n": 1})
    assert heard["id"]


async def test_to_a_connection_elsewhere(one, two):
    ada = await two.connect("ada")

    report = await one.hub.send_to_conn(ada.id, "news", data=1)
    await settle()

    assert (report.target, report.status) == (ada.id, DeliveryStatus.FORWARDED)
    assert [m["data"] for m in ada.heard()] == [1]


@pytest.mark.parametrize("conn_id", ["", "x", "x@n1", "x@n9", "@"])
async def test_to_a_connection_that_is_nowhere(one, conn_id):
    told = watch(one)

    report = await one.hub.send_to_conn(conn_id, "news")

    assert (report.target, report.status) == (conn_id, DeliveryStatus.FAILED)
    assert isinstance(report.error, ConnectionClosed)
    assert [name for name, _ in told] == ["on_connection_error", "on_send_failure"]
    assert told[0][1].reason is FailureReason.CONN_CLOSED


async def test_to_a_connection_whose_queue_is_full(one):
    told = watch(one)
    ada = await one.connect("ada")
    ada.link.full = True

    report = await one.hub.send_to_conn(ada.id, "news")

    assert report.status is DeliveryStatus.DROPPED
    assert isinstance(report.error, QueueFull)
    assert [name for name, _ in told] == ["on_queue_full", "on_send_failure"]
    assert (told[0][1].reason, told[0][1].recipient) == (FailureReason.QUEUE_FULL, ada.id)


async def test_a_raw_text_to_a_connection(one, two):
    here, there = await one.connect("ada"), await two.connect("ada")

    assert (await one.hub.send_text_to_conn(here.id, "ü")).status is DeliveryStatus.OK
    assert (await one.hub.send_text_to_conn(there.id, "ü")).status is DeliveryStatus.FORWARDED
    assert (await one.hub.send_text_to_conn("x", "ü")).status is DeliveryStatus.FAILED
    await settle()

    assert here.heard() == there.heard() == ["ü"]


async def test_data_that_can_not_be_sent_is_the_callers_mistake(one):
    ada = await one.connect("ada")

    with pytest.raises(Misuse):
        await one.hub.send_to_conn(ada.id, "news", data=object())


async def test_priority_travels(one, two):
    ada = await two.connect("ada")

    await one.hub.send_to_user("ada", Message("news", priority=Priority.LOW))
    await settle()

    assert ada.link.frames[0].priority is Priority.LOW


# --- users


async def test_to_a_user_with_connections_on_several_nodes(one, two):
    clients = [await node.connect("ada") for node in (one, two, two)]

    report = await one.hub.send_to_user("ada", NEWS)
    await settle()

    assert counts(report) == {"total": 3, "success": 1, "forwarded": 2}
    assert {r.target for r in report.reports} == {client.id for client in clients}
    ids = {m["id"] for client in clients for m in client.heard()}
    assert len(ids) == 1, "one message, one id"


async def test_to_a_user_who_is_only_elsewhere(one, two):
    ada = await two.connect("ada")

    report = await one.hub.send_to_user("ada", NEWS)
    await settle()

    assert counts(report) == {"total": 1, "forwarded": 1}
    assert len(ada.heard()) == 1


async def test_to_a_user_who_is_away(one):
    told = watch(one)

    report = await one.hub.send_to_user("ada", NEWS)

    assert counts(report) == {"total": 1, "failed": 1}
    assert report.reports[0].target == "ada"
    assert isinstance(report.reports[0].error, UserOffline)
    assert [name for name, _ in told] == ["on_user_offline", "on_send_failure"]
    failure = told[0][1]
    assert (failure.recipient, replace(failure.message, id=None)) == ("ada", NEWS)


@pytest.mark.parametrize("options", [None, SendOptions(), ACKED], ids=repr)
async def test_to_many_users_some_of_them_away(one, two, options):
    ada, bob = await one.connect("ada"), await two.connect("bob")

    sending = asyncio.create_task(
        one.hub.send_to_users(["ada", "eve", "bob", "ada"], NEWS, options)
    )
    await answer(ada, bob)
    report = await sending

    forwarded = options is not ACKED
    assert report.total == 3
    assert report.failed == 1
    assert report.success == (1 if forwarded else 2)
    assert report.forwarded == (1 if forwarded else 0)


async def test_to_nobody(one):
    assert counts(await one.hub.send_to_users([], NEWS)) == {"total": 0}


async def test_failures_name_the_user_that_the_caller_named(one):
    told = watch(one)
    ada = await one.connect("ada")
    ada.link.full = True

    await one.hub.send_to_user("ada", NEWS)

    assert told[0][1].recipient == "ada"


async def test_a_bus_that_is_away_fails_the_connections_elsewhere_only(make_node):
    bus = Bus()
    one, two = await make_node(pubsub=bus), await make_node(pubsub=bus)
    told = watch(one)
    here, there = await one.connect("ada"), await two.connect("ada")
    bus.away = True

    report = await one.hub.send_to_user("ada", NEWS)

    assert counts(report) == {"total": 2, "success": 1, "failed": 1}
    assert len(here.heard()) == 1
    assert there.heard() == []
    assert [name for name, _ in told] == ["on_connection_error", "on_send_failure"]
    assert told[0][1].reason is FailureReason.CONN_ERROR


async def test_a_state_that_is_away_is_an_error(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine)
    engine.away = True

    with pytest.raises(Unavailable):
        await node.hub.send_to_user("ada", NEWS)


async def test_who_left_while_the_state_was_asked_is_reported(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine)
    ada = await node.connect("ada")
    engine.after.add("connections_of")
    sending = asyncio.create_task(node.hub.send_to_user("ada", NEWS))
    await settle()

    await ada.vanish()
    engine.go_on()

    assert counts(await sending) == {"total": 1, "failed": 1}


# --- with acks


async def test_a_remote_connection_counts_like_a_local_one_when_it_acks(one, two):
    here, there = await one.connect("ada"), await two.connect("ada")
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, ACKED))
    await settle()
    assert not sending.done()

    await answer(here, there)

    report = await sending
    assert counts(report) == {"total": 2, "success": 2}
    assert [r.attempts for r in report.reports] == [1, 1]


async def test_who_does_not_ack_has_failed(one, two, clock):
    told = watch(one)
    here, there = await one.connect("ada"), await two.connect("ada")
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, ACKED))

    await answer(here)
    await clock.advance(3.0)

    report = await sending
    assert counts(report) == {"total": 2, "success": 1, "failed": 1}
    failed = next(r for r in report.reports if r.status is DeliveryStatus.FAILED)
    assert failed.target == there.id
    assert isinstance(failed.error, AckTimeout)
    assert [name for name, _ in told] == ["on_timeout", "on_send_failure"]
    assert told[0][1].recipient == "ada"


async def test_retries_bear_the_same_id_also_elsewhere(one, two, clock):
    ada = await two.connect("ada")
    options = SendOptions(require_ack=True, ack_timeout=1.0, retry_max=2, retry_backoff=0.5)
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, options))
    await clock.advance(1.5)
    first, second = ada.heard()
    assert first == second

    ada.ack(second)
    await settle()

    report = await sending
    assert counts(report) == {"total": 1, "success": 1}
    assert report.reports[0].attempts == 2


async def test_the_ttl_ends_the_tries_also_elsewhere(one, two, clock):
    ada = await two.connect("ada")
    options = SendOptions(require_ack=True, ack_timeout=1.0, retry_max=9, ttl=2.5)
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, options))

    await clock.advance(2.5)

    assert counts(await sending) == {"total": 1, "failed": 1}
    assert len(ada.heard()) == 3


async def test_two_sends_of_one_ordering_key_never_overlap(one, two, clock):
    ada = await two.connect("ada")
    options = SendOptions(require_ack=True, ordering_key="k")
    first = asyncio.create_task(one.hub.send_to_user("ada", Message("a"), options))
    second = asyncio.create_task(one.hub.send_to_user("ada", Message("b"), options))
    other = asyncio.create_task(
        one.hub.send_to_user("ada", Message("c"), SendOptions(require_ack=True))
    )
    await settle()
    messages = ada.heard()
    assert [message["topic"] for message in messages] == ["a", "c"]

    for message in messages:
        ada.ack(message)
    await settle()
    assert first.done()
    assert other.done()
    await answer(ada)

    assert (await second).success == 1


# --- emit_with_ack


async def test_all_of_a_rooms_members_are_asked_on_all_nodes(one, two):
    clients = [await node.connect(f"u{n}") for n in range(2) for node in (one, two)]
    for client, node in zip(clients, [one, two] * 2, strict=True):
        await node.hub.join("lab", client.id)
    asking = asyncio.create_task(one.hub.emit_with_ack(Target.room("lab"), NEWS))

    await answer(*clients)

    result = await asking
    assert (result.expected, result.received, result.nacked, result.timed_out) == (4, 4, 0, False)
    assert result.errors == []


async def test_one_silent_client_delays_nobody_and_costs_one_time_out(one, two, clock):
    """Three silent ones, on two nodes, cost as much as one: they are awaited together."""
    clients = [await node.connect("ada") for node in (one, one, two, two)]
    asking = asyncio.create_task(
        one.hub.emit_with_ack(Target.user("ada"), NEWS, AckOptions(timeout=5.0))
    )
    await answer(clients[0])

    await clock.advance(4.9)
    assert not asking.done()
    await clock.advance(0.1)

    result = await asking
    assert (result.expected, result.received, result.timed_out) == (4, 1, True)
    assert len(result.errors) == 3


async def test_a_nack_is_an_answer(one, two):
    here, there = await one.connect("ada"), await two.connect("ada")
    asking = asyncio.create_task(one.hub.emit_with_ack(Target.user("ada"), NEWS))
    await settle()
    for client in (here, there):
        client.nack(client.heard()[0], "busy")
    await settle()

    result = await asking

    assert (result.expected, result.received, result.nacked, result.timed_out) == (2, 0, 2, False)
    assert result.errors == ["busy", "busy"]


@pytest.mark.parametrize("where", ["here", "there"])
async def test_one_connection_may_be_asked(one, two, where):
    ada = await (one if where == "here" else two).connect("ada")
    asking = asyncio.create_task(one.hub.emit_with_ack(Target.conn(ada.id), NEWS))

    await answer(ada)

    assert (await asking).received == 1


async def test_require_all_raises_when_one_was_missing(one, two, clock):
    here, _ = await one.connect("ada"), await two.connect("ada")
    options = AckOptions(timeout=1.0, require_all=True)
    asking = asyncio.create_task(one.hub.emit_with_ack(Target.user("ada"), NEWS, options))
    await answer(here)
    await clock.advance(1.0)

    with pytest.raises(AckTimeout, match="1 of 2"):
        await asking


async def test_an_empty_room_is_asked_at_once(one):
    result = await finished(one.hub.emit_with_ack(Target.room("lab"), NEWS))

    assert (result.expected, result.received, result.timed_out) == (0, 0, False)


@pytest.mark.parametrize(
    ("target", "handler"),
    [(Target.user("ada"), "on_user_offline"), (Target.conn("x"), "on_connection_error")],
)
async def test_who_is_away_has_failed_and_is_not_waited_for(one, target, handler):
    told = watch(one)

    result = await finished(one.hub.emit_with_ack(target, NEWS))

    assert (result.expected, result.received, result.timed_out) == (1, 0, False)
    assert len(result.errors) == 1
    assert [name for name, _ in told] == [handler, "on_send_failure"]


async def test_who_goes_before_it_answers_is_settled_at_once(one, two):
    here, there = await one.connect("ada"), await two.connect("ada")
    asking = asyncio.create_task(one.hub.emit_with_ack(Target.user("ada"), NEWS))
    await settle()

    await here.vanish()
    await there.vanish()

    result = await finished(asking)
    assert (result.expected, result.received, result.timed_out) == (2, 0, False)


# --- request


@pytest.mark.parametrize("where", ["here", "there"])
async def test_a_client_is_asked_and_says(one, two, where):
    ada = await (one if where == "here" else two).connect("ada")
    asking = asyncio.create_task(one.hub.request(ada.id, Message("ask")))
    await settle()

    ada.ack(ada.heard()[0], {"n": [1, None]})
    await settle()

    assert await asking == {"n": [1, None]}


@pytest.mark.parametrize("where", ["here", "there"])
async def test_a_client_may_say_no_nothing_or_go(one, two, clock, where):
    node = one if where == "here" else two
    ada = await node.connect("ada")
    asking = asyncio.create_task(one.hub.request(ada.id, Message("ask")))
    await settle()
    ada.nack(ada.heard()[0], "busy")
    with pytest.raises(Nacked, match="busy"):
        await asking

    asking = asyncio.create_task(one.hub.request(ada.id, Message("ask"), timeout=2.0))
    await clock.advance(2.0)
    with pytest.raises(AckTimeout):
        await asking

    asking = asyncio.create_task(one.hub.request(ada.id, Message("ask")))
    await settle()
    await ada.vanish()
    with pytest.raises(ConnectionClosed):
        await asking
    with pytest.raises(ConnectionClosed):
        await one.hub.request(ada.id, Message("ask"))


async def test_a_node_that_does_not_answer_is_no_answer_of_the_client(make_node, clock):
    bus = Bus()
    one, two = await make_node(pubsub=bus), await make_node(pubsub=bus)
    ada = await two.connect("ada")
    bus.deaf.add("eyewall:node:n2")
    asking = asyncio.create_task(one.hub.request(ada.id, Message("ask"), timeout=2.0))

    await clock.advance(10)

    with pytest.raises(AckTimeout):
        await asking


# --- rooms and filters, with acks


async def test_a_room_may_be_sent_to_with_acks(one, two, clock):
    told = watch(one)
    here, there, skipped = [
        await node.connect(user) for node, user in ((one, "a"), (two, "b"), (one, "c"))
    ]
    for client, node in ((here, one), (there, two), (skipped, one)):
        await node.hub.join("lab", client.id)
    sending = asyncio.create_task(one.hub.emit_to_room_except("lab", [skipped.id], NEWS, ACKED))
    await answer(there)
    await clock.advance(3.0)

    assert await sending == 1
    assert skipped.heard() == []
    assert [(f.reason, f.recipient) for name, f in told if name == "on_timeout"] == [
        (FailureReason.ACK_TIMEOUT, "lab")
    ]


async def test_whoever_fits_may_be_sent_to_with_acks(one, two):
    from eyewall.domain.identity import Where

    here, there, other = (
        await one.connect("a", tags=["x"]),
        await two.connect("b", tags=["x"]),
        await two.connect("c"),
    )
    sending = asyncio.create_task(one.hub.broadcast_with_filter(NEWS, Where(tags=["x"]), ACKED))
    await answer(here, there)
    assert await sending == 1
    assert other.heard() == []

    sending = asyncio.create_task(one.hub.broadcast_with_filter(NEWS, lambda meta: True, ACKED))
    await settle()
    assert there.heard() == []
    await answer(here)
    assert await sending == 1


# --- what other nodes send


GOOD = b'{"id":"1","topic":"news","data":1}'


@pytest.mark.parametrize(
    ("kind", "header", "payload"),
    [
        ("send", {}, GOOD),
        ("send", {"p": 1}, GOOD),
        ("send", {"p": 1, "conns": "x"}, GOOD),
        ("send", {"p": 1, "conns": [5]}, GOOD),
        ("send", {"p": 1, "conns": []}, b"garbage"),
        ("conn_text", {}, b"x"),
        ("conn_text", {"conn": []}, b"x"),
    ],
    ids=repr,
)
async def test_what_makes_no_sense_is_dropped_and_counted(one, kind, header, payload):
    await one.bus.publish("eyewall:node:n1", Packet("evil", kind, header, payload).pack())
    await settle()

    assert one.hub.stats().bad_packets == 1


async def test_a_message_for_who_has_gone_meanwhile_is_nobodys(one, two):
    header = {"p": 1, "conns": ["gone@n1"]}

    await one.bus.publish("eyewall:node:n1", Packet("n2", "send", header, GOOD).pack())
    await one.bus.publish(
        "eyewall:node:n1", Packet("n2", "conn_text", {"conn": "gone@n1"}, b"x").pack()
    )
    await settle()

    assert one.hub.stats().bad_packets == 0
