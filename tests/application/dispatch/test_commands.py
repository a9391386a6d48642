"""What a client may ask of the server: each row of protocol.md, "Reserved topics"."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from eyewall.application.dispatch import commands
from eyewall.application.rooms.membership import MAX_ROOMS
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import Unauthorized, Unavailable
from eyewall.domain.identity import ConnMeta
from eyewall.domain.room import RoomOptions, RoomRole
from tests.application.fakes import Harness, settle

ALL = ("join", "leave", "publish", "members", "presence", "typing")


@pytest.fixture
async def another(node, make_node):
    return await make_node(client_commands=True)


async def ask(client, topic, data=None):
    """The data of the ack to a command, without what every ack has."""
    message = {"id": "q", "topic": f"system:{topic}", "ack": True, "data": data}
    (reply,) = [m for m in await client.ask(message) if m.get("event") == "ack"]
    assert reply["ref"] == "q"
    assert reply["topic"] == f"system:{topic}"
    answer = reply["data"]
    assert answer.pop("message_id") == "q"
    answer.pop("error", None)
    return answer


async def ok(client, topic, data=None):
    answer = await ask(client, topic, data)
    assert answer.pop("status") == "ok", answer
    return answer


async def code(client, topic, data=None):
    answer = await ask(client, topic, data)
    assert answer["status"] == "nack", answer
    return answer["code"]


async def member(node, user, room="lab", **known):
    client = await node.connect(user, **known)
    await ok(client, "join", {"room": room})
    return client


async def data_heard(client):
    await settle()
    return [m["data"] for m in client.heard()]


# --- on and off


@pytest.mark.parametrize("topic", ALL)
async def test_commands_are_off_unless_turned_on(make_node, topic):
    """Nor does the application's catch-all see them."""
    node = await make_node()
    seen = []

    @node.on("*")
    async def everything(ctx, msg):
        seen.append(msg)

    client = await node.connect("ada")

    assert await code(client, topic, {"room": "lab"}) == "handler_not_found"
    assert seen == []


async def test_refresh_is_there_in_any_case(make_node):
    client = await (await make_node()).connect("ada")

    assert await code(client, "refresh", {"token": "t"}) == "unauthorized"


async def test_a_refusal_without_an_ack_is_an_error(node):
    client = await node.connect("ada")

    (error,) = await client.ask({"id": "q", "topic": "system:publish", "data": {"room": "lab"}})

    assert (error["event"], error["ref"], error["data"]["code"]) == ("error", "q", "not_a_member")


async def test_a_command_that_wants_no_ack_is_silent(node):
    client = await node.connect("ada")

    assert await client.ask({"topic": "system:join", "data": {"room": "lab"}}) == []
    assert client.conn.rooms == {"lab"}


@pytest.mark.parametrize("topic", ALL)
@pytest.mark.parametrize(
    "data",
    [None, 5, [], "lab", {}, {"room": None}, {"room": ""}, {"room": 5}, {"room": "x" * 201}],
    ids=repr,
)
async def test_a_command_needs_an_object_that_names_its_room(node, topic, data):
    client = await node.connect("ada")

    assert await code(client, topic, data) == "validation"


async def test_the_access_controller_is_asked(make_node):
    asked = []

    class Door:
        def can_publish(self, meta, topic, event):
            asked.append(topic)
            return topic != "room:secret"

        def can_subscribe(self, meta, room_id):
            return room_id != "closed"

    node = await make_node(client_commands=True, access_controller=Door())
    client = await member(node, "ada", "secret")
    asked.clear()

    assert await code(client, "publish", {"room": "secret", "data": 1}) == "forbidden"
    assert await code(client, "join", {"room": "closed"}) == "forbidden"
    assert asked == ["room:secret", "system:join"]


# --- join, leave


async def test_join_says_the_role_and_the_count(node, another):
    await member(another, "bob")
    ada = await node.connect("ada")

    assert await ok(ada, "join", {"room": "lab"}) == {"room": "lab", "role": "member", "members": 2}
    assert await ok(ada, "join", {"room": "lab"}) == {"room": "lab", "role": "member", "members": 2}


async def test_join_gives_the_role_that_was_granted_and_never_one_that_is_named(node):
    await node.hub.set_role("lab", "ada", RoomRole.ADMIN)
    ada, bob = await node.connect("ada"), await node.connect("bob")

    assert (await ok(ada, "join", {"room": "lab"}))["role"] == "admin"
    named = {"room": "lab", "role": "owner", "force": True, "invited_by": "ada"}
    assert (await ok(bob, "join", named))["role"] == "member"


