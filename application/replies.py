"""Answers to requests: acks, nacks and errors (protocol.md, "Replies").

Every request with ``ack: true`` gets exactly one ack; a refusal without one is an
``error``; never both. In a session the last answers are remembered, and a request that
is sent again gets the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eyewall.application.admit import PUBLISH
from eyewall.application.connections import Connection
from eyewall.application.frames import Frame
from eyewall.application.logs import told
from eyewall.application.ports import Logger
from eyewall.application.send import Sender, ack
from eyewall.application.stats import Stats
from eyewall.domain.envelope import ERROR_TOPIC, Envelope
from eyewall.domain.errors import (
    INTERNAL,
    EyewallError,
    Misuse,
    Overloaded,
    RateLimited,
    Refused,
    Unauthorized,
    Unavailable,
    code_of,
)
from eyewall.domain.repeats import Seen

RESERVED = "system:"
_TRY_AGAIN = (RateLimited, Overloaded, Unavailable, Unauthorized)
"""Refusals that are not remembered: time, or a new token, may have changed the answer."""


class Replies:
    """Says yes or no to a request, once."""

    def __init__(self, sender: Sender, stats: Stats, logger: Logger) -> None:
        self._sender = sender
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
            self._send(conn, Frame(seen))
        return True

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
            self._send(conn, Frame(answer))
        return True

    def accept(self, conn: Connection, request: Envelope, result: Any) -> None:
        """Ack a request with what its handler returned; raises ``Misuse`` for a
        result that can't be encoded."""
        if not request.ack:
            return
        if result is None:
            frame = self._sender.ack_frame(request)
        else:
            data = result if isinstance(result, Mapping) else {"result": result}
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
        """Nack a request, or send an ``error`` if it did not ask for an ack.

        ``remember``: the refusal came from the handler or command itself.
        """
        if request.topic == PUBLISH:
            self._sender.refused(request, error)
        code, text, details = describe(error)
        if not request.ack:
            self._send_error(conn, request.id, request.topic, code, text, details)
            return
        data = {
            "message_id": request.id,
            "status": "nack",
            "error": text,
            "code": code,
        }
        remember = remember and not isinstance(error, _TRY_AGAIN)
        frame = self._frame(Envelope(request.topic, "ack", data, ref=request.id), details)
        self._answer(conn, request, frame, remember=remember, code=code)

    def refuse_unread(
        self, conn: Connection, error: Refused, ref: str | None, topic: str | None
    ) -> None:
        """Send an ``error`` about a frame that is no message."""
        code, text, details = describe(error)
        self._send_error(conn, ref, topic or ERROR_TOPIC, code, text, details)

    def _answer(
        self,
        conn: Connection,
        request: Envelope,
        frame: Frame,
        *,
        remember: bool,
        code: str | None = None,
    ) -> None:
        self._send(conn, frame, code)
        # Who asked in a session has it: ``is_repeat`` saw to that.
        if request.id is not None and (repeats := conn.asked) is not None:
            waited = (
                repeats.answered(request.id, frame.payload, bound=_is_bound(request))
                if remember
                else repeats.forgotten(request.id)
            )
            for _ in range(waited):
                self._send(repeats.holder or conn, frame, code)

    def _send_error(
        self,
        conn: Connection,
        ref: str | None,
        topic: str,
        code: str,
        text: str,
        details: Mapping[str, Any],
    ) -> None:
        data = {"code": code, "error": text}
        self._send(conn, self._frame(Envelope(topic, "error", data, ref=ref), details), code)

    def _frame(self, envelope: Envelope, details: Mapping[str, Any]) -> Frame:
        """Encode an answer, with ``details`` beside its fields if they can be encoded:
        they come from the application's exceptions, and there must be an answer."""
        if details:
            whole = {**envelope.data, **details, **envelope.data}
            try:
                return self._sender.reply_frame(envelope.with_data(whole))
            except Misuse as error:
                self._logger.error("details_not_sent", topic=envelope.topic, error=told(error))
        return self._sender.reply_frame(envelope)

    def _send(self, conn: Connection, frame: Frame, code: str | None = None) -> None:
        """Send a reply; to who has gone meanwhile, nothing is sent and nothing counted.

        ``code``: it is an error or a nack.
        """
        if conn.is_open and self._sender.post(conn, frame) and code is not None:
            self._stats.failed(code)


def _is_bound(request: Envelope) -> bool:
    """Whether the answer is about the connection: that it is in a room, say. Publishing is
    the one command that does the same whoever does it, and must not be done twice."""
    return request.topic.startswith(RESERVED) and request.topic != PUBLISH


def describe(error: BaseException) -> tuple[str, str, dict[str, Any]]:
    """Return code, text and further fields that a client is told of ``error``.

    An unexpected exception's text never leaves the server.
    """
    code = code_of(error)
    if code == INTERNAL or not isinstance(error, EyewallError):
        return INTERNAL, "internal error", {}
    return code, str(error), error.details()
