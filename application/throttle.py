"""A throttle for log lines that a client can trigger as often as it likes."""

from __future__ import annotations

from typing import Final

PERIOD: Final = 10.0
"""Seconds in which at most ``LINES`` lines of one kind are written."""

LINES: Final = 5
"""Lines of one kind in a period: with 200 bytes to each line, 8 MB in a day of one kind only."""


class LogThrottle:
    """Decides which lines of one kind are written, and counts those that are left out."""

    def __init__(self) -> None:
        self._since = -PERIOD
        self._lines = self._left_out = 0

    def next(self, now: float) -> dict[str, int] | None:
        """Count a line at ``now``, in seconds of a clock that never goes back.

        Returns None if the line is to be left out, else the fields that it has in addition:
        ``left_out`` with the number of lines left out before it, or none.
        """
        if now - self._since >= PERIOD:
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines > LINES:
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return {"left_out": left_out} if left_out else {}
