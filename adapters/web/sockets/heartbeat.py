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

from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.ports.clock import Clock, Timer
from eyewall.domain.connection import HeartbeatConfig

MAX_TICK = 1.0
"""Seconds. Deadlines are kept to within a tick."""

TICKS_PER_PERIOD = 8
"""Ticks in the shortest of the configured times."""

MAX_CHECKS_PER_TICK = 512
"""Links that a tick looks at while it is behind: some milliseconds. It goes through two
ticks' links at least, so that it catches up."""

UNSCHEDULED = -1
"""The tick in which nobody looks at a link."""

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""Its multiples, modulo a half, fill that half evenly however many there are."""


class HeartbeatTarget(Protocol):
    """A link, as the heartbeat sees it."""

    last_seen: float
    due_tick: int
    """The tick in which the heartbeat looks at it next; its own note."""
    last_ping: float
    """When a ping was last written; set by the link."""
    pong_deadline: float
    """Until when the first ping since ``last_seen`` has to be answered; the heartbeat's note."""

    @property
    def is_reading(self) -> bool:
        """Whether the peer is being read, so that its silence means something."""

    def look(self) -> None:
        """Read what has come by now."""

    def ping(self) -> bool:
        """Ask for a sign of life, unless something else has to be written first; False if
        that ended the link."""

    @property
    def message_deadline(self) -> float:
        """When what the peer is in the middle of sending has to be there; infinite if it
        is in the middle of nothing."""

    def on_pong_timeout(self) -> None:
        """Nothing came for ``pong_timeout``."""

    def on_message_timeout(self) -> None:
        """Something came, but the message that it is part of is overdue."""

    def check_deadlines(self, now: float) -> bool:
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
        self._min_pong_wait = self._timeout - self._interval
        self._tick = min(MAX_TICK, min(self._interval, self.write_wait) / TICKS_PER_PERIOD)
        self._wheel: dict[int, set[HeartbeatTarget]] = {}
        self._last_tick = 0
        self._deadlines: set[HeartbeatTarget] = set()
        self._scheduled_count = 0
        self._timer: Timer | None = None

    def start(self) -> None:
        self._last_tick = int(self._clock.now() / self._tick)
        self._timer = self._clock.call_later(self._tick, self._on_tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wheel.clear()
        self._deadlines.clear()

    def add(self, link: HeartbeatTarget) -> None:
        """Ping ``link`` from now on.

        The first ping comes in the second half of the first interval, at another moment
        for each link, so that those that came all at once are not pinged all at once.
        """
        self._scheduled_count += 1
        share = 0.5 + self._scheduled_count * GOLDEN_RATIO % 0.5
        self._schedule(link, self._clock.now() + self._interval * share)

    def remove(self, link: HeartbeatTarget) -> None:
        self._deadlines.discard(link)
        due = self._wheel.get(link.due_tick)
        link.due_tick = UNSCHEDULED
        if due is not None:
            due.discard(link)

    def watch_deadline(self, link: HeartbeatTarget) -> None:
        """Have ``link`` check its deadline every tick, until it has none."""
        self._deadlines.add(link)

    def _schedule(self, link: HeartbeatTarget, when: float) -> None:
        link.due_tick = max(math.ceil(when / self._tick), self._last_tick + 1)
        self._wheel.setdefault(link.due_tick, set()).add(link)

    def _on_tick(self) -> None:
        self._stalls.look()  # before anybody is judged
        now = self._clock.now()
        self._timer = self._clock.call_later(self._tick, self._on_tick)
        for link in list(self._deadlines):
            if not link.check_deadlines(now):
                self._deadlines.discard(link)
        reached = int(now / self._tick)
        looks = 0
        for ticks in range(reached - self._last_tick):
            if ticks > 1 and looks >= MAX_CHECKS_PER_TICK:
                break  # the loop stood still: the others are next
            self._last_tick += 1
            for link in self._wheel.pop(self._last_tick, ()):
                if link.due_tick == self._last_tick:
                    looks += 1
                    self._check_link(link, now)

    def _check_link(self, link: HeartbeatTarget, now: float) -> None:
        if self._is_overdue(link, now):
            link.look()
            now = self._clock.now()
            if link.due_tick == UNSCHEDULED:
                return
            if self._is_pong_overdue(link, now):
                link.on_pong_timeout()
                return
            if self._is_overdue(link, now):
                link.on_message_timeout()
                return
        # In step with its pings so far: after a stall all are late, and would be pinged all at
        # once from then on.
        late = max(0.0, now - link.due_tick * self._tick)
        when = now + self._interval - late % self._interval
        if link.is_reading:
            was_answered = link.last_ping <= link.last_seen
            if not link.ping():
                return
            if link.last_ping > link.last_seen:
                if was_answered:
                    link.pong_deadline = max(
                        link.last_seen + self._timeout, now + self._min_pong_wait
                    )
                when = min(when, link.pong_deadline)
            when = min(when, link.message_deadline)
        self._schedule(link, when)

    def _is_pong_overdue(self, link: HeartbeatTarget, now: float) -> bool:
        return link.is_reading and link.last_ping > link.last_seen and now >= link.pong_deadline

    def _is_overdue(self, link: HeartbeatTarget, now: float) -> bool:
        return self._is_pong_overdue(link, now) or (
            link.is_reading and now >= link.message_deadline
        )
