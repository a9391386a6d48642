import asyncio
from contextlib import contextmanager

import pytest

from eyewall.adapters.limits.memory import TokenBucketLimiter
from eyewall.application.dispatch.middleware import (
    auth_required,
    log,
    rate_limit,
    recover,
    trace,
    validate,
)
from eyewall.application.ports.logging import LINES
from eyewall.application.ports.plugins import method
from eyewall.domain.errors import Forbidden, ValidationError
from tests.application.fakes import RecordingLogger, settle


@pytest.fixture
def logger():
    return RecordingLogger()


@pytest.fixture
async def ada(node):
    return await node.connect("ada", roles={"editor"})


@pytest.fixture
async def nobody(node):
    return await node.connect()


async def ok(ctx, msg):
    return "ok"


async def broken(ctx, msg):
    raise RuntimeError("the password")


async def refused(ctx, msg):
    raise Forbidden("no")


async def ask(client, topic="t", **fields):
    """Ask for an ack; returns its data."""
    [ack] = await client.ask({"id": "1", "topic": topic, "ack": True, **fields})
    return ack["data"]


# --- the chain


async def test_middleware_gets_the_handler_s_result_and_may_replace_it(node, ada):
    async def doubles(ctx, msg, next):
        return [await next(ctx, msg)] * 2

    node.hub.handle("t", ok, doubles)

    assert (await ask(ada))["result"] == ["ok", "ok"]


async def test_not_calling_next_stops_the_message_and_what_it_returned_is_the_answer(node, ada):
    reached = []

    async def handler(ctx, msg):
        reached.append(1)

    async def stops(ctx, msg, next):
        return {"cached": True}

    node.hub.handle("t", handler, stops)

    assert (await ask(ada))["cached"] is True
    assert reached == []


async def test_state_is_passed_on_to_the_handler_and_to_nobody_else(node, ada):
    seen = []

    async def notes(ctx, msg, next):
        seen.append(dict(ctx.state))
        ctx.state["n"] = msg.data
        return await next(ctx, msg)

    async def handler(ctx, msg):
        return ctx.state["n"]

    node.hub.handle("t", handler, notes)

    assert (await ask(ada, data=1))["result"] == 1
    assert (await ask(ada, data=2))["result"] == 2
    assert seen == [{}, {}]


async def test_middleware_may_hand_on_another_message(node, ada):
    async def translates(ctx, msg, next):
        return await next(ctx, msg.with_data({"was": msg.data}))

    async def handler(ctx, msg):
        return msg.data

    node.hub.handle("t", handler, translates)

    assert (await ask(ada, data=1))["was"] == 1


# --- recover


async def test_recover_logs_the_unexpected_and_answers_internal(node, ada, logger):
    node.hub.use(recover(logger))
    node.hub.handle("t", broken)

    assert (await ask(ada))["code"] == "internal"
    assert logger.of("error") == ["handler_failed"]
    assert logger.fields("handler_failed")["route"] == "t"
    assert node.logger.of("error") == []


async def test_recover_uses_the_server_s_logger_where_it_is_given_none(node, ada):
    node.hub.use(recover())
    node.hub.handle("t", broken)
    await ask(ada)

    assert node.logger.of("error") == ["handler_failed"]


async def test_on_error_hooks_hear_the_cause_of_what_recover_caught(node, ada, logger):
    heard = []
    node.hub.on_error(lambda conn, error: heard.append(str(error)))
    node.hub.use(recover(logger))
    node.hub.handle("t", broken)
    await ask(ada)

    assert heard == ["the password"]


async def test_recover_leaves_refusals_alone(node, ada, logger):
    node.hub.use(recover(logger))
    node.hub.handle("t", refused)

    assert (await ask(ada))["code"] == "forbidden"
    assert logger.entries == []


async def test_recover_stands_outermost_wherever_it_was_added(node, ada, logger):
    """What another middleware raises is recovered too."""

    async def broken_middleware(ctx, msg, next):
        raise RuntimeError

    node.hub.use(broken_middleware)
    node.hub.handle("t", ok, recover(logger))

    assert (await ask(ada))["code"] == "internal"
    assert logger.of("error") == ["handler_failed"]


# --- log


async def cancelled(ctx, msg):
    waiting = asyncio.get_running_loop().create_future()
    waiting.cancel()
    await waiting


