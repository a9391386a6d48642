"""What became of a message: statuses, reports, results, and why it failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING

from eyewall.domain.ack_result import MOST_NAMED, Acker, AckResult, named
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.duration import Seconds, count, seconds
from eyewall.domain.envelope import Message
from eyewall.domain.errors import (
    AckTimeout,
    ConnectionClosed,
    EyewallError,
    Forbidden,
    Nacked,
    NotAMember,
    QueueFull,
    ShuttingDown,
    SlowConsumer,
    Unavailable,
    UserOffline,
    ValidationError,
)
from eyewall.domain.identity import ConnId, RoomId, UserId
from eyewall.domain.identity import name as check_name


class DeliveryStatus(StrEnum):
    """What became of a message to one connection."""

    OK = "ok"
    DROPPED = "dropped"
    FAILED = "failed"
    STORED = "stored"
    FORWARDED = "forwarded"
    """Handed to the node that has the connection; no ack was asked for."""
    UNKNOWN = "unknown"
    """The node that has the connection did not answer in time."""


class FailureReason(StrEnum):
    """Why a message was not delivered."""

    QUEUE_FULL = "queue_full"
    BROADCAST_FULL = "broadcast_full"
    """A member's queue was full in a fan-out."""
    PENDING_FULL = "pending_full"
    USER_OFFLINE = "user_offline"
    TIMEOUT = "timeout"
    SEND_TIMEOUT = "send_timeout"
    ACK_TIMEOUT = "ack_timeout"
    NACKED = "nacked"
    CONN_CLOSED = "conn_closed"
    CONN_ERROR = "conn_error"
    CHANNEL_CLOSED = "channel_closed"
    VALIDATION = "validation"
    PERMISSION = "permission"
    UNKNOWN = "unknown"


_FATES = {
    DisconnectReason.READ_ERROR: FailureReason.CONN_ERROR,
    DisconnectReason.WRITE_ERROR: FailureReason.CONN_ERROR,
}


def fate(reason: DisconnectReason, error: BaseException | None) -> FailureReason:
    """Return the failure reason of messages that were lost when a connection ended.

    ``error`` is a ``TimeoutError`` if the peer read nothing for ``write_wait``.
    """
    if reason is DisconnectReason.SLOW_CONSUMER and isinstance(error, TimeoutError):
        return FailureReason.SEND_TIMEOUT
    return _FATES.get(reason, FailureReason.CONN_CLOSED)


_REASONS: tuple[tuple[type[EyewallError], FailureReason], ...] = (
    (QueueFull, FailureReason.QUEUE_FULL),
    (UserOffline, FailureReason.USER_OFFLINE),
    (AckTimeout, FailureReason.ACK_TIMEOUT),
    (Nacked, FailureReason.NACKED),
    (ConnectionClosed, FailureReason.CONN_CLOSED),
    (SlowConsumer, FailureReason.CONN_CLOSED),
    (ShuttingDown, FailureReason.CHANNEL_CLOSED),
    (ValidationError, FailureReason.VALIDATION),
    (Forbidden, FailureReason.PERMISSION),
    (NotAMember, FailureReason.PERMISSION),
    (Unavailable, FailureReason.CONN_ERROR),
)


def reason_of(error: BaseException | None) -> FailureReason:
    """Return the failure reason that matches an error; ``UNKNOWN`` for any other."""
    return next((r for kind, r in _REASONS if isinstance(error, kind)), FailureReason.UNKNOWN)


STORE, DROP = "store", "drop"


def offline_mode(value: str, name: str) -> str:
    """Return ``value``; raises ``ValueError`` naming ``name`` unless it is store or drop."""
    if value not in (STORE, DROP):
        raise ValueError(f"{name} must be {STORE!r} or {DROP!r}, not {value!r:.40}")
    return value


