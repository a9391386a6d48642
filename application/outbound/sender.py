"""Out: a message becomes a frame once, and goes to one link or to an audience.

Here every message that is sent is counted, and here a queue's refusal is turned into
a count, a failure report and an error.


Messages of rooms with history that a connection's full queue has dropped.

They are noted when they are dropped, and told, once for each room, when the queue has
drained: ``system:gap`` names the place up to which nothing is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
)
from eyewall.domain.history import Position
from eyewall.domain.identity import ConnId, MessageId, RoomId, UserId
from eyewall.domain.outbox import Offer
from eyewall.domain.report import Failure, FailureReason

# A tuple: looking into a set of enum members would hash them, in Python, each time.
TAKEN = (Offer.QUEUED, Offer.DROPPED_OLDEST)
"""Outcomes with which the message itself will be written."""


NOTHING: Mapping[str, Any] = MappingProxyType({})


class Addressee(NamedTuple):
    """Who missed a message, as far as that is known."""

    conn_id: ConnId | None = None
    user_id: UserId | None = None


class Ids:
    """Message ids: a random start, so that no two nodes or restarts meet, and a count."""

    __slots__ = ("_numbers", "_start")

    def __init__(self, start: str) -> None:
        self._start = start
        self._numbers = count(1)

    def new(self) -> MessageId:
        return MessageId(f"{self._start}{next(self._numbers):x}")


class Sender:
    """Turns messages into frames and hands them to links and audiences."""

    def __init__(
        self, *, codec: Codec, outbound: MessageWriter, stats: Stats, failures: Failures, ids: Ids
    ) -> None:
        self._codec = codec
        self._ack = codec.ack if isinstance(codec, Acknowledges) else None
        self._outbound = outbound
        self._stats = stats
        self._failures = failures
        self.new_id = ids.new
        self.gaps = Gaps()

    # --- frames

    def encode(
        self,
        message: Message,
        *,
        ack: bool = False,
        recipient: str | None = None,
        fan_out: bool = False,
    ) -> EncodedMessage:
        """Encode ``message``, giving it an id if it has none.

        Raises ``Misuse`` for data that can't be encoded.
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
        """Encode what the server itself says: acks, errors, notices."""
        return EncodedMessage(self._codec.encode(envelope), envelope=envelope)

    def encode_ack(self, request: Envelope) -> EncodedMessage:
        """The ack of a request whose handler returned nothing."""
        if self._ack is None or request.id is None:
            return self.encode_envelope(ack(request))
        payload = self._ack(request.id, request.topic)
        return EncodedMessage(payload, envelope=partial(ack, request))

    def encode_answer(self, request: Envelope, data: Any) -> EncodedMessage:
        """A message that answers ``request``: its topic, and its id as ``ref``."""
        raw = data if isinstance(data, Raw) else None
        plain = None if raw is not None else data
        return self.encode_envelope(
            Envelope(request.topic, "message", plain, self.new_id(), request.id, raw=raw)
        )

    def encode_notice(self, topic: str, event: str, data: Any) -> EncodedMessage:
        """A frame of the server's own, with an id."""
        return self.encode_envelope(Envelope(topic, event, data, id=self.new_id()))

    def encode_gap(self, room_id: RoomId, at: Position) -> EncodedMessage:
        """Tell that messages of a room after ``at`` were dropped.

        It stands in the place of the first of them: if it is dropped too, that is the
        same gap.
        """
        data = {"room": room_id, "epoch": at.epoch, "offset": at.offset}
        frame = self.encode_notice(GAP, "gap", data)
        frame.stream = room_id
        frame.position = Position(at.epoch, at.offset + 1)
        return frame

    @staticmethod
    def encode_text(data: str | bytes, *, fan_out: bool = False) -> EncodedMessage:
        """A frame without an envelope: text for ``str``, binary for ``bytes``."""
        binary = isinstance(data, bytes)
        payload = data if isinstance(data, bytes) else data.encode()
        return EncodedMessage(payload, raw=True, binary=binary, fan_out=fan_out)

    # --- one connection

    def enqueue(self, link: Link, frame: EncodedMessage) -> Offer:
        """Hand a frame to a link, and count what became of it."""
        offer = link.send(frame)
        if offer in TAKEN:
            if not frame.raw:
                self._stats.sent(1)
        elif offer is not Offer.CLOSED:
            self._stats.dropped(FailureReason.QUEUE_FULL.value)
            self.gaps.note(link.owner, frame)
        return offer

    async def try_send(self, conn: Connection, frame: EncodedMessage) -> EyewallError | None:
        """Send to one connection; returns why it was not taken, after the handlers ran."""
        if not conn.is_open:
            error: EyewallError = ConnectionClosed(f"{conn.id} is closed")
            await self.report(frame, conn, FailureReason.CONN_CLOSED, error)
            return error
        offer = self.enqueue(conn.link, frame)
        if offer in TAKEN:
            return None
        error = refusal(offer, conn)
        closed = offer is Offer.CLOSED
        reason = FailureReason.CONN_CLOSED if closed else FailureReason.QUEUE_FULL
        await self.report(frame, conn, reason, error, conn.link.queued)
        return error

    async def send(self, conn: Connection, topic: str, event: str, data: Any) -> None:
        """Send a message; raises ``ConnectionClosed``, ``QueueFull`` or ``SlowConsumer``."""
        error = await self.try_send(conn, self.encode(Message(topic, event, data)))
        if error is not None:
            raise error

    async def send_raw(self, conn: Connection, data: str | bytes) -> None:
        """Send one frame as it is; raises as ``send`` does."""
        error = await self.try_send(conn, self.encode_text(data))
        if error is not None:
            raise error

    # --- many

    async def broadcast_when_ready(
        self, audience: BroadcastGroup, frame: EncodedMessage, skip: Collection[Link] = ()
    ) -> int:
        """Send to everybody in ``audience``; returns to how many.

        Waits while too much is queued already, so that who publishes faster than the
        node can write is slowed down.
        """
        await self._outbound.ready()
        return self.broadcast(audience, frame, skip)

    def broadcast(
        self, audience: BroadcastGroup, frame: EncodedMessage, skip: Collection[Link] = ()
    ) -> int:
        """Send to everybody in ``audience`` without waiting; returns to how many."""
        reached = audience.publish(frame, skip)
        if not frame.raw:
            self._stats.sent(reached)
        return reached

    async def ready(self) -> None:
        """Return when the node has room for more to write."""
        await self._outbound.ready()

    def enqueue_to_each(self, conns: Collection[Connection], frame: EncodedMessage) -> int:
        """Send one frame to each of ``conns``; what is dropped is reported soon."""
        for conn in conns:
            self.enqueue_or_report(conn, frame)
        return len(conns)

    def enqueue_or_report(self, conn: Connection, frame: EncodedMessage) -> bool:
        """Send one frame without waiting; False if it will not be written.

        A queue that does not take it is reported soon.
        """
        offer = self.enqueue(conn.link, frame)
        if offer in TAKEN:
            return True
        if offer is not Offer.CLOSED:
            self.report_dropped(conn, frame)
        return False

    # --- what did not arrive

    def dropped(self, conn: Connection, frame: EncodedMessage) -> None:
        """A frame that the link had taken did not fit after all."""
        if not frame.raw:
            self._stats.take_back_sent()
        self.drop(conn, frame)

    def drop(self, conn: Connection, frame: EncodedMessage) -> None:
        """There was no place for a frame where it would have waited for the link."""
        self._stats.dropped(FailureReason.QUEUE_FULL.value)
        self.gaps.note(conn, frame)
        self.report_dropped(conn, frame)

    def send_gaps(self, conn: Connection) -> None:
        """Tell a client that reads what its full queue has dropped of rooms with history."""
        for room_id, at in self.gaps.take(conn).items():
            self.enqueue_or_report(conn, self.encode_gap(room_id, at))

    def lost(self, conn: Connection, frame: EncodedMessage, reason: FailureReason) -> None:
        """A frame that the link had taken was not written before it ended, or in time.

        One that asked for an ack is reported by who waits for that.
        """
        if not frame.raw:
            self._stats.take_back_sent()
        self._stats.metrics.dropped(reason.value, 1)
        if frame.envelope is None or not frame.envelope.ack:
            error = (
                AckTimeout(f"{conn.id} did not read it in time")
                if reason is FailureReason.TIMEOUT
                else ConnectionClosed(f"{conn.id} ended before it had read it")
            )
            self._failures.tell_soon(self._failure(frame, conn, reason, error, None))

    def report_misrouted(self, frame: EncodedMessage, conn_id: str) -> None:
        """A frame of another node was for a connection that is not here, or not let in, or
        another user's."""
        self._stats.metrics.dropped(FailureReason.CONN_CLOSED.value, 1)
        error = ConnectionClosed(f"{conn_id} is none of those that it is for")
        reason, missed = FailureReason.CONN_CLOSED, Addressee(ConnId(conn_id))
        self._failures.tell_soon(self._failure(frame, missed, reason, error, None))

    def report_dropped(self, conn: Connection, frame: EncodedMessage) -> None:
        reason = FailureReason.BROADCAST_FULL if frame.fan_out else FailureReason.QUEUE_FULL
        error = QueueFull(f"the queue of {conn.id} is full")
        self._failures.tell_soon(self._failure(frame, conn, reason, error, conn.link.queued))

    async def report(
        self,
        frame: EncodedMessage,
        by: Connection | Addressee,
        reason: FailureReason,
        error: EyewallError | None,
        queue: int | None = None,
        duration: float | None = None,
    ) -> None:
        """Have the failure handlers run for one frame that was missed ``by`` somebody."""
        failure = self._failure(frame, by, reason, error, queue, duration)
        await self._failures.tell(failure)

    def _failure(
        self,
        frame: EncodedMessage,
        by: Connection | Addressee,
        reason: FailureReason,
        error: EyewallError | None,
        queue: int | None,
        duration: float | None = None,
    ) -> Failure:
        missed = Addressee(by.id, by.user_id) if isinstance(by, Connection) else by
        return Failure(
            message=frame.message or _message_of(frame),
            recipient=frame.recipient or missed.conn_id or missed.user_id or "",
            reason=reason,
            error=error,
            queue=queue,
            duration=duration,
            conn_id=missed.conn_id,
            user_id=missed.user_id,
        )


