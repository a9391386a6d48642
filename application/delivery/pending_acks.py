"""The messages in flight that wait for an ack, and their outcomes.

Each message to each connection is one ``Delivery`` of the domain, which decides; this module
carries out its actions and reports the events to it. All share one timer queue.

Rules of this file:

1. An ack counts only from the connection to which the message was sent.
2. Each try checks again that the connection is still a recipient of the message.
3. The outcomes of one answer between nodes fit a packet, however long their texts are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

from eyewall.application.cluster.packet import BadPacket
from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.concurrency.timers import Deadline, TimerQueue
from eyewall.application.connections.registry import Connection
from eyewall.application.connections.stats import Stats
from eyewall.application.outbound.recipients import ANY_RECIPIENT, RecipientFilter
from eyewall.application.outbound.sender import TAKEN, Sender
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.message import EncodedMessage
from eyewall.domain.delivery import Action, Delivery, Event, Plan, Send, Settle, State, WaitUntil
from eyewall.domain.envelope import Envelope, Message
from eyewall.domain.errors import (
    AckTimeout,
    ConnectionClosed,
    EyewallError,
    Misuse,
    Nacked,
    QueueFull,
    Unavailable,
    code_of,
    from_code,
)
from eyewall.domain.identity import MAX_NAME, ConnId, UserId
from eyewall.domain.outbox import Offer
from eyewall.domain.report import (
    DeliveryReport,
    DeliveryStatus,
    FailureReason,
    Incident,
    PendingAck,
)
from eyewall.domain.telling import text_of

MAX_PENDING = 1024
"""Most messages that may wait for an ack of one connection: the bound for a client that never
acks."""


MAX_ANSWER = 3 * 1024 * 1024
"""Most bytes of the outcomes in one answer: three quarters of a packet's header."""


_ESCAPED = 12
"""Most bytes of a character in JSON: an emoji is two escapes."""


_FIELDS = 200
"""Bytes of an outcome in JSON without texts and names."""


_METRIC_LABELS = {
    FailureReason.NACKED: "nack",
    FailureReason.ACK_TIMEOUT: "timeout",
    FailureReason.TIMEOUT: "timeout",
    FailureReason.CONN_CLOSED: "closed",
}
"""The metrics' labels of failures; others have the value of the reason."""


class TracksLateAcks(Protocol):
    """Remembers messages whose ack is overdue, for late answers."""

    def timed_out(self, user_id: UserId, conn_id: ConnId, message_id: str) -> None:
        """Remember a message to the user that the connection did not answer in time."""

    def answered(self, conn_id: ConnId, message_id: str) -> bool:
        """Apply a late answer; False if it belongs to no remembered message."""


class _InFlight:
    """One message in flight to one connection."""

    __slots__ = (
        "conn",
        "deadline",
        "delivery",
        "done",
        "encoded",
        "nack",
        "result",
        "since",
        "user_id",
        "whom",
    )

    def __init__(
        self,
        conn: Connection,
        encoded: EncodedMessage,
        delivery: Delivery,
        since: float,
        done: Callable[[Outcome], None],
        whom: RecipientFilter,
    ) -> None:
        self.conn = conn
        self.whom = whom
        self.encoded = encoded
        self.delivery = delivery
        self.since = since
        self.deadline: Deadline | None = None
        self.done = done
        self.nack = ""
        self.result: Any = None
        self.user_id = whom.user or conn.user_id
        """The user at the last try: the connection may have another one at the answer."""

    @property
    def due(self) -> float:
        """When its ack is overdue, or its pause ends (monotonic seconds)."""
        return self.since if self.deadline is None else self.deadline.when


