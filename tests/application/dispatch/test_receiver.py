import asyncio
import threading

import pytest

from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message
from eyewall.domain.errors import Forbidden, Refused, Unavailable, ValidationError
from tests.application.fakes import FakeClock, Harness, settle


@pytest.fixture
async def ada(node):
    return await node.connect("ada")


@pytest.fixture
def handled(node):
    """The payloads that the handler of ``t`` was given, in order."""
    handled = []

    @node.on("t")
    async def handler(ctx, msg):
        handled.append(msg.data)

    return handled


@pytest.fixture
def errors(node):
    """What the ``on_error`` hooks heard."""
    errors = []
    node.hub.on_error(lambda conn, error: errors.append((conn.user_id, error)))
    return errors


def code_of(answer):
    return answer["data"]["code"]


# --- what can't be read


@pytest.mark.parametrize("text", ["{", "", "nope", '{"topic": "t"} x'])
async def test_what_is_not_json(ada, text):
    [error] = await ada.ask(text)

    assert (error["topic"], error["event"], code_of(error)) == (
        "system:error",
        "error",
        "invalid_json",
    )


@pytest.mark.parametrize(
    ("text", "topic", "ref"),
    [
        ("[]", "system:error", None),
        ('{"id": "1"}', "system:error", "1"),
        ('{"topic": "t", "id": 5}', "t", None),
        ('{"topic": "t", "id": "1", "headers": {"a": 1}}', "t", "1"),
        ('{"topic": "t", "ack": true}', "t", None),
        ('{"topic": "", "id": "1"}', "system:error", "1"),
        ('{"topic": "%s", "id": "1"}' % ("x" * 257), "system:error", "1"),
        ('{"topic": "t", "id": "1", "data": %s}' % ("[" * 65 + "]" * 65), "t", "1"),
    ],
)
async def test_what_is_json_and_no_envelope(ada, text, topic, ref):
    """The error names what could be read, and is an error also if an ack was asked for."""
    [error] = await ada.ask(text)

    assert code_of(error) == "invalid_envelope"
    assert (error["topic"], error.get("ref"), error["event"]) == (topic, ref, "error")


async def test_a_binary_frame_under_json_is_refused_and_the_connection_stays_open(ada, handled):
    [error] = await ada.ask(b'{"topic": "t"}')

    assert code_of(error) == "unsupported_data"
    assert ada.conn.is_open
    assert handled == []


async def test_nothing_that_a_client_sends_escapes(ada, node):
    for text in ("\x00", "{}", "null", '"x"', '{"topic": null}', '{"topic": "t", "data": 1e999}'):
        ada.say(text)
    await settle()

    assert len(ada.heard()) == 6
    assert ada.conn.is_open


# --- the way to the handler


async def test_a_message_that_no_route_matches(ada):
    [error] = await ada.ask({"id": "1", "topic": "nowhere"})

    assert code_of(error) == "handler_not_found"


async def test_who_has_gone_is_not_heard_any_more(ada, handled):
    await ada.conn.close()
    ada.say({"topic": "t", "data": 1})
    await settle()

    assert handled == []


async def test_who_sent_it_comes_from_the_connection(node, ada):
    seen = []

    @node.on("t")
    async def handler(ctx, msg):
        seen.append((ctx.user_id, ctx.conn.id, ctx.meta.user_id))

    await ada.ask({"topic": "t", "data": {"user_id": "eve"}, "headers": {"user_id": "eve"}})

    assert seen == [("ada", ada.id, "ada")]


class Access:
    """Lets everything be published but what ``refused`` names."""

    def __init__(self, *refused):
        self.refused = refused
        self.asked = []

    def can_publish(self, meta, topic, event):
        self.asked.append((meta.user_id, topic, event))
        return topic not in self.refused

    def can_subscribe(self, meta, room_id):
        return True


class AsyncAccess(Access):
    async def can_publish(self, meta, topic, event):
        return super().can_publish(meta, topic, event)


