"""api.md, "Hub": messages that are to be acknowledged."""

from __future__ import annotations

import asyncio
import datetime

import pytest

from eyewall import (
    AckOptions,
    AckTimeout,
    ConnectionClosed,
    DisconnectReason,
    FailureReason,
    Message,
    Nacked,
    SendOptions,
    Target,
)
from tests.entrypoints.house import ADA, BEN, NEWS, ack
from tests.entrypoints.wire import UNIT, WITHIN, soon

pytestmark = pytest.mark.usefixtures("transport")

# --- with acks


async def test_an_ack_that_is_asked_for_is_awaited(house):
    client = await house.come("ada")
    sending = asyncio.ensure_future(
        house.hub.send_to_user(ADA, NEWS, SendOptions(require_ack=True, ack_timeout=WITHIN))
    )
    await ack(client)

    report = await sending

    assert (report.total, report.success) == (1, 1)


async def test_without_an_answer_the_report_says_failed(house):
    failures = []
    house.hub.on_timeout(failures.append)
    await house.come("ada")

    options = SendOptions(require_ack=True, ack_timeout=0.1 * UNIT)
    report = await house.hub.send_to_user(ADA, NEWS, options)

    assert (report.total, report.failed) == (1, 1)
    assert isinstance(report.reports[0].error, AckTimeout)
    assert [f.reason for f in failures] == [FailureReason.ACK_TIMEOUT]


async def test_retries_reuse_the_message_id(house):
    client = await house.come("ada")
    options = SendOptions(require_ack=True, ack_timeout=0.1 * UNIT, retry_max=5, retry_backoff=0.01)
    sending = asyncio.ensure_future(house.hub.send_to_user(ADA, NEWS, options))
    first, second = await client.receive(), await client.receive()
    await client.send("news", event="ack", ref=first["id"])

    report = await sending

    assert first == second
    assert report.success == 1
    assert report.reports[0].attempts >= 2


async def test_a_nack_is_final(house):
    client = await house.come("ada")
    options = SendOptions(require_ack=True, ack_timeout=WITHIN, retry_max=3)
    sending = asyncio.ensure_future(house.hub.send_to_user(ADA, NEWS, options))
    await ack(client, nack="no room")

    report = await sending

    assert (report.failed, report.reports[0].attempts) == (1, 1)
    assert isinstance(report.reports[0].error, Nacked)
    assert await client.before_fence() == []


async def test_one_slow_device_never_delays_the_others(house):
    """Acks of many are awaited together: one timeout, not one for each."""
    clients = [await house.come("ada") for _ in range(4)]
    emitting = asyncio.ensure_future(
        house.hub.emit_with_ack(Target.user(ADA), NEWS, AckOptions(timeout=0.4 * UNIT))
    )
    await ack(clients[0])
    await ack(clients[1], nack="no")
    began = asyncio.get_running_loop().time()

    result = await emitting

    assert asyncio.get_running_loop().time() - began < 0.9 * UNIT
    assert (result.expected, result.received, result.nacked) == (4, 1, 1)
    assert result.timed_out is True
    assert len(result.errors) == 3


async def test_emit_with_ack_to_a_room_and_to_a_connection(house):
    hub, one, two = house.hub, await house.come("ada"), await house.come("ben")
    for client in (one, two):
        await hub.join("r", client.conn_id)
    for target, clients in (
        (Target.room("r"), [one, two]),
        (Target.conn(one.conn_id), [one]),
        (Target.user(BEN), [two]),
    ):
        emitting = asyncio.ensure_future(hub.emit_with_ack(target, NEWS, AckOptions(timeout=60)))
        for client in clients:
            await ack(client)

        result = await soon(emitting)

        assert (result.expected, result.received) == (len(clients), len(clients))
        assert result.timed_out is False


async def test_require_all_raises(house):
    await house.come("ada")

    options = AckOptions(timeout=0.1 * UNIT, require_all=True)
    with pytest.raises(AckTimeout):
        await house.hub.emit_with_ack(Target.user(ADA), NEWS, options)


async def test_closing_settles_what_waits_at_once(house):
    failures = []
    house.hub.on_connection_error(failures.append)
    client = await house.come("ada")
    sending = asyncio.ensure_future(
        house.hub.send_to_user(ADA, NEWS, SendOptions(require_ack=True, ack_timeout=600))
    )
    await client.receive()
    await house.hub.disconnect_conn(client.conn_id, DisconnectReason.NORMAL)

    report = await soon(sending)

    assert report.failed == 1
    assert isinstance(report.reports[0].error, ConnectionClosed)
    assert [f.reason for f in failures] == [FailureReason.CONN_CLOSED]
    assert house.hub.pending_acks(client.conn_id) == []


async def test_times_may_be_timedeltas(house):
    await house.come("ada")
    short = datetime.timedelta(milliseconds=50)

    result = await house.hub.emit_with_ack(Target.user(ADA), NEWS, AckOptions(timeout=short))
    report = await house.hub.send_to_user(
        ADA, Message("other"), SendOptions(require_ack=True, ack_timeout=short)
    )

    assert result.timed_out
    assert report.failed == 1
