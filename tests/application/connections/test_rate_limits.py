"""A node's limiter: which messages it is asked for, as whose, and what its answers mean."""

from __future__ import annotations

import asyncio
import gc
import warnings
from datetime import UTC, datetime, timedelta

import pytest

from eyewall.application.connections.rate_limits import RateLimits, check
from eyewall.domain.errors import Forbidden, Misuse, RateLimited, Unavailable
from eyewall.domain.identity import ConnMeta
from tests.application.fakes import RecordingMetrics


class Limiter:
    """Says what it was told to say, and remembers who was asked for."""

    def __init__(self, *says, then=0.0):
        self.says = list(says)
        self.then = then
        self.keys = []

    def allow(self, key):
        self.keys.append(key)
        said = self.says.pop(0) if self.says else self.then
        if isinstance(said, BaseException):
            raise said
        return said


class Waiting(Limiter):
    """Says so later."""

    async def allow(self, key):
        await asyncio.sleep(0)
        return super().allow(key)


def request(number, topic="t", data=None):
    return {"topic": topic, "id": str(number), "ack": True, "data": data}


async def limited(make_node, limiter, **config):
    node = await make_node(limiter=limiter, client_commands=True, **config)
    node.handled = []

    @node.on("t")
    async def handler(ctx, msg):
        node.handled.append(msg.id)
        return "ok"

    return node


async def codes(client, *messages):
    return [
        answer["data"].get("code", "ok")
        for message in messages
        for answer in await client.ask(message)
    ]


kinds = pytest.mark.parametrize("kind", [Limiter, Waiting, "plain", "awaitable"])


def made(kind, *says):
    if kind == "plain":
        return Limiter(*says).allow
    if kind == "awaitable":  # by a function that does not look async
        limiter = Waiting(*says)
        return lambda key: limiter.allow(key)
    return kind(*says)


@kinds
async def test_a_message_that_comes_too_soon_never_reaches_its_handler(make_node, kind):
    node = await limited(make_node, made(kind, 0.0, 2.5, 0.0))
    ada = await node.connect("ada")

    answers = [await ada.ask(request(n)) for n in range(3)]

    assert node.handled == ["0", "2"]
    assert answers[1][0]["data"] == {
        "message_id": "1",
        "status": "nack",
        "code": "rate_limited",
        "error": "too many messages",
        "retry_after": 2.5,
    }


@kinds
async def test_without_an_ack_it_is_an_error(make_node, kind):
    node = await limited(make_node, made(kind, 1.0))
    ada = await node.connect("ada")

    [answer] = await ada.ask({"topic": "t"})

    assert (answer["event"], answer["data"]["code"]) == ("error", "rate_limited")
    assert answer["data"]["retry_after"] == 1.0


async def test_it_is_asked_for_commands_and_for_what_nothing_handles_too(make_node):
    limiter = Limiter()
    node = await limited(make_node, limiter)
    ada = await node.connect("ada")

    await codes(ada, request(1, "system:join", {"room": "r"}), request(2, "nowhere"), request(3))

    assert limiter.keys == ["user:ada"] * 3


class Access:
    """Lets everything pass, and counts."""

    def __init__(self):
        self.asked = 0

    def can_publish(self, meta, topic, event):
        self.asked += 1
        return True

    def can_subscribe(self, meta, room_id):
        return True


@kinds
@pytest.mark.parametrize("topic", ["t", "nowhere", "system:join"])
@pytest.mark.parametrize(
    ("said", "code"),
    [
        (1.0, "rate_limited"),
        (None, "internal"),
        (ValueError("x"), "internal"),
        (Unavailable("redis is away"), "unavailable"),
    ],
)
async def test_it_is_asked_before_all_else_whatever_it_says(make_node, kind, topic, said, code):
    access = Access()
    node = await limited(make_node, made(kind, said), access_controller=access)
    ada = await node.connect("ada")

    assert await codes(ada, request(1, topic, {"room": "r"})) == [code]
    assert access.asked == 0


