"""Rate limits of one process: a token bucket for each key, and a limit on the keys."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakKeyDictionary

from eyewall.application.ports.clock import CLOCK, Clock
from eyewall.domain.duration import count
from eyewall.domain.rate import TokenBucket

_Buckets = OrderedDict[str, TokenBucket]
"""The least recently used key comes first."""

_SWEPT = 2  # idle keys dropped in one call, which adds one key at most


class TokenBucketLimiter:
    """Implements ``Limiter``: each key may do ``rate`` things a second, ``burst`` at once.

    A key is dropped when it has been idle until its bucket is full again: a full bucket equals a
    new one. At ``max_keys`` the least recently used key is dropped, so that a flood of new keys
    does not use more memory.

    ``clock`` returns seconds and never goes back. The default is the clock of the server that
    calls: the real time, or in a test the time of the ``TestHub``, which has keys of its own.
    Raises ``ValueError`` unless ``rate`` is above 0, ``burst`` and ``max_keys`` at least 1.

    >>> limiter = TokenBucketLimiter(rate=1.0, burst=1.0, clock=lambda: 0.0)
    >>> limiter.allow("ada"), limiter.allow("ada"), limiter.allow("bob")
    (0.0, 1.0, 0.0)
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        *,
        clock: Callable[[], float] | None = None,
        max_keys: int = 100_000,
    ) -> None:
        TokenBucket(rate, burst)  # raises for a wrong value now, not at the first message
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._max_keys = count(max_keys, "max_keys")
        self._buckets = _Buckets()
        self._apart: WeakKeyDictionary[Clock, _Buckets] = WeakKeyDictionary()
        """The buckets of each clock of a test, dropped with their clock."""

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._current()[0])

    def allow(self, key: str) -> float:
        """Take a token. Returns 0.0, or the seconds until ``key`` has a token again."""
        buckets, clock = self._current()
        now = clock()
        bucket = buckets.get(key)
        if bucket is None:
            bucket = buckets[key] = TokenBucket(self._rate, self._burst)
        else:
            buckets.move_to_end(key)
        wait = bucket.take(now)
        self._forget(buckets, now)
        return wait

    def _current(self) -> tuple[_Buckets, Callable[[], float]]:
        """Return the buckets of the current clock, and the clock."""
        if self._clock is not None:
            return self._buckets, self._clock
        clock = CLOCK.get()
        if clock is None:
            return self._buckets, time.monotonic
        return self._apart.setdefault(clock, _Buckets()), clock.now

    def _forget(self, buckets: _Buckets, now: float) -> None:
        # The key just used comes last and is not full, so one key is always left.
        for _ in range(_SWEPT):
            key, bucket = next(iter(buckets.items()))
            if len(buckets) <= self._max_keys and not bucket.full(now):
                return
            del buckets[key]
