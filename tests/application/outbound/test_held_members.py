"""What rooms send to members who may not hear it yet waits for them, and for nobody else."""

import asyncio

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.application.outbound.held_members import HeldMembers
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message, Priority
from eyewall.domain.errors import Forbidden
from eyewall.domain.outbox import DropPolicy, QueueConfig
from eyewall.domain.report import AckOptions, Target
from eyewall.domain.room import RoomOptions
from tests.application.engines import Engine
from tests.application.fakes import settle

KEPT = RoomOptions(history_size=10)


class Hooked:
    """A node whose ``on_connect`` hook does what the test says, and waits for its word."""

    def __init__(self, node, act, user="ada"):
        self.node, self.act, self.user, self.error = node, act, user, None
        self.gate = asyncio.Event()
        node.hub.on_connect(self.hook)

    async def hook(self, conn):
        if conn.user_id == self.user:
            await self.act(conn)
            await self.gate.wait()
            if self.error is not None:
                raise self.error

    async def begin(self, **options):
        self.task = asyncio.ensure_future(self.node.connect(self.user, **options))
        await settle()

    async def end(self, error=None):
        self.error = error
        self.gate.set()
        client = await self.task
        await settle()
        return client


def joins(node, *rooms):
    async def act(conn):
        for room in rooms:
            await node.hub.join(room, conn.id)

    return act


def topics(client):
    return [message["topic"] for message in client.heard()]


# --- who is being let in


async def test_a_hook_tells_the_room_and_the_connection_hears_it_too(node):
    reached = []

    @node.hub.on_connect
    async def hook(conn):
        await node.hub.join("lobby", conn.id)
        sent = await node.hub.broadcast_room("lobby", "room:lobby", "joined", {"who": conn.user_id})
        reached.append(sent)

    ada = await node.connect("ada")
    ben = await node.connect("ben")

    assert [m["data"]["who"] for m in ada.heard()] == ["ada", "ben"]
    assert [m["data"]["who"] for m in ben.heard()] == ["ben"]
    assert reached == [1, 2]


async def test_what_rooms_send_from_everywhere_comes_in_order_and_before_what_is_later(make_node):
    one, two = await make_node(), await make_node()
    hooked = Hooked(one, joins(one, "lab", "hall"))
    await hooked.begin()
    for n in range(3):
        await one.hub.broadcast_room("lab", f"lab{n}")
        await two.hub.broadcast_room("hall", f"hall{n}")
        await settle()
    one.hub.on_join(lambda room, conn: None)
    task = asyncio.ensure_future(hooked.end())
    await one.hub.broadcast_room("hall", "last")
    ada = await task
    await one.hub.broadcast_room("lab", "later")

    expected = ["lab0", "hall0", "lab1", "hall1", "lab2", "hall2", "last", "later"]
    assert topics(ada) == expected


async def test_nothing_waits_for_whom_it_is_not(node):
    hooked = Hooked(node, joins(node, "lab"))
    await hooked.begin()
    [conn] = node.hub.connections()
    assert await node.hub.emit_to_room_except("lab", [conn.id], Message("not you")) == 0
    assert await node.hub.emit_to_room("lab", Message("you")) == 1

    assert topics(await hooked.end()) == ["you"]


async def test_what_has_waited_is_nobodys_when_it_is_refused(node):
    hooked = Hooked(node, joins(node, "lab"))
    await hooked.begin()
    await node.hub.broadcast_room("lab", "secret")
    sent = node.hub.stats().out_messages
    ada = await hooked.end(Forbidden("no"))

    assert ada.heard() == []
    assert node.hub.stats().out_messages == sent
    assert len(node.parts.held_members) == len(node.parts.held_members.held) == 0


@pytest.mark.parametrize("how", ["leave", "kick", "delete"])
async def test_what_a_room_has_sent_is_not_for_who_is_out_of_it(node, how):
    await node.hub.create_room("lab", RoomOptions(auto_cleanup=False))
    hooked = Hooked(node, joins(node, "lab", "hall"))
    await hooked.begin()
    await node.hub.broadcast_room("lab", "lab")
    await node.hub.broadcast_room("hall", "hall")
    if how == "leave":
        await node.hub.leave("lab", node.hub.user_connections("ada")[0])
    elif how == "kick":
        await node.hub.kick_user_from_room("ada", "lab")
    else:
        await node.hub.delete_room("lab")
    ada = await hooked.end()

    assert [t for t in topics(ada) if t != "system:kicked"] == ["hall"]
    assert ada.conn.rooms == {"hall"}


async def test_a_history_that_begins_meanwhile_has_no_gap(make_node):
    one, two = await make_node(), await make_node()
    hooked = Hooked(one, joins(one, "lab"))
    await hooked.begin()
    await two.hub.broadcast_room("lab", "plain")
    await one.hub.update_room("lab", history_size=10)
    await two.hub.broadcast_room("lab", "first")
    await one.hub.broadcast_room("lab", "second")
    await settle()
    ada = await hooked.end()
    await one.hub.broadcast_room("lab", "third")
    await settle()

    heard = ada.heard()
    assert [m["topic"] for m in heard] == ["plain", "first", "second", "third"]
    assert [m["stream"]["offset"] for m in heard[1:]] == [1, 2, 3]


