"""History for servers in one process.

One lock makes every method one atomic step, also for servers on several event loops.
"""

from __future__ import annotations

import secrets
import threading
from datetime import datetime

from eyewall.domain.duration import count
from eyewall.domain.history import Entry, Log, Page, Position, Retention
from eyewall.domain.identity import RoomId


class MemoryHistory:
    """Implements ``HistoryStore``. Servers share it by sharing the object; a closed one
    keeps what it holds.

    What it holds is bounded by each room's ``history_size``, for as long as the room is
    there: deleting the room, or setting its ``history_size`` to 0, forgets it. With
    ``max_room_bytes`` the messages of a room have so many bytes at most (encoded, as they
    travel): the oldest go, and only one that is larger by itself stays alone. None is without
    limit: ``history_size`` messages of up to ``max_message_size`` each.

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
        """Nothing to close: another server may go on with it."""

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
            # Random, because after a restart it must not have the name it had before.
            log = self._logs[room_id] = Log(
                secrets.token_urlsafe(9), max_bytes=self._max_room_bytes
            )
        return log
