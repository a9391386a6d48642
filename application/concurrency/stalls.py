"""Stalls of the event loop: noticed, counted, and not held against the clients.

Blocking code, a stopped process, a machine that was suspended: the loop reads nothing
meanwhile, and every answer that it waits for seems to be overdue when it goes on. A timer
that rings late says so.

Rules of this file:

1. A stall is noticed before anything is judged by the clock: code that watches a deadline
   calls ``look`` first, since its own timer may ring before this one.
2. Time that was lost is given back, through ``on_stall``, to every deadline that a client or
   another node has to keep. A deadline that was due gets a ``CHANCE`` besides, but only one:
   stalls that come again and again keep no dead client for ever.
3. Rather too little is given back than too much, for the same reason. So a client's socket
   is read before the client is judged.
4. It costs a timer, and nothing for each message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from eyewall.application.ports.clock import Clock, Timer
from eyewall.application.ports.plugins import Logger
from eyewall.domain.report import Incident

TICK: Final = 0.5
"""Seconds between two looks at the clock."""


LATE: Final = 0.25
"""Seconds by which a tick may be late: from there on it is a stall."""


CHANCE: Final = 1.0
"""Seconds after a stall that a deadline gets at least if it was due: for reading, in its turn,
the answer that may be there, and for handling it."""


JUMP: Final = 1.0
"""Seconds by which the time of day may run ahead of the clock, or behind it, from tick to
tick. A machine that was suspended without the clock going on shows only there."""


REPORT: Final = 2
"""Ticks whose worst lag is reported as one number."""


QUIET: Final = 10.0
"""Seconds between two lines of the log about stalls."""


class Stalls:
    """Watches the running event loop. Until ``start`` it notices nothing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._on_stall: list[Callable[[float], None]] = []
        self._on_jump: list[Callable[[], None]] = []
        self._on_lag: Callable[[float], None] | None = None
        self._timer: Timer | None = None
        self._due = 0.0
        self._ahead = 0.0  # of the time of day before the clock
        self._lag = 0.0
        self._ticks = 0
        self._lost = 0.0
        self._awake = 0.0
        self.bound = float("inf")
        """On the clock. ``look`` does nothing before this, and need not be called."""
        self.over_at = float("-inf")
        """When the last stall ended, on the clock."""

    # --- telling of it

    def on_stall(self, fn: Callable[[float], None]) -> None:
        """Have ``fn`` called after a stall with the seconds that it took; it must not
        raise or wait. What is due is judged after that."""
        self._on_stall.append(fn)

    def forget(self, fn: Callable[[float], None]) -> None:
        """Take ``on_stall`` back."""
        if fn in self._on_stall:
            self._on_stall.remove(fn)

    def on_jump(self, fn: Callable[[], None]) -> None:
        """Have ``fn`` called when the time of day has jumped; it must not raise or wait."""
        self._on_jump.append(fn)

    def on_lag(self, fn: Callable[[float], None]) -> None:
        """Have ``fn`` called about once a second with the longest lag since; one only."""
        self._on_lag = fn

    # --- life

    def start(self) -> None:
        """Begin on the running loop."""
        self.stop()
        self._ahead = self._advance()
        self._lag, self._ticks = 0.0, 0
        self._arm(self._clock.now())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.bound = float("inf")

    # --- looking

    def look(self) -> None:
        """Notice a stall that is just over, and tell of it. Cheap, and may be called at
        any time."""
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
        """Whether a stall is just over: messages that came during it may not have been handled."""
        self.look()
        return self._clock.now() - self.over_at < CHANCE

    def awake(self) -> float:
        """Seconds on a clock that stands still while the loop does, and never goes back."""
        self.look()
        self._awake = max(self._awake, self._clock.now() - self._lost)
        return self._awake

    def _tick(self) -> None:
        self.look()
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
    """Counts stalls, and says them in the log: the first at once, then a line in
    ``QUIET`` seconds at most, which has all since."""

    def __init__(self, clock: Clock, logger: Logger, happened: Callable[[Incident], None]) -> None:
        self._clock = clock
        self._logger = logger
        self._happened = happened
        self._next = float("-inf")
        self._stalls = 0
        self._seconds = 0.0
        self._timer: Timer | None = None

    def stalled(self, seconds: float) -> None:
        """The loop stood still for so long."""
        self._happened(Incident.LOOP_STALLS)
        self._stalls += 1
        self._seconds += seconds
        if self._timer is None:
            # Not at once: what has come is read first, and a log may block, too.
            wait = max(0.0, self._next - self._clock.now())
            self._timer = self._clock.call_later(wait, self._say)

    def close(self) -> None:
        """Say what has not been said, and end."""
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
    """A timer of the running loop, for a wait without ``Stalls``: where it would ring late,
    it rings a ``CHANCE`` later, when an answer that came during the stall has been read."""

    __slots__ = ("_due", "_fn", "_loop", "_timer")

    def __init__(self, seconds: float, fn: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + seconds
        self._fn = fn
        self._timer = self._loop.call_later(seconds, self._ring)

    def cancel(self) -> None:
        self._timer.cancel()

    def _ring(self) -> None:
        if self._loop.time() - self._due > LATE:
            self._timer = self._loop.call_later(CHANCE, self._fn)
        else:
            self._fn()


async def has_come(answer: asyncio.Future[Any], within: float) -> bool:
    """Wait ``within`` so many seconds, and a ``CHANCE`` longer if the loop stood still;
    returns whether the answer is there. It is not cancelled."""
    loop = asyncio.get_running_loop()
    due = loop.time() + within
    await asyncio.wait([answer], timeout=within)
    if not answer.done() and loop.time() - due > LATE:
        await asyncio.wait([answer], timeout=CHANCE)
    return answer.done()
