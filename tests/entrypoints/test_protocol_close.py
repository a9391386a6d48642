"""protocol.md, "Close codes": the code and the reason text of every way to end."""

from __future__ import annotations

import asyncio
import datetime
from datetime import UTC

import pytest

from eyewall import (
    ConnMeta,
    DisconnectReason,
    DropPolicy,
    HeartbeatConfig,
    QueueConfig,
    Server,
    UserId,
)
from tests.entrypoints.wire import (
    CLOSE,
    UNIT,
    WITHIN,
    eventually,
    frame,
    peer,
    peers,
    raw_peer,
    running,
)

pytestmark = pytest.mark.usefixtures("transport")

ADA = UserId("ada")

CODES = {
    DisconnectReason.NORMAL: (1000, "normal"),
    DisconnectReason.PROTOCOL_ERROR: (1002, "protocol_error"),
    DisconnectReason.INVALID_UTF8: (1007, "invalid_utf8"),
    DisconnectReason.POLICY_VIOLATION: (1008, "policy_violation"),
    DisconnectReason.MESSAGE_TOO_BIG: (1009, "message_too_big"),
    DisconnectReason.INTERNAL_ERROR: (1011, "internal_error"),
    DisconnectReason.SERVER_SHUTDOWN: (1012, "server_shutdown"),
    DisconnectReason.OVERLOADED: (1013, "overloaded"),
    DisconnectReason.TOKEN_EXPIRED: (4401, "token_expired"),
    DisconnectReason.HEARTBEAT_TIMEOUT: (4408, "heartbeat_timeout"),
    DisconnectReason.SLOW_CONSUMER: (4413, "slow_consumer"),
    DisconnectReason.REPLACED: (4501, "replaced"),
    DisconnectReason.DISCONNECTED: (4503, "disconnected"),
    DisconnectReason.AUTH_FAILED: (4504, "auth_failed"),
}

OTHERS = {
    DisconnectReason.CLIENT_CLOSED: 1000,
    DisconnectReason.CONNECTION_LOST: 1000,
    DisconnectReason.READ_ERROR: 1000,
    DisconnectReason.WRITE_ERROR: 1000,
    DisconnectReason.UNSUPPORTED_DATA: 1000,
}
"""They only tell hooks what happened."""


def recording(server: Server) -> list[DisconnectReason]:
    """The reasons that ``on_disconnect`` hooks get."""
    reasons: list[DisconnectReason] = []

    @server.hub.on_disconnect
    async def note(conn, reason):
        reasons.append(reason)

    return reasons


def expiring(**delta: float):
    """An authenticator whose tokens run out after this time."""

    def known(handshake):
        expires = datetime.datetime.now(UTC) + datetime.timedelta(**delta)
        return ConnMeta(user_id=ADA, expires_at=expires)

    return known


# --- what a handler or an operator asks for


def test_every_reason_has_its_code_on_this_page():
    assert set(CODES) | set(OTHERS) == set(DisconnectReason)


@pytest.mark.parametrize("reason", CODES, ids=str)
async def test_close_sends_the_code_and_the_text_of_its_reason(reason):
    server = Server()
    reasons = recording(server)
    async with running(server), peer(server) as client:
        await server.hub.connection(client.conn_id).close(reason)

        assert await client.closed() == CODES[reason]
        assert reasons == [reason]


@pytest.mark.parametrize("reason", OTHERS, ids=str)
async def test_reasons_without_a_code_of_their_own_send_1000(reason):
    """The hooks are still told the reason that was given."""
    server = Server()
    reasons = recording(server)
    async with running(server), peer(server) as client:
        await server.hub.disconnect_conn(client.conn_id, reason)

        code, _ = await client.closed()

        assert code == OTHERS[reason]
        assert reasons == [reason]


async def test_an_operator_who_disconnects_a_user_sends_4503():
    known = ConnMeta(user_id=ADA)
    async with (
        running(authenticator=lambda handshake: known) as server,
        peers(server, 2) as clients,
    ):
        assert await server.hub.disconnect_user(ADA, DisconnectReason.DISCONNECTED) == 2

        for client in clients:
            assert await client.closed() == (4503, "disconnected")


async def test_what_was_sent_before_a_close_arrives_before_it():
    """No loss by our own doing: answers and queued messages are written first."""
    server = Server()

    @server.on("bye")
    async def bye(ctx, msg):
        for n in range(100):
            await ctx.send("count", "message", n)
        await ctx.conn.close(DisconnectReason.DISCONNECTED)

    async with running(server), peer(server) as client:
        await client.send("bye")

        got = [(await client.expect("count")).get("data") for _ in range(100)]

        assert got == list(range(100))
        assert await client.closed() == (4503, "disconnected")


# --- 1000


@pytest.mark.parametrize(
    "payload", [b"", b"\x03\xe8", b"\x03\xe8bye", b"\x0f\xa0", b"\x03\xe9going"]
)
async def test_a_close_is_answered_by_a_close_and_the_end_of_the_connection(payload):
    server = Server()
    reasons = recording(server)
    async with running(server), raw_peer(server) as client:
        await client.write(frame(CLOSE, payload))

        answer = await client.read_frame()

        assert answer.opcode == CLOSE
        assert answer.payload[:2] in (payload[:2], b"\x03\xe8", b"")
        assert await client.ended() == b""
        assert reasons == [DisconnectReason.CLIENT_CLOSED]


