"""protocol.md, "Replies": the acks that clients send, in every form that is allowed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eyewall import (
    AckOptions,
    AckResult,
    AckTimeout,
    ConnectionClosed,
    DisconnectReason,
    Message,
    Nacked,
    Server,
    Target,
)
from tests.entrypoints.wire import UNIT, WITHIN, eventually, peer, running

pytestmark = pytest.mark.usefixtures("transport")


def emit(server: Server, conn_id: str, timeout: float = WITHIN) -> asyncio.Future[AckResult]:
    """Ask one connection for an ack."""
    message = Message("news", "flash", {"text": "storm"})
    target = Target.conn(conn_id)
    return asyncio.ensure_future(
        server.hub.emit_with_ack(target, message, AckOptions(timeout=timeout))
    )


def forms(message: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The acks that all mean ok, for one message."""
    ref, topic = message["id"], message["topic"]
    full = {"message_id": ref, "status": "ok"}
    return {
        "the full form": {"ref": ref, "topic": topic, "event": "ack", "data": full},
        "the short form": {"ref": ref, "topic": topic, "event": "ack"},
        "without a topic": {"ref": ref, "event": "ack"},
        "without a topic, in full": {"ref": ref, "event": "ack", "data": full},
        "by message_id alone": {"topic": topic, "event": "ack", "data": full},
        "under another topic": {"ref": ref, "topic": "other", "event": "ack"},
        "message_id beats ref": {"ref": "nonsense", "topic": topic, "event": "ack", "data": full},
        "with a result": {"ref": ref, "event": "ack", "data": {**full, "result": 5}},
        "with an id of its own": {"id": "a1", "ref": ref, "topic": topic, "event": "ack"},
        "with data of null": {"ref": ref, "topic": topic, "event": "ack", "data": None},
        "with data without a status": {"ref": ref, "event": "ack", "data": {"message_id": ref}},
    }


SAMPLE = forms({"id": "", "topic": ""})


async def test_the_server_asks_for_an_ack_by_id_and_ack():
    async with running() as server, peer(server) as client:
        sending = emit(server, client.conn_id)
        message = await client.receive()

        assert message["topic"] == "news"
        assert message["event"] == "flash"
        assert message["ack"] is True
        assert message["id"]

        await client.send_text(f'{{"event": "ack", "ref": "{message["id"]}"}}')
        await sending


@pytest.mark.parametrize("form", SAMPLE)
async def test_each_form_of_an_ack_means_ok(form):
    import json

    async with running() as server, peer(server) as client:
        sending = emit(server, client.conn_id)
        ack = forms(await client.receive())[form]
        await client.send_text(json.dumps(ack))

        result = await sending
        after = await client.before_fence()

    assert (result.expected, result.received, result.nacked) == (1, 1, 0)
    assert result.timed_out is False
    assert result.errors == []
    assert after == [], "an ack is not answered"


@pytest.mark.parametrize(
    "data", [{"status": "nack", "error": "no room"}, {"status": "nack", "message_id": "ID"}]
)
async def test_a_nack_is_final(data):
    async with running() as server, peer(server) as client:
        sending = emit(server, client.conn_id)
        message = await client.receive()
        if "message_id" in data:
            data = {**data, "message_id": message["id"]}
        await client.send("news", data, event="ack", ref=message["id"])

        result = await sending

    assert (result.expected, result.received, result.nacked) == (1, 0, 1)
    assert result.timed_out is False
    if "error" in data:
        assert "no room" in result.errors[0]


async def test_an_ack_for_an_unknown_id_is_ignored_and_counted():
    async with running() as server, peer(server) as client:
        before = server.hub.stats().in_messages
        await client.send("news", event="ack", ref="unknown")

        assert await client.before_fence() == []
        assert server.hub.stats().in_messages == before + 2
        assert server.hub.stats().errors == 0


@pytest.mark.parametrize(
    "text",
    [
        '{"event": "ack"}',
        '{"event": "ack", "topic": "news"}',
        '{"event": "ack", "ref": "x", "data": 5}',
        '{"event": "ack", "ref": "x", "data": []}',
        '{"event": "ack", "ref": "x", "data": {"status": 5}}',
        '{"event": "ack", "ref": "x", "data": {"message_id": 5}}',
        '{"event": "ack", "ref": "x", "data": 1e999}',
    ],
)
async def test_a_strange_ack_does_no_harm(text):
    async with running() as server, peer(server) as client:
        await client.send_text(text)

        came = await client.before_fence()

        assert all(m["event"] == "error" for m in came)