@pytest.mark.parametrize(
    ("handler", "outcome"),
    [(ok, "ok"), (refused, "forbidden"), (broken, "failed"), (cancelled, "failed")],
)
async def test_log_says_what_became_of_each_message(node, ada, logger, handler, outcome):
    node.hub.handle("chat:*", handler, log(logger))
    await ask(ada, "chat:x", event="say", data="the secret")

    [(level, event, fields)] = logger.entries
    assert (level, event) == ("info", "message")
    assert fields.pop("seconds") >= 0
    assert fields == {
        "route": "chat:*",
        "topic": "chat:x",
        "message_event": "say",
        "message_id": "1",
        "user_id": "ada",
        "conn_id": ada.id,
        "outcome": outcome,
    }


# --- auth_required


async def test_auth_required_lets_only_users_through(node, ada, nobody):
    node.hub.handle("t", ok, auth_required())

    assert (await ask(ada))["result"] == "ok"
    assert (await ask(nobody))["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("roles", "code"), [(("admin",), "forbidden"), (("admin", "editor"), None)]
)
async def test_any_of_the_roles_will_do(node, ada, roles, code):
    node.hub.handle("t", ok, auth_required(*roles))

    assert (await ask(ada)).get("code") == code


async def test_which_role_is_missing_is_for_the_log_and_not_for_the_client(node, ada):
    node.hub.handle("t", ok, auth_required("owner", "admin"))

    for _ in range(LINES + 1):
        answer = await ask(ada)
    await settle()

    assert answer["error"] == "this needs another role"
    told = [fields for _, event, fields in node.logger.entries if event == "role_missing"]
    assert len(told) == LINES
    assert (told[0]["needs"], told[0]["route"]) == (["admin", "owner"], "t")
    assert told[0]["user_id"] == "ada"


async def test_without_a_user_a_role_is_no_question(node, nobody):
    node.hub.handle("t", ok, auth_required("admin"))

    assert (await ask(nobody))["code"] == "unauthorized"


# --- validate


@pytest.mark.parametrize("is_async", [True, False])
async def test_validate_refuses_what_the_validator_does_not_accept(node, ada, is_async):
    def plain(topic, event, data):
        if data != 1:
            raise ValidationError({"data": ["must be 1"]})

    async def waits(topic, event, data):
        plain(topic, event, data)

    node.hub.handle("t", ok, validate(waits if is_async else plain))

    assert (await ask(ada, data=1))["result"] == "ok"
    assert (await ask(ada, data=2))["fields"] == {"data": ["must be 1"]}


# --- trace


async def test_trace_runs_each_message_in_a_span_named_for_its_route(node, ada):
    spans = []

    class Tracer:
        @contextmanager
        def span(self, name, headers, attributes):
            spans.append(("begin", name, dict(headers), attributes["conn_id"] == ada.id))
            try:
                yield
            finally:
                spans.append(("end", name))

    node.hub.handle("chat:*", broken, trace(Tracer()))
    await ask(ada, "chat:x", headers={"traceparent": "00-1"})

    assert spans == [
        ("begin", "chat:*", {"traceparent": "00-1"}, True),
        ("end", "chat:*"),
    ]


# --- rate_limit


async def test_rate_limit_says_how_long_to_wait(node, ada):
    node.hub.handle("t", ok, rate_limit(lambda key: 1.23456))

    refusal = await ask(ada)

    assert (refusal["code"], refusal["retry_after"]) == ("rate_limited", 1.235)


async def test_the_key_is_the_user_else_the_address_else_the_connection(node, ada, nobody):
    keys = []

    async def allow(key):
        keys.append(key)
        return 0.0

    node.hub.handle("t", ok, rate_limit(allow))
    home = await node.connect(ip="10.0.0.1")
    for client in (ada, home, nobody):
        await ask(client)

    assert keys == ["user:ada", "ip:10.0.0.1", f"conn:{nobody.id}"]


async def test_the_key_may_be_chosen(node, ada):
    keys = []
    limiter = rate_limit(lambda key: keys.append(key) or 0.0, key=lambda ctx: ctx.message.topic)
    node.hub.handle("t", ok, limiter)
    await ask(ada)

    assert keys == ["t"]


async def test_the_ready_made_limiter_fits(node, ada):
    limiter = TokenBucketLimiter(rate=1, burst=2)
    node.hub.handle("t", ok, rate_limit(limiter))

    assert [("code" in await ask(ada)) for _ in range(3)] == [False, False, True]


# --- ports with one method


def test_a_port_with_one_method_may_be_a_plain_callable():
    class Port:
        def allow(self, key):
            return "method"

    assert method(Port(), "allow")("k") == "method"
    assert method(lambda key: "itself", "allow")("k") == "itself"
    with pytest.raises(ValueError, match="allow"):
        method(object(), "allow")