@pytest.mark.parametrize("kind", [Access, AsyncAccess])
async def test_the_access_controller_is_asked_for_every_message(make_node, kind):
    access = kind("t")
    node = await make_node(access_controller=access, client_commands=True)
    handled = []
    node.on("*")(_recorder(handled))
    ada = await node.connect("ada")

    [error] = await ada.ask({"id": "1", "topic": "t", "event": "say"})
    assert code_of(error) == "forbidden"
    assert await ada.ask({"topic": "u"}) == []
    await ada.ask({"topic": "system:publish", "data": {"room": "r"}})

    assert access.asked == [
        ("ada", "t", "say"),
        ("ada", "u", "message"),
        ("ada", "room:r", "message"),
    ]
    assert handled == ["u"]


def _recorder(into):
    async def handler(ctx, msg):
        into.append(msg.topic)

    return handler


@pytest.mark.parametrize("waits", [True, False])
async def test_the_validator_sees_a_message_before_its_handler(make_node, waits):
    def plain(topic, event, data):
        if data != "good":
            raise ValidationError({"data": ["not good"]})

    async def slow(topic, event, data):
        plain(topic, event, data)

    node = await make_node(validator=slow if waits else plain)
    handled = []
    node.on("t")(_recorder(handled))
    ada = await node.connect("ada")

    [nack] = await ada.ask({"id": "1", "topic": "t", "data": "bad", "ack": True})
    assert nack["data"]["fields"] == {"data": ["not good"]}
    await ada.ask({"topic": "t", "data": "good"})
    assert handled == ["t"]


async def test_access_is_decided_before_the_payload_is_looked_at(make_node):
    def validator(topic, event, data):
        raise ValidationError({"data": ["bad"]})

    node = await make_node(validator=validator, access_controller=Access("t"))
    ada = await node.connect("ada")

    [error] = await ada.ask({"topic": "t"})

    assert code_of(error) == "forbidden"


async def test_a_payload_found_bad_when_the_handler_decodes_it_is_a_nack(node, ada, handled):
    ada.say('{"id": "1", "topic": "t", "ack": true, "data": 1e999}')
    await settle()

    [nack] = ada.heard()
    assert nack["event"] == "ack"
    assert code_of(nack) == "invalid_envelope"


async def test_a_draining_node_answers_overloaded_and_still_takes_acks(node, ada, handled):
    task = asyncio.ensure_future(node.hub.request(ada.id, Message("ask")))
    await settle()
    [asked] = ada.heard()
    node.parts.connections.draining = True

    [error] = await ada.ask({"id": "1", "topic": "t"})
    ada.ack(asked, "yes")

    assert code_of(error) == "overloaded"
    assert handled == []
    assert await task == "yes"


# --- order


async def test_messages_of_one_connection_are_handled_one_after_another(node, ada):
    log = []
    gate = asyncio.Event()

    @node.on("t")
    async def handler(ctx, msg):
        log.append(("in", msg.data))
        if msg.data == 0:
            await gate.wait()
        log.append(("out", msg.data))

    for n in range(3):
        ada.say({"topic": "t", "data": n})
    bob = await node.connect("bob")
    bob.say({"topic": "t", "data": "bob"})
    await settle()
    assert log == [("in", 0), ("in", "bob"), ("out", "bob")]

    gate.set()
    await settle()
    assert log[3:] == [("out", 0), ("in", 1), ("out", 1), ("in", 2), ("out", 2)]


@pytest.fixture
def by_room(node):
    """A handler of ``say`` whose order is per room; ``gate`` holds the room ``slow``."""
    log = []
    gate = asyncio.Event()

    @node.on("say", ordering_key=lambda ctx, msg: msg.data["room"])
    async def handler(ctx, msg):
        log.append(f"{msg.data['room']} {ctx.user_id} in")
        if msg.data["room"] == "slow":
            await gate.wait()
        log.append(f"{msg.data['room']} {ctx.user_id} out")

    return log, gate


async def test_two_messages_with_the_same_key_never_overlap(node, ada, by_room):
    log, gate = by_room
    bob = await node.connect("bob")
    ada.say({"topic": "say", "data": {"room": "slow"}})
    bob.say({"topic": "say", "data": {"room": "slow"}})
    ada.say({"topic": "say", "data": {"room": "fast"}})
    await settle()
    assert log == ["slow ada in", "fast ada in", "fast ada out"]

    gate.set()
    await settle()
    assert log[3:] == ["slow ada out", "slow bob in", "slow bob out"]


