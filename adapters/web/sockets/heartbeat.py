"""The heartbeat: pings, pong timeouts and other deadlines, with one timer for all links.

It is a timer wheel. The next check of a link is due in one tick; a tick checks only the links
that are due in it, and the few that asked for a check in every tick (a stalled write, a close
handshake). So the cost of a tick does not grow with the number of idle links.

Rules of this file:

1. A pong timeout is ``pong_timeout`` seconds without input, with a ping that was written and
   not answered. If the server sent the ping late, the peer has as long to answer as it has for
   a ping in time.
2. The time of a stall of the event loop does not count (``application.stalls``), and input that
   has arrived is read before a deadline is applied.
"""

from __future__ import annotations

import math
from typing import Protocol

from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.ports.clock import Clock, Timer
from eyewall.domain.connection import HeartbeatConfig

MAX_TICK = 1.0
"""Seconds. Deadlines are precise to one tick."""

TICKS_PER_PERIOD = 8
"""Ticks in the shortest of the configured times."""

MAX_CHECKS_PER_TICK = 512
"""Links that are checked in one tick while the heartbeat is behind: some milliseconds. At least
two ticks' links are checked, so that it catches up."""

UNSCHEDULED = -1
"""The ``due_tick`` of a link that is not checked any more."""

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""Its multiples modulo a half fill that half evenly, however many there are."""


class HeartbeatTarget(Protocol):
    """A link, as the heartbeat sees it."""

    last_seen: float
    due_tick: int
    """The tick of its next check. Written by the heartbeat only."""
    last_ping: float
    """When a ping was last written. Written by the link."""
    pong_deadline: float
    """When the first ping since ``last_seen`` must be answered. Written by the heartbeat."""

    @property
    def is_reading(self) -> bool:
        """Whether the peer is read. If not, its silence means nothing."""

    def read_pending(self) -> None:
        """Read the input that has arrived."""

    def ping(self) -> bool:
        """Write a ping, unless the write queue is in use. False if that closed the link."""

    @property
    def message_deadline(self) -> float:
        """When the message that the peer is sending must be complete; infinite if there is
        none."""

    def on_pong_timeout(self) -> None:
        """Fail the connection: a ping was not answered."""

    def on_message_timeout(self) -> None:
        """Fail the connection: a message was not completed."""

    def check_deadlines(self, now: float) -> bool:
        """Act on a deadline that has passed. False if there is none left to watch."""


class Heartbeat:
    """Pings every link, and reports pong and message timeouts."""

    def __init__(self, clock: Clock, config: HeartbeatConfig, stalls: Stalls) -> None:
        self._clock = clock
        self._stalls = stalls
        self.write_wait = float(config.write_wait)  # type: ignore[arg-type]
        self._timeout = float(config.pong_timeout)  # type: ignore[arg-type]
        # At least two pings within the pong timeout.
        self._interval = min(float(config.interval), self._timeout / 2)  # type: ignore[arg-type]
        # The time to answer that is left by the latest of these pings.
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

        The first ping is sent in the second half of the first interval, at another moment for
        each link, so that connections opened together are not pinged together.
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
        """Call ``link.check_deadlines`` in every tick, until it returns False."""
        self._deadlines.add(link)

    def _schedule(self, link: HeartbeatTarget, when: float) -> None:
        link.due_tick = max(math.ceil(when / self._tick), self._last_tick + 1)
        self._wheel.setdefault(link.due_tick, set()).add(link)

    def _on_tick(self) -> None:
        self._stalls.detect()  # extends the deadlines after a stall
        now = self._clock.now()
        self._timer = self._clock.call_later(self._tick, self._on_tick)
        for link in list(self._deadlines):
            if not link.check_deadlines(now):
                self._deadlines.discard(link)
        reached = int(now / self._tick)
        looks = 0
        for ticks in range(reached - self._last_tick):
            if ticks > 1 and looks >= MAX_CHECKS_PER_TICK:
                break  # behind after a stall: the other links are checked in the next tick
            self._last_tick += 1
            for link in self._wheel.pop(self._last_tick, ()):
                if link.due_tick == self._last_tick:
                    looks += 1
                    self._check_link(link, now)

    def _check_link(self, link: HeartbeatTarget, now: float) -> None:
        if self._is_overdue(link, now):
            link.read_pending()
            now = self._clock.now()
            if link.due_tick == UNSCHEDULED:
                return
            if self._is_pong_overdue(link, now):
                link.on_pong_timeout()
                return
            if self._is_overdue(link, now):
                link.on_message_timeout()
                return
        # Keep the phase of the earlier pings. After a stall all links are late; without their
        # phases they would be pinged together from then on.
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
