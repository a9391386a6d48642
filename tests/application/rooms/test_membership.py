"""In and out of rooms, for clients of two nodes that are one cluster."""

import asyncio

import pytest

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.rooms import membership as module
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import (
    ConnectionClosed,
    Forbidden,
    JoinForbidden,
    RoomFull,
    RoomNotFound,
    Unavailable,
)
from eyewall.domain.room import JoinOptions, LeaveReason, RoomOptions, RoomPolicy, RoomRole
from tests.application.engines import Engine
from tests.application.fakes import finished, settle


def watch(node):
    """Remember what the hooks of a node are told."""
    told = []
    node.hub.on_join(lambda room, conn: told.append(("join", room, conn.id)))
    node.hub.on_leave(lambda room, conn, reason: told.append((str(reason), room, conn.id)))
    return told


async def seats(node, room="lab"):
    info = await node.hub.room(room)
    return None if info is None else info.members


# --- joining


async def test_joining_says_what_one_has_got(one):
    ada = await one.connect("ada")

    membership = await one.hub.join("lab", ada.id)

    assert membership.room_id == "lab"
    assert membership.conn_id == ada.id
    assert membership.role is RoomRole.MEMBER
    assert membership.members == 1
    assert ada.conn.rooms == {"lab"}


async def test_members_are_counted_in_the_whole_cluster(one, two):
    ada, bob = await one.connect("ada"), await two.connect("bob")

    await one.hub.join("lab", ada.id)

    assert (await two.hub.join("lab", bob.id)).members == 2


async def test_joining_twice_changes_nothing(one):
    told = watch(one)
    ada = await one.connect("ada")
    await one.hub.join("lab", ada.id)

    again = await one.hub.join("lab", ada.id, JoinOptions(role=RoomRole.OWNER))

    assert (again.members, again.role) == (1, RoomRole.MEMBER)
    assert told == [("join", "lab", ada.id)]


async def test_what_is_published_after_the_join_arrives(one, two):
    ada, bob = await one.connect("ada"), await two.connect("bob")
    await one.hub.join("lab", ada.id)
    await two.hub.join("lab", bob.id)

    await one.hub.broadcast_room("lab", "room:lab", "message", 1)
    await settle()

    assert [m["data"] for m in ada.heard()] == [1]
    assert [m["data"] for m in bob.heard()] == [1]


async def test_capacity_holds_across_nodes(one, two):
    await one.hub.create_room("lab", RoomOptions(capacity=2))
    clients = [await node.connect(f"u{n}") for n in range(3) for node in (one, two)]

    results = await asyncio.gather(
        *(
            node.hub.join("lab", client.id)
            for client, node in zip(clients, [one, two] * 3, strict=True)
        ),
        return_exceptions=True,
    )

    assert sum(isinstance(result, RoomFull) for result in results) == 4
    assert await seats(one) == 2


async def test_force_skips_the_policy_only(one):
    await one.hub.create_room("lab", RoomOptions(policy=RoomPolicy.PRIVATE, capacity=1))
    ada, bob = await one.connect("ada"), await one.connect("bob")
    with pytest.raises(JoinForbidden):
        await one.hub.join("lab", ada.id)

    await one.hub.join("lab", ada.id, JoinOptions(force=True))

    with pytest.raises(RoomFull):
        await one.hub.join("lab", bob.id, JoinOptions(force=True))


async def test_a_private_room_reads_the_roles_of_the_meta(one):
    await one.hub.create_room("lab", RoomOptions(policy="private", allowed_roles=["staff"]))
    ada = await one.connect("ada", roles=["staff"])

    assert await one.hub.join("lab", ada.id)


async def test_a_room_has_to_be_created_where_implicit_rooms_are_off(make_node):
    node = await make_node(implicit_rooms=False)
    ada = await node.connect("ada")
    with pytest.raises(RoomNotFound):
        await node.hub.join("lab", ada.id)

    await node.hub.create_room("lab")

    assert await node.hub.join("lab", ada.id)


async def test_a_refused_join_leaves_nothing_behind(one, two):
    await one.hub.create_room("lab", RoomOptions(policy="invite_only"))
    told = watch(one)
    ada = await one.connect("ada")
    with pytest.raises(JoinForbidden):
        await one.hub.join("lab", ada.id)
    await settle()

    await two.hub.broadcast_room("lab", "room:lab")
    await settle()

    assert ada.heard() == []
    assert ada.conn.rooms == frozenset()
    assert one.bus.listeners("eyewall:room:lab") == 0
    assert told == []


