"""api.md: every method takes its arguments by keyword, under the names of the page; and what it
answers for a user, a room or a connection that is not there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import eyewall.middleware
from eyewall import (
    Acker,
    Connection,
    ConnectionClosed,
    Context,
    DeliveryStatus,
    Envelope,
    Hub,
    JoinForbidden,
    RoomNotFound,
    RoomOptions,
    RoomRole,
    Routes,
    Server,
    Target,
)
from eyewall.client import Client
from eyewall.testing import TestClient, TestHub
from tests.entrypoints.house import NEWS, House, Pair

# --- names

PAGE: dict[type, dict[str, str]] = {
    Server: {
        "on": "pattern *middleware version ordering_key",
        "handle": "pattern handler *middleware version ordering_key",
        "use": "*middleware",
        "include": "routes prefix",
        "on_startup": "fn",
        "on_shutdown": "fn",
        "background": "fn *args **kwargs",
        "routes": "path",
        "start": "host port ssl",
        "shutdown": "timeout",
        "run": "host port ssl",
        "from_settings": "settings **overrides",
    },
    Routes: {
        "on": "pattern *middleware version ordering_key",
        "handle": "pattern handler *middleware version ordering_key",
        "use": "*middleware",
    },
    Context: {
        "send": "topic event data",
        "send_message": "message options",
        "reply": "data",
        "from_thread": "fn *args **kwargs",
    },
    Connection: {"send": "topic event data", "send_raw": "data", "close": "reason"},
    Envelope: {"load": "schema_or_type"},
    Hub: {
        **dict.fromkeys(("on_connect", "on_disconnect", "on_message", "on_error"), "hook"),
        **dict.fromkeys(("on_join", "on_leave", "remove_hook"), "hook"),
        **dict.fromkeys(("connection", "get_meta", "pending_acks", "leave_all"), "conn_id"),
        **dict.fromkeys(("connections", "connection_ids", "users", "rooms"), ""),
        **dict.fromkeys(("stats", "reset_stats"), ""),
        **dict.fromkeys(("delete_room", "members", "room"), "room_id"),
        **dict.fromkeys(("on_send_failure", "on_queue_full", "on_user_offline"), "fn"),
        **dict.fromkeys(("on_connection_error", "on_timeout"), "fn"),
        "set_meta": "conn_id **changes",
        "find_by_tag": "tag",
        "user_connections": "user_id",
        "presence": "user_id",
        "presence_many": "user_ids",
        "set_typing": "user_id room_id typing ttl",
        "use": "*middleware",
        "handle": "pattern handler *middleware version ordering_key",
        "create_room": "room_id options",
        "update_room": "room_id **changes",
        "join": "room_id conn_id options",
        "leave": "room_id conn_id",
        "invite": "room_id user_id by",
        "revoke_invite": "room_id user_id",
        "set_role": "room_id user_id role",
        "kick": "room_id user_id reason",
        "kick_user_from_room": "user_id room_id reason",
        "ban": "room_id user_id duration",
        "unban": "room_id user_id",
        "broadcast": "topic event data",
        "broadcast_room": "room_id topic event data history",
        "broadcast_text": "text",
        "send_to_conn": "conn_id topic event data",
        "send_text_to_conn": "conn_id text",
        "send_to_user": "user_id message options",
        "send_to_users": "user_ids message options",
        "broadcast_with_filter": "message filter options",
        "emit_to_room": "room_id message options",
        "emit_to_room_except": "room_id conn_ids message options",
        "emit_with_ack": "target message options",
        "request": "conn_id message timeout",
        "send_to_user_with_retry": "user_id message policy options",
        "history": "room_id since limit",
        "disconnect_user": "user_id reason",
        "disconnect_conn": "conn_id reason",
        "shutdown": "timeout",
    },
    Client: {
        "on": "pattern callback",
        "on_state": "callback",
        "send": "topic data event",
        "request": "topic data timeout",
        "join": "room",
        "leave": "room",
        "publish": "room data event",
        "members": "room",
        "presence": "users",
        "typing": "room typing",
        "history": "room since limit",
    },
    TestHub: {"connect": "user", "advance": "by"},
    TestClient: {"send": "topic data event ack id", "join": "room", "publish": "room data event"},
}
NAMED = [(kind, name, words) for kind, methods in PAGE.items() for name, words in methods.items()]


def parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(fn).parameters.values() if p.name != "self"]


@pytest.mark.parametrize(
    ("kind", "name", "words"), NAMED, ids=[f"{kind.__name__}.{name}" for kind, name, _ in NAMED]
)
def test_the_arguments_have_the_names_of_the_page(kind, name, words):
    """In the page's order. What is not on the page comes behind them."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = [stars.get(p.kind, "") + p.name for p in parameters(getattr(kind, name))]

    assert found[: len(words.split())] == words.split()
    if kind is Hub:
        assert found == words.split()


