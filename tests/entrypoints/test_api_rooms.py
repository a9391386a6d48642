"""api.md, "Hub": rooms, who may enter them, and what stays when all have gone."""

from __future__ import annotations

import contextlib
import datetime

import pytest

from eyewall import (
    ConnectionClosed,
    Forbidden,
    JoinForbidden,
    JoinOptions,
    RoomExists,
    RoomFull,
    RoomNotFound,
    RoomOptions,
    RoomPolicy,
    RoomRole,
)
from tests.entrypoints.house import ADA, BEN
from tests.entrypoints.wire import UNIT, eventually, peer, running

# --- rooms


async def test_a_room_is_made_updated_and_deleted(house):
    hub = house.hub
    options = RoomOptions(capacity=5, metadata={"title": "Plots"})

    made = await hub.create_room("r", options)
    updated = await hub.update_room("r", capacity=7)
    info = await hub.room("r")

    assert (made.id, made.options, made.members) == ("r", options, 0)
    assert made.created_at.tzinfo is not None
    assert info.options.capacity == 7
    assert info.options.metadata == {"title": "Plots"}, "what is not named stays"
    assert updated is None or updated.options.capacity == 7
    assert await hub.rooms() == ["r"]
    await hub.delete_room("r")
    assert await hub.room("r") is None
    assert await hub.rooms() == []


async def test_a_room_is_made_once_unless_the_options_are_equal(house):
    hub = house.hub
    await hub.create_room("r", RoomOptions(capacity=5))

    await hub.create_room("r", RoomOptions(capacity=5))
    with pytest.raises(RoomExists):
        await hub.create_room("r", RoomOptions(capacity=6))


async def test_creating_takes_over_a_room_that_arose_by_joining(house):
    client = await house.come("ada")
    await house.hub.join("r", client.conn_id)

    info = await house.hub.create_room("r", RoomOptions(capacity=3))

    assert (info.options.capacity, info.members) == (3, 1)


async def test_unknown_rooms_raise_or_change_nothing(house):
    hub, client = house.hub, await house.come("ada")

    with pytest.raises(RoomNotFound):
        await hub.update_room("r", capacity=1)
    with pytest.raises(RoomNotFound):
        await hub.delete_room("r")
    assert await hub.room("r") is None
    assert await hub.members("r") == []
    assert await hub.leave("r", client.conn_id) is False
    assert await hub.leave("r", "nobody") is False
    assert await hub.kick_user_from_room(ADA, "r") == 0
    assert await hub.unban("r", ADA) is None
    assert await hub.revoke_invite("r", ADA) is None
    assert await hub.rooms() == []


async def test_update_with_a_wrong_value_raises(house):
    await house.hub.create_room("r")

    with pytest.raises((ValueError, TypeError)):
        await house.hub.update_room("r", capacity=-1)
    with pytest.raises((ValueError, TypeError)):
        await house.hub.update_room("r", colour="red")


async def test_join_and_leave(house):
    hub, one, two = house.hub, await house.come("ada"), await house.come("ben")

    first = await hub.join("r", one.conn_id)
    second = await hub.join("r", two.conn_id, JoinOptions(role=RoomRole.ADMIN))
    again = await hub.join("r", one.conn_id)

    assert (first.room_id, first.conn_id, first.role) == ("r", one.conn_id, RoomRole.MEMBER)
    assert (first.members, second.members, again.members) == (1, 2, 2)
    assert second.role is RoomRole.ADMIN
    assert {m.user_id: m.role for m in await hub.members("r")} == {
        "ada": RoomRole.MEMBER,
        "ben": RoomRole.ADMIN,
    }
    assert await hub.leave("r", one.conn_id) is True
    assert await hub.leave("r", one.conn_id) is False
    assert (await hub.room("r")).members == 1


async def test_joining_as_nobody_raises(house):
    with pytest.raises(ConnectionClosed):
        await house.hub.join("r", "nobody")
    assert await house.hub.rooms() == []


async def test_leave_all(house):
    hub, client = house.hub, await house.come("ada")
    for room in ("a", "b", "c"):
        await hub.join(room, client.conn_id)

    assert await hub.leave_all(client.conn_id) == 3
    assert await hub.leave_all(client.conn_id) == 0
    assert hub.connection(client.conn_id).rooms == frozenset()