@pytest.mark.parametrize("name", ["", "x" * 201, "line\nfeed"])
async def test_a_room_has_a_name(one, name):
    ada = await one.connect("ada")

    with pytest.raises(ValueError, match="room_id"):
        await one.hub.join(name, ada.id)


async def test_a_connection_may_be_in_so_many_rooms(one, monkeypatch):
    monkeypatch.setattr(module, "MAX_ROOMS", 2)
    ada = await one.connect("ada")
    await one.hub.join("a", ada.id)
    await one.hub.join("b", ada.id)

    with pytest.raises(Forbidden):
        await one.hub.join("c", ada.id)
    assert await one.hub.join("a", ada.id)


async def test_who_has_ended_can_not_join(one):
    ada = await one.connect("ada")
    await ada.vanish()

    with pytest.raises(ConnectionClosed):
        await one.hub.join("lab", ada.id)


# --- the access controller


class Door:
    """An access controller that lets some users in, and may take its time."""

    def __init__(self, *users, gate=None):
        self.users = users
        self.gate = gate

    def can_publish(self, meta, topic, event):
        return True

    async def can_subscribe(self, meta, room_id):
        if self.gate is not None:
            await self.gate.wait()
        return meta.user_id in self.users


async def test_the_access_controller_is_asked_for_every_join(make_node):
    node = await make_node(access_controller=Door("ada"))
    ada, bob = await node.connect("ada"), await node.connect("bob")

    assert await node.hub.join("lab", ada.id)
    for options in (None, JoinOptions(force=True)):
        with pytest.raises(Forbidden):
            await node.hub.join("lab", bob.id, options)


async def test_who_ends_while_the_door_asks_gets_no_seat(make_node):
    gate = asyncio.Event()
    node = await make_node(access_controller=Door("ada", gate=gate))
    ada = await node.connect("ada")
    joining = asyncio.create_task(node.hub.join("lab", ada.id))
    await settle()

    await ada.vanish()
    gate.set()

    with pytest.raises(ConnectionClosed):
        await joining
    assert await seats(node) is None


# --- leaving


async def test_leaving_says_whether_one_was_in(one):
    ada = await one.connect("ada")
    await one.hub.join("lab", ada.id)

    assert await one.hub.leave("lab", ada.id) is True
    assert await one.hub.leave("lab", ada.id) is False
    assert await one.hub.leave("other", ada.id) is False
    assert ada.conn.rooms == frozenset()
    assert await seats(one) is None


async def test_who_has_left_hears_nothing(one, two):
    ada, bob = await one.connect("ada"), await one.connect("bob")
    for client in (ada, bob):
        await one.hub.join("lab", client.id)
    await one.hub.leave("lab", ada.id)

    await one.hub.broadcast_room("lab", "room:lab")
    await two.hub.broadcast_room("lab", "room:lab")
    await settle()

    assert ada.heard() == []
    assert len(bob.heard()) == 2


async def test_leaving_all_says_how_many(one):
    ada = await one.connect("ada")
    for room in ("a", "b", "c"):
        await one.hub.join(room, ada.id)

    assert await one.hub.leave_all(ada.id) == 3
    assert await one.hub.leave_all(ada.id) == 0
    assert await one.hub.rooms() == []


async def test_the_last_to_leave_ends_the_subscription(one):
    ada, bob = await one.connect("ada"), await one.connect("bob")
    for client in (ada, bob):
        await one.hub.join("lab", client.id)
    await one.hub.leave("lab", ada.id)
    await settle()
    assert one.bus.listeners("eyewall:room:lab") == 1

    await bob.vanish()
    await settle()

    assert one.bus.listeners("eyewall:room:lab") == 0
    assert len(one.parts.broadcast_groups) == 0


async def test_who_ends_leaves_all_rooms_before_the_disconnect_hooks(one):
    seen = []

    @one.hub.on_disconnect
    async def hook(conn, reason):
        seen.append((conn.rooms, await one.hub.rooms(), await one.hub.members("a")))

    told = watch(one)
    ada = await one.connect("ada")
    await one.hub.join("a", ada.id)
    await one.hub.join("b", ada.id)

    await ada.vanish()

    assert seen == [({"a", "b"}, [], [])]
    assert told[2:] == [("disconnected", "a", ada.id), ("disconnected", "b", ada.id)]


