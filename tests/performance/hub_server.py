"""The hub as its users run it: the public API, and everything that is on by default.

Registry, rooms, stats and heartbeat are on, and beyond that an authenticator, an access
controller and two middleware, in every scenario alike.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from eyewall import CompressionConfig, ConnMeta, Context, Envelope, RoomRole, Server
from tests.performance.serving import die_with_parent, orders, say_ready, tls_context


def authenticate(handshake: Any) -> ConnMeta | None:
    user = handshake.query.get("user")
    return None if user is None else ConnMeta(user_id=user)


class Access:
    """Asked for every message and every join, and says yes."""

    def can_publish(self, meta: ConnMeta, topic: str, event: str) -> bool:
        return meta.user_id is not None

    def can_subscribe(self, meta: ConnMeta, room_id: str) -> bool:
        return meta.user_id is not None


async def outer(ctx: Context, msg: Envelope, next: Any) -> Any:
    return await next(ctx, msg)


async def inner(ctx: Context, msg: Envelope, next: Any) -> Any:
    return await next(ctx, msg)


def build(room_size: int, compression: CompressionConfig | None) -> Server:
    """Make a server whose users share rooms of ``room_size``; 0 means one room for all."""
    server = Server(authenticator=authenticate, access_controller=Access(), compression=compression)
    server.use(outer, inner)
    hub = server.hub

    def room_of(user: str | None) -> str:
        assert user is not None
        return f"room-{int(user[1:]) // room_size if room_size else 0}"

    @hub.on_connect
    async def join(conn: Any) -> None:
        await hub.join(room_of(conn.user_id), conn.id)

    @server.on("bench:ask")
    async def ask(ctx: Context, msg: Envelope) -> None:
        assert msg.data["text"]

    @server.on("chat:say")
    async def say(ctx: Context, msg: Envelope) -> None:
        data = {"from": ctx.user_id, "text": msg.data["text"]}
        await hub.broadcast_room(room_of(ctx.user_id), "chat:say", "message", data)

    return server


async def register_others(server: Server, number: int) -> None:
    """Make ``number`` rooms that nobody of the bench is in, and a moderator of each."""
    for i in range(number):
        await server.hub.create_room(f"other-{i:06}")
        await server.hub.set_role(f"other-{i:06}", f"stranger-{i:06}", RoomRole.MODERATOR)


async def main(arguments: argparse.Namespace) -> None:
    compression = None
    if arguments.compress_from is not None:
        compression = CompressionConfig(threshold=arguments.compress_from)
    server = build(arguments.room_size, compression)
    await server.start(port=0, ssl=tls_context(arguments.tls))
    await register_others(server, arguments.others)
    say_ready(server.port)
    async for order in orders():
        for data in order.payloads():
            await server.hub.broadcast_room("room-0", "bench:tick", "message", data)
    await server.shutdown(timeout=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--room-size", type=int, default=0)
    parser.add_argument("--tls", default="", metavar="FOLDER")
    parser.add_argument("--compress-from", type=int, metavar="BYTES")
    parser.add_argument("--others", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    die_with_parent()
    asyncio.run(main(arguments))
