"""Messages that are to be acknowledged, on all nodes at once."""

import asyncio

import pytest

from eyewall.application.delivery import acked
from eyewall.application.delivery.acked import CONNECTIONS_PER_REQUEST, MARGIN
from eyewall.domain.ack_result import Acker
from eyewall.domain.envelope import Message
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import ConnMeta
from eyewall.domain.report import AckOptions, DeliveryStatus, FailureReason, SendOptions, Target
from eyewall.domain.room import RoomOptions
from tests.application.engines import Bus
from tests.application.fakes import finished, raw, raw_kind, settle

NEWS = Message("news", data=1)
ACKED = SendOptions(require_ack=True, ack_timeout=3.0)


@pytest.fixture
def bus():
    return Bus()


@pytest.fixture
def pair_config(bus):
    return {"pubsub": bus}


@pytest.fixture
async def three(two, make_node, bus):
    return await make_node(pubsub=bus)


async def answer(*clients):
    await settle()
    for client in clients:
        for message in client.heard():
            client.ack(message)
    await settle()


async def test_a_node_that_never_answers_is_unknown_and_not_failed(one, two, three, bus, clock):
    """It may have delivered: nobody can say."""
    failures = []
    one.hub.on_send_failure(failures.append)
    clients = [await node.connect("ada") for node in (one, two, three)]
    bus.deaf.add("eyewall:node:n2")
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, ACKED))
    await answer(*clients)

    await clock.advance(3.0 + MARGIN)

    report = await sending
    assert (report.total, report.success, report.unknown, report.failed) == (3, 2, 1, 0)
    (unknown,) = [r for r in report.reports if r.status is DeliveryStatus.UNKNOWN]
    assert unknown.target == clients[1].id
    assert isinstance(unknown.error, Unavailable)
    assert [f.reason for f in failures] == [FailureReason.UNKNOWN]


async def test_a_node_that_never_answers_leaves_an_ack_missing(one, two, bus, clock):
    clients = [await node.connect("ada") for node in (one, two)]
    bus.deaf.add("eyewall:node:n1")  # its answer is lost
    options = AckOptions(timeout=1.0)
    asking = asyncio.create_task(one.hub.emit_with_ack(Target.user("ada"), NEWS, options))
    await answer(*clients)
    await clock.advance(1.0 + MARGIN)

    result = await asking

    assert (result.expected, result.received, result.timed_out) == (2, 1, True)


@pytest.mark.parametrize("keeps", [0, 3], ids=["no history", "history"])
async def test_who_is_at_a_node_that_never_answers_is_named_all_the_same(
    one, two, bus, clock, keeps
):
    """The state has said whose connections they are."""
    ada, ben = await one.connect("ada"), await two.connect("ben")
    await one.hub.create_room("r", RoomOptions(history_size=keeps))
    for client in (ada, ben):
        await one.hub.join("r", client.id)
    bus.deaf.add("eyewall:node:n1")  # its answers are lost
    asking = [
        asyncio.create_task(one.hub.emit_with_ack(target, NEWS, AckOptions(timeout=1.0)))
        for target in (Target.room("r"), Target.user("ben"), Target.conn(ben.id))
    ]
    await answer(ada, ben)
    await clock.advance(1.0 + MARGIN)

    room, user, conn = [await one for one in asking]

    assert room.acked == (Acker("ada", ada.id),)
    assert room.silent == user.silent == (Acker("ben", ben.id),)
    assert conn.silent == (Acker(None, ben.id),)


@pytest.mark.parametrize("answers", [True, False])
async def test_an_ack_is_of_the_user_whom_the_message_was_written_to(one, two, clock, answers):
    """Also where the connection is another user's by the time of the answer, or of its end."""
    ada = await two.connect("ada")
    await one.hub.join("r", ada.id)
    targets = (Target.room("r"), Target.conn(ada.id))
    asking = [
        asyncio.create_task(one.hub.emit_with_ack(target, NEWS, AckOptions(timeout=1.0)))
        for target in targets
    ]
    await settle()
    messages = ada.heard()

    two.hub.set_meta(ada.id, user_id="ben")
    for message in messages if answers else ():
        ada.ack(message)
    await settle()
    await clock.advance(1.0 + MARGIN)

    for result in [await each for each in asking]:
        named = result.acked if answers else result.silent
        assert named == (Acker("ada", ada.id),)


async def test_a_node_of_a_release_that_names_nobody_still_counts(one, two):
    async def answer_without_names(header, payload):
        return [{"conn": conn_id, "tries": 1, "took": 0.1} for conn_id in header["conns"]]

    ada = await two.connect("ada")
    await one.hub.join("r", ada.id)
    two.parts.cluster.on_request(raw_kind("deliver"), answer_without_names)

    for target in (Target.user("ada"), Target.room("r")):
        result = await finished(one.hub.emit_with_ack(target, NEWS))
        assert (result.received, result.acked) == (1, (Acker("ada", ada.id),))


async def test_an_answer_fits_whatever_the_clients_say(one, two):
    """One page of clients that explain themselves at length must not cost it its answer."""
    name = "🫩" * 190
    clients = [await two.connect(name) for _ in range(400)]
    sending = asyncio.create_task(one.hub.send_to_user(name, NEWS, ACKED))
    await settle()
    for client in clients:
        client.nack(client.heard()[0], "🫩" * 1000)
    await settle()

    report = await finished(sending)

    assert (report.failed, report.unknown) == (400, 0)
    assert set(report.refused) == {Acker(name, client.id) for client in clients}


