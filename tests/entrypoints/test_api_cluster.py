"""api.md, "Hub": every awaited method means the whole cluster, whichever node is asked.

Two servers of one process that share a bus and a state.
"""

from __future__ import annotations

import asyncio

import pytest

from eyewall import (
    AckOptions,
    ConnectionClosed,
    DeliveryStatus,
    DisconnectReason,
    MemoryPubSub,
    Message,
    SendOptions,
    Target,
    Where,
)
from tests.entrypoints.house import ADA, BEN, CY, NEWS, ack, cluster
from tests.entrypoints.wire import UNIT, WITHIN, peer, running, soon

# --- what means this node


async def test_the_plain_methods_see_this_node(pair):
    hub = pair.here.hub

    assert hub.users() == ["ada"]
    assert hub.connection_ids() == [pair.ada.conn_id]
    assert hub.user_connections(BEN) == []
    assert hub.connection(pair.ben.conn_id) is None
    assert hub.find_by_tag("red") == [pair.ada.conn_id]
    assert hub.stats().connections == 1


async def test_a_callable_filter_means_this_node_and_a_where_the_cluster(pair):
    hub = pair.here.hub

    assert await hub.broadcast_with_filter(Message("mine"), lambda meta: True) == 1
    assert await hub.broadcast_with_filter(Message("all"), Where(tags=["red"])) == 1

    assert (await pair.ada.receive())["topic"] == "mine"
    assert (await pair.ada.receive())["topic"] == "all"
    assert (await pair.ben.receive())["topic"] == "all"


# --- fan-outs


async def test_a_broadcast_reaches_every_node_and_counts_its_own(pair):
    assert await pair.there.hub.broadcast("news", "flash", 1) == 1

    one, two = await pair.ada.expect("news", "flash"), await pair.ben.expect("news", "flash")
    assert one == two, "the same message, under the same id"


async def test_a_text_reaches_every_node(pair):
    assert await pair.here.hub.broadcast_text("hello") == 1

    assert await pair.ada.receive_frame() == await pair.ben.receive_frame() == "hello"


async def test_a_room_is_one_room_on_all_nodes(pair):
    await pair.ada.join("r")
    await pair.ben.join("r")

    assert await pair.here.hub.broadcast_room("r", "news", "message", 1) == 1
    assert (await pair.ben.expect("news"))["data"] == 1
    answer = await pair.ben.request("system:publish", {"room": "r", "data": 2})
    assert answer["delivered"] == 1, "the connections on this node"
    assert (await pair.ada.expect("room:r"))["data"] == 2
    assert await pair.there.hub.emit_to_room("r", Message("x", data=3)) == 1
    assert (await pair.ada.expect("x"))["data"] == 3


async def test_who_is_left_out_is_left_out_everywhere(pair):
    for client in (pair.ada, pair.ben):
        await client.join("r")
    hub = pair.here.hub

    assert await hub.emit_to_room_except("r", [pair.ben.conn_id], NEWS) == 1
    await hub.broadcast("end", "message", None)

    assert (await pair.ada.receive())["topic"] == "news"
    assert (await pair.ben.receive())["topic"] == "end"


async def test_what_is_published_after_a_join_arrives_from_anywhere(pair):
    await pair.ada.join("r")

    await pair.there.hub.broadcast_room("r", "news", "message", 1)

    assert (await pair.ada.expect("news"))["data"] == 1


async def test_a_room_that_nobody_has_here_is_quiet_here(pair):
    await pair.ada.join("r")
    await pair.there.hub.broadcast_room("r", "news", "message", 1)
    await pair.there.hub.broadcast("end", "message", None)

    assert (await pair.ben.receive())["topic"] == "end"


# --- to one


async def test_a_connection_of_another_node_is_reached(pair):
    hub = pair.here.hub

    report = await hub.send_to_conn(pair.ben.conn_id, "news", "flash", 1)
    await hub.send_text_to_conn(pair.ben.conn_id, "raw")
    lost = await hub.send_to_conn("nobody", "news", "flash", 1)

    assert report.status in {DeliveryStatus.FORWARDED, DeliveryStatus.OK}
    assert (await pair.ben.receive())["data"] == 1
    assert await pair.ben.receive_frame() == "raw"
    assert lost.status is DeliveryStatus.FAILED


async def test_a_user_of_another_node_is_reached_and_counts_as_forwarded(pair):
    report = await pair.here.hub.send_to_user(BEN, NEWS)

    assert (report.total, report.forwarded, report.success, report.failed) == (1, 1, 0, 0)
    assert report.reports[0].status is DeliveryStatus.FORWARDED
    assert (await pair.ben.receive())["topic"] == "news"


