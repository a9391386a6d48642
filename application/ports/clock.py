"""Time as a port: the clock, its timers, and the clock of the running context.

An object that is created before any server, such as a limiter at the top of a module, gets no
clock, and several servers may share it. It reads ``CLOCK``. All code of a ``TestHub`` runs
under ``ruled_by`` its clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Protocol

CLOCK: ContextVar[Clock | None] = ContextVar("clock", default=None)
"""None means the real time, ``time.monotonic``."""


@contextmanager
def ruled_by(clock: Clock) -> Iterator[None]:
    """Set ``CLOCK`` for the block, and for the tasks that it starts."""
    token = CLOCK.set(clock)
    try:
        yield
    finally:
        CLOCK.reset(token)


class Timer(Protocol):
    """A call that ``Clock.call_later`` has scheduled."""

    def cancel(self) -> None:
        """Don't make the call. Idempotent; no effect after the call."""


class Clock(Protocol):
    """The time, which tests can advance by hand."""

    def now(self) -> float:
        """Return the seconds of a monotonic clock."""

    def wall(self) -> datetime:
        """Return the date and time, aware, in UTC."""

    def call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        """Call ``fn`` after ``delay`` seconds; returns the timer, which can be cancelled."""
