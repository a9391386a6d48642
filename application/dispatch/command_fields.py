"""The fields of a client's command: each function returns one, and raises ``ValidationError``,
which names the field, if it is not valid."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

from eyewall.application.connections.registry import Connection
from eyewall.domain.envelope import ROOM, Envelope, Raw
from eyewall.domain.errors import ConnectionClosed, Forbidden, NotAMember, ValidationError
from eyewall.domain.history import START, Position, Since, position_of, since_from
from eyewall.domain.identity import MAX_NAME, RoomId, UserId, is_printable
from eyewall.domain.room import RoomRole

T = TypeVar("T")


MAX_USERS = 1000
"""Most users whose presence one command may request: a long list of friends, in one query of
the state."""


def object_of(msg: Envelope[Any]) -> dict[str, Any]:
    """Return ``data``, which must be an object."""
    if not isinstance(msg.data, dict):
        raise ValidationError({"_schema": ["must be an object"]})
    return msg.data


def raw_object(msg: Envelope[Any]) -> Mapping[str, Raw]:
    """Return the fields of ``data`` with undecoded values; raises ``InvalidEnvelope`` for values
    that can't be decoded."""
    if msg.raw is None:
        raise ValidationError({"_schema": ["must be an object"]})
    msg.raw.check()
    fields: Mapping[str, Raw] = msg.raw.fields()
    return fields


def values_of(fields: Mapping[str, Raw], *names: str) -> dict[str, Any]:
    """Decode and return the named fields, as far as they exist."""
    return {name: fields[name].decode() for name in names if name in fields}


def room_of(data: Mapping[str, Any]) -> RoomId:
    """Return the field ``room``."""
    room = data.get("room")
    if not isinstance(room, str) or not 0 < len(room) <= MAX_NAME or not is_printable(room):
        raise ValidationError({"room": [f"must be 1 to {MAX_NAME} printable characters"]})
    return RoomId(room)


def field_of(data: Mapping[str, Any], name: str, of: type[T], default: T | None) -> T:
    """Return the field ``name``, of type ``of``; with ``default`` None it is required."""
    value = data.get(name, default)
    if not isinstance(value, of) or (isinstance(value, bool) and of is not bool):
        raise ValidationError({name: [f"must be of type {of.__name__}"]})
    return value


def since_of(data: Mapping[str, Any]) -> Position | None:
    """Return the field ``since`` as a position; None if it is missing."""
    if "since" not in data:
        return None
    try:
        return position_of(data["since"])
    except ValueError:
        raise ValidationError({"since": ["must be an epoch and an offset"]}) from None


def beginning_of(data: Mapping[str, Any]) -> Since | None:
    """Return the field ``since`` of a join, where its replay begins; None for no replay."""
    if "since" not in data:
        return None
    value = data["since"]
    try:
        if isinstance(value, (str, int, dict)):
            return since_from(value)
    except ValueError:
        pass
    forms = f'must be "{START}", a number of newest messages, or an epoch and an offset'
    raise ValidationError({"since": [forms]})


def users_of(data: Mapping[str, Any]) -> list[UserId]:
    """Return the field ``users``, at most ``MAX_USERS`` ids."""
    users = data.get("users")
    if not isinstance(users, list) or len(users) > MAX_USERS:
        raise ValidationError({"users": [f"must be a list of at most {MAX_USERS}"]})
    if not all(isinstance(user, str) and 0 < len(user) <= MAX_NAME for user in users):
        raise ValidationError({"users": ["must be user ids"]})
    return [UserId(user) for user in users]


def positions_of(data: Mapping[str, Any], most: int) -> dict[RoomId, Position | None]:
    """Return the field ``rooms`` of a resume, at most ``most``: the client's position in each
    room; None where it has none, as in a room without history."""
    rooms = data.get("rooms", {})
    if not isinstance(rooms, dict) or len(rooms) > most:
        raise ValidationError({"rooms": [f"must be an object of at most {most} rooms"]})
    found: dict[RoomId, Position | None] = {}
    for name, value in rooms.items():
        room_id = room_of({"room": name})
        if not isinstance(value, dict):
            raise ValidationError({"rooms": ["each must be an object"]})
        stands = value.get("epoch") is not None and value.get("offset") is not None
        try:
            found[room_id] = position_of(value) if stands else None
        except ValueError:
            raise ValidationError({"rooms": ["must have an epoch and an offset"]}) from None
    return found


def check_member(conn: Connection, room_id: RoomId) -> None:
    """Raise ``NotAMember`` unless the connection is in the room; ``ConnectionClosed`` if it has
    ended: an ended connection keeps the list of its rooms."""
    if not conn.is_open:
        raise ConnectionClosed(f"{conn.id} has ended")
    if room_id not in conn.roles:
        raise NotAMember(f"you are not in {room_id}")


def check_speaker(conn: Connection, room_id: RoomId) -> None:
    """Raise as ``check_member``, and ``Forbidden`` for a guest: guests may not publish."""
    check_member(conn, room_id)
    if conn.roles[room_id] < RoomRole.MEMBER:
        raise Forbidden("guests may only listen")


def rfc3339(when: datetime) -> str:
    """Return a timestamp as it is sent: UTC, with milliseconds and ``Z`` (RFC 3339)."""
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


PUBLISH: Final = "system:publish"


def published(message: Envelope) -> tuple[str, str]:
    """Return the topic and event that a ``system:publish`` will have for the members. Decodes
    these fields only; raises ``InvalidEnvelope``."""
    if message.raw is None:
        return topic_and_event(message.data)
    try:
        return topic_and_event(values_of(message.raw.fields(), "room", "event"))
    except ValidationError:
        return topic_and_event(None)


def topic_and_event(data: Any) -> tuple[str, str]:
    """Return the topic and event of a publication from its decoded fields; ``PUBLISH`` as the
    topic if they name no room."""
    room, event = (data.get("room"), data.get("event")) if isinstance(data, dict) else (None, None)
    topic = f"{ROOM}{room}" if isinstance(room, str) else PUBLISH
    return topic, event if isinstance(event, str) and event else "message"
