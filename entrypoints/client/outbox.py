"""The application's messages that are not written yet: a bounded FIFO queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from eyewall.domain.errors import Overloaded

SIZE: Final = 256
"""Messages that wait while there is no connection: as many as the server remembers requests
of a session, so that none of them can be handled twice."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes that wait: what the server's queue for a connection holds."""


@dataclass(slots=True, eq=False)
class Outgoing:
    """One message on its way out.

    ``generation`` is that of the token source when the application sent it
    (``Tokens.generation``). A ``dropped`` message must not be sent any more.
    """

    frame: bytes
    generation: int = 0
    dropped: bool = False
    written: bool = False

    def frame_to_write(self) -> bytes:
        """Return the frame to write now."""
        return self.frame


class Outbox:
    """Messages in the order in which they are written."""

    __slots__ = ("_bytes", "_items", "_max_bytes", "_moved", "_size", "_wake")

    def __init__(self, size: int = SIZE, max_bytes: int = MAX_BYTES) -> None:
        self._size = size
        self._max_bytes = max_bytes
        self._items: deque[Outgoing] = deque()
        self._bytes = 0
        self._moved = asyncio.Event()
        self._wake: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def has_space_for(self, item: Outgoing) -> bool:
        """Return whether it fits. An empty outbox takes one message of any size."""
        if not self._items:
            return True
        return len(self._items) < self._size and self._bytes + len(item.frame) <= self._max_bytes

    def put(self, item: Outgoing) -> None:
        """Add a message; raises ``Overloaded`` if it does not fit."""
        if not self.has_space_for(item):
            raise Overloaded(f"{len(self._items)} messages wait for the connection to come back")
        self._items.append(item)
        self._bytes += len(item.frame)
        if self._wake is not None:
            self._wake()

    def put_back(self, items: Iterable[Outgoing]) -> None:
        """Put unanswered messages of the last connection back at the front, in their order.

        The bound does not apply to them.
        """
        items = list(items)
        for item in items:
            item.written = False
        self._items.extendleft(reversed(items))
        self._bytes += sum(len(item.frame) for item in items)

    def pop(self) -> Outgoing | None:
        """Return the next message that was not dropped; None if there is none."""
        found = None
        while self._items and found is None:
            item = self._items.popleft()
            self._bytes -= len(item.frame)
            found = None if item.dropped else item
        if found is not None:
            found.written = True
        self.notify_waiters()
        return found

    def drop_before(self, generation: int) -> int:
        """Remove the messages of older token sources; return how many of them were not
        dropped already."""
        kept = deque(item for item in self._items if item.generation >= generation)
        dropped = sum(not i.dropped for i in self._items if i.generation < generation)
        self._items = kept
        self._bytes = sum(len(item.frame) for item in kept)
        self.notify_waiters()
        return dropped

    def clear(self) -> None:
        """Drop all messages."""
        self._items.clear()
        self._bytes = 0
        self.notify_waiters()

    def set_waker(self, wake: Callable[[], None] | None) -> None:
        """Call ``wake`` from now on when a message is added."""
        self._wake = wake

    def notify_waiters(self) -> None:
        """Wake all senders that wait for space."""
        self._moved.set()

    async def wait_for_change(self) -> None:
        """Return when a message was removed, or the state of the client has changed."""
        self._moved.clear()
        await self._moved.wait()
