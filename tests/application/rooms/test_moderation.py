"""Who may be in which room: decided once, in effect on all nodes."""

import asyncio

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.application.cluster.peers import CALL_TIMEOUT
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import JoinForbidden, RoomExists, RoomNotFound, Unavailable
from eyewall.domain.room import JoinOptions, RoomOptions, RoomPolicy, RoomRole
from tests.application.engines import Bus, Engine
from tests.application.fakes import raw, settle


async def joined(node, user, room="lab", **known):
    client = await node.connect(user, **known)
    await node.hub.join(room, client.id)
    return client


def kicks(client):
    return [m["data"] for m in client.heard() if m["topic"] == "system:kicked"]


# --- rooms


async def test_a_room_is_created_with_its_options(one, two, clock):
    options = RoomOptions(capacity=5, metadata={"title": "Lab"})

    info = await one.hub.create_room("lab", options)

    assert (info.id, info.options, info.members) == ("lab", options, 0)
    assert info.created_at == clock.wall()
    assert await two.hub.room("lab") == info
    assert await two.hub.rooms() == ["lab"]


async def test_creating_it_again_needs_equal_options(one, two):
    await one.hub.create_room("lab", RoomOptions(capacity=5))

    assert await two.hub.create_room("lab", RoomOptions(capacity=5))
    for other in (RoomOptions(capacity=6), None):
        with pytest.raises(RoomExists):
            await two.hub.create_room("lab", other)


async def test_a_room_that_arose_by_joining_is_taken_over(one):
    await joined(one, "ada")

    info = await one.hub.create_room("lab", RoomOptions(capacity=5))

    assert (info.members, info.options.capacity) == (1, 5)


async def test_some_options_are_changed_and_the_others_stay(one, two):
    await one.hub.create_room("lab", RoomOptions(capacity=5, announce=True))

    info = await two.hub.update_room("lab", capacity=7)

    assert info.options == RoomOptions(capacity=7, announce=True)
    assert await one.hub.room("lab") == info


@pytest.mark.parametrize("changes", [{"colour": "red"}, {"capacity": 0}], ids=str)
async def test_a_wrong_option_changes_nothing(one, changes):
    await one.hub.create_room("lab", RoomOptions(capacity=5))

    with pytest.raises(ValueError, match=next(iter(changes))):
        await one.hub.update_room("lab", **changes)

    assert (await one.hub.room("lab")).options.capacity == 5


async def test_a_room_that_was_made_private_does_not_come_back_public(one):
    """Also one that nobody created, and that its last member has left."""
    ada = await joined(one, "ada")
    await one.hub.update_room("lab", policy=RoomPolicy.PRIVATE)
    await one.hub.leave("lab", ada.id)

    with pytest.raises(JoinForbidden):
        await one.hub.join("lab", ada.id)
    assert await one.hub.rooms() == []


async def test_update_and_delete_need_a_room(one):
    with pytest.raises(RoomNotFound):
        await one.hub.update_room("lab", capacity=5)
    with pytest.raises(RoomNotFound):
        await one.hub.delete_room("lab")


@pytest.mark.parametrize(
    "act",
    [
        lambda hub: hub.leave("lab", "nobody@n1"),
        lambda hub: hub.leave("lab", "nobody@n9"),
        lambda hub: hub.leave("lab", "no id of ours"),
        lambda hub: hub.leave_all("nobody@n1"),
        lambda hub: hub.kick_user_from_room("ada", "lab"),
        lambda hub: hub.unban("lab", "ada"),
        lambda hub: hub.revoke_invite("lab", "ada"),
        lambda hub: hub.room("lab"),
        lambda hub: hub.members("lab"),
    ],
)
async def test_what_is_not_there_changes_nothing(one, act):
    assert not await act(one.hub)
    assert await one.hub.room("lab") is None


async def test_deleting_puts_all_out_and_forgets_all(one, two):
    ada, bob = await joined(one, "ada"), await joined(two, "bob")
    await one.hub.set_role("lab", "ada", RoomRole.OWNER)
    await one.hub.ban("lab", "eve")

    await one.hub.delete_room("lab")

    assert kicks(ada) == kicks(bob) == [{"room": "lab", "reason": "deleted"}]
    assert ada.conn.rooms == bob.conn.rooms == frozenset()
    assert await one.hub.room("lab") is None
    membership = await one.hub.join("lab", ada.id)
    assert (membership.role, membership.members) == (RoomRole.MEMBER, 1)
    assert await joined(one, "eve")


