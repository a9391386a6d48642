"""A client in a test: what it sends, what it receives, how it behaves."""

from __future__ import annotations

import asyncio
import inspect
import json

import pytest

from eyewall import (
    ConnectionClosed,
    DisconnectReason,
    DropPolicy,
    FailureReason,
    HandlerNotFound,
    Message,
    Nacked,
    NotAMember,
    Priority,
    QueueConfig,
    RateLimited,
    Refused,
    RoomOptions,
    SendOptions,
    Server,
    StreamPosition,
    UserOffline,
    ValidationError,
)
from eyewall.application.ports.message import EncodedMessage
from eyewall.client import Client
from eyewall.testing import TestClient, TestHub

server = Server(client_commands=True, max_message_size=500)


@server.on("echo")
async def echo(ctx, msg):
    await ctx.send("echoed", "reply", msg.data)
    return {"seen": msg.event}


@server.on("fail:*")
async def fail(ctx, msg):
    match msg.topic:
        case "fail:limit":
            raise RateLimited(2.5, "too fast")
        case "fail:fields":
            raise ValidationError({"name": ["missing"]})
        case _:
            raise ZeroDivisionError("a bug")


@server.on("thread")
def in_thread(ctx, msg):
    """Runs in a thread, and asks the loop from there."""
    ctx.from_thread(ctx.send, "from", "thread", msg.data)
    return threaded(ctx)


def threaded(ctx):
    return ctx.from_thread(ctx.hub.request, ctx.conn.id, Message("question"))


@pytest.fixture
async def th():
    async with TestHub(server) as th:
        yield th


@pytest.fixture
async def alice(th):
    return await th.connect(user="alice")


async def test_what_a_message_sets_off_has_happened_when_it_is_sent(alice):
    assert await alice.send("echo", {"n": 1}, "shout", id="7", headers={"h": "1"}) == "7"

    message = await alice.receive()
    assert (message.topic, message.event, message.data) == ("echoed", "reply", {"n": 1})


async def test_a_message_that_asks_for_an_ack_has_an_id(alice):
    asked = await alice.send("echo", ack=True)
    _, ack = await alice.received()

    assert ack.ref == asked is not None
    assert ack.data == {"message_id": asked, "status": "ok", "seen": "message"}
    assert await alice.received() == []


async def test_a_request_returns_the_ack_and_leaves_the_rest(alice):
    assert (await alice.request("echo", 1))["seen"] == "message"
    assert (await alice.receive()).data == 1
    assert [m.event for m in alice.taken] == ["ack", "reply"]


async def test_a_refusal_raises_its_class(alice):
    with pytest.raises(RateLimited, match="too fast") as limited:
        await alice.request("fail:limit")
    with pytest.raises(ValidationError) as invalid:
        await alice.request("fail:fields")
    with pytest.raises(HandlerNotFound):
        await alice.request("nowhere")

    assert limited.value.retry_after == 2.5
    assert invalid.value.fields == {"name": ["missing"]}


async def test_a_handler_s_bug_stands_behind_its_refusal(alice):
    """The client is told nothing of it, and the test everything."""
    with pytest.raises(Refused, match="internal") as told:
        await alice.request("fail:bug")

    assert isinstance(told.value.__cause__, ZeroDivisionError)


async def test_rooms(th, alice):
    bob = await th.connect(user="bob")
    assert (await alice.join("lab"))["members"] == 1
    await bob.join("lab")

    assert (await alice.publish("lab", "hi", "shout"))["delivered"] == 2
    assert [(m.topic, m.event, m.data) for m in await bob.received()] == [
        ("room:lab", "shout", "hi")
    ]
    await bob.leave("lab")
    assert [m.user_id for m in await th.hub.members("lab")] == ["alice"]


async def test_it_joins_with_what_was_said_before(th, alice):
    await th.hub.create_room("kept", RoomOptions(history_size=5))
    for n in range(3):
        await th.hub.broadcast_room("kept", "room:kept", data=n)

    answer = await alice.join("kept", since="start")

    assert answer["recovered"]
    messages = await alice.received()
    assert [m.data for m in messages] == [0, 1, 2]
    await alice.join("kept", since=messages[1].stream)
    assert [m.data for m in await alice.received()] == [2]
    with pytest.raises(ValueError, match="start"):
        await alice.join("kept", since="end")


