"""The hub delegates; here is whether each door leads to the right room.

What happens behind a door is tested with the module that does it.
"""

import asyncio
import inspect

import pytest

from eyewall.application.hub.hub import Hub
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message
from eyewall.domain.errors import Misuse, RoomNotFound
from eyewall.domain.identity import Where
from eyewall.domain.report import AckOptions, DeliveryStatus, SendOptions, Target
from eyewall.domain.room import JoinOptions, RoomOptions, RoomPolicy, RoomRole
from tests.application.fakes import settle


@pytest.fixture
def hub(node):
    return node.hub


@pytest.fixture
async def ada(node):
    return await node.connect("ada", roles={"editor"}, tags={"vip"})


@pytest.fixture
async def bob(node):
    return await node.connect("bob")


@pytest.fixture
async def room(hub, ada, bob):
    """A room with both in it."""
    for client in (ada, bob):
        await hub.join("r", client.id)
        client.heard()
    return "r"


def topics(client):
    return [m if isinstance(m, str) else m["topic"] for m in client.heard()]


AWAITED = {
    *("presence", "presence_many", "set_typing", "create_room", "update_room", "delete_room"),
    *("join", "leave", "leave_all", "invite", "revoke_invite", "set_role", "ban", "unban"),
    *("kick", "kick_user_from_room", "members", "room", "rooms", "broadcast", "broadcast_room"),
    *("broadcast_text", "send_to_conn", "send_text_to_conn", "send_to_user", "send_to_users"),
    *("broadcast_with_filter", "emit_to_room", "emit_to_room_except", "emit_with_ack"),
    *("request", "disconnect_user", "disconnect_conn", "shutdown"),
}
PLAIN = {
    *("on_connect", "on_disconnect", "on_message", "on_error", "on_join", "on_leave"),
    *("remove_hook", "connection", "connections", "connection_ids", "users", "set_meta"),
    *("get_meta", "find_by_tag", "user_connections", "use", "handle", "pending_acks"),
    *("on_send_failure", "on_queue_full", "on_user_offline", "on_connection_error"),
    *("on_timeout", "stats", "reset_stats"),
}


@pytest.mark.parametrize("name", sorted(AWAITED | PLAIN))
def test_what_the_api_awaits_is_a_coroutine_function_and_the_rest_is_plain(name):
    assert inspect.iscoroutinefunction(getattr(Hub, name)) is (name in AWAITED)


# --- rooms


async def test_a_room_from_its_making_to_its_end(hub, ada):
    made = await hub.create_room("r", RoomOptions(policy=RoomPolicy.PRIVATE))
    changed = await hub.update_room("r", capacity=5)
    joined = await hub.join("r", ada.id, JoinOptions(role=RoomRole.ADMIN, force=True))

    assert (made.options.capacity, changed.options.capacity) == (None, 5)
    assert (joined.role, joined.members) == (RoomRole.ADMIN, 1)
    assert [(m.user_id, m.role) for m in await hub.members("r")] == [("ada", RoomRole.ADMIN)]
    assert (await hub.room("r")).members == 1
    assert await hub.rooms() == ["r"]

    await hub.delete_room("r")
    assert await hub.room("r") is None
    with pytest.raises(RoomNotFound):
        await hub.update_room("r", capacity=1)


async def test_leaving(hub, ada, room):
    await hub.join("other", ada.id)

    assert await hub.leave("r", ada.id) is True
    assert await hub.leave("r", ada.id) is False
    assert await hub.leave_all(ada.id) == 1


async def test_who_may_come_and_who_has_to_go(node, hub, ada, room):
    await hub.invite("secret", "ada", by="bob")
    assert node.logger.fields("invited") == {"room": "secret", "user_id": "ada", "by": "bob"}
    await hub.revoke_invite("secret", "ada")
    await hub.set_role("r", "ada", RoomRole.MODERATOR)
    assert {m.role for m in await hub.members("r")} == {RoomRole.MODERATOR, RoomRole.MEMBER}

    assert await hub.kick_user_from_room("ada", "r", "spam") == 1
    assert topics(ada) == ["system:kicked"]
    await hub.join("r", ada.id)
    assert await hub.kick("r", "ada", "spam") == 1
    assert topics(ada) == ["system:kicked"]
    await hub.ban("r", "bob", duration=60)
    await hub.unban("r", "bob")
    assert await hub.members("r") == []


# --- presence