async def test_a_room_that_arose_by_joining_ends_with_its_last_member(house):
    hub, client = house.hub, await house.come("ada")
    await hub.join("r", client.conn_id)
    assert await hub.rooms() == ["r"]

    await hub.leave("r", client.conn_id)

    assert await hub.rooms() == []


async def test_a_created_room_keeps_its_options_when_it_is_emptied(house):
    """A private room never comes back public."""
    hub, client = house.hub, await house.come("ada")
    await hub.create_room("r", RoomOptions(policy=RoomPolicy.PRIVATE))
    await hub.join("r", client.conn_id, JoinOptions(force=True))
    await hub.leave("r", client.conn_id)

    assert await hub.rooms() == [], "auto_cleanup has emptied it and it is no longer listed"
    with pytest.raises(JoinForbidden):
        await hub.join("r", client.conn_id)


async def test_a_room_without_auto_cleanup_stays_listed(house):
    hub, client = house.hub, await house.come("ada")
    await hub.create_room("r", RoomOptions(auto_cleanup=False))
    await hub.join("r", client.conn_id)
    await hub.leave("r", client.conn_id)

    assert await hub.rooms() == ["r"]


async def test_capacity_counts_connections_and_holds_even_by_force(house):
    hub, one, two = house.hub, await house.come("ada"), await house.come("ada")
    await hub.create_room("r", RoomOptions(capacity=1))
    await hub.join("r", one.conn_id)

    for options in (None, JoinOptions(force=True)):
        with pytest.raises(RoomFull):
            await hub.join("r", two.conn_id, options)
    await hub.join("r", one.conn_id)


async def test_an_invite_is_used_up_but_good_for_the_users_other_devices(house):
    hub = house.hub
    one, two, ben = await house.come("ada"), await house.come("ada"), await house.come("ben")
    await hub.create_room("r", RoomOptions(policy=RoomPolicy.INVITE_ONLY))
    await hub.invite("r", ADA, by=BEN)

    await hub.join("r", one.conn_id)
    await hub.join("r", two.conn_id)
    with pytest.raises(JoinForbidden):
        await hub.join("r", ben.conn_id)
    await hub.leave("r", one.conn_id)
    await hub.join("r", one.conn_id)
    await hub.leave("r", one.conn_id)
    await hub.leave("r", two.conn_id)
    with pytest.raises(JoinForbidden):
        await hub.join("r", one.conn_id)


async def test_a_kick_ends_the_invite_of_a_user_who_is_cut_off_for_a_moment(house):
    hub, client = house.hub, await house.come("ada")
    await hub.create_room("r", RoomOptions(policy=RoomPolicy.INVITE_ONLY))
    await hub.invite("r", ADA)
    await hub.join("r", client.conn_id)
    await client.socket.close()
    await eventually(lambda: not hub.user_connections(ADA))

    await hub.kick_user_from_room("ada", "r")

    again = await house.come("ada")
    with pytest.raises(JoinForbidden):
        await hub.join("r", again.conn_id)


async def test_an_invite_can_be_taken_back(house):
    hub, client = house.hub, await house.come("ada")
    await hub.create_room("r", RoomOptions(policy=RoomPolicy.INVITE_ONLY))
    await hub.invite("r", ADA)
    await hub.revoke_invite("r", ADA)

    with pytest.raises(JoinForbidden):
        await hub.join("r", client.conn_id)


async def test_kick_counts_connections(house):
    hub = house.hub
    one, two, ben = await house.come("ada"), await house.come("ada"), await house.come("ben")
    for client in (one, two, ben):
        await hub.join("r", client.conn_id)

    assert await hub.kick_user_from_room(ADA, "r", reason="spam") == 2

    assert [m.user_id for m in await hub.members("r")] == ["ben"]
    for client in (one, two):
        told = await client.expect("system:kicked", "kicked")
        assert told["data"] == {"room": "r", "reason": "spam"}
    await hub.join("r", one.conn_id)


