"""Whatever is raised, exactly one answer goes out, and nothing that serves it prevents it."""

import asyncio
import math

import pytest

from eyewall.domain.errors import (
    Forbidden,
    Misuse,
    Overloaded,
    RateLimited,
    Refused,
    Unavailable,
    ValidationError,
)
from eyewall.domain.request_log import LIMIT
from eyewall.domain.telling import MAX_DETAILS, MAX_TEXT
from tests.application.fakes import settle

PUBLISH = "system:publish"


def request(id="1", topic="t", **fields):
    return {"id": id, "topic": topic, "ack": True, **fields}


def publish(room, id="1", **data):
    return request(id, PUBLISH, data={"room": room, "data": "hi", **data})


@pytest.fixture
async def ada(node):
    """A client in a session."""
    return await node.connect("ada", session=True)


def in_work(client):
    return 0 if client.conn.request_log is None else client.conn.request_log.in_flight


# --- what a client publishes


@pytest.mark.parametrize(
    "data",
    [
        {"room": "r" * 252},
        {"room": "r" * 100_000},
        {"room": ""},
        {"room": None},
        {"room": "bad\n"},
        {"room": "elsewhere", "event": "e" * 257},
        {"room": "elsewhere", "event": 5},
        {"room": "elsewhere", "event": "join"},
        {},
    ],
    ids=range(9),
)
async def test_a_refused_publish_is_answered_and_its_id_is_free_again(node, ada, data):
    failures = []
    node.hub.on_send_failure(failures.append)

    [nack] = await ada.ask(request("1", PUBLISH, data={"data": "hi", **data}))

    assert nack["data"]["status"] == "nack"
    assert nack["data"]["code"] in ("validation", "not_a_member")
    assert in_work(ada) == 0
    [failure] = failures
    assert len(failure.recipient) <= 256


@pytest.mark.parametrize("event", ["e" * 257, "e" * 256])
async def test_an_event_of_a_member_that_is_too_long_is_answered(node, ada, event):
    await node.hub.join("r", ada.id)
    ada.heard()

    [answer] = [a for a in await ada.ask(publish("r", event=event)) if a["event"] == "ack"]

    wrong = None if len(event) == 256 else "validation"
    assert answer["data"].get("code") == wrong
    assert "handler_failed" not in node.logger.of("error")
    assert in_work(ada) == 0


async def test_a_publish_that_the_access_controller_refuses_is_answered_and_may_come_again(
    make_node,
):
    class Access:
        allows = False

        def can_publish(self, meta, topic, event):
            return self.allows

        def can_subscribe(self, meta, room):
            return True

    access = Access()
    node = await make_node(client_commands=True, access_controller=access)
    ada = await node.connect("ada", session=True)
    await node.hub.join("r", ada.id)
    long = "x" * 300
    for number in range(400):
        [nack] = await ada.ask(publish(long, str(number)))
        assert nack["data"]["code"] == "forbidden"
    assert in_work(ada) == 0

    access.allows = True
    answers = await ada.ask(publish("r", "399"))
    assert {"ack", "message"} >= {a.get("event", "message") for a in answers}
    assert any(a.get("data") == "hi" for a in answers)


async def test_a_failure_handler_that_can_not_be_told_prevents_no_answer(node, ada):
    """Whatever becomes of the report, the answer is out."""

    def broken(*_):
        raise SystemExit

    node.parts.failures.tell_soon = broken

    [nack] = await ada.ask(publish("r"))

    assert nack["data"]["code"] == "not_a_member"
    assert "refusal_not_reported" in node.logger.of("error")


# --- refusals of every shape


class NoText:
    def __str__(self):
        raise ValueError("no text")

    __repr__ = __str__


class Silent(Refused):
    def __str__(self):
        raise LookupError

    __repr__ = __str__


class NoDetails(Forbidden):
    def details(self):
        raise asyncio.CancelledError


class OddDetails(Forbidden):
    def __init__(self, found):
        super().__init__("no")
        self.found = found

    def details(self):
        return self.found


class NumberCode(Forbidden):
    code = 42


class NoCode(Refused):
    code = 5


class LongCode(Refused):
    code = "c" * 1000


