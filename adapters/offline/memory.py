"""Messages for offline users, kept in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from itertools import count
from typing import NamedTuple

from eyewall.domain.duration import Seconds
from eyewall.domain.duration import count as whole
from eyewall.domain.identity import UserId
from eyewall.domain.mailbox import (
    MAX_AGE,
    MAX_BYTES,
    MAX_MESSAGES,
    Evicted,
    MailboxLimits,
    StoredMessage,
)
from eyewall.domain.report import FailureReason

MAX_TOTAL_MESSAGES = 100_000
"""Messages of all users together: memory must not grow with the number of users. Beside their
payloads they take some 100 MiB."""
MAX_TOTAL_BYTES = 256 << 20
"""Bytes of all payloads together: 2.5 KiB for each of these messages."""


class _Entry(NamedTuple):
    position: int
    until: datetime
    message: StoredMessage


_Box = dict[str, _Entry]
"""The messages of a user by id, the oldest first."""


class MemoryOffline:
    """Implements ``OfflineStore``. Servers share it by sharing the object. A closed store keeps
    its messages.

    ``max_messages``, ``max_bytes`` and ``max_age`` (seconds) apply to each user,
    ``max_total_messages`` and ``max_total_bytes`` to all users together.
    """

    def __init__(
        self,
        *,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
        max_age: Seconds = MAX_AGE,
        max_total_messages: int = MAX_TOTAL_MESSAGES,
        max_total_bytes: int = MAX_TOTAL_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = MailboxLimits(
            max_messages=max_messages, max_bytes=max_bytes, max_age=max_age
        )
        self._totals = MailboxLimits(
            max_messages=whole(max_total_messages, "max_total_messages"),
            max_bytes=whole(max_total_bytes, "max_total_bytes"),
        )
        self._clock = clock
        self._lock = threading.Lock()
        self._boxes: dict[UserId, _Box] = {}
        self._sizes: dict[UserId, int] = {}
        self._order: dict[int, tuple[UserId, str]] = {}
        self._size = 0
        self._positions = count(1)
        self._claims: dict[UserId, tuple[str, float]] = {}

    def __len__(self) -> int:
        """Return the number of stored messages of all users."""
        return len(self._order)

    async def open(self) -> None:
        """Nothing to open: the messages live as long as the object."""

    async def close(self) -> None:
        """Nothing to close: another server may use the object."""

    async def store(self, user_id: UserId, message: StoredMessage) -> list[Evicted]:
        with self._lock:
            if message.id in self._boxes.get(user_id, ()):
                return []
            evicted = self._expire_box(user_id, message.stored_at)
            self._put(user_id, message)
            while self._limits.exceeded(len(self._boxes[user_id]), self._sizes[user_id]):
                evicted.append(self._evict(user_id, next(iter(self._boxes[user_id]))))
            while self._totals.exceeded(len(self._order), self._size):
                evicted.append(self._evict(*next(iter(self._order.values()))))
            return evicted

    async def waiting(
        self, user_id: UserId, after: int, limit: int, now: datetime
    ) -> list[tuple[int, StoredMessage]]:
        with self._lock:
            found = [
                (entry.position, entry.message)
                for entry in self._boxes.get(user_id, {}).values()
                if entry.position > after and now < entry.until
            ]
            return found[:limit]

    async def remove(self, user_id: UserId, message_id: str) -> bool:
        with self._lock:
            if message_id not in self._boxes.get(user_id, ()):
                return False
            self._take(user_id, message_id)
            return True

    async def expire(self, now: datetime, limit: int) -> list[Evicted]:
        with self._lock:
            self._forget_claims()
            old: list[tuple[UserId, str]] = []
            for user_id, message_id in self._order.values():
                if len(old) == limit:
                    break
                if self._boxes[user_id][message_id].until <= now:
                    old.append((user_id, message_id))
            return [self._evict(*key, FailureReason.TIMEOUT) for key in old]

    async def claim(self, user_id: UserId, owner: str, ttl: float) -> str:
        with self._lock:
            now = self._clock()
            holder, until = self._claims.get(user_id, (owner, 0.0))
            if holder != owner and now < until:
                return holder
            self._claims[user_id] = (owner, now + ttl)
            return owner

    async def release(self, user_id: UserId, owner: str) -> None:
        with self._lock:
            if self._claims.get(user_id, ("", 0.0))[0] == owner:
                del self._claims[user_id]

    # --- bookkeeping

    def _put(self, user_id: UserId, message: StoredMessage) -> None:
        position, size = next(self._positions), len(message.payload)
        entry = _Entry(position, self._limits.worthless_at(message), message)
        self._boxes.setdefault(user_id, {})[message.id] = entry
        self._order[position] = (user_id, message.id)
        self._sizes[user_id] = self._sizes.get(user_id, 0) + size
        self._size += size

    def _take(self, user_id: UserId, message_id: str) -> StoredMessage:
        box = self._boxes[user_id]
        position, _, message = box.pop(message_id)
        del self._order[position]
        self._sizes[user_id] -= len(message.payload)
        self._size -= len(message.payload)
        if not box:
            del self._boxes[user_id]
            del self._sizes[user_id]
        return message

    def _evict(
        self, user_id: UserId, message_id: str, reason: FailureReason = FailureReason.QUEUE_FULL
    ) -> Evicted:
        return Evicted(user_id, self._take(user_id, message_id), reason)

    def _expire_box(self, user_id: UserId, now: datetime) -> list[Evicted]:
        """Evict the user's expired messages, before others are evicted for room."""
        old = [
            entry.message.id
            for entry in self._boxes.get(user_id, {}).values()
            if entry.until <= now
        ]
        return [self._evict(user_id, message_id, FailureReason.TIMEOUT) for message_id in old]

    def _forget_claims(self) -> None:
        now = self._clock()
        for user_id in [u for u, (_, until) in self._claims.items() if until <= now]:
            del self._claims[user_id]
