"""A session: what of a connection outlives a cut, and for how long.

Rules of this file:

1. A session's name can't be guessed, and is worth nothing to another user: neither to one
   whom the handshake has named otherwise, nor to who has become somebody else since.
2. The name says which connection, and so which node, it belongs to.
3. What is kept is bounded in number, in bytes and in time; the oldest go first.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NewType

from eyewall.domain.identity import ConnId, ConnMeta, RoomId, UserId
from eyewall.domain.repeats import RequestLog

SessionName = NewType("SessionName", str)
"""``SECRET.CONN_ID``; the connection's id ends in ``@`` and its node's."""

MAX_NAME: Final = 1024
"""Characters of a name that a client may show: a node's id has at most 256."""

MAX_KEPT: Final = 100_000
"""Sessions that one node keeps: five times the connections that it commonly has, all of
which may be cut at once."""

MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
"""Bytes of answers in them; most sessions have less than 1 KiB."""


def name_of(secret: str, conn_id: ConnId) -> SessionName:
    """The name of the session that begins with a connection."""
    return SessionName(f"{secret}.{conn_id}")


def conn_of(name: str) -> ConnId:
    """The connection that a session began with; empty for what is no name of ours."""
    return ConnId(name.partition(".")[2])


def same(one: str, other: str) -> bool:
    """Whether two names are the same, without telling by the time how far they are."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


_IDENTITY: Final = ("user_id", "device_id", "roles", "attributes", "tags", "expires_at")


def became(meta: ConnMeta, came_as: ConnMeta) -> Mapping[str, Any] | None:
    """What a connection's owner is beside what the handshake said; None for the same user."""
    if meta.user_id == came_as.user_id:
        return None
    fields = {name: getattr(meta, name) for name in _IDENTITY}
    return {name: value for name, value in fields.items() if value != getattr(came_as, name)}


@dataclass(slots=True)
class Session:
    """What a client finds again when it comes back.

    ``moved`` is the session that goes on with it, for a client that has not heard so.
    """

    user_id: UserId | None
    rooms: frozenset[RoomId] = frozenset()
    repeats: RequestLog | None = None
    moved: SessionName | None = None
    came_as: UserId | None = None
    """The user whom the handshake had named."""
    identity: Mapping[str, Any] | None = None
    """The fields of ``ConnMeta`` in which its owner is another than the handshake said; None
    where the user is the same. A client that logs in by a message comes back as it came the
    first time, and its requests are that user's: so it is that user again."""

    def is_for(self, user_id: UserId | None, came_as: UserId | None, now: datetime) -> bool:
        """Whether a connection may go on with it that is ``user_id``'s now."""
        if self.user_id == user_id:
            return True
        if self.identity is None or not user_id == came_as == self.came_as:
            return False
        expires_at = self.identity.get("expires_at")
        return expires_at is None or now < expires_at

    @property
    def size(self) -> int:
        return 0 if self.repeats is None else self.repeats.size


class KeptSessions:
    """The sessions of connections that have ended. Times are monotonic seconds."""

    __slots__ = ("_bytes", "_kept")

    def __init__(self) -> None:
        self._kept: dict[SessionName, tuple[float, int, Session]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, name: SessionName, session: Session, until: float) -> None:
        """Keep a session until then; those that are kept longest go if there are too many."""
        self.drop(name)
        self._kept[name] = (until, session.size, session)
        self._bytes += session.size
        while len(self._kept) > MAX_KEPT or (self._bytes > MAX_KEPT_BYTES and len(self._kept) > 1):
            self.drop(next(iter(self._kept)))

    def find(self, name: str, now: float) -> Session | None:
        """The session of that name, if its time is not over."""
        found = self._kept.get(SessionName(name))
        return found[2] if found is not None and now < found[0] else None

    def drop(self, name: SessionName) -> None:
        """Keep it no longer."""
        found = self._kept.pop(name, None)
        if found is not None:
            self._bytes -= found[1]

    def clear(self) -> None:
        """Keep none any longer."""
        self._kept.clear()
        self._bytes = 0

    def expire(self, now: float) -> None:
        """Drop those whose time is over."""
        # They all have the same time: the first kept are the first to go.
        for name in list(self._due(now)):
            self.drop(name)

    def postpone(self, seconds: float) -> None:
        """Keep all of them for so much longer."""
        self._kept = {
            name: (until + seconds, size, session)
            for name, (until, size, session) in self._kept.items()
        }

    def next_due(self) -> float | None:
        """When ``expire`` has something to do next; None if nothing is kept."""
        first = next(iter(self._kept.values()), None)
        return None if first is None else first[0]

    def all(self, now: float) -> Iterator[tuple[SessionName, Session, float]]:
        """Every session, and the seconds that it has left."""
        for name, (until, _, session) in list(self._kept.items()):
            if now < until:
                yield name, session, until - now

    def _due(self, now: float) -> Iterator[SessionName]:
        for name, (until, _, _) in self._kept.items():
            if now < until:
                return
            yield name