@pytest.fixture
def stuck(node):
    """Two topics: ``stuck`` holds each message in a lane of its own, ``ping`` answers.

    Returns the numbers that are held, and what lets all of them go on.
    """
    begun, gate = [], asyncio.Event()

    @node.on("stuck", ordering_key=lambda ctx, msg: msg.data)
    async def stuck(ctx, msg):
        begun.append(msg.data)
        await gate.wait()

    @node.on("ping")
    async def ping(ctx, msg):
        return {"pong": True}

    return begun, gate


PING = {"id": "p", "topic": "ping", "ack": True}


async def test_a_client_that_names_many_keys_leaves_workers_to_the_others(node, ada, stuck):
    begun, gate = stuck
    bob = await node.connect("bob")
    for n in range(40):
        ada.say({"topic": "stuck", "data": n})
    await settle()

    [ack] = await bob.ask(PING)

    assert ack["data"]["pong"] is True
    assert len(begun) == 6, "of 8 workers two are left"
    assert await ada.ask(PING), "its own lane is not held up by its keys"
    gate.set()
    await settle()
    assert sorted(begun) == list(range(40))


async def test_handlers_of_connections_that_are_gone_hold_up_nobody(node, stuck):
    begun, gate = stuck
    for n in range(8):
        guest = await node.connect(None)
        await guest.ask({"topic": "stuck", "data": n})
        await guest.vanish()
    assert len(begun) == 8, "all workers are at it"
    bob = await node.connect("bob")

    [ack] = await bob.ask(PING)

    assert ack["data"]["pong"] is True
    gate.set()


async def test_plain_handlers_of_connections_that_are_gone_hold_up_no_plain_ones(node):
    """They have threads, of which there are enough for both."""
    begun, gate = threading.Semaphore(0), threading.Event()

    @node.on("stuck")
    def stuck(ctx, msg):
        begun.release()
        gate.wait(60)

    @node.on("ping")
    def ping(ctx, msg):
        return {"pong": True}

    for _ in range(8):
        guest = await node.connect(None)
        guest.say({"topic": "stuck"})
        await asyncio.to_thread(begun.acquire, timeout=20)
        await guest.vanish()
    bob = await node.connect("bob")
    heard = asyncio.Event()
    bob.link.on_frame = heard.set
    bob.say(PING)
    try:
        async with asyncio.timeout(20):
            await heard.wait()
    finally:
        gate.set()

    [ack] = bob.heard()
    assert ack["data"]["pong"] is True


async def test_a_client_that_names_many_keys_leaves_room_in_the_queue(make_node):
    node = await make_node(workers=1, worker_queue=16)
    gate = asyncio.Event()

    @node.on("stuck", ordering_key=lambda ctx, msg: msg.data)
    async def stuck(ctx, msg):
        await gate.wait()

    ada, bob = await node.connect("ada"), await node.connect("bob")
    for n in range(40):
        ada.say({"id": f"{n}", "topic": "stuck", "data": n, "ack": True})
    await settle()
    answered = [code_of(m) for m in ada.heard()]
    bob.say({"topic": "stuck", "data": "b"})
    await settle()

    assert answered == ["overloaded"] * 28, "12 of 16 places, before any was in work"
    assert bob.heard() == []
    gate.set()


async def test_a_key_that_looks_like_a_connection_is_not_its_lane(node, ada):
    gate, done = asyncio.Event(), []

    @node.on("slow")
    async def slow(ctx, msg):
        await gate.wait()

    @node.on("keyed", ordering_key=lambda ctx, msg: ctx.conn.id)
    async def keyed(ctx, msg):
        done.append(1)

    ada.say({"topic": "slow"})
    ada.say({"topic": "keyed"})
    await settle()

    assert done == [1]
    gate.set()