async def test_what_a_room_is_not_to_keep_is_not_there_later(th, alice):
    await th.hub.create_room("kept", RoomOptions(history_size=5))
    await alice.join("kept")
    await th.hub.broadcast_room("kept", "room:kept", data=1)
    await th.hub.broadcast_room("kept", "room:kept", "read", 2, history=False)
    await th.hub.emit_to_room("kept", Message("room:kept", "read", 3), SendOptions(history=False))

    heard = await alice.received()
    assert [(m.data, m.stream is None) for m in heard] == [(1, False), (2, True), (3, True)]
    await alice.join("kept", since="start")
    assert [m.data for m in await alice.received()] == [1]


async def test_acks_and_nacks(th, alice):
    ask = asyncio.create_task(th.hub.request(alice.id, Message("which")))
    await alice.ack(await alice.receive(), result="this")
    assert await ask == "this"

    ask = asyncio.create_task(th.hub.request(alice.id, Message("which")))
    await alice.nack(await alice.receive(), "none of them")
    with pytest.raises(Nacked, match="none of them"):
        await ask
    await alice.send("echo")
    with pytest.raises(ValueError, match="no id"):
        await alice.ack((await alice.received())[0].with_data(None).__class__("t"))


async def test_a_plain_handler_has_run_as_far_as_it_can(alice):
    """It runs in a thread, and what it waits for there is the test."""
    await alice.send("thread", 5, ack=True)
    told, question = await alice.received()
    assert (told.event, told.data) == ("thread", 5)
    await alice.ack(question, "yes")

    assert (await alice.receive()).data["result"] == "yes"


async def test_a_message_may_have_come_twice(th, alice):
    for _ in range(2):
        call = th.hub.send_to_user("alice", Message("same", id="1"))
        await call
    first, second = await alice.receive(), await alice.receive()

    assert first == second
    assert first is not second


async def test_frames_without_envelopes_are_apart(th, alice):
    await th.hub.broadcast_text("plain")
    await alice.conn.send_raw(b"\x00\x01")
    await th.hub.broadcast("news")

    assert (await alice.receive()).topic == "news"
    assert [await alice.receive_raw(), await alice.receive_raw()] == ["plain", b"\x00\x01"]
    with pytest.raises(AssertionError, match="no raw frame is due"):
        await alice.receive_raw()


async def test_anything_can_be_sent(alice):
    await alice.send_raw("no json")
    assert (await alice.receive()).data["code"] == "invalid_json"
    await alice.send_raw(b"binary")
    assert (await alice.receive()).data["code"] == "unsupported_data"
    await alice.send_raw(json.dumps({"topic": "echo", "data": "x" * 500}))

    assert (alice.closed.reason, alice.closed.code) == (DisconnectReason.MESSAGE_TOO_BIG, 1009)
    with pytest.raises(ConnectionClosed, match="message_too_big"):
        await alice.send("echo")


async def test_a_position_in_a_room_s_stream_is_seen(alice):
    payload = b'{"topic":"room:lab","stream":{"room":"lab","epoch":"e","offset":3}}'
    alice.conn.link.send(EncodedMessage(payload))

    assert (await alice.receive()).stream == StreamPosition("lab", "e", 3)


async def test_a_session_is_negotiated_and_welcomed(th):
    alice = await th.connect(user="alice", session=True)

    assert alice.welcome["user_id"] == "alice"
    assert alice.session == alice.welcome["session"]
    assert await alice.received() == []
    assert (await th.connect(user="bob")).session is None


# --- nothing is due


async def test_receiving_fails_at_once_when_nothing_is_due(th, alice):
    bob = await th.connect(user="bob")
    await bob.send("echo", "for bob")
    await alice.send("echo", "for alice")
    await alice.receive()

    with pytest.raises(AssertionError) as told:
        await alice.receive()
    assert "no message is due for alice" in str(told.value)
    assert "echoed reply 'for alice'" in str(told.value)
    assert "waiting for bob" in str(told.value)


