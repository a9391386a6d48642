"""``eyewall.middleware``: exactly six, and each does its work where a user puts it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

import eyewall.middleware as ready_made
from eyewall import Forbidden, TokenBucketLimiter, ValidationError
from eyewall.middleware import auth_required, log, rate_limit, recover, trace, validate
from tests.application.fakes import Harness, RecordingLogger
from tests.entrypoints.house import open_house


@pytest.fixture
async def node():
    async with Harness() as harness:

        @harness.on("echo")
        async def echo(ctx, msg):
            return {"echo": msg.data}

        @harness.on("break")
        async def broken(ctx, msg):
            raise RuntimeError("the password")

        yield harness


async def ask(client, topic="echo", data=None, **fields):
    """The data of the ack to one request."""
    [ack] = await client.ask({"id": "1", "topic": topic, "ack": True, "data": data, **fields})
    return ack["data"]


def test_there_are_exactly_six():
    """Programs import them by these names."""
    names = {"auth_required", "log", "rate_limit", "recover", "trace", "validate"}

    assert set(ready_made.__all__) == names
    assert {name for name in vars(ready_made) if not name.startswith("_")} == names


def test_each_says_what_it_is_for():
    assert all(getattr(ready_made, name).__doc__ for name in ready_made.__all__)


async def test_recover_keeps_the_text_of_a_fault_on_the_server(node):
    logger = RecordingLogger()
    node.hub.use(recover(logger))
    ada = await node.connect("ada")

    answer = await ask(ada, "break")

    assert answer["code"] == "internal"
    assert "password" not in str(answer)
    assert "the password" in logger.fields("handler_failed")["error"]


async def test_recover_stands_outside_of_those_that_were_added_before_it(node):
    logger = RecordingLogger()

    async def broken(ctx, msg, next):
        raise RuntimeError("before the handler")

    node.hub.use(broken)
    node.hub.use(recover(logger))
    ada = await node.connect("ada")

    assert (await ask(ada))["code"] == "internal"
    assert logger.of("error") == ["handler_failed"]


async def test_log_tells_of_each_message_what_became_of_it_and_nothing_it_held(node):
    logger = RecordingLogger()
    node.hub.use(log(logger))
    ada = await node.connect("ada")

    await ask(ada, data="a secret")
    await ask(ada, "break")

    assert [f["outcome"] for _, _, f in logger.entries] == ["ok", "failed"]
    assert [f["user_id"] for _, _, f in logger.entries] == ["ada", "ada"]
    assert "a secret" not in str(logger.entries)


async def test_auth_required_asks_for_a_user(node):
    node.hub.use(auth_required())
    ada, nobody = await node.connect("ada"), await node.connect()

    assert (await ask(ada, data=1))["echo"] == 1
    assert (await ask(nobody))["code"] == "unauthorized"


async def test_auth_required_asks_for_any_of_its_roles(node):
    node.hub.use(auth_required("editor", "admin"))
    ada = await node.connect("ada", roles={"editor"})
    ben = await node.connect("ben", roles={"reader"})

    assert (await ask(ada, data=1))["echo"] == 1
    assert (await ask(ben))["code"] == "forbidden"


async def test_validate_refuses_a_payload_before_the_handler_sees_it(node):
    def only_numbers(topic, event, data):
        if not isinstance(data, int):
            raise ValidationError({"data": [f"{topic} takes a number"]})

    node.hub.use(validate(only_numbers))
    ada = await node.connect("ada")

    assert (await ask(ada, data=1))["echo"] == 1
    refusal = await ask(ada, data="one")
    assert refusal["code"] == "validation"
    assert refusal["fields"] == {"data": ["echo takes a number"]}


async def test_trace_opens_a_span_around_the_handler_and_closes_it_after_a_fault(node):
    class Tracer:
        def __init__(self):
            self.spans = []

        @contextmanager
        def span(self, name, headers, attributes):
            self.spans.append(("begin", name, headers.get("traceparent")))
            try:
                yield
            finally:
                self.spans.append(("end", name))

    tracer = Tracer()
    node.hub.use(trace(tracer))
    ada = await node.connect("ada")

    await ask(ada, "break", headers={"traceparent": "00-1"})

    assert tracer.spans == [("begin", "break", "00-1"), ("end", "break")]


async def test_rate_limit_counts_each_user_alone(node):
    node.hub.use(rate_limit(TokenBucketLimiter(rate=1, burst=2, clock=node.clock.now)))
    ada, ben = await node.connect("ada"), await node.connect("ben")

    answers = [await ask(ada) for _ in range(3)]

    assert [answer.get("code") for answer in answers] == [None, None, "rate_limited"]
    assert answers[2]["retry_after"] == 1.0
    assert "code" not in await ask(ben)
    await node.advance(1.0)
    assert "code" not in await ask(ada)


async def test_all_six_stand_around_one_handler():
    """As in the example of the module, on a server with a real socket."""
    asked, spans, logger = [], [], RecordingLogger()

    class Tracer:
        @contextmanager
        def span(self, name, headers, attributes):
            spans.append(name)
            yield

    async with open_house() as house:
        house.server.use(log(logger), trace(Tracer()), auth_required(), recover())
        limits = rate_limit(lambda key: asked.append(key) or 0.0)

        @house.server.on("echo", limits, validate(lambda topic, event, data: None))
        async def echo(ctx, msg):
            if msg.data == "no":
                raise Forbidden("no")
            return {"echo": msg.data}

        ada = await house.come("ada")
        assert (await ada.request("echo", 1))["echo"] == 1
        assert (await ada.refused("echo", "no"))["code"] == "forbidden"
        nobody = await house.come()
        assert (await nobody.refused("echo", 1))["code"] == "unauthorized"

    assert asked == ["user:ada", "user:ada"]
    assert spans == ["echo"] * 3
    assert [f["outcome"] for _, _, f in logger.entries] == ["ok", "forbidden", "unauthorized"]
