"""What ends tasks and programs, out of the application's code: a failure of that one call."""

import asyncio
import types

import pytest
from marshmallow import Schema

from eyewall.application.concurrency.tasks import TaskSet, is_end
from eyewall.application.dispatch.middleware import rate_limit, trace
from eyewall.domain.envelope import Message
from eyewall.domain.errors import Unavailable
from eyewall.testing.logs import RecordingLogger
from tests.application.fakes import raw, raw_kind, settle


class Odd(BaseException):
    """Of a library that thinks itself important."""


ENDS = [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit, Odd]
ends = pytest.mark.parametrize("end", ENDS)
kinds = pytest.mark.parametrize("kind", ["plain", "async", "late"])


def raising(kind, end):
    """A function that raises, plainly, at once, or after it has waited."""

    def plain(*args):
        raise end

    async def at_once(*args):
        raise end

    async def late(*args):
        await asyncio.sleep(0)
        raise end

    return {"plain": plain, "async": at_once, "late": late}[kind]


def request(id, topic="t"):
    return {"id": id, "topic": topic, "ack": True}


async def is_well(node, *clients):
    """Every client is still there, and heard."""

    @node.on("well")
    async def handler(ctx, msg):
        return {"well": True}

    for client in clients:
        assert client.closed is None
        [answer] = await client.ask(request("well", "well"))
        assert answer["data"]["well"]


@ends
@kinds
async def test_of_an_on_message_hook_the_message_is_handled_all_the_same(node, kind, end):
    handled = []
    node.hub.on_message(raising(kind, end))
    node.hub.on_message(lambda conn, raw: handled.append("hook"))

    @node.on("t")
    async def handler(ctx, msg):
        handled.append(msg.id)

    ada = await node.connect("ada")
    for number in ("1", "2"):
        await ada.ask(request(number))

    assert handled == ["hook", "1", "hook", "2"]
    assert node.logger.of("error") == ["hook_failed"] * 2
    await is_well(node, ada)


async def test_an_on_message_hook_may_end_its_own_task(node):
    handled = []

    @node.hub.on_message
    async def hook(conn, raw):
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    @node.on("t")
    async def handler(ctx, msg):
        handled.append(msg.id)

    ada = await node.connect("ada")
    for number in ("1", "2"):
        await ada.ask(request(number))

    assert handled == ["1", "2"]


@ends
async def test_of_an_ordering_key_it_is_one_answer(node, end):
    @node.on("t", ordering_key=raising("plain", end))
    async def handler(ctx, msg):
        raise AssertionError

    ada = await node.connect("ada", session=True)
    for number in ("1", "2"):
        [answer] = await ada.ask(request(number))
        assert answer["data"]["code"] == "internal"
    assert ada.conn.request_log.in_flight == 0
    await is_well(node, ada)


async def test_an_ordering_key_that_can_not_be_looked_up_is_one_answer(node):
    class Key:
        def __hash__(self):
            return 1

        def __eq__(self, other):
            raise SystemExit

    gate = asyncio.Event()

    @node.on("t", ordering_key=lambda ctx, msg: Key())
    async def handler(ctx, msg):
        await gate.wait()

    ada = await node.connect("ada", session=True)
    ben = await node.connect("ben", session=True)
    await ada.ask(request("1"))
    [answer] = await ben.ask(request("1"))

    assert answer["data"]["code"] == "internal"
    assert ben.conn.request_log.in_flight == 0


@ends
@kinds
async def test_of_hooks_that_hear_of_connections_and_rooms_the_others_hear_all_the_same(
    node, kind, end
):
    heard = []
    for register in (node.hub.on_disconnect, node.hub.on_join, node.hub.on_leave):
        register(raising(kind, end))
        register(lambda *args: heard.append(len(args)))
    ada, ben = await node.connect("ada"), await node.connect("ben")

    await node.hub.join("r", ada.id)
    await node.hub.leave("r", ada.id)
    await ada.vanish()

    assert heard == [2, 3, 2]
    assert node.logger.of("error") == ["hook_failed"] * 3
    await is_well(node, ben)


@ends
@kinds
async def test_of_an_on_connect_hook_the_connection_is_refused_and_no_other(node, kind, end):
    ben = await node.connect("ben")
    node.hub.on_connect(raising(kind, end))

    ada = await node.connect("ada")

    assert ada.closed is not None
    await is_well(node, ben)


@ends
@kinds
async def test_of_a_failure_handler_the_others_hear_all_the_same(node, kind, end):
    heard = []
    node.hub.on_user_offline(raising(kind, end))
    node.hub.on_send_failure(heard.append)

    report = await node.hub.send_to_user("nobody", Message("t"))

    assert report.failed == 1
    assert len(heard) == 1


@ends
async def test_of_a_filter_the_call_fails_and_nobody_is_sent_anything(node, end):
    ada = await node.connect("ada")

    with pytest.raises(RuntimeError, match="the filter raised"):
        await node.hub.broadcast_with_filter(Message("t"), raising("plain", end))

    assert ada.heard() == []


