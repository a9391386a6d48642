"""What a failed test says: what came, what waits for whom, what was logged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from eyewall.domain.envelope import Envelope
from eyewall.testing.logs import RecordingLogger

if TYPE_CHECKING:
    from eyewall.testing.client import TestClient

LAST = 5
"""Messages and log entries that are shown: the newest."""
WIDTH = 120
"""Characters of each."""

QUIET = ("debug", "info")


def message(what: Envelope | str | bytes) -> str:
    """A message in one line."""
    if not isinstance(what, Envelope):
        return f"raw frame {what!r:.{WIDTH}}"
    ref = f" ref={what.ref}" if what.ref else ""
    return f"{what.topic} {what.event}{ref} {what.data!r:.{WIDTH}}"


def nothing_due(client: TestClient, wanted: str) -> str:
    """Why a client has not got what the test waits for."""
    lines = [f"{wanted} for {client.label}"]
    if client.closed is not None:
        reason = client.closed.reason
        lines.append(f"its connection is closed: {reason} ({client.closed.code})")
    if client.stalled:
        lines.append(f"it is stalled, and {client.queued} wait in its queue: resume_reading()")
    lines += _messages("it had got before", client.taken)
    lines += _messages("it has and did not take", client.due)
    for other in client.hub.clients:
        if other is not client:
            lines += _messages(f"waiting for {other.label}", other.due)
    running = client.hub.running
    if running:
        lines.append(
            f"handlers at work: {running} (waiting for time to pass, th.advance(); for a client; "
            "or for something outside, TestHub(server, patience=...))"
        )
    lines += logged(client.hub.logs)
    return "\n  ".join(lines)


def logged(logs: RecordingLogger) -> list[str]:
    """The newest warnings and errors."""
    entries = [entry for entry in logs.entries if entry[0] not in QUIET]
    lines = [f"{level} {event} {_fields(fields)}" for level, event, fields in entries]
    return _list("logged", lines)


def story(clients: Iterable[TestClient], logs: RecordingLogger) -> str:
    """All that is known of a hub: for the report of a failed test."""
    lines = []
    for client in clients:
        closed = "" if client.closed is None else f" (closed: {client.closed.reason})"
        lines += _messages(f"{client.label}{closed} got", client.taken) or [
            f"{client.label}{closed} took nothing"
        ]
        lines += _messages(f"{client.label} did not take", client.due)
    return "\n".join([*lines, *logged(logs)])


def _messages(title: str, messages: Sequence[Envelope | str | bytes]) -> list[str]:
    return _list(title, [message(one) for one in messages])


def _list(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = f" (the last {LAST} of {len(lines)})" if len(lines) > LAST else ""
    return [f"{title}{more}:", *(f"  {line}" for line in lines[-LAST:])]


def _fields(fields: dict[str, Any]) -> str:
    return " ".join(f"{k}={v!r:.{WIDTH}}" for k, v in fields.items() if k != "exc_info")