# --- the bound


async def asked_with(make_node, **queue):
    failures = []
    node = await make_node(queue=QueueConfig(**queue))
    node.hub.on_queue_full(
        lambda failure: failures.append((failure.message.topic, failure.user_id))
    )
    hooked = Hooked(node, joins(node, "lab"))
    await hooked.begin()
    return node, hooked, failures


@pytest.mark.parametrize(
    ("policy", "left", "lost"),
    [(DropPolicy.DROP_NEWEST, ["0", "1"], "2"), (DropPolicy.DROP_OLDEST, ["1", "2"], "0")],
)
async def test_what_waits_is_bounded_like_a_queue_and_what_is_dropped_is_told(
    make_node, policy, left, lost
):
    node, hooked, failures = await asked_with(make_node, size=2, drop_policy=policy)
    for n in range(3):
        await node.hub.broadcast_room("lab", str(n))
    ada = await hooked.end()

    assert topics(ada) == left
    assert failures == [(lost, "ada")]
    assert node.hub.stats().drops == 1
    assert node.hub.stats().out_messages == 2


async def test_bytes_are_bounded_too(make_node):
    node, hooked, failures = await asked_with(make_node, max_bytes=1000)
    for n in range(3):
        await node.hub.broadcast_room("lab", str(n), data="x" * 400)
    ada = await hooked.end()

    assert topics(ada) == ["0", "1"]
    assert failures == [("2", "ada")]


async def test_under_the_policy_that_disconnects_it_is_not_let_in(make_node):
    node, hooked, failures = await asked_with(
        make_node, size=1, drop_policy=DropPolicy.DROP_AND_DISCONNECT
    )
    ben = await node.connect("ben")
    await node.hub.join("lab", ben.id)
    for n in range(2):
        await node.hub.broadcast_room("lab", str(n))
    ada = await hooked.end()

    assert ada.closed is DisconnectReason.SLOW_CONSUMER
    assert (ada.heard(), topics(ben)) == ([], ["0", "1"])
    assert failures == [("1", "ada")]
    assert len(node.parts.held_members) == 0


async def test_a_drop_in_a_room_with_history_is_a_gap(make_node):
    node, hooked, _ = await asked_with(make_node, size=2)
    await node.hub.update_room("lab", history_size=10)
    for n in range(4):
        await node.hub.broadcast_room("lab", str(n))
    ada = await hooked.end()

    heard = ada.heard()
    assert [m["topic"] for m in heard] == ["0", "1", "system:gap"]
    assert heard[-1]["data"]["offset"] == 2


async def test_all_together_are_bounded(node):
    """Many may be asked for at a time, by a database that hangs."""
    ada = await node.connect("ada")
    held_members = HeldMembers(
        connections=node.parts.connections,
        sender=node.parts.sender,
        queue=QueueConfig(),
        max_waiting=100,
    )
    held_members.hold("lab", ada.conn)
    for n in range(3):
        message = Message(str(n), data="x" * 80)
        held_members.keep("lab", node.parts.sender.encode(message, recipient="lab"))
    held_members.release({"lab"}, ada.conn)

    assert topics(ada) == ["0"]
    assert node.hub.stats().drops == 2


async def test_more_urgent_messages_come_first_as_in_a_queue(node):
    hooked = Hooked(node, joins(node, "lab"))
    await hooked.begin()
    await node.hub.emit_to_room("lab", Message("low", priority=Priority.LOW))
    await node.hub.emit_to_room("lab", Message("high", priority=Priority.HIGH))

    assert topics(await hooked.end()) == ["high", "low"]


# --- who has become another user


class Slow:
    """Lets in whom ``may`` says, and thinks about it until the test lets it go on."""

    def __init__(self):
        self.may, self.gate = {"admin"}, asyncio.Event()
        self.gate.set()

    def can_publish(self, meta, topic, event):
        return True

    async def can_subscribe(self, meta, room_id):
        await self.gate.wait()
        return meta.user_id in self.may


@pytest.mark.parametrize("options", [RoomOptions(), KEPT], ids=["plain", "history"])
@pytest.mark.parametrize("may", [True, False])
@pytest.mark.parametrize("before", ["admin", None])
async def test_what_a_room_sends_while_it_is_not_decided_is_the_new_users_or_nobodys(
    make_node, options, may, before
):
    access = Slow()
    access.may |= {None, *(["guest"] if may else [])}
    node = await make_node(access_controller=access)
    await node.hub.create_room("lab", options)
    client = await node.connect(before)
    await node.hub.join("lab", client.id)
    await node.hub.broadcast_room("lab", "before")
    access.gate.clear()
    node.hub.set_meta(client.id, user_id="guest")
    await node.hub.broadcast_room("lab", "secret")
    acked = asyncio.ensure_future(
        node.hub.emit_with_ack(Target.room("lab"), Message("acked"), AckOptions(timeout=1.0))
    )
    await settle()

    assert topics(client) == ["before"]
    assert acked.result().expected == 0
    access.gate.set()
    await settle()
    await node.hub.broadcast_room("lab", "after")

    heard = topics(client)
    if may:
        assert [t for t in heard if t != "acked"] == ["secret", "after"]
    else:
        assert heard == ["system:kicked"]
    assert len(node.parts.held_members) == len(node.parts.held_members.held) == 0