async def test_an_anonymous_connection_stands_for_itself(one, two):
    guest, other = await one.connect(), await two.connect()
    await one.hub.join("lab", guest.id)
    await two.hub.join("lab", other.id)

    await guest.vanish()

    assert await seats(two) == 1


# --- announcements


async def announced(make_node):
    one, two = await make_node(), await make_node()
    await one.hub.create_room("lab", RoomOptions(announce=True))
    bob = await two.connect("bob")
    await two.hub.join("lab", bob.id)
    return one, two, bob


def heard_of(client):
    return [(m["topic"], m["event"], m["data"]) for m in client.heard()]


async def test_where_the_room_announces_the_others_see_who_joins_and_leaves(make_node):
    one, _, bob = await announced(make_node)
    phone, laptop = await one.connect("ada"), await one.connect("ada")

    await one.hub.join("lab", phone.id)
    await one.hub.join("lab", laptop.id)
    await one.hub.leave("lab", phone.id)
    await laptop.vanish()

    assert heard_of(bob) == [
        ("room:lab", "join", {"user_id": "ada", "connections": 1}),
        ("room:lab", "join", {"user_id": "ada", "connections": 2}),
        ("room:lab", "leave", {"user_id": "ada", "connections": 1}),
        ("room:lab", "leave", {"user_id": "ada", "connections": 0}),
    ]


async def test_who_joins_does_not_hear_of_itself(make_node):
    one, _, _ = await announced(make_node)
    phone = await one.connect("ada")

    await one.hub.join("lab", phone.id)
    await settle()

    assert phone.heard() == []


async def test_other_rooms_announce_nothing(one):
    ada, bob = await one.connect("ada"), await one.connect("bob")
    await one.hub.join("lab", ada.id)

    await one.hub.join("lab", bob.id)
    await bob.vanish()

    assert ada.heard() == []


# --- hooks


async def test_joins_and_leaves_come_in_pairs_with_their_reasons(one):
    told = watch(one)
    clients = {reason: await one.connect(str(reason)) for reason in LeaveReason}
    for reason, client in clients.items():
        room = "gone" if reason is LeaveReason.DELETED else "lab"
        await one.hub.join(room, client.id)

    await one.hub.leave("lab", clients[LeaveReason.LEFT].id)
    await one.hub.kick_user_from_room("kicked", "lab")
    await one.hub.ban("lab", "banned")
    await clients[LeaveReason.DISCONNECTED].vanish()
    await one.hub.delete_room("gone")

    for reason, client in clients.items():
        room = "gone" if reason is LeaveReason.DELETED else "lab"
        mine = [entry for entry in told if entry[2] == client.id]
        assert mine == [("join", room, client.id), (reason.value, room, client.id)]


async def test_a_hook_that_raises_changes_nothing(one):
    @one.hub.on_join
    def hook(room, conn):
        raise RuntimeError("secret")

    ada = await one.connect("ada")

    assert await one.hub.join("lab", ada.id)
    assert one.logger.of("error") == ["hook_failed"]


async def test_a_hook_of_the_join_may_put_the_connection_out_again(one):
    told = watch(one)

    @one.hub.on_join
    async def hook(room, conn):
        await one.hub.leave(room, conn.id)

    ada = await one.connect("ada")

    await finished(one.hub.join("lab", ada.id))

    assert told == [("join", "lab", ada.id), ("left", "lab", ada.id)]
    assert await seats(one) is None


async def test_a_hook_may_do_so_from_a_task_of_its_own(one):
    @one.hub.on_join
    async def hook(room, conn):
        if room == "lab":
            await asyncio.gather(one.hub.leave(room, conn.id), one.hub.join("other", conn.id))

    ada = await one.connect("ada")

    await finished(one.hub.join("lab", ada.id))

    assert "other" in ada.conn.rooms
    assert "lab" not in ada.conn.rooms


async def test_hooks_that_put_each_others_connection_out_do_not_wait_for_each_other(one, two):
    """One device per user: each join puts the others out, two at the same time."""
    both = asyncio.Barrier(2)

    async def hook(room, conn):
        async with both:
            pass
        for node in (one, two):
            for other in node.hub.user_connections(conn.user_id):
                if other != conn.id:
                    await one.hub.leave(room, other)

    told = watch(one), watch(two)
    one.hub.on_join(hook)
    two.hub.on_join(hook)
    phone, laptop = await one.connect("ada"), await two.connect("ada")

    await finished(asyncio.gather(one.hub.join("lab", phone.id), two.hub.join("lab", laptop.id)))

    assert [entry[0] for entry in told[0]] == ["join", "left"]
    assert [entry[0] for entry in told[1]] == ["join", "left"]


