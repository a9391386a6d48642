"""api.md: what a connection shows, and what it can do."""

from __future__ import annotations

import asyncio
import datetime

from eyewall import (
    ConnMeta,
    Server,
    UserId,
)
from tests.entrypoints.wire import (
    BINARY,
    TEXT,
    eventually,
    peer,
    peers,
    raw_peer,
    running,
)

ADA = UserId("ada")


def known(handshake) -> ConnMeta:
    return ConnMeta(user_id=ADA)


async def test_what_a_connection_shows():
    server = Server(authenticator=known)
    began = datetime.datetime.now(datetime.UTC)
    async with running(server), peer(server) as client:
        conn = server.hub.connection(client.conn_id)

        assert conn.id == client.conn_id
        assert conn.user_id == "ada"
        assert conn.meta == server.hub.get_meta(client.conn_id)
        assert conn.meta.user_id == "ada"
        assert conn.is_open is True
        assert conn.user_data == {}
        assert conn.rooms == frozenset()
        assert conn.connected_at.tzinfo is not None
        assert began <= conn.connected_at <= conn.last_activity

        await client.before_fence()
        await server.hub.join("r", conn.id)
        assert conn.rooms == frozenset({"r"})
        assert isinstance(conn.rooms, frozenset)
        assert conn.last_activity <= datetime.datetime.now(datetime.UTC)

    await eventually(lambda: not conn.is_open)


async def test_last_activity_moves_with_every_message():
    server = Server()
    async with running(server), peer(server) as client:
        conn = server.hub.connection(client.conn_id)
        before = conn.last_activity
        await asyncio.sleep(0.05)
        await client.before_fence()

        assert conn.last_activity > before


async def test_user_data_stays_with_the_connection():
    server = Server()

    @server.on("put")
    async def put(ctx, msg):
        ctx.conn.user_data["n"] = ctx.conn.user_data.get("n", 0) + 1
        return ctx.conn.user_data

    async with running(server), peers(server, 2) as (one, two):
        await one.request("put")
        assert (await one.request("put"))["n"] == 2
        assert (await two.request("put"))["n"] == 1


async def test_a_connection_sends_envelopes_and_frames_as_they_are():
    async with running() as server, raw_peer(server) as client:
        (conn,) = await eventually(lambda: list(server.hub.connections()))
        await conn.send("news", "flash", {"n": 1})
        await conn.send_raw("a text")
        await conn.send_raw(b"\x00bytes")

        envelope = await client.read_envelope()
        assert (envelope["topic"], envelope["event"], envelope["data"]) == (
            "news",
            "flash",
            {"n": 1},
        )
        text, binary = await client.read_frame(), await client.read_frame()
        assert (text.opcode, text.payload) == (TEXT, b"a text")
        assert (binary.opcode, binary.payload) == (BINARY, b"\x00bytes")


async def test_the_address_and_the_browser_are_known():
    headers = {"User-Agent": "Sail/1.0"}
    async with running() as server, peer(server, headers=headers, user_agent_header=None) as client:
        meta = server.hub.get_meta(client.conn_id)

        assert meta.ip == "127.0.0.1"
        assert meta.user_agent == "Sail/1.0"
