"""Sending: encode a message once, and queue it for one link or a broadcast group.

Rules of this file:

1. Every sent message is counted here. A full queue becomes a count, a failure report and an
   error here.
2. Messages of rooms with history that a full queue has dropped are noted as a gap. When the
   queue has drained, the client gets one ``system:gap`` per room, with the offset up to which
   nothing is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, NamedTuple

from eyewall.application.connections.registry import Connection
from eyewall.application.connections.stats import Stats
from eyewall.application.outbound.failures import Failures
from eyewall.application.ports.message import Acknowledges, Codec, EncodedMessage
from eyewall.application.ports.transport import BroadcastGroup, Link, MessageWriter
from eyewall.domain.envelope import Envelope, Message, Priority, Raw
from eyewall.domain.errors import (
    AckTimeout,
    ConnectionClosed,
    EyewallError,
    Misuse,
    QueueFull,
    SlowConsumer,
    ValidationError,
)
from eyewall.domain.history import Position
from eyewall.domain.identity import ConnId, MessageId, RoomId, UserId
from eyewall.domain.outbox import Offer
from eyewall.domain.report import Failure, FailureReason

# A tuple: a lookup in a set would hash the enum members in Python code.
TAKEN = (Offer.QUEUED, Offer.DROPPED_OLDEST)
"""Outcomes after which the message will be written."""


NOTHING: Mapping[str, Any] = MappingProxyType({})


class Addressee(NamedTuple):
    """The addressee of an undelivered message, as far as it is known."""

    conn_id: ConnId | None = None
    user_id: UserId | None = None


class Ids:
    """Message ids: a random prefix, unique per start of a node, and a counter."""

    __slots__ = ("_numbers", "_start")

    def __init__(self, start: str) -> None:
        self._start = start
        self._numbers = count(1)

    def new(self) -> MessageId:
        """Return a new id."""
        return MessageId(f"{self._start}{next(self._numbers):x}")


class Sender:
    """Encodes messages, queues them for links and broadcast groups, and reports failures."""

    def __init__(
        self, *, codec: Codec, writer: MessageWriter, stats: Stats, failures: Failures, ids: Ids
    ) -> None:
        self._codec = codec
        self._ack = codec.ack if isinstance(codec, Acknowledges) else None
        self._writer = writer
        self._stats = stats
        self._failures = failures
        self.new_id = ids.new
        self.gaps = Gaps()

    # --- encoding

    def encode(
        self,
        message: Message,
        *,
        ack: bool = False,
        recipient: str | None = None,
        fan_out: bool = False,
    ) -> EncodedMessage:
        """Encode ``message``, with a new id if it has none.

        Raises ``ValueError`` if it is no ``Message``, ``Misuse`` for data that can't be
        encoded; the failure handlers hear of the latter.
        """
        given: object = message
        if not isinstance(given, Message):
            raise ValueError(f"a message must be a Message, not {given!r:.80}")
        data = message.data
        raw = data if isinstance(data, Raw) else None
        envelope: Envelope[Any] = Envelope(
            message.topic,
            message.event,
            None if raw is not None else data,
            message.id or self.new_id(),
            None,
            message.namespace,
            message.version,
            message.headers,
            ack,
            None,
            raw,
        )
        try:
            payload = self._codec.encode(envelope)
        except Misuse as error:
            failure = Failure(message, recipient or "", FailureReason.VALIDATION, error)
            self._failures.tell_soon(failure)
            raise
        return EncodedMessage(
            payload,
            envelope=envelope,
            message=message,
            priority=message.priority,
            recipient=recipient,
            fan_out=fan_out,
        )

    def encode_envelope(self, envelope: Envelope) -> EncodedMessage:
        """Encode an envelope of the server itself: an ack, error or notice."""
        return EncodedMessage(self._codec.encode(envelope), envelope=envelope)

    def encode_ack(self, request: Envelope) -> EncodedMessage:
        """Encode the ack of a request whose handler returned None."""
        if self._ack is None or request.id is None:
            return self.encode_envelope(ack(request))
        payload = self._ack(request.id, request.topic)
        return EncodedMessage(payload, envelope=partial(ack, request))

    def encode_answer(self, request: Envelope, data: Any) -> EncodedMessage:
        """Encode an answer to ``request``, with its topic, and its id as ``ref``."""
        raw = data if isinstance(data, Raw) else None
        plain = None if raw is not None else data
        return self.encode_envelope(
            Envelope(request.topic, "message", plain, self.new_id(), request.id, raw=raw)
        )

    def encode_notice(self, topic: str, event: str, data: Any) -> EncodedMessage:
        """Encode a message of the server itself, with a new id."""
        return self.encode_envelope(Envelope(topic, event, data, id=self.new_id()))

    def encode_gap(self, room_id: RoomId, at: Position) -> EncodedMessage:
        """Encode the notice that messages of a room after ``at`` were dropped.

        It has the position of the first of them: if the notice is dropped, the gap is the same.
        """
        data = {"room": room_id, "epoch": at.epoch, "offset": at.offset}
        encoded = self.encode_notice(GAP, "gap", data)
        encoded.stream = room_id
        encoded.position = Position(at.epoch, at.offset + 1)
        return encoded

    @staticmethod
    def encode_text(data: str | bytes, *, fan_out: bool = False) -> EncodedMessage:
        """Encode data without an envelope: a text frame for ``str``, binary for ``bytes``."""
        binary = isinstance(data, bytes)
        payload = data if isinstance(data, bytes) else data.encode()
        return EncodedMessage(payload, raw=True, binary=binary, fan_out=fan_out)

    # --- one connection

    def enqueue(self, link: Link, encoded: EncodedMessage) -> Offer:
        """Queue a message for a link, and count the outcome, which is returned."""
        offer = link.send(encoded)
        if offer in TAKEN:
            if not encoded.raw:
                self._stats.sent(1)
        elif offer is not Offer.CLOSED:
            self._stats.dropped(_full(encoded).value)
            self.gaps.note(link.owner, encoded)
        return offer

    async def try_send(self, conn: Connection, encoded: EncodedMessage) -> EyewallError | None:
        """Send to one connection; returns None, or the error after the failure handlers ran."""
        if not conn.is_open:
            error: EyewallError = ConnectionClosed(f"{conn.id} is closed")
            await self.report(encoded, conn, FailureReason.CONN_CLOSED, error)
            return error
        offer = self.enqueue(conn.link, encoded)
        if offer in TAKEN:
            return None
        error = refusal(offer, conn)
        closed = offer is Offer.CLOSED
        reason = FailureReason.CONN_CLOSED if closed else FailureReason.QUEUE_FULL
        await self.report(encoded, conn, reason, error, conn.link.queued)
        return error

    async def send(self, conn: Connection, topic: str, event: str, data: Any) -> None:
        """Send a message; raises ``ConnectionClosed``, ``QueueFull`` or ``SlowConsumer``."""
        error = await self.try_send(conn, self.encode(Message(topic, event, data)))
        if error is not None:
            raise error

    async def send_raw(self, conn: Connection, data: str | bytes) -> None:
        """Send one frame without an envelope; raises as ``send`` does."""
        error = await self.try_send(conn, self.encode_text(data))
        if error is not None:
            raise error

    # --- many

    async def broadcast_when_ready(
        self, group: BroadcastGroup, encoded: EncodedMessage, skip: Collection[Link] = ()
    ) -> int:
        """Queue for all links of ``group``, except ``skip``; returns their number.

        Waits while too much is queued already: backpressure for publishers that are faster
        than the node can write.
        """
        await self._writer.ready()
        return self.broadcast(group, encoded, skip)

    def broadcast(
        self, group: BroadcastGroup, encoded: EncodedMessage, skip: Collection[Link] = ()
    ) -> int:
        """Queue for all links of ``group`` without waiting; returns their number."""
        reached = group.broadcast(encoded, skip)
        if not encoded.raw:
            self._stats.sent(reached)
        return reached

    async def ready(self) -> None:
        """Wait while too many messages wait to be written."""
        await self._writer.ready()

    def enqueue_to_each(self, conns: Collection[Connection], encoded: EncodedMessage) -> int:
        """Queue a message for each of ``conns``; returns their number. Drops are reported."""
        for conn in conns:
            self.enqueue_or_report(conn, encoded)
        return len(conns)

    def enqueue_or_report(self, conn: Connection, encoded: EncodedMessage) -> bool:
        """Queue a message for a connection without waiting; False if it will not be written.

        A full queue or a closed link is reported to the failure handlers later.
        """
        offer = self.enqueue(conn.link, encoded)
        if offer in TAKEN:
            return True
        if offer is Offer.CLOSED:
            self._report_unwritten(encoded, conn, FailureReason.CONN_CLOSED, refusal(offer, conn))
        else:
            self.report_dropped(conn, encoded)
        return False

    # --- undelivered messages

    def dropped(self, conn: Connection, encoded: EncodedMessage) -> None:
        """Count and report a message that the link had queued, then dropped for others."""
        if not encoded.raw:
            self._stats.take_back_sent()
        self.drop(conn, encoded)

    def drop(self, conn: Connection, encoded: EncodedMessage) -> None:
        """Count and report a message that a full queue did not take."""
        self._stats.dropped(_full(encoded).value)
        self.gaps.note(conn, encoded)
        self.report_dropped(conn, encoded)

    def send_gaps(self, conn: Connection) -> None:
        """Send a client whose queue has drained a notice of each gap in its rooms."""
        for room_id, at in self.gaps.take(conn).items():
            self.enqueue_or_report(conn, self.encode_gap(room_id, at))

    def lost(self, conn: Connection, encoded: EncodedMessage, reason: FailureReason) -> None:
        """Count and report a queued message that was not written before the end, or in time.

        A message that requests an ack is reported by its pending ack instead.
        """
        if not encoded.raw:
            self._stats.take_back_sent()
        self._stats.metrics.dropped(reason.value, 1)
        if encoded.envelope is None or not encoded.envelope.ack:
            error = (
                AckTimeout(f"{conn.id} did not read it in time")
                if reason is FailureReason.TIMEOUT
                else ConnectionClosed(f"{conn.id} ended before it had read it")
            )
            self._failures.tell_soon(self._failure(encoded, conn, reason, error, None))

    def report_misrouted(self, encoded: EncodedMessage, conn_id: str) -> None:
        """Report a message of another node for a connection that is not here, is not admitted,
        or belongs to another user."""
        error = ConnectionClosed(f"{conn_id} is none of those that it is for")
        missed = Addressee(ConnId(conn_id))
        self._report_unwritten(encoded, missed, FailureReason.CONN_CLOSED, error)

    def report_unreadable(self, conn: Connection, encoded: EncodedMessage) -> None:
        """Count and report a kept message that can't be read, so that ``conn`` misses it."""
        error = ValidationError({}, "the message in the room's history can't be read")
        self._report_unwritten(encoded, conn, FailureReason.VALIDATION, error)

    def _report_unwritten(
        self,
        encoded: EncodedMessage,
        by: Connection | Addressee,
        reason: FailureReason,
        error: EyewallError,
    ) -> None:
        """Count and report a message that was not counted as sent."""
        self._stats.metrics.dropped(reason.value, 1)
        self._failures.tell_soon(self._failure(encoded, by, reason, error, None))

    def report_dropped(self, conn: Connection, encoded: EncodedMessage) -> None:
        """Report a message that a full queue has dropped to the failure handlers, later."""
        error = QueueFull(f"the queue of {conn.id} is full")
        failure = self._failure(encoded, conn, _full(encoded), error, conn.link.queued)
        self._failures.tell_soon(failure)

    async def report(
        self,
        encoded: EncodedMessage,
        by: Connection | Addressee,
        reason: FailureReason,
        error: EyewallError | None,
        queue: int | None = None,
        duration: float | None = None,
    ) -> None:
        """Run the failure handlers for one message that ``by`` did not get.

        ``queue`` is the number of messages in its queue, ``duration`` the seconds waited.
        """
        failure = self._failure(encoded, by, reason, error, queue, duration)
        await self._failures.tell(failure)

    def _failure(
        self,
        encoded: EncodedMessage,
        by: Connection | Addressee,
        reason: FailureReason,
        error: EyewallError | None,
        queue: int | None,
        duration: float | None = None,
    ) -> Failure:
        missed = Addressee(by.id, by.user_id) if isinstance(by, Connection) else by
        return Failure(
            message=_message_of(encoded),
            recipient=encoded.recipient or missed.conn_id or missed.user_id or "",
            reason=reason,
            error=error,
            queue=queue,
            duration=duration,
            conn_id=missed.conn_id,
            user_id=missed.user_id,
        )


