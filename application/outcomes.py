"""What became of an acknowledged delivery, and how that travels between nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eyewall.application.frames import Frame, MalformedMessage
from eyewall.application.packets import BadPacket
from eyewall.application.ports import Codec
from eyewall.domain.envelope import Message, Priority
from eyewall.domain.errors import EyewallError, Refused, Unavailable, code_of, from_code
from eyewall.domain.identity import MAX_NAME, ConnId, UserId
from eyewall.domain.report import DeliveryReport, DeliveryStatus, FailureReason
from eyewall.domain.telling import text_of

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


def read_frame(
    codec: Codec,
    header: Mapping[str, Any],
    payload: bytes,
    *,
    recipient: str | None = None,
    fan_out: bool = False,
) -> Frame:
    """Take over a message that another node encoded; raises ``MalformedMessage``.

    The bytes go on as they are; they are decoded because the bus is not trusted.
    """
    try:
        envelope = codec.decode(payload)
        priority = Priority(header["p"])
        message = Message(envelope.topic, envelope.event, envelope.raw, envelope.id)
    except (Refused, KeyError, ValueError) as error:
        raise MalformedMessage(f"not a message: {error}") from None
    return Frame(
        payload,
        envelope=envelope,
        message=message,
        priority=priority,
        recipient=recipient,
        fan_out=fan_out,
    )


def read_text(payload: bytes) -> str:
    """Take over a text that another node sent; raises ``MalformedMessage``."""
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(str(error)) from None
