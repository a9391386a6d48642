"""How an acknowledged delivery's outcome, and its frame, travel between nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eyewall.application.deliveries import Outcome
from eyewall.application.frames import Frame
from eyewall.application.packets import BadPacket
from eyewall.application.ports import Codec
from eyewall.domain.envelope import Message, Priority
from eyewall.domain.errors import Refused, code_of, from_code
from eyewall.domain.identity import ConnId
from eyewall.domain.report import FailureReason


def outcome_out(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON can hold it."""
    fields: dict[str, Any] = {"conn": outcome.conn_id, "tries": outcome.attempts}
    if outcome.delivered:
        fields["result"] = outcome.result
    if outcome.reason is not None:
        fields["reason"] = outcome.reason.value
    if outcome.error is not None:
        fields["error"] = [code_of(outcome.error), str(outcome.error)]
    fields["took"] = outcome.seconds
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
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as problem:
        raise BadPacket(f"not an outcome: {problem}") from None


def read_frame(
    codec: Codec,
    header: Mapping[str, Any],
    payload: bytes,
    *,
    recipient: str | None = None,
    fan_out: bool = False,
) -> Frame:
    """Take over a message that another node encoded; raises ``BadPacket``.

    The bytes go on as they are; they are decoded because the bus is not trusted.
    """
    try:
        envelope = codec.decode(payload)
        priority = Priority(header["p"])
        message = Message(envelope.topic, envelope.event, envelope.raw, envelope.id)
    except (Refused, KeyError, ValueError) as error:
        raise BadPacket(f"not a message: {error}") from None
    return Frame(
        payload,
        envelope=envelope,
        message=message,
        priority=priority,
        recipient=recipient,
        fan_out=fan_out,
    )
