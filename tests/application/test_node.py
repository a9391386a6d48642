"""One node: the order in which its parts start and stop."""

import asyncio

import msgspec
import pytest

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.dispatch.router import Routes
from eyewall.domain.envelope import Envelope, Message
from eyewall.domain.errors import Unavailable
from eyewall.domain.report import FailureReason
from tests.application.fakes import FakeClock, Harness, settle


class Adapter:
    """Something that opens and closes, and remembers it."""

    def __init__(self, name, log, *, fails_to_open=False, fails_to_close=False):
        self.name = name
        self.log = log
        self.fails_to_open = fails_to_open
        self.fails_to_close = fails_to_close

    async def open(self):
        if self.fails_to_open:
            raise Unavailable(f"{self.name} is away")
        self.log.append(f"open {self.name}")

    async def close(self):
        self.log.append(f"close {self.name}")
        if self.fails_to_close:
            raise RuntimeError("stuck")


class Authenticator(Adapter):
    def authenticate(self, handshake):
        return None


class Access(Adapter):
    def can_publish(self, meta, topic, event):
        return True

    def can_subscribe(self, meta, room_id):
        return True


async def test_adapters_are_opened_at_start_and_closed_in_reverse():
    log = []
    node = Harness(authenticator=Authenticator("auth", log), access_controller=Access("door", log))

    async with node:
        assert log == ["open auth", "open door"]

    assert log[2:] == ["close door", "close auth"]


async def test_what_could_not_be_opened_is_not_closed():
    """A shared adapter would be closed for the others, who have opened it."""
    log = []
    node = Harness(
        authenticator=Authenticator("auth", log),
        access_controller=Access("door", log, fails_to_open=True),
    )

    with pytest.raises(Unavailable):
        await node.node.start()
    await node.node.stop()

    assert log == ["open auth", "close auth"]


async def test_one_that_can_not_be_closed_does_not_keep_the_others_open():
    log = []
    node = Harness(
        authenticator=Authenticator("auth", log),
        access_controller=Access("door", log, fails_to_close=True),
    )

    async with node:
        pass

    assert "close auth" in log
    assert node.logger.of("error") == ["close_failed"]


async def test_a_bus_that_servers_share_stays_open_for_the_others():
    clock, bus, state = FakeClock(), MemoryPubSub(), MemoryState()
    one = Harness("n1", clock=clock, pubsub=bus, state=state)
    two = Harness("n2", clock=clock, pubsub=bus, state=state)
    async with one:
        async with two:
            pass
        ada = await one.connect("ada")

        assert await one.hub.join("lab", ada.id)


async def test_a_node_that_has_stopped_leaves_nothing_behind():
    node = Harness()
    async with node:
        ada = await node.connect("ada")
        await node.hub.join("lab", ada.id)
        await node.hub.set_typing("ada", "lab")
        before = asyncio.all_tasks()

    assert node.clock.timers == set()
    assert not [task for task in asyncio.all_tasks() if task not in before]
    assert node.bus.listeners("eyewall:all") == 0
    assert await node.state.connections_of(["ada"]) == {}
    assert await node.state.rooms() == []


async def test_a_node_may_start_again():
    node = Harness(client_commands=True)
    async with node:
        pass

    async with node:
        ada = await node.connect("ada")
        assert await node.hub.join("lab", ada.id)


async def test_a_hook_that_hangs_does_not_keep_a_node_from_stopping():
    """Also one that hangs while a room's hooks wait for it."""
    node = Harness()

    async def hook(*_):
        await asyncio.Event().wait()

    node.hub.on_disconnect(hook)
    node.hub.on_join(hook)
    node.hub.on_leave(hook)
    await node.node.start()
    ada, bob = await node.connect("ada"), await node.connect("bob")
    joining = asyncio.create_task(node.hub.join("lab", ada.id))
    await settle()
    await ada.vanish()
    await bob.vanish()
    joining.cancel()  # the hooks of the leave are next
    await settle()

    await asyncio.wait_for(node.node.stop(), 10)

    assert await node.state.rooms() == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_work_that_is_under_way_can_be_waited_for(make_node):
    node = await make_node()
    gate = asyncio.Event()

    @node.on("slow")
    async def slow(ctx, msg):
        await gate.wait()

    ada = await node.connect("ada")
    ada.say({"id": "1", "topic": "slow", "ack": True})
    finishing = asyncio.create_task(node.node.finish_work())
    await settle()
    assert not finishing.done()

    gate.set()
    await finishing

    assert ada.heard()[0]["data"]["status"] == "ok"


async def test_two_clusters_on_one_bus_do_not_hear_each_other(make_node):
    one, two = await make_node(), await make_node(cluster_channel="other")
    ada, bob = await one.connect("ada"), await two.connect("bob")

    await one.hub.broadcast("news")
    await settle()

    assert len(ada.heard()) == 1
    assert bob.heard() == []


async def test_what_is_registered_with_one_node_can_be_taken_over_by_another(make_node):
    """Routes with their types, groups and middleware, hooks and failure handlers."""
    heard = []

    def register(harness):
        class Sum(msgspec.Struct):  # nobody else knows it
            of: list[int]

        @harness.on("sum")
        async def add(ctx, msg: "Envelope[Sum]"):
            return sum(msg.data.of)

    group = Routes()
    group.use(lambda ctx, msg, go_on: go_on(ctx, msg.with_data(msg.data + 1)))
    group.handle("double", lambda ctx, msg: msg.data * 2)
    before = await make_node()
    register(before)
    before.parts.router.include(group, "math:")
    before.hub.on_connect(lambda conn: heard.append(conn.user_id))
    before.hub.on_user_offline(lambda failure: heard.append(failure.reason))
    after = await make_node()
    after.node.adopt(before.node)
    before.hub.handle("later", lambda ctx, msg: None)

    ada = await after.connect(user="ada")
    answers = [
        await ada.ask({"id": "1", "topic": "sum", "data": {"of": [1, 2]}, "ack": True}),
        await ada.ask({"id": "2", "topic": "math:double", "data": 3, "ack": True}),
        await ada.ask({"id": "3", "topic": "later", "ack": True}),
    ]
    await after.hub.send_to_user("nobody", Message("hi"))

    assert [a["data"].get("result", a["data"].get("code")) for [a] in answers] == [
        3,
        8,
        "handler_not_found",
    ]
    assert heard == ["ada", FailureReason.USER_OFFLINE]