async def test_a_second_ack_is_ignored():
    async with running() as server, peer(server) as client:
        sending = emit(server, client.conn_id)
        message = await client.receive()
        await client.send("news", event="ack", ref=message["id"])
        await client.send("news", {"status": "nack"}, event="ack", ref=message["id"])
        await client.before_fence()

        assert (await sending).received == 1


async def test_a_late_ack_is_ignored():
    async with running() as server, peer(server) as client:
        result = await emit(server, client.conn_id, timeout=0.1 * UNIT)
        message = await client.receive()
        await client.send("news", event="ack", ref=message["id"])

        assert await client.before_fence() == []
        assert (result.received, result.timed_out) == (0, True)


async def test_an_ack_counts_only_from_the_connection_that_the_message_went_to():
    async with running() as server, peer(server) as client, peer(server) as stranger:
        sending = emit(server, client.conn_id)
        message = await client.receive()
        await stranger.send("news", event="ack", ref=message["id"])
        await stranger.before_fence()

        assert not sending.done()

        await client.send("news", event="ack", ref=message["id"])
        assert (await sending).received == 1


async def test_an_ack_overtakes_the_handlers():
    """Acks never wait in a lane: a handler may wait for one from its own connection."""
    server = Server()

    @server.on("ask me")
    async def ask_me(ctx, msg):
        return await ctx.hub.request(ctx.conn.id, Message("question"), timeout=WITHIN)

    async with running(server), peer(server) as client:
        await client.send("ask me", id="r1", ack=True)
        question = await client.receive()
        data = {"message_id": question["id"], "status": "ok", "result": {"n": 42}}
        await client.send("question", data, event="ack", ref=question["id"])

        answer = await client.receive()

    assert answer["ref"] == "r1"
    assert answer["data"]["n"] == 42


@pytest.mark.parametrize("result", [None, 0, "", False, [], {"a": [1]}, "text"])
async def test_a_request_returns_the_result_of_the_clients_ack(result):
    async with running() as server, peer(server) as client:
        asking = asyncio.ensure_future(
            server.hub.request(client.conn_id, Message("q"), timeout=WITHIN)
        )
        question = await client.receive()
        data = {"message_id": question["id"], "status": "ok", "result": result}
        await client.send("q", data, event="ack", ref=question["id"])

        assert await asking == result


async def test_a_request_that_is_nacked_raises():
    async with running() as server, peer(server) as client:
        asking = asyncio.ensure_future(server.hub.request(client.conn_id, Message("q")))
        question = await client.receive()
        data = {"message_id": question["id"], "status": "nack", "error": "not now"}
        await client.send("q", data, event="ack", ref=question["id"])

        with pytest.raises(Nacked, match="not now"):
            await asking


async def test_a_request_that_nobody_answers_raises():
    async with running() as server, peer(server) as client:
        with pytest.raises(AckTimeout):
            await server.hub.request(client.conn_id, Message("q"), timeout=0.1 * UNIT)


async def test_a_request_to_a_connection_that_closes_raises_at_once():
    async with running() as server, peer(server) as client:
        asking = asyncio.ensure_future(server.hub.request(client.conn_id, Message("q"), timeout=60))
        await client.receive()
        await server.hub.disconnect_conn(client.conn_id, DisconnectReason.DISCONNECTED)

        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(asking, WITHIN)


async def test_a_request_to_nobody_raises():
    async with running() as server:
        with pytest.raises(ConnectionClosed):
            await server.hub.request("nobody", Message("q"))


async def test_pending_acks_are_listed_until_they_are_settled():
    async with running() as server, peer(server) as client:
        sending = emit(server, client.conn_id)
        message = await client.receive()

        (pending,) = server.hub.pending_acks(client.conn_id)
        assert pending.message.id == message["id"]
        assert pending.conn_id == client.conn_id
        assert pending.attempt == 1
        assert pending.since < pending.deadline

        await client.send("news", event="ack", ref=message["id"])
        await sending
        await eventually(lambda: server.hub.pending_acks(client.conn_id) == [])