async def test_who_is_back_to_the_user_it_was_misses_nothing(make_node):
    access = Slow()
    node = await make_node(access_controller=access)
    client = await node.connect("admin")
    await node.hub.join("lab", client.id)
    access.gate.clear()
    node.hub.set_meta(client.id, user_id="guest")
    await node.hub.broadcast_room("lab", "one")
    node.hub.set_meta(client.id, user_id="admin")
    await node.hub.broadcast_room("lab", "two")
    access.gate.set()
    await settle()

    assert topics(client) == ["one", "two"]
    assert client.conn.rooms == {"lab"}


async def test_a_store_that_is_slow_to_seat_the_new_user_is_waited_for_too(make_node, clock):
    """Its seat has been given back, and the next one may be refused."""
    state = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=state, client_commands=True)
    await node.hub.create_room("lab", KEPT)
    await node.hub.ban("lab", "eve")
    client = await node.connect("ada")
    await node.hub.join("lab", client.id)
    state.before.add("decide")
    node.hub.set_meta(client.id, user_id="eve")
    await settle()
    for _ in range(2):
        client.say(
            {"id": "h", "topic": "system:publish", "ack": True, "data": {"room": "lab", "data": 1}}
        )
        assert await node.hub.broadcast_room("lab", "secret") == 1
        await settle()
        assert client.heard() == []
        state.go_on()
        state.before.add("decide")
        await settle()
    state.go_on()
    await settle()

    heard = client.heard()
    assert heard[0]["topic"] == "system:kicked"
    assert "secret" not in [m["topic"] for m in heard]
    assert len((await node.hub.history("lab")).messages) == 2


async def test_logging_in_where_nobody_is_asked_delays_nothing(node):
    """What the room and the handler send keeps its order."""
    client = await node.connect()
    await node.hub.join("lab", client.id)

    @node.on("login")
    async def login(ctx, msg):
        node.hub.set_meta(ctx.conn.id, user_id="ada")
        await node.hub.broadcast_room("lab", "one")
        await ctx.send("two")

    heard = await client.ask({"topic": "login"})

    assert [m["topic"] for m in heard] == ["one", "two"]


@pytest.mark.parametrize("options", [RoomOptions(), KEPT], ids=["plain", "history"])
async def test_a_state_that_is_away_puts_off_what_the_new_user_hears(make_node, clock, options):
    state = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=state)
    await node.hub.create_room("lab", options)
    client = await node.connect("ada")
    await node.hub.join("lab", client.id)
    state.away = True
    node.hub.set_meta(client.id, user_id="eve")
    await settle()
    await node.hub.broadcast_room("lab", "one")
    await settle()
    assert client.heard() == []

    state.away = False
    for _ in range(10):
        await node.advance(1.0)
    await node.hub.broadcast_room("lab", "two")
    await settle()

    assert topics(client) == ["one", "two"]
    assert [m.user_id for m in await node.hub.members("lab")] == ["eve"]
    assert client.conn.held == frozenset()


async def test_who_changes_twice_hears_what_the_last_one_may(make_node):
    access = Slow()
    access.may |= {"bob"}
    node = await make_node(access_controller=access)
    client = await node.connect("admin")
    await node.hub.join("lab", client.id)
    access.gate.clear()
    for user, topic in (("guest", "one"), ("bob", "two")):
        node.hub.set_meta(client.id, user_id=user)
        await settle()
        await node.hub.broadcast_room("lab", topic)
    access.gate.set()
    await settle()

    assert topics(client) == ["one", "two"]
    assert [m.user_id for m in await node.hub.members("lab")] == ["bob"]


@pytest.mark.parametrize("how", ["close", "lost", "leave", "delete"])
async def test_nothing_is_left_of_who_is_gone_before_it_is_decided(make_node, how):
    access = Slow()
    node = await make_node(access_controller=access)
    client = await node.connect("admin")
    await node.hub.join("lab", client.id)
    access.gate.clear()
    node.hub.set_meta(client.id, user_id="guest")
    await node.hub.broadcast_room("lab", "secret")
    await settle()
    ways = {
        "close": client.conn.close,
        "lost": client.vanish,
        "leave": lambda: node.hub.leave("lab", client.id),
        "delete": lambda: node.hub.delete_room("lab"),
    }
    going = asyncio.ensure_future(ways[how]())
    await settle()
    access.gate.set()
    await going
    await settle()

    assert "secret" not in topics(client)
    assert len(node.parts.held_members) == len(node.parts.held_members.held) == 0
    assert not node.parts.rooms.moving
