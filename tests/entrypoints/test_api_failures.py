"""api.md, "Failures": every reason is caused here, and told to the handlers that it belongs to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from eyewall import (
    DropPolicy,
    FailureReason,
    HeartbeatConfig,
    MemoryPubSub,
    MemoryState,
    Message,
    Misuse,
    Nacked,
    QueueConfig,
    SendOptions,
    Server,
    Unavailable,
)
from tests.entrypoints.house import ADA, NEWS, House, by_name
from tests.entrypoints.wire import UNIT, UPGRADE, WITHIN, eventually, peer, raw_peer, running

SPECIFIC = {
    "on_queue_full": {"QUEUE_FULL", "BROADCAST_FULL", "PENDING_FULL"},
    "on_user_offline": {"USER_OFFLINE"},
    "on_connection_error": {"CONN_ERROR", "CONN_CLOSED", "CHANNEL_CLOSED"},
    "on_timeout": {"TIMEOUT", "SEND_TIMEOUT", "ACK_TIMEOUT"},
}
ACKED = SendOptions(require_ack=True, ack_timeout=WITHIN)


class Cut(MemoryPubSub):
    """A bus that can be cut off: away for who publishes, or silent."""

    away = silent = False

    def publish(self, channel: str, payload: bytes) -> None:
        if self.away:
            raise Unavailable("the bus is away")
        if not self.silent:
            super().publish(channel, payload)

    def listeners(self, channel: str) -> int:
        return 9  # so that everything is published, as on a bus that does not count


class Stage:
    """A server whose failures are noted: which handler was told, and what."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.stack = stack
        self.told: list[tuple[str, Any]] = []
        self.server: Server

    async def open(self, **options: Any) -> House:
        self.server = await self.stack.enter_async_context(
            running(authenticator=by_name, **options)
        )
        for name in (*SPECIFIC, "on_send_failure"):
            self.watch(name)
        return House(self.server, self.stack)

    def watch(self, name: str) -> None:
        getattr(self.server.hub, name)(lambda failure: self.told.append((name, failure)))

    def reasons(self) -> set[str]:
        return {failure.reason.name for _, failure in self.told}


async def stalled(stage: Stage, **options: Any) -> str:
    """Open a server with one client, which does not read; returns its connection."""
    queue = QueueConfig(size=3, drop_policy=DropPolicy.DROP_NEWEST)
    house = await stage.open(queue=queue, **options)
    await stage.stack.enter_async_context(raw_peer(house.server))
    (conn_id,) = await eventually(house.hub.connection_ids)
    return str(conn_id)


