"""A clock that replaces the real time in a context: the test kit's.

An object that is made before any server, such as a limiter at the top of a module, is given no
clock, and several servers may share it. It looks for one here. Everything that runs for a
``TestHub`` runs under ``ruled_by`` its clock.
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
    """Set ``CLOCK`` for the code within, and for the tasks that it starts."""
    token = CLOCK.set(clock)
    try:
        yield
    finally:
        CLOCK.reset(token)


# --- time


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time, so that tests can move it by hand."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""

    def wall(self) -> datetime:
        """The date and time, aware, in UTC."""

    def call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        """Call ``fn`` after ``delay`` seconds."""