async def test_a_node_gets_time_for_all_its_tries(one, two, clock):
    ada = await two.connect("ada")
    options = SendOptions(require_ack=True, ack_timeout=10.0, retry_max=1, retry_backoff=5.0)
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, options))
    await clock.advance(24.0)

    await answer(ada)

    assert (await sending).success == 1


async def test_a_bus_that_is_away_leaves_the_outcomes_of_this_node(one, two, bus, clock):
    here, _ = await one.connect("ada"), await two.connect("ada")
    bus.away = True
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, ACKED))

    await answer(here)

    report = await finished(sending)
    assert (report.success, report.unknown) == (1, 1)


@pytest.mark.parametrize(
    "answered",
    [None, 5, {}, [5], [{}], [{"conn": "x"}], [{"conn": "x", "tries": "y", "took": 0}], []],
    ids=repr,
)
async def test_an_answer_that_makes_no_sense_is_none(one, two, answered):
    async def nonsense(header, payload):
        return answered

    ada = await two.connect("ada")
    two.parts.cluster.on_request(raw_kind("deliver"), nonsense)

    report = await finished(one.hub.send_to_user("ada", NEWS, ACKED))

    assert report.unknown == 1
    assert report.reports[0].target == ada.id


async def test_a_node_that_fails_is_unknown(one, two):
    async def fails(header, payload):
        raise RuntimeError("secret")

    await two.connect("ada")
    two.parts.cluster.on_request(raw_kind("deliver"), fails)

    report = await finished(one.hub.send_to_user("ada", NEWS, ACKED))

    assert report.unknown == 1
    assert "secret" not in str(report.reports[0].error)


async def test_failures_are_told_where_the_message_was_sent_and_nowhere_else(one, two, clock):
    here, there = [], []
    one.hub.on_timeout(here.append)
    two.hub.on_timeout(there.append)
    await two.connect("ada")
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, ACKED))
    await clock.advance(3.0)
    await sending

    assert [failure.recipient for failure in here] == ["ada"]
    assert there == []


async def test_what_a_client_says_travels_only_when_it_was_asked_for(one, two, bus):
    """One client's long answers must not cost the others of its node theirs."""
    ada = await two.connect("ada")
    long = "x" * 1000
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, ACKED))
    await settle()
    ada.ack(ada.heard()[0], long)
    await settle()
    assert (await sending).success == 1
    assert not any(long.encode() in payload for _, payload in bus.published)

    asking = asyncio.create_task(one.hub.request(ada.id, NEWS))
    await settle()
    ada.ack(ada.heard()[0], long)
    await settle()
    assert await asking == long


async def test_many_connections_are_asked_for_in_pages(one, two, bus, monkeypatch):
    monkeypatch.setattr(acked, "CONNECTIONS_PER_REQUEST", 2)
    clients = [await two.connect("ada") for _ in range(5)]
    bus.published.clear()
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, ACKED))
    await settle()
    assert len(bus.published) == 3

    await answer(*clients)

    report = await sending
    assert report.success == 5
    assert {r.target for r in report.reports} == {client.id for client in clients}
    assert CONNECTIONS_PER_REQUEST == 1000


async def test_who_gives_up_leaves_nothing_waiting(one, two, clock):
    here, _ = await one.connect("ada"), await two.connect("ada")
    timers = len(clock.timers)
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, ACKED))
    await settle()

    sending.cancel()
    await settle()

    assert one.hub.pending_acks(here.id) == []
    assert one.parts.cluster._requests == {}
    await clock.advance(10)
    assert len(clock.timers) == timers


async def test_a_connection_that_went_on_the_way_is_reported(one, two):
    ada = await two.connect("ada")
    sending = asyncio.create_task(one.hub.send_to_user("ada", NEWS, ACKED))
    two.parts.connections.end(ada.conn, "normal")

    report = await finished(sending)

    assert report.failed == 1


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"conns": [], "p": 1, "plan": [1], "result": False},
        {"conns": "x", "p": 1, "plan": [1, 0, 0, None], "result": False},
        {"conns": [], "p": 7, "plan": [1, 0, 0, None], "result": False},
    ],
    ids=repr,
)
async def test_a_question_that_makes_no_sense_is_refused(one, two, header):
    with pytest.raises(Unavailable):
        await one.parts.cluster.request(
            "n2", raw("deliver", header), b'{"id":"1","topic":"t","ack":true}'
        )


async def test_ten_thousand_recipients_cost_one_timer_and_no_task_each(make_node):
    """They wait together: the answer of one is neither before nor behind another's."""
    node = await make_node()
    clients = []
    meta = ConnMeta(user_id="ada")
    for _ in range(10_000):
        link = node.link()
        await node.transport_events.open(
            link, meta, node.transport_events.reserve(None), session=False
        )
        clients.append(link.owner)
    timers, tasks = len(node.clock.timers), len(asyncio.all_tasks())

    options = AckOptions(timeout=5.0)
    news = Message("news", id="m1")
    waiting = asyncio.create_task(node.hub.emit_with_ack(Target.user("ada"), news, options))
    await settle()
    more_timers = len(node.clock.timers) - timers
    more_tasks = len(asyncio.all_tasks()) - tasks
    for conn in clients[:9_999]:
        node.transport_events.received(
            conn.link, b'{"topic":"news","event":"ack","ref":"m1"}', binary=False
        )
    await node.advance(5.0)
    result = await waiting

    assert (result.expected, result.received, result.timed_out) == (10_000, 9_999, True)
    assert more_timers == 1
    assert more_tasks <= 3