async def test_presence(hub, ada, room):
    await hub.set_typing("ada", "r", ttl=5)

    state = await hub.presence("ada")
    assert (state.online, state.connections, set(state.typing)) == (True, 1, {"r"})
    many = await hub.presence_many(["ada", "nobody"])
    assert {user: found.online for user, found in many.items()} == {"ada": True, "nobody": False}


# --- messages to many


async def test_a_fan_out_returns_how_many_of_this_node_were_meant(hub, ada, bob, room):
    """The sender too, if it is a member."""
    assert await hub.broadcast("all") == 2
    assert await hub.broadcast_room("r", "room") == 2
    assert await hub.broadcast_text("text") == 2
    assert await hub.emit_to_room("r", Message("emit")) == 2
    assert await hub.emit_to_room_except("r", [ada.id], Message("others")) == 1
    assert await hub.emit_to_room_except("r", ada.id, Message("others too")) == 1
    assert await hub.broadcast_with_filter(Message("vips"), lambda meta: "vip" in meta.tags) == 1
    assert await hub.broadcast_with_filter(Message("where"), Where(roles={"editor"})) == 1

    assert topics(ada) == ["all", "room", "text", "emit", "vips", "where"]
    assert topics(bob) == ["all", "room", "text", "emit", "others", "others too"]


ACKED = SendOptions(require_ack=True)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda hub, ada: hub.emit_to_room("r", Message("t"), ACKED), 2),
        (lambda hub, ada: hub.emit_to_room_except("r", ada.id, Message("t"), ACKED), 1),
        (lambda hub, ada: hub.broadcast_with_filter(Message("t"), Where(tags={"vip"}), ACKED), 1),
    ],
)
async def test_with_require_ack_a_fan_out_waits_for_the_acks(
    node, hub, ada, bob, room, call, meant
):
    task = asyncio.ensure_future(call(hub, ada))
    await settle()
    assert not task.done()

    for client in (ada, bob):
        for message in client.heard():
            client.ack(message)
    assert await task == meant


# --- messages to some


async def test_sending_by_name(hub, ada, bob):
    assert (await hub.send_to_conn(ada.id, "a")).status is DeliveryStatus.OK
    assert (await hub.send_text_to_conn(ada.id, "b")).status is DeliveryStatus.OK
    assert (await hub.deliver(ada.id, Message("c"))).status is DeliveryStatus.OK
    assert (await hub.send_to_user("ada", Message("d"))).success == 1
    assert (await hub.send_to_users(["ada", "bob", "nobody"], Message("e"))).total == 3

    assert topics(ada) == ["a", "b", "c", "d", "e"]
    assert topics(bob) == ["e"]


async def test_asking(hub, ada):
    task = asyncio.ensure_future(hub.request(ada.id, Message("ask"), timeout=1))
    await settle()
    assert [p.message.topic for p in hub.pending_acks(ada.id)] == ["ask"]
    ada.ack(ada.heard()[0], {"yes": True})
    assert await task == {"yes": True}

    task = asyncio.ensure_future(
        hub.emit_with_ack(Target.user("ada"), Message("ask"), AckOptions(timeout=1))
    )
    await settle()
    ada.ack(ada.heard()[0])
    assert (await task).received == 1


async def test_a_question_needs_time(hub, ada):
    with pytest.raises(ValueError, match="timeout"):
        await hub.request(ada.id, Message("ask"), timeout=0)


# --- operations


async def test_disconnecting(node, hub, ada):
    phone = await node.connect("ada")
    bob = await node.connect("bob")

    assert await hub.disconnect_user("ada") == 2
    assert await hub.disconnect_conn(bob.id, "server_shutdown") is True
    assert await hub.disconnect_conn(bob.id) is False

    assert (ada.closed, phone.closed) == (DisconnectReason.DISCONNECTED,) * 2
    assert bob.closed is DisconnectReason.SERVER_SHUTDOWN


async def test_an_unknown_reason_is_a_mistake(hub, ada):
    with pytest.raises(ValueError, match="bored"):
        await hub.disconnect_conn(ada.id, "bored")
    assert ada.conn.is_open


async def test_shutdown_is_the_server_s_affair(node, hub):
    with pytest.raises(Misuse):
        await hub.shutdown()

    asked = []

    async def stop(timeout):
        asked.append(timeout)

    hub._attach(node.parts, stop)
    await hub.shutdown(timeout=3)
    assert asked == [3.0]


async def test_it_knows_its_node(node, hub):
    assert hub.node_id == "n1"
    assert hub.logger is node.logger