@dataclass(slots=True)
class AckBatch:
    """Collects the outcomes of many deliveries into one future."""

    left: int
    future: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome] = field(default_factory=list)
    started: list[_InFlight] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Add one outcome; the last one completes the future."""
        self.outcomes.append(outcome)
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.outcomes)


class PendingAcks:
    """Sends the messages of this node that need an ack, and settles each one."""

    def __init__(self, *, sender: Sender, clock: Clock, stats: Stats, stalls: Stalls) -> None:
        self._sender = sender
        self._clock = clock
        self._stats = stats
        self._deadlines = TimerQueue(clock, stalls)
        self._waiting: dict[ConnId, dict[str, _InFlight]] = {}
        self._quiet = asyncio.Event()
        self.late_acks: TracksLateAcks | None = None
        """Set on a node with an offline store: gets the time-outs and the late answers."""

    def __len__(self) -> int:
        return sum(len(of_conn) for of_conn in self._waiting.values())

    # --- sending

    async def deliver(
        self,
        conns: Iterable[Connection],
        encoded: EncodedMessage,
        plan: Plan,
        whom: RecipientFilter = ANY_RECIPIENT,
    ) -> list[Outcome]:
        """Send ``encoded`` to all of ``conns`` and wait for all answers concurrently.

        The envelope of ``encoded`` asks for an ack and has an id. Failures are outcomes; the
        caller reports them to the failure handlers.
        """
        targets = list(conns)
        if not targets:
            return []
        await self._sender.ready()
        return await self.finish(self.begin(targets, encoded, plan, whom))

    def begin(
        self,
        conns: Sequence[Connection],
        encoded: EncodedMessage,
        plan: Plan,
        whom: RecipientFilter = ANY_RECIPIENT,
    ) -> AckBatch:
        """Send ``encoded`` to those of ``conns`` that ``whom`` matches, without waiting.
        ``finish`` has to follow."""
        batch = AckBatch(len(conns), asyncio.get_running_loop().create_future())
        if not conns:
            batch.future.set_result([])
        try:
            for conn in conns:
                waiting = self._register(conn, encoded, plan, batch.add, whom)
                if waiting is not None:
                    batch.started.append(waiting)
                    self._send(waiting)
        except BaseException:
            self._forget_all(batch)
            raise
        return batch

    async def finish(self, batch: AckBatch) -> list[Outcome]:
        """Wait until all messages of ``begin`` have settled; returns their outcomes."""
        try:
            return await batch.future
        except BaseException:
            # The caller was cancelled, by a deadline of its own for instance.
            self._forget_all(batch)
            raise

    def _forget_all(self, batch: AckBatch) -> None:
        for waiting in batch.started:
            self._forget(waiting)

    def _register(
        self,
        conn: Connection,
        encoded: EncodedMessage,
        plan: Plan,
        done: Callable[[Outcome], None],
        whom: RecipientFilter,
    ) -> _InFlight | None:
        """Register a message for a connection; None if it has failed already."""
        message_id = _id(encoded)
        of_conn = self._waiting.get(conn.id, {})
        if not conn.is_open:
            closed = ConnectionClosed(f"{conn.id} is closed")
            done(_refused(conn, whom, FailureReason.CONN_CLOSED, closed))
        elif not _is_recipient(whom, conn):
            done(_refused(conn, whom, FailureReason.CONN_CLOSED, _no_recipient(conn)))
        elif message_id in of_conn:
            error: EyewallError = Misuse(
                f"a message with the id {message_id} is on its way already"
            )
            done(_refused(conn, whom, FailureReason.UNKNOWN, error))
        elif len(of_conn) >= MAX_PENDING:
            error = QueueFull(f"{MAX_PENDING} messages wait for an ack of {conn.id}")
            self._stats.dropped(FailureReason.PENDING_FULL.value)
            done(_refused(conn, whom, FailureReason.PENDING_FULL, error))
        else:
            waiting = _InFlight(conn, encoded, Delivery(plan), self._clock.now(), done, whom)
            self._waiting.setdefault(conn.id, of_conn)[message_id] = waiting
            return waiting
        return None

    def _send(self, waiting: _InFlight) -> None:
        if waiting.delivery.attempt > 1 and not _is_recipient(waiting.whom, waiting.conn):
            self._apply(waiting, Event.LOST)
            return
        waiting.user_id = waiting.whom.user or waiting.conn.user_id
        offer = self._sender.enqueue(waiting.conn.link, waiting.encoded)
        if waiting.delivery.is_settled:
            return  # the overflow has closed the connection, which settled it
        if offer is Offer.CLOSED:
            self._apply(waiting, Event.LOST)
        else:
            self._apply(waiting, Event.WRITTEN if offer in TAKEN else Event.REFUSED)

    # --- events

    def answered(self, conn: Connection, ack: Envelope) -> None:
        """Apply an ack or nack from a client (protocol.md, "Replies"). Never raises."""
        try:
            data = ack.data if isinstance(ack.data, dict) else {}
        except EyewallError:
            data = {}
        message_id = data.get("message_id")
        if message_id is None:
            message_id = ack.ref
        waiting = (
            self._waiting.get(conn.id, {}).get(message_id) if isinstance(message_id, str) else None
        )
        if waiting is None:
            late = self.late_acks
            if (
                late is None
                or not isinstance(message_id, str)
                or not late.answered(conn.id, message_id)
            ):
                self._stats.happened(Incident.STRAY_ACKS)
            return
        if data.get("status", "ok") == "ok":
            waiting.result = data.get("result")
            self._apply(waiting, Event.ACKED)
        else:
            waiting.nack = str(data.get("error", ""))[:1000]
            self._apply(waiting, Event.NACKED)

    def lost(self, conn: Connection) -> None:
        """Settle all messages to a connection that has ended."""
        for waiting in list(self._waiting.get(conn.id, {}).values()):
            self._apply(waiting, Event.LOST)

    def changed(self, conn: Connection) -> None:
        """Settle the messages to the previous user of a connection that has another one now, as
        if the connection had ended."""
        for waiting in list(self._waiting.get(conn.id, {}).values()):
            if waiting.whom.user is not None and not _is_recipient(waiting.whom, waiting.conn):
                if self.late_acks is not None:
                    # An answer may still come: the message need not stay stored then.
                    self.late_acks.timed_out(waiting.whom.user, conn.id, _id(waiting.encoded))
                self._apply(waiting, Event.LOST)

    def pending(self, conn_id: ConnId) -> list[PendingAck]:
        """Return the messages that wait for an ack of the connection, oldest first."""
        wall, now = self._clock.wall(), self._clock.now()
        return [
            PendingAck(
                message=_message(waiting.encoded),
                conn_id=conn_id,
                attempt=waiting.delivery.attempt,
                since=wall - timedelta(seconds=now - waiting.since),
                deadline=wall + timedelta(seconds=waiting.due - now),
                user_id=waiting.user_id,
            )
            for waiting in self._waiting.get(conn_id, {}).values()
        ]

    async def settled(self) -> None:
        """Return when no message waits for an ack."""
        while self._waiting:
            self._quiet.clear()
            await self._quiet.wait()

    def close(self) -> None:
        """Settle all messages as lost, and stop the timers."""
        for of_conn in list(self._waiting.values()):
            for waiting in list(of_conn.values()):
                self._apply(waiting, Event.LOST)
        self._deadlines.close()

    # --- the actions of the domain's delivery

    def _apply(self, waiting: _InFlight, event: Event) -> None:
        action: Action = waiting.delivery.on(event, self._clock.now())
        if waiting.deadline is not None:
            waiting.deadline.cancel()
            waiting.deadline = None
        match action:
            case WaitUntil(when):
                waiting.deadline = self._deadlines.at(when, lambda: self._due(waiting))
            case Send():
                self._send(waiting)
            case Settle(delivered, reason):
                self._settle(waiting, delivered, reason)

    def _due(self, waiting: _InFlight) -> None:
        waiting.deadline = None
        backing_off = waiting.delivery.state is State.BACKING_OFF
        if not backing_off:
            waiting.conn.link.read_pending()  # an ack that has arrived and is not read yet counts
            if waiting.delivery.is_settled:
                return
        self._apply(waiting, Event.DUE if backing_off else Event.EXPIRED)

    def _settle(self, waiting: _InFlight, delivered: bool, reason: FailureReason | None) -> None:
        conn = waiting.conn
        self._forget(waiting)
        if reason is FailureReason.CONN_CLOSED:
            reason = conn.fate
        took = self._clock.now() - waiting.since
        label = "ok" if reason is None else _METRIC_LABELS.get(reason, reason)
        self._stats.metrics.acked(label, took)
        error = None if reason is None else _error(reason, conn, waiting.nack)
        if reason is FailureReason.CONN_CLOSED and conn.is_open:
            error = _no_recipient(conn)
        user_id = waiting.user_id
        if reason is FailureReason.ACK_TIMEOUT and self.late_acks is not None and user_id:
            self.late_acks.timed_out(user_id, conn.id, _id(waiting.encoded))
        outcome = Outcome(
            conn.id, delivered, waiting.delivery.attempt, reason, error, waiting.result, took
        )
        outcome.user_id = user_id
        waiting.done(outcome)

    def _forget(self, waiting: _InFlight) -> None:
        if waiting.deadline is not None:
            waiting.deadline.cancel()
            waiting.deadline = None
        of_conn = self._waiting.get(waiting.conn.id, {})
        message_id = _id(waiting.encoded)
        # Compared by identity: a later message may have the same id by now.
        if of_conn.get(message_id) is not waiting:
            return
        del of_conn[message_id]
        if not of_conn:
            del self._waiting[waiting.conn.id]
        if not self._waiting:
            self._quiet.set()


def _id(encoded: EncodedMessage) -> str:
    assert encoded.envelope is not None
    assert encoded.envelope.id is not None
    return encoded.envelope.id


def _message(encoded: EncodedMessage) -> Message:
    """Return the message with the id of its envelope, which the ack will name."""
    assert encoded.message is not None
    return replace(encoded.message, id=_id(encoded))


def _is_recipient(whom: RecipientFilter, conn: Connection) -> bool:
    """Whether the message is still for the connection. Never raises, since others may have
    been sent the message already: an application's filter that fails matches nothing."""
    try:
        return whom.means(conn)
    except Exception:  # noqa: BLE001
        return False