async def test_a_request_without_an_answer_fails_at_once(th, alice):
    th.hub.handle("slow", lambda ctx, msg: threaded(ctx))

    with pytest.raises(AssertionError, match=r"(?s)no answer to slow.*running handlers: 1"):
        await alice.request("slow")


async def test_a_request_on_a_connection_that_ends_says_so(th, alice):
    @server.on("bye")
    async def bye(ctx, msg):
        await ctx.conn.close()

    with pytest.raises(ConnectionClosed, match="normal"):
        await alice.request("bye")


async def test_patience_waits_for_what_comes_from_outside():
    """Handlers that ask a database finish in real time."""
    outside = asyncio.Event()

    async with TestHub(server, patience=30.0) as th:

        @server.on("outside")
        async def ask(ctx, msg):
            asyncio.get_running_loop().call_later(0.01, outside.set)
            await outside.wait()
            return 1

        alice = await th.connect()
        assert (await alice.request("outside"))["result"] == 1


async def test_patience_ends():
    async with TestHub(server, patience=0.01) as th:
        with pytest.raises(AssertionError, match="no message is due"):
            await (await th.connect()).receive()


# --- how it behaves


@pytest.mark.parametrize("policy", DropPolicy)
async def test_a_stalled_client_meets_the_server_s_own_policy(policy):
    failures = []
    queue = QueueConfig(size=2, drop_policy=policy)
    async with TestHub(Server(queue=queue)) as th:
        th.hub.on_queue_full(lambda failure: failures.append(failure.message.topic))
        alice = await th.connect(user="alice")
        alice.stall()
        for topic in ("a", "b", "c"):
            await th.hub.send_to_user("alice", Message(topic))
        await th.settle()
        assert alice.queued == (0 if alice.closed else 2)
        alice.resume_reading()

        kept = ["b", "c"] if policy is DropPolicy.DROP_OLDEST else ["a", "b"]
        assert [m.topic for m in await alice.received()] == kept
        assert failures == ["a" if policy is DropPolicy.DROP_OLDEST else "c"]
        hung_up = policy is DropPolicy.DROP_AND_DISCONNECT
        assert (alice.closed is not None) == hung_up
        assert not hung_up or alice.closed.code == 4413


async def test_a_higher_priority_overtakes_in_a_stalled_client_s_queue(th, alice):
    alice.stall()
    await th.hub.send_to_user("alice", Message("later"))
    await th.hub.send_to_user("alice", Message("first", priority=Priority.HIGH))
    with pytest.raises(AssertionError, match="stalled, and 2 wait"):
        await alice.receive()
    alice.resume_reading()

    assert [m.topic for m in await alice.received()] == ["first", "later"]


async def test_a_client_that_stays_stalled_is_closed(th, alice):
    alice.stall()
    await th.hub.broadcast("news")
    th.advance(10)
    await th.settle()

    assert alice.closed.reason is DisconnectReason.SLOW_CONSUMER


async def test_what_a_client_does_after_time_is_to_pass_it_does_after_it(th, alice):
    begun, ended = th.now(), []
    th.hub.on_disconnect(lambda conn, reason: ended.append((th.now() - begun).seconds))
    th.advance(5)
    await alice.send("echo")
    assert (alice.conn.last_activity - begun).seconds == 5
    th.advance(5)
    bob = await th.connect(user="bob")
    assert (bob.conn.connected_at - begun).seconds == 10
    th.advance(5)
    await alice.close()

    assert ended == [15]


async def test_closing_and_being_cut(th, alice):
    ended, failures = [], []
    th.hub.on_disconnect(lambda conn, reason: ended.append(reason.value))
    th.hub.on_connection_error(lambda failure: failures.append(failure.reason))
    bob = await th.connect(user="bob")
    ask = asyncio.create_task(
        th.hub.send_to_user("bob", Message("hi"), SendOptions(require_ack=True))
    )
    await bob.receive()
    await bob.cut()
    await alice.close()
    await alice.close()

    assert (await ask).failed == 1
    assert (alice.closed.code, bob.closed.code) == (1000, 1006)
    assert ended == ["connection_lost", "client_closed"]
    assert failures == [FailureReason.CONN_CLOSED]
    report = await th.hub.send_to_user("alice", Message("hi"))
    assert isinstance(report.reports[0].error, UserOffline)
    with pytest.raises(ConnectionClosed):
        await alice.send("echo")
    with pytest.raises(AssertionError, match=r"closed: client_closed \(1000\)"):
        await alice.receive()
    assert "alice" in repr(alice)


