"""Who is still there: pings, silence, and deadlines, by one timer for all links.

A link's next ping is due in one of many ticks; a tick looks only at the links that
are due in it, and at the few that have a deadline of their own (a peer that does not
read, a close that is under way). So the cost of a tick grows with neither.

Rules of this file:

1. A peer is silent when it has not answered a ping that was written, for ``pong_timeout``
   since anything came from it. If the ping was late, by our own doing, the peer has as long
   for it as it has for one that comes in time.
2. Time in which the loop stood still is no silence (``application.stalls``), and what has
   come by then is read before anybody is judged.
"""

from __future__ import annotations

import math
from typing import Protocol

from eyewall.application.ports import Clock, Timer
from eyewall.application.stalls import Stalls
from eyewall.domain.connection import HeartbeatConfig

LONGEST_TICK = 1.0
"""Seconds. Deadlines are kept to within a tick."""

TICKS = 8
"""Ticks in the shortest of the configured times."""

PINGS = 512
"""Links that a tick looks at while it is behind: some milliseconds. It goes through two
ticks' links at least, so that it catches up."""

GONE = -1
"""The tick in which nobody looks at a link."""

SPREAD = (math.sqrt(5) - 1) / 2
"""Its multiples, modulo a half, fill that half evenly however many there are."""


class Pulse(Protocol):
    """A link, as the heartbeat sees it."""

    last_seen: float
    due: int
    """The tick in which the heartbeat looks at it next; its own note."""
    asked: float
    """When a ping was last written; set by the link."""
    answer_due: float
    """Until when the first ping since ``last_seen`` has to be answered; the heartbeat's note."""

    @property
    def listening(self) -> bool:
        """Whether the peer is being read, so that its silence means something."""

    def look(self) -> None:
        """Read what has come by now."""

    def ping(self) -> bool:
        """Ask for a sign of life, unless something else has to be written first; False if
        that ended the link."""

    @property
    def message_due(self) -> float:
        """When what the peer is in the middle of sending has to be there; infinite if it
        is in the middle of nothing."""

    def fall_silent(self) -> None:
        """Nothing came for ``pong_timeout``."""

    def dawdle(self) -> None:
        """Something came, but the message that it is part of is overdue."""

    def check(self, now: float) -> bool:
        """Act on a deadline that has passed; False when there is none to watch."""


class Heartbeat:
    """Pings every link, and ends those that have gone silent or are overdue."""

    def __init__(self, clock: Clock, config: HeartbeatConfig, stalls: Stalls) -> None:
        self._clock = clock
        self._stalls = stalls
        self.write_wait = float(config.write_wait)  # type: ignore[arg-type]
        self._timeout = float(config.pong_timeout)  # type: ignore[arg-type]
        # At least two pings in the time after which silence counts.
        self._interval = min(float(config.interval), self._timeout / 2)  # type: ignore[arg-type]
        # The time that a ping leaves which comes as late as it may.
        self._patience = self._timeout - self._interval
        self._tick = min(LONGEST_TICK, min(self._interval, self.write_wait) / TICKS)
        self._wheel: dict[int, set[Pulse]] = {}
        self._last = 0
        self._deadlines: set[Pulse] = set()
        self._placed = 0
        self._timer: Timer | None = None

    def start(self) -> None:
        self._last = int(self._clock.now() / self._tick)
        self._timer = self._clock.call_later(self._tick, self._turn)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wheel.clear()
        self._deadlines.clear()

    def add(self, link: Pulse) -> None:
        """Ping ``link`` from now on.

        The first ping comes in the second half of the first interval, at another moment
        for each link, so that those that came all at once are not pinged all at once.
        """
        self._placed += 1
        share = 0.5 + self._placed * SPREAD % 0.5
        self._place(link, self._clock.now() + self._interval * share)

    def remove(self, link: Pulse) -> None:
        self._deadlines.discard(link)
        due = self._wheel.get(link.due)
        link.due = GONE
        if due is not None:
            due.discard(link)

    def attend(self, link: Pulse) -> None:
        """Have ``link`` check its deadline every tick, until it has none."""
        self._deadlines.add(link)

    def _place(self, link: Pulse, when: float) -> None:
        link.due = max(math.ceil(when / self._tick), self._last + 1)
        self._wheel.setdefault(link.due, set()).add(link)

    def _turn(self) -> None:
        self._stalls.look()  # before anybody is judged
        now = self._clock.now()
        self._timer = self._clock.call_later(self._tick, self._turn)
        for link in list(self._deadlines):
            if not link.check(now):
                self._deadlines.discard(link)
        reached = int(now / self._tick)
        looks = 0
        for ticks in range(reached - self._last):
            if ticks > 1 and looks >= PINGS:
                break  # the loop stood still: the others are next
            self._last += 1
            for link in self._wheel.pop(self._last, ()):
                if link.due == self._last:
                    looks += 1
                    self._look_at(link, now)

    def _look_at(self, link: Pulse, now: float) -> None:
        if self._is_overdue(link, now):
            link.look()
            now = self._clock.now()
            if link.due == GONE:
                return
            if self._is_silent(link, now):
                link.fall_silent()
                return
            if self._is_overdue(link, now):
                link.dawdle()
                return
        # In step with its pings so far: after a stall all are late, and would be pinged all at
        # once from then on.
        late = max(0.0, now - link.due * self._tick)
        when = now + self._interval - late % self._interval
        if link.listening:
            was_answered = link.asked <= link.last_seen
            if not link.ping():
                return
            if link.asked > link.last_seen:
                if was_answered:
                    link.answer_due = max(link.last_seen + self._timeout, now + self._patience)
                when = min(when, link.answer_due)
            when = min(when, link.message_due)
        self._place(link, when)

    def _is_silent(self, link: Pulse, now: float) -> bool:
        return link.listening and link.asked > link.last_seen and now >= link.answer_due

    def _is_overdue(self, link: Pulse, now: float) -> bool:
        return self._is_silent(link, now) or (link.listening and now >= link.message_due)
