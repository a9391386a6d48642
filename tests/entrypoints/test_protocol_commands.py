"""protocol.md, "Reserved topics": every request that a client may make of the server."""

from __future__ import annotations

import contextlib

import pytest

from eyewall import (
    Misuse,
    RoomOptions,
    RoomPolicy,
    RoomRole,
    Server,
)
from eyewall.domain.commands import COMMANDS
from tests.entrypoints.house import ADA, commanded, plain, two_in
from tests.entrypoints.wire import peer, running

pytestmark = pytest.mark.usefixtures("transport")

# --- off unless turned on


@pytest.mark.parametrize("command", ["join", "leave", "publish", "members", "presence", "typing"])
async def test_commands_are_off_unless_the_application_turns_them_on(command):
    """They are never the application's own ``*`` either."""
    server = Server()
    caught = []
    server.handle("*", lambda ctx, msg: caught.append(msg.topic))
    async with running(server), peer(server) as client:
        nack = await client.refused(f"system:{command}", {"room": "r", "users": [], "typing": True})

    assert nack["code"] == "handler_not_found"
    assert "system:" not in "".join(caught)


@pytest.mark.parametrize("on", [set(COMMANDS) - {name} for name in COMMANDS], ids=COMMANDS)
async def test_a_set_of_names_turns_on_those_and_no_other(on):
    """What is off says so, and reaches neither a handler of the application's nor a room."""
    (off,) = set(COMMANDS) - on
    caught = []
    async with (
        commanded(client_commands=on) as server,
        peer(server, query="?name=ada") as client,
    ):
        server.handle("*", lambda ctx, msg: caught.append(msg.topic))
        await server.hub.create_room("r", RoomOptions(history_size=5))
        await server.hub.join("r", client.conn_id)
        data = {"room": "r", "typing": True}
        for name in COMMANDS:
            if name in on - {"leave"}:
                await client.request(f"system:{name}", data)
        nack = await client.refused(f"system:{off}", data)

        assert nack["code"] == "handler_not_found"
        assert f"system:{off} is switched off" in nack["error"]
        assert "client_commands" in nack["error"]
        assert (await server.hub.room("r")).members == 1
        if off != "leave":
            await client.request("system:leave", data)
        assert (await client.refused("system:nothing"))["error"] == "nothing handles system:nothing"
    assert caught == []


async def test_without_join_a_resume_leads_only_into_the_sessions_rooms():
    async with commanded(client_commands={"leave", "history"}) as server:
        async with peer(server) as client:
            await server.hub.join("old", client.conn_id)
            session = client.welcome["data"]["session"]
            client.socket.transport.abort()
        async with peer(server) as client:
            rooms = {"old": {}, "new": {}}
            answer = await client.request("system:resume", {"session": session, "rooms": rooms})

            assert "code" not in answer["rooms"]["old"]
            assert answer["rooms"]["new"]["code"] == "forbidden"
            assert server.hub.connection(client.conn_id).rooms == {"old"}


@pytest.mark.parametrize("wrong", [{"jump"}, "join", None, 1, ["join", 5]])
def test_a_wrong_choice_of_commands_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match="client_commands"):
        Server(client_commands=wrong)


@pytest.mark.parametrize("topic", ["system:join", "system:mine", "system:*", "system:"])
def test_an_application_cant_handle_the_servers_own_topics(topic):
    with pytest.raises((ValueError, Misuse)):
        Server().handle(topic, lambda ctx, msg: None)


async def test_welcome_and_notices_are_no_requests():
    async with commanded() as server, peer(server) as client:
        for topic in ("welcome", "draining", "kicked", "gap", "error"):
            assert (await client.refused(f"system:{topic}"))["code"] == "handler_not_found"


# --- join and leave


async def test_join_says_the_room_the_role_and_the_count_of_connections():
    async with commanded() as server, peer(server) as one, peer(server) as two:
        first = await one.request("system:join", {"room": "r"})
        second = await two.request("system:join", {"room": "r"})

    assert plain(first) == {"room": "r", "role": "member", "members": 1}
    assert plain(second) == {"room": "r", "role": "member", "members": 2}


async def test_joining_twice_changes_nothing():
    async with commanded() as server, peer(server) as client:
        await client.join("r")

        again = await client.request("system:join", {"room": "r"})

        assert plain(again) == {"room": "r", "role": "member", "members": 1}


async def test_what_is_published_after_the_ack_of_a_join_arrives():
    async with commanded() as server, peer(server) as client:
        await client.join("r")
        await server.hub.broadcast_room("r", "room:r", "message", 1)

        assert (await client.receive())["data"] == 1