async def test_a_leave_is_told_after_the_join_whose_hooks_still_run(one):
    told, gate = [], asyncio.Event()

    @one.hub.on_join
    async def joined(room, conn):
        await gate.wait()
        told.append("joined")

    one.hub.on_leave(lambda *_: told.append("left"))
    one.hub.on_disconnect(lambda *_: told.append("disconnected"))
    ada = await one.connect("ada")
    joining = asyncio.create_task(one.hub.join("lab", ada.id))
    await settle()

    await ada.vanish()
    assert told == []
    gate.set()
    await joining
    await settle()

    assert told == ["joined", "left", "disconnected"]


async def test_a_handler_that_is_cancelled_in_the_hooks_leaves_pairs(one):
    told, gate = watch(one), asyncio.Event()

    @one.hub.on_join
    async def hook(room, conn):
        await gate.wait()

    ada = await one.connect("ada")
    joining = asyncio.create_task(one.hub.join("lab", ada.id))
    await settle()

    joining.cancel()
    await settle()
    await ada.vanish()

    assert [entry[0] for entry in told] == ["join", "disconnected"]
    assert await seats(one) is None


# --- a state that takes its time, or is away


@pytest.fixture
async def slow(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine)
    return node, engine


async def test_who_ends_while_the_state_decides_keeps_no_seat(slow):
    node, engine = slow
    told = watch(node)
    ada = await node.connect("ada")
    engine.after.add("decide")
    joining = asyncio.create_task(node.hub.join("lab", ada.id))
    await settle()

    await ada.vanish()
    engine.go_on()
    await settle()

    with pytest.raises(ConnectionClosed):
        await joining
    assert await engine.inner.room("lab") is None
    assert told == []
    assert node.bus.listeners("eyewall:room:lab") == 0


async def test_a_join_that_is_cancelled_while_the_state_decides_keeps_no_seat(slow):
    node, engine = slow
    ada = await node.connect("ada")
    engine.after.add("decide")
    joining = asyncio.create_task(node.hub.join("lab", ada.id))
    await settle()

    joining.cancel()
    engine.go_on()
    await settle()

    assert await engine.inner.room("lab") is None
    assert ada.conn.rooms == frozenset()
    assert node.bus.listeners("eyewall:room:lab") == 0


async def test_a_join_whose_answer_is_lost_keeps_no_seat(slow):
    node, engine = slow
    ada = await node.connect("ada")
    engine.lost.add("decide")
    with pytest.raises(Unavailable):
        await node.hub.join("lab", ada.id)
    await settle()

    engine.lost.clear()

    assert await engine.inner.room("lab") is None


async def test_a_join_that_is_tried_again_keeps_the_seat(slow):
    """Taking the first one's seat back must not take the second one's."""
    node, engine = slow
    ada = await node.connect("ada")
    engine.lost.add("decide")
    with pytest.raises(Unavailable):
        await node.hub.join("lab", ada.id)
    engine.lost.clear()

    await node.hub.join("lab", ada.id)
    await settle()

    assert (await engine.inner.room("lab")).seats == 1
    assert ada.conn.rooms == {"lab"}


async def test_leaving_waits_for_the_join_that_is_under_way(slow):
    node, engine = slow
    told = watch(node)
    ada = await node.connect("ada")
    engine.after.add("decide")
    joining = asyncio.create_task(node.hub.join("lab", ada.id))
    await settle()
    leaving = asyncio.create_task(node.hub.leave("lab", ada.id))
    await settle()
    assert not leaving.done()

    engine.go_on()
    await joining

    assert await leaving is True
    assert [entry[0] for entry in told] == ["join", "left"]
    assert await engine.inner.room("lab") is None


async def test_a_leave_takes_effect_when_the_caller_is_cancelled(slow):
    node, engine = slow
    told = watch(node)
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)
    engine.after.add("decide")
    leaving = asyncio.create_task(node.hub.leave("lab", ada.id))
    await settle()

    leaving.cancel()
    await settle()
    assert leaving.cancelled()
    engine.go_on()
    await settle()

    assert ada.conn.rooms == frozenset()
    assert [entry[0] for entry in told] == ["join", "left"]
    assert node.bus.listeners("eyewall:room:lab") == 0