def ack(request: Envelope, data: Mapping[str, Any] = NOTHING) -> Envelope:
    """Return the ack of ``request``, with ``data`` beside the usual fields."""
    fields = {**data, "message_id": request.id, "status": "ok"}
    return Envelope(request.topic, "ack", fields, None, request.id)


def refusal(offer: Offer, conn: Connection) -> EyewallError:
    """Return the error for a message that a link did not take."""
    if offer is Offer.OVERFLOWED:
        return SlowConsumer(f"{conn.id} does not read and was disconnected")
    if offer is Offer.CLOSED:
        return ConnectionClosed(f"{conn.id} is closing")
    return QueueFull(f"the queue of {conn.id} is full")


def _full(encoded: EncodedMessage) -> FailureReason:
    """Return the reason of a message that a full queue has dropped."""
    return FailureReason.BROADCAST_FULL if encoded.fan_out else FailureReason.QUEUE_FULL


def _message_of(encoded: EncodedMessage) -> Message:
    """Return the message for reports, with the id that it has on the wire; also for a message
    of the server itself and for a raw one."""
    envelope, message = encoded.envelope, encoded.message
    if message is not None:
        if message.id is None and envelope is not None:
            return replace(message, id=envelope.id)
        return message
    if envelope is not None and envelope.topic:
        # A payload from the wire is shown undecoded: decoding it may fail.
        data = envelope.raw if envelope.raw is not None else envelope.data
        return Message(
            envelope.topic, envelope.event, data, envelope.id, priority=Priority(encoded.priority)
        )
    return Message("system:raw", "message", encoded.payload)


