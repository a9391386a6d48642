"""api.md: middleware, and the ready-made parts."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

import pytest
from marshmallow import Schema, fields

from eyewall import (
    Envelope,
    Forbidden,
    MarshmallowValidator,
    RateLimited,
    Server,
    TokenBucketLimiter,
    ValidationError,
)
from eyewall.middleware import auth_required, log, rate_limit, recover, trace, validate
from tests.entrypoints.house import by_name
from tests.entrypoints.wire import WITHIN, peer, running


async def ok(ctx, msg):
    return {"ok": True}


# --- middleware


async def test_middleware_stands_around_the_handler_global_ones_outermost():
    server = Server()
    order = []

    def marking(name):
        async def mark(ctx, msg, next):
            order.append(f"{name} in")
            result = await next(ctx, msg)
            order.append(f"{name} out")
            return result

        return mark

    async def handler(ctx, msg):
        order.append("handler")

    server.use(marking("first"))
    server.handle("a", handler, marking("inner"), marking("innermost"))
    server.use(marking("second"))
    async with running(server), peer(server) as client:
        await client.request("a")

    names = ["first", "second", "inner", "innermost"]
    assert order == [
        *(f"{n} in" for n in names),
        "handler",
        *(f"{n} out" for n in reversed(names)),
    ]


async def test_middleware_may_replace_the_result_the_message_or_stop_it():
    server = Server()
    handled = []

    async def replace(ctx, msg, next):
        return {**(await next(ctx, msg)), "replaced": True}

    async def stop(ctx, msg, next):
        return {"stopped": True}

    async def refuse(ctx, msg, next):
        raise Forbidden("not here")

    async def silent(ctx, msg, next):
        return None

    async def handler(ctx, msg):
        handled.append(msg.topic)
        return {"handled": True}

    for middleware in (replace, stop, refuse, silent):
        server.handle(middleware.__name__, handler, middleware)
    async with running(server), peer(server) as client:
        replaced = await client.request("replace")
        stopped = await client.request("stop")
        refused = await client.refused("refuse")
        silent_one = await client.request("silent")

    assert (replaced["handled"], replaced["replaced"]) == (True, True)
    assert stopped["stopped"] is True
    assert refused["code"] == "forbidden"
    assert set(silent_one) == {"message_id", "status"}
    assert handled == ["replace"]


async def test_middleware_passes_things_on_in_the_state():
    server = Server()

    async def put(ctx, msg, next):
        ctx.state["who"] = "ada"
        return await next(ctx, msg)

    async def get(ctx, msg):
        return {"who": ctx.state.get("who")}

    server.handle("with", get, put)
    server.handle("without", get)
    async with running(server), peer(server) as client:
        assert (await client.request("with"))["who"] == "ada"
        assert (await client.request("without"))["who"] is None, "the state is one message's own"


# --- the ready-made ones


async def test_auth_required_asks_for_a_user_and_any_of_its_roles():
    server = Server(authenticator=by_name)
    server.handle("users", ok, auth_required())
    server.handle("staff", ok, auth_required("boss", "staff"))
    async with running(server):
        async with peer(server) as nobody:
            assert (await nobody.refused("users"))["code"] == "unauthorized"
            assert (await nobody.refused("staff"))["code"] == "unauthorized"
        async with peer(server, query="?name=ada") as ada:
            assert (await ada.request("users"))["ok"]
            assert (await ada.refused("staff"))["code"] == "forbidden"
        async with peer(server, query="?name=ben&roles=staff") as ben:
            assert (await ben.request("staff"))["ok"]


async def test_a_rate_limit_says_when_to_come_back():
    server = Server(authenticator=by_name)
    server.handle("limited", ok, rate_limit(TokenBucketLimiter(rate=0.01, burst=2)))
    async with running(server), peer(server, query="?name=ada") as ada:
        await ada.request("limited")
        await ada.request("limited")
        nack = await ada.refused("limited")

        assert nack["code"] == "rate_limited"
        assert 0 < nack["retry_after"] <= 100

        async with peer(server, query="?name=ben") as ben:
            await ben.request("limited")


@pytest.mark.parametrize("key", [lambda ctx, msg: msg.topic, lambda ctx: ctx.message.topic])
async def test_a_rate_limit_may_have_a_key_of_its_own(key):
    server = Server(authenticator=by_name)
    limit = rate_limit(TokenBucketLimiter(rate=0.01, burst=1), key=key)
    server.handle("a", ok, limit)
    server.handle("b", ok, limit)
    async with running(server):
        async with peer(server, query="?name=ada") as ada:
            await ada.request("a")
            await ada.request("b")
        async with peer(server, query="?name=ben") as ben:
            assert (await ben.refused("a"))["code"] == "rate_limited"


async def test_a_limiter_may_be_a_plain_callable():
    """A port of one method; plain or async."""

    async def never(key):
        return 7.0

    server = Server()
    server.handle("a", ok, rate_limit(never))
    server.handle("b", ok, rate_limit(lambda key: 0.0))
    async with running(server), peer(server) as client:
        assert (await client.refused("a"))["retry_after"] == 7.0
        await client.request("b")


async def test_validate_asks_a_validator():
    def validator(topic, event, data):
        if not isinstance(data, dict):
            raise ValidationError({"data": ["must be an object"]})

    server = Server()
    server.handle("a", ok, validate(validator))
    async with running(server), peer(server) as client:
        assert (await client.refused("a", 5))["fields"] == {"data": ["must be an object"]}
        await client.request("a", {})


async def test_recover_and_log_change_no_answer():
    server = Server()

    async def crash(ctx, msg):
        raise RuntimeError("secret")

    server.use(log(), recover())
    server.handle("crash", crash)
    server.handle("ok", ok)
    server.handle("limited", lambda ctx, msg: (_ for _ in ()).throw(RateLimited(1.0)))
    async with running(server), peer(server) as client:
        assert (await client.refused("crash"))["code"] == "internal"
        assert (await client.request("ok"))["ok"] is True
        assert (await client.refused("limited"))["code"] == "rate_limited"


async def test_trace_opens_a_span_around_the_handler():
    spans = []

    class Tracer:
        def span(self, name, headers, attributes):
            import contextlib

            @contextlib.contextmanager
            def span():
                spans.append(("in", dict(headers)))
                yield
                spans.append(("out", None))

            return span()

    async def handler(ctx, msg):
        spans.append(("handler", None))

    server = Server()
    server.handle("a", handler, trace(Tracer()))
    async with running(server), peer(server) as client:
        await client.request("a", headers={"traceparent": "x"})

    assert [what for what, _ in spans] == ["in", "handler", "out"]
    assert spans[0][1] == {"traceparent": "x"}


async def test_a_function_will_do_for_a_tracer():
    """As for every port of one method: for the whole server, and for a route."""
    spans = []

    @contextlib.contextmanager
    def span(name, headers, attributes):
        spans.append(name)
        yield

    server = Server(tracer=span)
    server.handle("a:*", lambda ctx, msg: None, trace(span))
    async with running(server), peer(server) as client:
        await client.request("a:b")

    assert spans == ["a:*", "a:*"]


async def test_a_plain_handler_that_is_slow_is_answered_when_it_ends():
    server, go_on = Server(), threading.Event()
    server.handle("slow", lambda ctx, msg: {"in_time": go_on.wait(WITHIN)})
    server.handle("quick", lambda ctx, msg: go_on.set(), ordering_key=lambda ctx, msg: "quick")
    async with running(server), peer(server) as client:
        await client.send("slow", id="s", ack=True)
        await client.send("quick", id="q", ack=True)

        answers = [await client.receive() for _ in range(2)]

    assert {a["ref"]: a["data"].get("in_time") for a in answers} == {"s": True, "q": None}


async def test_a_payload_that_does_not_fit_is_refused_with_the_names_of_its_fields():
    """In the text, which is all that many a program shows; both ways of checking alike."""

    class Person(Schema):
        name = fields.Str(required=True)
        age = fields.Int()

    @dataclass
    class Point:
        x: int

    server = Server()
    server.handle("person", ok, validate(MarshmallowValidator({"person": Person})))

    @server.on("point")
    async def point(ctx, msg: Envelope[Point]):
        """Gets a point."""

    async with running(server), peer(server) as client:
        person = await client.refused("person", {"age": "x"})
        spot = await client.refused("point", {"x": "y"})

    begin = "the payload does not fit its schema: "
    assert person["error"].startswith(begin)
    assert "age: Not a valid integer." in person["error"]
    assert "name: Missing data for required field." in person["error"]
    assert spot["error"].startswith(f"{begin}x: ")


async def test_a_limiter_of_the_server_is_asked_for_every_message():
    keys = []
    server = Server(client_commands=True, limiter=lambda key: keys.append(key) or 0.0)
    server.handle("t", ok)

    async with running(server), peer(server) as client:
        await client.request("t")
        await client.request("system:join", {"room": "lab"})
        await client.refused("nowhere")

    assert keys == ["ip:127.0.0.1"] * 3
