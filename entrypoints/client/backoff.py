"""The exponential back-off between attempts to connect."""

from __future__ import annotations

from typing import Final

FIRST_DELAY: Final = 0.5
"""Seconds of the first wait at most: users do not notice it."""

MAX_DELAY: Final = 30.0
"""Seconds of any wait at most: the client is back half a minute after the server."""

STABLE_AFTER: Final = 10.0
"""Seconds after which a connection resets the back-off. A server that accepts connections
and drops them at once must not get a new one twice a second."""

_MAX_DOUBLINGS: Final = 64
"""More doublings would overflow a float; the bound is reached long before."""


class Backoff:
    """Waits that double, with full jitter: clients that were cut off together come back spread
    over the whole wait.

    >>> Backoff(first=0.5, most=30.0).next(fraction=1.0)
    0.5
    """

    __slots__ = ("_failures", "_first", "_most")

    def __init__(self, first: float = FIRST_DELAY, most: float = MAX_DELAY) -> None:
        self._first = first
        self._most = most
        self._failures = 0

    def next(self, fraction: float) -> float:
        """Return the next wait in seconds; ``fraction``, from 0 to 1, is the jitter."""
        whole = min(self._most, self._first * 2.0**self._failures)
        self._failures = min(self._failures + 1, _MAX_DOUBLINGS)
        return whole * fraction

    def record_uptime(self, seconds: float) -> None:
        """Reset the waits if a connection was open for ``STABLE_AFTER`` seconds."""
        if seconds >= STABLE_AFTER:
            self._failures = 0
