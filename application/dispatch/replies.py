"""Answers to requests: acks, nacks and errors (protocol.md, "Replies").

Every request with ``ack: true`` gets exactly one ack; a refusal without one is an
``error``; never both. In a session the last answers are remembered, and a request that
is sent again gets the same one.

Rule of this file: nothing that serves an answer can prevent it. What is told of a refusal
never raises, and who else wants to hear of it (failure handlers, the log) does so after it.
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
from eyewall.domain.repeats import Seen
from eyewall.domain.report import Failure, FailureReason, reason_of
from eyewall.domain.telling import MAX_DETAILS, RESERVED, Told, tell

_TRY_AGAIN = (RateLimited, Overloaded, Unavailable, Unauthorized)
"""Refusals that are not remembered: time, or a new token, may have changed the answer."""


class ReservedKey(Misuse):
    """A handler's result has keys that the protocol itself puts into an ack."""

    def __init__(self, keys: Iterable[str]) -> None:
        names = ", ".join(sorted(keys))
        super().__init__(f"a handler's result has the reserved {names}: name it otherwise")


class Responder:
    """Says yes or no to a request, once."""

    def __init__(self, sender: Sender, failures: Failures, stats: Stats, logger: Logger) -> None:
        self._sender = sender
        self._failures = failures
        self._stats = stats
        self._logger = logger

    def is_repeat(self, conn: Connection, request: Envelope) -> bool:
        """Answer a request that was sent before; False if it is new."""
        if conn.session is None and conn.asked is None:
            return False  # a client without a subprotocol: nothing of it is remembered
        if not request.ack or request.id is None or (repeats := conn.repeats) is None:
            return False
        seen = repeats.look(request.id)
        if seen is Seen.NEW:
            return False
        if isinstance(seen, bytes):
            self._send(conn, EncodedMessage(seen))
        elif seen is Seen.TOO_MANY:
            self.refuse(conn, request, Overloaded("too much waits"))
        return True

    def give_up(self, conn: Connection, request: Envelope) -> Connection | None:
        """A command that did not act, because its connection has ended, has no answer.

        Returns the connection that its session goes on with, if that has asked the same
        since and waits: it is handled anew for that one.
        """
        repeats = conn.asked
        if repeats is None or not request.ack or request.id is None:
            return None
        heir: Connection | None = repeats.holder
        waits = bool(repeats.forgotten(request.id))
        return heir if waits and heir is not None and heir.is_open else None

    def was_answered(self, conn: Connection, request: Envelope) -> bool:
        """Answer a request that came right behind the resume of its session, before it
        could be known for a repeat; False if it is none."""
        repeats = conn.asked
        if repeats is None or repeats.holder is None or not request.ack or request.id is None:
            return False
        answer = repeats.answer(request.id)
        if answer is None:
            return False
        for _ in range(1 + repeats.forgotten(request.id)):
            self._send(conn, EncodedMessage(answer))
        return True

    def accept(self, conn: Connection, request: Envelope, result: Any) -> None:
        """Ack a request with what its handler returned.

        Raises ``ReservedKey`` for a result that would stand in the place of the ack's own
        fields, ``Misuse`` for one that can't be encoded. Nothing has been sent then.
        """
        if result is None:
            if request.ack:
                self._answer(conn, request, self._sender.ack_frame(request), remember=True)
            return
        data = result if isinstance(result, Mapping) else {"result": result}
        if not RESERVED.isdisjoint(data):
            raise ReservedKey(RESERVED.intersection(data))
        if request.ack:
            frame = self._sender.reply_frame(ack(request, data))
            self._answer(conn, request, frame, remember=True)

    def refuse(
        self,
        conn: Connection,
        request: Envelope,
        error: BaseException,
        *,
        remember: bool = False,
    ) -> None:
        """Nack a request, or send an ``error`` if it did not ask for an ack. Never raises.

        ``remember``: the refusal came from the handler or command itself.
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
                frame, whole = self._frame(answer, told)
                self._answer(conn, request, frame, remember=remember, code=told.code)
            else:
                whole = self._send_error(conn, request.id, request.topic, told)
        except BaseException as problem:
            if request.id is not None and (repeats := conn.asked) is not None:
                repeats.forgotten(request.id)
            self._logger.error("answer_not_sent", error=shown(problem), exc_info=problem)
        if told.problem or not whole:
            why = told.problem or "they can't be sent as they are"
            self._logger.error("details_not_sent", topic=request.topic, code=told.code, error=why)
        if request.topic == PUBLISH:
            self._tell_room(request, error)

    def refuse_unread(
        self, conn: Connection, error: BaseException, ref: str | None, topic: str | None
    ) -> None:
        """Send an ``error`` about a frame that is no message."""
        self._send_error(conn, ref, topic or ERROR_TOPIC, tell(error))

    def _tell_room(self, request: Envelope, error: BaseException) -> None:
        """Have the failure handlers hear that a client's message was refused."""
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
        frame: EncodedMessage,
        *,
        remember: bool,
        code: str | None = None,
    ) -> None:
        # Who asked in a session has it: ``is_repeat`` saw to that.
        if request.id is None or (repeats := conn.asked) is None:
            self._send(conn, frame, code)
        else:
            waited = (
                repeats.answered(request.id, frame.payload, bound=is_bound(request))
                if remember
                else repeats.forgotten(request.id)
            )
            self._send(conn, frame, code)
            for _ in range(waited):
                self._send(repeats.holder or conn, frame, code)

    def _send_error(self, conn: Connection, ref: str | None, topic: str, told: Told) -> bool:
        """Send an ``error``; False if it lacks details that it should have."""
        data = {"code": told.code, "error": told.text}
        frame, whole = self._frame(Envelope(topic, "error", data, ref=ref), told)
        self._send(conn, frame, told.code)
        return whole

    def _frame(self, envelope: Envelope, told: Told) -> tuple[EncodedMessage, bool]:
        """Encode a refusal with those of the error's further fields that can be encoded, and
        say whether all can: they come from the application's exceptions, and there must be an
        answer."""
        if not told.details:
            return self._sender.reply_frame(envelope), True
        frame = self._with(told.details, envelope)
        if frame is not None:
            return frame, True
        some = {
            name: value
            for name, value in told.details.items()
            if self._with({name: value}, envelope) is not None
        }
        return self._with(some, envelope) or self._sender.reply_frame(envelope), False

    def _with(self, details: Mapping[str, Any], envelope: Envelope) -> EncodedMessage | None:
        try:
            frame = self._sender.reply_frame(envelope.with_data({**envelope.data, **details}))
        except BaseException:  # noqa: BLE001  (whatever a type of the application's raises)
            return None
        return frame if len(frame.payload) <= MAX_DETAILS else None

    def _send(self, conn: Connection, frame: EncodedMessage, code: str | None = None) -> None:
        """Send a reply; to who has gone meanwhile, nothing is sent and nothing counted.
        Never raises.

        ``code``: it is an error or a nack.
        """
        try:
            if conn.is_open and self._sender.post(conn, frame) and code is not None:
                self._stats.failed(code)
        except BaseException as problem:
            self._logger.error(
                "answer_not_sent", conn_id=conn.id, error=shown(problem), exc_info=problem
            )


def is_bound(request: Envelope) -> bool:
    """Whether the answer is about the connection: that it is in a room, say. Publishing is
    the one command that does the same whoever does it, and must not be done twice."""
    return request.topic.startswith(SYSTEM) and request.topic != PUBLISH