class HalfCode(Refused):
    code = "half \ud800"


class RaisingCode(Forbidden):
    @property
    def code(self):
        raise KeyError


class Bare(RateLimited):
    def __init__(self):
        """It does not call what it extends."""


class BareValidation(ValidationError):
    def __init__(self):
        """It does not call what it extends."""


REFUSALS = [
    (Forbidden(ValueError("reason")), "forbidden", "reason"),
    (Forbidden(42), "forbidden", "42"),
    (Forbidden(0), "forbidden", "0"),
    (Forbidden(None), "forbidden", "None"),
    (Forbidden(b"x"), "forbidden", "b'x'"),
    (Forbidden(NoText()), "forbidden", "forbidden"),
    (Forbidden("half \ud800"), "forbidden", "half ?"),
    (Forbidden("x" * 100_000), "forbidden", "x" * (MAX_TEXT - 1) + "…"),
    (Unavailable(OSError("away")), "unavailable", "away"),
    (Silent(), "silent", "silent"),
    (NoDetails("no"), "no_details", "no"),
    (NumberCode("no"), "forbidden", "no"),
    (NoCode("no"), "refused", "no"),
    (LongCode("no"), "refused", "no"),
    (HalfCode(""), "refused", "refused"),
    (RaisingCode("no"), "forbidden", "no"),
    (Bare(), "bare", "bare"),
    (BareValidation(), "bare_validation", "bare validation"),
    (KeyError(NoText()), "internal", "internal error"),
    (Misuse(NoText()), "internal", "internal error"),
    (Silent, "silent", "silent"),
    (asyncio.CancelledError(), "internal", "internal error"),
    (SystemExit(3), "internal", "internal error"),
    (KeyboardInterrupt(), "internal", "internal error"),
    (GeneratorExit(), "internal", "internal error"),
    (MemoryError(), "internal", "internal error"),
    (RecursionError(), "internal", "internal error"),
    (StopIteration(), "internal", "internal error"),
    (BaseException("odd"), "internal", "internal error"),
    (BaseExceptionGroup("several", [SystemExit()]), "internal", "internal error"),
]
NAMES = [f"{i}-{type(error).__name__}" for i, (error, _, _) in enumerate(REFUSALS)]


class Place:
    """Raises ``error`` for a message to ``t``, at the place of that name."""

    def __init__(self, name, error):
        self.name, self.error = name, error

    def pass_by(self, name, topic="t"):
        if name == self.name and topic == "t":
            raise self.error

    def can_publish(self, meta, topic, event):
        self.pass_by("access", topic)
        return True

    def can_subscribe(self, meta, room):
        return True

    def validate(self, topic, event, data):
        self.pass_by("validator", topic)

    async def middleware(self, ctx, msg, next):
        self.pass_by("middleware")
        return await next(ctx, msg)

    def in_thread(self, ctx, msg):
        raise self.error

    async def on_loop(self, ctx, msg):
        raise self.error


@pytest.mark.parametrize("name", ["handler", "thread", "middleware", "access", "validator"])
@pytest.mark.parametrize(("error", "code", "text"), REFUSALS, ids=NAMES)
async def test_whatever_is_raised_gets_one_answer(make_node, name, error, code, text):
    place = Place(name, error)
    node = await make_node(access_controller=place, validator=place)
    node.on("t", place.middleware)(place.in_thread if name == "thread" else place.on_loop)
    ada = await node.connect("ada", session=True)

    @node.on("fine")
    async def fine(ctx, msg):
        return {"n": 1}

    ada.say(request())
    while not (answers := ada.heard()):
        await asyncio.sleep(0)  # a thread answers when it likes
    await settle()
    answers += ada.heard()

    assert len(answers) == 1
    data = answers[0]["data"]
    assert data["status"] == "nack"
    assert (data["code"], data["error"]) == (code, text)
    assert in_work(ada) == 0
    [ack] = await ada.ask(request("2", "fine"))
    assert ack["data"]["n"] == 1


@pytest.mark.parametrize(("error", "code", "text"), REFUSALS, ids=NAMES)
async def test_without_an_ack_it_is_one_error(node, ada, error, code, text):
    @node.on("t")
    async def handler(ctx, msg):
        raise error

    [answer] = await ada.ask({"topic": "t", "id": "1"})

    assert answer["event"] == "error"
    assert (answer["data"]["code"], answer["data"]["error"]) == (code, text)


