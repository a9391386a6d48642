"""What a client may ask of the server itself (protocol.md, "Reserved topics").

A command runs like a handler, in the lane of its connection: what it returns stands in
the ack, and what it raises is the refusal.

Rule of this file: after each wait a command looks again whether the connection is open,
whose it is, and what it is in the room. One that has ended does nothing more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from eyewall.application.connections.registry import Connections
from eyewall.application.dispatch.command_fields import (
    MAX_USERS,
    beginning_of,
    check_member,
    check_speaker,
    field_of,
    object_of,
    positions_of,
    raw_object,
    rfc3339,
    room_of,
    since_of,
    users_of,
    values_of,
)
from eyewall.application.dispatch.router import Router
from eyewall.application.dispatch.token_refresh import TokenRefresh
from eyewall.application.hub.hub import Context
from eyewall.application.lifecycle.resume import Resumed, Resumer
from eyewall.application.outbound.broadcast import FanOut
from eyewall.application.rooms.history import RoomHistory, encoded
from eyewall.application.rooms.membership import MAX_ROOMS, RoomMembership, TooManyRooms
from eyewall.application.rooms.moderation import RoomAdmin
from eyewall.application.rooms.presence import MAX_TYPING, Presences
from eyewall.application.rooms.publisher import Publisher
from eyewall.domain.commands import COMMANDS, switched_off
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import MAX_FIELD, REFRESH, RESUME, ROOM, SYSTEM, Envelope, Message
from eyewall.domain.errors import Unauthorized, ValidationError
from eyewall.domain.identity import RoomId
from eyewall.domain.membership import Member
from eyewall.domain.presence import PresenceState

RESERVED = frozenset({"ack", "error", "join", "leave", "typing", "gap"})
"""Events that only the server sends: no client speaks in its name."""


MAX_PAGE = 1000
"""Members or messages in one answer; the next question gives the rest. Of members some
100 KiB, which go out in one message."""


PAGE = 100
"""Messages in one answer where the client names no limit: a few screens full."""


MAX_PAGE_BYTES = 1 << 20
"""Bytes of messages in one answer, but for a larger one: as one message is let in by
default, and an eighth of the queue that the answer has to pass."""


class Commands:
    """The ``system:`` requests."""

    def __init__(
        self,
        *,
        connections: Connections,
        rooms: RoomMembership,
        room_admin: RoomAdmin,
        presences: Presences,
        fanout: FanOut,
        publisher: Publisher,
        room_history: RoomHistory,
        resumer: Resumer,
        token_refresh: TokenRefresh,
    ) -> None:
        self._connections = connections
        self._rooms = rooms
        self._room_admin = room_admin
        self._presences = presences
        self._fanout = fanout
        self._publisher = publisher
        self._room_history = room_history
        self._resumer = resumer
        self._token_refresh = token_refresh

    def register(self, router: Router, on: Collection[str]) -> None:
        """Put the commands that are ``on`` into the route table; some are there in any case."""
        router.add_command(REFRESH, self._token_refresh.refresh)
        router.add_command(RESUME, self.resume)
        for name in COMMANDS:
            if name in on:
                router.add_command(f"{SYSTEM}{name}", getattr(self, name))
            else:
                router.miss(f"{SYSTEM}{name}", switched_off(name))

    # --- rooms

    async def join(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Let the connection in; with ``since`` it is sent first what the room keeps."""
        data = object_of(msg)
        room_id, since = room_of(data), beginning_of(data)
        recovered: bool | None = None
        try:
            if since is None:
                membership = await self._rooms.join(room_id, ctx.conn, admit=ctx.admit_again)
            else:
                membership, recovered = await self._resumer.join(
                    room_id, ctx.conn, since, ctx.admit_again
                )
        except TooManyRooms:
            # A limit on the protocol (protocol.md, "Close codes"), not on the room.
            self._connections.end(ctx.conn, DisconnectReason.POLICY_VIOLATION)
            raise
        answer: dict[str, Any] = {
            "room": room_id,
            "role": membership.role.wire,
            "members": membership.members,
        }
        if membership.epoch is not None:
            answer |= {"epoch": membership.epoch, "offset": membership.offset}
        if recovered is not None:
            answer["recovered"] = recovered
        return answer

    async def leave(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        room_id = room_of(object_of(msg))
        await self._rooms.leave(room_id, ctx.conn)
        return {"room": room_id}

    async def publish(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Relay ``data`` to the room as it came, byte for byte.

        What nobody can hold, such as ``1e999``, is refused: it would fail for every member.
        """
        fields = raw_object(msg)
        data = values_of(fields, "room", "event")
        room_id = room_of(data)
        await self._settled(ctx, room_id)
        check_speaker(ctx.conn, room_id)
        event = data.get("event")
        if event is not None and (not isinstance(event, str) or not event):
            raise ValidationError({"event": ["must be a string"]})
        if event is not None and len(event) > MAX_FIELD:
            raise ValidationError({"event": [f"must be at most {MAX_FIELD} characters"]})
        if event in RESERVED:
            raise ValidationError({"event": [f"{event} is the server's own"]})
        message = Message(f"{ROOM}{room_id}", event or "message", fields.get("data"))
        await self._fanout.ready()
        # Nothing waits between this look and the sending: there is room for the message.
        self._check_speaker(ctx, room_id)
        if self._publisher.is_plain(room_id):
            return {"room": room_id, "delivered": await self._fanout.to_room(room_id, message)}
        look = partial(self._check_speaker, ctx, room_id)
        done = await self._publisher.publish(room_id, message, look=look)
        answer: dict[str, Any] = {"room": room_id, "delivered": done.delivered}
        if done.position is not None:
            answer |= {"epoch": done.position.epoch, "offset": done.position.offset}
        return answer

    async def members(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """A page of members; the cursor is the number of those before it."""
        data = object_of(msg)
        room_id = await self._readable(ctx, data)
        limit = min(field_of(data, "limit", int, MAX_PAGE), MAX_PAGE)
        cursor = field_of(data, "cursor", str, "0")
        if limit < 1:
            raise ValidationError({"limit": ["must be at least 1"]})
        if not cursor.isdecimal() or len(cursor) > 9:
            raise ValidationError({"cursor": ["is not one of ours"]})
        start = int(cursor)
        found = await self._room_admin.members(room_id)
        await self._readable(ctx, data)
        answer: dict[str, Any] = {"members": [_member(m) for m in found[start : start + limit]]}
        if start + limit < len(found):
            answer["cursor"] = str(start + limit)
        return answer

    async def history(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """A page of messages; none, without a position, where the room keeps none."""
        data = object_of(msg)
        room_id = await self._readable(ctx, data)
        since, limit = since_of(data), min(field_of(data, "limit", int, PAGE), MAX_PAGE)
        if limit < 1:
            raise ValidationError({"limit": ["must be at least 1"]})
        page = await self._room_history.read(room_id, since, limit)
        await self._readable(ctx, data)
        if page is None:
            return {"messages": []}
        found = encoded(
            room_id,
            page,
            ctx.conn.id,
            MAX_PAGE_BYTES,
            newest=since is None,
            fits=self._room_history.is_readable,
        )
        return {
            "messages": [self._room_history.raw(payload) for payload in found],
            "epoch": page.position.epoch,
            "offset": page.position.offset,
        }

    async def resume(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Bring the connection back into its rooms, and send what it missed."""
        data = object_of(msg)
        name = data.get("session")
        if name is not None and not isinstance(name, str):
            raise ValidationError({"session": ["must be a string"]})
        wanted = positions_of(data, MAX_ROOMS)
        try:
            done = await self._resumer.resume(ctx.conn, name, wanted, ctx.admit_again)
        except TooManyRooms:
            self._connections.end(ctx.conn, DisconnectReason.POLICY_VIOLATION)
            raise
        return {"rooms": {room_id: _resumed(resumed) for room_id, resumed in done.items()}}

    # --- presence

    async def presence(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        data = object_of(msg)
        if "room" in data:
            found = await self._room_admin.members(await self._readable(ctx, data))
            users = [m.user_id for m in found if m.user_id is not None][:MAX_USERS]
        else:
            users = users_of(data)
        states = await self._presences.of(users)
        if "room" in data:
            await self._readable(ctx, data)
        return {"users": {user: _presence(state) for user, state in states.items()}}

    async def typing(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        data = object_of(msg)
        room_id = room_of(data)
        await self._settled(ctx, room_id)
        self._check_speaker(ctx, room_id)
        if ctx.user_id is None:
            raise Unauthorized("typing needs a user")
        typing = field_of(data, "typing", bool, None)
        ttl = data.get("ttl", 5.0)
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl <= MAX_TYPING:
            raise ValidationError({"ttl": [f"must be more than 0 and at most {MAX_TYPING:g}"]})
        await self._presences.set_typing(ctx.user_id, room_id, typing, float(ttl))
        return {}

    # --- who asks

    async def _readable(self, ctx: Context, data: Mapping[str, Any]) -> RoomId:
        """The room that ``data`` names, if it is the connection's to look into now."""
        room_id = room_of(data)
        await self._settled(ctx, room_id)
        ctx.check_owner()
        check_member(ctx.conn, room_id)
        return room_id

    async def _settled(self, ctx: Context, room_id: RoomId) -> None:
        """Where the connection has just become another user's: wait for the word on whether
        that one is in the room."""
        if ctx.owner is None:
            ctx.owner = ctx.meta
        if self._rooms.moving:
            await self._rooms.settle(room_id, ctx.conn)

    def _check_speaker(self, ctx: Context, room_id: RoomId) -> None:
        ctx.check_owner()
        check_speaker(ctx.conn, room_id)
        if self._rooms.moving and room_id in self._rooms.unsettled(ctx.conn):
            raise Unauthorized("who asks this has changed meanwhile: ask again")


# --- writing what a client reads


def _member(member: Member) -> dict[str, Any]:
    return {
        "user_id": member.user_id,
        "role": member.role.wire,
        "connections": member.connections,
    }


def _resumed(resumed: Resumed) -> dict[str, Any]:
    answer: dict[str, Any] = {"recovered": resumed.recovered}
    if resumed.position is not None:
        answer |= {"epoch": resumed.position.epoch, "offset": resumed.position.offset}
    if resumed.code is not None:
        answer["code"] = resumed.code
    return answer


def _presence(state: PresenceState) -> dict[str, Any]:
    seen = state.last_seen
    return {
        "online": state.online,
        "connections": state.connections,
        "last_seen": None if seen is None else rfc3339(seen),
    }
