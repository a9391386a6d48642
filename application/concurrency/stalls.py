"""Stalls of the event loop: detected, counted, and added to the deadlines of clients.

During a stall (blocking code, a stopped process, a suspended machine) the loop reads nothing,
and afterwards every answer that it waits for seems overdue. A timer that fires late shows the
stall.

Rules of this file:

1. A stall is detected before a deadline is applied: code with a deadline calls ``detect``
   first, because its own timer may fire before this one.
2. ``on_stall`` extends every deadline of a client or another node by the lost time. A deadline
   that was due gets a ``CHANCE`` in addition, but only one: repeated stalls must not keep a
   dead client for ever.
3. The extension is rather too short than too long, for the same reason. So a client's socket
   is read before a deadline is applied to it.
4. The cost is one timer, and nothing per message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from eyewall.application.ports.clock import Clock, Timer
from eyewall.application.ports.plugins import Logger
from eyewall.domain.report import Incident

TICK: Final = 0.5
"""Seconds between two readings of the clock: short against the deadlines of clients."""


LATE: Final = 0.25
"""Seconds by which a tick may be late; a longer delay is a stall."""


CHANCE: Final = 1.0
"""Seconds after a stall that a due deadline gets at least: time to read and to handle an
answer that has arrived."""


JUMP: Final = 1.0
"""Seconds by which the time of day may differ from the clock from tick to tick. The suspension
of a machine whose clock stops meanwhile shows only there."""


REPORT: Final = 2
"""Ticks whose worst lag is reported as one number: about one report per second."""


QUIET: Final = 10.0
"""Seconds between two log lines about stalls."""


class Stalls:
    """Detects stalls of the running event loop, from ``start`` on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._on_stall: list[Callable[[float], None]] = []
        self._on_jump: list[Callable[[], None]] = []
        self._on_lag: Callable[[float], None] | None = None
        self._timer: Timer | None = None
        self._due = 0.0
        self._ahead = 0.0  # the time of day minus the clock
        self._lag = 0.0
        self._ticks = 0
        self._lost = 0.0
        self._awake = 0.0
        self.bound = float("inf")
        """On the clock. ``detect`` does nothing before this time, and need not be called."""
        self.over_at = float("-inf")
        """When the last stall ended, on the clock."""

    # --- callbacks

    def on_stall(self, fn: Callable[[float], None]) -> None:
        """Call ``fn`` after each stall with its seconds, before a due deadline is applied.

        ``fn`` must not raise or wait.
        """
        self._on_stall.append(fn)

    def forget(self, fn: Callable[[float], None]) -> None:
        """Remove an ``on_stall`` callback. Idempotent."""
        if fn in self._on_stall:
            self._on_stall.remove(fn)

    def on_jump(self, fn: Callable[[], None]) -> None:
        """Call ``fn`` when the time of day has jumped; it must not raise or wait."""
        self._on_jump.append(fn)

    def on_lag(self, fn: Callable[[float], None]) -> None:
        """Call ``fn`` about once a second with the longest lag, in seconds, since its last call.

        A second call replaces the first ``fn``.
        """
        self._on_lag = fn

    # --- start and stop

    def start(self) -> None:
        """Begin to watch the running loop."""
        self.stop()
        self._ahead = self._advance()
        self._lag, self._ticks = 0.0, 0
        self._arm(self._clock.now())

    def stop(self) -> None:
        """Stop watching. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.bound = float("inf")

    # --- detection

    def detect(self) -> None:
        """Detect a stall that is just over, and run the callbacks. Cheap; may be called at any
        time."""
        now = self._clock.now()
        if now <= self.bound:
            return
        late = now - self._due
        self._lag = max(self._lag, late)
        self._lost += late
        self._due = self.over_at = now
        self.bound = now + LATE
        for fn in list(self._on_stall):
            fn(late)

    @property
    def is_recent(self) -> bool:
        """Whether a stall is just over: messages that arrived during it may not be handled yet."""
        self.detect()
        return self._clock.now() - self.over_at < CHANCE

    def awake(self) -> float:
        """Return the seconds of a monotonic clock that stops during stalls."""
        self.detect()
        self._awake = max(self._awake, self._clock.now() - self._lost)
        return self._awake

    def _tick(self) -> None:
        self.detect()
        now = self._clock.now()
        self._lag = max(self._lag, now - self._due)
        self._arm(now)
        self._ticks += 1
        if self._ticks >= REPORT:
            lag, self._lag, self._ticks = self._lag, 0.0, 0
            if self._on_lag is not None:
                self._on_lag(lag)
        ahead = self._advance()
        if abs(ahead - self._ahead) > JUMP:
            for fn in self._on_jump:
                fn()
        self._ahead = ahead

    def _arm(self, now: float) -> None:
        self._due = now + TICK
        self.bound = self._due + LATE
        self._timer = self._clock.call_later(TICK, self._tick)

    def _advance(self) -> float:
        return self._clock.wall().timestamp() - self._clock.now()


class StallLog:
    """Counts stalls and logs them: the first at once, then at most one line in ``QUIET``
    seconds, with the sum of all since."""

    def __init__(self, clock: Clock, logger: Logger, happened: Callable[[Incident], None]) -> None:
        self._clock = clock
        self._logger = logger
        self._happened = happened
        self._next = float("-inf")
        self._stalls = 0
        self._seconds = 0.0
        self._timer: Timer | None = None

    def stalled(self, seconds: float) -> None:
        """Count a stall of so many seconds."""
        self._happened(Incident.LOOP_STALLS)
        self._stalls += 1
        self._seconds += seconds
        if self._timer is None:
            # Not at once: pending input is read first, and writing the log may block.
            wait = max(0.0, self._next - self._clock.now())
            self._timer = self._clock.call_later(wait, self._say)

    def close(self) -> None:
        """Write the pending line, and end."""
        if self._timer is not None:
            self._timer.cancel()
            self._say()

    def _say(self) -> None:
        self._timer = None
        self._next = self._clock.now() + QUIET
        stalls, self._stalls = self._stalls, 0
        seconds, self._seconds = self._seconds, 0.0
        self._logger.warning("loop_stalled", seconds=round(seconds, 3), stalls=stalls)


class Alarm:
    """A timer of the running loop for waits without ``Stalls``.

    After a stall it fires a ``CHANCE`` later, when an answer that arrived meanwhile is read.
    """

    __slots__ = ("_due", "_fn", "_loop", "_timer")

    def __init__(self, seconds: float, fn: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + seconds
        self._fn = fn
        self._timer = self._loop.call_later(seconds, self._ring)

    def cancel(self) -> None:
        """Don't call the function. Idempotent."""
        self._timer.cancel()

    def _ring(self) -> None:
        if self._loop.time() - self._due > LATE:
            self._timer = self._loop.call_later(CHANCE, self._fn)
        else:
            self._fn()


async def has_come(answer: asyncio.Future[Any], within: float) -> bool:
    """Wait ``within`` seconds for ``answer``, and a ``CHANCE`` longer if the loop was stalled.

    Returns whether it is done. It is not cancelled.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + within
    await asyncio.wait([answer], timeout=within)
    if not answer.done() and loop.time() - due > LATE:
        await asyncio.wait([answer], timeout=CHANCE)
    return answer.done()