async def test_which_rooms_there_are(one, two):
    await one.hub.create_room("created")
    await one.hub.create_room("stays", RoomOptions(auto_cleanup=False))
    await one.hub.create_room("visited")
    await one.hub.invite("kept", "ada")
    ada = await joined(two, "ada", "joined")
    await two.hub.join("visited", ada.id)
    await two.hub.join("stays", ada.id)
    assert set(await one.hub.rooms()) == {"created", "stays", "visited", "joined"}

    await two.hub.leave_all(ada.id)

    assert set(await one.hub.rooms()) == {"created", "stays"}


@pytest.mark.parametrize("name", ["", "x" * 201])
async def test_a_room_and_a_user_have_names(one, name):
    for act in (
        one.hub.create_room(name),
        one.hub.ban(name, "ada"),
        one.hub.ban("lab", name),
        one.hub.invite("lab", name),
        one.hub.set_role("lab", name, RoomRole.OWNER),
    ):
        with pytest.raises(ValueError, match="printable"):
            await act


# --- members


async def test_members_are_users_in_the_order_in_which_they_came(one, two, clock):
    await joined(two, "bob")
    clock.pass_time(1)
    await joined(one, "ada")
    clock.pass_time(1)
    await joined(two, "ada")
    await one.hub.set_role("lab", "ada", RoomRole.ADMIN)

    bob, ada = await one.hub.members("lab")

    assert (bob.user_id, bob.role, bob.connections) == ("bob", RoomRole.MEMBER, 1)
    assert (ada.user_id, ada.role, ada.connections) == ("ada", RoomRole.ADMIN, 2)
    assert ada.joined_at - bob.joined_at == clock.wall() - ada.joined_at


async def test_anonymous_members_count_together(one, two):
    await joined(one, None)
    await joined(two, None)

    (member,) = await one.hub.members("lab")

    assert (member.user_id, member.connections) == (None, 2)


async def test_a_user_whose_name_looks_like_a_connections_is_a_user(one):
    await joined(one, "c:1")
    await joined(one, "u:1")

    assert [member.user_id for member in await one.hub.members("lab")] == ["c:1", "u:1"]


# --- kicks and bans


async def test_a_kick_takes_all_connections_out_wherever_they_are(one, two):
    phone, laptop, bob = (
        await joined(one, "ada"),
        await joined(two, "ada"),
        await joined(two, "bob"),
    )

    assert await one.hub.kick_user_from_room("ada", "lab", "spam") == 2

    assert kicks(phone) == kicks(laptop) == [{"room": "lab", "reason": "spam"}]
    assert phone.conn.rooms == laptop.conn.rooms == frozenset()
    assert phone.closed is laptop.closed is None
    assert kicks(bob) == []
    assert [member.user_id for member in await two.hub.members("lab")] == ["bob"]
    await one.hub.broadcast_room("lab", "room:lab")
    await settle()
    assert laptop.heard() == []


async def test_a_kick_from_a_node_that_has_none_of_them(one, two):
    laptop = await joined(two, "ada")

    assert await one.hub.kick_user_from_room("ada", "lab") == 1

    assert kicks(laptop) == [{"room": "lab", "reason": ""}]


@pytest.mark.parametrize("reason", [None, {"rule": 3}])
async def test_any_json_is_a_reason_on_all_nodes(one, two, reason):
    phone, laptop = await joined(one, "ada"), await joined(two, "ada")

    assert await one.hub.kick("lab", "ada", reason) == 2

    assert kicks(phone) == kicks(laptop) == [{"room": "lab", "reason": reason}]


async def test_who_was_kicked_may_come_back(one):
    ada = await joined(one, "ada")
    await one.hub.kick_user_from_room("ada", "lab")

    assert await one.hub.join("lab", ada.id)


async def test_a_ban_puts_out_and_keeps_out_on_all_nodes(one, two):
    phone, laptop = await joined(one, "ada"), await joined(two, "ada")

    await one.hub.ban("lab", "ada")

    assert kicks(phone) == kicks(laptop) == [{"room": "lab", "reason": "banned"}]
    for options in (None, JoinOptions(force=True)):
        with pytest.raises(JoinForbidden):
            await two.hub.join("lab", laptop.id, options)


