"""Who is there, and who is typing.

Rules of this file:

1. Typing always runs out: whoever stops without a word stops for the others too.
2. ``until`` is the first moment at which a user no longer types.
3. What is news is judged by what was told: a user who types on after the time ran
   out, but before ``due`` said so, has never stopped for the others.
4. What this holds is bounded by who types now, however often they say so.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from eyewall.domain.identity import ById, RoomId, UserId

_NOWHERE: Final[Mapping[Any, datetime]] = MappingProxyType({})

_SLACK = 64
"""Notes that may be out of date before tidying pays."""


@dataclass(frozen=True, slots=True)
class PresenceState:
    """Whether a user is there, in the whole cluster.

    ``last_seen`` is None for a user who was never seen. ``typing`` maps each room
    that the user types in to when that runs out.
    """

    online: bool
    connections: int
    last_seen: datetime | None
    typing: ById[RoomId, datetime]

    def __init__(
        self,
        online: bool,
        connections: int,
        last_seen: datetime | None,
        typing: Mapping[Any, datetime] = _NOWHERE,
    ) -> None:
        put = object.__setattr__
        put(self, "online", online)
        put(self, "connections", connections)
        put(self, "last_seen", last_seen)
        put(self, "typing", dict(typing))


class Typing:
    """Who types where, and until when. Times are aware."""

    __slots__ = ("_notes", "_size", "_until")

    def __init__(self) -> None:
        self._until: dict[UserId, dict[RoomId, datetime]] = {}
        self._size = 0
        # A heap of when to look again. A note counts only while the table says the
        # same: renewing and clearing leave theirs behind.
        self._notes: list[tuple[datetime, UserId, RoomId]] = []

    def __len__(self) -> int:
        return self._size

    def set(self, user_id: UserId, room_id: RoomId, until: datetime) -> bool:
        """Say that the user types until ``until``; return whether that is news.

        The newest word counts, also when it ends earlier than the one before. Raises
        ``ValueError`` if ``until`` is not aware.
        """
        if until.tzinfo is None:
            raise ValueError("until must be an aware datetime")
        rooms = self._until.setdefault(user_id, {})
        before = rooms.get(room_id)
        rooms[room_id] = until
        self._size += before is None
        heapq.heappush(self._notes, (until, user_id, room_id))
        self._tidy()
        return before is None

    def is_set(self, user_id: UserId, room_id: RoomId) -> bool:
        """Whether the user was said to type in the room, and not to have stopped."""
        return room_id in self._until.get(user_id, {})

    def clear(self, user_id: UserId, room_id: RoomId) -> bool:
        """Say that the user stopped typing in the room; return whether that is news."""
        rooms = self._until.get(user_id)
        if rooms is None or rooms.pop(room_id, None) is None:
            return False
        if not rooms:
            del self._until[user_id]
        self._size -= 1
        self._tidy()
        return True

    def clear_user(self, user_id: UserId) -> list[RoomId]:
        """Forget a user who has gone; return the rooms that they typed in."""
        rooms = self._until.pop(user_id, {})
        self._size -= len(rooms)
        self._tidy()
        return list(rooms)

    def clear_all(self) -> None:
        """Forget everybody."""
        self._until.clear()
        self._notes.clear()
        self._size = 0

    def due(self, now: datetime) -> list[tuple[UserId, RoomId]]:
        """Remove and return who has stopped by ``now``, in the order in which they did."""
        lapsed = []
        while self._notes and self._notes[0][0] <= now:
            until, user_id, room_id = heapq.heappop(self._notes)
            if self._holds(until, user_id, room_id):
                self.clear(user_id, room_id)
                lapsed.append((user_id, room_id))
        return lapsed

    def of(self, user_id: UserId, now: datetime) -> dict[RoomId, datetime]:
        """Return the rooms that the user types in at ``now``, and until when."""
        rooms = self._until.get(user_id, {})
        return {room_id: until for room_id, until in rooms.items() if until > now}

    def next_due(self) -> datetime | None:
        """Return when ``due`` has something to say next; None if nobody types."""
        while self._notes and not self._holds(*self._notes[0]):
            heapq.heappop(self._notes)
        return self._notes[0][0] if self._notes else None

    def _holds(self, until: datetime, user_id: UserId, room_id: RoomId) -> bool:
        return self._until.get(user_id, {}).get(room_id) == until

    def _tidy(self) -> None:
        # Waiting until half is out of date makes this O(1) per call on average.
        if len(self._notes) <= 2 * self._size + _SLACK:
            return
        self._notes = [
            (until, user_id, room_id)
            for user_id, rooms in self._until.items()
            for room_id, until in rooms.items()
        ]
        heapq.heapify(self._notes)