def public(kind: type) -> list[tuple[str, Callable[..., Any]]]:
    return [
        (f"{kind.__name__}.{name}", member)
        for name, member in inspect.getmembers(kind, callable)
        if not name.startswith("_") and not isinstance(member, type)
    ]


PUBLIC = [
    *(pair for kind in PAGE for pair in public(kind)),
    *((name, getattr(eyewall.middleware, name)) for name in eyewall.middleware.__all__),
    *((name, getattr(eyewall, name)) for name in eyewall.__all__ if name[0].isupper()),
]


@pytest.mark.parametrize(("name", "fn"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_nothing_is_positional_only(name, fn):
    try:
        found = parameters(fn)
    except ValueError:
        return  # an exception or a NewType, which say nothing of it
    assert [p.name for p in found if p.kind is inspect.Parameter.POSITIONAL_ONLY] == []


METHODS = public(Hub)


@pytest.mark.parametrize(("name", "fn"), METHODS, ids=[name for name, _ in METHODS])
def test_every_method_of_the_hub_says_what_it_does(name, fn):
    assert fn.__doc__


# --- what is not there

LOST: dict[str, Any] = {"user_id": "nobody", "room_id": "nowhere", "conn_id": "none@nowhere"}
ROOM, USER, CONN = ({name: LOST[name]} for name in ("room_id", "user_id", "conn_id"))

ANSWERS: list[tuple[str, dict[str, Any], Any]] = [
    ("connection", CONN, None),
    ("get_meta", CONN, None),
    ("user_connections", USER, []),
    ("find_by_tag", {"tag": "none"}, []),
    ("pending_acks", CONN, []),
    ("leave", ROOM | CONN, False),
    ("leave_all", CONN, 0),
    ("kick", ROOM | USER | {"reason": "spam"}, 0),
    ("kick_user_from_room", ROOM | USER | {"reason": "spam"}, 0),
    ("unban", ROOM | USER, None),
    ("revoke_invite", ROOM | USER, None),
    ("set_typing", ROOM | USER | {"typing": True, "ttl": 1.0}, None),
    ("members", ROOM, []),
    ("room", ROOM, None),
    ("broadcast_room", ROOM | {"topic": "news", "event": "e", "data": 1}, 0),
    ("emit_to_room", ROOM | {"message": NEWS, "options": None}, 0),
    ("emit_to_room_except", ROOM | {"conn_ids": ["x"], "message": NEWS, "options": None}, 0),
    ("disconnect_user", USER | {"reason": "disconnected"}, 0),
    ("disconnect_conn", CONN | {"reason": "disconnected"}, False),
    ("remove_hook", {"hook": print}, False),
]
RAISES: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("update_room", ROOM | {"capacity": 1}, RoomNotFound),
    ("delete_room", ROOM, RoomNotFound),
    ("history", ROOM | {"since": None, "limit": 10}, RoomNotFound),
    ("join", ROOM | CONN | {"options": None}, ConnectionClosed),
    ("set_meta", CONN | {"device_id": "d1"}, ConnectionClosed),
    ("request", CONN | {"message": NEWS, "timeout": 1.0}, ConnectionClosed),
]


async def ask(hub: Hub, name: str, arguments: dict[str, Any]) -> Any:
    answer = getattr(hub, name)(**arguments)
    return await answer if inspect.isawaitable(answer) else answer


async def test_what_is_not_there_is_said_in_the_answer(pair: Pair):
    """On the node that is asked, and wherever else it might be."""
    await pair.ada.join("r")
    for hub in (pair.here.hub, pair.there.hub):
        for name, arguments, expected in ANSWERS:
            answer = await ask(hub, name, arguments)
            assert (name, answer, type(answer)) == (name, expected, type(expected))
        for conn_id in ("none@n1", "none@n2", "none", "", "@"):
            assert await hub.leave(room_id="r", conn_id=conn_id) is False
            assert await hub.leave_all(conn_id=conn_id) == 0
            assert await hub.disconnect_conn(conn_id=conn_id, reason="disconnected") is False
        assert await hub.rooms() == ["r"]
    assert [member.user_id for member in await pair.here.hub.members("r")] == ["ada"]


@pytest.mark.parametrize(("name", "arguments", "error"), RAISES, ids=[r[0] for r in RAISES])
async def test_where_there_is_nothing_to_answer_it_raises(house: House, name, arguments, error):
    with pytest.raises(error):
        await ask(house.hub, name, arguments)


async def test_messages_to_what_is_not_there_are_reported(house: House):
    hub = house.hub
    for report in (
        await hub.send_to_conn(**CONN, topic="news", event="e", data=1),
        await hub.send_text_to_conn(**CONN, text="news"),
    ):
        assert (report.status, report.conn_id) == (DeliveryStatus.FAILED, CONN["conn_id"])
    batch = await hub.send_to_user(**USER, message=NEWS, options=None)
    assert (batch.total, batch.failed) == (1, 1)
    many = await hub.send_to_users(user_ids=["nobody"], message=NEWS, options=None)
    assert (many.total, many.failed) == (1, 1)
    tried = await hub.send_to_user_with_retry(**USER, message=NEWS, policy=None, options=None)
    assert tried.success is False
    result = await hub.emit_with_ack(target=Target.user("nobody"), message=NEWS, options=None)
    assert result.silent == (Acker("nobody", None),)
    presence = await hub.presence(**USER)
    assert (presence.online, presence.connections, presence.last_seen) == (False, 0, None)
    assert list(await hub.presence_many(user_ids=["nobody"])) == ["nobody"]


async def test_arguments_that_are_swapped_are_said_in_the_answer_and_change_nothing(house: House):
    hub, ada = house.hub, await house.come("ada")
    await hub.create_room("r")
    await hub.join("r", ada.conn_id)

    assert await hub.kick("ada", "r") == 0
    assert await hub.kick_user_from_room("r", "ada") == 0
    assert await hub.leave(ada.conn_id, "r") is False
    assert await hub.unban("ada", "r") is None
    assert await hub.revoke_invite("ada", "r") is None
    assert await hub.disconnect_user(ada.conn_id) == 0
    assert await hub.disconnect_conn("ada") is False
    assert await hub.leave_all("ada") == 0
    assert await hub.set_typing("r", "ada") is None
    with pytest.raises(ConnectionClosed):
        await hub.join(ada.conn_id, "r")

    assert await hub.rooms() == ["r"]
    assert [member.user_id for member in await hub.members("r")] == ["ada"]
    assert await ada.before_fence() == []


async def test_a_ban_says_how_many_were_in(house: House):
    hub = house.hub
    one, two = await house.come("ada"), await house.come("ada")
    for client in (one, two):
        await hub.join(room_id="r", conn_id=client.conn_id)

    assert await hub.ban(room_id="r", user_id="ada", duration=60) == 2
    assert await hub.ban(room_id="r", user_id="ada", duration=60) == 0
    assert await hub.ban("ben", "r") == 0, "swapped: there was nobody"
    with pytest.raises(JoinForbidden):
        await hub.join("r", one.conn_id)


async def test_what_is_there_is_reached_by_keyword_too(house: House):
    hub, ada = house.hub, await house.come("ada", tags="red")
    options = RoomOptions(history_size=5)
    await hub.create_room(room_id="r", options=options)
    await hub.update_room(room_id="r", capacity=3)
    await hub.invite(room_id="r", user_id="ada", by="ben")
    await hub.set_role(room_id="r", user_id="ada", role=RoomRole.ADMIN)
    membership = await hub.join(room_id="r", conn_id=ada.conn_id, options=None)
    assert membership.role is RoomRole.ADMIN
    assert await hub.broadcast(topic="news", event="e", data=1) == 1
    assert await hub.broadcast_text(text="raw") == 1
    assert await hub.broadcast_room(room_id="r", topic="news", event="e", data=2) == 1
    fits = hub.broadcast_with_filter(message=NEWS, filter=lambda meta: True, options=None)
    assert await fits == 1
    page = await hub.history(room_id="r", since=membership, limit=10)
    assert [message.data for message in page.messages] == [2]
    assert hub.find_by_tag(tag="red") == [ada.conn_id]
    assert await hub.kick(room_id="r", user_id="ada", reason="spam") == 1
    assert await hub.disconnect_user(user_id="ada", reason="disconnected") == 1