@pytest.mark.parametrize("duration", [60, 60.0])
async def test_a_ban_ends_with_its_time(one, clock, duration):
    ada = await joined(one, "ada")
    await one.hub.ban("lab", "ada", duration)
    await clock.advance(59.9)
    with pytest.raises(JoinForbidden):
        await one.hub.join("lab", ada.id)

    await clock.advance(0.1)

    assert await one.hub.join("lab", ada.id)


@pytest.mark.parametrize("duration", [1e10, 1e18, 1e300])
async def test_a_ban_may_be_longer_than_any_date(one, duration):
    ada = await joined(one, "ada")

    await one.hub.ban("lab", "ada", duration)

    with pytest.raises(JoinForbidden):
        await one.hub.join("lab", ada.id)


@pytest.mark.parametrize("duration", [0, -1, float("nan"), "1"])
async def test_a_ban_has_a_time_or_none(one, duration):
    with pytest.raises(ValueError, match="duration"):
        await one.hub.ban("lab", "ada", duration)


async def test_unban_lets_in_again(one, two):
    ada = await joined(one, "ada")
    await one.hub.ban("lab", "ada")

    await two.hub.unban("lab", "ada")

    assert await one.hub.join("lab", ada.id)


@pytest.mark.parametrize(
    "act",
    [
        lambda hub: hub.ban("lab", "ada"),
        lambda hub: hub.invite("lab", "ada"),
        lambda hub: hub.set_role("lab", "ada", RoomRole.ADMIN),
    ],
)
async def test_ban_invite_and_role_make_a_room_as_joining_does(make_node, act):
    node, strict = await make_node(), await make_node(implicit_rooms=False)
    with pytest.raises(RoomNotFound):
        await act(strict.hub)

    await act(node.hub)

    assert await strict.hub.room("lab")


async def test_the_others_see_who_was_put_out_where_the_room_announces(one, two):
    await one.hub.create_room("lab", RoomOptions(announce=True))
    bob = await joined(two, "bob")
    await joined(one, "ada")
    await joined(two, "ada")
    await joined(one, "eve")
    await settle()
    bob.heard()

    await one.hub.kick_user_from_room("ada", "lab")
    await one.hub.ban("lab", "eve")
    await settle()

    assert [(m["event"], m["data"]) for m in bob.heard()] == [
        ("leave", {"user_id": "ada", "connections": 0}),
        ("leave", {"user_id": "eve", "connections": 0}),
    ]


# --- roles and invites


async def test_a_role_counts_at_once_on_all_nodes(one, two):
    phone, laptop = await joined(one, "ada"), await joined(two, "ada")

    await one.hub.set_role("lab", "ada", RoomRole.GUEST)

    assert phone.conn.roles == laptop.conn.roles == {"lab": RoomRole.GUEST}
    assert (await two.hub.members("lab"))[0].role is RoomRole.GUEST


async def test_a_role_is_had_at_the_next_join(one, two):
    await one.hub.set_role("lab", "ada", RoomRole.OWNER)
    ada = await two.connect("ada")

    assert (await two.hub.join("lab", ada.id)).role is RoomRole.OWNER


async def test_a_role_may_be_its_number(one):
    await one.hub.set_role("lab", "ada", 4)
    ada = await joined(one, "ada")

    assert ada.conn.roles["lab"] is RoomRole.OWNER
    with pytest.raises(ValueError, match="9"):
        await one.hub.set_role("lab", "ada", 9)


async def test_an_invite_lets_in_on_any_node(one, two):
    await one.hub.create_room("lab", RoomOptions(policy="invite_only"))
    await one.hub.invite("lab", "ada", by="bob")

    assert await joined(two, "ada")
    assert one.logger.fields("invited")["by"] == "bob"


async def test_who_is_put_out_is_in_the_log(one, two):
    await joined(one, "ada")
    await joined(two, "ada")

    await one.hub.kick("lab", "ada", reason="calm down")
    assert one.logger.fields("kicked") == {"room": "lab", "user_id": "ada", "connections": 2}
    await one.hub.ban("lab", "ada")
    assert one.logger.fields("banned") == {"room": "lab", "user_id": "ada", "connections": 0}


async def test_a_kick_that_changed_nothing_is_not_in_the_log(one):
    await one.hub.kick("lab", "ada")

    assert "kicked" not in one.logger.of("info")