def flag(value: object, name: str) -> bool:
    """Return ``value``; raises ``ValueError`` naming ``name`` unless it is a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r:.80}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions:
    """How a message to users is delivered. Times in seconds.

    ``ack_timeout`` is for one try; ``retry_max`` counts the retries, ``retry_backoff`` is
    the pause before the first retry and doubles with each. Sends with the same
    ``ordering_key`` from one node do not overlap. ``ttl`` is how long the message may live,
    counted from the call.

    ``offline`` decides about a message that no connection of the user answers: ``"store"``
    keeps it until one does, and implies ``require_ack``; ``"drop"`` does not keep it; None
    takes the server's ``offline_default``. ``"store"`` is for messages to users only: rooms
    and single connections refuse it.

    ``history=False`` keeps a message to a room out of the room's history; the members get it.
    Messages to users and connections have no history.
    """

    require_ack: bool = False
    ack_timeout: Seconds = 5.0
    retry_max: int = 0
    retry_backoff: Seconds = 0.05
    ordering_key: str | None = None
    offline: str | None = None
    ttl: Seconds | None = None
    history: bool = True

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "ack_timeout", seconds(self.ack_timeout, "ack_timeout", positive=True))
        put(self, "retry_backoff", seconds(self.retry_backoff, "retry_backoff"))
        count(self.retry_max, "retry_max", least=0)
        key: object = self.ordering_key
        flag(self.require_ack, "require_ack")
        flag(self.history, "history")
        if key is not None and not isinstance(key, str):
            raise ValueError(f"ordering_key must be a string, not {key!r:.80}")
        if self.offline is not None:
            put(self, "offline", offline_mode(self.offline, "offline"))
            put(self, "require_ack", self.require_ack or self.offline == STORE)
        if self.ttl is not None:
            put(self, "ttl", seconds(self.ttl, "ttl", positive=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class AckOptions:
    """How to wait for acks: ``timeout`` in seconds; with ``require_all`` a missing ack raises
    ``AckTimeout``. ``history`` is that of ``SendOptions``."""

    timeout: Seconds = 5.0
    require_all: bool = False
    history: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "timeout", seconds(self.timeout, "timeout", positive=True))
        flag(self.history, "history")


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What became of a message to one target (a connection, or an offline user).

    ``user_id`` and ``conn_id`` are the target's, where they are known; ``conn_id`` is None for
    a user without a connection. ``acked`` says whether the target has acknowledged the message;
    it is None where no ack was asked for.
    """

    target: str
    status: DeliveryStatus
    error: EyewallError | None = None
    attempts: int = 1
    user_id: UserId | None = None
    conn_id: ConnId | None = None
    acked: bool | None = None

    if TYPE_CHECKING:  # plain strings, as for Acker

        def __init__(
            self,
            target: str,
            status: DeliveryStatus,
            error: EyewallError | None = None,
            attempts: int = 1,
            user_id: UserId | str | None = None,
            conn_id: ConnId | str | None = None,
            acked: bool | None = None,
        ) -> None: ...

    @property
    def acker(self) -> Acker:
        """The target, as ``AckResult`` names it."""
        return Acker(self.user_id, self.conn_id)


@dataclass(frozen=True, slots=True)
class BatchDeliveryReport:
    """The reports of all targets, and how many there are of each status.

    ``acked``, ``refused`` and ``silent`` name the targets whose ack was asked for, as in
    ``AckResult``.
    """

    total: int
    success: int
    dropped: int
    failed: int
    stored: int
    forwarded: int
    unknown: int
    reports: tuple[DeliveryReport, ...]

    @classmethod
    def of(cls, reports: Iterable[DeliveryReport]) -> BatchDeliveryReport:
        """Count ``reports`` by status."""
        found = tuple(reports)
        tally = dict.fromkeys(DeliveryStatus, 0)
        for report in found:
            tally[report.status] += 1
        return cls(
            total=len(found),
            success=tally[DeliveryStatus.OK],
            dropped=tally[DeliveryStatus.DROPPED],
            failed=tally[DeliveryStatus.FAILED],
            stored=tally[DeliveryStatus.STORED],
            forwarded=tally[DeliveryStatus.FORWARDED],
            unknown=tally[DeliveryStatus.UNKNOWN],
            reports=found,
        )

    @property
    def acked(self) -> tuple[Acker, ...]:
        """The targets that acked, at most 1,000."""
        return named(report.acker for report in self.reports if report.acked)

    @property
    def refused(self) -> tuple[Acker, ...]:
        """The targets that answered with a nack, at most 1,000."""
        return named(report.acker for report in self.reports if _is_refused(report))

    @property
    def silent(self) -> tuple[Acker, ...]:
        """The targets without an answer, at most 1,000; a message stored for one of them is
        delivered later."""
        return named(
            report.acker
            for report in self.reports
            if report.acked is False and not _is_refused(report)
        )


def ack_result(reports: Iterable[DeliveryReport], *, timed_out: bool) -> AckResult:
    """Count and name the targets of ``reports``, each of which was asked for an ack.

    ``timed_out``: at least one of them did not answer in time.
    """
    batch = BatchDeliveryReport.of(reports)
    errors = (str(report.error) for report in batch.reports if report.error is not None)
    return AckResult(
        expected=batch.total,
        received=sum(report.acked is True for report in batch.reports),
        nacked=sum(map(_is_refused, batch.reports)),
        timed_out=timed_out,
        errors=list(islice(errors, MOST_NAMED)),
        acked=batch.acked,
        refused=batch.refused,
        silent=batch.silent,
    )


