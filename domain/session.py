"""A session: the state of a connection that is kept after its end, for a limited time.

Rules of this file:

1. A session's name can't be guessed, and is useless to another user: it is checked against
   the user of the handshake and the user whom the connection has become since.
2. The name contains the id of the connection, and so its node.
3. The kept sessions are bounded in number, in bytes and in time; the oldest go first.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NewType

from eyewall.domain.identity import ConnId, ConnMeta, RoomId, UserId
from eyewall.domain.request_log import RequestLog

SessionName = NewType("SessionName", str)
"""``SECRET.CONN_ID``; the connection's id ends in ``@`` and its node's."""

MAX_NAME: Final = 1024
"""Longest name that is accepted from a client, in characters: a node's id has at most 256."""

MAX_KEPT: Final = 100_000
"""Sessions that one node keeps: five times its usual number of connections, all of which may
be lost at once."""

MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
"""Bytes of the answers in all kept sessions; most have less than 1 KiB."""


def name_of(secret: str, conn_id: ConnId) -> SessionName:
    """Return the name of the session that begins with a connection."""
    return SessionName(f"{secret}.{conn_id}")


def conn_of(name: str) -> ConnId:
    """Return the connection with which a session began; empty for a name of another form."""
    return ConnId(name.partition(".")[2])


def same(one: str, other: str) -> bool:
    """Whether two names are equal, compared in constant time."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


_IDENTITY: Final = ("user_id", "device_id", "roles", "attributes", "tags", "expires_at")


def became(meta: ConnMeta, came_as: ConnMeta) -> Mapping[str, Any] | None:
    """Return the fields of the owner that differ from the handshake's; None for the same user."""
    if meta.user_id == came_as.user_id:
        return None
    fields = {name: getattr(meta, name) for name in _IDENTITY}
    return {name: value for name, value in fields.items() if value != getattr(came_as, name)}


@dataclass(slots=True)
class Session:
    """The state that a returning client resumes.

    ``superseded_by`` is the session that has superseded this one, for a client that lost the
    connection before it got the new name.
    """

    user_id: UserId | None
    rooms: frozenset[RoomId] = frozenset()
    request_log: RequestLog | None = None
    superseded_by: SessionName | None = None
    came_as: UserId | None = None
    """The user of the handshake."""
    identity: Mapping[str, Any] | None = None
    """The fields of ``ConnMeta`` in which the owner differs from the handshake; None for the
    same user. A client that logs in by a message reconnects with its first handshake and
    resumes as the user that it had logged in as."""

    def is_for(self, user_id: UserId | None, came_as: UserId | None, now: datetime) -> bool:
        """Whether a connection may resume it: one that is ``user_id``'s at ``now`` (aware), and
        whose handshake named ``came_as``."""
        if self.user_id == user_id:
            return True
        if self.identity is None or not user_id == came_as == self.came_as:
            return False
        expires_at = self.identity.get("expires_at")
        return expires_at is None or now < expires_at

    @property
    def size(self) -> int:
        """Bytes of its answers."""
        return 0 if self.request_log is None else self.request_log.size


class KeptSessions:
    """The sessions of connections that have ended. Times are monotonic seconds."""

    __slots__ = ("_bytes", "_kept")

    def __init__(self) -> None:
        self._kept: dict[SessionName, tuple[float, int, Session]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, name: SessionName, session: Session, until: float) -> None:
        """Keep a session until ``until``; evicts the oldest if there are too many."""
        self.drop(name)
        self._kept[name] = (until, session.size, session)
        self._bytes += session.size
        while len(self._kept) > MAX_KEPT or (self._bytes > MAX_KEPT_BYTES and len(self._kept) > 1):
            self.drop(next(iter(self._kept)))

    def find(self, name: str, now: float) -> Session | None:
        """Return the session of that name; None if there is none or it has expired."""
        found = self._kept.get(SessionName(name))
        return found[2] if found is not None and now < found[0] else None

    def drop(self, name: SessionName) -> None:
        """Remove a session, if it is kept."""
        found = self._kept.pop(name, None)
        if found is not None:
            self._bytes -= found[1]

    def clear(self) -> None:
        """Remove all sessions."""
        self._kept.clear()
        self._bytes = 0

    def expire(self, now: float) -> None:
        """Remove the expired sessions."""
        # All are kept for the same time, so they expire in the order of insertion.
        for name in list(self._due(now)):
            self.drop(name)

    def postpone(self, seconds: float) -> None:
        """Extend the time of all sessions by ``seconds``."""
        self._kept = {
            name: (until + seconds, size, session)
            for name, (until, size, session) in self._kept.items()
        }

    def next_due(self) -> float | None:
        """Return when the next session expires; None if none is kept."""
        first = next(iter(self._kept.values()), None)
        return None if first is None else first[0]

    def all(self, now: float) -> Iterator[tuple[SessionName, Session, float]]:
        """Iterate over the sessions that have not expired, each with its name and the seconds
        that it has left."""
        for name, (until, _, session) in list(self._kept.items()):
            if now < until:
                yield name, session, until - now

    def _due(self, now: float) -> Iterator[SessionName]:
        for name, (until, _, _) in self._kept.items():
            if now < until:
                return
            yield name
