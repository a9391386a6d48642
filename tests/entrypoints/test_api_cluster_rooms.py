"""api.md, "Hub": rooms and presence of the whole cluster, whichever node is asked."""

from __future__ import annotations

import pytest

from eyewall import (
    ConnectionClosed,
    JoinForbidden,
    RoomExists,
    RoomFull,
    RoomOptions,
    RoomPolicy,
    RoomRole,
)
from tests.entrypoints.house import ADA, BEN, CY, NEWS, cluster
from tests.entrypoints.wire import eventually, peer

# --- rooms


async def test_rooms_and_members_mean_every_node(pair):
    await pair.here.hub.create_room("r", RoomOptions(capacity=2))
    with pytest.raises(RoomExists):
        await pair.there.hub.create_room("r", RoomOptions(capacity=3))
    await pair.ada.join("r")
    answer = await pair.ben.request("system:join", {"room": "r"})
    assert answer["members"] == 2

    for hub in (pair.here.hub, pair.there.hub):
        assert {member.user_id for member in await hub.members("r")} == {"ada", "ben"}
        assert (await hub.room("r")).members == 2
        assert await hub.rooms() == ["r"]
    async with peer(pair.here, query="?name=cy") as cy:
        assert (await cy.refused("system:join", {"room": "r"}))["code"] == "room_full"
        with pytest.raises(RoomFull):
            await pair.here.hub.join("r", cy.conn_id)


async def test_a_connection_of_another_node_can_be_joined_and_taken_out(pair):
    hub = pair.here.hub

    membership = await hub.join("r", pair.ben.conn_id)

    assert (membership.conn_id, membership.members) == (pair.ben.conn_id, 1)
    assert pair.there.hub.connection(pair.ben.conn_id).rooms == {"r"}
    assert await hub.leave("r", pair.ben.conn_id) is True
    assert await hub.leave("r", pair.ben.conn_id) is False
    await hub.join("a", pair.ben.conn_id)
    await hub.join("b", pair.ben.conn_id)
    assert await hub.leave_all(pair.ben.conn_id) == 2
    with pytest.raises(ConnectionClosed):
        await hub.join("r", "nobody")


async def test_kick_and_ban_reach_every_node(pair):
    async with peer(pair.here, query="?name=ben") as second:
        for client in (pair.ben, second):
            await client.join("r")

        assert await pair.here.hub.kick_user_from_room(BEN, "r", reason="spam") == 2
        for client in (pair.ben, second):
            told = await client.expect("system:kicked", "kicked")
            assert told["data"] == {"room": "r", "reason": "spam"}

        await pair.ben.join("r")
        await pair.here.hub.ban("r", BEN)
        assert await pair.there.hub.members("r") == []
        for client in (pair.ben, second):
            assert (await client.refused("system:join", {"room": "r"}))["code"] == "join_forbidden"
        await pair.there.hub.unban("r", BEN)
        await second.join("r")


async def test_roles_and_invites_hold_on_every_node(pair):
    hub = pair.here.hub
    await hub.create_room("r", RoomOptions(policy=RoomPolicy.INVITE_ONLY))
    with pytest.raises(JoinForbidden):
        await pair.there.hub.join("r", pair.ben.conn_id)

    await hub.invite("r", BEN)
    await hub.set_role("r", BEN, RoomRole.ADMIN)

    assert (await pair.ben.request("system:join", {"room": "r"}))["role"] == "admin"
    await hub.set_role("r", BEN, RoomRole.GUEST)
    nack = await pair.ben.refused("system:publish", {"room": "r", "data": 1})
    assert nack["code"] == "forbidden"


async def test_updating_and_deleting_a_room_reach_every_node(pair):
    for client in (pair.ada, pair.ben):
        await client.join("r")

    await pair.here.hub.update_room("r", capacity=2, announce=True)
    assert (await pair.there.hub.room("r")).options.capacity == 2
    await pair.ben.request("system:leave", {"room": "r"})
    assert (await pair.ada.expect("room:r", "leave"))["data"] == {
        "user_id": "ben",
        "connections": 0,
    }
    await pair.ben.join("r")

    await pair.here.hub.delete_room("r")
    await eventually(lambda: pair.there.hub.connection(pair.ben.conn_id).rooms == frozenset())
    assert await pair.there.hub.rooms() == []


async def test_a_connect_hook_may_join_and_the_leaves_are_heard():
    left = []
    async with cluster() as pair:
        pair.there.hub.on_leave(lambda room_id, conn, reason: left.append((room_id, reason)))
        await pair.here.hub.join("r", pair.ben.conn_id)
        await pair.here.hub.kick_user_from_room(BEN, "r")
        await eventually(lambda: left)

    assert left[0] == ("r", "kicked")


# --- presence


async def test_presence_counts_the_connections_of_all_nodes(pair):
    async with peer(pair.there, query="?name=ada"):
        states = await pair.there.hub.presence_many([ADA, BEN, CY])

        assert {user: (s.online, s.connections) for user, s in states.items()} == {
            "ada": (True, 2),
            "ben": (True, 1),
            "cy": (False, 0),
        }
    await eventually(lambda: not pair.there.hub.user_connections(ADA))
    assert (await pair.there.hub.presence(ADA)).connections == 1


async def test_typing_is_heard_on_every_node(pair):
    for client in (pair.ada, pair.ben):
        await client.join("r")

    await pair.ada.request("system:typing", {"room": "r", "typing": True})

    assert (await pair.ben.expect("room:r", "typing"))["data"] == {"user_id": "ada", "typing": True}
    assert set((await pair.there.hub.presence(ADA)).typing) == {"r"}


async def test_a_user_who_logs_in_later_is_known_everywhere(pair):
    async with peer(pair.there) as nobody:
        pair.there.hub.set_meta(nobody.conn_id, user_id="cy")
        assert (await pair.there.hub.presence(CY)).online is True

        report = await pair.here.hub.send_to_user(CY, NEWS)

        assert report.forwarded == 1
        assert (await nobody.receive())["topic"] == "news"