def _is_refused(report: DeliveryReport) -> bool:
    return isinstance(report.error, Nacked)


class TargetKind(StrEnum):
    """What a ``Target`` names."""

    CONN = "conn"
    USER = "user"
    ROOM = "room"


@dataclass(frozen=True, slots=True)
class Target:
    """The recipients of ``emit_with_ack``: one connection, all of a user, or all in a room.

    Raises ``ValueError`` for an id that none of them can have.
    """

    kind: TargetKind
    id: str

    def __post_init__(self) -> None:
        if self.kind is not TargetKind.CONN:
            check_name(self.id, f"{self.kind}_id")
        elif not isinstance(self.id, str) or not self.id:
            raise ValueError(f"conn_id must be a string, not {self.id!r:.80}")

    @classmethod
    def conn(cls, conn_id: ConnId | str) -> Target:
        """One connection."""
        return cls(TargetKind.CONN, conn_id)

    @classmethod
    def user(cls, user_id: UserId | str) -> Target:
        """All connections of a user."""
        return cls(TargetKind.USER, user_id)

    @classmethod
    def room(cls, room_id: RoomId | str) -> Target:
        """All connections in a room."""
        return cls(TargetKind.ROOM, room_id)


@dataclass(frozen=True, slots=True)
class Failure:
    """The argument of a failure handler. ``recipient`` is the id that the caller named.

    ``queue`` is the number of messages in the connection's queue, ``duration`` the seconds
    that were spent. ``conn_id`` and ``user_id`` are the connection and user that missed the
    message, where they are known; for a message to a room, those of one member.
    """

    message: Message
    recipient: str
    reason: FailureReason
    error: EyewallError | None
    queue: int | None = None
    duration: float | None = None
    conn_id: ConnId | None = None
    user_id: UserId | None = None

    if TYPE_CHECKING:  # plain strings, as for Acker

        def __init__(
            self,
            message: Message,
            recipient: str,
            reason: FailureReason,
            error: EyewallError | None,
            queue: int | None = None,
            duration: float | None = None,
            conn_id: ConnId | str | None = None,
            user_id: UserId | str | None = None,
        ) -> None: ...


@dataclass(frozen=True, slots=True)
class PendingAck:
    """A message that waits for the ack of one connection, whose user is ``user_id``."""

    message: Message
    conn_id: ConnId
    attempt: int
    since: datetime
    deadline: datetime
    user_id: UserId | None = None

    if TYPE_CHECKING:  # plain strings, as for Acker

        def __init__(
            self,
            message: Message,
            conn_id: ConnId | str,
            attempt: int,
            since: datetime,
            deadline: datetime,
            user_id: UserId | str | None = None,
        ) -> None: ...


class Incident(StrEnum):
    """An event of a node that concerns no single client.

    ``HubStats`` and the metrics count each under its value.
    """

    UNSENT = "unsent"
    """A message to the other nodes that the bus did not take."""
    BAD_PACKETS = "bad_packets"
    """A message from the bus that is no packet of eyewall, or does not fit its kind."""
    FOREIGN_EPOCHS = "foreign_epochs"
    """A room message whose epoch the history of this node does not know."""
    STRAY_ACKS = "stray_acks"
    """An ack for an id that no send waits for."""
    UNREPORTED_FAILURES = "unreported_failures"
    """A failed delivery that was not reported to the failure handlers: their queue was full."""
    LOOP_STALLS = "loop_stalls"
    """The event loop stood still for longer than a second."""
    ACCEPT_PAUSES = "accept_pauses"
    """Accepting connections paused, because the process ran out of file descriptors."""


@dataclass(frozen=True, slots=True)
class HubStats:
    """Counters of this node since its start, or since ``reset_stats()``.

    ``uptime`` is in seconds. ``in_messages`` counts every envelope received,
    ``out_messages`` every envelope sent, ``errors`` every error or nack sent,
    ``drops`` every message that a full queue dropped, and every one that was evicted from
    the offline store. ``refused`` counts refused handshakes by reason. The fields from
    ``unsent`` on are explained at ``Incident``.
    """

    connections: int
    users: int
    rooms: int
    in_messages: int
    out_messages: int
    errors: int
    drops: int
    started_at: datetime
    uptime: float
    refused: Mapping[str, int] = field(default_factory=dict)
    unsent: int = 0
    bad_packets: int = 0
    foreign_epochs: int = 0
    stray_acks: int = 0
    unreported_failures: int = 0
    loop_stalls: int = 0
    accept_pauses: int = 0
