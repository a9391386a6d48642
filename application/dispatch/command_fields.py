"""Reading what a client wrote in a command; raises ``ValidationError`` by field."""

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
"""Users whose presence one command may ask for: a long list of friends, in one question to
the state."""


def object_of(msg: Envelope[Any]) -> dict[str, Any]:
    if not isinstance(msg.data, dict):
        raise ValidationError({"_schema": ["must be an object"]})
    return msg.data


def raw_object(msg: Envelope[Any]) -> Mapping[str, Raw]:
    """The fields of ``data`` without decoding their values; raises ``InvalidEnvelope`` for
    what nobody could decode."""
    if msg.raw is None:
        raise ValidationError({"_schema": ["must be an object"]})
    msg.raw.check()
    fields: Mapping[str, Raw] = msg.raw.fields()
    return fields


def values_of(fields: Mapping[str, Raw], *names: str) -> dict[str, Any]:
    """Decode those of the fields that are named, as far as they are there."""
    return {name: fields[name].decode() for name in names if name in fields}


def room_of(data: Mapping[str, Any]) -> RoomId:
    room = data.get("room")
    if not isinstance(room, str) or not 0 < len(room) <= MAX_NAME or not is_printable(room):
        raise ValidationError({"room": [f"must be 1 to {MAX_NAME} printable characters"]})
    return RoomId(room)


def field_of(data: Mapping[str, Any], name: str, of: type[T], default: T | None) -> T:
    value = data.get(name, default)
    if not isinstance(value, of) or (isinstance(value, bool) and of is not bool):
        raise ValidationError({name: [f"must be of type {of.__name__}"]})
    return value


def since_of(data: Mapping[str, Any]) -> Position | None:
    if "since" not in data:
        return None
    try:
        return position_of(data["since"])
    except ValueError:
        raise ValidationError({"since": ["must be an epoch and an offset"]}) from None


def beginning_of(data: Mapping[str, Any]) -> Since | None:
    """Return where the replay of a join begins; None if the client asks for no replay."""
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
    users = data.get("users")
    if not isinstance(users, list) or len(users) > MAX_USERS:
        raise ValidationError({"users": [f"must be a list of at most {MAX_USERS}"]})
    if not all(isinstance(user, str) and 0 < len(user) <= MAX_NAME for user in users):
        raise ValidationError({"users": ["must be user ids"]})
    return [UserId(user) for user in users]


def positions_of(data: Mapping[str, Any], most: int) -> dict[RoomId, Position | None]:
    """The rooms that a client wants to resume, each with where it stands; None where it
    does not say, as in a room without history."""
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
    """Let only members see what is the room's. One that has ended is none any more, though
    it keeps the list of its rooms."""
    if not conn.is_open:
        raise ConnectionClosed(f"{conn.id} has ended")
    if room_id not in conn.roles:
        raise NotAMember(f"you are not in {room_id}")


def check_speaker(conn: Connection, room_id: RoomId) -> None:
    """Let only members speak, and not as guests."""
    check_member(conn, room_id)
    if conn.roles[room_id] < RoomRole.MEMBER:
        raise Forbidden("guests may only listen")


def rfc3339(when: datetime) -> str:
    """Return a timestamp as it is sent: UTC, with milliseconds and ``Z`` (RFC 3339)."""
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


PUBLISH: Final = "system:publish"


def published(message: Envelope) -> tuple[str, str]:
    """The topic and event that ``system:publish`` means to the access controller, who needs
    nothing else of it decoded; raises ``InvalidEnvelope``."""
    if message.raw is None:
        return _meant(message.data)
    try:
        return _meant(values_of(message.raw.fields(), "room", "event"))
    except ValidationError:
        return _meant(None)


def _meant(data: Any) -> tuple[str, str]:
    room, event = (data.get("room"), data.get("event")) if isinstance(data, dict) else (None, None)
    topic = f"{ROOM}{room}" if isinstance(room, str) else PUBLISH
    return topic, event if isinstance(event, str) and event else "message"
