"""A rate limit: the token bucket.

Rules of this file:

1. In any span of ``t`` seconds at most ``burst + rate * t`` tokens are given (and those that
   refill in ``TICK``). A call for more than the burst leaves a debt.
2. A clock that goes backwards adds no tokens: no time counts twice.
3. A full bucket equals a new one, so it need not be kept.
"""

from __future__ import annotations

import math
import sys

TICK = 1e-6
"""Seconds. A token that is due within this time counts as there: by rounding a wait can end
slightly too early, and a caller that retries at its end must not be refused again."""


def _positive(value: float, name: str, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, not {value!r}")
    if not least <= value <= sys.float_info.max or value == 0:
        bound = f"at least {least:g}" if least else "more than 0"
        raise ValueError(f"{name} must be {bound} and finite, not {value!r}")
    return float(value)


class TokenBucket:
    """Gives ``rate`` tokens per second, and up to ``burst`` at once after a pause.

    ``rate`` is more than 0, ``burst`` at least 1, both finite; else ``ValueError``.
    A new bucket is full.

    >>> bucket = TokenBucket(rate=2.0, burst=1.0)
    >>> bucket.take(now=10.0), bucket.take(now=10.0), bucket.take(now=10.5)
    (0.0, 0.5, 0.0)
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = _positive(rate, "rate", 0.0)
        self.burst = _positive(burst, "burst", 1.0)
        self._tokens = self.burst
        self._at = -math.inf

    def take(self, now: float, tokens: float = 1.0) -> float:
        """Take ``tokens`` and return 0.0, or take nothing and return the seconds to wait.

        ``now`` is monotonic, in seconds. A full bucket gives more than ``burst``, too, and
        goes into debt: so a message larger than the burst of a limit on bytes can pass, and
        the rate holds. Raises ``ValueError`` if ``tokens`` is negative or not finite.
        """
        if not 0 <= tokens < math.inf:
            raise ValueError(f"tokens must be at least 0 and finite, not {tokens!r}")
        there = self._refilled(now)
        wait = (min(tokens, self.burst) - there) / self.rate
        if wait > TICK:
            return wait + max(0.0, self._at - now)
        self._tokens = there - tokens
        self._at = max(self._at, now)
        return 0.0

    def full(self, now: float) -> bool:
        """Return whether the bucket holds all of its burst again."""
        return self._refilled(now) >= self.burst

    def _refilled(self, now: float) -> float:
        if now <= self._at:
            return self._tokens
        return min(self.burst, self._tokens + (now - self._at) * self.rate)