def ack(request: Envelope, data: Mapping[str, Any] = NOTHING) -> Envelope:
    """The ack of ``request``, with ``data`` beside what stands in every one."""
    fields = {**data, "message_id": request.id, "status": "ok"}
    return Envelope(request.topic, "ack", fields, None, request.id)


def refusal(offer: Offer, conn: Connection) -> EyewallError:
    """The error that tells why a link did not take a frame."""
    if offer is Offer.OVERFLOWED:
        return SlowConsumer(f"{conn.id} does not read and was disconnected")
    if offer is Offer.CLOSED:
        return ConnectionClosed(f"{conn.id} is closing")
    return QueueFull(f"the queue of {conn.id} is full")


def _message_of(frame: EncodedMessage) -> Message:
    """Show what the server itself sent, or a raw frame, as a message."""
    envelope = frame.envelope
    if envelope is not None and envelope.topic:
        # A payload that came off the wire is shown as it is: it may not be decodable.
        data = envelope.raw if envelope.raw is not None else envelope.data
        return Message(
            envelope.topic, envelope.event, data, envelope.id, priority=Priority(frame.priority)
        )
    return Message("system:raw", "message", frame.payload)


GAP = "system:gap"


class Gaps:
    """What has been dropped and not been told, by connection and room.

    A connection has at most one note for each of its rooms.
    """

    def __init__(self) -> None:
        self._of: dict[ConnId, dict[RoomId, Position]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def note(self, conn: Connection, frame: EncodedMessage) -> None:
        """A frame was dropped; one without a place in a history leaves no gap."""
        if frame.position is None or frame.stream is None or not conn.is_open:
            return
        self.note_after(conn, RoomId(frame.stream), frame.position.before)

    def note_after(self, conn: Connection, room_id: RoomId, sound: Position) -> None:
        """Nothing is missing up to ``sound``, and something after it."""
        rooms = self._of.setdefault(conn.id, {})
        noted = rooms.get(room_id)
        # What was noted first is the longest ago, unless an earlier frame gave way later.
        if noted is None or noted.is_past(sound):
            rooms[room_id] = sound

    def take(self, conn: Connection) -> dict[RoomId, Position]:
        """Return, and forget, up to where nothing is missing in each room with a gap."""
        found = self._of.pop(conn.id, {})
        return {room_id: at for room_id, at in found.items() if room_id in conn.roles}

    def forget(self, conn: Connection) -> None:
        """The connection has ended."""
        self._of.pop(conn.id, None)
