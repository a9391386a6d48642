"""protocol.md, "Reserved topics": presence, typing, refresh, and what the server says itself."""

from __future__ import annotations

import datetime

import pytest

from eyewall import (
    ConnMeta,
    JoinForbidden,
    JoinOptions,
    RoomOptions,
    RoomPolicy,
)
from tests.entrypoints.house import ADA, BEN, commanded, plain, two_in
from tests.entrypoints.wire import UNIT, eventually, peer, peers, running

pytestmark = pytest.mark.usefixtures("transport")

# --- presence


async def test_presence_of_users():
    async with commanded() as server, peers(server, 2, query="?name=ada") as (one, _):
        answer = await one.request("system:presence", {"users": ["ada", "nobody"]})
        users = answer["users"]

        assert set(users) == {"ada", "nobody"}
        assert set(users["ada"]) == {"online", "connections", "last_seen"}
        assert (users["ada"]["online"], users["ada"]["connections"]) == (True, 2)
        assert (users["nobody"]["online"], users["nobody"]["connections"]) == (False, 0)
        assert users["nobody"]["last_seen"] is None


async def test_last_seen_is_a_time_with_a_zone():
    async with commanded() as server, peer(server, query="?name=ada") as ada:
        async with peer(server, query="?name=ben") as ben:
            await ben.before_fence()
        await eventually(lambda: not server.hub.user_connections(BEN))

        users = (await ada.request("system:presence", {"users": ["ben"]}))["users"]

        seen = datetime.datetime.fromisoformat(users["ben"]["last_seen"])
        assert users["ben"]["online"] is False
        assert seen.tzinfo is not None
        assert abs(datetime.datetime.now(datetime.UTC) - seen) < datetime.timedelta(minutes=1)


async def test_presence_of_a_room():
    async with two_in("r") as (_, ada, _ben):
        users = (await ada.request("system:presence", {"room": "r"}))["users"]

        assert {user: state["online"] for user, state in users.items()} == {
            "ada": True,
            "ben": True,
        }


async def test_presence_of_a_room_of_others_is_refused():
    async with two_in("r") as (server, _, _ben), peer(server, query="?name=cy") as cy:
        assert (await cy.refused("system:presence", {"room": "r"}))["code"] == "not_a_member"


# --- typing


async def test_the_other_members_hear_who_types():
    async with two_in("r") as (_, ada, ben):
        answer = await ada.request("system:typing", {"room": "r", "typing": True})
        heard = await ben.receive()
        own = await ada.before_fence()

    assert plain(answer) == {}
    assert heard["topic"] == "room:r"
    assert heard["event"] == "typing"
    assert heard["data"] == {"user_id": "ada", "typing": True}
    assert own == []


async def test_the_others_hear_when_it_stops():
    async with two_in("r") as (_, ada, ben):
        await ada.request("system:typing", {"room": "r", "typing": True})
        await ada.request("system:typing", {"room": "r", "typing": False})

        heard = [(await ben.expect("room:r", "typing"))["data"]["typing"] for _ in range(2)]

        assert heard == [True, False]


async def test_typing_ends_after_its_ttl():
    async with two_in("r") as (server, ada, ben):
        data = {"room": "r", "typing": True, "ttl": 0.2 * UNIT}
        await ada.request("system:typing", data)
        assert set((await server.hub.presence(ADA)).typing) == {"r"}

        assert (await ben.expect("room:r", "typing"))["data"]["typing"] is True
        assert (await ben.expect("room:r", "typing"))["data"]["typing"] is False
        assert (await server.hub.presence(ADA)).typing == {}


async def test_who_types_comes_from_the_connection():
    async with two_in("r") as (_, ada, ben):
        await ada.request("system:typing", {"room": "r", "typing": True, "user_id": "eve"})

        assert (await ben.expect("room:r", "typing"))["data"]["user_id"] == "ada"


async def test_leaving_ends_typing():
    async with two_in("r") as (server, ada, _ben):
        await ada.request("system:typing", {"room": "r", "typing": True})
        await ada.request("system:leave", {"room": "r"})

        assert (await server.hub.presence(ADA)).typing == {}


# --- refresh


