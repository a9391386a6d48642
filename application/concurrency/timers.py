"""A timer queue: many deadlines share one timer of the clock.

Ten thousand messages that wait for an ack cost one heap and one timer. A cancelled deadline
stays in the heap until it is due, or until most entries are cancelled; then the heap is
rebuilt. With ``stalls`` each deadline is extended by the time of stalls.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from eyewall.application.concurrency.stalls import CHANCE, Stalls
from eyewall.application.ports.clock import Clock, Timer

SLACK = 64
"""Cancelled entries below which a heap is not rebuilt: it is small then."""


class Deadline:
    """A function that is called at a time, ``when``, on the clock's ``now``."""

    __slots__ = ("_fn", "_owner", "_spared", "when")

    def __init__(self, owner: TimerQueue, when: float, fn: Callable[[], None]) -> None:
        self._owner = owner
        self._fn: Callable[[], None] | None = fn
        self._spared = False
        self.when = when

    def postpone(self, seconds: float, now: float) -> None:
        """Postpone by ``seconds``. The first time that this is not enough, postpone to a
        ``CHANCE`` after ``now``."""
        self.when += seconds
        if self.when < now + CHANCE and not self._spared:
            self._spared = True
            self.when = now + CHANCE

    @property
    def cancelled(self) -> bool:
        """Whether the function was called or never will be."""
        return self._fn is None

    def cancel(self) -> None:
        """Don't call the function. Idempotent; no effect after the call."""
        if self._fn is not None:
            self._fn = None
            self._owner.count_cancelled()

    def forget(self) -> None:
        """Drop the function without counting it as cancelled: the queue itself is closed."""
        self._fn = None

    def run(self) -> None:
        """Call the function, once."""
        fn, self._fn = self._fn, None
        if fn is not None:
            fn()


class TimerQueue:
    """Calls functions at their deadlines, by the clock's ``now``."""

    def __init__(self, clock: Clock, stalls: Stalls | None = None) -> None:
        self._clock = clock
        self._stalls = stalls
        if stalls is not None:
            stalls.on_stall(self._postpone)
        self._heap: list[tuple[float, int, Deadline]] = []
        self._number = count()
        self._cancelled = 0
        self._timer: Timer | None = None
        self._timer_at = 0.0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def at(self, when: float, fn: Callable[[], None]) -> Deadline:
        """Call ``fn``, which must not raise, at ``when``; returns the deadline."""
        deadline = Deadline(self, when, fn)
        heapq.heappush(self._heap, (when, next(self._number), deadline))
        self._arm()
        return deadline

    def close(self) -> None:
        """Drop all deadlines, and cancel the timer."""
        for _, _, deadline in self._heap:
            deadline.forget()
        self._heap.clear()
        self._cancelled = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def count_cancelled(self) -> None:
        """Count a cancelled entry; rebuild the heap if most entries are cancelled."""
        self._cancelled += 1
        if self._cancelled > SLACK and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].cancelled]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _arm(self) -> None:
        if not self._heap:
            return
        first = self._heap[0][0]
        if self._timer is not None:
            if self._timer_at <= first:
                return
            self._timer.cancel()
        self._timer_at = first
        self._timer = self._clock.call_later(max(0.0, first - self._clock.now()), self._fire)

    def _postpone(self, seconds: float) -> None:
        """Extend all deadlines by the seconds of a stall."""
        now = self._clock.now()
        for _, _, deadline in self._heap:
            deadline.postpone(seconds, now)
        self._heap = [(entry[2].when, entry[1], entry[2]) for entry in self._heap]
        heapq.heapify(self._heap)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._arm()

    def _fire(self) -> None:
        self._timer = None
        if self._stalls is not None:
            self._stalls.detect()  # it may postpone deadlines that seem due
        now = self._clock.now()
        try:
            while self._heap and self._heap[0][0] <= now:
                _, _, deadline = heapq.heappop(self._heap)
                if deadline.cancelled:
                    self._cancelled -= 1
                else:
                    deadline.run()
        finally:
            # A function that raises, against its contract, must not stop the later ones.
            self._arm()
