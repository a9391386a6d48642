"""api.md: the hooks of connections, messages, rooms and errors."""

from __future__ import annotations

import asyncio

import pytest

from eyewall import (
    ConnMeta,
    DisconnectReason,
    Forbidden,
    Server,
    UserId,
)
from tests.entrypoints.wire import (
    TEXT,
    eventually,
    frame,
    peer,
    raw_peer,
    running,
)

ADA = UserId("ada")


def known(handshake) -> ConnMeta:
    return ConnMeta(user_id=ADA)


HOOKS = """
    on_connect on_disconnect on_message on_error on_join on_leave
    on_send_failure on_queue_full on_user_offline on_connection_error on_timeout
"""


async def test_hooks_run_at_connect_and_disconnect_with_what_was():
    server = Server(authenticator=known)
    seen = []

    @server.hub.on_connect
    async def connected(conn):
        await server.hub.join("lobby", conn.id)
        seen.append(("connect", conn.user_id))

    @server.hub.on_connect
    def plain(conn):
        seen.append(("plain", conn.user_id))

    @server.hub.on_disconnect
    async def gone(conn, reason):
        seen.append((reason, conn.meta.user_id, conn.rooms))
        seen.append((server.hub.connection_ids(), await server.hub.members("lobby")))

    async with running(server), peer(server) as client:
        await client.before_fence()

    assert seen == [
        ("connect", "ada"),
        ("plain", "ada"),
        (DisconnectReason.CLIENT_CLOSED, "ada", frozenset({"lobby"})),
        ([], []),
    ]


async def test_reading_begins_when_the_connect_hooks_have_ended():
    """A slow hook delays only its own connection."""
    server = Server()
    slow, go_on, order = [], asyncio.Event(), []

    @server.hub.on_connect
    async def hook(conn):
        if not slow:
            slow.append(conn.id)
            await go_on.wait()
        order.append("hook")

    @server.on("hello")
    async def hello(ctx, msg):
        order.append(msg.data)

    async with running(server), peer(server) as first:
        await first.send("hello", "first")
        async with peer(server) as second:
            await second.request("hello", "second")
        assert order == ["hook", "second"]
        go_on.set()
        await first.before_fence()

    assert order == ["hook", "second", "hook", "first"]


async def test_a_refused_connection_gets_its_disconnect_once():
    server = Server()
    seen = []

    @server.hub.on_connect
    def first(conn):
        seen.append("first")

    @server.hub.on_connect
    async def refuse(conn):
        raise Forbidden("no")

    @server.hub.on_connect
    def third(conn):
        seen.append("third")

    server.hub.on_disconnect(lambda conn, reason: seen.append(reason))
    async with running(server), peer(server) as client:
        assert await client.closed() == (1008, "policy_violation")
        assert server.hub.connection_ids() == []

    assert seen == ["first", DisconnectReason.POLICY_VIOLATION]


async def test_on_message_sees_text_and_binary_before_it_is_decoded():
    """Whatever it holds, also what is no envelope."""
    server = Server()
    seen = []

    @server.hub.on_message
    def see(conn, raw):
        seen.append(raw)

    async with running(server), peer(server) as client:
        await client.send_text("no json ☕")
        await client.send_text(b"\xff\x00")
        assert (await client.receive())["data"]["code"] == "invalid_json"
        assert (await client.receive())["data"]["code"] == "unsupported_data"

    assert seen == ["no json ☕", b"\xff\x00"]


@pytest.mark.parametrize("plain", [True, False])
async def test_a_hook_that_returns_true_has_taken_the_message(plain):
    """So that an application with a format of its own needs no envelopes."""
    server = Server()
    handled, second = [], []

    def shout(conn, raw):
        return raw == "mine"

    async def shout_async(conn, raw):
        await conn.send_raw("taken")
        return shout(conn, raw)

    server.hub.on_message(shout if plain else shout_async)
    server.hub.on_message(lambda conn, raw: second.append(raw))
    server.handle("*", lambda ctx, msg: handled.append(msg.topic))
    async with running(server), peer(server) as client:
        await client.send_text("mine")
        await client.send("other")
        await client.socket.send("mine")
        await client.send("last", id="x", ack=True)
        while (answer := await client.receive_frame()) == "taken":
            pass

        assert '"x"' in answer

    assert handled == ["other", "last"]
    assert "mine" not in second


