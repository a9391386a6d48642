"""What nodes say to each other: every kind of event and request, in one place.

An event is sent and forgotten. A request has one answer, which travels as JSON. Each kind is
a frozen dataclass; ``header()`` gives the fields of its packet and ``read`` checks them again,
because the bus is a trust boundary: it raises ``BadPacket`` for what no node sends.

Rules of this file:

1. A node reads what a node of the release before it has sent: a field that is added has a
   default in ``read``, and a field is dropped only when no supported release needs it.
   Recorded packets of each format are kept in ``tests/application/cluster``.
2. A field that has its default is left out of the header where the table says "optional": most
   packets are small, and a node sends one for each message to a room.
3. A kind is known by its name on the wire; names are never used again for something else.

Kinds, and where they are answered:

=================== ======================= =========================================
kind                sent to                 taken in by
=================== ======================= =========================================
room                the room's nodes        ``outbound/broadcast``
all, text, where    all nodes               ``outbound/broadcast``
stream              the room's nodes        ``rooms/publisher``
send, conn_text     one node                ``delivery/direct``
deliver             one node, answered      ``delivery/acked``
who                 each node, answered     ``delivery/locator``
replay              one node, answered      ``delivery/replay``
replay_start        one node                ``delivery/replay``
removed, role,      the members' nodes,     ``rooms/moderation``
keeps               answered
join, leave,        one node, answered      ``lifecycle/remote``
leave_all, let_in,
disconnect
session             one node, answered      ``lifecycle/sessions``
session_forget      all nodes               ``lifecycle/sessions``
=================== ======================= =========================================
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol, Self

from eyewall.application.cluster.fields import (
    Header,
    conns_of,
    member_of,
    number_of,
    priority_of,
    read_where,
    text_of,
    text_or_none,
    texts_of,
    where_fields,
)
from eyewall.application.cluster.packet import BadPacket
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Priority
from eyewall.domain.history import Position, Retention, position_of
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId, Where
from eyewall.domain.room import JoinOptions, LeaveReason, RoomRole


class Event(Protocol):
    """A kind of packet: what is told, or asked."""

    kind: ClassVar[str]

    def header(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them; raises ``Misuse`` for what it can't hold."""

    @classmethod
    def read(cls, header: Header) -> Self:
        """Return what ``header`` says; raises ``BadPacket``."""


class Request(Event, Protocol):
    """An event that has an answer; each kind's docstring names it."""


# --- fields that several kinds have


@dataclass(frozen=True, slots=True)
class Recipients:
    """A condition for connections: the user's, a room's members, or those that fit a filter.

    Without any of them: the connections as such, whatever their user.
    """

    user: UserId | None = None
    room: RoomId | None = None
    where: Where | None = None

    def header(self) -> dict[str, Any]:
        if self.user is not None:
            return {"u": self.user}
        if self.room is not None:
            return {"r": self.room}
        return {} if self.where is None else {"where": where_fields(self.where)}

    @classmethod
    def read(cls, header: Header) -> Recipients:
        where = read_where(header["where"]) if "where" in header else None
        user, room = text_or_none(header, "u"), text_or_none(header, "r")
        return cls(
            None if user is None else UserId(user), None if room is None else RoomId(room), where
        )


ANYBODY = Recipients()


@dataclass(frozen=True, slots=True)
class RoomPosition:
    """The position of a message in a room's history, and the connections that do not get it."""

    room: RoomId
    at: Position
    skip: tuple[ConnId, ...] = ()

    def header(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"room": self.room, "e": self.at.epoch, "o": self.at.offset}
        if self.skip:
            fields["x"] = list(self.skip)
        return fields

    @classmethod
    def read(cls, header: Any) -> RoomPosition:
        if not isinstance(header, dict):
            raise BadPacket("a position is an object")
        room, skip = RoomId(text_of(header, "room")), conns_of(header, "x", ())
        try:
            at = position_of((header.get("e"), header.get("o")))
        except ValueError as error:
            raise BadPacket(str(error)) from None
        if at.offset < 1:
            raise BadPacket("a message of a room with history without its offset")
        return cls(room, at, skip)


# --- to many