async def test_a_cut_can_have_another_reason(alice):
    await alice.cut(DisconnectReason.HEARTBEAT_TIMEOUT)

    assert alice.closed.reason is DisconnectReason.HEARTBEAT_TIMEOUT


# --- what the real client has too


async def test_it_says_who_is_in_a_room_and_who_types(th, alice):
    bob = await th.connect(user="bob")
    await alice.join("lab")
    await bob.join("lab", timeout=2)

    assert await bob.typing("lab") is None
    assert (await alice.receive()).data == {"user_id": "bob", "typing": True}
    await bob.typing("lab", False, ttl=3)
    assert (await alice.receive()).data == {"user_id": "bob", "typing": False}
    members = await alice.members("lab")
    assert sorted(member["user_id"] for member in members) == ["alice", "bob"]
    assert members[0].keys() == {"user_id", "role", "connections"}
    assert (alice.rooms, alice.conn_id) == ({"lab"}, alice.id)

    assert await alice.leave("lab") == {"message_id": "alice-3", "status": "ok", "room": "lab"}
    assert alice.rooms == frozenset()
    with pytest.raises(NotAMember):
        await alice.members("lab")


async def test_all_pages_of_members_come_as_one_list(th, alice, monkeypatch):
    monkeypatch.setattr("eyewall.application.dispatch.commands.MAX_PAGE", 2)
    await alice.join("crowd")
    for number in range(4):
        await (await th.connect(user=f"u{number}")).join("crowd")

    assert len(await alice.members("crowd")) == 5


async def test_it_asks_who_is_there(th, alice):
    await alice.join("lab")

    assert (await alice.presence(["alice", "bob"]))["bob"]["online"] is False
    assert (await alice.presence("alice"))["alice"]["connections"] == 1
    assert list(await alice.presence(room="lab")) == ["alice"]


async def test_it_reads_what_was_said(th, alice):
    await th.hub.create_room("kept", RoomOptions(history_size=10))
    await alice.join("kept")
    for number in range(3):
        await alice.publish("kept", {"n": number}, "said")

    page = await alice.history("kept", limit=2)
    assert [(m.topic, m.event, m.data["n"]) for m in page.messages] == [
        ("room:kept", "said", 1),
        ("room:kept", "said", 2),
    ]
    assert (page.epoch, page.offset) == (page.messages[1].stream.epoch, 3)
    later = await alice.history("kept", since=page.messages[0].stream)
    assert [m.data for m in later.messages] == [{"n": 2}]
    with pytest.raises(ValueError, match="position"):
        await alice.history("kept", since="yesterday")


async def test_a_room_without_a_history_has_an_empty_page(alice):
    await alice.join("lab")

    page = await alice.history("lab")

    assert (page.messages, page.epoch, page.offset) == ([], None, None)


async def test_a_timeout_does_not_travel(alice):
    """As with the real client, which waits for so long; here nothing takes time."""
    assert (await alice.request("echo", 1, timeout=0.5))["seen"] == "message"
    with pytest.raises(ValueError, match="timeout"):
        await alice.request("echo", 1, timeout=0)


@pytest.mark.parametrize(
    "name", ["join", "leave", "publish", "members", "presence", "typing", "history"]
)
def test_what_both_clients_have_takes_the_same(name):
    ours, real = (
        [(p.name, p.default) for p in inspect.signature(getattr(kind, name)).parameters.values()]
        for kind in (TestClient, Client)
    )

    assert ours == real


async def test_a_command_that_is_off_says_so():
    async with TestHub(Server(client_commands={"leave"})) as th:
        alice = await th.connect(user="alice")

        with pytest.raises(HandlerNotFound, match="system:join is switched off"):
            await alice.join("lab", since="start")
