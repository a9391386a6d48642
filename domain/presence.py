"""A user's presence, and the table of users who are typing.

Rules of this file:

1. Typing always expires: a client that stops without a message stops for the others, too.
2. ``until`` is the first moment at which a user no longer types.
3. A change counts as news against what the others were told: a user who renews after
   ``until``, but before ``due`` has reported the end, has not stopped for the others.
4. The memory is bounded by the users who type now, not by how often they renew it.
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
"""Outdated heap entries that are left alone: rebuilding the heap for fewer costs more."""


@dataclass(frozen=True, slots=True)
class PresenceState:
    """A user's presence in the whole cluster.

    ``last_seen`` is None for a user who was never seen. ``typing`` maps each room in which
    the user types to when that expires.
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
    """The users who type, in which rooms, and until when. Times are aware."""

    __slots__ = ("_ends", "_size", "_until")

    def __init__(self) -> None:
        self._until: dict[UserId, dict[RoomId, datetime]] = {}
        self._size = 0
        # A heap of ends. An entry is valid only while the table has the same end: renewing
        # and clearing leave the old entry in the heap.
        self._ends: list[tuple[datetime, UserId, RoomId]] = []

    def __len__(self) -> int:
        return self._size

    def set(self, user_id: UserId, room_id: RoomId, until: datetime) -> bool:
        """Record that the user types until ``until``; return whether that is news.

        The newest call wins, also with an earlier end. Raises ``ValueError`` if ``until`` is
        not aware.
        """
        if until.tzinfo is None:
            raise ValueError("until must be an aware datetime")
        rooms = self._until.setdefault(user_id, {})
        before = rooms.get(room_id)
        rooms[room_id] = until
        self._size += before is None
        heapq.heappush(self._ends, (until, user_id, room_id))
        self._tidy()
        return before is None

    def is_set(self, user_id: UserId, room_id: RoomId) -> bool:
        """Whether the user is recorded as typing in the room."""
        return room_id in self._until.get(user_id, {})

    def clear(self, user_id: UserId, room_id: RoomId) -> bool:
        """Record that the user stopped typing in the room; return whether that is news."""
        rooms = self._until.get(user_id)
        if rooms is None or rooms.pop(room_id, None) is None:
            return False
        if not rooms:
            del self._until[user_id]
        self._size -= 1
        self._tidy()
        return True

    def clear_user(self, user_id: UserId) -> list[RoomId]:
        """Forget a user who went offline; return the rooms in which the user typed."""
        rooms = self._until.pop(user_id, {})
        self._size -= len(rooms)
        self._tidy()
        return list(rooms)

    def clear_all(self) -> None:
        """Forget all users."""
        self._until.clear()
        self._ends.clear()
        self._size = 0

    def due(self, now: datetime) -> list[tuple[UserId, RoomId]]:
        """Remove and return the users and rooms whose typing expired by ``now``, in order."""
        lapsed = []
        while self._ends and self._ends[0][0] <= now:
            until, user_id, room_id = heapq.heappop(self._ends)
            if self._holds(until, user_id, room_id):
                self.clear(user_id, room_id)
                lapsed.append((user_id, room_id))
        return lapsed

    def of(self, user_id: UserId, now: datetime) -> dict[RoomId, datetime]:
        """Return the rooms in which the user types at ``now``, each with its end."""
        rooms = self._until.get(user_id, {})
        return {room_id: until for room_id, until in rooms.items() if until > now}

    def next_due(self) -> datetime | None:
        """Return when the next typing expires; None if no user types."""
        while self._ends and not self._holds(*self._ends[0]):
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else None

    def _holds(self, until: datetime, user_id: UserId, room_id: RoomId) -> bool:
        return self._until.get(user_id, {}).get(room_id) == until

    def _tidy(self) -> None:
        # Rebuilding only when half of the heap is outdated makes this O(1) per call on average.
        if len(self._ends) <= 2 * self._size + _SLACK:
            return
        self._ends = [
            (until, user_id, room_id)
            for user_id, rooms in self._until.items()
            for room_id, until in rooms.items()
        ]
        heapq.heapify(self._ends)