async def until_told(stage: Stage, send: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(WITHIN):
        while not stage.told:
            await send()
            await asyncio.sleep(0)


# --- the causes


async def queue_full(stage: Stage) -> None:
    conn_id = await stalled(stage)
    hub = stage.server.hub
    await until_told(stage, lambda: hub.send_to_conn(conn_id, "big", "message", "x" * 500_000))


async def broadcast_full(stage: Stage) -> None:
    await stalled(stage)
    hub = stage.server.hub
    await until_told(stage, lambda: hub.broadcast("big", "message", "x" * 500_000))


async def pending_full(stage: Stage) -> None:
    house = await stage.open()
    await house.come("ada")
    sending = [asyncio.ensure_future(house.hub.send_to_user(ADA, NEWS, ACKED)) for _ in range(1025)]
    await eventually(lambda: stage.told)
    for each in sending:
        each.cancel()


async def user_offline(stage: Stage) -> None:
    house = await stage.open()
    report = await house.hub.send_to_user("nobody", NEWS)
    assert (report.total, report.failed) == (1, 1)


async def timeout(stage: Stage) -> None:
    house = await stage.open()
    await house.come("ada")
    options = SendOptions(require_ack=True, ack_timeout=WITHIN, ttl=0.1 * UNIT)
    report = await house.hub.send_to_user(ADA, NEWS, options)
    assert report.failed == 1


async def send_timeout(stage: Stage) -> None:
    """The client takes nothing for ``write_wait``."""
    conn_id = await stalled(stage, heartbeat=HeartbeatConfig(write_wait=0.2 * UNIT))
    for _ in range(12):
        await stage.server.hub.send_to_conn(conn_id, "big", "message", "x" * 500_000)
    await eventually(lambda: "SEND_TIMEOUT" in stage.reasons())
    stage.told = [told for told in stage.told if told[1].reason is FailureReason.SEND_TIMEOUT]


async def ack_timeout(stage: Stage) -> None:
    house = await stage.open()
    await house.come("ada")
    options = SendOptions(require_ack=True, ack_timeout=0.1 * UNIT)
    assert (await house.hub.send_to_user(ADA, NEWS, options)).failed == 1


async def nacked(stage: Stage) -> None:
    house = await stage.open()
    client = await house.come("ada")
    sending = asyncio.ensure_future(house.hub.send_to_user(ADA, NEWS, ACKED))
    message = await client.receive()
    await client.send(
        "news",
        {"message_id": message["id"], "status": "nack", "error": "no"},
        event="ack",
        ref=message["id"],
    )
    (report,) = (await sending).reports
    assert isinstance(report.error, Nacked)


async def conn_closed(stage: Stage) -> None:
    house = await stage.open()
    await house.hub.send_to_conn("nobody@nowhere", "news")


async def two_nodes(stage: Stage) -> tuple[House, Cut]:
    """Two servers on a bus that can be cut; ada is on the other one."""
    bus, state = Cut(), MemoryState()
    house = await stage.open(pubsub=bus, state=state)
    other = await stage.stack.enter_async_context(
        running(authenticator=by_name, pubsub=bus, state=state)
    )
    await House(other, stage.stack).come("ada")
    return house, bus


async def conn_error(stage: Stage) -> None:
    house, bus = await two_nodes(stage)
    bus.away = True
    report = await house.hub.send_to_user(ADA, NEWS)
    bus.away = False
    assert report.failed == 1


async def unknown(stage: Stage) -> None:
    house, bus = await two_nodes(stage)
    bus.silent = True
    options = SendOptions(require_ack=True, ack_timeout=0.1 * UNIT)
    report = await house.hub.send_to_user(ADA, NEWS, options)
    bus.silent = False
    assert report.unknown == 1


async def channel_closed(stage: Stage) -> None:
    house = await stage.open()
    await house.server.shutdown()
    report = await house.hub.send_to_user(ADA, NEWS)
    assert report.failed == 1


async def validation(stage: Stage) -> None:
    house = await stage.open()
    with pytest.raises(Misuse):
        await house.hub.send_to_user(ADA, Message("news", data=object()))
    await eventually(lambda: stage.told)


class NoPublishing:
    """Lets clients do all but publish to rooms."""

    def can_publish(self, meta: Any, topic: str, event: str) -> bool:
        return not topic.startswith("room:")

    def can_subscribe(self, meta: Any, room_id: str) -> bool:
        return True


async def permission(stage: Stage) -> None:
    house = await stage.open(client_commands=True, access_controller=NoPublishing())
    async with peer(house.server) as client:
        await client.join("lab")
        await client.send("system:publish", {"room": "lab", "data": 1})
        await eventually(lambda: stage.told)


CAUSES = {
    cause.__name__.upper(): cause
    for cause in (
        *(queue_full, broadcast_full, pending_full, user_offline, timeout, send_timeout),
        *(ack_timeout, nacked, conn_closed, conn_error, unknown, channel_closed),
        *(validation, permission),
    )
}


def test_every_reason_has_a_cause():
    assert set(CAUSES) == {reason.name for reason in FailureReason}


@pytest.mark.parametrize("reason", CAUSES)
async def test_what_causes_it_is_told_to_its_own_handlers_and_then_to_the_general(reason):
    async with contextlib.AsyncExitStack() as stack:
        stage = Stage(stack)

        await CAUSES[reason](stage)
        await eventually(lambda: "on_send_failure" in dict(stage.told))

        expected = [name for name, reasons in SPECIFIC.items() if reason in reasons]
        first = stage.told[: len(expected) + 1]
        assert [name for name, _ in first] == [*expected, "on_send_failure"]
        assert {failure.reason.name for _, failure in first} == {reason}
        assert all(failure.error is not None for _, failure in first)


async def test_a_handler_that_fails_changes_nothing():
    async with contextlib.AsyncExitStack() as stack:
        stage = Stage(stack)
        house = await stage.open()

        @house.hub.on_user_offline
        async def broken(failure: Any) -> None:
            raise RuntimeError("in the handler")

        report = await house.hub.send_to_user("nobody", NEWS)

        assert report.failed == 1
        assert [name for name, _ in stage.told] == ["on_user_offline", "on_send_failure"]


async def test_a_handler_that_was_taken_back_hears_nothing():
    async with contextlib.AsyncExitStack() as stack:
        stage = Stage(stack)
        house = await stage.open()
        heard: list[Any] = []
        house.hub.on_user_offline(heard.append)

        assert house.hub.remove_hook(heard.append)
        await house.hub.send_to_user("nobody", NEWS)

        assert heard == []


async def test_a_message_that_waits_too_long_for_its_reader_is_not_written():
    """Its time to live runs out in the queue of a client that does not read."""
    async with contextlib.AsyncExitStack() as stack:
        stage = Stage(stack)
        queue = QueueConfig(size=100, max_bytes=1 << 28)
        house = await stage.open(queue=queue)
        client = await stage.stack.enter_async_context(raw_peer(house.server))
        (conn_id,) = await eventually(house.hub.connection_ids)
        for _ in range(30):
            await house.hub.send_to_conn(conn_id, "filler", data="x" * 500_000)
        await house.hub.deliver(conn_id, Message("old"), SendOptions(ttl=0.05 * UNIT))
        await house.hub.send_to_conn(conn_id, "new")
        await asyncio.sleep(0.1 * UNIT)  # the time to live itself

        topics = []
        while "new" not in topics:
            topics.append((await client.read_envelope())["topic"])
        await eventually(lambda: stage.told)

        assert "old" not in topics
        assert [f.reason for _, f in stage.told] == [FailureReason.TIMEOUT] * 2


async def test_messages_to_a_member_that_has_reset_its_connection_are_told_and_not_counted():
    """The hub sends before it looks at the socket: no byte reaches the kernel."""
    async with contextlib.AsyncExitStack() as stack:
        stage = Stage(stack)
        hub = (await stage.open()).hub
        with socket.create_connection(("127.0.0.1", stage.server.port)) as member:
            lines = [f"{name}: {value}" for name, value in UPGRADE.items()]
            head = "\r\n".join(["GET /ws HTTP/1.1", "Host: localhost", *lines, "", ""])
            member.sendall(head.encode())
            (conn_id,) = await eventually(hub.connection_ids)
            await hub.join("lab", conn_id)
            await asyncio.sleep(0)  # what the join sends is written
            before = hub.stats().out_messages
            member.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert await hub.broadcast_room("lab", "said", data=1) == 1
        assert await hub.broadcast_room("lab", "said", data=2) == 1
        assert hub.stats().out_messages == before + 2
        await eventually(lambda: len(stage.told) >= 4)

        assert hub.stats().out_messages == before
        failures = [failure for name, failure in stage.told if name == "on_connection_error"]
        assert [(f.message.data, f.conn_id, f.recipient) for f in failures] == [
            (1, conn_id, "lab"),
            (2, conn_id, "lab"),
        ]
        assert {f.reason for f in failures} <= {
            FailureReason.CONN_ERROR,
            FailureReason.CONN_CLOSED,
        }
