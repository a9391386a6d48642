import asyncio

import pytest

from eyewall.domain.errors import (
    Forbidden,
    Misuse,
    Overloaded,
    RateLimited,
    RoomNotFound,
    Unavailable,
    ValidationError,
)
from eyewall.domain.telling import tell
from tests.application.fakes import settle


@pytest.fixture
async def ada(node):
    """A client in a session."""
    return await node.connect("ada", session=True)


def request(id="1", topic="t", **fields):
    return {"id": id, "topic": topic, "ack": True, **fields}


# --- acks


async def test_a_request_that_asks_for_an_ack_gets_exactly_one(node, ada):
    @node.on("t")
    async def handler(ctx, msg):
        """Nothing to say."""

    assert await ada.ask(request()) == [
        {"ref": "1", "topic": "t", "event": "ack", "data": {"message_id": "1", "status": "ok"}}
    ]


async def test_a_request_that_does_not_ask_gets_none(node, ada):
    @node.on("t")
    async def handler(ctx, msg):
        return {"n": 1}

    assert await ada.ask({"id": "1", "topic": "t"}) == []


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (None, {}),
        ({"n": 1, "m": [2]}, {"n": 1, "m": [2]}),
        (
            {"ref": "mine", "topic": "mine", "event": "mine"},
            {"ref": "mine", "topic": "mine", "event": "mine"},
        ),
        ({1: "one"}, {"1": "one"}),
        (5, {"result": 5}),
        (0, {"result": 0}),
        ([1], {"result": [1]}),
        ("", {"result": ""}),
        (False, {"result": False}),
    ],
)
async def test_what_a_handler_returns_stands_in_the_ack(node, ada, result, shown):
    """A mapping by its keys, anything else as ``result``; never over the ack's own."""

    @node.on("t")
    async def handler(ctx, msg):
        return result

    [ack] = await ada.ask(request())
    assert ack["data"] == {**shown, "message_id": "1", "status": "ok"}


async def test_a_payload_that_a_handler_returns_is_not_changed(node, ada):
    @node.on("t")
    async def handler(ctx, msg):
        return {"was": msg.raw}

    await ada.ask(request(data=None))
    ada.say('{"id": "2", "topic": "t", "ack": true, "data": {"b": 1.10}}')
    await settle()

    assert b'"was":{"b": 1.10}' in ada.link.frames[-1].payload


async def test_a_result_that_can_t_be_encoded_is_an_internal_error(node, ada):
    @node.on("t")
    async def handler(ctx, msg):
        return object()

    [nack] = await ada.ask(request())
    assert nack["data"]["code"] == "internal"
    assert node.logger.of("error") == ["handler_failed"]


# --- refusals


REFUSALS = [
    (Forbidden("no entry"), {"code": "forbidden", "error": "no entry"}),
    (RoomNotFound(), {"code": "room_not_found", "error": "room not found"}),
    (RateLimited(1.5), {"code": "rate_limited", "error": "rate limited", "retry_after": 1.5}),
    (Overloaded("busy"), {"code": "overloaded", "error": "busy", "retry_after": 1.0}),
    (
        ValidationError({"name": ["too long"]}, "bad"),
        {"code": "validation", "error": "bad", "fields": {"name": ["too long"]}},
    ),
    (Unavailable("redis is away"), {"code": "unavailable", "error": "redis is away"}),
    (Misuse("the bug"), {"code": "internal", "error": "internal error"}),
    (RuntimeError("the password"), {"code": "internal", "error": "internal error"}),
]


@pytest.mark.parametrize(("error", "told"), REFUSALS, ids=lambda x: type(x).__name__)
async def test_a_refusal_is_an_error_with_its_code(node, ada, error, told):
    @node.on("t")
    async def handler(ctx, msg):
        raise error

    assert await ada.ask({"id": "1", "topic": "t"}) == [
        {"ref": "1", "topic": "t", "event": "error", "data": told}
    ]


@pytest.mark.parametrize(("error", "told"), REFUSALS, ids=lambda x: type(x).__name__)
async def test_a_refusal_is_a_nack_where_an_ack_was_asked_for(node, ada, error, told):
    """With the same code and fields, and never an error as well."""

    @node.on("t")
    async def handler(ctx, msg):
        raise error

    assert await ada.ask(request()) == [
        {
            "ref": "1",
            "topic": "t",
            "event": "ack",
            "data": {"message_id": "1", "status": "nack", **told},
        }
    ]


async def test_a_reply_to_a_message_without_an_id_has_no_ref(ada):
    [error] = await ada.ask({"topic": "nowhere"})

    assert "ref" not in error
    assert error["data"]["code"] == "handler_not_found"


async def test_details_that_can_t_be_encoded_are_left_out_and_the_answer_is_sent(node, ada):
    """They come from the application's exceptions; without an answer the client waits."""

    @node.on("t")
    async def handler(ctx, msg):
        raise ValidationError({"name": object()}, "bad")

    [nack] = await ada.ask(request())

    assert nack["data"]["code"] == "validation"
    assert "fields" not in nack["data"]
    assert node.logger.of("error") == ["details_not_sent"]


async def test_details_don_t_overwrite_the_code(node, ada):
    class Odd(Forbidden):
        def details(self):
            return {"code": "mine", "status": "ok", "why": "odd"}

    @node.on("t")
    async def handler(ctx, msg):
        raise Odd("no")

    [nack] = await ada.ask(request())

    assert nack["data"] == {
        "message_id": "1",
        "status": "nack",
        "error": "no",
        "code": "odd",
        "why": "odd",
    }