@pytest.mark.parametrize(
    "error",
    [Forbidden(NoText()), Silent(), KeyError(NoText()), asyncio.CancelledError(), SystemExit()],
    ids=lambda e: type(e).__name__,
)
async def test_a_store_that_raises_anything_leaves_no_join_unanswered(node, ada, error):
    async def decide(*args, **kwargs):
        raise error

    node.state.decide = decide

    for number in ("1", "2"):
        [nack] = await ada.ask(request(number, "system:join", data={"room": "r"}))
        assert nack["data"]["status"] == "nack"
        assert in_work(ada) == 0
    [nack] = await ada.ask(request("3", "system:resume", data={"rooms": {"r": {}}}))
    assert nack["ref"] == "3"


# --- further fields


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, {}),
        (5, {}),
        ([("why", "odd")], {"why": "odd"}),
        ({1: "one", "why": "odd"}, {"why": "odd"}),
        ({"why": object(), "when": 5}, {"when": 5}),
        ({"why": {"deep": {NoText(): 1}}}, {}),
        ({"why": "half \ud800", "when": 5}, {"when": 5}),
        ({"why": "x" * MAX_DETAILS, "when": 5}, {"when": 5}),
        ({"code": "mine", "status": "ok", "error": "x", "message_id": "9"}, {}),
        ({"fields": {"a": ["b"]}}, {"fields": {"a": ["b"]}}),
        ({"retry_after": math.nan}, {"retry_after": 1.0}),
        ({"retry_after": math.inf}, {"retry_after": 1.0}),
        ({"retry_after": -3}, {"retry_after": 0.0}),
        ({"retry_after": "soon"}, {"retry_after": 1.0}),
        ({"retry_after": 10**400}, {"retry_after": 1.0}),
    ],
    ids=range(15),
)
async def test_details_are_told_as_far_as_they_can_be(node, ada, found, shown):
    @node.on("t")
    async def handler(ctx, msg):
        raise OddDetails(found)

    [nack] = await ada.ask(request())

    told = {"message_id": "1", "status": "nack", "code": "odd_details", "error": "no"}
    assert nack["data"] == {**told, **shown}
    answers = await ada.ask({"id": "2", "topic": "t"})
    assert answers[0]["data"] == {"code": "odd_details", "error": "no", **shown}


@pytest.mark.parametrize(
    ("wait", "told"),
    [(2.5, 2.5), (math.nan, 1.0), (-math.inf, 0.0), (None, 1.0), (True, 1.0), ("2", 1.0)],
)
@pytest.mark.parametrize("kind", [RateLimited, lambda wait: Overloaded("", wait)])
async def test_a_time_to_wait_is_one_that_can_be_waited(node, ada, kind, wait, told):
    @node.on("t")
    async def handler(ctx, msg):
        raise kind(wait)

    [nack] = await ada.ask(request())

    assert nack["data"]["retry_after"] == told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": ["short"]}, {"name": ["short"]}),
        (["short"], {"_schema": ["short"]}),
        ("short", {"_schema": "short"}),
        ({1: {2: ["short"]}}, {"1": {"2": ["short"]}}),
        (None, {"_schema": None}),
    ],
    ids=str,
)
async def test_the_fields_of_a_validation_error_may_have_any_shape(node, ada, fields, told):
    @node.on("t")
    async def handler(ctx, msg):
        raise ValidationError(fields)

    [nack] = await ada.ask(request())

    assert nack["data"]["code"] == "validation"
    assert nack["data"]["fields"] == told


# --- what serves the answer


class BrokenLogger:
    def _fail(self, event, **fields):
        raise OSError("stderr is closed")

    debug = info = warning = error = _fail


@pytest.mark.parametrize("error", [ValueError("x"), Forbidden("no"), OddDetails({"code": 1})])
async def test_a_log_that_can_not_be_written_costs_no_answer(make_node, error):
    node = await make_node(logger=BrokenLogger())
    ada = await node.connect("ada", session=True)

    @node.on("t")
    async def handler(ctx, msg):
        raise error

    [nack] = await ada.ask(request())

    assert nack["data"]["status"] == "nack"
    assert in_work(ada) == 0


