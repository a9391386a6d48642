"""The tables of the SQLite store, and its operations within a transaction."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eyewall.domain.envelope import Priority
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import UserId
from eyewall.domain.mailbox import Evicted, MailboxLimits, StoredMessage
from eyewall.domain.report import FailureReason

VERSION = 1
"""The version of the tables, stored in the file as ``user_version``."""

_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# AUTOINCREMENT: a position is never reused, even after the last message is removed.
_TABLES = (
    """CREATE TABLE messages (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        user TEXT NOT NULL,
        id TEXT NOT NULL,
        payload BLOB NOT NULL,
        priority INTEGER NOT NULL,
        stored_at INTEGER NOT NULL,
        expires_at INTEGER,
        worthless_at INTEGER NOT NULL,
        size INTEGER NOT NULL,
        UNIQUE (user, id)
    )""",
    "CREATE INDEX messages_of_user ON messages (user, position, size)",
    "CREATE INDEX messages_by_age ON messages (worthless_at)",
    "CREATE TABLE claims (user TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL)",
)

_MESSAGE = "position, id, payload, priority, stored_at, expires_at, user"


def prepare(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """Open the file for the calling thread, and create the tables if it has none.

    Raises ``Unavailable`` or ``sqlite3.Error``.
    """
    db = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if _version(db) < VERSION:
            db.execute("BEGIN IMMEDIATE")
            if _version(db) < VERSION:  # another process may have created them meanwhile
                for table in _TABLES:
                    db.execute(table)
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.close()
        raise
    return db


def _version(db: sqlite3.Connection) -> int:
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found > VERSION:
        raise Unavailable(f"it was written by a newer version (schema {found})")
    return int(found)


class Tables:
    """The operations of the store, each within a transaction of the caller."""

    def __init__(self, db: sqlite3.Connection, limits: MailboxLimits) -> None:
        self._db = db
        self._limits = limits

    def store(self, user_id: UserId, message: StoredMessage) -> list[Evicted]:
        is_there = "SELECT 1 FROM messages WHERE user = ? AND id = ?"
        if self._db.execute(is_there, (user_id, message.id)).fetchone():
            return []
        old = "SELECT position FROM messages WHERE user = ? AND worthless_at <= ?"
        evicted = self._evict(
            [
                row[0]
                for row in self._db.execute(old, (user_id, _to_microseconds(message.stored_at)))
            ],
            FailureReason.TIMEOUT,
        )
        self._db.execute(
            "INSERT INTO messages (user, id, payload, priority, stored_at, expires_at,"
            " worthless_at, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                user_id,
                message.id,
                message.payload,
                int(message.priority),
                _to_microseconds(message.stored_at),
                None if message.expires_at is None else _to_microseconds(message.expires_at),
                _to_microseconds(self._limits.worthless_at(message)),
                len(message.payload),
            ),
        )
        return evicted + self._make_room(user_id)

    def _make_room(self, user_id: UserId) -> list[Evicted]:
        totals = "SELECT count(*), sum(size) FROM messages WHERE user = ?"
        messages, size = self._db.execute(totals, (user_id,)).fetchone()
        if not self._limits.exceeded(messages, size):
            return []
        oldest = "SELECT position, size FROM messages WHERE user = ? ORDER BY position"
        gone = []
        for position, of_one in self._db.execute(oldest, (user_id,)):
            if not self._limits.exceeded(messages, size):
                break
            gone.append(position)
            messages, size = messages - 1, size - of_one
        return self._evict(gone, FailureReason.QUEUE_FULL)

    def waiting(
        self, user_id: UserId, after: int, limit: int, now: datetime
    ) -> list[tuple[int, StoredMessage]]:
        rows = self._db.execute(
            f"SELECT {_MESSAGE} FROM messages"  # noqa: S608  (a constant)
            " WHERE user = ? AND position > ? AND worthless_at > ? ORDER BY position LIMIT ?",
            (user_id, after, _to_microseconds(now), limit),
        )
        return [(row[0], _message(row)) for row in rows]

    def remove(self, user_id: UserId, message_id: str) -> bool:
        gone = self._db.execute(
            "DELETE FROM messages WHERE user = ? AND id = ?", (user_id, message_id)
        )
        return gone.rowcount > 0

    def expire(self, now: datetime, limit: int, wall: float) -> list[Evicted]:
        self._db.execute("DELETE FROM claims WHERE until <= ?", (wall,))
        old = "SELECT position FROM messages WHERE worthless_at <= ? ORDER BY position LIMIT ?"
        positions = [row[0] for row in self._db.execute(old, (_to_microseconds(now), limit))]
        return self._evict(positions, FailureReason.TIMEOUT)

    def claim(self, user_id: UserId, owner: str, ttl: float, wall: float) -> str:
        self._db.execute(
            "INSERT INTO claims (user, owner, until) VALUES (?, ?, ?) ON CONFLICT (user) DO"
            " UPDATE SET owner = excluded.owner, until = excluded.until"
            " WHERE until <= ? OR owner = excluded.owner",
            (user_id, owner, wall + ttl, wall),
        )
        (holder,) = self._db.execute(
            "SELECT owner FROM claims WHERE user = ?", (user_id,)
        ).fetchone()
        return str(holder)

    def release(self, user_id: UserId, owner: str) -> None:
        self._db.execute("DELETE FROM claims WHERE user = ? AND owner = ?", (user_id, owner))

    def _evict(self, positions: list[int], reason: FailureReason) -> list[Evicted]:
        found = []
        for position in positions:
            row = self._db.execute(
                f"SELECT {_MESSAGE} FROM messages WHERE position = ?",  # noqa: S608
                (position,),
            ).fetchone()
            self._db.execute("DELETE FROM messages WHERE position = ?", (position,))
            found.append(Evicted(UserId(row[6]), _message(row), reason))
        return found


def _message(row: tuple[int, str, bytes, int, int, int | None, str]) -> StoredMessage:
    _, message_id, payload, priority, stored_at, expires_at, _ = row
    return StoredMessage(
        message_id,
        payload,
        Priority(priority),
        _from_microseconds(stored_at),
        None if expires_at is None else _from_microseconds(expires_at),
    )


def _to_microseconds(when: datetime) -> int:
    """Return a timestamp in whole microseconds, without rounding."""
    return (when - _START) // _MICROSECOND


def _from_microseconds(stamp: int) -> datetime:
    return _START + stamp * _MICROSECOND
