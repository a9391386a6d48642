"""Messages that wait for an ack: one state table each, one timer structure for all.

The domain's ``Delivery`` decides; here its actions are carried out and what happened
is told to it. Each delivery belongs to one message and one connection: an ack counts
only from the connection that the message went to. Each try asks again whether the
connection still is one of those that the message is for.


What became of an acknowledged delivery, and how that travels between nodes."""

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
"""Messages that may wait for an ack from one connection: a client that never acks
costs at most so many entries."""


_OUTCOMES = {
    FailureReason.NACKED: "nack",
    FailureReason.ACK_TIMEOUT: "timeout",
    FailureReason.TIMEOUT: "timeout",
    FailureReason.CONN_CLOSED: "closed",
}
"""What metrics call a failure; the others go by their own name."""


class TracksLateAcks(Protocol):
    """Remembers acks that did not come in time, for answers that come after the time-out."""

    def silent(self, user_id: UserId, conn_id: ConnId, message_id: str) -> None:
        """The connection, which belonged to the user then, did not answer in time."""

    def answered(self, conn_id: ConnId, message_id: str) -> bool:
        """Take a late answer; False if it belongs to no message that was remembered."""


class _Waiting:
    """One message that is on its way to one connection."""

    __slots__ = (
        "conn",
        "deadline",
        "delivery",
        "done",
        "frame",
        "nack",
        "result",
        "since",
        "user_id",
        "whom",
    )

    def __init__(
        self,
        conn: Connection,
        frame: EncodedMessage,
        delivery: Delivery,
        since: float,
        done: Callable[[Outcome], None],
        whom: RecipientFilter,
    ) -> None:
        self.conn = conn
        self.whom = whom
        self.frame = frame
        self.delivery = delivery
        self.since = since
        self.deadline: Deadline | None = None
        self.done = done
        self.nack = ""
        self.result: Any = None
        self.user_id = whom.user or conn.user_id
        """The user whom it was last written to: the connection may be another's at the answer."""

    @property
    def due(self) -> float:
        """When it is over, or tried again, if nothing is heard of it before."""
        return self.since if self.deadline is None else self.deadline.when


@dataclass(slots=True)
class AckBatch:
    """Collects the outcomes of many deliveries into one future."""

    left: int
    future: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome] = field(default_factory=list)
    started: list[_Waiting] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.outcomes)


