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
from collections.abc import Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar, Token
from types import MappingProxyType


class _Turn:
    """Somebody's turn, or a key's beginning: what the next ones wait at."""

    __slots__ = ("is_over", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.is_over = False


_NONE: Mapping[Hashable, _Turn] = MappingProxyType({})


class KeyedLock:
    """Mutual exclusion by key. A key that nobody uses takes no memory."""

    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}
        self._held: ContextVar[Mapping[Hashable, _Turn]] = ContextVar("held", default=_NONE)

    def take(self, key: Hashable) -> AbstractAsyncContextManager[None]:
        """Return what is entered with the turn, and left at its end."""
        return _Stay(self._turns, self._held, key)


class _Stay:
    """One turn, from waiting for it to its end.

    By hand, because a turn is taken for every connect, join and leave, and generators
    in between cost more than all the rest of it.
    """

    __slots__ = ("_door", "_held", "_key", "_token", "_turn", "_turns")

    def __init__(
        self,
        turns: dict[Hashable, _Turn],
        held: ContextVar[Mapping[Hashable, _Turn]],
        key: Hashable,
    ) -> None:
        self._turns = turns
        self._held = held
        self._key = key
        self._door: _Turn
        self._turn: _Turn
        self._token: Token[Mapping[Hashable, _Turn]]

    async def __aenter__(self) -> None:
        held = self._held.get()
        around = held.get(self._key)
        if around is None or around.is_over:
            around = self._turns.get(self._key)
            if around is None:
                around = self._turns[self._key] = _Turn()
        self._door = around
        around.users += 1
        try:
            await around.lock.acquire()
        except BaseException:
            self._leave()
            raise
        self._turn = _Turn()
        self._token = self._held.set({**held, self._key: self._turn})

    async def __aexit__(self, *_: object) -> None:
        self._held.reset(self._token)
        self._turn.is_over = True
        try:
            # Tasks that took it within, and are still at it, are waited for.
            await self._turn.lock.acquire()
        finally:
            self._door.lock.release()
            self._leave()

    def _leave(self) -> None:
        door = self._door
        door.users -= 1
        if not door.users and self._turns.get(self._key) is door:
            del self._turns[self._key]
