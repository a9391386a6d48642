"""Calls of adapters that hang, fail in their own words, or come back too late."""

import asyncio
import threading
import time

import pytest

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.adapters.state.memory import MemoryState
from eyewall.application import node as node_module
from eyewall.application.build import guarded_ports
from eyewall.application.concurrency import call_guard, tasks
from eyewall.application.concurrency.call_guard import CallGuard
from eyewall.application.config import Ports
from eyewall.application.lifecycle import sessions
from eyewall.application.ports import stores
from eyewall.application.ports.bus import CountsSubscribers
from eyewall.application.ports.stores import (
    AdapterFailed,
    HistoryStore,
    OfflineStore,
    StateStore,
    methods,
)
from eyewall.domain.envelope import Message
from eyewall.domain.errors import Misuse, Refused, RoomFull, Unavailable
from eyewall.domain.identity import ConnMeta
from eyewall.domain.report import SendOptions
from eyewall.domain.room import RoomOptions
from eyewall.testing.links import CODEC, FakeOutbound
from eyewall.testing.logs import RecordingLogger
from tests.application.engines import Bus, Engine
from tests.application.fakes import FakeClock, Harness, finished, settle


@pytest.fixture
def impatient(monkeypatch):
    """A call that does not return at once has taken too long."""
    monkeypatch.setattr(call_guard, "DEADLINE", 0.01)


class Ended(Exception):
    """A failure that no port knows."""


class Store:
    """A ``StateStore`` of which only ``room`` and ``take_session`` are called here."""

    def __init__(self, error=None):
        self.error = error
        self.cancelled = 0

    async def room(self, room_id):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def take_session(self, name):
        if name == "later":
            await asyncio.sleep(0)
        raise self.error

    def rooms(self):
        return ["lab"]

    def renew(self, node, ttl):
        found = asyncio.get_running_loop().create_future()
        found.set_result([node])
        return found


def behind_guards(logger=None, **given):
    logger = logger or RecordingLogger()
    ports = {
        "pubsub": MemoryPubSub(),
        "state": MemoryState(),
        "history": MemoryHistory(),
        "offline": MemoryOffline(),
    } | given
    return guarded_ports(
        Ports(writer=FakeOutbound(), clock=FakeClock(), codec=CODEC, logger=logger, **ports),
        CallGuard(logger),
        lambda: None,
    )


# --- one call


async def test_a_call_that_hangs_is_unavailable_and_ended(impatient):
    logger, store = RecordingLogger(), Store()
    ports = behind_guards(logger, state=store)

    with pytest.raises(Unavailable, match=r"Store\.room did not return within"):
        await ports.state.room("lab")

    assert store.cancelled == 1
    assert logger.of("warning") == ["adapter_silent"]
    assert asyncio.current_task().cancelling() == 0, "who asked goes on"


class Far:
    """An engine whose answers wait in a socket until the loop has read them."""

    def __init__(self):
        self.told = asyncio.Event()

    async def answer(self):
        await self.told.wait()
        for _ in range(5):
            await asyncio.sleep(0)

    async def room(self, room_id):
        await self.answer()

    async def subscribe(self, channel, take):
        await self.answer()
        return self

    async def close(self):
        pass


@pytest.mark.parametrize("what", ["room", "subscribe"])
async def test_an_answer_that_came_while_the_loop_stood_still_counts(monkeypatch, what):
    monkeypatch.setattr(call_guard, "DEADLINE", 0.05)
    far = Far()
    ports = behind_guards(state=far) if what == "room" else behind_guards(pubsub=far)
    calls = {
        "room": lambda: ports.state.room("lab"),
        "subscribe": lambda: ports.pubsub.subscribe("c", print),
    }
    asked = asyncio.ensure_future(calls[what]())
    await settle()
    threading.Timer(0.1, asyncio.get_running_loop().call_soon_threadsafe, [far.told.set]).start()
    time.sleep(0.5)  # on purpose: nothing else runs

    await asked


