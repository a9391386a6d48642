"""No ``from __future__ import annotations`` here: see ``future_handlers.py`` for that."""

import asyncio
import functools
import sys
import threading
from dataclasses import dataclass
from typing import Any, TypeVar

import marshmallow
import msgspec
import pytest

from eyewall.application.dispatch.handlers import is_async, payload_type
from eyewall.domain.envelope import Envelope
from tests.application import future_handlers
from tests.application.fakes import settle

T = TypeVar("T")


@dataclass
class Point:
    x: int
    y: int = 0


class Struct(msgspec.Struct):
    x: int


class Schema(marshmallow.Schema):
    x = marshmallow.fields.Integer(required=True, strict=True)


@pytest.fixture
async def ada(node):
    return await node.connect("ada")


# --- which kind


async def waits(ctx, msg):
    return "async"


class Speaker:
    async def __call__(self, ctx, msg):
        return "object"

    async def method(self, ctx, msg):
        return "method"

    def plain(self, ctx, msg):
        return "plain"


@pytest.mark.parametrize(
    ("handler", "wanted"),
    [
        (waits, True),
        (Speaker(), True),
        (Speaker().method, True),
        (functools.partial(waits, msg=None), True),
        (Speaker().plain, False),
        (lambda ctx, msg: None, False),
        (print, False),
    ],
)
def test_what_counts_as_async(handler, wanted):
    assert is_async(handler) is wanted


@pytest.mark.parametrize(
    ("handler", "result"),
    [
        (waits, "async"),
        (Speaker(), "object"),
        (Speaker().method, "method"),
        (Speaker().plain, "plain"),
        (lambda ctx, msg: waits(ctx, msg), "async"),
    ],
)
async def test_any_callable_may_be_a_handler(node, ada, handler, result):
    node.hub.handle("t", handler)

    ada.say({"id": "1", "topic": "t", "ack": True})
    [ack] = await answers(ada)

    assert ack["data"]["result"] == result


async def answers(client):
    """What a client is told when a thread had to do with it."""
    for _ in range(200):
        await settle()
        if found := client.heard():
            return found
        await asyncio.to_thread(lambda: None)
    raise AssertionError("no answer")


def test_what_can_t_be_called_is_no_handler(make_node):
    from eyewall.application.dispatch.router import Registration

    with pytest.raises(TypeError, match="callable"):
        Registration("t", "handler", (), None, None)


# --- plain handlers


async def test_a_plain_handler_runs_in_a_thread(node, ada):
    @node.on("t")
    def handler(ctx, msg):
        return {"thread": threading.current_thread() is threading.main_thread()}

    ada.say({"id": "1", "topic": "t", "ack": True})
    [ack] = await answers(ada)

    assert ack["data"]["thread"] is False


async def test_a_plain_handler_can_t_block_the_loop(node, ada):
    gate = threading.Event()

    @node.on("slow")
    def slow(ctx, msg):
        assert gate.wait(10)

    @node.on("fast")
    async def fast(ctx, msg):
        return "done"

    ada.say({"topic": "slow"})
    bob = await node.connect("bob")
    [ack] = await bob.ask({"id": "1", "topic": "fast", "ack": True})

    assert ack["data"]["result"] == "done"
    gate.set()


async def test_what_a_plain_handler_raises_is_an_error_like_any_other(node, ada):
    @node.on("t")
    def handler(ctx, msg):
        return next(iter(()))

    ada.say({"id": "1", "topic": "t", "ack": True})
    [nack] = await answers(ada)

    assert nack["data"]["code"] == "internal"


# --- Envelope[T]


async def by_dataclass(ctx: Any, msg: Envelope[Point]) -> Any:
    return [type(msg.data).__name__, msg.data.x]


async def by_struct(ctx: Any, msg: Envelope[Struct]) -> Any:
    return [type(msg.data).__name__, msg.data.x]


async def by_schema(ctx: Any, msg: Envelope[Schema]) -> Any:
    return [type(msg.data).__name__, msg.data["x"]]


async def by_dict(ctx: Any, msg: Envelope[dict[str, int]]) -> Any:
    return [type(msg.data).__name__, msg.data["x"]]