async def test_a_refused_message_takes_no_place_in_a_lane(make_node):
    """Who sends too much fills no queue with it: others find theirs free."""
    node = await limited(make_node, Limiter(0.0, then=1.0), lane_queue=1, worker_queue=2)
    gate = asyncio.Event()

    @node.on("slow")
    async def slow(ctx, msg):
        await gate.wait()

    ada = await node.connect("ada")
    await ada.ask(request(0, "slow"))
    refused = await codes(ada, *(request(n) for n in range(1, 6)))
    gate.set()

    assert refused == ["rate_limited"] * 5


async def test_answers_to_the_server_are_not_limited(make_node):
    limiter = Limiter(then=60.0)
    node = await limited(make_node, limiter)
    ada = await node.connect("ada")
    [answer] = await ada.ask({"topic": "t", "event": "ack", "ref": "1"}) or [None]

    assert answer is None
    assert limiter.keys == []


async def test_a_repeat_gets_its_answer_again_and_is_not_counted(make_node):
    limiter = Limiter(0.0, then=9.0)
    node = await limited(make_node, limiter)
    ada = await node.connect("ada", session=True)

    assert await codes(ada, request(1), request(1)) == ["ok", "ok"]
    assert len(limiter.keys) == 1


@kinds
async def test_a_refusal_is_not_remembered(make_node, kind):
    """The same message, sent again under its id when its time has come, is handled."""
    node = await limited(make_node, made(kind, 1.0, 0.0))
    ada = await node.connect("ada", session=True)

    assert await codes(ada, request(1), request(1)) == ["rate_limited", "ok"]
    assert node.handled == ["1"]


async def test_users_are_counted_as_such_and_others_by_their_address(make_node):
    limiter = Limiter()
    node = await limited(make_node, limiter)
    for client in (
        await node.connect("ada", ip="10.0.0.1"),
        await node.connect(ip="10.0.0.1"),
        await node.connect(ip="2001:db8:1:2:3:4:5:6"),
        await node.connect(ip="2001:db8:1:2::1"),
        nobody := await node.connect(),
    ):
        await client.ask(request(1))

    assert limiter.keys == [
        "user:ada",
        "ip:10.0.0.1",
        "ip:2001:db8:1:2::/64",
        "ip:2001:db8:1:2::/64",
        f"conn:{nobody.id}",
    ]


# --- who comes back


async def test_the_first_resume_of_a_connection_is_never_refused(make_node):
    node = await limited(make_node, Limiter(then=5.0))
    ada = await node.connect("ada", session=True)
    resume = [request(n, "system:resume", {"rooms": {}}) for n in range(2)]

    assert await codes(ada, *resume) == ["ok", "rate_limited"]


async def with_tokens(make_node, limiter):
    """A node where a token is the number of hours that it is good for, and a client of it
    whose own is good for one."""
    now = datetime.now(UTC)

    def authenticate(handshake):
        hours = int(handshake.query.get("token"))
        return ConnMeta(user_id="ada", expires_at=now + timedelta(hours=hours))

    node = await limited(make_node, limiter, authenticator=authenticate)
    return await node.connect("ada", expires_at=now + timedelta(hours=1))


def refreshes(tokens):
    return [request(n, "system:refresh", {"token": token}) for n, token in enumerate(tokens)]


async def test_for_each_token_one_new_one_may_be_shown_whatever_the_limiter_says(make_node):
    ada = await with_tokens(make_node, Limiter(then=5.0))

    assert await codes(ada, *refreshes("2344")) == ["ok", "ok", "ok", "ok"]
    assert await codes(ada, *refreshes("45")) == ["rate_limited"] * 2


