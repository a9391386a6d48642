"""A logger that records its entries."""

from __future__ import annotations

from typing import Any


class RecordingLogger:
    """Implements ``Logger``: the entries, in order, as (level, event, fields)."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:
        self.entries.append(("debug", event, fields))

    def info(self, event: str, **fields: Any) -> None:
        self.entries.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.entries.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self.entries.append(("error", event, fields))

    def of(self, level: str) -> list[str]:
        """Return the events of one level, in order."""
        return [event for found, event, _ in self.entries if found == level]

    def fields(self, event: str) -> dict[str, Any]:
        """Return the fields of the newest entry of an event; raises ``KeyError`` without one."""
        newest: dict[str, Any] | None = None
        for _, found, its in self.entries:
            newest = its if found == event else newest
        if newest is None:
            raise KeyError(event)
        return newest