class PendingAcks:
    """All messages of this node that wait for an ack."""

    def __init__(self, *, sender: Sender, clock: Clock, stats: Stats, stalls: Stalls) -> None:
        self._sender = sender
        self._clock = clock
        self._stats = stats
        self._deadlines = TimerQueue(clock, stalls)
        self._waiting: dict[ConnId, dict[str, _Waiting]] = {}
        self._quiet = asyncio.Event()
        self.late_acks: TracksLateAcks | None = None
        """Who is told of time-outs, and of answers that nobody waits for."""

    def __len__(self) -> int:
        return sum(len(of_conn) for of_conn in self._waiting.values())

    # --- out

    async def deliver(
        self,
        conns: Iterable[Connection],
        frame: EncodedMessage,
        plan: Plan,
        whom: RecipientFilter = ANY_RECIPIENT,
    ) -> list[Outcome]:
        """Send ``frame`` to all of ``conns`` and wait for all of them at the same time.

        The envelope of ``frame`` asks for an ack and has an id. Failures are in the
        outcomes; nobody has been told of them yet.
        """
        targets = list(conns)
        if not targets:
            return []
        await self._sender.ready()
        return await self.finish(self.begin(targets, frame, plan, whom))

    def begin(
        self,
        conns: Sequence[Connection],
        frame: EncodedMessage,
        plan: Plan,
        whom: RecipientFilter = ANY_RECIPIENT,
    ) -> AckBatch:
        """Send ``frame`` to all of ``conns`` that ``whom`` means, without waiting.
        ``finish`` has to follow."""
        batch = AckBatch(len(conns), asyncio.get_running_loop().create_future())
        if not conns:
            batch.future.set_result([])
        try:
            for conn in conns:
                waiting = self._start(conn, frame, plan, batch.add, whom)
                if waiting is not None:
                    batch.started.append(waiting)
                    self._send(waiting)
        except BaseException:
            self._give_up(batch)
            raise
        return batch

    async def finish(self, batch: AckBatch) -> list[Outcome]:
        """Wait for all answers to what ``begin`` has sent."""
        try:
            return await batch.future
        except BaseException:
            # Nobody waits any longer: a deadline may have ended the caller.
            self._give_up(batch)
            raise

    def _give_up(self, batch: AckBatch) -> None:
        for waiting in batch.started:
            self._forget(waiting)

    def _start(
        self,
        conn: Connection,
        frame: EncodedMessage,
        plan: Plan,
        done: Callable[[Outcome], None],
        whom: RecipientFilter,
    ) -> _Waiting | None:
        """Note that the connection's answer is awaited; None if that is over already."""
        message_id = _id(frame)
        of_conn = self._waiting.get(conn.id, {})
        if not conn.is_open:
            closed = ConnectionClosed(f"{conn.id} is closed")
            done(_refused(conn, whom, FailureReason.CONN_CLOSED, closed))
        elif not _is_meant(whom, conn):
            done(_refused(conn, whom, FailureReason.CONN_CLOSED, _another(conn)))
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
            waiting = _Waiting(conn, frame, Delivery(plan), self._clock.now(), done, whom)
            self._waiting.setdefault(conn.id, of_conn)[message_id] = waiting
            return waiting
        return None

    def _send(self, waiting: _Waiting) -> None:
        if waiting.delivery.attempt > 1 and not _is_meant(waiting.whom, waiting.conn):
            self._tell(waiting, Event.LOST)
            return
        waiting.user_id = waiting.whom.user or waiting.conn.user_id
        offer = self._sender.enqueue(waiting.conn.link, waiting.frame)
        if waiting.delivery.is_settled:
            return  # the overflow has ended the connection, and that settled it
        if offer is Offer.CLOSED:
            self._tell(waiting, Event.LOST)
        else:
            self._tell(waiting, Event.WRITTEN if offer in TAKEN else Event.REFUSED)

    # --- what happened

    def answered(self, conn: Connection, ack: Envelope) -> None:
        """Take in an ack or nack from a client (protocol.md, "Replies")."""
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
            self._tell(waiting, Event.ACKED)
        else:
            waiting.nack = str(data.get("error", ""))[:1000]
            self._tell(waiting, Event.NACKED)

    def lost(self, conn: Connection) -> None:
        """The connection has ended: what waits for it is settled at once."""
        for waiting in list(self._waiting.get(conn.id, {}).values()):
            self._tell(waiting, Event.LOST)

    def changed(self, conn: Connection) -> None:
        """The connection is another user's: what waits there for the one before is settled
        at once, as if that one's connection had ended."""
        for waiting in list(self._waiting.get(conn.id, {}).values()):
            if waiting.whom.user is not None and not _is_meant(waiting.whom, waiting.conn):
                if self.late_acks is not None:
                    # What was written before may still be answered: then it need not be kept.
                    self.late_acks.silent(waiting.whom.user, conn.id, _id(waiting.frame))
                self._tell(waiting, Event.LOST)

    def pending(self, conn_id: ConnId) -> list[PendingAck]:
        """What waits for an ack of the connection, oldest first."""
        wall, now = self._clock.wall(), self._clock.now()
        return [
            PendingAck(
                message=_message(waiting.frame),
                conn_id=conn_id,
                attempt=waiting.delivery.attempt,
                since=wall - timedelta(seconds=now - waiting.since),
                deadline=wall + timedelta(seconds=waiting.due - now),
                user_id=waiting.user_id,
            )
            for waiting in self._waiting.get(conn_id, {}).values()
        ]

    async def settled(self) -> None:
        """Return when nothing waits for an ack any more."""
        while self._waiting:
            self._quiet.clear()
            await self._quiet.wait()

    def close(self) -> None:
        """Settle everything as lost, and end the timer."""
        for of_conn in list(self._waiting.values()):
            for waiting in list(of_conn.values()):
                self._tell(waiting, Event.LOST)
        self._deadlines.close()

    # --- the table's actions

    def _tell(self, waiting: _Waiting, event: Event) -> None:
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

    def _due(self, waiting: _Waiting) -> None:
        waiting.deadline = None
        backing_off = waiting.delivery.state is State.BACKING_OFF
        if not backing_off:
            waiting.conn.link.look()  # an answer that has come counts, though nobody has read it
            if waiting.delivery.is_settled:
                return
        self._tell(waiting, Event.DUE if backing_off else Event.EXPIRED)

    def _settle(self, waiting: _Waiting, delivered: bool, reason: FailureReason | None) -> None:
        conn = waiting.conn
        self._forget(waiting)
        if reason is FailureReason.CONN_CLOSED:
            reason = conn.fate
        took = self._clock.now() - waiting.since
        self._stats.metrics.acked("ok" if reason is None else _OUTCOMES.get(reason, reason), took)
        error = None if reason is None else _error(reason, conn, waiting.nack)
        if reason is FailureReason.CONN_CLOSED and conn.is_open:
            error = _another(conn)
        user_id = waiting.user_id
        if reason is FailureReason.ACK_TIMEOUT and self.late_acks is not None and user_id:
            self.late_acks.silent(user_id, conn.id, _id(waiting.frame))
        outcome = Outcome(
            conn.id, delivered, waiting.delivery.attempt, reason, error, waiting.result, took
        )
        outcome.user_id = user_id
        waiting.done(outcome)

    def _forget(self, waiting: _Waiting) -> None:
        if waiting.deadline is not None:
            waiting.deadline.cancel()
            waiting.deadline = None
        of_conn = self._waiting.get(waiting.conn.id, {})
        message_id = _id(waiting.frame)
        # By identity: another message may have the id since this one was settled.
        if of_conn.get(message_id) is not waiting:
            return
        del of_conn[message_id]
        if not of_conn:
            del self._waiting[waiting.conn.id]
        if not self._waiting:
            self._quiet.set()