async def test_who_is_cancelled_while_it_waits_is_cancelled():
    store = Store()
    asking = asyncio.ensure_future(behind_guards(state=store).state.room("lab"))
    await settle()

    asking.cancel()
    await settle()

    assert asking.cancelled()
    assert store.cancelled == 1


async def test_a_call_that_returns_although_it_was_ended_has_returned(impatient):
    class Stubborn(Store):
        async def room(self, room_id):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "room"

    assert await behind_guards(state=Stubborn()).state.room("lab") == "room"
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)


async def test_a_call_that_fails_in_its_own_words_when_it_is_ended_is_late(impatient):
    class Translating(Store):
        async def room(self, room_id):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                raise Ended("connection lost") from error

    with pytest.raises(Unavailable, match="did not return"):
        await behind_guards(state=Translating()).state.room("lab")


class Odd(BaseException):
    """What a library of an engine may have of its own."""


WRONG = [
    *(Ended("boom"), OSError(5, "io"), TimeoutError(), SystemExit(1), Odd("boom")),
    *(asyncio.CancelledError(), GeneratorExit()),
]


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize("error", WRONG, ids=lambda error: type(error).__name__)
async def test_what_no_port_knows_is_unavailable_and_logged(when, error):
    logger = RecordingLogger()
    ports = behind_guards(logger, state=Store(error))

    with pytest.raises(AdapterFailed) as raised:
        await ports.state.take_session(when)

    assert raised.value.__cause__ is error
    assert raised.value.code == "unavailable"
    assert "boom" not in str(raised.value), "its text stays here"
    assert logger.of("error") == ["adapter_failed"]


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize("error", WRONG, ids=lambda error: type(error).__name__)
async def test_a_subscribe_that_fails_ends_only_itself(when, error):
    """Not the loop, which a ``SystemExit`` in a task of its own would."""

    class Failing(MemoryPubSub):
        async def subscribe(self, channel, handler):
            if when == "later":
                await asyncio.sleep(0)
            raise error

    logger = RecordingLogger()
    ports = behind_guards(logger, pubsub=Failing())

    with pytest.raises(AdapterFailed) as raised:
        await ports.pubsub.subscribe("c", print)

    assert raised.value.__cause__ is error
    assert logger.of("error") == ["adapter_failed"]


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize("error", [Unavailable("away"), RoomFull("full"), Misuse("bug")], ids=str)
async def test_what_the_families_know_is_passed_on(when, error):
    logger = RecordingLogger()

    with pytest.raises(type(error)) as raised:
        await behind_guards(logger, state=Store(error)).state.take_session(when)

    assert raised.value is error
    assert logger.of("error") == []


async def test_an_adapter_may_answer_without_waiting_or_with_a_future():
    ports = behind_guards(state=Store())

    assert await ports.state.rooms() == ["lab"]
    assert await ports.state.renew("n1", 5.0) == ["n1"]


async def test_what_does_not_wait_sets_no_timer(monkeypatch):
    loop, timers = asyncio.get_running_loop(), []
    monkeypatch.setattr(loop, "call_later", lambda *args: timers.append(args))
    ports = behind_guards()

    await ports.state.renew("n1", 5.0)
    await ports.history.position("lab")
    await ports.offline.claim("ada", "n1", 5.0)
    await ports.pubsub._inner.open()
    subscription = ports.pubsub.subscribe("c", print)
    assert ports.pubsub.publish("nobody", b"x") is None, "and has not to be awaited"
    assert subscription.close() is None

    assert timers == []


async def test_time_outs_within_an_adapter_work():
    class Timed(Store):
        async def room(self, room_id):
            try:
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "timed out"

    assert await behind_guards(state=Timed()).state.room("lab") == "timed out"


# --- decisions


@pytest.mark.parametrize("error", [ValueError("no"), Refused("no"), Ended("no")], ids=repr)
async def test_what_a_rule_raises_is_the_caller_s(error):
    logger = RecordingLogger()
    state = behind_guards(logger).state

    def rule(room, standing):
        raise error

    with pytest.raises(type(error)) as raised:
        await state.decide("lab", "u:ada", rule)

    assert raised.value is error
    assert logger.of("error") == []


