"""A re-entrant lock per key, for steps that wait in the middle.

The event loop itself serializes code that does not wait. Joining and leaving a room wait for
the state store between their decision and its effect, so two of them for one connection
exclude each other here.

Rules of this file:

1. Waiters for a key get its lock in FIFO order.
2. The holder may acquire the lock again: a hook does so that leaves a room during its join.
   ``asyncio.wait_for`` runs such code in a task of its own, so the holder is known by its
   context (``ContextVar``), not by its task.
3. Several tasks of one holder exclude each other, and the lock is released when all of them
   have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar, Token
from types import MappingProxyType


class _Level:
    """One level of nesting: the lock that the next waiters at this level wait for."""

    __slots__ = ("is_over", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.is_over = False


_NONE: Mapping[Hashable, _Level] = MappingProxyType({})


class KeyedLock:
    """A re-entrant lock per key. A key without holder or waiters takes no memory."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, _Level] = {}
        self._held: ContextVar[Mapping[Hashable, _Level]] = ContextVar("held", default=_NONE)

    def acquire(self, key: Hashable) -> AbstractAsyncContextManager[None]:
        """Return a context manager that waits for the lock of ``key`` and releases it."""
        return _Acquired(self._locks, self._held, key)


class _Acquired:
    """One acquisition of a lock, from waiting for it to its release.

    A class with ``__aenter__``, because every connect, join and leave acquires a lock, and a
    generator would cost more than all the rest of it.
    """

    __slots__ = ("_held", "_inner", "_key", "_locks", "_outer", "_token")

    def __init__(
        self,
        locks: dict[Hashable, _Level],
        held: ContextVar[Mapping[Hashable, _Level]],
        key: Hashable,
    ) -> None:
        self._locks = locks
        self._held = held
        self._key = key
        self._outer: _Level
        self._inner: _Level
        self._token: Token[Mapping[Hashable, _Level]]

    async def __aenter__(self) -> None:
        held = self._held.get()
        outer = held.get(self._key)
        if outer is None or outer.is_over:
            outer = self._locks.get(self._key)
            if outer is None:
                outer = self._locks[self._key] = _Level()
        self._outer = outer
        outer.users += 1
        try:
            await outer.lock.acquire()
        except BaseException:
            self._leave()
            raise
        self._inner = _Level()
        self._token = self._held.set({**held, self._key: self._inner})

    async def __aexit__(self, *_: object) -> None:
        self._held.reset(self._token)
        self._inner.is_over = True
        try:
            # Wait for tasks of this holder that acquired the lock within and still run.
            await self._inner.lock.acquire()
        finally:
            self._outer.lock.release()
            self._leave()

    def _leave(self) -> None:
        """Stop using the outer level; the last user removes a key's entry."""
        outer = self._outer
        outer.users -= 1
        if not outer.users and self._locks.get(self._key) is outer:
            del self._locks[self._key]
