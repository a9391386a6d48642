"""How long to wait before the next attempt to connect."""

from __future__ import annotations

from typing import Final

FIRST_DELAY: Final = 0.5
"""Seconds that the first wait takes at most: short enough for nobody to notice."""

MAX_DELAY: Final = 30.0
"""Seconds that any wait takes at most: who has been away for long is still back within
half a minute."""

STABLE_AFTER: Final = 10.0
"""Seconds after which a connection counts as one that holds. A server that lets
everybody in and drops them at once must not be asked again twice a second."""

_MAX_DOUBLINGS: Final = 64
"""Beyond it the bound holds anyway, and a float would overflow."""


class Backoff:
    """Waits that double, with full jitter: anything from nothing to the whole.

    All who were cut off together come back spread over the whole of the wait.

    >>> Backoff(first=0.5, most=30.0).next(luck=1.0)
    0.5
    """

    __slots__ = ("_failures", "_first", "_most")

    def __init__(self, first: float = FIRST_DELAY, most: float = MAX_DELAY) -> None:
        self._first = first
        self._most = most
        self._failures = 0

    def next(self, luck: float) -> float:
        """Return the next wait in seconds; ``luck``, from 0 to 1, is the share of it."""
        whole = min(self._most, self._first * 2.0**self._failures)
        self._failures = min(self._failures + 1, _MAX_DOUBLINGS)
        return whole * luck

    def record_uptime(self, seconds: float) -> None:
        """A connection was open for so long: one that held begins anew."""
        if seconds >= STABLE_AFTER:
            self._failures = 0