async def test_a_join_with_since_sends_what_is_kept_then_the_answer_then_what_is_live():
    async with commanded() as server, peer(server) as client:
        info = await server.hub.create_room("r", RoomOptions(history_size=3))
        for n in range(1, 6):
            await server.hub.broadcast_room("r", "room:r", data=n)

        await client.send("system:join", {"room": "r", "since": "start"}, ack=True, id="j1")
        sent = [await client.receive() for _ in range(4)]
        await server.hub.broadcast_room("r", "room:r", data=6)
        live = await client.receive()

        stream = {"room": "r", "epoch": info.epoch}
        assert [(m["data"], m["stream"]) for m in [*sent[:3], live]] == [
            (n, stream | {"offset": n}) for n in (3, 4, 5, 6)
        ]
        where = {"epoch": info.epoch, "offset": 5}
        answer = {"room": "r", "role": "member", "members": 1, **where, "recovered": False}
        assert plain(sent[3]["data"]) == answer
        await client.send("system:join", {"room": "r", "since": where}, ack=True, id="j2")
        assert (await client.receive())["data"] == 6, "a member gets it again"
        assert (await client.receive())["data"]["recovered"]


async def test_a_join_with_a_wrong_since_is_refused_by_its_field():
    async with commanded() as server, peer(server) as client:
        nack = await client.refused("system:join", {"room": "r", "since": "yesterday"})

        assert (nack["code"], list(nack["fields"])) == ("validation", ["since"])
        assert server.hub.stats().rooms == 0


async def test_a_client_never_names_its_own_role():
    async with commanded() as server, peer(server) as client:
        data = {"room": "r", "role": "owner", "force": True}

        assert (await client.request("system:join", data))["role"] == "member"


async def test_a_client_gets_the_role_that_it_was_granted():
    async with commanded() as server, peer(server, query="?name=ada") as client:
        await server.hub.set_role("r", ADA, RoomRole.MODERATOR)

        assert (await client.request("system:join", {"room": "r"}))["role"] == "moderator"


JOIN_REFUSALS = {
    "private": (RoomOptions(policy=RoomPolicy.PRIVATE), "join_forbidden"),
    "private for others": (
        RoomOptions(policy=RoomPolicy.PRIVATE, allowed_roles=("staff",)),
        "join_forbidden",
    ),
    "by invitation": (RoomOptions(policy=RoomPolicy.INVITE_ONLY), "join_forbidden"),
}


@pytest.mark.parametrize("case", JOIN_REFUSALS)
async def test_a_room_that_is_closed_to_a_client_says_so(case):
    options, code = JOIN_REFUSALS[case]
    async with commanded() as server, peer(server, query="?name=ada") as client:
        await server.hub.create_room("r", options)

        assert (await client.refused("system:join", {"room": "r"}))["code"] == code


async def test_a_full_room_says_so():
    async with commanded() as server, peer(server) as one, peer(server) as two:
        await server.hub.create_room("r", RoomOptions(capacity=1))
        await one.join("r")

        assert (await two.refused("system:join", {"room": "r"}))["code"] == "room_full"

        await one.request("system:leave", {"room": "r"})
        await two.join("r")


async def test_a_private_room_lets_its_roles_in():
    async with commanded() as server, peer(server, query="?name=ada&roles=staff") as client:
        options = RoomOptions(policy=RoomPolicy.PRIVATE, allowed_roles=("staff", "boss"))
        await server.hub.create_room("r", options)

        assert (await client.request("system:join", {"room": "r"}))["members"] == 1


async def test_an_invited_user_may_join():
    async with commanded() as server, peer(server, query="?name=ada") as client:
        await server.hub.create_room("r", RoomOptions(policy=RoomPolicy.INVITE_ONLY))
        await server.hub.invite("r", ADA)

        assert (await client.request("system:join", {"room": "r"}))["members"] == 1


async def test_a_banned_user_may_not_join():
    async with commanded() as server, peer(server, query="?name=ada") as client:
        await server.hub.ban("r", ADA)
        assert (await client.refused("system:join", {"room": "r"}))["code"] == "join_forbidden"

        await server.hub.unban("r", ADA)
        await client.join("r")


async def test_without_implicit_rooms_an_unknown_room_is_not_found():
    async with commanded(implicit_rooms=False) as server, peer(server) as client:
        assert (await client.refused("system:join", {"room": "r"}))["code"] == "room_not_found"

        await server.hub.create_room("r")
        await client.join("r")


async def test_the_access_controller_is_asked_for_every_join():
    class Door:
        def can_publish(self, meta, topic, event):
            return True

        async def can_subscribe(self, meta, room_id):
            return room_id != "cellar"

    async with commanded(access_controller=Door()) as server, peer(server) as client:
        assert (await client.refused("system:join", {"room": "cellar"}))["code"] == "forbidden"
        await client.join("attic")