@dataclass(frozen=True, slots=True)
class RoomMessage:
    """A message for the members of a room without history. Optional: ``x``, ``u``."""

    kind: ClassVar[str] = "room"
    room: RoomId
    priority: Priority
    skip: tuple[ConnId, ...] = ()
    skip_user: UserId | None = None

    def header(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"room": self.room, "p": int(self.priority)}
        if self.skip:
            fields["x"] = list(self.skip)
        if self.skip_user is not None:
            fields["u"] = self.skip_user
        return fields

    @classmethod
    def read(cls, header: Header) -> RoomMessage:
        room, skip, user = text_of(header, "room"), conns_of(header, "x", ()), header.get("u")
        if not isinstance(user, str | None):
            raise BadPacket("u must be a text")
        skip_user = None if user is None else UserId(user)
        return cls(RoomId(room), priority_of(header), skip, skip_user)


@dataclass(frozen=True, slots=True)
class BroadcastMessage:
    """A message for every connection."""

    kind: ClassVar[str] = "all"
    priority: Priority

    def header(self) -> dict[str, Any]:
        return {"p": int(self.priority)}

    @classmethod
    def read(cls, header: Header) -> BroadcastMessage:
        return cls(priority_of(header))


@dataclass(frozen=True, slots=True)
class BroadcastText:
    """A text without an envelope for every connection."""

    kind: ClassVar[str] = "text"

    def header(self) -> dict[str, Any]:
        return {}

    @classmethod
    def read(cls, header: Header) -> BroadcastText:  # noqa: ARG003  (it has no fields)
        return cls()


@dataclass(frozen=True, slots=True)
class FilteredMessage:
    """A message for every connection that ``where`` fits."""

    kind: ClassVar[str] = "where"
    priority: Priority
    where: Where

    def header(self) -> dict[str, Any]:
        return {"p": int(self.priority), "where": where_fields(self.where)}

    @classmethod
    def read(cls, header: Header) -> FilteredMessage:
        return cls(priority_of(header), read_where(header.get("where")))


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A message for the members of a room with history, with its position. Optional: ``x``,
    ``d``: the nodes that get the message by a ``deliver``."""

    kind: ClassVar[str] = "stream"
    position: RoomPosition
    priority: Priority
    delivered_by: tuple[NodeId, ...] = ()

    def header(self) -> dict[str, Any]:
        fields = {**self.position.header(), "p": int(self.priority)}
        if self.delivered_by:
            fields["d"] = list(self.delivered_by)
        return fields

    @classmethod
    def read(cls, header: Header) -> StreamMessage:
        nodes = tuple(NodeId(node) for node in texts_of(header, "d", ()))
        return cls(RoomPosition.read(header), priority_of(header), nodes)


# --- to named recipients


@dataclass(frozen=True, slots=True)
class DirectMessage:
    """A message for some connections of the node, as far as they still are ``recipients``.
    Optional: ``ttl``, seconds until it is not to be written any more."""

    kind: ClassVar[str] = "send"
    conns: tuple[ConnId, ...]
    priority: Priority
    recipients: Recipients = ANYBODY
    ttl: float | None = None

    def header(self) -> dict[str, Any]:
        fields = {
            "conns": list(self.conns),
            "p": int(self.priority),
            **self.recipients.header(),
        }
        if self.ttl is not None:
            fields["ttl"] = self.ttl
        return fields

    @classmethod
    def read(cls, header: Header) -> DirectMessage:
        ttl = None if header.get("ttl") is None else number_of(header, "ttl")
        recipients = Recipients.read(header)
        return cls(conns_of(header, "conns"), priority_of(header), recipients, ttl)


@dataclass(frozen=True, slots=True)
class DirectText:
    """A text without an envelope for one connection of the node."""

    kind: ClassVar[str] = "conn_text"
    conn: ConnId

    def header(self) -> dict[str, Any]:
        return {"conn": self.conn}

    @classmethod
    def read(cls, header: Header) -> DirectText:
        return cls(ConnId(text_of(header, "conn")))


@dataclass(frozen=True, slots=True)
class Deliver:
    """Deliver a message to some connections of the node and wait for their acks.

    Answer: a list of outcomes (``delivery/pending_acks``), with the results of the acks if
    ``result``. Times in seconds; ``time_left`` None means no deadline for all attempts
    together. Optional: ``s``, the message's position in the room's history.
    """

    kind: ClassVar[str] = "deliver"
    conns: tuple[ConnId, ...]
    priority: Priority
    ack_timeout: float
    retries: int
    backoff: float
    time_left: float | None
    result: bool
    recipients: Recipients = ANYBODY
    position: RoomPosition | None = None

    def header(self) -> dict[str, Any]:
        fields = {
            "conns": list(self.conns),
            "p": int(self.priority),
            "plan": [self.ack_timeout, self.retries, self.backoff, self.time_left],
            "result": self.result,
            **self.recipients.header(),
        }
        if self.position is not None:
            fields["s"] = self.position.header()
        return fields

    @classmethod
    def read(cls, header: Header) -> Deliver:
        plan = header.get("plan")
        if not isinstance(plan, list) or len(plan) != 4:
            raise BadPacket("a plan is a list of four")
        timeout, retries, backoff, left = plan
        if not isinstance(retries, int) or not all(
            isinstance(each, int | float)
            for each in (timeout, backoff, 0 if left is None else left)
        ):
            raise BadPacket("a plan is made of numbers")
        return cls(
            conns_of(header, "conns"),
            priority_of(header),
            timeout,
            retries,
            backoff,
            left,
            bool(header.get("result")),
            Recipients.read(header),
            RoomPosition.read(header["s"]) if "s" in header else None,
        )


@dataclass(frozen=True, slots=True)
class FindConnections:
    """Answer: the ids of the node's connections that ``where`` fits."""

    kind: ClassVar[str] = "who"
    where: Where

    def header(self) -> dict[str, Any]:
        return {"where": where_fields(self.where)}

    @classmethod
    def read(cls, header: Header) -> FindConnections:
        return cls(read_where(header.get("where")))