async def test_join_is_refused_as_the_room_says(make_node):
    node = await make_node(client_commands=True)
    strict = await make_node(client_commands=True, implicit_rooms=False)
    await node.hub.create_room("private", RoomOptions(policy="private"))
    await node.hub.create_room("full", RoomOptions(capacity=1))
    await member(node, "bob", "full")
    ada, eve = await node.connect("ada"), await strict.connect("eve")

    assert await code(ada, "join", {"room": "private", "force": True}) == "join_forbidden"
    assert await code(ada, "join", {"room": "full"}) == "room_full"
    assert await code(eve, "join", {"room": "nowhere"}) == "room_not_found"


async def test_a_client_that_joins_without_end_is_closed(node):
    """Rooms per connection are a limit on the protocol: over it, 1008."""
    client = await node.connect("ada")
    for number in range(MAX_ROOMS):
        await node.hub.join(f"room-{number}", client.conn.id)

    client.say({"id": "q", "topic": "system:join", "ack": True, "data": {"room": "more"}})
    await settle()

    assert client.link.closed is DisconnectReason.POLICY_VIOLATION
    assert await node.hub.members("more") == []


async def test_leave(node):
    ada = await member(node, "ada")

    assert await ok(ada, "leave", {"room": "lab"}) == {"room": "lab"}
    assert ada.conn.rooms == frozenset()
    assert await ok(ada, "leave", {"room": "lab"}) == {"room": "lab"}


# --- publish


async def test_publish_reaches_every_member_the_sender_too(node, another):
    ada, bob, phone = (
        await member(node, "ada"),
        await member(another, "bob"),
        await member(node, "ada"),
    )

    answer = await ok(ada, "publish", {"room": "lab", "event": "say", "data": {"n": 1}})
    await settle()

    assert answer == {"room": "lab", "delivered": 2}
    for client in (bob, phone):
        (message,) = client.heard()
        assert (message["topic"], message["event"]) == ("room:lab", "say")
        assert message["data"] == {"n": 1}
        assert message["id"]


async def test_the_sender_hears_its_own_message_before_the_ack(node):
    ada = await member(node, "ada")

    heard = await ada.ask(
        {"id": "q", "topic": "system:publish", "ack": True, "data": {"room": "lab", "data": 1}}
    )

    assert [m.get("event", "message") for m in heard] == ["message", "ack"]


async def test_publish_relays_byte_for_byte(node, another):
    ada, bob = await member(node, "ada"), await member(another, "bob")
    payload = '{"z":1.00,"a":1e-999,"n":123456789012345678901234567890}'

    await ada.ask(f'{{"topic":"system:publish","data":{{"room":"lab","data":{payload}}}}}')
    await settle()

    for client in (ada, bob):
        assert payload.encode() in client.link.frames[-1].payload


@pytest.mark.parametrize("data", [{}, {"data": None}], ids=repr)
async def test_publish_of_nothing_leaves_data_out(node, data):
    ada = await member(node, "ada")

    await ada.ask({"topic": "system:publish", "data": {"room": "lab", **data}})

    assert b'"data"' not in ada.link.frames[-1].payload


@pytest.mark.parametrize("event", [5, "", [], {}, False, *sorted(commands.RESERVED)], ids=repr)
async def test_publish_takes_no_event_that_is_none_or_the_servers_own(node, event):
    """Nobody forges who joined, or an ack."""
    ada = await member(node, "ada")

    assert await code(ada, "publish", {"room": "lab", "event": event}) == "validation"


async def test_who_is_not_a_member_can_not_publish(node):
    await member(node, "bob")
    ada = await node.connect("ada")

    for topic in ("publish", "typing", "members"):
        data = {"room": "lab", "typing": True}
        assert await code(ada, topic, data) == "not_a_member"
    assert await code(ada, "presence", {"room": "lab"}) == "not_a_member"


async def test_a_guest_may_only_listen(node):
    await node.hub.set_role("lab", "ada", RoomRole.GUEST)
    ada = await member(node, "ada")

    assert await code(ada, "publish", {"room": "lab", "data": 1}) == "forbidden"
    assert await code(ada, "typing", {"room": "lab", "typing": True}) == "forbidden"
    assert (await ok(ada, "members", {"room": "lab"}))["members"]
    await node.hub.set_role("lab", "ada", RoomRole.MEMBER)
    assert await ok(ada, "publish", {"room": "lab", "data": 1})


async def test_who_speaks_is_known_from_the_connection(node):
    """A client can't publish in another's name: the server adds nothing of its claims."""
    ada = await member(node, "ada")

    await ada.ask({"topic": "system:publish", "data": {"room": "lab", "data": 1, "user_id": "eve"}})

    assert b"eve" not in ada.link.frames[-1].payload


# --- members