def _no_recipient(conn: Connection) -> ConnectionClosed:
    return ConnectionClosed(f"{conn.id} is none of those that it is for any more")


def _refused(
    conn: Connection, whom: RecipientFilter, reason: FailureReason, error: EyewallError
) -> Outcome:
    return Outcome(conn.id, False, 1, reason, error, user_id=whom.user or conn.user_id)


def _error(reason: FailureReason, conn: Connection, nack: str) -> EyewallError:
    match reason:
        case FailureReason.NACKED:
            return Nacked(nack)
        case FailureReason.CONN_CLOSED | FailureReason.CONN_ERROR | FailureReason.SEND_TIMEOUT:
            return ConnectionClosed(f"{conn.id} closed before it answered")
        case FailureReason.QUEUE_FULL:
            return QueueFull(f"the queue of {conn.id} is full")
        case FailureReason.TIMEOUT:
            return AckTimeout(f"{conn.id} did not acknowledge it before its time was over")
        case _:
            return AckTimeout(f"{conn.id} did not acknowledge in time")


# --- outcomes, and their encoding between nodes


@dataclass(slots=True)
class Outcome:
    """The outcome of a message to one connection that was to acknowledge it."""

    conn_id: ConnId
    delivered: bool
    attempts: int
    reason: FailureReason | None = None
    error: EyewallError | None = None
    result: Any = None
    """The ``result`` of the client's ack."""
    seconds: float = 0.0
    """From the first try to the end."""
    user_id: UserId | None = None
    """The user of the connection; None for an anonymous one, or where it is not known."""

    def report(self) -> DeliveryReport:
        """Return the outcome as the API reports it."""
        return DeliveryReport(
            target=self.conn_id,
            status=self._status(),
            error=None if self.delivered else self.error,
            attempts=self.attempts,
            user_id=self.user_id,
            conn_id=self.conn_id,
            acked=self.delivered,
        )

    def _status(self) -> DeliveryStatus:
        if self.delivered:
            return DeliveryStatus.OK
        if is_unknown(self):
            return DeliveryStatus.UNKNOWN
        dropped = self.reason in (FailureReason.QUEUE_FULL, FailureReason.PENDING_FULL)
        return DeliveryStatus.DROPPED if dropped else DeliveryStatus.FAILED


