"""Tokens run out: the connection is closed with 4401, unless it was refreshed."""

from __future__ import annotations

from eyewall.application.connections import Connection, Connections
from eyewall.application.deadlines import Deadline, Deadlines
from eyewall.application.ports import Clock
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.identity import ConnId


class Expiry:
    """Watches the ``expires_at`` of connections."""

    def __init__(self, connections: Connections, clock: Clock) -> None:
        self._connections = connections
        self._clock = clock
        self._deadlines = Deadlines(clock)
        self._of: dict[ConnId, Deadline] = {}

    def __len__(self) -> int:
        return len(self._of)

    def watch(self, conn: Connection) -> None:
        """Close the connection when its token, as it is now, runs out."""
        self.forget(conn)
        expires_at = conn.meta.expires_at
        if expires_at is None or not conn.is_open:
            return
        left = (expires_at - self._clock.wall()).total_seconds()
        when = self._clock.now() + max(0.0, left)
        self._of[conn.id] = self._deadlines.at(when, lambda: self._expired(conn))

    def forget(self, conn: Connection) -> None:
        deadline = self._of.pop(conn.id, None)
        if deadline is not None:
            deadline.cancel()

    def close(self) -> None:
        self._deadlines.close()
        self._of.clear()

    def _expired(self, conn: Connection) -> None:
        self._of.pop(conn.id, None)
        self._connections.end(conn, DisconnectReason.TOKEN_EXPIRED)