async def test_while_the_state_is_away_members_stay_members(slow):
    node, engine = slow
    told = watch(node)
    ada, bob = await node.connect("ada"), await node.connect("bob")
    await node.hub.join("lab", ada.id)
    engine.away = True

    with pytest.raises(Unavailable):
        await node.hub.join("lab", bob.id)
    with pytest.raises(Unavailable):
        await node.hub.leave("lab", ada.id)
    assert await node.hub.broadcast_room("lab", "room:lab") == 1
    assert ada.conn.rooms == {"lab"}

    engine.away = False
    assert await node.hub.leave("lab", ada.id) is True
    assert [entry[0] for entry in told] == ["join", "left"]


async def test_who_ends_while_the_state_is_away_has_its_hooks_told(slow):
    node, engine = slow
    told = watch(node)
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)
    engine.away = True

    await ada.vanish()

    assert [entry[0] for entry in told] == ["join", "disconnected"]
    assert "seat_not_released" in node.logger.of("warning")


async def test_a_bus_that_is_away_refuses_joins_and_takes_no_seat(make_node, clock):
    from tests.application.engines import Bus

    bus = Bus()
    node = await make_node(pubsub=bus)
    ada = await node.connect("ada")
    bus.away = True

    with pytest.raises(Unavailable):
        await node.hub.join("lab", ada.id)

    assert await seats(node) is None
    bus.away = False
    assert await node.hub.join("lab", ada.id)


# --- kicks that race


async def test_who_comes_back_before_the_kick_takes_effect_stays(slow):
    node, engine = slow
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)
    engine.after.add("decide")
    kicking = asyncio.create_task(node.hub.kick_user_from_room("ada", "lab"))
    await settle()
    engine.after.clear()

    await node.hub.join("lab", ada.id)
    engine.go_on()
    await kicking
    await settle()

    assert ada.conn.rooms == {"lab"}
    assert (await engine.inner.room("lab")).seats == 1
    assert "kicked" not in [m["event"] for m in ada.heard()]


async def test_who_comes_back_to_a_deleted_room_is_in_the_new_one(slow):
    node, engine = slow
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)
    engine.after.add("remove_room")
    deleting = asyncio.create_task(node.hub.delete_room("lab"))
    await settle()

    await node.hub.join("lab", ada.id)
    engine.go_on()
    await deleting

    assert ada.conn.rooms == {"lab"}
    assert await node.hub.broadcast_room("lab", "room:lab") == 1
    await ada.vanish()
    assert await engine.inner.room("lab") is None


async def test_who_ends_while_it_is_kicked_leaves_once(slow):
    node, engine = slow
    told = watch(node)
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)
    engine.after.add("decide")
    kicking = asyncio.create_task(node.hub.kick_user_from_room("ada", "lab"))
    await settle()

    await ada.vanish()
    engine.go_on()
    await kicking
    await settle()

    assert [entry[0] for entry in told] == ["join", "disconnected"]
    assert await engine.inner.room("lab") is None


async def test_a_kick_takes_effect_when_the_state_can_not_be_asked_again(slow):
    node, engine = slow
    ada = await node.connect("ada")
    await node.hub.join("lab", ada.id)
    engine.after.add("decide")
    kicking = asyncio.create_task(node.hub.kick_user_from_room("ada", "lab"))
    await settle()

    engine.away = True
    engine.go_on()

    assert await kicking == 1
    assert ada.conn.rooms == frozenset()


async def test_a_thousand_joins_and_leaves_in_any_order_leave_nothing(one, two):
    clients = [await node.connect(f"u{n % 5}") for n in range(10) for node in (one, two)]

    async def churn(client, node, number):
        for turn in range(10):
            room = f"r{(number + turn) % 3}"
            await asyncio.gather(
                node.hub.join(room, client.id),
                one.hub.leave(room, client.id),
                two.hub.kick_user_from_room(f"u{number % 5}", room),
            )

    await asyncio.gather(
        *(churn(c, [one, two][n % 2], n) for n, c in enumerate(clients)), return_exceptions=True
    )
    for client, node in zip(clients, [one, two] * 10, strict=True):
        await node.hub.disconnect_conn(client.id, DisconnectReason.NORMAL)
    await settle()

    assert await one.hub.rooms() == []
    assert len(one.parts.broadcast_groups) == len(two.parts.broadcast_groups) == 0
    assert [one.bus.listeners(f"eyewall:room:r{n}") for n in range(3)] == [0, 0, 0]
    assert isinstance(one.bus, MemoryPubSub)
