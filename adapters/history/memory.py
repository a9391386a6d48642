"""History for servers in one process.

A lock makes every method atomic, also for servers on several event loops.
"""

from __future__ import annotations

import secrets
import threading
from datetime import datetime

from eyewall.domain.duration import count
from eyewall.domain.history import Entry, Log, Page, Position, Retention
from eyewall.domain.identity import RoomId


class MemoryHistory:
    """Implements ``HistoryStore``. Servers share it by sharing the object. A closed store keeps
    its messages.

    A room has at most ``history_size`` messages. Deleting the room, or setting its
    ``history_size`` to 0, removes them. ``max_room_bytes`` limits the bytes of a room's messages,
    as they are encoded: the oldest are removed, and a message that is larger alone is the only
    one. None is no limit: ``history_size`` messages of up to ``max_message_size`` each.

    Raises ``ValueError`` for a ``max_room_bytes`` below 1.
    """

    across_processes = False

    def __init__(self, *, max_room_bytes: int | None = None) -> None:
        if max_room_bytes is not None:
            count(max_room_bytes, "max_room_bytes")
        self._max_room_bytes = max_room_bytes
        self._lock = threading.Lock()
        self._logs: dict[RoomId, Log] = {}

    async def open(self) -> None:
        """Nothing to open: the history lives as long as the object."""

    async def close(self) -> None:
        """Nothing to close: another server may use the object."""

    async def append(
        self, room_id: RoomId, entry: Entry, retention: Retention, now: datetime
    ) -> Position:
        with self._lock:
            return self._log(room_id).append(entry, retention, now)

    async def position(self, room_id: RoomId) -> Position:
        with self._lock:
            return self._log(room_id).position

    async def read(
        self, room_id: RoomId, since: Position | None, limit: int, now: datetime
    ) -> Page:
        with self._lock:
            return self._log(room_id).read(since, limit, now)

    async def remove(self, room_id: RoomId) -> None:
        with self._lock:
            self._logs.pop(room_id, None)

    def _log(self, room_id: RoomId) -> Log:
        log = self._logs.get(room_id)
        if log is None:
            # Random: after a restart, the epoch must be a new one.
            log = self._logs[room_id] = Log(
                secrets.token_urlsafe(9), max_bytes=self._max_room_bytes
            )
        return log
