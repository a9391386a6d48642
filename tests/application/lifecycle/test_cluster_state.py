"""What a connection has in the cluster, kept in step with who it is."""

import asyncio

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import ConnectionClosed
from eyewall.domain.room import JoinOptions, RoomOptions, RoomRole
from tests.application.engines import Engine
from tests.application.fakes import settle


@pytest.fixture
async def slow(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    return await make_node(state=engine), engine


async def joined(node, user, *rooms, **options):
    client = await node.connect(user)
    for room in rooms or ("lab",):
        await node.hub.join(room, client.id, JoinOptions(**options))
    return client


async def members(node, room="lab"):
    return {m.user_id: (m.role, m.connections) for m in await node.hub.members(room)}


MEMBER, OWNER, GUEST = RoomRole.MEMBER, RoomRole.OWNER, RoomRole.GUEST


# --- another user


async def test_presence_and_seats_move_with_the_user(one, two):
    ada = await joined(one, "ada", "lab", "hall")

    meta = one.hub.set_meta(ada.id, user_id="bob")
    await settle()

    assert meta.user_id == ada.conn.user_id == "bob"
    assert one.hub.users() == ["bob"]
    assert not (await two.hub.presence("ada")).online
    assert (await two.hub.presence("bob")).connections == 1
    assert await members(two) == await members(two, "hall") == {"bob": (MEMBER, 1)}
    assert ada.conn.rooms == {"lab", "hall"}
    assert await two.hub.kick_user_from_room("ada", "lab") == 0
    assert await two.hub.kick_user_from_room("bob", "lab") == 1


async def test_who_was_anonymous_keeps_its_place(one, two):
    """Logging in on the connection is no way out of a room that one was let into."""
    await one.hub.create_room("lab", RoomOptions(policy="private", capacity=1))
    guest = await joined(one, None, force=True, role=RoomRole.MODERATOR)

    one.hub.set_meta(guest.id, user_id="ada")
    await settle()

    assert await members(two) == {"ada": (RoomRole.MODERATOR, 1)}


@pytest.mark.parametrize("how", ["kick", "ban", "role"])
@pytest.mark.parametrize("before", ["ada", None])
@pytest.mark.parametrize("held_up", [False, True])
async def test_what_is_done_to_the_new_user_right_behind_it_holds(slow, how, before, held_up):
    """Its seat still stands under the name of the user before."""
    one, engine = slow
    ada = await joined(one, before)
    one.hub.set_meta(ada.id, user_id="eve")
    if held_up:  # the move has begun, and has the connection's lock
        engine.after.add("decide")
        await settle()
    if how == "kick":
        work = asyncio.ensure_future(one.hub.kick_user_from_room("eve", "lab"))
    elif how == "ban":
        work = asyncio.ensure_future(one.hub.ban("lab", "eve"))
    else:
        work = asyncio.ensure_future(one.hub.set_role("lab", "eve", RoomRole.ADMIN))
    await settle()
    engine.go_on()
    result = await work

    if how == "kick":
        assert result == 1
    if how == "role":
        assert ada.conn.roles == {"lab": RoomRole.ADMIN}
        assert await members(one) == {"eve": (RoomRole.ADMIN, 1)}
    else:
        assert ada.conn.rooms == frozenset()
        assert await members(one) == {}
    assert not one.parts.rooms.rooms_to_settle(ada.conn)


@pytest.mark.parametrize("held_up", [False, True])
async def test_who_is_kicked_is_out_though_it_is_another_user_by_then(make_node, held_up):
    """The seat that it has lost does not come back under another name."""

    class Door:
        def __init__(self):
            self.gate = asyncio.Event()

        def can_publish(self, meta, topic, event):
            return True

        async def can_subscribe(self, meta, room_id):
            await self.gate.wait()
            return True

    door = Door()
    one = await make_node(access_controller=door)
    door.gate.set()
    ada, _ = await joined(one, "ada"), await joined(one, "ben")
    door.gate.clear()
    one.hub.set_meta(ada.id, user_id="eve")
    if held_up:
        await settle()
    work = asyncio.ensure_future(one.hub.kick_user_from_room("ada", "lab", "rude"))
    await settle()
    door.gate.set()

    assert await work == 1
    await settle()
    assert ada.conn.rooms == frozenset()
    assert [m["data"]["reason"] for m in ada.heard()] == ["rude"]
    assert await members(one) == {"ben": (MEMBER, 1)}
    assert not one.parts.rooms._removing
    await one.hub.join("lab", ada.id)
    assert await members(one) == {"ben": (MEMBER, 1), "eve": (MEMBER, 1)}


async def test_one_users_role_is_not_another_ones(one):
    await one.hub.set_role("lab", "ada", OWNER)
    await one.hub.set_role("hall", "bob", RoomRole.ADMIN)
    ada = await joined(one, "ada", "lab", "hall")

    one.hub.set_meta(ada.id, user_id="bob")
    await settle()

    assert ada.conn.roles == {"lab": MEMBER, "hall": RoomRole.ADMIN}
    assert await members(one) == {"bob": (MEMBER, 1)}


async def test_a_guest_stays_a_guest(one):
    ada = await joined(one, "ada", role=GUEST)

    one.hub.set_meta(ada.id, user_id="bob")
    await settle()

    assert ada.conn.roles == {"lab": GUEST}


async def test_who_would_not_be_let_in_is_put_out(one):
    await one.hub.create_room("club", RoomOptions(policy="invite_only"))
    await one.hub.invite("club", "ada")
    await one.hub.ban("lab", "bob")
    told = []
    one.hub.on_leave(lambda room, conn, reason: told.append((room, str(reason))))
    ada = await joined(one, "ada", "club", "lab", "hall")

    one.hub.set_meta(ada.id, user_id="bob")
    await settle()

    assert ada.conn.rooms == {"hall"}
    assert told == [("club", "kicked"), ("lab", "kicked")]
    kicked = [m["data"] for m in ada.heard() if m["topic"] == "system:kicked"]
    assert kicked == [
        {"room": "club", "reason": "join_forbidden"},
        {"room": "lab", "reason": "join_forbidden"},
    ]
    assert await members(one, "lab") == {}


async def test_the_access_controller_is_asked_for_the_new_user(make_node):
    class Door:
        def can_publish(self, meta, topic, event):
            return True

        def can_subscribe(self, meta, room_id):
            return meta.user_id != "bob"

    node = await make_node(access_controller=Door())
    ada = await joined(node, "ada")

    node.hub.set_meta(ada.id, user_id="bob")
    await settle()

    assert ada.conn.rooms == frozenset()
    assert await node.hub.rooms() == []


async def test_the_others_see_one_go_and_the_other_come_where_the_room_announces(one, two):
    await one.hub.create_room("lab", RoomOptions(announce=True))
    eve = await joined(two, "eve")
    ada = await joined(one, "ada")
    await settle()
    eve.heard()

    one.hub.set_meta(ada.id, user_id="bob")
    await settle()

    assert [(m["event"], m["data"]) for m in eve.heard()] == [
        ("leave", {"user_id": "ada", "connections": 0}),
        ("join", {"user_id": "bob", "connections": 1}),
    ]


async def test_a_change_of_something_else_moves_nothing(slow):
    node, engine = slow
    ada = await joined(node, "ada")
    engine.calls.clear()

    node.hub.set_meta(ada.id, tags=["x"], roles=["staff"])
    await settle()

    assert engine.calls == []
    assert node.hub.find_by_tag("x") == [ada.id]


async def test_who_is_not_here_can_not_be_changed(one, two):
    ada = await two.connect("ada")

    for conn_id in (ada.id, "x"):
        with pytest.raises(ConnectionClosed):
            one.hub.set_meta(conn_id, tags=["x"])


@pytest.mark.parametrize("call", ["vanish", "appear", "decide"])
async def test_who_ends_while_it_becomes_another_leaves_nothing(slow, call):
    node, engine = slow
    ada = await joined(node, "ada")
    engine.after.add(call)
    node.hub.set_meta(ada.id, user_id="bob")
    await settle()

    await ada.vanish()
    engine.go_on()
    await settle()

    assert await node.hub.rooms() == []
    assert not (await node.hub.presence("ada")).online
    assert not (await node.hub.presence("bob")).online
    assert len(node.parts.broadcast_groups) == 0


async def test_who_ends_at_the_same_moment_leaves_nothing(one):
    ada = await joined(one, "ada")

    one.hub.set_meta(ada.id, user_id="bob")
    await ada.vanish()
    await settle()

    assert await one.hub.rooms() == []
    assert not (await one.hub.presence("bob")).online


async def test_leaving_before_it_has_moved_gives_the_old_seat_back(one):
    ada = await joined(one, "ada")

    one.hub.set_meta(ada.id, user_id="bob")
    assert await one.hub.leave("lab", ada.id) is True
    await settle()

    assert await one.hub.rooms() == []


async def test_joining_again_before_it_has_moved_counts_once(one):
    await one.hub.create_room("lab", RoomOptions(capacity=1))
    ada = await joined(one, "ada")

    one.hub.set_meta(ada.id, user_id="bob")
    membership = await one.hub.join("lab", ada.id)
    await settle()

    assert membership.members == 1
    assert await members(one) == {"bob": (MEMBER, 1)}


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("where", ["here", "there"])
async def test_who_is_kicked_while_it_becomes_another_may_come_back(one, two, turns, where):
    ada = await joined(one, "ada")
    node = one if where == "here" else two
    kicking = asyncio.create_task(node.hub.kick_user_from_room("ada", "lab"))
    for _ in range(turns):
        await asyncio.sleep(0)

    one.hub.set_meta(ada.id, user_id="bob")
    await kicking
    await settle()

    assert (await one.hub.join("lab", ada.id)).members == 1
    assert one.parts.seats.seats_under_old_user(ada.conn) == []
    assert await members(one) == {"bob": (MEMBER, 1)}


@pytest.mark.parametrize("act", ["kick", "ban", "delete"])
async def test_who_was_put_out_has_no_name_left_that_would_be_moved(slow, act):
    node, engine = slow
    ada = await joined(node, "ada")
    engine.after |= {"decide", "remove_room"}
    hub = node.hub
    work = {
        "kick": lambda: hub.kick_user_from_room("ada", "lab"),
        "ban": lambda: hub.ban("lab", "ada"),
        "delete": lambda: hub.delete_room("lab"),
    }[act]()
    acting = asyncio.create_task(work)
    await settle()
    engine.before.add("vanish")  # it becomes another one later than it is out

    hub.set_meta(ada.id, user_id="bob")
    engine.after.clear()
    gate, engine._gate = engine._gate, asyncio.Event()
    gate.set()
    await acting
    await settle()

    assert ada.conn.rooms == frozenset()
    assert node.parts.seats.seats_under_old_user(ada.conn) == []
    assert await hub.join("lab", ada.id)
    engine.go_on()
    await settle()
    assert await members(node) == {"bob": (MEMBER, 1)}


async def test_a_join_that_was_under_way_moves_too(slow):
    node, engine = slow
    ada = await node.connect("ada")
    engine.after.add("decide")
    joining = asyncio.create_task(node.hub.join("lab", ada.id))
    await settle()
    node.hub.set_meta(ada.id, user_id="bob")
    engine.go_on()
    await joining
    await settle()

    assert await members(node) == {"bob": (MEMBER, 1)}
    await ada.vanish()
    assert await node.hub.rooms() == []


async def test_the_last_of_many_names_is_the_one_that_stays(one):
    ada = await joined(one, "ada")

    for user in ("bob", "eve", "ada", "dan"):
        one.hub.set_meta(ada.id, user_id=user)
    await settle()

    assert await members(one) == {"dan": (MEMBER, 1)}
    states = await one.hub.presence_many(["ada", "bob", "eve", "dan"])
    assert [user for user, state in states.items() if state.online] == ["dan"]


async def test_a_state_that_is_away_leaves_the_old_seat_to_be_given_back(slow):
    node, engine = slow
    ada = await joined(node, "ada")
    engine.away = True
    node.hub.set_meta(ada.id, user_id="bob")
    await settle()
    assert "user_not_changed" in node.logger.of("warning")

    engine.away = False
    await ada.vanish()

    assert await node.hub.rooms() == []


async def test_who_ends_while_the_state_is_away_is_forgotten_here(slow):
    node, engine = slow
    ada = await joined(node, "ada")
    engine.away = True
    node.hub.set_meta(ada.id, user_id="bob")

    await ada.vanish()

    assert node.parts.seats.seats_under_old_user(ada.conn) == []


# --- another lease


async def lapse(node, engine, clock):
    """The node's lease lapses without the node's knowing, and is renewed later."""
    engine.away = True
    await clock.advance(11)
    await engine.inner.renew("other", 600.0)
    engine.away = False


async def test_what_lapsed_with_the_lease_is_put_back(slow, clock):
    node, engine = slow
    ada, guest = await joined(node, "ada", "lab", "hall"), await joined(node, None)
    await node.hub.set_role("lab", "ada", OWNER)
    await lapse(node, engine, clock)
    assert await engine.inner.standings("lab") == {}

    await clock.advance(10)

    assert await members(node) == {"ada": (OWNER, 1), None: (MEMBER, 1)}
    assert await members(node, "hall") == {"ada": (MEMBER, 1)}
    assert (await node.hub.presence("ada")).connections == 1
    await ada.vanish()
    await guest.vanish()
    assert await node.hub.rooms() == []


async def test_a_seat_that_somebody_took_meanwhile_stays_theirs(slow, clock):
    node, engine = slow
    await node.hub.create_room("lab", RoomOptions(capacity=1))
    told = []
    node.hub.on_leave(lambda room, conn, reason: told.append((conn.id, str(reason))))
    ada = await joined(node, "ada")
    await lapse(node, engine, clock)

    def rule(room, standing):
        return room, room.admit(standing, "c9@other", "other", now=clock.wall())

    await engine.inner.decide("lab", "u:bob", rule)

    await clock.advance(10)

    assert await members(node) == {"bob": (MEMBER, 1)}
    assert ada.conn.rooms == frozenset()
    assert [m["data"] for m in ada.heard()] == [{"room": "lab", "reason": "room_full"}]
    assert told == [(ada.id, "kicked")]


async def test_putting_back_what_is_still_there_changes_nothing(slow, clock):
    node, engine = slow
    told = []
    node.hub.on_join(lambda *args: told.append(args))
    await joined(node, "ada")
    engine.away = True
    await clock.advance(11)
    engine.away = False

    await clock.advance(10)

    assert await members(node) == {"ada": (MEMBER, 1)}
    assert len(told) == 1


async def test_what_had_not_moved_yet_is_put_back_under_the_new_name(slow, clock):
    node, engine = slow
    ada = await joined(node, "ada")
    engine.away = True
    node.hub.set_meta(ada.id, user_id="bob")
    await lapse(node, engine, clock)

    await clock.advance(10)

    assert await members(node) == {"bob": (MEMBER, 1)}
    assert (await node.hub.presence("bob")).online


# --- the end


async def test_a_node_that_stops_leaves_nothing_in_the_state(one, two):
    await joined(one, "ada", "lab", "hall")

    await one.stop()

    assert await two.hub.rooms() == []
    assert not (await two.hub.presence("ada")).online


async def test_what_a_connection_had_is_gone_before_its_disconnect_hooks(one):
    seen = []

    @one.hub.on_disconnect
    async def hook(conn, reason):
        seen.append((conn.meta.user_id, (await one.hub.presence("ada")).online, reason))

    ada = await joined(one, "ada")

    await one.hub.disconnect_conn(ada.id)
    await settle()

    assert seen == [("ada", False, DisconnectReason.DISCONNECTED)]
