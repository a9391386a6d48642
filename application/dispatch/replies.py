"""Answers to requests: acks, nacks and errors (protocol.md, "Replies").

Every request with ``ack: true`` gets exactly one ack; the refusal of any other request is an
``error``. In a session the last answers are kept, and a retransmitted request gets the same
answer.

Rule of this file: a side effect can't prevent an answer. Building a refusal never raises, and
the failure handlers and the log run after it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from eyewall.application.connections.registry import Connection
from eyewall.application.connections.stats import Stats
from eyewall.application.dispatch.command_fields import PUBLISH, published
from eyewall.application.outbound.failures import Failures
from eyewall.application.outbound.sender import Sender, ack
from eyewall.application.ports.logging import shown
from eyewall.application.ports.message import EncodedMessage
from eyewall.application.ports.plugins import Logger
from eyewall.domain.envelope import ERROR_TOPIC, MAX_TOPIC, ROOM, SYSTEM, Envelope, Message
from eyewall.domain.errors import (
    EyewallError,
    Misuse,
    Overloaded,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from eyewall.domain.report import Failure, FailureReason, reason_of
from eyewall.domain.request_log import RequestState
from eyewall.domain.telling import MAX_DETAILS, RESERVED, Told, tell

_TRY_AGAIN = (RateLimited, Overloaded, Unavailable, Unauthorized)
"""Refusals that are not kept: a retry may succeed, after some time or with a new token."""


class ReservedKey(Misuse):
    """A handler's result has keys that are the protocol's own fields of an ack."""

    def __init__(self, keys: Iterable[str]) -> None:
        names = ", ".join(sorted(keys))
        super().__init__(f"a handler's result has the reserved {names}: name it otherwise")


class Responder:
    """Sends the answers to requests: one ack, nack or error each."""

    def __init__(self, sender: Sender, failures: Failures, stats: Stats, logger: Logger) -> None:
        self._sender = sender
        self._failures = failures
        self._stats = stats
        self._logger = logger

    def is_retransmission(self, conn: Connection, request: Envelope) -> bool:
        """Register a request; True if it was received before: it is answered now, or with the
        first one."""
        if conn.session is None and conn.request_log is None:
            return False  # a client without a subprotocol has no session
        if not request.ack or request.id is None or (log := conn.opened_request_log) is None:
            return False
        found = log.register(request.id)
        if found is RequestState.NEW:
            return False
        if isinstance(found, bytes):
            self._send(conn, EncodedMessage(found))
        elif found is RequestState.TOO_MANY:
            self.refuse(conn, request, Overloaded("too much waits"))
        return True

    def discard(self, conn: Connection, request: Envelope) -> Connection | None:
        """Forget a command that did not act, because its connection has ended.

        Returns the connection that has resumed the session, if a retransmission from it waits:
        the command has to be handled for that connection.
        """
        log = conn.request_log
        if log is None or not request.ack or request.id is None:
            return None
        successor: Connection | None = log.successor
        waits = bool(log.discard(request.id))
        return successor if waits and successor is not None and successor.is_open else None

    def was_answered(self, conn: Connection, request: Envelope) -> bool:
        """Answer a retransmitted request that arrived before its session was resumed, when
        ``is_retransmission`` could not recognise it yet. False if it is not one."""
        log = conn.request_log
        if log is None or log.successor is None or not request.ack or request.id is None:
            return False
        answer = log.answer(request.id)
        if answer is None:
            return False
        for _ in range(1 + log.discard(request.id)):
            self._send(conn, EncodedMessage(answer))
        return True

    def accept(self, conn: Connection, request: Envelope, result: Any) -> None:
        """Ack a request with the result of its handler.

        Raises ``ReservedKey`` for a result with the ack's own fields, ``Misuse`` for one that
        can't be encoded. Nothing has been sent then.
        """
        if result is None:
            if request.ack:
                self._answer(conn, request, self._sender.encode_ack(request), remember=True)
            return
        data = result if isinstance(result, Mapping) else {"result": result}
        if not RESERVED.isdisjoint(data):
            raise ReservedKey(RESERVED.intersection(data))
        if request.ack:
            encoded = self._sender.encode_envelope(ack(request, data))
            self._answer(conn, request, encoded, remember=True)

    def refuse(
        self,
        conn: Connection,
        request: Envelope,
        error: BaseException,
        *,
        remember: bool = False,
    ) -> None:
        """Nack a request, or send an ``error`` if it did not ask for an ack. Never raises.

        ``remember``: keep the answer for retransmissions, as the handler's or command's own.
        """
        told = tell(error)
        whole = True
        try:
            if request.ack:
                data = {
                    "message_id": request.id,
                    "status": "nack",
                    "error": told.text,
                    "code": told.code,
                }
                remember = remember and not isinstance(error, _TRY_AGAIN)
                answer = Envelope(request.topic, "ack", data, ref=request.id)
                encoded, whole = self._frame(answer, told)
                self._answer(conn, request, encoded, remember=remember, code=told.code)
            else:
                whole = self._send_error(conn, request.id, request.topic, told)
        except BaseException as problem:
            if request.id is not None and (log := conn.request_log) is not None:
                log.discard(request.id)
            self._logger.error("answer_not_sent", error=shown(problem), exc_info=problem)
        if told.problem or not whole:
            why = told.problem or "they can't be sent as they are"
            self._logger.error("details_not_sent", topic=request.topic, code=told.code, error=why)
        if request.topic == PUBLISH:
            self._report(request, error)

    def refuse_unread(
        self, conn: Connection, error: BaseException, ref: str | None, topic: str | None
    ) -> None:
        """Send an ``error`` about data that is no valid message. ``ref`` and ``topic`` are the
        message's, as far as they could be read."""
        self._send_error(conn, ref, topic or ERROR_TOPIC, tell(error))

    def _report(self, request: Envelope, error: BaseException) -> None:
        """Report the refusal of a client's publication to the failure handlers. Never raises."""
        try:
            self._report_refusal(request, error)
        except BaseException as problem:
            self._logger.error("refusal_not_reported", error=shown(problem), exc_info=problem)

    def _report_refusal(self, request: Envelope, error: BaseException) -> None:
        reason = reason_of(error)
        if reason in (FailureReason.PERMISSION, FailureReason.VALIDATION):
            topic, event = published(request)
            try:
                message = Message(topic, event, request.raw, request.id)
            except ValueError:  # a name of the client's that is too long for a message
                message = Message(PUBLISH, "message", request.raw, request.id)
            assert isinstance(error, EyewallError)
            room_id = topic.removeprefix(ROOM)[:MAX_TOPIC]
            self._failures.tell_soon(Failure(message, room_id, reason, error))

    def _answer(
        self,
        conn: Connection,
        request: Envelope,
        encoded: EncodedMessage,
        *,
        remember: bool,
        code: str | None = None,
    ) -> None:
        # With a session the connection has a log by now: ``is_retransmission`` opened it.
        if request.id is None or (log := conn.request_log) is None:
            self._send(conn, encoded, code)
        else:
            waiting = (
                log.record(request.id, encoded.payload, bound=is_bound(request))
                if remember
                else log.discard(request.id)
            )
            self._send(conn, encoded, code)
            for _ in range(waiting):
                self._send(log.successor or conn, encoded, code)

    def _send_error(self, conn: Connection, ref: str | None, topic: str, told: Told) -> bool:
        """Send an ``error``; False if some of its details could not be encoded."""
        data = {"code": told.code, "error": told.text}
        encoded, whole = self._frame(Envelope(topic, "error", data, ref=ref), told)
        self._send(conn, encoded, told.code)
        return whole

    def _frame(self, envelope: Envelope, told: Told) -> tuple[EncodedMessage, bool]:
        """Encode a refusal with the error's details, and return whether all are in it.

        The details come from the application's exceptions: those that can't be encoded are
        left out.
        """
        if not told.details:
            return self._sender.encode_envelope(envelope), True
        encoded = self._with(told.details, envelope)
        if encoded is not None:
            return encoded, True
        some = {
            name: value
            for name, value in told.details.items()
            if self._with({name: value}, envelope) is not None
        }
        return self._with(some, envelope) or self._sender.encode_envelope(envelope), False

    def _with(self, details: Mapping[str, Any], envelope: Envelope) -> EncodedMessage | None:
        try:
            encoded = self._sender.encode_envelope(envelope.with_data({**envelope.data, **details}))
        except BaseException:  # noqa: BLE001  (whatever a type of the application's raises)
            return None
        return encoded if len(encoded.payload) <= MAX_DETAILS else None

    def _send(self, conn: Connection, encoded: EncodedMessage, code: str | None = None) -> None:
        """Send a reply; to a connection that has ended, nothing is sent and nothing counted.
        Never raises.

        ``code``: that of an error or a nack, which is counted by it.
        """
        try:
            if conn.is_open and self._sender.enqueue_or_report(conn, encoded) and code is not None:
                self._stats.failed(code)
        except BaseException as problem:
            self._logger.error(
                "answer_not_sent", conn_id=conn.id, error=shown(problem), exc_info=problem
            )


def is_bound(request: Envelope) -> bool:
    """Whether the answer is about the connection, such as its membership of a room. Only the
    command ``publish`` has an answer that holds for any connection of the session."""
    return request.topic.startswith(SYSTEM) and request.topic != PUBLISH