async def test_wrong_options_are_told_as_what_they_are(make_node):
    node = await make_node()
    await node.hub.create_room("lab", RoomOptions())

    with pytest.raises(ValueError, match="capacity"):
        await node.hub.update_room("lab", capacity=-1)


# --- all of them


@pytest.mark.parametrize("port", [StateStore, HistoryStore, OfflineStore])
async def test_every_method_of_a_store_has_its_end(impatient, port):
    class Hanging:
        def __getattr__(self, name):
            if name not in methods(port):
                raise AttributeError(name)

            async def call(*args):
                await asyncio.Event().wait()

            return call

    name = {StateStore: "state", HistoryStore: "history", OfflineStore: "offline"}[port]
    store = getattr(behind_guards(**{name: Hanging()}), name)

    assert len(methods(port)) >= 4
    for method in methods(port):
        with pytest.raises(Unavailable, match=method):
            await getattr(store, method)(*[None] * 3)


async def test_a_node_without_an_offline_store_has_none_behind_guards_either():
    assert behind_guards(offline=None).offline is None


async def test_a_bus_that_counts_its_listeners_still_does():
    assert isinstance(behind_guards().pubsub, CountsSubscribers)
    assert not isinstance(behind_guards(pubsub=Bus()).pubsub, CountsSubscribers)


def test_the_hub_is_more_patient_than_an_adapter_may_be_slow():
    assert call_guard.DEADLINE > stores.PROMISED


# --- the bus


class SlowBus(Bus):
    """A bus whose methods named in ``hanging`` do not return until ``gate`` opens; a
    subscription that it was told to end stands all the same."""

    def __init__(self):
        super().__init__()
        self.hanging = set()
        self.gate = asyncio.Event()
        self.closed = []

    async def _pass(self, name):
        while name in self.hanging and not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                if name != "subscribe":
                    raise

    async def publish(self, channel, payload):
        await self._pass("publish")
        await super().publish(channel, payload)

    async def subscribe(self, channel, handler):
        await self._pass("subscribe")
        subscription = await super().subscribe(channel, handler)
        return SlowSubscription(self, channel, subscription)


class SlowSubscription:
    def __init__(self, bus, channel, inner):
        self.bus, self.channel, self.inner = bus, channel, inner

    async def close(self):
        await self.bus._pass("close")
        self.bus.closed.append(self.channel)
        self.inner.close()


