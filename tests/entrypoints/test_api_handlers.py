"""api.md: handlers, their results and payloads, routing, order, and middleware."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import marshmallow
import msgspec
import pytest

from eyewall import (
    Context,
    Envelope,
    Misuse,
    Server,
)
from tests.entrypoints.house import by_name
from tests.entrypoints.wire import peer, peers, running

# --- plain and async


async def test_a_plain_handler_runs_in_a_thread():
    server = Server()
    main = threading.get_ident()

    @server.on("where")
    def where(ctx, msg):
        return {"elsewhere": threading.get_ident() != main}

    async with running(server), peer(server) as client:
        assert (await client.request("where"))["elsewhere"] is True


async def test_a_plain_handler_cant_block_the_loop():
    server = Server()
    go_on = threading.Event()
    server.handle("block", lambda ctx, msg: go_on.wait(10))

    async with running(server), peers(server, 2) as (one, two):
        await one.send("block", id="b", ack=True)
        await two.request("test:fence")
        go_on.set()

        assert (await one.until(lambda m: m.get("ref") == "b"))["data"]["result"] is True


async def test_a_plain_handler_may_call_the_loop_from_its_thread():
    """It blocks the thread and returns the result, or raises."""
    server = Server()

    @server.on("ask")
    def ask(ctx, msg):
        ctx.from_thread(ctx.send, "news", "flash", {"n": 1})
        report = ctx.from_thread(ctx.hub.send_to_conn, ctx.conn.id, "more", "message", 2)
        try:
            ctx.from_thread(ctx.hub.update_room, "unknown", capacity=1)
        except Exception as error:
            return {"status_of_send": report.status.name, "raised": type(error).__name__}
        return None

    async with running(server), peer(server) as client:
        await client.send("ask", id="a", ack=True)

        assert (await client.receive())["data"] == {"n": 1}
        assert (await client.receive())["data"] == 2
        answer = (await client.receive())["data"]
        assert answer["status_of_send"] == "OK"
        assert answer["raised"] == "RoomNotFound"


async def test_from_thread_on_the_loop_itself_is_misuse_not_a_deadlock():
    server = Server()

    @server.on("ask")
    async def ask(ctx, msg):
        try:
            ctx.from_thread(ctx.send, "a", "b", 1)
        except (Misuse, RuntimeError) as error:
            return {"raised": type(error).__name__}

    async with running(server), peer(server) as client:
        assert "raised" in await client.request("ask")


async def test_a_callable_object_and_a_method_are_handlers():
    class House:
        async def door(self, ctx, msg):
            return {"door": msg.data}

        async def __call__(self, ctx, msg):
            return {"house": msg.data}

    server, house = Server(), House()
    server.handle("door", house.door)
    server.handle("house", house)
    async with running(server), peer(server) as client:
        assert (await client.request("door", 1))["door"] == 1
        assert (await client.request("house", 2))["house"] == 2


async def test_the_decorator_returns_the_function():
    server = Server()

    @server.on("a")
    @server.on("b")
    async def both(ctx, msg):
        return {"topic": msg.topic}

    async with running(server), peer(server) as client:
        assert (await client.request("a"))["topic"] == "a"
        assert (await client.request("b"))["topic"] == "b"
    assert asyncio.iscoroutinefunction(both)


async def test_a_handler_runs_in_a_task_with_its_timeouts():
    server = Server()

    @server.on("slow")
    async def slow(ctx, msg):
        assert asyncio.current_task() is not None
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return {"timed": "out"}

    async with running(server), peer(server) as client:
        assert (await client.request("slow"))["timed"] == "out"


# --- typed payloads


@dataclass
class Point:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)


class Boat(msgspec.Struct):
    name: str
    length: float


class Crew(marshmallow.Schema):
    captain = marshmallow.fields.String(required=True)
    hands = marshmallow.fields.Integer(load_default=0)


def typed() -> Server:
    server = Server()
    server.calls = []

    @server.on("point")
    async def point(ctx: Context, msg: Envelope[Point]):
        server.calls.append("point")
        return {"type": type(msg.data).__name__, "x": msg.data.x, "y": msg.data.y}

    @server.on("boat")
    def boat(ctx, msg: Envelope[Boat]):
        server.calls.append("boat")
        return {"type": type(msg.data).__name__, "name": msg.data.name}

    @server.on("crew")
    async def crew(ctx, msg: Envelope[Crew]):
        server.calls.append("crew")
        return msg.data

    @server.on("loose")
    async def loose(ctx, msg: Envelope):
        point = msg.load(Point)
        crew = msg.load(Crew) if "captain" in msg.data else None
        return {"x": point.x, "crew": crew}

    return server


async def test_a_handler_gets_the_payload_as_the_type_that_it_names():
    async with running(typed()) as server, peer(server) as client:
        point = await client.request("point", {"x": 1, "unknown": 2})
        boat = await client.request("boat", {"name": "Ada", "length": 9})
        crew = await client.request("crew", {"captain": "Ben"})

    assert (point["type"], point["x"], point["y"]) == ("Point", 1, 0)
    assert (boat["type"], boat["name"]) == ("Boat", "Ada")
    assert (crew["captain"], crew["hands"]) == ("Ben", 0)


@pytest.mark.parametrize(
    ("topic", "data", "name"),
    [
        ("point", {"x": "one"}, "x"),
        ("point", {"y": 1}, "x"),
        ("point", {"x": 1, "tags": [1]}, "tags"),
        ("boat", {"name": "Ada"}, "length"),
        ("boat", {"name": 5, "length": 1}, "name"),
        ("crew", {}, "captain"),
        ("crew", {"captain": "Ben", "hands": "many"}, "hands"),
        ("crew", {"captain": "Ben", "other": 1}, "other"),
    ],
    ids=str,
)
async def test_a_payload_that_does_not_fit_is_refused_before_the_handler_runs(topic, data, name):
    async with running(typed()) as server, peer(server) as client:
        nack = await client.refused(topic, data)

    assert nack["code"] == "validation"
    assert any(key.startswith(name) for key in nack["fields"])
    assert all(isinstance(texts, list) for texts in nack["fields"].values())
    assert server.calls == []


async def test_load_validates_or_raises():
    async with running(typed()) as server, peer(server) as client:
        assert (await client.request("loose", {"x": 1}))["x"] == 1
        nack = await client.refused("loose", {"x": "one"})

    assert nack["code"] == "validation"
    assert "x" in nack["fields"]


# --- routing


async def test_an_exact_topic_beats_any_wildcard_and_the_longest_prefix_wins():
    server = Server()
    for pattern in ("*", "chat:*", "chat:room:*", "chat:room:lobby"):
        server.handle(pattern, lambda ctx, msg, pattern=pattern: {"route": pattern})
    async with running(server), peer(server) as client:
        found = {
            topic: (await client.request(topic))["route"]
            for topic in ("chat:room:lobby", "chat:room:other", "chat:else", "chat", "news")
        }

    assert found == {
        "chat:room:lobby": "chat:room:lobby",
        "chat:room:other": "chat:room:*",
        "chat:else": "chat:*",
        "chat": "*",
        "news": "*",
    }


async def test_a_version_goes_to_its_handler_else_the_unversioned_else_the_next_pattern():
    server = Server()

    def route(name, pattern, version=None):
        server.handle(pattern, lambda ctx, msg: {"route": name}, version=version)

    route("a2", "a", "v2")
    route("a", "a")
    route("b2", "b:c", "v2")
    route("b*", "b:*")
    async with running(server), peer(server) as client:

        async def ask(topic, version=None):
            fields = {"version": version} if version else {}
            return (await client.request(topic, **fields))["route"]

        assert await ask("a", "v2") == "a2"
        assert await ask("a", "v1") == "a"
        assert await ask("a") == "a"
        assert await ask("b:c", "v2") == "b2"
        assert await ask("b:c", "v1") == "b*"
        assert await ask("b:c") == "b*"


# --- order


async def test_messages_of_one_connection_are_handled_in_order_one_after_another():
    server = Server()
    order, inside = [], []

    @server.on("step:*")
    async def step(ctx, msg):
        inside.append(msg.data)
        assert len(inside) == 1
        await asyncio.sleep(0)
        order.append(msg.data)
        inside.clear()

    async with running(server), peer(server) as client:
        for n in range(50):
            await client.send(f"step:{n % 3}", n)
        await client.before_fence()

    assert order == list(range(50))


async def test_two_connections_are_handled_side_by_side():
    server = Server()
    met = asyncio.Barrier(2)

    @server.on("meet")
    async def meet(ctx, msg):
        await met.wait()

    async with running(server), peers(server, 2) as clients:
        await asyncio.gather(*(client.request("meet") for client in clients))


async def test_messages_of_the_same_ordering_key_never_overlap():
    server = Server()
    inside, most = [0], [0]

    async def work(ctx, msg):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        await asyncio.sleep(0.001)
        inside[0] -= 1

    server.handle("work", work, ordering_key=lambda ctx, msg: msg.data)
    async with running(server), peers(server, 4) as clients:
        await asyncio.gather(*(c.request("work", "same") for c in clients for _ in range(1)))

    assert most == [1]


async def test_messages_of_other_ordering_keys_go_side_by_side():
    """Also those of one connection."""
    server = Server()
    met = asyncio.Barrier(2)

    async def meet(ctx, msg):
        await met.wait()

    server.handle("meet", meet, ordering_key=lambda ctx, msg: msg.data)
    async with running(server), peer(server) as client:
        await client.send("meet", "a", id="a", ack=True)
        await client.send("meet", "b", id="b", ack=True)

        assert {(await client.receive())["ref"] for _ in range(2)} == {"a", "b"}


async def test_an_ordering_key_that_raises_is_internal():
    server = Server()
    server.handle("work", lambda ctx, msg: None, ordering_key=lambda ctx, msg: 1 / 0)
    async with running(server), peer(server) as client:
        assert (await client.refused("work"))["code"] == "internal"
        assert await client.before_fence() == []


# --- the context


async def test_the_context_shows_the_hub_the_connection_and_the_message():
    server = Server(authenticator=by_name)
    seen: dict[str, Any] = {}

    @server.on("look")
    async def look(ctx, msg):
        seen.update(
            hub=ctx.hub is server.hub,
            conn=ctx.conn,
            message=ctx.message is msg,
            user_id=ctx.user_id,
            meta=ctx.meta,
            state=ctx.state,
        )

    async with running(server), peer(server, query="?name=ada") as client:
        await client.request("look")

        assert seen["hub"] is True
        assert seen["message"] is True
        assert seen["user_id"] == "ada"
        assert seen["conn"].id == client.conn_id
        assert seen["meta"] == seen["conn"].meta
        assert seen["state"] == {}