GAP = "system:gap"


class Gaps:
    """Dropped messages of rooms with history, not reported to the client yet.

    By connection and room: the position up to which nothing is missing.
    """

    def __init__(self) -> None:
        self._of: dict[ConnId, dict[RoomId, Position]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def note(self, conn: Connection, encoded: EncodedMessage) -> None:
        """Note a dropped message; one without a position leaves no gap."""
        if encoded.position is None or encoded.stream is None or not conn.is_open:
            return
        self.note_after(conn, RoomId(encoded.stream), encoded.position.before)

    def note_after(self, conn: Connection, room_id: RoomId, sound: Position) -> None:
        """Note a gap after ``sound``: up to there nothing is missing."""
        rooms = self._of.setdefault(conn.id, {})
        noted = rooms.get(room_id)
        # The first note is the earliest, unless an earlier message was dropped later.
        if noted is None or noted.is_past(sound):
            rooms[room_id] = sound

    def take(self, conn: Connection) -> dict[RoomId, Position]:
        """Remove and return a connection's gaps, for the rooms that it is still in."""
        found = self._of.pop(conn.id, {})
        return {room_id: at for room_id, at in found.items() if room_id in conn.roles}

    def forget(self, conn: Connection) -> None:
        """Drop the gaps of a connection that has ended."""
        self._of.pop(conn.id, None)