async def test_an_invite_outlives_a_cut_for_a_time(make_node, clock):
    node = await make_node(session_ttl=30.0)
    await node.hub.create_room("lab", RoomOptions(policy="invite_only"))
    await node.hub.invite("lab", "ada")
    await (await joined(node, "ada")).vanish()
    await clock.advance(29.9)
    ada = await joined(node, "ada")
    await ada.vanish()

    await clock.advance(30)

    with pytest.raises(JoinForbidden):
        await joined(node, "ada")


async def test_leaving_uses_an_invite_up(one):
    await one.hub.create_room("lab", RoomOptions(policy="invite_only"))
    await one.hub.invite("lab", "ada")
    ada = await joined(one, "ada")
    await one.hub.leave("lab", ada.id)

    with pytest.raises(JoinForbidden):
        await one.hub.join("lab", ada.id)


async def test_an_invite_that_is_taken_back_is_none(one, two):
    await one.hub.create_room("lab", RoomOptions(policy="invite_only"))
    await one.hub.invite("lab", "ada")
    await two.hub.revoke_invite("lab", "ada")

    with pytest.raises(JoinForbidden):
        await joined(one, "ada")


# --- nodes that do not answer, engines that are away


async def test_a_node_that_does_not_answer_does_not_keep_a_kick_from_the_others(make_node, clock):
    bus = Bus()
    one, two, three = [await make_node(pubsub=bus) for _ in range(3)]
    clients = [await joined(node, "ada") for node in (two, three, one)]
    bus.deaf.add("eyewall:node:n2")
    kicking = asyncio.create_task(one.hub.kick_user_from_room("ada", "lab"))
    await settle()

    assert [client.conn.rooms for client in clients[1:]] == [frozenset(), frozenset()]
    await clock.advance(CALL_TIMEOUT)

    assert await kicking == 3
    assert "node_silent" in one.logger.of("warning")


async def test_a_node_that_is_dead_is_not_waited_for(make_node, clock):
    one, two = await make_node(), await make_node()
    ada = await joined(two, "ada")
    two.parts.cluster._timer.cancel()
    await clock.advance(10)

    assert await one.hub.kick_user_from_room("ada", "lab") == 0
    assert ada.conn.rooms == {"lab"}, "it does not know yet: nobody could tell it"


async def test_a_bus_that_is_away_is_an_error_after_the_own_connections_are_out(make_node):
    bus = Bus()
    one, two = await make_node(pubsub=bus), await make_node(pubsub=bus)
    phone, _ = await joined(one, "ada"), await joined(two, "ada")
    bus.away = True

    with pytest.raises(Unavailable):
        await one.hub.kick_user_from_room("ada", "lab")

    assert phone.conn.rooms == frozenset()


async def test_a_state_that_is_away_is_an_error(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine)
    await joined(node, "ada")
    engine.away = True

    for act in (
        node.hub.create_room("x"),
        node.hub.update_room("lab", capacity=1),
        node.hub.delete_room("lab"),
        node.hub.kick_user_from_room("ada", "lab"),
        node.hub.ban("lab", "ada"),
        node.hub.unban("lab", "ada"),
        node.hub.invite("lab", "ada"),
        node.hub.revoke_invite("lab", "ada"),
        node.hub.set_role("lab", "ada", RoomRole.ADMIN),
        node.hub.members("lab"),
        node.hub.room("lab"),
        node.hub.rooms(),
    ):
        with pytest.raises(Unavailable):
            await act


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"room": "lab", "conns": "c1", "why": "kicked", "reason": ""},
        {"room": "lab", "conns": [1], "why": "kicked", "reason": ""},
        {"room": "lab", "conns": [], "why": "bored", "reason": ""},
    ],
    ids=repr,
)
async def test_what_makes_no_sense_from_another_node_changes_nothing(one, two, header):
    ada = await joined(two, "ada")

    for op in ("removed", "role"):
        with pytest.raises(Unavailable):
            await one.parts.cluster.request("n2", raw(op, header))

    assert ada.conn.rooms == {"lab"}


async def test_who_ended_before_the_kick_arrived_is_no_matter(one, two):
    ada = await joined(two, "ada")
    kicking = asyncio.create_task(one.hub.kick_user_from_room("ada", "lab"))
    for _ in range(2):  # decided, but not yet heard of by the other node
        await asyncio.sleep(0)

    await two.hub.disconnect_conn(ada.id, DisconnectReason.NORMAL)

    assert await kicking == 1
    assert await one.hub.members("lab") == []


