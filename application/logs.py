"""Log lines that can't harm: whatever a logger raises ends with the call.

A log may be closed, full, or a user's own logger that fails. Then the line is lost, and
nothing else: nobody waits in vain for an answer that was to follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eyewall.application.ports import Logger

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
