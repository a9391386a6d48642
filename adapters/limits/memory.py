"""Rate limits of one process: a token bucket for each key, and no more than so many."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakKeyDictionary

from eyewall.application.ports.clock import CLOCK, Clock
from eyewall.domain.duration import count
from eyewall.domain.rate import TokenBucket

_Buckets = OrderedDict[str, TokenBucket]
"""The key that was asked for longest ago comes first."""

_SWEPT = 2  # idle keys forgotten per call: more than one can be new, so it catches up


class TokenBucketLimiter:
    """Implements ``Limiter``: each key may do ``rate`` things a second, ``burst`` at once.

    A key that has been idle until its bucket was full again is forgotten: a full bucket
    is as good as none. At ``max_keys`` the key that was asked for longest ago gives way,
    so that a flood of new keys costs no more memory, whatever it does to the limit.

    ``clock`` gives seconds and never goes back. Left out, the time is that of the server that
    asks: the real one, and in a test with a ``TestHub`` the hub's, for which every key begins
    anew. Raises ``ValueError`` unless ``rate`` is
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
        clock: Callable[[], float] | None = None,
        max_keys: int = 100_000,
    ) -> None:
        TokenBucket(rate, burst)  # a wrong value is told here, not at the first message
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._max_keys = count(max_keys, "max_keys")
        self._buckets = _Buckets()
        self._apart: WeakKeyDictionary[Clock, _Buckets] = WeakKeyDictionary()
        """Those of the clocks that are not the real one. They end with their clocks."""

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._at_hand()[0])

    def allow(self, key: str) -> float:
        """Return 0.0 if ``key`` may go on, else the seconds after which it may."""
        buckets, clock = self._at_hand()
        now = clock()
        bucket = buckets.get(key)
        if bucket is None:
            bucket = buckets[key] = TokenBucket(self._rate, self._burst)
        else:
            buckets.move_to_end(key)
        wait = bucket.take(now)
        self._forget(buckets, now)
        return wait

    def _at_hand(self) -> tuple[_Buckets, Callable[[], float]]:
        """The buckets to take from, and the clock that they go by."""
        if self._clock is not None:
            return self._buckets, self._clock
        clock = CLOCK.get()
        if clock is None:
            return self._buckets, time.monotonic
        return self._apart.setdefault(clock, _Buckets()), clock.now

    def _forget(self, buckets: _Buckets, now: float) -> None:
        # The key just asked for comes last and is not full: there is always one left.
        for _ in range(_SWEPT):
            key, bucket = next(iter(buckets.items()))
            if len(buckets) <= self._max_keys and not bucket.full(now):
                return
            del buckets[key]
