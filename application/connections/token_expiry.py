"""Token expiry: a connection whose token was not refreshed in time is closed with 4401.

Rules of this file:

1. A token expires by the time of day, also during a stall of the loop.
2. A refresh may have arrived in time, unread because of a stall. So a connection whose token
   expired during a stall gets a ``CHANCE`` in which its input is read. Until its new token is
   accepted, its other requests are refused.
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
"""Seconds by which two readings of the clocks may differ: a datetime has microseconds."""


class TokenExpiry:
    """Closes connections at the ``expires_at`` of their tokens."""

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
        """Close the connection when its current token expires."""
        self.forget(conn)
        if conn.meta.expires_at is not None and conn.is_open:
            self._plan(conn)

    def forget(self, conn: Connection) -> None:
        """Stop watching a connection. Idempotent."""
        conn.token_lapsed = False
        found = self._of.pop(conn.id, None)
        if found is not None:
            found[1].cancel()

    def close(self) -> None:
        """Stop watching all connections."""
        self._deadlines.close()
        self._of.clear()

    def _plan(self, conn: Connection) -> None:
        when = self._clock.now() + max(0.0, self._left(conn))
        self._of[conn.id] = (conn, self._deadlines.at(when, lambda: self._due(conn)))

    def _left(self, conn: Connection) -> float:
        """Return the seconds until the token expires."""
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
        """Give a connection whose token has expired a ``CHANCE`` to have its refresh read."""
        if conn.token_lapsed:
            return  # it has its chance already
        conn.token_lapsed = True
        now = self._clock.now()
        self._deadlines.at(now, conn.link.read_pending)  # not from within a batch of input
        when = now + CHANCE
        self._of[conn.id] = (conn, self._deadlines.at(when, lambda: self._end(conn)))

    def _end(self, conn: Connection) -> None:
        self._of.pop(conn.id, None)
        self._connections.end(conn, DisconnectReason.TOKEN_EXPIRED)

    def _stood_still(self, _: float) -> None:
        """Mark the connections whose tokens expired during a stall, before input is read."""
        now = self._clock.now()
        for conn, deadline in list(self._of.values()):
            if deadline.when <= now and not conn.token_lapsed:
                deadline.cancel()
                self._lapse(conn)

    def _plan_anew(self) -> None:
        """Schedule all deadlines again after a jump of the time of day."""
        for conn, deadline in list(self._of.values()):
            if conn.token_lapsed:
                continue
            deadline.cancel()
            if self._left(conn) > ROUNDING:
                self._plan(conn)
            else:
                self._lapse(conn)
