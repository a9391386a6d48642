"""Messages for offline users, kept in an SQLite file.

Rules of this file:

1. A call returns when its transaction is on the disk: write-ahead log, ``synchronous = FULL``.
   With ``NORMAL``, a power cut (not a killed process) would lose the last messages that were
   reported as stored.
2. One thread runs all calls. Waiting calls share a transaction, so that a burst of messages
   takes one ``fsync`` and not one for each.
3. A transaction that fails is rolled back as a whole, and each of its calls raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from eyewall.adapters.offline.schema import Tables, prepare
from eyewall.domain.duration import Seconds, seconds
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import UserId
from eyewall.domain.mailbox import (
    MAX_AGE,
    MAX_BYTES,
    MAX_MESSAGES,
    Evicted,
    MailboxLimits,
    StoredMessage,
)

T = TypeVar("T")


MAX_WAITING_CALLS = 10_000
"""Calls that may wait for a slow disk, each with a message in memory. Further calls are
refused."""
CALLS_PER_TRANSACTION = 256
"""Calls of one transaction: a few milliseconds at usual message sizes, so that the first call
of a long burst does not wait for the last."""


class _Call:
    """One call, and the future of its result."""

    __slots__ = ("_future", "_loop", "error", "result", "work", "writes")

    def __init__(self, work: Callable[[Tables], Any], *, writes: bool) -> None:
        self.work = work
        self.writes = writes
        self.result: Any = None
        self.error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()

    async def wait(self) -> Any:
        return await self._future

    def tell(self) -> None:
        """Settle the future, from the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if self._future.done():
            return
        if self.error is not None:
            self._future.set_exception(self.error)
        else:
            self._future.set_result(self.result)


class SqliteOffline:
    """Implements ``OfflineStore`` in the file ``path``, which is created if it does not exist.

    Servers share it by sharing the object or, on one machine, the file.
    ``max_messages``, ``max_bytes`` and ``max_age`` (seconds) apply to each user; the disk limits
    the total. ``busy_timeout`` is how many seconds to wait for another process that has locked
    the file; a backup holds its lock for less than five.

    ``open`` raises ``Unavailable`` if the file can't be opened or written, is no database, or
    was written by a newer version. Every call raises it while the disk is full.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
        max_age: Seconds = MAX_AGE,
        busy_timeout: Seconds = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(path)
        self._limits = MailboxLimits(
            max_messages=max_messages, max_bytes=max_bytes, max_age=max_age
        )
        self._busy_timeout = seconds(busy_timeout, "busy_timeout")
        self._clock = clock
        self._calls: deque[_Call] = deque()
        self._wakeup = threading.Condition()
        self._opened = 0
        self._thread: threading.Thread | None = None

    async def open(self) -> None:
        """Count one more server that uses the store. Raises ``Unavailable``."""
        with self._wakeup:
            self._opened += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="offline", daemon=True)
                self._thread.start()
        try:
            await self._do(lambda _: None)
        except Unavailable as error:
            await self.close()
            raise Unavailable(f"{self._path} can't be used: {error}") from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Count one server less. The last one ends the thread, after its calls are done."""
        with self._wakeup:
            self._opened = max(0, self._opened - 1)
            thread = self._thread
            if self._opened or thread is None:
                return
            self._thread = None
            self._wakeup.notify()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)

    # --- the calls

    async def store(self, user_id: UserId, message: StoredMessage) -> list[Evicted]:
        return await self._do(lambda tables: tables.store(user_id, message))

    async def waiting(
        self, user_id: UserId, after: int, limit: int, now: datetime
    ) -> list[tuple[int, StoredMessage]]:
        return await self._do(
            lambda tables: tables.waiting(user_id, after, limit, now), writes=False
        )

    async def remove(self, user_id: UserId, message_id: str) -> bool:
        return await self._do(lambda tables: tables.remove(user_id, message_id))

    async def expire(self, now: datetime, limit: int) -> list[Evicted]:
        return await self._do(lambda tables: tables.expire(now, limit, self._clock()))

    async def claim(self, user_id: UserId, owner: str, ttl: float) -> str:
        return await self._do(lambda tables: tables.claim(user_id, owner, ttl, self._clock()))

    async def release(self, user_id: UserId, owner: str) -> None:
        await self._do(lambda tables: tables.release(user_id, owner))

    async def _do(self, work: Callable[[Tables], T], *, writes: bool = True) -> T:
        call = _Call(work, writes=writes)
        with self._wakeup:
            if self._thread is None:
                raise Unavailable("the offline store is closed")
            if len(self._calls) >= MAX_WAITING_CALLS:
                raise Unavailable(f"{MAX_WAITING_CALLS} calls wait for the offline store")
            self._calls.append(call)
            self._wakeup.notify()
        result: T = await call.wait()
        return result

    # --- the thread

    def _work(self) -> None:
        db: sqlite3.Connection | None = None
        while calls := self._next():
            try:
                if db is None:
                    db = prepare(self._path, self._busy_timeout)
                self._transact(db, calls)
            except Exception as error:  # noqa: BLE001  (the callers must get any error)
                for call in calls:
                    call.error = _unavailable(error)
                db = _rolled_back(db)
            for call in calls:
                call.tell()
        if db is not None:
            db.close()

    def _next(self) -> list[_Call]:
        """Wait for calls and return them; none when the store is closed and all are done."""
        me = threading.current_thread()
        with self._wakeup:
            while not self._calls and self._thread is me:
                self._wakeup.wait()
            return [
                self._calls.popleft() for _ in range(min(CALLS_PER_TRANSACTION, len(self._calls)))
            ]

    def _transact(self, db: sqlite3.Connection, calls: list[_Call]) -> None:
        tables = Tables(db, self._limits)
        # A transaction that only reads takes no lock, so other processes do not wait for it.
        db.execute("BEGIN IMMEDIATE" if any(call.writes for call in calls) else "BEGIN")
        for call in calls:
            try:
                call.result = call.work(tables)
            except ValueError as error:  # a text that is no Unicode, before anything was written
                call.error = _unavailable(error)
        db.execute("COMMIT")


def _rolled_back(db: sqlite3.Connection | None) -> sqlite3.Connection | None:
    """Roll back. Returns None if the file has to be opened again."""
    if db is None:
        return None
    try:
        db.rollback()
    except sqlite3.Error:
        db.close()
        return None
    return db


def _unavailable(error: Exception) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    unavailable = Unavailable(f"the offline store failed: {error}")
    unavailable.__cause__ = error
    return unavailable
