"""What a client may ask of the server itself (protocol.md, "Reserved topics").

A command runs like a handler, in the lane of its connection: what it returns stands in
the ack, and what it raises is the refusal.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from eyewall.application.connections import Connection, Connections
from eyewall.application.context import Context
from eyewall.application.expiry import Expiry
from eyewall.application.fanout import FanOut
from eyewall.application.histories import Histories, encoded
from eyewall.application.middleware import method
from eyewall.application.moderate import Moderator
from eyewall.application.ports import Authenticator
from eyewall.application.presences import MAX_TYPING, Presences
from eyewall.application.publish import Publisher
from eyewall.application.rooms import Rooms, TooManyRooms
from eyewall.application.routes import Router
from eyewall.application.send import rfc3339
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import ROOM, Envelope, Message, Raw
from eyewall.domain.errors import (
    ConnectionClosed,
    Forbidden,
    NotAMember,
    Unauthorized,
    ValidationError,
)
from eyewall.domain.handshake import Fields, Handshake, Headers
from eyewall.domain.history import Position, position_of
from eyewall.domain.identity import MAX_NAME, RoomId, UserId
from eyewall.domain.membership import Member
from eyewall.domain.presence import PresenceState
from eyewall.domain.room import RoomRole

T = TypeVar("T")

MAX_USERS = 1000
"""Users whose presence one command may ask for: a long list of friends, in one question to
the state."""
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
        rooms: Rooms,
        moderator: Moderator,
        presences: Presences,
        fanout: FanOut,
        publisher: Publisher,
        histories: Histories,
        expiry: Expiry,
        authenticator: Authenticator | None,
    ) -> None:
        self._connections = connections
        self._rooms = rooms
        self._moderator = moderator
        self._presences = presences
        self._fanout = fanout
        self._publisher = publisher
        self._histories = histories
        self._expiry = expiry
        self._authenticate = (
            None if authenticator is None else method(authenticator, "authenticate")
        )

    def register(self, router: Router, *, client_commands: bool) -> None:
        """Put the commands into the route table; some are there in any case."""
        router.add_command("system:refresh", self.refresh)
        if not client_commands:
            return
        router.add_command("system:join", self.join)
        router.add_command("system:leave", self.leave)
        router.add_command("system:publish", self.publish)
        router.add_command("system:members", self.members)
        router.add_command("system:history", self.history)
        router.add_command("system:presence", self.presence)
        router.add_command("system:typing", self.typing)

    # --- rooms

    async def join(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        room_id = _room(_object(msg))
        try:
            membership = await self._rooms.join(room_id, ctx.conn)
        except TooManyRooms:
            # A limit on the protocol (protocol.md, "Close codes"), not on the room.
            self._connections.end(ctx.conn, DisconnectReason.POLICY_VIOLATION)
            raise
        answer = {
            "room": room_id,
            "role": membership.role.wire,
            "members": membership.members,
        }
        if membership.epoch is not None:
            answer |= {"epoch": membership.epoch, "offset": membership.offset}
        return answer

    async def leave(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        room_id = _room(_object(msg))
        await self._rooms.leave(room_id, ctx.conn)
        return {"room": room_id}

    async def publish(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Relay ``data`` to the room as it came, byte for byte."""
        fields = _raw_object(msg)
        room_id = _room({"room": _decoded(fields, "room")})
        _speaker(ctx.conn, room_id)
        event = _decoded(fields, "event")
        if event is not None and (not isinstance(event, str) or not event):
            raise ValidationError({"event": ["must be a string"]})
        if event in RESERVED:
            raise ValidationError({"event": [f"{event} is the server's own"]})
        message = Message(f"{ROOM}{room_id}", event or "message", fields.get("data"))
        if self._publisher.is_plain(room_id):
            return {"room": room_id, "delivered": await self._fanout.to_room(room_id, message)}
        done = await self._publisher.publish(room_id, message)
        answer: dict[str, Any] = {"room": room_id, "delivered": done.delivered}
        if done.position is not None:
            answer |= {"epoch": done.position.epoch, "offset": done.position.offset}
        return answer

    async def members(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """A page of members; the cursor is the number of those before it."""
        data = _object(msg)
        room_id = _room(data)
        if room_id not in ctx.conn.roles:
            raise NotAMember(f"you are not in {room_id}")
        limit = min(_field(data, "limit", int, MAX_PAGE), MAX_PAGE)
        cursor = _field(data, "cursor", str, "0")
        if limit < 1:
            raise ValidationError({"limit": ["must be at least 1"]})
        if not cursor.isdecimal() or len(cursor) > 9:
            raise ValidationError({"cursor": ["is not one of ours"]})
        start = int(cursor)
        found = await self._moderator.members(room_id)
        answer: dict[str, Any] = {"members": [_member(m) for m in found[start : start + limit]]}
        if start + limit < len(found):
            answer["cursor"] = str(start + limit)
        return answer

    async def history(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """A page of messages; none, without a position, where the room keeps none."""
        data = _object(msg)
        room_id = _room(data)
        if room_id not in ctx.conn.roles:
            raise NotAMember(f"you are not in {room_id}")
        since, limit = _since(data), min(_field(data, "limit", int, PAGE), MAX_PAGE)
        if limit < 1:
            raise ValidationError({"limit": ["must be at least 1"]})
        page = await self._histories.read(room_id, since, limit)
        if page is None:
            return {"messages": []}
        found = encoded(room_id, page, ctx.conn.id, MAX_PAGE_BYTES, newest=since is None)
        return {
            "messages": [self._histories.raw(payload) for payload in found],
            "epoch": page.position.epoch,
            "offset": page.position.offset,
        }

    # --- presence

    async def presence(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        data = _object(msg)
        if "room" in data:
            room_id = _room(data)
            if room_id not in ctx.conn.roles:
                raise NotAMember(f"you are not in {room_id}")
            found = await self._moderator.members(room_id)
            users = [m.user_id for m in found if m.user_id is not None][:MAX_USERS]
        else:
            users = _users(data)
        states = await self._presences.of(users)
        return {"users": {user: _presence(state) for user, state in states.items()}}

    async def typing(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        data = _object(msg)
        room_id = _room(data)
        _speaker(ctx.conn, room_id)
        if ctx.user_id is None:
            raise Unauthorized("typing needs a user")
        typing = _field(data, "typing", bool, None)
        ttl = data.get("ttl", 5.0)
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl <= MAX_TYPING:
            raise ValidationError({"ttl": [f"must be more than 0 and at most {MAX_TYPING:g}"]})
        await self._presences.set_typing(ctx.user_id, room_id, typing, float(ttl))
        return {}

    # --- credentials

    async def refresh(self, ctx: Context, msg: Envelope[Any]) -> dict[str, Any]:
        """Take a new token for a connection whose token is about to expire."""
        token = _field(_object(msg), "token", str, None)
        if self._authenticate is None:
            raise Unauthorized("there is nothing to refresh")
        meta = self._authenticate(
            Handshake(
                query=Fields({"token": token}),
                headers=Headers({"Authorization": f"Bearer {token}"}),
                ip=ctx.meta.ip,
            )
        )
        if inspect.isawaitable(meta):
            meta = await meta
        if meta is None:
            raise Unauthorized("the token is not valid")
        if meta.user_id != ctx.user_id:
            raise Forbidden("the token is another user's")
        if not ctx.conn.is_open:
            raise ConnectionClosed("it ended meanwhile")
        self._connections.set_meta(ctx.conn, {"expires_at": meta.expires_at, "roles": meta.roles})
        self._expiry.watch(ctx.conn)
        return {"expires_at": None if meta.expires_at is None else rfc3339(meta.expires_at)}


# --- reading what a client wrote


def _object(msg: Envelope[Any]) -> dict[str, Any]:
    if not isinstance(msg.data, dict):
        raise ValidationError({"_schema": ["must be an object"]})
    return msg.data


def _raw_object(msg: Envelope[Any]) -> Mapping[str, Raw]:
    """The fields of ``data`` without decoding their values."""
    if msg.raw is None:
        raise ValidationError({"_schema": ["must be an object"]})
    fields: Mapping[str, Raw] = msg.raw.fields()
    return fields


def _decoded(fields: Mapping[str, Raw], name: str) -> Any:
    return fields[name].decode() if name in fields else None


def _room(data: Mapping[str, Any]) -> RoomId:
    room = data.get("room")
    if not isinstance(room, str) or not 0 < len(room) <= MAX_NAME or not room.isprintable():
        raise ValidationError({"room": [f"must be 1 to {MAX_NAME} printable characters"]})
    return RoomId(room)


def _field(data: Mapping[str, Any], name: str, of: type[T], default: T | None) -> T:
    value = data.get(name, default)
    if not isinstance(value, of) or (isinstance(value, bool) and of is not bool):
        raise ValidationError({name: [f"must be of type {of.__name__}"]})
    return value


def _since(data: Mapping[str, Any]) -> Position | None:
    if "since" not in data:
        return None
    try:
        return position_of(data["since"])
    except ValueError:
        raise ValidationError({"since": ["must be an epoch and an offset"]}) from None


def _users(data: Mapping[str, Any]) -> list[UserId]:
    users = data.get("users")
    if not isinstance(users, list) or len(users) > MAX_USERS:
        raise ValidationError({"users": [f"must be a list of at most {MAX_USERS}"]})
    if not all(isinstance(user, str) and 0 < len(user) <= MAX_NAME for user in users):
        raise ValidationError({"users": ["must be user ids"]})
    return [UserId(user) for user in users]


def _speaker(conn: Connection, room_id: RoomId) -> None:
    """Let only members speak, and not as guests."""
    role = conn.roles.get(room_id)
    if role is None:
        raise NotAMember(f"you are not in {room_id}")
    if role < RoomRole.MEMBER:
        raise Forbidden("guests may only listen")


# --- writing what a client reads


def _member(member: Member) -> dict[str, Any]:
    return {
        "user_id": member.user_id,
        "role": member.role.wire,
        "connections": member.connections,
    }


def _presence(state: PresenceState) -> dict[str, Any]:
    seen = state.last_seen
    return {
        "online": state.online,
        "connections": state.connections,
        "last_seen": None if seen is None else rfc3339(seen),
    }