@pytest.mark.parametrize("result", [None, False, 1, "yes"])
async def test_only_true_takes_a_message(result):
    server = Server()
    server.hub.on_message(lambda conn, raw: result)
    server.handle("a", lambda ctx, msg: {"ok": 1})
    async with running(server), peer(server) as client:
        assert (await client.request("a"))["ok"] == 1


async def test_on_error_sees_what_a_handler_raised():
    server = Server()
    seen = []

    @server.hub.on_error
    async def see(conn, error):
        seen.append((conn.id, error))

    @server.on("crash")
    async def crash(ctx, msg):
        raise ZeroDivisionError("by hand")

    async with running(server), peer(server) as client:
        await client.refused("crash")
        await eventually(lambda: seen)

        assert seen[0][0] == client.conn_id
        assert isinstance(seen[0][1], ZeroDivisionError)


async def test_on_error_sees_what_went_wrong_with_a_connection():
    server = Server()
    seen = []
    server.hub.on_error(lambda conn, error: seen.append(error))
    async with running(server), raw_peer(server) as client:
        await client.write(frame(TEXT, b"{}", mask=False))
        await client.read_frame()

        await eventually(lambda: seen)
        assert isinstance(seen[0], Exception)


async def test_a_hook_that_raises_harms_nobody_else():
    server = Server()
    seen = []

    def broken(*args):
        raise RuntimeError("broken hook")

    server.hub.on_disconnect(broken)
    server.hub.on_disconnect(lambda conn, reason: seen.append(reason))
    server.hub.on_join(broken)
    server.hub.on_leave(broken)
    server.hub.on_error(broken)
    async with running(server):
        async with peer(server) as client:
            await server.hub.join("r", client.conn_id)
            assert await server.hub.leave("r", client.conn_id) is True
            await client.before_fence()
        await eventually(lambda: seen)


@pytest.mark.parametrize("name", HOOKS.split())
def test_every_registration_works_as_a_decorator_and_returns_the_hook(name):
    hub = Server().hub

    @getattr(hub, name)
    def hook(*args):
        """Nothing to do."""

    assert callable(hook)
    hub.remove_hook(hook)


async def test_a_hook_can_be_removed():
    server = Server()
    seen = []

    @server.hub.on_connect
    def hook(conn):
        seen.append(conn.id)

    server.hub.remove_hook(hook)
    async with running(server), peer(server) as client:
        await client.before_fence()

    assert seen == []


async def test_joins_and_leaves_come_in_pairs_with_their_reason():
    server = Server(authenticator=known)
    seen = []

    @server.hub.on_join
    async def joined(room_id, conn):
        seen.append((room_id, "join"))

    @server.hub.on_leave
    async def left(room_id, conn, reason):
        seen.append((room_id, reason))

    async with running(server):
        async with peer(server) as client:
            for room in ("left", "kicked", "banned", "deleted", "disconnected"):
                await server.hub.join(room, client.conn_id)
                await server.hub.join(room, client.conn_id)
            await server.hub.leave("left", client.conn_id)
            await server.hub.kick_user_from_room(ADA, "kicked")
            await server.hub.ban("banned", ADA)
            await server.hub.delete_room("deleted")
            await eventually(lambda: len(seen) == 9)
        await eventually(lambda: len(seen) == 10)

    rooms = ("left", "kicked", "banned", "deleted", "disconnected")
    assert seen == [*((r, "join") for r in rooms), *((r, r) for r in rooms)]