async def test_leave_ends_what_comes_from_the_room():
    async with commanded() as server, peer(server) as client:
        await client.join("r")

        assert plain(await client.request("system:leave", {"room": "r"})) == {"room": "r"}
        assert await server.hub.broadcast_room("r", "room:r", "message", 1) == 0
        assert await client.before_fence() == []


async def test_leaving_where_one_is_not_changes_nothing():
    async with commanded() as server, peer(server) as client:
        assert plain(await client.request("system:leave", {"room": "r"})) == {"room": "r"}


async def test_a_connection_may_be_in_many_rooms():
    async with commanded() as server, peer(server) as client:
        await client.join(*(f"r{n}" for n in range(20)))

        assert len(server.hub.connection(client.conn_id).rooms) == 20


# --- publish


async def test_every_member_gets_what_is_published_the_sender_too():
    async with two_in("r") as (_, ada, ben):
        answer = await ada.ask("system:publish", {"room": "r", "data": {"text": "hi"}})
        heard = await ben.receive()

    assert plain(answer["data"]) == {"room": "r", "delivered": 2}
    assert heard["topic"] == "room:r"
    assert heard.get("event", "message") == "message"
    assert heard["data"] == {"text": "hi"}
    assert heard["id"]


async def test_the_sender_hears_itself():
    async with two_in("r") as (_, ada, _ben):
        await ada.send("system:publish", {"room": "r", "data": 1})

        assert (await ada.receive())["topic"] == "room:r"


async def test_what_is_published_may_name_an_event():
    async with two_in("r") as (_, ada, ben):
        await ada.request("system:publish", {"room": "r", "event": "drawing", "data": [1, 2]})

        assert await ben.expect("room:r", "drawing")


async def test_what_is_published_without_data_is_null():
    async with two_in("r") as (_, ada, ben):
        await ada.request("system:publish", {"room": "r"})

        assert (await ben.expect("room:r")).get("data") is None


async def test_only_members_publish():
    async with two_in("r") as (server, _, ben), peer(server) as stranger:
        nack = await stranger.refused("system:publish", {"room": "r", "data": 1})
        assert nack["code"] == "not_a_member"
        assert await ben.before_fence() == []


async def test_a_guest_may_only_listen():
    async with two_in("r") as (server, ada, ben):
        await server.hub.set_role("r", ADA, RoomRole.GUEST)

        for command in ("publish", "typing"):
            data = {"room": "r", "data": 1, "typing": True}
            assert (await ada.refused(f"system:{command}", data))["code"] == "forbidden"
        await ben.request("system:publish", {"room": "r", "data": 1})
        assert (await ada.expect("room:r"))["data"] == 1


async def test_the_access_controller_is_asked_for_a_publish_under_the_rooms_topic():
    asked = []

    class Door:
        def can_publish(self, meta, topic, event):
            asked.append((topic, event))
            return topic != "room:quiet"

        def can_subscribe(self, meta, room_id):
            return True

    async with commanded(access_controller=Door()) as server, peer(server) as client:
        await client.join("quiet", "loud")
        nack = await client.refused("system:publish", {"room": "quiet", "data": 1})
        await client.request("system:publish", {"room": "loud", "data": 1})

    assert nack["code"] == "forbidden"
    assert "room:quiet" in [topic for topic, _ in asked]
    assert "system:publish" not in [topic for topic, _ in asked]


async def test_the_order_of_what_is_published_is_kept():
    async with two_in("r", lane_queue=256) as (_, ada, ben):
        for n in range(200):
            await ada.send("system:publish", {"room": "r", "data": n})

        assert [(await ben.expect("room:r"))["data"] for _ in range(200)] == list(range(200))


# --- members


async def test_members_lists_users_with_their_role_and_connections():
    async with two_in("r") as (server, _, ben), peer(server, query="?name=ben") as second:
        await second.join("r")
        await server.hub.set_role("r", ADA, RoomRole.OWNER)

        answer = plain(await ben.request("system:members", {"room": "r"}))

        assert sorted(answer) == ["members"], "no cursor where nothing is left"
        assert sorted(answer["members"], key=lambda member: member["user_id"]) == [
            {"user_id": "ada", "role": "owner", "connections": 1},
            {"user_id": "ben", "role": "member", "connections": 2},
        ]


async def test_members_come_in_pages():
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(commanded())
        for n in range(5):
            client = await stack.enter_async_context(peer(server, query=f"?name=u{n}"))
            await client.join("r")
        found, cursor, pages = [], None, 0
        while pages == 0 or cursor is not None:
            data = {"room": "r", "limit": 2} | ({"cursor": cursor} if cursor else {})
            answer = await client.request("system:members", data)
            assert len(answer["members"]) <= 2
            found += [member["user_id"] for member in answer["members"]]
            cursor, pages = answer.get("cursor"), pages + 1

    assert pages == 3
    assert sorted(found) == ["u0", "u1", "u2", "u3", "u4"]