async def test_a_ban_ends_by_itself_or_by_unban(house):
    hub, client = house.hub, await house.come("ada")
    await hub.join("r", client.conn_id)
    await hub.ban("r", ADA, duration=datetime.timedelta(seconds=0.2 * UNIT))
    assert await hub.members("r") == []
    with pytest.raises(JoinForbidden):
        await hub.join("r", client.conn_id)

    async def joined() -> bool:
        with contextlib.suppress(JoinForbidden):
            return bool(await hub.join("r", client.conn_id))
        return False

    deadline = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=5 * UNIT)
    while not await joined():
        assert datetime.datetime.now(datetime.UTC) < deadline

    await hub.ban("r", ADA)
    await hub.unban("r", ADA)
    await hub.join("r", client.conn_id)


async def test_a_room_never_keeps_allowed_roles_that_restrict_nobody(house):
    """A change that would open a room of staff to everybody says both, or is refused."""
    hub, guest = house.hub, await house.come("ada")
    await hub.create_room("r", RoomOptions(policy="private", allowed_roles=["staff"]))
    with pytest.raises(ValueError, match=r"RoomPolicy\.PRIVATE"):
        await hub.update_room("r", policy=RoomPolicy.PUBLIC)
    with pytest.raises(JoinForbidden):
        await hub.join("r", guest.conn_id)

    await hub.update_room("r", policy=RoomPolicy.PUBLIC, allowed_roles=())
    await hub.join("r", guest.conn_id)
    with pytest.raises(ValueError, match=r"RoomPolicy\.PRIVATE"):
        await hub.update_room("r", allowed_roles=["staff"])


@pytest.mark.parametrize("policy", list(RoomPolicy))
async def test_a_ban_holds_under_every_policy(house, policy):
    hub, client = house.hub, await house.come("ada", roles="staff")
    roles = ("staff",) if policy is RoomPolicy.PRIVATE else ()
    await hub.create_room("r", RoomOptions(policy=policy, allowed_roles=roles))
    await hub.invite("r", ADA)
    await hub.ban("r", ADA)

    with pytest.raises(JoinForbidden):
        await hub.join("r", client.conn_id)


async def test_ban_invite_and_set_role_make_an_unknown_room(house):
    hub, client = house.hub, await house.come("ada")
    await hub.ban("banned", ADA)
    await hub.set_role("roled", ADA, RoomRole.OWNER)
    await hub.invite("invited", ADA)

    with pytest.raises(JoinForbidden):
        await hub.join("banned", client.conn_id)
    assert (await hub.join("roled", client.conn_id)).role is RoomRole.OWNER
    await hub.join("invited", client.conn_id)


async def test_without_implicit_rooms_nothing_makes_a_room():
    async with running(implicit_rooms=False) as server, peer(server) as client:
        hub = server.hub
        for call in (
            hub.join("r", client.conn_id),
            hub.ban("r", ADA),
            hub.invite("r", ADA),
            hub.set_role("r", ADA, RoomRole.ADMIN),
        ):
            with pytest.raises(RoomNotFound):
                await call


async def test_a_role_is_set_while_somebody_is_there(house):
    hub, client = house.hub, await house.come("ada")
    await hub.join("r", client.conn_id)
    await hub.set_role("r", ADA, RoomRole.MODERATOR)

    (member,) = await hub.members("r")

    assert (member.user_id, member.role, member.connections) == ("ada", RoomRole.MODERATOR, 1)
    assert member.joined_at.tzinfo is not None


async def test_deleting_a_room_lets_everybody_out(house):
    hub, client = house.hub, await house.come("ada")
    await hub.create_room("r")
    await hub.join("r", client.conn_id)

    await hub.delete_room("r")

    assert hub.connection(client.conn_id).rooms == frozenset()
    assert await hub.broadcast_room("r", "a", "message", 1) == 0


async def test_the_access_controller_is_asked_for_hub_joins_and_force_too():
    class Door:
        def can_publish(self, meta, topic, event):
            return True

        def can_subscribe(self, meta, room_id):
            return False

    async with running(access_controller=Door()) as server, peer(server) as client:
        for options in (None, JoinOptions(force=True)):
            with pytest.raises(Forbidden):
                await server.hub.join("r", client.conn_id, options)
