"""Rate limits of one process: a token bucket for each key, and no more than so many."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from eyewall.domain.duration import count
from eyewall.domain.rate import TokenBucket

_SWEPT = 2  # idle keys forgotten per call: more than one can be new, so it catches up


class TokenBucketLimiter:
    """Implements ``Limiter``: each key may do ``rate`` things a second, ``burst`` at once.

    A key that has been idle until its bucket was full again is forgotten: a full bucket
    is as good as none. At ``max_keys`` the key that was asked for longest ago gives way,
    so that a flood of new keys costs no more memory, whatever it does to the limit.

    ``clock`` gives seconds and never goes back. Raises ``ValueError`` unless ``rate`` is
    above 0, ``burst`` and ``max_keys`` at least 1.

    >>> limiter = TokenBucketLimiter(rate=1.0, burst=1.0, clock=lambda: 0.0)
    >>> limiter.allow("ada"), limiter.allow("ada"), limiter.allow("bob")
    (0.0, 1.0, 0.0)
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = 100_000,
    ) -> None:
        TokenBucket(rate, burst)  # a wrong value is told here, not at the first message
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._max_keys = count(max_keys, "max_keys")
        # The key that was asked for longest ago comes first.
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._buckets)

    def allow(self, key: str) -> float:
        """Return 0.0 if ``key`` may go on, else the seconds after which it may."""
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst)
        else:
            self._buckets.move_to_end(key)
        wait = bucket.take(now)
        self._forget(now)
        return wait

    def _forget(self, now: float) -> None:
        # The key just asked for comes last and is not full: there is always one left.
        for _ in range(_SWEPT):
            key, bucket = next(iter(self._buckets.items()))
            if len(self._buckets) <= self._max_keys and not bucket.full(now):
                return
            del self._buckets[key]
