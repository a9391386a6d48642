"""A clock whose time passes only when a test advances it."""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count

from eyewall.testing.rest import settle


class FakeTimer:
    """Implements ``Timer``."""

    def __init__(self, clock: FakeClock, when: float, fn: Callable[[], None]) -> None:
        self._clock = clock
        self.when = when
        self.fn = fn

    def cancel(self) -> None:
        """Cancel the call. Idempotent, also after the timer was due."""
        self._clock.timers.discard(self)


class FakeClock:
    """Implements ``Clock``. Time passes only by ``advance``, ``pass_time`` and ``stand_still``.

    ``start`` is the first value of ``now`` in seconds; ``at`` is the first date and time (aware;
    None: the real one, so that tokens with a real ``exp`` expire). Raises ``ValueError`` for an
    ``at`` without a time zone.
    """

    def __init__(self, start: float = 1000.0, at: datetime | None = None) -> None:
        if at is not None and at.tzinfo is None:
            raise ValueError(f"a date and time needs a time zone: {at!r}")
        self._start = start
        self._at = datetime.now(UTC) if at is None else at
        self._now = start
        self._numbers = count()
        self._heap: list[tuple[float, int, FakeTimer]] = []
        self.timers: set[FakeTimer] = set()
        """Timers that are neither due nor cancelled."""

    def now(self) -> float:
        return self._now

    def wall(self) -> datetime:
        return self._at + timedelta(seconds=self._now - self._start)

    def call_later(self, delay: float, fn: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self, self._now + delay, fn)
        self.timers.add(timer)
        heapq.heappush(self._heap, (timer.when, next(self._numbers), timer))
        return timer

    def stand_still(self, seconds: float) -> None:
        """Advance by ``seconds`` without running anything, as when the event loop stands still.
        Due timers run late, when time passes next."""
        self._now += seconds

    def set_wall(self, at: datetime) -> None:
        """Set the date and time; ``now`` does not change."""
        self._at, self._start = at, self._now

    def pass_time(self, seconds: float) -> None:
        """Advance by ``seconds`` and call due timers, without an event loop."""
        for _ in self._through(seconds):
            pass

    async def advance(self, seconds: float, rest: Callable[[], Awaitable[None]] = settle) -> None:
        """Advance by ``seconds``. After each due timer, ``rest`` runs until the loop is idle."""
        await rest()
        for _ in self._through(seconds):
            await rest()
        await rest()

    def _through(self, seconds: float) -> Iterator[None]:
        until = self._now + seconds
        while self._heap and self._heap[0][0] <= until:
            when, _, timer = heapq.heappop(self._heap)
            if timer in self.timers:
                self.timers.discard(timer)
                self._now = max(self._now, when)
                timer.fn()
                yield
        self._now = until
