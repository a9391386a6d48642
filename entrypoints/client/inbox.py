"""A queue of messages for the application, bounded in number and in bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

SIZE: Final = 256
"""Messages that wait: as many as the server's own queue for a connection holds."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes that wait, for the same reason. An empty queue takes one larger message."""


class Inbox(Generic[T]):
    """A FIFO queue with a non-blocking ``put``."""

    __slots__ = ("_bytes", "_closed", "_items", "_max_bytes", "_size", "_wake", "on_space")

    def __init__(self, size: int = SIZE, max_bytes: int = MAX_BYTES) -> None:
        self._size = size
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._wake = asyncio.Event()
        self.on_space: Callable[[], None] | None = None
        """Called when it is down to half: messages that did not fit may come again."""

    def __len__(self) -> int:
        return len(self._items)

    @property
    def has_space(self) -> bool:
        """Whether it is at most half full."""
        return len(self._items) <= self._size // 2 and self._bytes <= self._max_bytes // 2

    def put(self, item: T, size: int) -> bool:
        """Take an item of ``size`` bytes; False if it does not fit."""
        full = len(self._items) >= self._size or self._bytes + size > self._max_bytes
        if self._closed or (full and self._items):
            return False
        self._items.append((item, size))
        self._bytes += size
        self._wake.set()
        return True

    async def get(self) -> T | None:
        """Return the next item as soon as there is one; None when it is closed and empty."""
        while not self._items:
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        was_roomy = self.has_space
        item, size = self._items.popleft()
        self._bytes -= size
        if self.has_space and not was_roomy and self.on_space is not None:
            self.on_space()
        return item

    def close(self) -> None:
        """Take no more items; the queued ones can still be got."""
        self._closed = True
        self._wake.set()

    def reopen(self) -> None:
        """Take items again."""
        self._closed = False

    def clear(self) -> None:
        """Drop all items."""
        self._items.clear()
        self._bytes = 0
