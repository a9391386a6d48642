"""protocol.md, "Replies": what the server answers, and what repeats get."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eyewall import (
    AckTimeout,
    ConnectionClosed,
    Forbidden,
    HandlerNotFound,
    InvalidEnvelope,
    JoinForbidden,
    Misuse,
    Nacked,
    NotAMember,
    Overloaded,
    QueueFull,
    RateLimited,
    RoomExists,
    RoomFull,
    RoomNotFound,
    Server,
    ShuttingDown,
    SlowConsumer,
    Unauthorized,
    Unavailable,
    UserOffline,
    ValidationError,
)
from tests.entrypoints.wire import peer, running

pytestmark = pytest.mark.usefixtures("transport")

ERRORS = {
    "handler_not_found": HandlerNotFound("text"),
    "unauthorized": Unauthorized("text"),
    "forbidden": Forbidden("text"),
    "validation": ValidationError({"name": ["too long"]}, "text"),
    "invalid_envelope": InvalidEnvelope("text"),
    "rate_limited": RateLimited(2.5, "text"),
    "overloaded": Overloaded("text", 3.5),
    "room_not_found": RoomNotFound("text"),
    "room_exists": RoomExists("text"),
    "room_full": RoomFull("text"),
    "join_forbidden": JoinForbidden("text"),
    "not_a_member": NotAMember("text"),
    "user_offline": UserOffline("text"),
    "ack_timeout": AckTimeout("text"),
    "nacked": Nacked("text"),
    "queue_full": QueueFull("text"),
    "slow_consumer": SlowConsumer("text"),
    "connection_closed": ConnectionClosed("text"),
    "unavailable": Unavailable("text"),
}
"""What a handler raises, by the code under which it is sent."""

FURTHER = {
    "validation": {"fields": {"name": ["too long"]}},
    "rate_limited": {"retry_after": 2.5},
    "overloaded": {"retry_after": 3.5},
}


def answering(result: Any) -> Server:
    """A server whose handler of ``ask`` returns, or raises, ``result``."""
    server = Server()

    @server.on("ask")
    async def ask(ctx, msg):
        if isinstance(result, Exception):
            raise result
        return result

    return server


# --- acks


async def test_an_ack_has_these_fields_and_no_others():
    async with running(answering(None)) as server, peer(server) as client:
        assert await client.ask("ask", id="r1") == {
            "ref": "r1",
            "topic": "ask",
            "event": "ack",
            "data": {"message_id": "r1", "status": "ok"},
        }


async def test_a_request_without_ack_gets_no_ack():
    async with running(answering({"a": 1})) as server, peer(server) as client:
        await client.send("ask", id="r1")

        assert await client.before_fence() == []


async def test_a_request_gets_exactly_one_ack():
    async with running(answering({"a": 1})) as server, peer(server) as client:
        await client.request("ask")

        assert await client.before_fence() == []


@pytest.mark.parametrize(
    ("result", "fields"),
    [
        (None, {}),
        ({}, {}),
        ({"a": 1, "b": [2]}, {"a": 1, "b": [2]}),
        (5, {"result": 5}),
        (0, {"result": 0}),
        (False, {"result": False}),
        ("", {"result": ""}),
        ([1, 2], {"result": [1, 2]}),
        ([], {"result": []}),
        ({"result": 5}, {"result": 5}),
        ({"ref": "x", "topic": "x", "data": 5}, {"ref": "x", "topic": "x", "data": 5}),
    ],
    ids=str,
)
async def test_a_handlers_result_stands_beside_the_status(result, fields):
    """A mapping by its keys; anything else as result."""
    async with running(answering(result)) as server, peer(server) as client:
        answer = await client.ask("ask", id="r1")

        assert answer["data"] == {"message_id": "r1", "status": "ok", **fields}


@pytest.mark.parametrize("key", ["message_id", "status", "error", "code", "fields", "retry_after"])
async def test_a_result_with_a_key_of_the_protocol_s_own_is_an_internal_error(key):
    """It could only be lost, or change what the client is told."""
    async with running(answering({key: "shipped", "n": 1})) as server, peer(server) as client:
        nack = await client.refused("ask", id="r1")

        assert nack == {
            "message_id": "r1",
            "status": "nack",
            "code": "internal",
            "error": "internal error",
        }


async def test_the_ack_comes_after_what_the_handler_sent():
    server = Server()

    @server.on("ask")
    async def ask(ctx, msg):
        await ctx.send("first", "message", 1)
        return 2

    async with running(server), peer(server) as client:
        await client.send("ask", id="r1", ack=True)

        assert (await client.receive())["topic"] == "first"
        assert (await client.receive())["ref"] == "r1"


# --- nacks and errors


@pytest.mark.parametrize("code", ERRORS)
async def test_a_refusal_of_a_request_with_ack_is_a_nack(code):
    async with running(answering(ERRORS[code])) as server, peer(server) as client:
        answer = await client.ask("ask", id="r1")
        after = await client.before_fence()

    assert answer["ref"] == "r1"
    assert answer["topic"] == "ask"
    assert answer["event"] == "ack"
    assert "id" not in answer
    assert answer["data"] == {
        "message_id": "r1",
        "status": "nack",
        "error": "text",
        "code": code,
        **FURTHER.get(code, {}),
    }
    assert after == [], "never both a nack and an error"


@pytest.mark.parametrize("code", ERRORS)
async def test_a_refusal_of_a_request_without_ack_is_an_error(code):
    async with running(answering(ERRORS[code])) as server, peer(server) as client:
        await client.send("ask", id="r1")
        answer = await client.receive()
        after = await client.before_fence()

    assert answer["ref"] == "r1"
    assert answer["topic"] == "ask"
    assert answer["event"] == "error"
    assert answer["data"] == {"code": code, "error": "text", **FURTHER.get(code, {})}
    assert after == []


async def test_an_error_about_a_request_without_an_id_has_no_ref():
    async with running(answering(Forbidden("no"))) as server, peer(server) as client:
        await client.send("ask")

        error = await client.receive()

    assert "ref" not in error
    assert error["data"]["code"] == "forbidden"


async def test_shutting_down_is_told_as_overloaded():
    async with running(answering(ShuttingDown("text"))) as server, peer(server) as client:
        nack = await client.refused("ask")

    assert nack["code"] == "overloaded"
    assert nack["retry_after"] >= 0


@pytest.mark.parametrize("error", [Misuse("our secret"), ValueError("our secret"), KeyError("x")])
async def test_our_own_faults_are_internal_and_name_nothing(error):
    async with running(answering(error)) as server, peer(server) as client:
        nack = await client.refused("ask")

    assert nack["code"] == "internal"
    assert "secret" not in nack["error"]
    assert "Error" not in nack["error"]


async def test_a_result_that_cant_be_sent_is_internal():
    async with running(answering({"a": object()})) as server, peer(server) as client:
        assert (await client.refused("ask"))["code"] == "internal"
        assert await client.before_fence() == []


# --- too much at once


async def test_a_full_lane_answers_overloaded():
    server = Server(lane_queue=2)
    go_on = asyncio.Event()

    @server.on("wait")
    async def wait(ctx, msg):
        await go_on.wait()

    async with running(server), peer(server) as client:
        for n in range(10):
            await client.send("wait", id=f"w{n}", ack=True)
        refused = await client.receive()
        go_on.set()

        assert refused["data"]["status"] == "nack"
        assert refused["data"]["code"] == "overloaded"
        assert refused["data"]["retry_after"] > 0
        assert (await client.until(lambda m: m["ref"] == "w0"))["data"]["status"] == "ok"


async def test_a_flooder_leaves_room_for_the_others():
    """One lane can't use up the queue of all."""
    server = Server(lane_queue=2, worker_queue=100)
    go_on = asyncio.Event()

    @server.on("wait")
    async def wait(ctx, msg):
        await go_on.wait()

    async with running(server), peer(server) as flooder, peer(server) as other:
        for n in range(200):
            await flooder.send("wait", id=f"w{n}", ack=True)
        assert (await flooder.receive())["data"]["code"] == "overloaded"

        await other.request("test:fence")
        go_on.set()


async def test_a_full_worker_queue_answers_overloaded():
    server = Server(workers=1, worker_queue=3, lane_queue=100)
    go_on = asyncio.Event()

    @server.on("wait")
    async def wait(ctx, msg):
        await go_on.wait()

    async with running(server), peer(server) as client:
        for n in range(10):
            await client.send("wait", id=f"w{n}", ack=True)
        answers = [await client.receive() for _ in range(6)]
        go_on.set()

        assert {a["data"]["code"] for a in answers} == {"overloaded"}
