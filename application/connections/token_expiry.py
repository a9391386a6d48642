"""Tokens run out: the connection is closed with 4401, unless it was refreshed.

Rules of this file:

1. A token ends by the time of day, whatever the loop did meanwhile.
2. A client that has refreshed in time can't help it if the loop stood still then: one
   whose token ended during a stall gets a ``CHANCE`` in which what has come is read. Until
   its new token is accepted nothing else that it asks for is done.
"""

from __future__ import annotations

from typing import Final

from eyewall.application.concurrency.stalls import CHANCE, Stalls
from eyewall.application.concurrency.timers import Deadline, TimerQueue
from eyewall.application.connections.registry import Connection, Connections
from eyewall.application.ports.clock import Clock
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.identity import ConnId

ROUNDING: Final = 0.001
"""Seconds: a time of day is kept in microseconds."""


class TokenExpiry:
    """Watches the ``expires_at`` of connections."""

    def __init__(self, connections: Connections, clock: Clock, stalls: Stalls) -> None:
        self._connections = connections
        self._clock = clock
        self._stalls = stalls
        self._deadlines = TimerQueue(clock)
        self._of: dict[ConnId, tuple[Connection, Deadline]] = {}
        stalls.on_stall(self._stood_still)
        stalls.on_jump(self._plan_anew)

    def __len__(self) -> int:
        return len(self._of)

    def watch(self, conn: Connection) -> None:
        """Close the connection when its token, as it is now, runs out."""
        self.forget(conn)
        if conn.meta.expires_at is not None and conn.is_open:
            self._plan(conn)

    def forget(self, conn: Connection) -> None:
        conn.token_lapsed = False
        found = self._of.pop(conn.id, None)
        if found is not None:
            found[1].cancel()

    def close(self) -> None:
        self._deadlines.close()
        self._of.clear()

    def _plan(self, conn: Connection) -> None:
        when = self._clock.now() + max(0.0, self._left(conn))
        self._of[conn.id] = (conn, self._deadlines.at(when, lambda: self._due(conn)))

    def _left(self, conn: Connection) -> float:
        """Seconds that the token is valid."""
        assert conn.meta.expires_at is not None
        return (conn.meta.expires_at - self._clock.wall()).total_seconds()

    def _due(self, conn: Connection) -> None:
        if self._left(conn) > ROUNDING:  # the time of day was set back
            self._plan(conn)
        elif self._stalls.is_recent:
            self._lapse(conn)
        else:
            self._end(conn)

    def _lapse(self, conn: Connection) -> None:
        """The token has ended, and a new one may have come unread."""
        if conn.token_lapsed:
            return  # it has its chance
        conn.token_lapsed = True
        now = self._clock.now()
        self._deadlines.at(now, conn.link.look)  # soon, but not in the middle of a batch
        when = now + CHANCE
        self._of[conn.id] = (conn, self._deadlines.at(when, lambda: self._end(conn)))

    def _end(self, conn: Connection) -> None:
        self._of.pop(conn.id, None)
        self._connections.end(conn, DisconnectReason.TOKEN_EXPIRED)

    def _stood_still(self, _: float) -> None:
        """Before what has come is read: tell those apart whose tokens have ended."""
        now = self._clock.now()
        for conn, deadline in list(self._of.values()):
            if deadline.when <= now and not conn.token_lapsed:
                deadline.cancel()
                self._lapse(conn)

    def _plan_anew(self) -> None:
        """The time of day is another than it was thought to be."""
        for conn, deadline in list(self._of.values()):
            if conn.token_lapsed:
                continue
            deadline.cancel()
            if self._left(conn) > ROUNDING:
                self._plan(conn)
            else:
                self._lapse(conn)
