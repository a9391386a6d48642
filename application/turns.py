"""One after the other, per key: for steps that have to wait in the middle.

The event loop is the lock for everything that does not wait. Joining and leaving a
room wait for the state store between their decision and its effect here, so two of
them for one connection take turns.

Who has the turn may take it again: that is what a hook does that leaves a room while it
is told of the join. It may do so in a task of its own (``asyncio.wait_for`` makes one),
which is why who has the turn is known by the context and not by the task. Several
tasks within one turn take turns among themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from contextvars import ContextVar


class _Turn:
    """Somebody's turn, or a key's beginning: what the next ones wait at."""

    __slots__ = ("is_over", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.is_over = False


class Turns:
    """Mutual exclusion by key. A key that nobody uses takes no memory."""

    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}
        self._held: ContextVar[dict[Hashable, _Turn]] = ContextVar("held")

    @asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[None]:
        held = self._held.get({})
        around = held.get(key)
        if around is not None and not around.is_over:
            async with self._take(key, around, held):
                yield
            return
        door = self._turns.setdefault(key, _Turn())
        door.users += 1
        try:
            async with self._take(key, door, held):
                yield
        finally:
            door.users -= 1
            if not door.users:
                self._turns.pop(key, None)

    @asynccontextmanager
    async def _take(
        self, key: Hashable, door: _Turn, held: dict[Hashable, _Turn]
    ) -> AsyncIterator[None]:
        async with door.lock:
            turn = _Turn()
            token = self._held.set({**held, key: turn})
            try:
                yield
            finally:
                self._held.reset(token)
                turn.is_over = True
                # Tasks that took it within, and are still at it, are waited for.
                await turn.lock.acquire()