def outcomes_out(outcomes: Sequence[Outcome], *, result: bool = False) -> list[dict[str, Any]]:
    """Return the outcomes of one answer for a packet's header, in at most ``MAX_ANSWER`` bytes.

    If they could exceed it, long user ids are left out, which the requesting node knows, and
    long texts are cut."""
    if _upper_bound(outcomes) > MAX_ANSWER:
        size = MAX_ANSWER // len(outcomes)
        outcomes = [_fitted(outcome, size) for outcome in outcomes]
    return [outcome_out(outcome, result=result) for outcome in outcomes]


def _upper_bound(outcomes: Iterable[Outcome]) -> int:
    """Return the bytes of the outcomes if every character has to be escaped."""
    return sum(
        _FIELDS
        + _ESCAPED
        * (len(o.conn_id) + len(o.user_id or "") + (len(text_of(o.error)) if o.error else 0))
        for o in outcomes
    )


def _fitted(outcome: Outcome, size: int) -> Outcome:
    """Return the outcome in ``size`` bytes: shortens the user id and the error's text."""
    left = size - _FIELDS - _bytes(outcome.conn_id)
    user_id, error = outcome.user_id, outcome.error
    if user_id is not None:
        taken = _bytes(user_id)
        user_id = user_id if taken <= left else None
        left -= taken if user_id is not None else 0
    if error is not None and _bytes(text_of(error)) > left:
        error = from_code(code_of(error), text_of(error)[: max(1, left // _ESCAPED)], {})
    return replace(outcome, user_id=user_id, error=error)


def _bytes(text: str) -> int:
    return len(json.dumps(text))


def outcome_out(outcome: Outcome, *, result: bool = False) -> dict[str, Any]:
    """Return an outcome in JSON values; with the client's result only for ``result``."""
    fields: dict[str, Any] = {"conn": outcome.conn_id, "tries": outcome.attempts}
    if outcome.delivered and result:
        fields["result"] = outcome.result
    if outcome.reason is not None:
        fields["reason"] = outcome.reason.value
    if outcome.error is not None:
        fields["error"] = [code_of(outcome.error), text_of(outcome.error)]
    fields["took"] = outcome.seconds
    if outcome.user_id is not None:
        fields["user"] = outcome.user_id
    return fields


def outcome_in(fields: Any) -> Outcome:
    """Read what ``outcome_out`` wrote; raises ``BadPacket``."""
    try:
        reason = fields.get("reason")
        error = fields.get("error")
        return Outcome(
            conn_id=ConnId(fields["conn"]),
            delivered=reason is None,
            attempts=int(fields["tries"]),
            reason=None if reason is None else FailureReason(reason),
            error=None if error is None else from_code(error[0], error[1], {}),
            result=fields.get("result"),
            seconds=float(fields["took"]),
            user_id=_user(fields.get("user")),
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as problem:
        raise BadPacket(f"not an outcome: {problem}") from None


def _user(value: Any) -> UserId | None:
    """Return the user of a connection; None from a node of an older release, which sends none."""
    return UserId(value) if isinstance(value, str) and len(value) <= MAX_NAME else None


def outcomes_in(answers: Any, requested: Sequence[ConnId]) -> list[Outcome]:
    """Return the outcomes of the ``requested`` connections from a node's answer; raises
    ``BadPacket``.

    The outcome of a missing connection is unknown; connections that were not requested are
    ignored.
    """
    if not isinstance(answers, list):
        raise BadPacket("not a list of outcomes")
    named = {outcome.conn_id: outcome for outcome in map(outcome_in, answers)}
    missing = Unavailable("the other node did not say")
    return [named.get(conn_id) or unknown(conn_id, missing) for conn_id in requested]


def unknown(conn_id: ConnId, error: EyewallError) -> Outcome:
    """Return the outcome of a connection whose node did not report one."""
    return Outcome(conn_id, False, 1, FailureReason.UNKNOWN, error)


def is_unknown(outcome: Outcome) -> bool:
    """Whether the connection's node did not report an outcome."""
    return outcome.reason is FailureReason.UNKNOWN and isinstance(outcome.error, Unavailable)