async def test_an_ordering_key_that_fails_is_the_application_s_fault(node, ada, by_room, errors):
    [nack] = await ada.ask({"id": "1", "topic": "say", "data": {}, "ack": True})

    assert code_of(nack) == "internal"
    assert node.logger.of("error") == ["handler_failed"]
    assert [type(error) for _, error in errors] == [KeyError]


async def test_an_ordering_key_that_is_no_key_is_the_application_s_fault(node, ada):
    @node.on("t", ordering_key=lambda ctx, msg: [])
    async def handler(ctx, msg):
        """Never reached."""

    [nack] = await ada.ask({"id": "1", "topic": "t", "ack": True})
    assert code_of(nack) == "internal"


async def test_an_ordering_key_may_refuse(node, ada):
    def key(ctx, msg):
        raise ValidationError({"room": ["missing"]})

    @node.on("t", ordering_key=key)
    async def handler(ctx, msg):
        """Never reached."""

    [nack] = await ada.ask({"id": "1", "topic": "t", "ack": True})
    assert code_of(nack) == "validation"
    assert node.logger.of("error") == []


async def test_a_payload_that_an_ordering_key_can_t_decode_is_the_client_s_fault(node, ada):
    @node.on("t", ordering_key=lambda ctx, msg: msg.data)
    async def handler(ctx, msg):
        """Never reached."""

    [error] = await ada.ask('{"id": "1", "topic": "t", "data": 1e999}')
    assert code_of(error) == "invalid_envelope"
    assert node.logger.of("error") == []


async def test_a_message_whose_key_failed_can_be_sent_again(node):
    broken = [1]

    def key(ctx, msg):
        if broken:
            raise RuntimeError
        return 1

    @node.on("t", ordering_key=key)
    async def handler(ctx, msg):
        """Nothing."""

    ada = await node.connect("ada", session=True)
    await ada.ask({"id": "1", "topic": "t", "ack": True})
    broken.clear()
    [ack] = await ada.ask({"id": "1", "topic": "t", "ack": True})

    assert ack["data"]["status"] == "ok"


# --- bounds


@pytest.fixture
async def small(make_node):
    """A node with one worker, held up by the message that ``gate`` lets go."""
    node = await make_node(workers=1, worker_queue=3, lane_queue=2)
    node.gate = asyncio.Event()

    @node.on("slow")
    async def slow(ctx, msg):
        await node.gate.wait()

    return node


async def test_a_flooder_is_told_overloaded_and_leaves_room_for_others(small):
    ada, bob = await small.connect("ada"), await small.connect("bob")
    ada.say({"topic": "slow"})
    await settle()
    for n in range(3):
        ada.say({"id": str(n), "topic": "slow", "ack": True})
    bob.say({"id": "b", "topic": "slow"})
    await settle()

    [nack] = ada.heard()
    assert nack["ref"] == "2"
    assert nack["data"]["retry_after"] > 0
    assert code_of(nack) == "overloaded"
    assert bob.heard() == []


async def test_a_full_pool_answers_overloaded_at_once(small):
    clients = [await small.connect() for _ in range(5)]
    clients[0].say({"topic": "slow"})
    await settle()
    for client in clients:
        client.say({"id": "1", "topic": "slow"})

    assert [len(client.heard()) for client in clients] == [0, 0, 0, 1, 1]
    small.gate.set()


async def test_acks_never_wait_in_a_lane(small):
    """Also when every worker is held up: by handlers that wait for these very acks."""
    ada = await small.connect("ada")

    @small.on("ask")
    async def ask(ctx, msg):
        return await ctx.hub.request(ctx.conn.id, Message("question"))

    ada.say({"id": "1", "topic": "ask", "ack": True})
    await settle()
    ada.ack(ada.heard()[0], 42)
    await settle()

    assert ada.heard()[0]["data"]["result"] == 42


# --- what goes wrong


async def test_an_unexpected_error_is_logged_and_told_and_its_text_stays_here(node, ada, errors):
    @node.on("t")
    async def handler(ctx, msg):
        raise RuntimeError("the password is x")

    [error] = await ada.ask({"id": "1", "topic": "t"})

    assert error["data"] == {"code": "internal", "error": "internal error"}
    assert [(user, str(found)) for user, found in errors] == [("ada", "the password is x")]
    fields = node.logger.fields("handler_failed")
    assert (fields["route"], fields["conn_id"], fields["message_id"]) == ("t", ada.id, "1")
    assert isinstance(fields["exc_info"], RuntimeError)