async def test_a_user_on_both_nodes_is_reached_on_both(pair):
    async with peer(pair.there, query="?name=ada") as second:
        report = await pair.here.hub.send_to_user(ADA, NEWS)

        assert (report.total, report.success, report.forwarded) == (2, 1, 1)
        assert (await pair.ada.receive())["id"] == (await second.receive())["id"]


async def test_a_user_of_no_node_is_offline(pair):
    failures = []
    pair.here.hub.on_user_offline(failures.append)

    report = await pair.here.hub.send_to_users([BEN, CY], NEWS)

    assert (report.total, report.forwarded, report.failed) == (2, 1, 1)
    assert [failure.recipient for failure in failures] == ["cy"]


async def test_an_ack_of_another_node_counts_like_one_of_this(pair):
    options = SendOptions(require_ack=True, ack_timeout=WITHIN)
    sending = asyncio.ensure_future(pair.here.hub.send_to_user(BEN, NEWS, options))
    await ack(pair.ben)

    report = await sending

    assert (report.total, report.success, report.forwarded) == (1, 1, 0)


async def test_emit_with_ack_means_every_node(pair):
    for client in (pair.ada, pair.ben):
        await client.join("r")
    for target, clients in (
        (Target.room("r"), [pair.ada, pair.ben]),
        (Target.user(BEN), [pair.ben]),
        (Target.conn(pair.ben.conn_id), [pair.ben]),
    ):
        emitting = asyncio.ensure_future(
            pair.here.hub.emit_with_ack(target, NEWS, AckOptions(timeout=WITHIN))
        )
        for client in clients:
            await ack(client)

        result = await soon(emitting)

        assert (result.expected, result.received) == (len(clients), len(clients))
        assert result.timed_out is False


async def test_silence_on_another_node_is_a_timeout(pair):
    result = await pair.here.hub.emit_with_ack(
        Target.user(BEN), NEWS, AckOptions(timeout=0.2 * UNIT)
    )

    assert (result.expected, result.received, result.timed_out) == (1, 0, True)


async def test_a_request_goes_to_any_node(pair):
    asking = asyncio.ensure_future(
        pair.here.hub.request(pair.ben.conn_id, Message("q"), timeout=WITHIN)
    )
    await ack(pair.ben, {"n": 42})

    assert await asking == {"n": 42}


async def test_a_request_to_nobody_anywhere_raises(pair):
    with pytest.raises(ConnectionClosed):
        await pair.here.hub.request("nobody", Message("q"))


# --- operations


async def test_users_and_connections_can_be_disconnected_from_anywhere(pair):
    async with peer(pair.here, query="?name=ben") as second:
        assert await pair.here.hub.disconnect_user(BEN, DisconnectReason.DISCONNECTED) == 2

        assert await pair.ben.closed() == (4503, "disconnected")
        assert await second.closed() == (4503, "disconnected")
    assert await pair.there.hub.disconnect_conn(pair.ada.conn_id, DisconnectReason.NORMAL) is True
    assert await pair.ada.closed() == (1000, "normal")
    assert await pair.there.hub.disconnect_conn(pair.ada.conn_id, DisconnectReason.NORMAL) is False


async def test_the_limit_of_a_user_is_the_clusters():
    async with (
        cluster(max_connections_per_user=1) as pair,
        peer(pair.there, query="?name=ada") as second,
    ):
        assert await pair.ada.closed() == (4501, "replaced")
        assert await second.before_fence() == []


async def test_a_node_that_shuts_down_in_order_is_out_at_once(pair):
    for client in (pair.ada, pair.ben):
        await client.join("r")

    await pair.there.shutdown(timeout=1)

    assert [member.user_id for member in await pair.here.hub.members("r")] == ["ada"]
    assert (await pair.here.hub.presence(BEN)).online is False
    assert (await pair.here.hub.send_to_user(BEN, NEWS)).failed == 1


async def test_clusters_with_other_channels_do_not_hear_each_other():
    pubsub = MemoryPubSub()
    async with (
        running(pubsub=pubsub, cluster_channel="one") as one,
        running(pubsub=pubsub, cluster_channel="two") as two,
        peer(one) as here,
        peer(two) as there,
    ):
        await one.hub.broadcast("news", "message", 1)
        await two.hub.broadcast("end", "message", None)

        assert (await here.receive())["topic"] == "news"
        assert (await there.receive())["topic"] == "end"


async def test_the_order_of_one_sender_holds_across_nodes(pair):
    await pair.ben.join("r")
    for n in range(200):
        await pair.here.hub.broadcast_room("r", "news", "message", n)

    assert [(await pair.ben.expect("news"))["data"] for _ in range(200)] == list(range(200))