# --- whatever happens to who asked


@pytest.fixture
async def slow(make_node, clock):
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine)
    return node, engine


async def cancelled(work):
    """Ask for something, and be cancelled as soon as it has been decided."""
    task = asyncio.create_task(work)
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda hub: hub.ban("lab", "ada"), "banned"),
        (lambda hub: hub.kick_user_from_room("ada", "lab"), "kicked"),
        (lambda hub: hub.delete_room("lab"), "deleted"),
    ],
    ids=["ban", "kick", "delete"],
)
async def test_who_is_put_out_is_out_also_when_the_caller_is_cancelled(slow, act, reason):
    node, engine = slow
    told = []
    node.hub.on_leave(lambda room, conn, why: told.append(str(why)))
    ada = await joined(node, "ada")
    engine.after |= {"decide", "remove_room"}

    await cancelled(act(node.hub))
    engine.go_on()
    await settle()

    assert ada.conn.rooms == frozenset()
    assert await node.hub.broadcast_room("lab", "room:lab") == 0
    assert len(kicks(ada)) == 1
    assert told == [reason]


@pytest.mark.parametrize("turns", range(6))
async def test_a_ban_that_is_cancelled_at_any_step_is_whole(one, two, turns):
    phone, laptop = await joined(one, "ada"), await joined(two, "ada")
    banning = asyncio.create_task(one.hub.ban("lab", "ada"))
    for _ in range(turns):
        await asyncio.sleep(0)

    banning.cancel()
    await settle()

    here = {client.id for client in (phone, laptop) if client.conn.rooms}
    assert len(here) == sum(m.connections for m in await one.hub.members("lab"))


async def test_a_role_is_had_also_when_the_caller_is_cancelled(slow):
    node, engine = slow
    ada = await joined(node, "ada")
    engine.after.add("decide")

    await cancelled(node.hub.set_role("lab", "ada", RoomRole.GUEST))
    engine.go_on()
    await settle()

    assert ada.conn.roles == {"lab": RoomRole.GUEST}


async def test_what_fails_when_nobody_waits_any_more_is_logged(slow):
    node, engine = slow
    await joined(node, "ada")
    engine.before.add("decide")
    await cancelled(node.hub.ban("lab", "ada"))
    engine.away = True
    engine.go_on()
    await settle()

    assert node.logger.of("error") == ["task_failed"]


async def test_what_is_refused_when_nobody_waits_any_more_is_no_failure(slow):
    node, engine = slow
    engine.before.add("remove_room")
    await cancelled(node.hub.delete_room("lab"))
    engine.go_on()
    await settle()

    assert node.logger.of("error") == []


async def test_a_node_that_stops_waits_for_no_decision(slow):
    node, engine = slow
    engine.before.add("decide")
    banning = asyncio.create_task(node.hub.ban("lab", "ada"))
    await settle()

    await node.stop()

    with pytest.raises(asyncio.CancelledError):
        await banning


# --- roles that race


async def test_a_role_that_is_given_while_a_join_is_under_way_is_had(slow):
    node, engine = slow
    ada = await node.connect("ada")
    engine.after.add("decide")
    joining = asyncio.create_task(node.hub.join("lab", ada.id))
    await settle()
    engine.after.clear()

    giving = asyncio.create_task(node.hub.set_role("lab", "ada", RoomRole.GUEST))
    await settle()
    engine.go_on()
    await asyncio.gather(joining, giving)

    assert ada.conn.roles == {"lab": RoomRole.GUEST}


async def test_the_role_that_was_decided_last_is_had(slow):
    node, engine = slow
    ada = await joined(node, "ada")
    engine.after.add("decide")
    first = asyncio.create_task(node.hub.set_role("lab", "ada", RoomRole.OWNER))
    await settle()
    engine.after.clear()

    await node.hub.set_role("lab", "ada", RoomRole.GUEST)
    engine.go_on()
    await first

    assert ada.conn.roles == {"lab": RoomRole.GUEST}


async def test_a_role_is_had_when_the_state_can_not_be_asked_again(slow):
    node, engine = slow
    ada = await joined(node, "ada")
    engine.after.add("decide")
    giving = asyncio.create_task(node.hub.set_role("lab", "ada", RoomRole.GUEST))
    await settle()

    engine.away = True
    engine.go_on()
    await giving

    assert ada.conn.roles == {"lab": RoomRole.GUEST}