async def test_an_error_hook_that_raises_costs_no_answer(node, ada):
    @node.hub.on_error
    async def hook(conn, error):
        raise KeyboardInterrupt

    @node.on("t")
    async def handler(ctx, msg):
        raise ValueError

    [nack] = await ada.ask(request())

    assert nack["data"]["code"] == "internal"


async def test_a_handler_may_end_its_own_task(node, ada):
    """The request is answered, and the next one is handled."""

    @node.on("t")
    async def handler(ctx, msg):
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    for number in ("1", "2"):
        [nack] = await ada.ask(request(number))
        assert nack["data"]["code"] == "internal"


@pytest.mark.parametrize("way", ["timeout", "group"])
async def test_a_deadline_within_a_handler_is_no_end(node, ada, way):
    """It cancels the task and takes that back: what follows is an answer like any other."""

    async def fail():
        raise LookupError

    @node.on("t")
    async def handler(ctx, msg):
        if way == "timeout":
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.Event().wait()

    [nack] = await ada.ask(request())

    assert nack["data"]["code"] == "internal"
    assert "handler_failed" in node.logger.of("error")


# --- keys of the protocol's own


@pytest.mark.parametrize("key", ["message_id", "status", "error", "code", "fields", "retry_after"])
async def test_a_result_with_a_reserved_key_is_a_fault_of_ours(node, ada, key):
    """It would be lost where it collides with the ack."""

    async def replace(ctx, msg, next):
        await next(ctx, msg)
        return {key: "shipped", "n": 1}

    @node.on("t")
    async def handler(ctx, msg):
        return {key: "shipped", "n": 1}

    @node.on("m", replace)
    async def replaced(ctx, msg):
        """Its middleware answers."""

    for topic in ("t", "m"):
        [nack] = await ada.ask(request(topic, topic))
        assert nack["data"] == {
            "message_id": topic,
            "status": "nack",
            "code": "internal",
            "error": "internal error",
        }
    logged = [fields for level, event, fields in node.logger.entries if event == "handler_failed"]
    assert [entry["route"] for entry in logged] == ["t", "m"]
    assert all(key in entry["error"] for entry in logged)
    assert isinstance(logged[0]["exc_info"], Misuse)


async def test_a_reserved_key_is_logged_also_where_nobody_asked_for_the_result(node, ada):
    """And nothing is sent: the message was handled."""

    @node.on("t")
    async def handler(ctx, msg):
        return {"status": "shipped"}

    assert await ada.ask({"id": "1", "topic": "t"}) == []
    assert node.logger.of("error") == ["handler_failed"]


# --- a bound that holds whatever fails to answer


async def test_ids_in_work_are_bounded(node, ada):
    """Here the handlers wait; a path that forgets to answer would do the same."""
    gate = asyncio.Event()
    handled = []

    @node.on("t", ordering_key=lambda ctx, msg: msg.id)
    async def handler(ctx, msg):
        handled.append(msg.id)
        await gate.wait()

    ids = [str(number) for number in range(LIMIT + 50)]
    for request_id in ids:
        await ada.ask(request(request_id))
    assert in_work(ada) == LIMIT

    gate.set()
    await settle()
    assert sorted(answer["ref"] for answer in ada.heard()) == sorted(ids)
    assert sorted(handled) == sorted(ids)
    assert in_work(ada) == 0


async def test_where_retransmissions_wait_for_all_of_them_the_next_is_refused(node, ada):
    gate = asyncio.Event()

    @node.on("t", ordering_key=lambda ctx, msg: msg.id)
    async def handler(ctx, msg):
        await gate.wait()

    for number in range(LIMIT):
        await ada.ask(request(str(number)))
        await ada.ask(request(str(number)))
    [nack] = await ada.ask(request("more"))
    assert nack["data"]["code"] == "overloaded"

    gate.set()
    await settle()
    assert len(ada.heard()) == 2 * LIMIT
    [answer] = await ada.ask(request("more"))
    assert answer["data"]["status"] == "ok"
