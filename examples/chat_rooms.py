"""Chat rooms: enter, talk, list the members, and read the last messages.

    python examples/chat_rooms.py
    python -m websockets "ws://localhost:8080/ws?name=ada"

The second line, in another window, is a client. Type:

    {"topic": "chat:enter", "data": {"room": "tea"}, "ack": true, "id": "1"}
    {"topic": "chat:say", "data": {"room": "tea", "text": "hello"}}
    {"topic": "chat:who", "data": {"room": "tea"}, "ack": true, "id": "2"}
    {"topic": "chat:leave", "data": {"room": "tea"}, "ack": true, "id": "3"}
"""

import os
from dataclasses import dataclass
from typing import Any

from eyewall import ConnMeta, Context, Envelope, Handshake, NotAMember, RoomOptions, Server, UserId

ROOMS = ("tea", "coffee")


def by_name(handshake: Handshake) -> ConnMeta | None:
    """Accept any name: good enough for an example. None refuses the client."""
    name = handshake.query.get("name")
    return ConnMeta(user_id=UserId(name)) if name else None


# Without implicit rooms there are only those that the server makes.
server = Server(authenticator=by_name, implicit_rooms=False)


@server.on_startup
async def open_rooms() -> None:
    for room in ROOMS:
        # Members are told who comes and goes; the newest 50 messages are kept.
        await server.hub.create_room(room, RoomOptions(announce=True, history_size=50))


@dataclass
class InRoom:
    room: str


@dataclass
class Say:
    room: str
    text: str


@server.on("chat:enter")
async def enter(ctx: Context, msg: Envelope[InRoom]) -> dict[str, Any]:
    membership = await ctx.hub.join(msg.data.room, ctx.conn.id)  # may raise RoomNotFound
    said = await ctx.hub.history(msg.data.room, limit=10)
    return {"members": membership.members, "said": [message.data for message in said.messages]}


@server.on("chat:say")
async def say(ctx: Context, msg: Envelope[Say]) -> None:
    room = msg.data.room
    if room not in ctx.conn.rooms:
        raise NotAMember(f"enter {room} first")
    data = {"from": ctx.user_id, "text": msg.data.text}
    await ctx.hub.broadcast_room(room, f"room:{room}", "message", data)


@server.on("chat:who")
async def who(ctx: Context, msg: Envelope[InRoom]) -> dict[str, Any]:
    return {"users": sorted(str(m.user_id) for m in await ctx.hub.members(msg.data.room))}


@server.on("chat:leave")
async def leave(ctx: Context, msg: Envelope[InRoom]) -> dict[str, Any]:
    return {"left": await ctx.hub.leave(msg.data.room, ctx.conn.id)}


if __name__ == "__main__":
    server.run(port=int(os.environ.get("PORT", "8080")))