async def test_older_tokens_are_no_way_around_the_limit(make_node):
    ada = await with_tokens(make_node, Limiter(5.0, 5.0, 0.0, then=5.0))

    # The third is within the limit, and the connection's end is an earlier one with it.
    assert await codes(ada, *refreshes("231")) == ["ok", "ok", "ok"]
    assert await codes(ada, *refreshes("2")) == ["rate_limited"]


# --- a limiter that does not do as it should


@kinds
@pytest.mark.parametrize("said", [float("nan"), "1.0", True, False, None, [], ValueError("x")])
async def test_what_is_no_answer_lets_nothing_pass(make_node, kind, said):
    """It is a fault of the server: logged, and told as such."""
    node = await limited(make_node, made(kind, said, 0.0))
    ada = await node.connect("ada")

    assert await codes(ada, request(1), request(2)) == ["internal", "ok"]
    assert node.handled == ["2"]
    assert node.logger.of("error") == ["handler_failed"]


@kinds
async def test_less_than_nothing_is_no_wait(make_node, kind):
    node = await limited(make_node, made(kind, -3.0, 0, timedelta()))
    ada = await node.connect("ada")

    assert await codes(ada, request(1), request(2), request(3)) == ["ok"] * 3


async def test_for_ever_is_a_wait_as_well(make_node):
    node = await limited(make_node, Limiter(float("inf")))
    ada = await node.connect("ada")
    [answer] = await ada.ask(request(1))

    assert (answer["data"]["code"], answer["data"]["retry_after"]) == ("rate_limited", 1.0)


@kinds
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("redis is away"), "unavailable"),
        (Forbidden("never again"), "forbidden"),
        (RateLimited(3.0), "rate_limited"),
    ],
)
async def test_what_it_raises_is_the_answer(make_node, kind, error, code):
    node = await limited(make_node, made(kind, error))
    ada = await node.connect("ada")

    assert await codes(ada, request(1)) == [code]


async def test_a_command_is_not_done_for_a_connection_that_ended_while_it_waited(make_node):
    asked, go = asyncio.Event(), asyncio.Event()
    shown = []

    class Slow:
        async def allow(self, key):
            asked.set()
            await go.wait()
            return 0.0

    node = await limited(make_node, Slow(), authenticator=shown.append)
    ada = await node.connect("ada")
    ada.say(request(1, "system:refresh", {"token": "2"}))
    await asked.wait()
    await ada.vanish()
    go.set()
    await node.advance(0)

    assert shown == []


# --- what is counted


async def test_refusals_are_counted_by_their_code(make_node):
    metrics = RecordingMetrics()
    node = await limited(make_node, Limiter(1.0), metrics=metrics)
    ada = await node.connect("ada")
    await ada.ask(request(1))

    assert metrics.of("failed") == [("rate_limited",)]
    assert node.hub.stats().errors == 1


# --- the words of it


@pytest.mark.parametrize(
    ("wait", "told"), [(1.23456, 1.235), (1.1, 1.1), (0.0004, 0.001), (2, 2), (1.0000001, 1.0)]
)
def test_a_wait_is_told_in_milliseconds_and_never_too_short(wait, told):
    with pytest.raises(RateLimited) as raised:
        check(wait)

    assert raised.value.retry_after == told


def test_a_wait_may_be_a_timedelta():
    with pytest.raises(RateLimited) as raised:
        check(timedelta(seconds=2))

    assert raised.value.retry_after == 2.0


def test_a_mistake_names_what_was_said():
    with pytest.raises(Misuse, match="not True"):
        check(True)


async def test_an_async_limiter_is_not_begun_before_the_lane(node):
    """Of a message that finds no place, nothing is left that was never awaited."""
    ada = await node.connect("ada")
    waiting = Waiting()
    limits = RateLimits(waiting.allow)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limits.ask(node.hub.connection(ada.id), None)
        gc.collect()
    rest = limits.ask(node.hub.connection(ada.id), None)

    assert waiting.keys == []
    await rest()
    assert waiting.keys == ["user:ada"]