async def test_a_cut_connection_is_told_to_hooks_as_lost():
    server = Server()
    reasons = recording(server)
    async with running(server):
        async with raw_peer(server):
            await eventually(server.hub.connection_ids)
        await eventually(lambda: reasons)

    assert reasons == [DisconnectReason.CONNECTION_LOST]


# --- 1012


async def test_draining_tells_everybody_when_to_come_back_and_closes_with_1012():
    async with running() as server, peers(server, 2) as clients, peer(server, session=False) as one:
        stopping = asyncio.ensure_future(server.shutdown(timeout=2 * UNIT))

        for client in (*clients, one):
            shutdown_notice = await client.expect("system:draining", "draining")
            assert shutdown_notice["data"]["reconnect_in"] >= 0
            assert shutdown_notice["id"]
            assert await client.closed() == (1012, "server_shutdown")
        await stopping


async def test_the_returns_are_spread_over_the_clients():
    """Not everybody comes back in the same instant."""
    async with running() as server, peers(server, 8) as clients:
        stopping = asyncio.ensure_future(server.shutdown(timeout=2 * UNIT))

        waits = {
            (await client.expect("system:draining", "draining"))["data"]["reconnect_in"]
            for client in clients
        }

        assert len(waits) == 8
        await stopping


async def test_a_running_handler_ends_and_is_answered_before_the_close():
    server = Server()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @server.on("work")
    async def work(ctx, msg):
        begun.set()
        await go_on.wait()
        return {"done": True}

    async with running(server), peer(server) as client:
        await client.send("work", id="w", ack=True)
        await begun.wait()
        stopping = asyncio.ensure_future(server.shutdown(timeout=5 * UNIT))
        await client.expect("system:draining", "draining")
        late = await client.refused("work")
        go_on.set()

        answer = await client.until(lambda m: m.get("ref") == "w")

        assert answer["data"]["done"] is True
        assert late["code"] == "overloaded"
        assert late["retry_after"] >= 0
        assert await client.closed() == (1012, "server_shutdown")
        await stopping


# --- the private codes


async def test_a_token_that_runs_out_ends_with_4401():
    server = Server(authenticator=expiring(seconds=0.2 * UNIT))
    reasons = recording(server)
    async with running(server), peer(server) as client:
        assert await client.closed() == (4401, "token_expired")
        assert reasons == [DisconnectReason.TOKEN_EXPIRED]


async def test_a_refreshed_token_keeps_the_connection():
    """``system:refresh`` works with the client's commands off, and moves the end."""
    lives = iter([0.3, 3600.0])

    def known(handshake):
        return expiring(seconds=next(lives) * UNIT)(handshake)

    async with running(authenticator=known) as server, peer(server) as client:
        before = server.hub.get_meta(client.conn_id).expires_at
        answer = await client.request("system:refresh", {"token": "new"})

        expires = datetime.datetime.fromisoformat(answer["expires_at"])
        assert expires > before
        await asyncio.sleep(0.5 * UNIT)  # past the end of the first token
        assert await client.before_fence() == []


async def test_silence_ends_with_4408():
    heartbeat = HeartbeatConfig(interval=0.05 * UNIT, pong_timeout=0.2 * UNIT)
    server = Server(heartbeat=heartbeat)
    reasons = recording(server)
    async with running(server), raw_peer(server) as client:
        assert (await client.read_until(CLOSE)).close == (4408, "heartbeat_timeout")
        assert reasons == [DisconnectReason.HEARTBEAT_TIMEOUT]


async def test_a_full_queue_ends_with_4413_where_the_policy_says_so():
    queue = QueueConfig(size=4, drop_policy=DropPolicy.DROP_AND_DISCONNECT)
    server = Server(queue=queue)
    reasons = recording(server)
    async with running(server), raw_peer(server):
        await eventually(server.hub.connection_ids)
        text = "x" * 1_000_000
        async with asyncio.timeout(WITHIN):
            while not reasons:
                await server.hub.broadcast("flood", "message", text)
                await asyncio.sleep(0)

    assert reasons == [DisconnectReason.SLOW_CONSUMER]


async def test_a_write_without_progress_ends_with_4413():
    heartbeat = HeartbeatConfig(write_wait=0.2 * UNIT)
    server = Server(heartbeat=heartbeat)
    reasons = recording(server)
    async with running(server), raw_peer(server):
        await eventually(server.hub.connection_ids)
        for _ in range(20):
            await server.hub.broadcast("flood", "message", "x" * 1_000_000)

        await eventually(lambda: reasons)

    assert reasons == [DisconnectReason.SLOW_CONSUMER]


async def test_a_slow_consumer_that_reads_on_finds_4413_at_the_end():
    queue = QueueConfig(size=2, drop_policy=DropPolicy.DROP_AND_DISCONNECT)
    server = Server(queue=queue)
    reasons = recording(server)
    async with running(server), raw_peer(server) as client:
        await eventually(server.hub.connection_ids)
        async with asyncio.timeout(WITHIN):
            while not reasons:
                await server.hub.broadcast("flood", "message", "x" * 1_000_000)
                await asyncio.sleep(0)

        assert (await client.read_until(CLOSE)).close == (4413, "slow_consumer")


async def test_the_oldest_of_a_user_has_to_go_with_4501():
    options = {"max_connections_per_user": 2, "authenticator": lambda h: ConnMeta(user_id=ADA)}
    async with running(**options) as server, peers(server, 3) as (oldest, second, third):
        assert await oldest.closed() == (4501, "replaced")
        assert await second.before_fence() == []
        assert await third.before_fence() == []
        assert len(server.hub.user_connections(ADA)) == 2
