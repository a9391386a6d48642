"""The chat of ``eyewall serve``: a complete application on the public API.

This module has the payloads, the server and its handlers. ``visitors`` authenticates, ``room_list``
keeps the list of rooms up to date, ``pages`` and ``static`` are the web page.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from msgspec import Meta

from eyewall import (
    Context,
    Envelope,
    Message,
    NotAMember,
    RoomId,
    Routes,
    SendOptions,
    Server,
    Settings,
    UserId,
    UserOffline,
)
from eyewall.adapters.history import MemoryHistory
from eyewall.chat.pages import pages
from eyewall.chat.room_list import LOBBY, MAX_ROOM_BYTES, RoomList, open_room
from eyewall.chat.visitors import by_name
from eyewall.middleware import auth_required

__all__ = ["make_server", "pages"]

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(min_length=1, max_length=4000, pattern=r"\S")]


# The payloads. A payload that does not fit is refused before its handler runs.


@dataclass
class Create:
    room: Name


@dataclass
class Say:
    room: Name
    text: Text


@dataclass
class Private:
    to: Name
    text: Text


def make_server(settings: Settings | None = None, **overrides: Any) -> Server:
    """Return the server of the chat; ``overrides`` are keywords of ``Server``.

    ``settings`` are read from file and environment by default. Raises ``SettingsError``.
    """
    settings = settings or Settings.load()
    if settings.auth.kind == "none":
        overrides = {"authenticator": by_name} | overrides
    if settings.history.kind == "memory":
        overrides = {"history": MemoryHistory(max_room_bytes=MAX_ROOM_BYTES)} | overrides
    server = Server.from_settings(settings, **({"client_commands": True} | overrides))
    server.include(routes)
    room_list = RoomList(server.hub)

    @server.on_startup
    async def open_lobby() -> None:
        await open_room(server.hub, LOBBY)
        server.background(room_list.tell())
        server.background(room_list.sweep())

    return server


# The handlers. The result of a handler is sent in the ack to the request. Joining, leaving, typing
# and presence need no code: the hub has commands for them.

routes = Routes()
routes.use(auth_required())


@routes.on("chat:rooms")
async def rooms(ctx: Context, _msg: Envelope[Any]) -> dict[str, Any]:
    """Return the list of rooms, and send it to this connection whenever it changes."""
    return await RoomList.watch(ctx)


@routes.on("chat:create")
async def create(ctx: Context, msg: Envelope[Create]) -> dict[str, Any]:
    """Create a room unless it exists; returns its id. The page then joins it."""
    return {"room": await open_room(ctx.hub, msg.data.room)}


@routes.on("chat:say")
async def say(ctx: Context, msg: Envelope[Say]) -> None:
    """Broadcast a text to a room. The author is the user of the connection, not of the message.

    The room keeps the message: a client that joins later gets it with the join (``since``).

    Clients may publish to a room directly, but only under the topic ``room:<room>``: a
    ``chat:said`` always has its author from this handler.
    """
    room = RoomId(msg.data.room)
    if room not in ctx.conn.rooms:
        raise NotAMember(f"join {room} first")
    said = signed(ctx, msg.data.text) | {"room": room}
    await ctx.hub.broadcast_room(room, "chat:said", "message", said)


def one_recipient(ctx: Context, msg: Envelope[Any]) -> str:
    """Return the ordering key: messages to one recipient stay in order, and a slow recipient
    delays no other."""
    to = msg.data.get("to") if isinstance(msg.data, dict) else None
    return f"{ctx.conn.id} to {to}"


@routes.on("chat:private", ordering_key=one_recipient)
async def private(ctx: Context, msg: Envelope[Private]) -> dict[str, Any]:
    """Send a text to one user; returns how many of their connections have acked it."""
    to = UserId(msg.data.to)
    note = Message("chat:private", data=signed(ctx, msg.data.text) | {"to": to})
    report = await ctx.hub.send_to_user(to, note, SendOptions(require_ack=True))
    if report.success and ctx.user_id not in (None, to):
        await ctx.hub.send_to_user(ctx.user_id, note)  # for the sender's other windows
    offline = any(isinstance(r.error, UserOffline) for r in report.reports)
    return {"delivered": report.success, "online": not offline}


def signed(ctx: Context, text: str) -> dict[str, Any]:
    message = ctx.message
    return {"id": message.id, "from": ctx.user_id, "text": text, "at": datetime.now(UTC)}
