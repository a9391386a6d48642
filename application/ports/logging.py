"""Log lines that can't harm: whatever a logger raises ends with the call.

A log may be closed, full, or a user's own logger that fails. Then the line is lost, and
nothing else: nobody waits in vain for an answer that was to follow it.


A throttle for log lines that a client can trigger as often as it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from eyewall.application.ports.plugins import Logger

_LEVELS = ("debug", "info", "warning", "error")


class GuardedLogger:
    """Implements ``Logger`` on top of one that may lack a method and may raise anything.

    Not even a ``CancelledError`` or ``SystemExit`` goes on: it would end the work of
    somebody who has only told of it.
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
    """Return ``logger`` behind a guard; one that has a guard stays as it is."""
    return logger if isinstance(logger, GuardedLogger) else GuardedLogger(logger)


def _guarded(logger: Logger, level: str) -> Callable[..., None]:
    def write(event: str, **fields: Any) -> None:
        try:
            # Looked up each time: a test or a user may exchange it.
            getattr(logger, level)(event, **fields)
        except BaseException:  # noqa: BLE001, S110  (there is nowhere left to say it)
            pass

    return write


def shown(error: object) -> str:
    """Return ``repr(error)``; its type alone where that can't be had.

    For log lines: an exception of an application's own may fail at its own text.
    """
    try:
        return repr(error)
    except BaseException:  # noqa: BLE001  (an exception of a user's, in any state)
        return f"<{type(error).__name__}, which can't be shown>"


def told(error: object) -> str:
    """Return ``str(error)``; its type alone where that can't be had."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  (an exception of a user's, in any state)
        return f"<{type(error).__name__}, which can't be shown>"


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
