"""One after the other, per key: for steps that have to wait in the middle.

The event loop is the lock for everything that does not wait. Joining and leaving a
room wait for the state store between their decision and its effect here, so two of
them for one connection take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class _Turn:
    __slots__ = ("lock", "owner", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.owner: asyncio.Task[object] | None = None


class Turns:
    """Mutual exclusion by key. A task that has the turn may take it again.

    Taking it again is what a hook does that leaves a room while it is told of the
    join. A key that nobody uses takes no memory.
    """

    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}

    @asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[None]:
        task = asyncio.current_task()
        turn = self._turns.get(key)
        if turn is not None and task is not None and turn.owner is task:
            yield
            return
        if turn is None:
            turn = self._turns[key] = _Turn()
        turn.users += 1
        try:
            async with turn.lock:
                turn.owner = task
                try:
                    yield
                finally:
                    turn.owner = None
        finally:
            turn.users -= 1
            if not turn.users:
                self._turns.pop(key, None)