async def test_a_refusal_is_no_error(node, ada, errors):
    @node.on("t")
    async def handler(ctx, msg):
        raise Forbidden

    await ada.ask({"topic": "t"})

    assert errors == []
    assert node.logger.of("error") == []


async def test_what_is_unavailable_is_told_and_not_logged_as_a_bug(node, ada, errors):
    @node.on("t")
    async def handler(ctx, msg):
        raise Unavailable("redis")

    [error] = await ada.ask({"topic": "t"})

    assert code_of(error) == "unavailable"
    assert len(errors) == 1
    assert node.logger.of("error") == []


@pytest.mark.parametrize("own", [True, False])
async def test_a_handler_that_is_cancelled_is_answered(node, ada, handled, own):
    @node.on("cancel")
    async def handler(ctx, msg):
        waiting = asyncio.get_running_loop().create_future()
        (asyncio.current_task() if own else waiting).cancel()
        await waiting

    [nack] = await ada.ask({"id": "1", "topic": "cancel", "ack": True})
    await ada.ask({"topic": "t", "data": 1})

    assert code_of(nack) == "internal"
    assert handled == [1]


async def test_a_cancelled_wait_in_a_handler_is_an_error_like_any_other(node, ada, errors):
    @node.on("t")
    async def handler(ctx, msg):
        waiting = asyncio.get_running_loop().create_future()
        waiting.cancel()
        await waiting

    await ada.ask({"topic": "t"})

    assert [type(error) for _, error in errors] == [asyncio.CancelledError]
    assert node.logger.fields("handler_failed")["route"] == "t"


async def test_an_on_error_hook_that_raises_changes_nothing(node, ada, handled):
    @node.on("broken")
    async def handler(ctx, msg):
        raise RuntimeError

    @node.hub.on_error
    def hook(conn, error):
        raise RuntimeError

    [error] = await ada.ask({"topic": "broken"})
    await ada.ask({"topic": "t", "data": 1})

    assert code_of(error) == "internal"
    assert handled == [1]


async def test_handlers_end_with_the_node(clock):
    ended = []
    node = Harness(clock=clock)
    async with node:

        @node.on("t")
        async def handler(ctx, msg):
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(1)

        ada = await node.connect("ada")
        await ada.ask({"topic": "t"})

    assert ended == [1]


# --- on_message


def plain(hook):
    return hook


def waits(hook):
    async def run(conn, raw):
        await asyncio.sleep(0)
        return hook(conn, raw)

    return run


def hidden(hook):
    """Gives an awaitable without being a coroutine function."""
    run = waits(hook)
    return lambda conn, raw: run(conn, raw)


KINDS = pytest.mark.parametrize("kind", [plain, waits, hidden])


@KINDS
async def test_on_message_sees_everything_before_it_is_decoded(node, ada, kind):
    seen = []
    node.hub.on_message(kind(lambda conn, raw: seen.append((conn.user_id, raw))))

    for what in ("{", b"\x00", '{"topic": "t"}', '{"event": "ack"}'):
        ada.say(what)
    await settle()

    assert seen == [("ada", x) for x in ("{", b"\x00", '{"topic": "t"}', '{"event": "ack"}')]


@KINDS
async def test_when_it_returns_true_nothing_else_happens(node, ada, kind, handled):
    """So an application with a format of its own needs no envelopes."""
    told = []
    node.hub.on_message(kind(lambda conn, raw: raw != '{"topic": "t"}'))
    node.hub.on_message(lambda conn, raw: told.append(raw))

    for what in ("{", b"\x00", '{"topic": "t"}'):
        ada.say(what)
    await settle()

    assert ada.heard() == []
    assert told == ['{"topic": "t"}']
    assert handled == [None]
    assert node.hub.stats().in_messages == 1


