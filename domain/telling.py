"""The part of an error that a client, or another node, is told.

Rules of this file:

1. Nothing here raises, whatever the application's exceptions do: every request is answered.
2. The result is bounded, and JSON can hold it.
3. An unexpected exception's text never leaves the server.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from eyewall.domain.errors import (
    INTERNAL,
    EyewallError,
    Refused,
    Unavailable,
    as_text,
    code_of,
    wait_of,
)

MAX_TEXT: Final = 1000
"""Longest text of an error, in characters: some sentences. A longer one is cut."""

MAX_DETAILS: Final = 64 * 1024
"""Most bytes of a refusal with details: the messages for some hundred fields. A larger one is
sent without the details."""

RESERVED: Final = frozenset({"message_id", "status", "error", "code", "fields", "retry_after"})
"""The protocol's own fields in the data of an answer (protocol.md, "Replies")."""

_OURS: Final = frozenset({"message_id", "status", "error", "code"})
"""Those of them that ``details()`` of an error must not set; ``fields`` and ``retry_after`` are
allowed there."""


class Told(NamedTuple):
    """The answer's code, text and further fields. ``problem`` says why some details are left
    out; empty if none is."""

    code: str
    text: str
    details: dict[str, Any]
    problem: str = ""


def tell(error: BaseException) -> Told:
    """Return the part of ``error`` that the other side is told."""
    code = code_of(error)
    if code == INTERNAL or not isinstance(error, (Refused, Unavailable)):
        return Told(INTERNAL, "internal error", {})
    details, problem = _details(error)
    return Told(code, text_of(error), details, problem)


def text_of(error: BaseException) -> str:
    """Return the text of ``error``, at most ``MAX_TEXT`` characters."""
    text = as_text(error) or code_of(error).replace("_", " ")
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def _details(error: EyewallError) -> tuple[dict[str, Any], str]:
    try:
        found = dict(error.details())
    except BaseException as problem:  # noqa: BLE001  (the application's own method)
        return {}, f"details() raised {type(problem).__name__}"
    details = {key: value for key, value in found.items() if isinstance(key, str)}
    lost = sorted(_OURS & details.keys())
    for key in lost:
        del details[key]
    if "retry_after" in details:
        details["retry_after"] = wait_of(details["retry_after"])
    return details, f"details() has the reserved {', '.join(lost)}" if lost else ""
