"""The server's own requests, ``system:*`` (protocol.md, "Reserved topics").

A command runs like a handler, in the lane of its connection: its result is the data of the
ack, and the error that it raises is the refusal.

Rule of this file: after each wait a command checks again that the connection is open, has the
same owner, and has its role in the room. For an ended connection it does nothing.
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
from eyewall.application.rooms.history import RoomHistory, encode_page
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
"""Events that only the server sends: a client may not publish them."""


MAX_PAGE = 1000
"""Most members or messages in one answer; the next request gets the rest. That many members
are some 100 KiB in one message."""


DEFAULT_PAGE = 100
"""Messages in one answer if the client names no limit: a few screens full."""


MAX_PAGE_BYTES = 1 << 20
"""Most bytes of messages in one answer, a larger single message excepted: the default limit of
one message, and an eighth of the queue through which the answer has to pass."""


class Commands:
    """The handlers of the ``system:`` requests. Each returns the data of its ack, and raises
    ``ValidationError`` for fields that are not valid."""

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
        """Add the commands in ``on`` to the router; ``refresh`` and ``resume`` are always
        added."""
        router.add_command(REFRESH, self._token_refresh.refresh)
        router.add_command(RESUME, self.resume)
        for name in COMMANDS:
            if name in on:
                router.add_command(f"{SYSTEM}{name}", getattr(self, name))
            else:
                router.miss(f"{SYSTEM}{name}", switched_off(name))

    # --- rooms

    async def join(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Add the connection to a room; with ``since`` the room's history is sent to it first.

        Raises what ``RoomMembership.join`` raises. ``TooManyRooms`` closes the connection.
        """
        data = object_of(msg)
        room_id, since = room_of(data), beginning_of(data)
        recovered: bool | None = None
        try:
            if since is None:
                membership = await self._rooms.join(room_id, ctx.conn, precheck=ctx.authorize_again)
            else:
                membership, recovered = await self._resumer.join(
                    room_id, ctx.conn, since, ctx.authorize_again
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
        """Remove the connection from a room; nothing changes if it is not in."""
        room_id = room_of(object_of(msg))
        await self._rooms.leave(room_id, ctx.conn)
        return {"room": room_id}

    async def publish(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Publish ``data`` to a room, byte for byte as it was received.

        Raises ``NotAMember``, ``Forbidden`` for a guest, and ``InvalidEnvelope`` for values such
        as ``1e999``, which the members could not decode.
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
        # Nothing is awaited between this check and the sending.
        self._check_speaker(ctx, room_id)
        if self._publisher.is_plain(room_id):
            return {"room": room_id, "delivered": await self._fanout.to_room(room_id, message)}
        check_again = partial(self._check_speaker, ctx, room_id)
        done = await self._publisher.publish(room_id, message, before_append=check_again)
        answer: dict[str, Any] = {"room": room_id, "delivered": done.delivered}
        if done.position is not None:
            answer |= {"epoch": done.position.epoch, "offset": done.position.offset}
        return answer

    async def members(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Return a page of members; the cursor is the number of members before it."""
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
        """Return a page of messages; without messages and position if the room keeps no
        history."""
        data = object_of(msg)
        room_id = await self._readable(ctx, data)
        since, limit = since_of(data), min(field_of(data, "limit", int, DEFAULT_PAGE), MAX_PAGE)
        if limit < 1:
            raise ValidationError({"limit": ["must be at least 1"]})
        page = await self._room_history.read(room_id, since, limit)
        await self._readable(ctx, data)
        if page is None:
            return {"messages": []}
        found = encode_page(
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
        """Resume the session: rejoin its rooms and send the missed messages."""
        data = object_of(msg)
        name = data.get("session")
        if name is not None and not isinstance(name, str):
            raise ValidationError({"session": ["must be a string"]})
        wanted = positions_of(data, MAX_ROOMS)
        try:
            done = await self._resumer.resume(ctx.conn, name, wanted, ctx.authorize_again)
        except TooManyRooms:
            self._connections.end(ctx.conn, DisconnectReason.POLICY_VIOLATION)
            raise
        return {"rooms": {room_id: _resumed(resumed) for room_id, resumed in done.items()}}

    # --- presence

    async def presence(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Return the presence of the named users, or of the members of a room."""
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
        """Tell the room that the user types, for ``ttl`` seconds, or has stopped."""
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

    # --- the owner and its role

    async def _readable(self, ctx: Context, data: Mapping[str, Any]) -> RoomId:
        """Return the room of ``data``; raises unless the connection is a member of it now."""
        room_id = room_of(data)
        await self._settled(ctx, room_id)
        ctx.check_owner()
        check_member(ctx.conn, room_id)
        return room_id

    async def _settled(self, ctx: Context, room_id: RoomId) -> None:
        """Wait for a pending change of the connection's user: whether the new user is in the
        room is decided then."""
        if ctx.owner is None:
            ctx.owner = ctx.meta
        if self._rooms.moving:
            await self._rooms.settle(room_id, ctx.conn)

    def _check_speaker(self, ctx: Context, room_id: RoomId) -> None:
        ctx.check_owner()
        check_speaker(ctx.conn, room_id)
        if self._rooms.moving and room_id in self._rooms.rooms_to_settle(ctx.conn):
            raise Unauthorized("who asks this has changed meanwhile: ask again")


# --- encoding answers


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