@KINDS
async def test_only_true_takes_it(node, ada, kind, handled):
    node.hub.on_message(kind(lambda conn, raw: 1))
    await ada.ask({"topic": "t", "data": 1})

    assert handled == [1]


@KINDS
async def test_a_hook_that_raises_changes_nothing_and_on_error_hears_of_it(
    node, ada, kind, handled, errors
):
    def broken(conn, raw):
        raise RuntimeError("bug")

    told = []
    node.hub.on_message(kind(broken))
    node.hub.on_message(lambda conn, raw: told.append(raw))

    await ada.ask({"topic": "t", "data": 1})

    assert handled == [1]
    assert len(told) == 1
    assert [str(error) for _, error in errors] == ["bug"]
    assert node.logger.of("error") == ["hook_failed"]


@KINDS
async def test_hooks_change_nothing_about_the_order(node, ada, kind, handled):
    node.hub.on_message(kind(lambda conn, raw: None))

    for n in range(20):
        ada.say({"topic": "t", "data": n})
    await settle()

    assert handled == list(range(20))


async def test_a_hook_that_is_taken_back_lets_nothing_overtake_what_waits_for_it(
    node, ada, handled
):
    gate = asyncio.Event()

    async def hook(conn, raw):
        await gate.wait()

    node.hub.on_message(hook)
    ada.say({"topic": "t", "data": 1})
    await settle()
    node.hub.remove_hook(hook)
    ada.say({"topic": "t", "data": 2})
    await settle()
    gate.set()
    await settle()

    assert handled == [1, 2]
    assert node.parts.receiver._in_hooks == 0


async def test_a_slow_hook_holds_up_only_its_own_connection(node, ada, handled):
    async def hook(conn, raw):
        if conn.user_id == "ada":
            await asyncio.Event().wait()

    node.hub.on_message(hook)
    bob = await node.connect("bob")
    ada.say({"topic": "t", "data": "ada"})
    await bob.ask({"topic": "t", "data": "bob"})

    assert handled == ["bob"]


async def test_an_ack_that_hooks_see_first_does_not_wait_for_handlers(small):
    async def hook(conn, raw):
        """Watches, and takes its time."""

    ada = await small.connect("ada")
    small.hub.on_message(hook)

    @small.on("ask")
    async def ask(ctx, msg):
        return await ctx.hub.request(ctx.conn.id, Message("question"))

    ada.say({"id": "1", "topic": "ask", "ack": True})
    await settle()
    ada.ack(ada.heard()[0], 42)
    await settle()

    assert ada.heard()[0]["data"]["result"] == 42


async def test_what_would_wait_for_a_hook_is_bounded_too(small):
    gate = asyncio.Event()

    async def hook(conn, raw):
        await gate.wait()

    ada = await small.connect("ada", session=True)
    small.hub.on_message(hook)
    for n in range(4):
        await ada.ask({"id": str(n), "topic": "x", "ack": True})
    ada.say({"id": "4", "topic": "x", "ack": True})

    [nack] = ada.heard()
    assert (nack["ref"], nack["event"], code_of(nack)) == ("4", "ack", "overloaded")
    gate.set()
    await settle()
    small.hub.remove_hook(hook)
    [again] = (await ada.ask({"id": "4", "topic": "x", "ack": True}))[-1:]
    assert code_of(again) == "handler_not_found"


async def test_what_waits_for_a_hook_is_forgotten_with_its_connection(node, ada, handled):
    gate = asyncio.Event()

    async def hook(conn, raw):
        await gate.wait()

    node.hub.on_message(hook)
    ada.say({"topic": "t", "data": 1})
    await ada.vanish(DisconnectReason.CONNECTION_LOST)
    gate.set()
    await settle()

    assert handled == []


async def test_a_node_that_was_not_started_takes_nothing_and_raises_nothing():
    node = Harness(clock=FakeClock())
    ada = await node.connect("ada")
    node.hub.handle("t", _recorder([]))

    ada.say({"topic": "t"})

    assert node.logger.of("error") == ["receive_failed"]


def test_every_refusal_has_a_code():
    assert all(cls.code for cls in Refused.__subclasses__())