@ends
@pytest.mark.parametrize("place", ["span", "enter", "exit"])
async def test_of_a_tracer_the_message_is_handled_all_the_same(node, place, end):
    class Span:
        def __enter__(self):
            if place == "enter":
                raise end

        def __exit__(self, *_):
            if place == "exit":
                raise end

    class Tracer:
        def span(self, name, headers, attributes):
            if place == "span":
                raise end
            return Span()

    @node.on("t", trace(Tracer()))
    async def handler(ctx, msg):
        return {"n": 1}

    ada = await node.connect("ada")
    for number in ("1", "2"):
        [answer] = await ada.ask(request(number))
        assert answer["data"]["n"] == 1
    assert node.logger.of("error") == ["tracer_failed"]


async def test_a_tracer_hears_what_a_handler_raised(node):
    heard = []

    class Span:
        def __enter__(self):
            """It begins."""

        def __exit__(self, kind, error, traceback):
            heard.append(kind)
            raise error

    class Tracer:
        def span(self, name, headers, attributes):
            return Span()

    @node.on("t", trace(Tracer()))
    async def handler(ctx, msg):
        raise LookupError

    ada = await node.connect("ada")
    [answer] = await ada.ask(request("1"))

    assert heard == [LookupError]
    assert answer["data"]["code"] == "internal"
    assert node.logger.of("error") == ["handler_failed"]


@ends
@kinds
async def test_of_a_limiter_it_is_one_answer(node, kind, end):
    class Limiter:
        allow = staticmethod(raising(kind, end))

    @node.on("t", rate_limit(Limiter()))
    async def handler(ctx, msg):
        raise AssertionError

    ada = await node.connect("ada")
    [answer] = await ada.ask(request("1"))

    assert answer["data"]["code"] == "internal"
    await is_well(node, ada)


@ends
async def test_of_a_schema_it_is_one_answer(node, end):
    class Broken(Schema):
        def load(self, *args, **kwargs):
            raise end

    @node.on("t")
    async def handler(ctx, msg):
        msg.load(Broken)

    ada = await node.connect("ada")
    [answer] = await ada.ask(request("1"))

    assert answer["data"]["code"] == "internal"
    await is_well(node, ada)


@ends
async def test_of_an_error_hook_the_next_message_is_handled(node, end):
    node.hub.on_error(raising("late", end))

    @node.on("t")
    async def handler(ctx, msg):
        raise ValueError

    ada = await node.connect("ada")
    [answer] = await ada.ask(request("1"))

    assert answer["data"]["code"] == "internal"
    await is_well(node, ada)


@ends
async def test_of_another_node_s_store_the_question_is_answered(make_node, end):
    one, two = await make_node(), await make_node()
    ada = await two.connect("ada")
    two.state.decide = raising("late", end)

    with pytest.raises(Unavailable, match="failed"):
        await one.hub.join("r", ada.id)


async def test_an_answer_that_can_not_be_encoded_leaves_no_node_waiting(make_node):
    one, two = await make_node("one"), await make_node("two")

    async def answer(header, payload):
        return {"why": object()}

    two.parts.cluster.on_request(raw_kind("odd"), answer)

    with pytest.raises(Unavailable, match="the other node failed"):
        await one.parts.cluster.request("two", raw("odd", {}))


# --- tasks


@pytest.mark.parametrize("end", ENDS)
async def test_of_a_task_it_is_logged(end):
    logger = RecordingLogger()
    tasks = TaskSet(logger)

    tasks.spawn(raising("late", end)())
    await settle()

    assert logger.of("error") == ["task_failed"]
    assert len(tasks) == 0


async def test_the_end_of_the_task_itself_is_passed_on():
    seen = []

    async def work():
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            seen.append(is_end(error))
            raise

    logger = RecordingLogger()
    tasks = TaskSet(logger)
    tasks.spawn(work())
    await settle()
    await tasks.close()

    assert seen == [True]
    assert logger.entries == []


def test_a_coroutine_that_is_closed_ends():
    @types.coroutine
    def wait():
        yield

    seen = []

    async def work():
        try:
            await wait()
        except BaseException as error:
            seen.append(is_end(error))
            raise

    coroutine = work()
    coroutine.send(None)
    coroutine.close()

    assert seen == [True]


async def test_an_ordering_key_that_gives_a_coroutine_is_one_answer(node):
    """Each would be a lane of its own, and the order lost."""

    async def later(ctx, msg):
        return "key"

    @node.on("t", ordering_key=lambda ctx, msg: later(ctx, msg))
    async def handler(ctx, msg):
        raise AssertionError

    ada = await node.connect("ada", session=True)
    [answer] = await ada.ask(request("1"))

    assert answer["data"]["code"] == "internal"
    assert ada.conn.request_log.in_flight == 0