def _id(frame: EncodedMessage) -> str:
    assert frame.envelope is not None
    assert frame.envelope.id is not None
    return frame.envelope.id


def _message(frame: EncodedMessage) -> Message:
    """The message, under the id that it travels with: the ack will name it."""
    assert frame.message is not None
    return replace(frame.message, id=_id(frame))


def _is_meant(whom: RecipientFilter, conn: Connection) -> bool:
    """Whether the message still is for the connection. A filter that fails means nobody: it
    is the application's own, and is asked here when others have been sent theirs."""
    try:
        return whom.means(conn)
    except Exception:  # noqa: BLE001
        return False


def _another(conn: Connection) -> ConnectionClosed:
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


ANSWER = 3 * 1024 * 1024
"""Bytes that the outcomes of one answer may take: three quarters of a packet's header."""


_ESCAPED = 12
"""Bytes that a character takes in JSON at most: an emoji is two escapes."""


_FIELDS = 200
"""Bytes of an outcome in JSON without texts and names."""


@dataclass(slots=True)
class Outcome:
    """What became of an acknowledged message to one connection."""

    conn_id: ConnId
    delivered: bool
    attempts: int
    reason: FailureReason | None = None
    error: EyewallError | None = None
    result: Any = None
    """What the client put beside ``status``."""
    seconds: float = 0.0
    user_id: UserId | None = None
    """Whose connection it was."""

    def report(self) -> DeliveryReport:
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
    """Return the outcomes of one answer for a packet's header, in at most ``ANSWER`` bytes.

    Where they might take more, names that are too long are left out, which the node that asked
    knows by itself, and long texts are cut."""
    if _at_most(outcomes) > ANSWER:
        room = ANSWER // len(outcomes)
        outcomes = [_fitted(outcome, room) for outcome in outcomes]
    return [outcome_out(outcome, result=result) for outcome in outcomes]


def _at_most(outcomes: Iterable[Outcome]) -> int:
    """Return the bytes of the outcomes if every character has to be escaped."""
    return sum(
        _FIELDS
        + _ESCAPED
        * (len(o.conn_id) + len(o.user_id or "") + (len(text_of(o.error)) if o.error else 0))
        for o in outcomes
    )


def _fitted(outcome: Outcome, room: int) -> Outcome:
    """Return the outcome in ``room`` bytes, as far as the id of the connection leaves any."""
    left = room - _FIELDS - _bytes(outcome.conn_id)
    user_id, error = outcome.user_id, outcome.error
    if user_id is not None:
        size = _bytes(user_id)
        user_id = user_id if size <= left else None
        left -= size if user_id is not None else 0
    if error is not None and _bytes(text_of(error)) > left:
        error = from_code(code_of(error), text_of(error)[: max(1, left // _ESCAPED)], {})
    return replace(outcome, user_id=user_id, error=error)


def _bytes(text: str) -> int:
    return len(json.dumps(text))


def outcome_out(outcome: Outcome, *, result: bool = False) -> dict[str, Any]:
    """An outcome as JSON can hold it; with what the client said only if asked for."""
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


def outcomes_in(answers: Any, asked: Sequence[ConnId]) -> list[Outcome]:
    """Read a node's answer about the connections ``asked``; raises ``BadPacket``.

    One that it does not name is unknown, one that nobody asked for is left out.
    """
    if not isinstance(answers, list):
        raise BadPacket("not a list of outcomes")
    named = {outcome.conn_id: outcome for outcome in map(outcome_in, answers)}
    missing = Unavailable("the other node did not say")
    return [named.get(conn_id) or unknown(conn_id, missing) for conn_id in asked]


def unknown(conn_id: ConnId, error: EyewallError) -> Outcome:
    """The outcome of a connection whose node did not say what became of the message."""
    return Outcome(conn_id, False, 1, FailureReason.UNKNOWN, error)


def is_unknown(outcome: Outcome) -> bool:
    return outcome.reason is FailureReason.UNKNOWN and isinstance(outcome.error, Unavailable)
