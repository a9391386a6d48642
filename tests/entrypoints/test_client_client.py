"""What a program does with the Python client, on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from eyewall import (
    AckTimeout,
    Envelope,
    Forbidden,
    HandlerNotFound,
    JoinForbidden,
    Message,
    Misuse,
    NotAMember,
    Overloaded,
    RateLimited,
    Refused,
    RoomOptions,
    RoomPolicy,
    SendOptions,
    Server,
    Target,
    Unauthorized,
    Unavailable,
    UserId,
    ValidationError,
)
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.client import Client, State
from eyewall.client.client import TypingThrottle
from tests.entrypoints.client_support import client, reopened, talking
from tests.entrypoints.house import commanded, plain
from tests.entrypoints.wire import UNIT, eventually, running, soon


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with commanded() as server:
        yield server


@pytest.fixture
async def ada(server) -> AsyncIterator[Client]:
    async with client(f"{server.url}?name=ada") as ada:
        yield ada


@pytest.fixture
async def ben(server) -> AsyncIterator[Client]:
    async with client(f"{server.url}?name=ben") as ben:
        yield ben


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://example.com"},
        {"url": 5},
        {"token": 5},
        {"outbox": 0},
        {"queue": 0},
        {"max_message_size": 0},
        {"connect_timeout": 0},
        {"heartbeat": -1},
        {"first_delay": -1},
        {"max_delay": "long"},
    ],
)
def test_a_wrong_option_is_told_where_it_is_given(options):
    with pytest.raises(ValueError):  # noqa: PT011
        Client(**{"url": "ws://127.0.0.1:1/ws", **options})


# --- what it is like


async def test_it_knows_who_it_is(server, ada):
    assert ada.conn_id in server.hub.connection_ids()
    assert ada.welcome["user_id"] == "ada"
    assert ada.state is State.OPEN
    assert ada.state == "open"
    assert ada.retry_in is None
    assert str(server.port) in repr(ada)


def test_before_it_is_entered_it_knows_nothing():
    new = client("ws://127.0.0.1:1/ws")

    assert new.conn_id is None
    assert new.welcome == {}
    assert new.rooms == frozenset()


# --- rooms


async def test_a_room_from_joining_to_leaving(server, ada, ben):
    heard: list[Envelope] = []
    ada.on("room:r", heard.append)
    assert plain(await ada.join("r")) == {"room": "r", "role": "member", "members": 1}
    assert (await ben.join("r"))["members"] == 2
    assert ada.rooms == {"r"}
    assert (await ben.publish("r", {"text": "hi"}, event="said"))["delivered"] == 2
    await eventually(lambda: heard)
    assert (heard[0].event, heard[0].data) == ("said", {"text": "hi"})
    assert sorted(member["user_id"] for member in await ada.members("r")) == ["ada", "ben"]
    await ada.leave("r")

    assert ada.rooms == frozenset()
    assert [member["user_id"] for member in await ben.members("r")] == ["ben"]


async def test_all_pages_of_members(server, ada, monkeypatch):
    monkeypatch.setattr("eyewall.application.dispatch.commands.MAX_PAGE", 2)
    await ada.join("r")
    names = [f"u{n}" for n in range(4)]
    clients = [client(f"{server.url}?name={name}") for name in names]
    for one in clients:
        await one.__aenter__()
        await one.join("r")
    found = await ada.members("r")
    for one in clients:
        await one.close()

    assert sorted(member["user_id"] for member in found) == ["ada", *names]


async def test_presence_of_users_and_of_a_room(ada, ben):
    await ada.join("r")

    found = await ada.presence(["ada", "ben", "cy"])
    assert {user: state["online"] for user, state in found.items()} == {
        "ada": True,
        "ben": True,
        "cy": False,
    }
    assert set(await ada.presence("ben")) == {"ben"}
    assert set(await ada.presence(room="r")) == {"ada"}


async def test_typing_is_told_to_the_others(ada, ben):
    await ada.join("r")
    await ben.join("r")
    await ada.typing("r", ttl=3)
    begins = await soon(anext(ben))
    await ada.typing("r", False)
    ends = await soon(anext(ben))

    assert (begins.event, begins.data) == ("typing", {"user_id": "ada", "typing": True})
    assert ends.data["typing"] is False


def hears_typing(server):
    """The list of what the server is told of typing, from now on."""
    heard = []

    async def note(ctx, msg, next):
        if msg.topic == "system:typing":
            heard.append((msg.data["room"], msg.data["typing"], msg.data.get("ttl")))
        return await next(ctx, msg)

    server.use(note)
    return heard


async def test_not_every_key_stroke_is_a_message(server, ada):
    heard = hears_typing(server)
    for room in ("r", "s"):
        await ada.join(room)

    await asyncio.gather(*(ada.typing("r") for _ in range(20)))
    await ada.typing("r")
    assert heard == [("r", True, None)], "it was said just now, or is being said"
    await ada.typing("r", False)
    await ada.typing("r", False)
    await ada.typing("r")
    await ada.typing("s")
    await ada.typing("r")
    await ada.typing("r", ttl=20)
    await ada.typing("r", ttl=20)

    assert heard[1:] == [
        *(("r", False, None), ("r", False, None), ("r", True, None)),
        *(("s", True, None), ("r", True, None), ("r", True, 20)),
    ]


@pytest.mark.parametrize(("ttl", "half"), [(None, 2.5), (20, 10)])
def test_typing_is_sent_again_after_half_of_its_ttl(ttl, half):
    clock = [100.0]
    throttle = TypingThrottle(now=lambda: clock[0])
    link = object()
    throttle.sent("r", ttl, link, is_in=True)

    clock[0] += half - 0.1
    assert throttle.holds("r", ttl, link, is_in=True)
    clock[0] += 0.1
    assert not throttle.holds("r", ttl, link, is_in=True)


async def test_typing_is_said_again_on_another_connection(server, ada):
    heard = hears_typing(server)
    await ada.join("r")
    await ada.typing("r", ttl=60)
    before = ada.conn_id
    await server.hub.disconnect_conn(before, "internal_error")
    await reopened(ada, before)

    await ada.typing("r", ttl=60)

    assert len(heard) == 2


async def test_typing_is_said_again_after_leaving_and_after_a_refusal(server, ada):
    heard = hears_typing(server)
    for _ in range(2):
        with pytest.raises(NotAMember):
            await ada.typing("r")
    await ada.join("r")
    await ada.typing("r")
    await ada.leave("r")
    await ada.join("r")
    await ada.typing("r")
    assert len(heard) == 4

    with pytest.raises(ValueError, match="ttl"):
        await ada.typing("r", ttl=0)
    with pytest.raises(ValueError, match="timeout"):
        await ada.typing("r", timeout=0)


async def test_a_page_of_history():
    place = {"room": "r", "epoch": "e", "offset": 3}
    async with talking() as (_, c, line):
        asking = asyncio.ensure_future(c.history("r", since={"epoch": "e", "offset": 2}, limit=1))
        request = await line.expect("system:history")
        assert request["data"] == {
            "room": "r",
            "since": {"epoch": "e", "offset": 2},
            "limit": 1,
        }
        message = {"id": "m3", "topic": "room:r", "data": 7, "stream": place}
        await line.answer(request, messages=[message], epoch="e", offset=9)
        page = await soon(asking)

        assert [message.data for message in page.messages] == [7]
        assert (page.epoch, page.offset) == ("e", 9)
        asking = asyncio.ensure_future(c.history("r", since=page.messages[0].stream))
        request = await line.expect("system:history")
        assert request["data"]["since"] == {"epoch": "e", "offset": 3}
        await line.answer(request, messages=[], epoch="e", offset=9)
        await soon(asking)


async def test_joining_a_room_with_history_says_where_it_stands():
    async with talking() as (script, c, line):
        joining = asyncio.ensure_future(c.join("r"))
        await line.answer(await line.expect("system:join"), room="r", epoch="e", offset=5)
        await line.placed(6)
        assert (await soon(joining))["offset"] == 5
        assert (await soon(anext(c))).data == 6
        line.cut()

        assert (await (await script.line()).resumed())["rooms"] == {
            "r": {"epoch": "e", "offset": 6}
        }


# --- requests and refusals


async def test_a_request_gets_what_the_handler_returns(server, ada):
    server.handle("add", lambda ctx, msg: {"sum": msg.data["a"] + msg.data["b"]})
    server.handle("who", lambda ctx, msg: ctx.user_id)

    assert (await ada.request("add", {"a": 1, "b": 2}))["sum"] == 3
    assert (await ada.request("who"))["result"] == "ada"


@pytest.mark.parametrize(
    "error",
    [
        Unauthorized("who?"),
        Forbidden("no"),
        ValidationError({"text": ["too long"]}),
        RateLimited(2.5),
        Overloaded("busy", 3.0),
        Unavailable("no broker"),
        JoinForbidden("banned"),
    ],
)
async def test_a_refusal_raises_the_class_of_its_code_with_its_fields(server, ada, error):
    async def refuse(ctx, msg):
        raise error

    server.handle("refuse", refuse)
    with pytest.raises(type(error)) as raised:
        await ada.request("refuse")

    assert type(raised.value) is type(error)
    assert raised.value.details() == error.details()


async def test_an_unexpected_error_of_a_handler_is_a_refusal(server, ada):
    async def broken(ctx, msg):
        raise RuntimeError("secret")

    server.handle("broken", broken)
    with pytest.raises(Refused, match="internal error"):
        await ada.request("broken")


async def test_what_the_server_refuses_by_itself(server, ada):
    await server.hub.create_room("closed", RoomOptions(policy=RoomPolicy.INVITE_ONLY))

    with pytest.raises(HandlerNotFound):
        await ada.request("nowhere")
    with pytest.raises(JoinForbidden):
        await ada.join("closed")
    with pytest.raises(NotAMember):
        await ada.publish("r", 1)
    assert ada.rooms == frozenset()


async def test_no_answer_is_an_ack_timeout(server, ada):
    async def hangs(ctx, msg):
        await asyncio.Event().wait()

    server.handle("hangs", hangs)
    with pytest.raises(AckTimeout):
        await ada.request("hangs", timeout=0.05)


async def test_an_answer_that_came_while_this_side_stood_still_counts(server, ada):
    asked = asyncio.Event()

    async def answers(ctx, msg):
        asked.set()
        return {"n": 1}

    server.handle("answers", answers)
    waiting = asyncio.create_task(ada.request("answers", timeout=0.5 * UNIT))
    await asked.wait()
    time.sleep(0.8 * UNIT)  # on purpose: nothing else runs

    assert (await waiting)["n"] == 1


@pytest.mark.parametrize("timeout", [0, -1, "5", float("nan")])
async def test_a_timeout_that_is_none_is_told(ada, timeout):
    with pytest.raises(ValueError):  # noqa: PT011
        await ada.request("t", timeout=timeout)


# --- callbacks


async def test_the_most_exact_callback_gets_the_message(server, ada):
    heard: list = []

    @ada.on("chat:*")
    def wide(message):
        heard.append(("chat:*", message.topic))

    @ada.on("chat:room:*")
    async def narrow(message):
        heard.append(("chat:room:*", message.topic))

    ada.on("chat:room:a", lambda message: heard.append(("exact", message.topic)))
    for topic in ("chat:x", "chat:room:b", "chat:room:a", "other"):
        await server.hub.broadcast(topic, data=1)

    assert (await soon(anext(ada))).topic == "other"
    await eventually(lambda: len(heard) == 3)
    assert heard == [
        ("chat:*", "chat:x"),
        ("chat:room:*", "chat:room:b"),
        ("exact", "chat:room:a"),
    ]


@pytest.mark.parametrize("pattern", ["", "a*", "*:a"])
def test_a_bad_pattern_is_told(pattern):
    with pytest.raises(ValueError):  # noqa: PT011
        client("ws://127.0.0.1:1/ws").on(pattern, print)


async def test_a_callback_may_ask_and_wait_for_the_answer(server, ada):
    server.handle("double", lambda ctx, msg: 2 * msg.data)
    answers: list = []

    @ada.on("news")
    async def news(message):
        answers.append((await ada.request("double", message.data))["result"])

    for number in range(3):
        await server.hub.broadcast("news", data=number)

    await eventually(lambda: answers == [0, 2, 4])


async def test_a_slow_callback_holds_up_no_request(server, ada):
    server.handle("double", lambda ctx, msg: 2 * msg.data)
    begun, go = asyncio.Event(), asyncio.Event()

    @ada.on("news")
    async def slow(message):
        begun.set()
        await go.wait()

    await server.hub.broadcast("news")
    await soon(begun.wait())
    assert (await ada.request("double", 4))["result"] == 8
    go.set()


async def test_the_server_hears_what_a_callback_returns_and_raises(server, ada):
    ada.on("order", lambda message: {"seen": message.data})

    @ada.on("broken")
    async def broken(message):
        raise RuntimeError("out of stock")

    assert await server.hub.request(ada.conn_id, Message("order", data=7)) == {"seen": 7}
    result = await server.hub.emit_with_ack(Target.user(UserId("ada")), Message("broken"))
    assert (result.received, result.nacked, result.errors) == (0, 1, ["out of stock"])


@pytest.mark.parametrize("event", ["error", "ack", "gap"])
async def test_a_stored_event_of_any_name_is_handled_once_and_not_kept(event):
    """Also one that answers have."""
    store = MemoryOffline()
    user = UserId("ada")
    async with commanded(offline=store) as server:
        message = Message("orders", event, {"code": 7})
        await server.hub.send_to_user(user, message, SendOptions(offline="store"))
        async with client(f"{server.url}?name=ada") as ada:
            found = await soon(anext(ada))
            rest = asyncio.ensure_future(anext(ada))
            await eventually(lambda: len(store) == 0)

            assert (found.event, found.data) == (event, {"code": 7})
            assert not rest.done()
            rest.cancel()


# --- iteration


async def test_iteration_acks_a_message_when_the_next_is_asked_for(server, ada):
    options = SendOptions(require_ack=True, ack_timeout=5.0)
    sending = asyncio.ensure_future(
        server.hub.send_to_user(UserId("ada"), Message("news", data=1), options)
    )
    assert (await soon(anext(ada))).data == 1
    await ada.request("test:fence")
    assert not sending.done()
    following = asyncio.ensure_future(anext(ada))

    assert (await soon(sending)).success == 1
    await server.hub.broadcast("news", data=2)
    assert (await soon(following)).data == 2


async def test_iteration_ends_with_the_client(server, ada):
    await server.hub.broadcast("news", data=1)
    await ada.request("test:fence")
    await ada.close()

    assert [message.data async for message in ada] == [1]


async def test_one_task_iterates_at_a_time(ada):
    first = asyncio.ensure_future(anext(ada))
    await asyncio.sleep(0)
    with pytest.raises(Misuse):
        await anext(ada)
    first.cancel()


async def test_an_iteration_that_was_given_up_can_be_taken_up(server, ada):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(ada), 0.01)
    await server.hub.broadcast("news", data=1)

    assert (await soon(anext(ada))).data == 1


async def test_when_nobody_iterates_the_first_wait_and_the_rest_is_counted():
    async with running() as server, client(server.url, queue=3) as c:
        for number in range(5):
            await server.hub.broadcast("news", data=number)
        await c.request("test:fence")
        assert c.counts.dropped == 2

        assert [(await soon(anext(c))).data for _ in range(3)] == [0, 1, 2]


# --- states


async def test_states_are_told_to_plain_and_async_callbacks(server):
    c = client(server.url)
    states: list = []

    @c.on_state
    async def told(state):
        states.append(state)

    c.on_state(states.append)
    async with c:
        await eventually(lambda: states)
    assert states == [State.OPEN] * 2 + [State.CLOSED] * 2


async def test_a_state_callback_may_use_the_client(server):
    c = client(f"{server.url}?name=ada")
    joined = asyncio.Event()

    @c.on_state
    async def told(state):
        if state is State.OPEN:
            await c.join("r")
            joined.set()

    async with c:
        await soon(joined.wait())
        assert c.rooms == {"r"}
