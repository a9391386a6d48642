"""A guard for loggers, texts of errors for the log, and a throttle for log lines.

Rules of this file:

1. An error of a logger (closed, full, or a failing logger of the application) loses the line
   and nothing else: the caller goes on.
2. A line that a client can trigger as often as it likes passes ``LogThrottle``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from eyewall.application.ports.plugins import Logger

_LEVELS = ("debug", "info", "warning", "error")


class GuardedLogger:
    """Implements ``Logger`` on top of one that may lack a method and may raise anything.

    It also catches ``CancelledError`` and ``SystemExit``: a log line must not end the work
    that it reports.
    """

    __slots__ = _LEVELS

    debug: Callable[..., None]
    info: Callable[..., None]
    warning: Callable[..., None]
    error: Callable[..., None]

    def __init__(self, logger: Logger) -> None:
        for level in _LEVELS:
            setattr(self, level, _guarded(logger, level))


def guarded(logger: Logger) -> Logger:
    """Return ``logger`` behind a guard. Idempotent."""
    return logger if isinstance(logger, GuardedLogger) else GuardedLogger(logger)


def _guarded(logger: Logger, level: str) -> Callable[..., None]:
    def write(event: str, **fields: Any) -> None:
        try:
            # Looked up for each line: a test or a user may replace the method.
            getattr(logger, level)(event, **fields)
        except BaseException:  # noqa: BLE001, S110  (the log itself has failed)
            pass

    return write


def shown(error: object) -> str:
    """Return ``repr(error)`` for a log line; only its type if ``repr`` itself raises."""
    try:
        return repr(error)
    except BaseException:  # noqa: BLE001  (an exception of a user's, in any state)
        return f"<{type(error).__name__}, which can't be shown>"


def told(error: object) -> str:
    """Return ``str(error)``; only its type if ``str`` itself raises."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  (an exception of a user's, in any state)
        return f"<{type(error).__name__}, which can't be shown>"


PERIOD: Final = 10.0
"""Seconds in which at most ``LINES`` lines of one kind are written: an incident shows in the
log within seconds, also while lines are left out."""


LINES: Final = 5
"""Lines of one kind per period: with 200 bytes per line, 8 MB per day and kind."""


class LogThrottle:
    """Limits the log lines of one kind, and counts the lines that are left out."""

    def __init__(self) -> None:
        self._since = -PERIOD
        self._lines = self._left_out = 0

    def next(self, now: float) -> dict[str, int] | None:
        """Count a line at ``now``, in seconds of a monotonic clock.

        Returns None if the line is left out, else additional fields for it: ``left_out``
        with the number of lines left out before it, or no field.
        """
        if now - self._since >= PERIOD:
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines > LINES:
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return {"left_out": left_out} if left_out else {}