TYPED = [
    (by_dataclass, "Point"),
    (by_struct, "Struct"),
    (by_schema, "dict"),
    (by_dict, "dict"),
    (future_handlers.by_dataclass, "Point"),
    (future_handlers.by_module, "Point"),
    (future_handlers.by_alias, "Point"),
    (future_handlers.Says().method, "Point"),
    (future_handlers.Says(), "Point"),
    (functools.partial(by_dataclass), "Point"),
]


@pytest.mark.parametrize(("handler", "kind"), TYPED)
async def test_a_payload_comes_as_the_type_that_the_handler_names(node, ada, handler, kind):
    node.hub.handle("t", handler)

    [ack] = await ada.ask({"id": "1", "topic": "t", "data": {"x": 5}, "ack": True})

    assert ack["data"]["result"] == [kind, 5]


@pytest.mark.parametrize(("handler", "kind"), TYPED)
@pytest.mark.parametrize("data", [{"x": "no"}, [], None, "x"])
async def test_a_payload_that_does_not_fit_is_refused_before_it_runs(
    node, ada, handler, kind, data
):
    node.hub.handle("t", handler)

    [nack] = await ada.ask({"id": "1", "topic": "t", "data": data, "ack": True})

    assert nack["data"]["code"] == "validation"
    assert nack["data"]["fields"]


async def test_a_missing_payload_does_not_fit_either(node, ada):
    node.hub.handle("t", by_dataclass)

    [nack] = await ada.ask({"id": "1", "topic": "t", "ack": True})

    assert nack["data"]["code"] == "validation"


async def test_null_may_be_a_payload_that_fits(node, ada):
    async def handler(ctx: Any, msg: Envelope[Point | None]) -> Any:
        return [msg.data]

    node.hub.handle("t", handler)

    [ack] = await ada.ask({"id": "1", "topic": "t", "ack": True})

    assert ack["data"]["result"] == [None]


async def test_a_class_of_the_place_that_registers_it_is_found(node, ada):
    @dataclass
    class Local:
        x: int

    node.hub.handle("t", future_handlers.of_local(Local))

    [ack] = await ada.ask({"id": "1", "topic": "t", "data": {"x": 5}, "ack": True})

    assert ack["data"]["result"] == "Local"


async def test_a_plain_handler_gets_its_type_too(node, ada):
    @node.on("t")
    def handler(ctx, msg: Envelope[Point]):
        return msg.data.x

    ada.say({"id": "1", "topic": "t", "data": {"x": 5}, "ack": True})
    [ack] = await answers(ada)

    assert ack["data"]["result"] == 5


async def test_everything_else_of_the_message_stays(node, ada):
    seen = []

    @node.on("t")
    async def handler(ctx: Any, msg: Envelope[Point]) -> None:
        seen.append((msg.id, msg.topic, msg.event, msg.headers, msg.version, msg.raw.data))

    await ada.ask(
        '{"id": "1", "topic": "t", "event": "e", "headers": {"a": "b"}, "version": "v2",'
        ' "data": {"x": 5}}'
    )

    assert seen == [("1", "t", "e", {"a": "b"}, "v2", b'{"x": 5}')]


def test_which_annotations_name_no_type():
    async def bare(ctx, msg): ...
    async def envelope(ctx: Any, msg: Envelope) -> None: ...
    async def any_(ctx: Any, msg: Envelope[Any]) -> None: ...
    async def generic(ctx: Any, msg: Envelope[T]) -> None: ...
    async def returned(ctx: Any, msg: Any) -> Envelope[Point]: ...

    for handler in (bare, envelope, any_, generic, returned, future_handlers.untyped, print):
        assert payload_type(handler) is None


def test_names_for_type_checkers_only_don_t_matter():
    assert payload_type(future_handlers.with_names_for_type_checkers) is future_handlers.Point


def test_a_type_that_can_t_be_found_is_named_where_it_is_registered():
    with pytest.raises(ValueError, match="Nowhere"):
        payload_type(future_handlers.of_a_type_that_is_not_there)


async def test_a_handler_that_gives_up_does_not_take_the_server_along(node):
    """``sys.exit`` somewhere below a handler, plain or async, is one failed message."""
    client = await node.connect("ada")

    async def asynchronous(ctx, msg):
        sys.exit(3)

    node.hub.handle("async", asynchronous)
    node.hub.handle("plain", lambda ctx, msg: sys.exit(3))

    for topic in ("async", "plain"):
        (reply,) = await client.ask({"id": topic, "topic": topic, "ack": True})
        assert reply["data"]["code"] == "internal"
