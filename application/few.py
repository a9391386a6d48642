"""A few lines of the log for what a client can bring about as often as it likes."""

from __future__ import annotations

from typing import Final

PERIOD: Final = 10.0
"""Seconds in which so many lines are written."""

LINES: Final = 5
"""As of refused handshakes of one reason."""


class Few:
    """Says which lines are written, and how many were left out before."""

    def __init__(self) -> None:
        self._since = -PERIOD
        self._lines = self._left_out = 0

    def next(self, now: float) -> dict[str, int] | None:
        """Return None for a line that is left out at ``now``, in seconds; else the fields that it
        has in addition: ``left_out``, if any were."""
        if now - self._since >= PERIOD:
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines > LINES:
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return {"left_out": left_out} if left_out else {}