async def test_members_of_the_whole_cluster(node, another):
    ada = await member(node, "ada")
    await member(another, "bob")
    await member(another, "ada")
    await member(another, None)
    await node.hub.set_role("lab", "bob", RoomRole.MODERATOR)

    answer = await ok(ada, "members", {"room": "lab"})

    assert answer == {
        "members": [
            {"user_id": "ada", "role": "member", "connections": 2},
            {"user_id": "bob", "role": "moderator", "connections": 1},
            {"user_id": None, "role": "member", "connections": 1},
        ]
    }


async def test_members_come_in_pages(node):
    ada = await member(node, "u0")
    for number in range(1, 5):
        await member(node, f"u{number}")

    found, data = [], {"room": "lab", "limit": 2}
    for _ in range(3):
        answer = await ok(ada, "members", data)
        found.append([m["user_id"] for m in answer["members"]])
        data["cursor"] = answer.get("cursor")

    assert found == [["u0", "u1"], ["u2", "u3"], ["u4"]]
    assert data["cursor"] is None


async def test_a_page_has_a_largest_size(node, monkeypatch):
    monkeypatch.setattr(commands, "MAX_PAGE", 2)
    ada = await member(node, "u0")
    for number in range(1, 4):
        await member(node, f"u{number}")

    for data in ({"room": "lab"}, {"room": "lab", "limit": 1000}):
        answer = await ok(ada, "members", data)
        assert (len(answer["members"]), answer["cursor"]) == (2, "2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("limit", 0),
        ("limit", -1),
        ("limit", "2"),
        ("limit", True),
        ("limit", 1.5),
        ("cursor", 2),
        ("cursor", ""),
        ("cursor", "-1"),
        ("cursor", "x"),
        ("cursor", "1" * 10),
    ],
)
async def test_limit_and_cursor_are_ours(node, field, value):
    ada = await member(node, "ada")

    answer = await ask(ada, "members", {"room": "lab", field: value})

    assert answer["code"] == "validation"
    assert list(answer["fields"]) == [field]


async def test_a_cursor_past_the_end_is_the_end(node):
    ada = await member(node, "ada")

    assert await ok(ada, "members", {"room": "lab", "cursor": "99"}) == {"members": []}


# --- presence


async def test_presence_of_users(node, another, clock):
    ada = await node.connect("ada")
    bob = await another.connect("bob")
    await bob.vanish()
    await clock.advance(1.5)

    answer = await ok(ada, "presence", {"users": ["ada", "bob", "eve"]})

    assert answer == {
        "users": {
            "ada": {"online": True, "connections": 1, "last_seen": "2026-03-01T12:00:01.500Z"},
            "bob": {"online": False, "connections": 0, "last_seen": "2026-03-01T12:00:00.000Z"},
            "eve": {"online": False, "connections": 0, "last_seen": None},
        }
    }


async def test_presence_of_a_rooms_members(node, another):
    ada = await member(node, "ada")
    await member(another, "bob")
    await member(another, None)
    await another.connect("eve")

    answer = await ok(ada, "presence", {"room": "lab"})

    assert {user: state["online"] for user, state in answer["users"].items()} == {
        "ada": True,
        "bob": True,
    }


@pytest.mark.parametrize(
    "users",
    [None, "ada", {}, ["ada", 5], [""], ["x" * 201], ["u"] * (commands.MAX_USERS + 1)],
    ids=lambda users: repr(users)[:30],
)
async def test_presence_takes_a_bounded_list_of_users(node, users):
    ada = await node.connect("ada")

    assert await code(ada, "presence", {"users": users}) == "validation"


# --- typing


async def test_typing_is_told_to_the_other_members(node, another, clock):
    ada, bob = await member(node, "ada"), await member(another, "bob")

    assert await ok(ada, "typing", {"room": "lab", "typing": True, "ttl": 3}) == {}
    assert await data_heard(bob) == [{"user_id": "ada", "typing": True}]
    await clock.advance(3)
    assert await data_heard(bob) == [{"user_id": "ada", "typing": False}]

    await ok(ada, "typing", {"room": "lab", "typing": True})
    await ok(ada, "typing", {"room": "lab", "typing": False})
    assert [d["typing"] for d in await data_heard(bob)] == [True, False]


