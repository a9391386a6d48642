"""The clock of the server for which something runs, where that is not the real one.

What is made before any server, and keeps time, is handed no clock: a limiter at the top of a
module, say, which several servers, hooks and handlers share. In the test kit it goes by the
kit's clock all the same, because all that runs for a ``TestHub`` runs under ``ruled_by`` it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from eyewall.application.ports import Clock

CLOCK: ContextVar[Clock | None] = ContextVar("clock", default=None)
"""None: the real time, ``time.monotonic``."""


@contextmanager
def ruled_by(clock: Clock) -> Iterator[None]:
    """Have what runs within, and the tasks that it begins, go by ``clock``."""
    token = CLOCK.set(clock)
    try:
        yield
    finally:
        CLOCK.reset(token)
