"""api.md, "Hub": messaging, its reports and its failure handlers, on one node."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from eyewall import (
    ConnectionClosed,
    DeliveryStatus,
    DropPolicy,
    FailureReason,
    Message,
    Misuse,
    Priority,
    QueueConfig,
    RetryPolicy,
    SendOptions,
    Target,
    UserId,
    UserOffline,
    Where,
)
from tests.entrypoints.house import ADA, BEN, CY, NEWS, heard
from tests.entrypoints.wire import WITHIN, eventually, peer, raw_peer, running

pytestmark = pytest.mark.usefixtures("transport")

# --- to many


async def test_broadcast_reaches_every_connection_and_counts_them(house):
    clients = [await house.come("ada"), await house.come("ben"), await house.come()]

    assert await house.hub.broadcast("news", "flash", {"n": 1}) == 3
    for client in clients:
        message = await client.receive()
        assert (message["topic"], message["event"], message["data"]) == ("news", "flash", {"n": 1})


async def test_a_room_is_reached_under_any_topic(house):
    hub, one, two = house.hub, await house.come("ada"), await house.come("ben")
    await hub.join("r", one.conn_id)

    assert await hub.broadcast_room("r", "news", "flash", 1) == 1
    assert await hub.broadcast_room("unknown", "news", "flash", 1) == 0
    assert await hub.emit_to_room("r", NEWS) == 1
    assert await heard(one, two) == [2, 0]


async def test_some_of_a_room_can_be_left_out(house):
    hub = house.hub
    one, two, three = [await house.come(name) for name in ("ada", "ben", "cy")]
    for client in (one, two, three):
        await hub.join("r", client.conn_id)

    assert await hub.emit_to_room_except("r", [one.conn_id, three.conn_id, "nobody"], NEWS) == 1
    assert await heard(one, two, three) == [0, 1, 0]


async def test_a_filter_is_a_callable_on_the_meta(house):
    one, two = await house.come("ada", roles="staff"), await house.come("ben")

    assert await house.hub.broadcast_with_filter(NEWS, lambda meta: "staff" in meta.roles) == 1
    assert await heard(one, two) == [1, 0]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (Where(tags=["red"]), [1, 1, 0]),
        (Where(roles=["staff"]), [1, 0, 0]),
        (Where(user_ids=[BEN, CY]), [0, 1, 1]),
        (Where(attributes={"team": "a"}), [1, 0, 1]),
        (Where(tags=["red"], attributes={"team": "a"}), [1, 0, 0]),
        (Where(tags=["nothing"]), [0, 0, 0]),
    ],
    ids=lambda value: "" if isinstance(value, list) else None,
)
async def test_a_filter_may_be_a_where(house, where, found):
    clients = [
        await house.come("ada", tags="red", roles="staff", team="a"),
        await house.come("ben", tags="red blue"),
        await house.come("cy", team="a"),
    ]

    assert await house.hub.broadcast_with_filter(NEWS, where) == sum(found)
    assert await heard(*clients) == found


# --- to one


async def test_sending_to_a_connection_reports(house):
    client = await house.come("ada")

    sent = await house.hub.send_to_conn(client.conn_id, "news", "flash", 1)
    lost = await house.hub.send_to_conn("nobody", "news", "flash", 1)
    text = await house.hub.send_text_to_conn(client.conn_id, "raw")

    assert (sent.target, sent.status, sent.error) == (client.conn_id, DeliveryStatus.OK, None)
    assert sent.attempts == 1
    assert (lost.target, lost.status) == ("nobody", DeliveryStatus.FAILED)
    assert isinstance(lost.error, ConnectionClosed)
    assert text is None or text.status is DeliveryStatus.OK
    assert (await client.receive())["data"] == 1
    assert await client.receive_frame() == "raw"


async def test_sending_to_a_user_reports_each_connection(house):
    one, two = await house.come("ada"), await house.come("ada")

    report = await house.hub.send_to_user(ADA, NEWS)

    assert (report.total, report.success) == (2, 2)
    assert (report.dropped, report.failed, report.stored) == (0, 0, 0)
    assert (report.forwarded, report.unknown) == (0, 0)
    assert {r.target for r in report.reports} == {one.conn_id, two.conn_id}
    assert all(r.status is DeliveryStatus.OK for r in report.reports)
    assert await heard(one, two) == [1, 1]


async def test_sending_to_an_absent_user_reports_and_does_not_raise(house):
    failures = []
    house.hub.on_user_offline(failures.append)

    report = await house.hub.send_to_user(ADA, NEWS)

    assert (report.total, report.failed, report.success) == (1, 1, 0)
    (one,) = report.reports
    assert one.status is DeliveryStatus.FAILED
    assert isinstance(one.error, UserOffline)
    (failure,) = failures
    assert failure.reason is FailureReason.USER_OFFLINE
    assert failure.recipient == "ada"
    assert failure.message.topic == "news"


async def test_sending_to_several_users_adds_up(house):
    one, two = await house.come("ada"), await house.come("ben")

    report = await house.hub.send_to_users([ADA, BEN, CY], NEWS)

    assert (report.total, report.success, report.failed) == (3, 2, 1)
    assert await heard(one, two) == [1, 1]


# --- failures


@contextlib.asynccontextmanager
async def stalled(policy: DropPolicy):
    """A server whose one client does not read, and the failures that it tells."""
    queue = QueueConfig(size=3, drop_policy=policy)
    async with running(queue=queue) as server:
        specific, general = [], []
        server.hub.on_queue_full(specific.append)
        server.hub.on_send_failure(general.append)
        async with raw_peer(server) as client:
            (conn_id,) = await eventually(server.hub.connection_ids)
            yield server.hub, client, conn_id, specific, general


@pytest.mark.parametrize("policy", list(DropPolicy))
async def test_what_does_not_fit_is_counted_and_reported(policy):
    """Under every policy, disconnecting too."""
    async with stalled(policy) as (hub, _, conn_id, specific, general):
        async with asyncio.timeout(WITHIN):
            while not hub.stats().drops:
                report = await hub.send_to_conn(conn_id, "big", "message", "x" * 500_000)
                await asyncio.sleep(0)
        await eventually(lambda: specific)

        assert specific[0].reason is FailureReason.QUEUE_FULL
        assert specific[0].recipient == conn_id
        assert specific[0].message.topic == "big"
        assert general == specific
        if policy is not DropPolicy.DROP_OLDEST:
            assert report.status in {DeliveryStatus.DROPPED, DeliveryStatus.FAILED}


async def test_a_full_queue_in_a_fan_out_is_told_as_broadcast_full():
    async with stalled(DropPolicy.DROP_NEWEST) as (hub, _, _id, specific, _general):
        async with asyncio.timeout(WITHIN):
            while not specific:
                await hub.broadcast("big", "message", "x" * 500_000)
                await asyncio.sleep(0)

        assert specific[0].reason is FailureReason.BROADCAST_FULL


async def test_a_higher_priority_overtakes_in_a_stalled_queue():
    queue = QueueConfig(size=100, max_bytes=1 << 28)
    async with running(queue=queue) as server, raw_peer(server) as client:
        (conn_id,) = await eventually(server.hub.connection_ids)
        for _ in range(30):
            await server.hub.send_to_conn(conn_id, "filler", "message", "x" * 500_000)
        for name in ("LOW", "NORMAL", "HIGH"):
            message = Message(name.lower(), priority=Priority[name])
            await server.hub.broadcast_with_filter(message, lambda meta: True)

        topics = []
        while "low" not in topics or "normal" not in topics:
            topics.append((await client.read_envelope())["topic"])

    order = [topic for topic in topics if topic != "filler"]
    assert order == ["high", "normal", "low"]
    assert topics.index("high") < len(topics) - 3, "it overtook"


async def test_the_specific_handler_runs_first_and_none_can_break_delivery(house):
    order = []

    async def specific(failure):
        order.append("specific")
        raise RuntimeError("broken")

    def general(failure):
        order.append("general")
        raise RuntimeError("broken too")

    assert house.hub.on_user_offline(specific) is specific
    house.hub.on_send_failure(general)

    report = await house.hub.send_to_user(ADA, NEWS)

    assert report.failed == 1
    assert order == ["specific", "general"], "they have run when the method returns"
    assert house.hub.remove_hook(specific) in {True, None}
    house.hub.remove_hook(general)
    await house.hub.send_to_user(ADA, NEWS)
    assert order == ["specific", "general"]


async def test_the_failure_of_a_closed_connection(house):
    failures = []
    house.hub.on_connection_error(failures.append)

    await house.hub.send_to_conn("nobody", "news", "flash", 1)

    (failure,) = failures
    assert failure.reason is FailureReason.CONN_CLOSED
    assert failure.recipient == "nobody"
    assert isinstance(failure.error, ConnectionClosed)


# --- order


async def test_messages_leave_in_the_order_in_which_they_were_sent(house):
    """Room messages and direct ones alike."""
    hub, client = house.hub, await house.come("ada")
    await hub.join("r", client.conn_id)
    for n in range(0, 300, 3):
        await hub.broadcast("a", "message", n)
        await hub.send_to_conn(client.conn_id, "b", "message", n + 1)
        await hub.emit_to_room("r", Message("c", data=n + 2))

    assert [(await client.receive())["data"] for _ in range(300)] == list(range(300))


async def test_a_payload_that_json_cant_hold_is_our_misuse(house):
    client = await house.come("ada")

    with pytest.raises(Misuse):
        await house.hub.send_to_conn(client.conn_id, "news", "message", object())
    with pytest.raises(Misuse):
        await house.hub.broadcast("news", "message", {"a": {1, object()}})
    assert await client.before_fence() == []


async def test_user_ids_are_just_strings(house):
    await house.come("ada")

    assert (await house.hub.send_to_user("ada", NEWS)).success == 1
    assert UserId("ada") == "ada"


async def test_a_peer_that_is_gone_is_no_recipient(house):
    async with peer(house.server, query="?name=ada"):
        pass
    await eventually(lambda: not house.hub.connection_ids())

    assert await house.hub.broadcast("news", "message", 1) == 0
    assert (await house.hub.send_to_user(ADA, NEWS)).failed == 1


@pytest.mark.parametrize("wrong", [{"require_ack": True}, RetryPolicy()])
async def test_options_of_the_wrong_kind_are_named_before_anything_is_sent(house, wrong):
    client, hub = await house.come("ada"), house.hub

    with pytest.raises(ValueError, match="options must be a SendOptions"):
        await hub.send_to_user(ADA, NEWS, wrong)
    with pytest.raises(ValueError, match="options must be a SendOptions"):
        await hub.send_to_users([ADA], NEWS, wrong)
    with pytest.raises(ValueError, match="options must be a SendOptions"):
        await hub.send_to_user_with_retry(ADA, NEWS, None, wrong)
    with pytest.raises(ValueError, match="options must be an AckOptions"):
        await hub.emit_with_ack(Target.user(ADA), NEWS, wrong)
    with pytest.raises(ValueError, match="policy must be a RetryPolicy"):
        await hub.send_to_user_with_retry(ADA, NEWS, SendOptions())
    with pytest.raises(ValueError, match="a message must be a Message"):
        await hub.send_to_user_with_retry(ADA, "hello")

    assert await client.before_fence() == []


async def test_retries_of_a_message_with_an_empty_id_have_one_id_too(house):
    client = await house.come("ada")
    policy = RetryPolicy(max_retries=1, base_delay=0)
    options = SendOptions(require_ack=True, ack_timeout=0.05)

    await house.hub.send_to_user_with_retry(ADA, Message("news", id=""), policy, options)

    first, second = await client.receive(), await client.receive()
    assert first["id"]
    assert first["id"] == second["id"]
