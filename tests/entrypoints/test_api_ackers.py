"""api.md, "Results": who has acked, who has refused, and of whom no answer has come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from eyewall import (
    Acker,
    AckOptions,
    AckTimeout,
    DeliveryStatus,
    RetryPolicy,
    RoomOptions,
    SendOptions,
    Server,
    Target,
)
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.testing import TestHub
from tests.entrypoints.house import ADA, BEN, CY, NEWS, ack, cluster, open_house
from tests.entrypoints.wire import UNIT, WITHIN, Peer, eventually, peer, soon

SHORT = AckOptions(timeout=0.2 * UNIT)
LONG = AckOptions(timeout=WITHIN)
ALL = AckOptions(timeout=WITHIN, require_all=True)
ACKED = SendOptions(require_ack=True, ack_timeout=WITHIN)


def started(work: Awaitable[Any]) -> asyncio.Future[Any]:
    return asyncio.ensure_future(work)


def acker(name: str | None, client: Peer) -> Acker:
    return Acker(name, client.conn_id)


@pytest.mark.parametrize("keeps", [0, 5], ids=["no history", "history"])
async def test_a_room_over_two_nodes_names_everybody(keeps):
    async with (
        cluster() as pair,
        peer(pair.there, query="?name=cy") as cy,
        peer(pair.here, query="?name=ben") as second,
        peer(pair.there) as nobody,
    ):
        await pair.here.hub.create_room("r", RoomOptions(history_size=keeps))
        for client in (pair.ada, pair.ben, cy, second, nobody):
            await client.join("r")
        emitting = started(pair.here.hub.emit_with_ack(Target.room("r"), NEWS, SHORT))
        await ack(pair.ada)
        await ack(pair.ben, nack="not now")
        await ack(nobody)

        result = await soon(emitting)

        assert set(result.acked) == {acker("ada", pair.ada), acker(None, nobody)}
        assert result.refused == (acker("ben", pair.ben),)
        assert set(result.silent) == {acker("cy", cy), acker("ben", second)}
        assert (result.expected, result.received, result.nacked) == (5, 2, 1)
        assert result.timed_out is True


async def test_users_and_connections_are_named_whichever_node_has_them(pair):
    for target, name, client in (
        (Target.conn(pair.ben.conn_id), "ben", pair.ben),
        (Target.user(BEN), "ben", pair.ben),
        (Target.conn(pair.ada.conn_id), "ada", pair.ada),
        (Target.user(ADA), "ada", pair.ada),
    ):
        emitting = started(pair.here.hub.emit_with_ack(target, NEWS, LONG))
        await ack(client)

        assert (await soon(emitting)).acked == (acker(name, client),)


async def test_each_device_is_named_and_an_ack_that_comes_twice_counts_once(house):
    one, two = await house.come("ada"), await house.come("ada")
    emitting = started(house.hub.emit_with_ack(Target.user(ADA), NEWS, LONG))
    ref = await ack(one)
    await one.send("news", {"message_id": ref, "status": "ok"}, event="ack")
    await one.send("news", {"message_id": ref, "status": "nack"}, event="ack")
    await one.before_fence()
    await ack(two)

    result = await soon(emitting)

    assert set(result.acked) == {acker("ada", one), acker("ada", two)}
    assert (result.refused, result.silent, result.received) == ((), (), 2)


async def test_who_leaves_meanwhile_is_named(pair):
    """The end of a connection settles it, and is no time-out; leaving the room does not take
    the message back."""
    async with peer(pair.there, query="?name=cy") as cy:
        for client in (pair.ada, pair.ben, cy):
            await client.join("r")
        emitting = started(pair.here.hub.emit_with_ack(Target.room("r"), NEWS, ALL))
        for client in (pair.ada, cy):
            await client.receive()
        await cy.socket.close()
        await pair.ada.request("system:leave", {"room": "r"})
        (waits,) = pair.here.hub.pending_acks(pair.ada.conn_id)
        await pair.ada.send("news", event="ack", ref=waits.message.id)
        await ack(pair.ben)

        result = await soon(emitting)

        assert set(result.acked) == {acker("ada", pair.ada), acker("ben", pair.ben)}
        assert result.silent == (acker("cy", cy),)
        assert (result.expected, result.timed_out) == (3, False)
        assert waits.user_id == "ada"


async def test_who_is_not_there_is_named_as_far_as_that_is_known(house):
    """It is known at once, and no time-out: ``require_all`` raises nothing."""
    user = await house.hub.emit_with_ack(Target.user(CY), NEWS, ALL)
    conn = await house.hub.emit_with_ack(Target.conn("nobody"), NEWS, ALL)
    room = await house.hub.emit_with_ack(Target.room("nowhere"), NEWS, ALL)

    assert (user.expected, user.silent) == (1, (Acker("cy", None),))
    assert (conn.expected, conn.silent) == (1, (Acker(None, "nobody"),))
    assert (room.expected, room.acked, room.refused, room.silent) == (0, (), (), ())


async def test_a_server_that_does_not_run_names_whom_it_did_not_reach():
    hub = Server().hub

    result = await hub.emit_with_ack(Target.user(CY), NEWS)
    report = await hub.send_to_users([CY], NEWS, ACKED)

    assert result.silent == report.silent == (Acker("cy", None),)


async def test_who_is_missing_is_in_the_error_too(house):
    one, two = await house.come("ada"), await house.come("ada")
    every = AckOptions(timeout=0.2 * UNIT, require_all=True)
    emitting = started(house.hub.emit_with_ack(Target.user(ADA), NEWS, every))
    await ack(one)

    with pytest.raises(AckTimeout, match="1 of 2") as raised:
        await soon(emitting)

    assert raised.value.result.acked == (acker("ada", one),)
    assert raised.value.result.silent == (acker("ada", two),)
    assert "ada" not in str(raised.value), "it may be told to a client"


async def test_the_reports_of_direct_sends_name_them(pair):
    async with peer(pair.there, query="?name=ada") as second:
        options = SendOptions(require_ack=True, ack_timeout=0.2 * UNIT)
        sending = started(pair.here.hub.send_to_users([ADA, BEN, CY], NEWS, options))
        await ack(second)
        await ack(pair.ben, nack="no")

        report = await soon(sending)

        assert report.acked == (acker("ada", second),)
        assert report.refused == (acker("ben", pair.ben),)
        assert set(report.silent) == {acker("ada", pair.ada), Acker("cy", None)}
        by_target = {one.target: (one.user_id, one.conn_id, one.acked) for one in report.reports}
        assert by_target == {
            pair.ada.conn_id: ("ada", pair.ada.conn_id, False),
            second.conn_id: ("ada", second.conn_id, True),
            pair.ben.conn_id: ("ben", pair.ben.conn_id, False),
            "cy": ("cy", None, False),
        }


async def test_without_an_ack_a_report_says_who_it_was_and_nothing_of_an_answer(pair):
    batch = await pair.here.hub.send_to_users([ADA, BEN, CY], NEWS)
    one = await pair.here.hub.send_to_conn(pair.ada.conn_id, "news")
    text = await pair.here.hub.send_text_to_conn(pair.ada.conn_id, "news")
    lost = await pair.here.hub.send_to_conn("nobody", "news")

    assert [(r.user_id, r.conn_id) for r in batch.reports] == [
        ("ada", pair.ada.conn_id),
        ("ben", pair.ben.conn_id),
        ("cy", None),
    ]
    assert (one.user_id, text.user_id, lost.user_id) == ("ada", "ada", None)
    assert {r.acked for r in (*batch.reports, one, text, lost)} == {None}
    assert (batch.acked, batch.refused, batch.silent) == ((), (), ())


async def test_for_whom_it_is_stored_is_silent_so_far():
    async with open_house(offline=MemoryOffline()) as house:
        store = SendOptions(offline="store", ack_timeout=0.2 * UNIT)
        client = await house.come("ada")
        report = await house.hub.send_to_users([ADA, BEN], NEWS, store)

        assert report.stored == 2
        assert set(report.silent) == {acker("ada", client), Acker("ben", None)}
        assert {one.status for one in report.reports} == {DeliveryStatus.STORED}

        back = await house.come("ben")
        emitting = started(house.hub.emit_with_ack(Target.user(BEN), NEWS, LONG))
        assert await ack(back) != await ack(back), "what was stored, and what is new"
        assert (await soon(emitting)).acked == (acker("ben", back),)


async def test_a_result_of_many_tries_has_the_last_report_of_each(house):
    one, two = await house.come("ada"), await house.come("ada")
    policy = RetryPolicy(max_retries=1, base_delay=0.01)
    options = SendOptions(require_ack=True, ack_timeout=0.3 * UNIT)
    sending = started(house.hub.send_to_user_with_retry(ADA, NEWS, policy, options))
    await ack(one)
    await two.receive()
    await ack(two, nack="busy")

    result = await soon(sending)

    assert [(r.user_id, r.conn_id, r.acked) for r in result.reports] == [
        ("ada", one.conn_id, True),
        ("ada", two.conn_id, False),
    ]
    assert result.total_retries == 1


async def test_who_came_between_two_tries_is_not_said_to_be_away(house):
    policy = RetryPolicy(max_retries=5, base_delay=0.05 * UNIT, retryable=["user_offline"])
    sending = started(house.hub.send_to_user_with_retry(ADA, NEWS, policy, ACKED))
    offline: list[object] = []
    house.hub.on_user_offline(offline.append)
    await eventually(lambda: offline)
    client = await house.come("ada")
    await ack(client)

    result = await soon(sending)

    assert [report.acker for report in result.reports] == [acker("ada", client)]


async def test_whose_message_it_was_is_named_when_the_connection_has_changed_hands(house):
    client = await house.come("ada")
    sending = started(house.hub.send_to_user(ADA, NEWS, ACKED))
    await client.receive()
    house.hub.set_meta(client.conn_id, user_id="ben")

    assert (await soon(sending)).silent == (acker("ada", client),)


async def test_the_test_kit_names_them():
    async with TestHub(Server(client_commands=True)) as th:
        alice, bob = await th.connect("alice"), await th.connect("bob")
        await alice.join("lab")
        await bob.join("lab")
        emitting = started(th.hub.emit_with_ack(Target.room("lab"), NEWS))
        await alice.ack(await alice.receive())
        th.advance(5)

        result = await emitting

        assert result.acked == (Acker("alice", alice.id),)
        assert result.silent == (Acker("bob", bob.id),)