async def test_typing_ends_after_five_seconds_unless_told(node, clock):
    ada, bob = await member(node, "ada"), await member(node, "bob")
    await ok(ada, "typing", {"room": "lab", "typing": True})
    await data_heard(bob)

    await clock.advance(4.9)
    assert await data_heard(bob) == []
    await clock.advance(0.1)
    assert await data_heard(bob) == [{"user_id": "ada", "typing": False}]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("typing", None),
        ("typing", 1),
        ("typing", "yes"),
        ("ttl", 0),
        ("ttl", -1),
        ("ttl", 60.5),
        ("ttl", 10**400),
        ("ttl", "5"),
        ("ttl", True),
        ("ttl", None),
    ],
)
async def test_typing_says_whether_and_for_how_long(node, field, value):
    ada = await member(node, "ada")

    answer = await ask(ada, "typing", {"room": "lab", "typing": True, field: value})

    assert (answer["code"], list(answer["fields"])) == ("validation", [field])


async def test_typing_needs_a_user(node):
    guest = await member(node, None)

    assert await code(guest, "typing", {"room": "lab", "typing": True}) == "unauthorized"


# --- refresh


class Tokens:
    """An authenticator that knows some tokens, and fails by a switch."""

    def __init__(self, clock):
        self.known = {
            "ada": ConnMeta(
                user_id="ada", roles=["staff"], expires_at=clock.wall() + timedelta(seconds=100)
            ),
            "ada for ever": ConnMeta(user_id="ada"),
            "bob": ConnMeta(user_id="bob"),
        }
        self.seen = []
        self.error = None

    async def authenticate(self, handshake):
        self.seen.append(handshake)
        if self.error is not None:
            raise self.error
        return self.known.get(handshake.query.get("token"))


@pytest.fixture
async def tokens(clock):
    return Tokens(clock)


@pytest.fixture
async def guarded(make_node, tokens):
    return await make_node(authenticator=tokens)


async def expiring(node, clock, seconds=10):
    return await node.connect("ada", expires_at=clock.wall() + timedelta(seconds=seconds))


async def test_a_new_token_keeps_the_connection(guarded, clock):
    ada = await expiring(guarded, clock)

    assert await ok(ada, "refresh", {"token": "ada"}) == {"expires_at": "2026-03-01T12:01:40.000Z"}

    assert ada.conn.meta.roles == {"staff"}
    await clock.advance(99.9)
    assert ada.closed is None
    await clock.advance(0.1)
    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


async def test_a_token_without_an_end_keeps_it_for_ever(guarded, clock):
    ada = await expiring(guarded, clock)

    assert await ok(ada, "refresh", {"token": "ada for ever"}) == {"expires_at": None}
    await clock.advance(3600)

    assert ada.closed is None


async def test_the_authenticator_finds_the_token_where_a_handshake_has_it(guarded, tokens, clock):
    ada = await guarded.connect("ada", ip="10.0.0.1")

    await ok(ada, "refresh", {"token": "ada"})

    (handshake,) = tokens.seen
    assert handshake.query.get("token") == "ada"
    assert handshake.headers.get("authorization") == "Bearer ada"
    assert handshake.ip == "10.0.0.1"


@pytest.mark.parametrize(
    ("token", "refused"),
    [("nobody's", "unauthorized"), ("bob", "forbidden"), (5, "validation"), (None, "validation")],
)
async def test_another_token_changes_nothing(guarded, clock, token, refused):
    ada = await expiring(guarded, clock)

    assert await code(ada, "refresh", {"token": token}) == refused

    await clock.advance(10)
    assert ada.closed is DisconnectReason.TOKEN_EXPIRED


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (Unauthorized("no"), "unauthorized"),
        (Unavailable("away"), "unavailable"),
        (RuntimeError("secret"), "internal"),
    ],
    ids=repr,
)
async def test_an_authenticator_that_fails(guarded, tokens, clock, error, refused):
    ada = await expiring(guarded, clock)
    tokens.error = error

    answer = await ada.ask(
        {"id": "q", "topic": "system:refresh", "ack": True, "data": {"token": "ada"}}
    )

    assert answer[0]["data"]["code"] == refused
    assert "secret" not in str(answer)


async def test_who_ends_while_the_token_is_looked_at_needs_none(guarded, tokens, clock):
    gate = asyncio.Event()
    authenticate = tokens.authenticate

    async def slowly(handshake):
        await gate.wait()
        return await authenticate(handshake)

    tokens.authenticate = slowly
    node = Harness(authenticator=tokens, clock=clock)
    async with node:
        ada = await expiring(node, clock)
        ada.say({"topic": "system:refresh", "data": {"token": "ada"}})
        await settle()
        await ada.vanish()
        gate.set()
        await settle()

        assert node.logger.of("error") == []
        assert len(node.parts.expiry) == 0


async def test_what_was_known_of_the_connection_stays(guarded, clock):
    ada = await guarded.connect("ada", tags=["x"], attributes={"plan": "pro"})
    before = ada.conn.meta

    await ok(ada, "refresh", {"token": "ada for ever"})

    assert ada.conn.meta == replace(before, roles=frozenset())