def test_what_is_told_of_an_error():
    assert tell(KeyError("secret")) == ("internal", "internal error", {}, "")
    assert tell(RateLimited(2.0, "slow")) == ("rate_limited", "slow", {"retry_after": 2.0}, "")


async def test_who_has_gone_is_sent_nothing_and_nothing_is_counted(node, ada):
    @node.on("t")
    async def handler(ctx, msg):
        await ctx.conn.close()
        raise Forbidden

    node.hub.reset_stats()
    await ada.ask(request())

    found = node.hub.stats()
    assert (found.errors, found.out_messages, found.drops) == (0, 0, 0)


# --- retransmissions in a session


@pytest.fixture
def handled(node):
    """The ids that the handler of ``t`` was given; its gate is ``handled.gate``."""

    class Handled(list):
        gate = asyncio.Event()
        error = None

    handled = Handled()
    handled.gate.set()

    @node.on("t")
    async def handler(ctx, msg):
        handled.append(msg.id)
        await handled.gate.wait()
        if handled.error is not None:
            raise handled.error
        return {"n": len(handled)}

    return handled


async def test_a_repeat_is_acked_again_with_the_same_answer_and_not_handled_again(ada, handled):
    first = await ada.ask(request())
    again = await ada.ask(request())

    assert again == first
    assert handled == ["1"]


async def test_a_repeat_while_the_first_is_in_work_waits_for_its_answer(ada, handled):
    handled.gate.clear()
    assert await ada.ask(request()) == []
    assert await ada.ask(request()) == []

    handled.gate.set()
    await settle()

    first, second = ada.heard()
    assert first == second
    assert handled == ["1"]


async def test_a_refusal_of_the_handler_is_remembered(ada, handled):
    handled.error = Forbidden("no")
    first = await ada.ask(request())
    handled.error = None

    assert await ada.ask(request()) == first
    assert handled == ["1"]


async def test_an_internal_error_of_the_handler_is_remembered(ada, handled):
    handled.error = RuntimeError("bug")
    first = await ada.ask(request())
    handled.error = None

    assert await ada.ask(request()) == first


@pytest.mark.parametrize("error", [RateLimited(1.0), Overloaded(), Unavailable("away")])
async def test_what_asks_to_try_again_is_handled_again(ada, handled, error):
    handled.error = error
    [nack] = await ada.ask(request())
    handled.error = None
    [ack] = await ada.ask(request())

    assert nack["data"]["status"] == "nack"
    assert ack["data"]["status"] == "ok"
    assert handled == ["1", "1"]


async def test_a_refusal_before_the_handler_is_not_remembered(make_node):
    """The access controller may think differently of it next time."""
    allowed = []

    class Access:
        def can_publish(self, meta, topic, event):
            return bool(allowed)

        def can_subscribe(self, meta, room_id):
            return True

    node = await make_node(access_controller=Access())

    @node.on("t")
    async def handler(ctx, msg):
        """Nothing."""

    ada = await node.connect("ada", session=True)
    [nack] = await ada.ask(request())
    allowed.append(1)
    [ack] = await ada.ask(request())

    assert (nack["data"]["status"], ack["data"]["status"]) == ("nack", "ok")


async def test_a_fault_before_the_handler_is_not_remembered(make_node):
    broken = [1]

    def validator(topic, event, data):
        if broken:
            raise RuntimeError("bug")

    node = await make_node(validator=validator)

    @node.on("t")
    async def handler(ctx, msg):
        """Nothing."""

    ada = await node.connect("ada", session=True)
    [nack] = await ada.ask(request())
    broken.clear()
    [ack] = await ada.ask(request())

    assert nack["data"]["code"] == "internal"
    assert ack["data"]["status"] == "ok"


async def test_the_last_256_ids_are_remembered(ada, handled):
    for n in range(256):
        await ada.ask(request(str(n)))
    await ada.ask(request("0"))
    assert len(handled) == 256

    await ada.ask(request("256"))  # the 257th: the oldest is forgotten
    await ada.ask(request("1"))
    assert len(handled) == 257
    await ada.ask(request("0"))
    assert len(handled) == 258


async def test_a_request_that_asks_for_no_ack_is_handled_each_time(ada, handled):
    await ada.ask({"id": "1", "topic": "t"})
    await ada.ask({"id": "1", "topic": "t"})

    assert handled == ["1", "1"]


async def test_without_a_session_nothing_is_remembered(node, handled):
    bob = await node.connect("bob")

    await bob.ask(request())
    await bob.ask(request())

    assert handled == ["1", "1"]


async def test_ids_of_two_sessions_have_nothing_to_do_with_each_other(node, ada, handled):
    bob = await node.connect("bob", session=True)

    await ada.ask(request())
    await bob.ask(request())

    assert handled == ["1", "1"]


async def test_a_handler_that_is_cancelled_is_answered_and_its_repeat_handled(ada, node):
    handled = []

    @node.on("t")
    async def handler(ctx, msg):
        handled.append(msg.id)
        if len(handled) == 1:
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

    [nack] = await ada.ask(request())
    [ack] = await ada.ask(request())

    assert nack["data"]["code"] == "internal"
    assert ack["data"]["status"] == "ok"