async def test_refresh_answers_until_when_the_new_token_is_good():
    expires = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    tokens = []

    async def known(handshake):
        tokens.append(handshake.query.get("token"))
        return ConnMeta(user_id=ADA, expires_at=expires)

    async with running(authenticator=known) as server, peer(server) as client:
        answer = await client.request("system:refresh", {"token": "new"})

        assert datetime.datetime.fromisoformat(answer["expires_at"]) == expires
        assert tokens == [None, "new"]
        assert server.hub.get_meta(client.conn_id).expires_at == expires


async def test_a_token_that_is_refused_changes_nothing():
    def known(handshake):
        token = handshake.query.get("token")
        return None if token == "bad" else ConnMeta(user_id=ADA)

    async with running(authenticator=known) as server, peer(server) as client:
        nack = await client.refused("system:refresh", {"token": "bad"})

        assert nack["code"] == "unauthorized"
        assert await client.before_fence() == []


async def test_a_token_of_another_user_is_refused():
    users = iter([ADA, BEN])

    def known(handshake):
        return ConnMeta(user_id=next(users))

    async with running(authenticator=known) as server, peer(server) as client:
        nack = await client.refused("system:refresh", {"token": "bens"})

        assert nack["code"] in {"forbidden", "unauthorized"}
        assert server.hub.get_meta(client.conn_id).user_id == ADA


# --- what the server says by itself


async def test_who_is_kicked_is_told_from_where_and_why():
    async with two_in("r") as (server, ada, ben):
        assert await server.hub.kick_user_from_room(ADA, "r", reason="too loud") == 1

        told = await ada.expect("system:kicked", "kicked")
        assert told["data"] == {"room": "r", "reason": "too loud"}
        assert told["id"]
        assert await ben.before_fence() == []
        assert (await ada.refused("system:members", {"room": "r"}))["code"] == "not_a_member"


async def test_a_ban_kicks_first():
    async with two_in("r") as (server, ada, _ben):
        await server.hub.ban("r", ADA)

        assert (await ada.expect("system:kicked", "kicked"))["data"]["room"] == "r"


async def test_a_room_that_announces_tells_of_joins_and_leaves():
    async with commanded() as server, peer(server, query="?name=ada") as ada:
        await server.hub.create_room("r", RoomOptions(announce=True))
        await ada.join("r")
        async with peer(server, query="?name=ben") as ben:
            await ben.join("r")
            joined = await ada.expect("room:r", "join")
            async with peer(server, query="?name=ben") as second:
                await second.join("r")
                again = await ada.expect("room:r", "join")
            left = await ada.expect("room:r", "leave")
        gone = await ada.expect("room:r", "leave")

    assert joined["data"] == {"user_id": "ben", "connections": 1}
    assert again["data"] == {"user_id": "ben", "connections": 2}
    assert left["data"] == {"user_id": "ben", "connections": 1}
    assert gone["data"] == {"user_id": "ben", "connections": 0}


async def test_a_room_that_does_not_announce_is_quiet():
    async with two_in("r") as (_, ada, ben):
        await ben.request("system:leave", {"room": "r"})

        assert await ada.before_fence() == []


async def test_a_handler_may_let_a_client_in():
    """``force`` skips the policy; the client is then a member like the others."""
    async with commanded() as server, peer(server) as client:
        await server.hub.create_room("r", RoomOptions(policy=RoomPolicy.PRIVATE))
        with pytest.raises(JoinForbidden):
            await server.hub.join("r", client.conn_id)

        await server.hub.join("r", client.conn_id, JoinOptions(force=True))

        assert (await client.request("system:publish", {"room": "r", "data": 1}))["delivered"] == 1


async def test_commands_of_one_connection_are_done_in_order():
    async with commanded() as server, peer(server) as client:
        for n, topic in enumerate(["join", "publish", "leave", "publish"]):
            await client.send(f"system:{topic}", {"room": "r", "data": n}, id=f"c{n}", ack=True)

        got = [await client.receive() for _ in range(5)]

    acks = {m["ref"]: m["data"]["status"] for m in got if m.get("event") == "ack"}
    assert acks == {"c0": "ok", "c1": "ok", "c2": "ok", "c3": "nack"}