async def until(condition):
    """Return when something is so that real time brings about."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def bus():
    return SlowBus()


@pytest.fixture
async def node(make_node, bus):
    return await make_node(pubsub=bus, client_commands=True, history=Engine(MemoryHistory()))


JOIN = {"id": "j", "topic": "system:join", "data": {"room": "lab"}, "ack": True}


async def test_a_join_does_not_wait_for_ever_for_a_bus_that_hangs(node, bus, impatient):
    """And keeps neither the lock of its connection nor, later, the subscription."""
    ada = await node.connect("ada")
    bus.hanging = {"subscribe"}
    ada.say(JOIN)
    await until(lambda: ada.link.frames)

    [answer] = ada.heard()
    assert answer["data"]["code"] == "unavailable"
    assert ada.conn.rooms == frozenset()
    bus.hanging = set()
    bus.gate.set()
    await settle()
    assert await finished(node.hub.join("lab", ada.id)), "its turn is free"
    await until(lambda: bus.closed)
    channel = "eyewall:room:lab"
    assert bus.closed == [channel], "the one that came too late"
    assert bus.listeners_of(channel) == 1


async def test_what_the_bus_does_not_take_in_time_is_counted_and_the_members_here_have_it(
    node, bus, impatient
):
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)
    bus.hanging = {"publish"}

    assert await node.hub.broadcast_room("lab", "t", data=1) == 1

    assert [m["data"] for m in ada.heard()] == [1]
    assert node.hub.stats().unsent == 1


async def test_a_subscription_that_can_not_be_closed_holds_up_nobody(node, bus, impatient):
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)
    bus.hanging = {"close"}

    await node.hub.leave("lab", ada.id)

    await until(lambda: "unsubscribe_failed" in node.logger.of("warning"))
    assert ada.conn.rooms == frozenset()
    bus.gate.set()


async def test_a_bus_that_fails_in_its_own_words_is_away(make_node):
    class Broken(Bus):
        def publish(self, channel, payload):
            raise Ended("boom")

    node = await make_node(pubsub=Broken())
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)

    assert await node.hub.broadcast_room("lab", "t", data=1) == 1
    assert node.hub.stats().unsent == 1


# --- the stores


async def test_a_publish_does_not_wait_for_ever_for_a_history_that_hangs(node, impatient):
    await node.hub.create_room("lab", RoomOptions(history_size=5))
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)
    node.history.before.add("append")

    ada.say(
        {
            "id": "p",
            "topic": "system:publish",
            "data": {"room": "lab", "event": "say", "data": 1},
            "ack": True,
        }
    )
    await until(lambda: ada.link.frames)

    assert [m["data"]["code"] for m in ada.heard()] == ["unavailable"]


@pytest.mark.parametrize("method", ["decide", "appear", "vanish"])
async def test_a_state_that_hangs_keeps_no_connection_from_coming_and_going(
    make_node, clock, impatient, method
):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine, client_commands=True)
    before = await node.connect("ada")
    await node.hub.join("lab", before.id)
    ended = []
    node.hub.on_disconnect(lambda conn, reason: ended.append(conn.id))
    engine.before.add(method)

    link = node.link()
    opening = asyncio.ensure_future(_open(node, link))
    await until(opening.done)
    assert await opening
    await before.conn.close()
    await until(lambda: ended)

    assert ended == [before.id]


async def _open(node, link):
    reservation = node.transport_events.reserve(None)
    return await node.transport_events.open(
        link, ConnMeta(user_id="eve"), reservation, session=False
    )


async def test_a_node_whose_engines_hang_ends_all_the_same(make_node, clock, bus, monkeypatch):
    """In less time than a single call may take: the adapters are closed as well."""
    monkeypatch.setattr(tasks, "PARTING", 0.01)
    monkeypatch.setattr(sessions, "LEAVING", 0.01)
    closed = []

    class Engines(Engine):
        async def close(self):
            closed.append(self)

    engine, offline = Engines(MemoryState(clock=clock.now)), Engines(MemoryOffline())
    node = await make_node(
        state=engine, offline=offline, pubsub=bus, client_commands=True, presence_grace=60.0
    )
    await node.hub.create_room("lab", RoomOptions(announce=True))
    await node.hub.send_to_user("ada", Message("t", data=1), SendOptions(offline="store"))
    ada, eve = await node.connect("ada", session=True), await node.connect("eve", session=True)
    await node.hub.join("lab", eve.id)
    await eve.vanish()  # it may come back, which has to be told to somebody at the end
    assert len(node.parts.sessions) == 1
    assert ada.heard(), "what was stored is being sent, under a claim"
    engine.before |= set(methods(StateStore))
    offline.before |= set(methods(OfflineStore))
    bus.hanging = {"publish", "subscribe", "close"}

    async with asyncio.timeout(call_guard.DEADLINE - 1):
        await node.stop()

    assert closed == [offline, engine]
    assert {"bus_not_left", "release_failed", "sessions_not_kept"} <= set(node.logger.of("warning"))
    bus.gate.set()


# --- opening


class Opening:
    def __init__(self, error=None):
        self.error = error

    def authenticate(self, handshake):
        return None

    async def open(self):
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()

    async def close(self):
        pass


async def test_an_adapter_that_does_not_open_ends_the_start(monkeypatch):
    monkeypatch.setattr(node_module, "OPEN_TIMEOUT", 0.01)
    node = Harness(authenticator=Opening())

    with pytest.raises(Unavailable, match="Opening did not open within"):
        await node.node.start()


async def test_a_time_out_of_an_adapter_s_own_is_its_own(monkeypatch):
    node = Harness(authenticator=Opening(TimeoutError("its own")))

    with pytest.raises(TimeoutError, match="its own"):
        await node.node.start()