@dataclass(frozen=True, slots=True)
class Replay:
    """A connection of the user is at the asking node, and the node that is asked may have the
    claim on the user's stored messages. Answer: True if it replays them, False if it has
    given the claim back."""

    kind: ClassVar[str] = "replay"
    user: UserId

    def header(self) -> dict[str, Any]:
        return {"user": self.user}

    @classmethod
    def read(cls, header: Header) -> Replay:
        return cls(UserId(text_of(header, "user")))


@dataclass(frozen=True, slots=True)
class ReplayStart:
    """A message was stored for the user, who has come back to the node meanwhile."""

    kind: ClassVar[str] = "replay_start"
    user: UserId

    def header(self) -> dict[str, Any]:
        return {"user": self.user}

    @classmethod
    def read(cls, header: Header) -> ReplayStart:
        return cls(UserId(text_of(header, "user")))


# --- rooms


@dataclass(frozen=True, slots=True)
class MembersRemoved:
    """The node's connections ``conns`` are no longer in the room. No answer but that it is done."""

    kind: ClassVar[str] = "removed"
    room: RoomId
    why: LeaveReason
    reason: Any
    """What the program gave ``kick``: a text, or whatever else JSON holds."""
    conns: tuple[ConnId, ...]

    def header(self) -> dict[str, Any]:
        return {
            "room": self.room,
            "why": self.why.value,
            "reason": self.reason,
            "conns": list(self.conns),
        }

    @classmethod
    def read(cls, header: Header) -> MembersRemoved:
        why = member_of(LeaveReason, header, "why")
        room = RoomId(text_of(header, "room"))
        return cls(room, why, header.get("reason"), conns_of(header, "conns"))


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """The node's connections ``conns`` have another role. No answer but that it is done."""

    kind: ClassVar[str] = "role"
    room: RoomId
    role: RoomRole
    conns: tuple[ConnId, ...]

    def header(self) -> dict[str, Any]:
        return {"room": self.room, "role": int(self.role), "conns": list(self.conns)}

    @classmethod
    def read(cls, header: Header) -> RoleChanged:
        role = member_of(RoomRole, header, "role")
        return cls(RoomId(text_of(header, "room")), role, conns_of(header, "conns"))


@dataclass(frozen=True, slots=True)
class RetentionChanged:
    """The room keeps a history of this retention (None: none) from now on, from the beginning
    of ``epoch`` on if one was given. No answer but that it is done."""

    kind: ClassVar[str] = "keeps"
    room: RoomId
    retention: Retention | None
    epoch: str | None
    conns: tuple[ConnId, ...]

    def header(self) -> dict[str, Any]:
        kept = self.retention
        return {
            "room": self.room,
            "keeps": None if kept is None else [kept.size, kept.ttl],
            "epoch": self.epoch,
            "conns": list(self.conns),
        }

    @classmethod
    def read(cls, header: Header) -> RetentionChanged:
        keeps, epoch = header.get("keeps"), text_or_none(header, "epoch")
        try:
            retention = None if keeps is None else Retention(int(keeps[0]), keeps[1])
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise BadPacket(f"not a retention: {error}") from None
        return cls(RoomId(text_of(header, "room")), retention, epoch, conns_of(header, "conns"))


@dataclass(frozen=True, slots=True)
class JoinRoom:
    """Let the node's connection into the room.

    Answer: role, members, epoch and offset. Raises what ``RoomMembership.join`` raises.
    """

    kind: ClassVar[str] = "join"
    room: RoomId
    conn: ConnId
    options: JoinOptions | None

    def header(self) -> dict[str, Any]:
        options = self.options
        fields = options and {
            "role": int(options.role),
            "invited_by": options.invited_by,
            "force": options.force,
        }
        return {"room": self.room, "conn": self.conn, "options": fields}

    @classmethod
    def read(cls, header: Header) -> JoinRoom:
        fields = header.get("options")
        try:
            options = None if fields is None else JoinOptions(**fields)
        except (TypeError, ValueError) as error:
            raise BadPacket(f"not the options of a join: {error}") from None
        return cls(RoomId(text_of(header, "room")), ConnId(text_of(header, "conn")), options)


@dataclass(frozen=True, slots=True)
class LeaveRoom:
    """Take the node's connection out of the room. Answer: whether it was in."""

    kind: ClassVar[str] = "leave"
    room: RoomId
    conn: ConnId

    def header(self) -> dict[str, Any]:
        return {"room": self.room, "conn": self.conn}

    @classmethod
    def read(cls, header: Header) -> LeaveRoom:
        return cls(RoomId(text_of(header, "room")), ConnId(text_of(header, "conn")))


@dataclass(frozen=True, slots=True)
class LeaveAllRooms:
    """Take the node's connection out of all rooms. Answer: of how many."""

    kind: ClassVar[str] = "leave_all"
    conn: ConnId

    def header(self) -> dict[str, Any]:
        return {"conn": self.conn}

    @classmethod
    def read(cls, header: Header) -> LeaveAllRooms:
        return cls(ConnId(text_of(header, "conn")))


# --- connections and sessions


@dataclass(frozen=True, slots=True)
class LetIn:
    """Answer: those of ``conns`` that are connected to the node and let in."""

    kind: ClassVar[str] = "let_in"
    conns: tuple[ConnId, ...]

    def header(self) -> dict[str, Any]:
        return {"conns": list(self.conns)}

    @classmethod
    def read(cls, header: Header) -> LetIn:
        return cls(conns_of(header, "conns"))


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End the node's connections ``conns``, as far as they still belong to ``user`` (None:
    whoever uses them). Answer: how many were ended."""

    kind: ClassVar[str] = "disconnect"
    conns: tuple[ConnId, ...]
    reason: DisconnectReason
    user: UserId | None

    def header(self) -> dict[str, Any]:
        return {"conns": list(self.conns), "reason": self.reason.value, "user": self.user}

    @classmethod
    def read(cls, header: Header) -> Disconnect:
        user = text_or_none(header, "user")
        reason = member_of(DisconnectReason, header, "reason")
        return cls(conns_of(header, "conns"), reason, None if user is None else UserId(user))


@dataclass(frozen=True, slots=True)
class TakeSession:
    """Hand the session ``name`` of the node to its ``successor``, whose connection was let in at
    ``since``. Answer: the session's record, or None if it does not go to that user."""

    kind: ClassVar[str] = "session"
    name: str
    user: UserId | None
    came_as: UserId | None
    successor: str
    since: datetime

    def header(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "user": self.user,
            "came": self.came_as,
            "heir": self.successor,
            "since": self.since.timestamp(),
        }

    @classmethod
    def read(cls, header: Header) -> TakeSession:
        user = text_or_none(header, "user")
        came_as = text_or_none(header, "came") if "came" in header else user
        try:
            since = datetime.fromtimestamp(number_of(header, "since"), UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise BadPacket(f"since: {error}") from None
        return cls(
            text_of(header, "name"),
            None if user is None else UserId(user),
            None if came_as is None else UserId(came_as),
            text_of(header, "heir"),
            since,
        )


@dataclass(frozen=True, slots=True)
class ForgetSessions:
    """Keep no session of the user: the user was sent away for good."""

    kind: ClassVar[str] = "session_forget"
    user: UserId

    def header(self) -> dict[str, Any]:
        return {"user": self.user}

    @classmethod
    def read(cls, header: Header) -> ForgetSessions:
        return cls(UserId(text_of(header, "user")))
