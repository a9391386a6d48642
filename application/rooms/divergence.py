"""What the state may not have as this node believes it, noted where a call has failed.

Rules of this file:

1. A call that failed may have been done: what it was about is in doubt, whoever asked.
2. A doubt is about one connection, here or gone: as which user it is there, and its seats.
3. Nothing here waits, and what is noted is bounded; beyond that a sweep has to find it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from eyewall.domain.identity import ConnId, RoomId, UserId

MOST = 100_000
"""Connections in doubt: five times those that a node commonly has, all of which may have
come and gone while the state was away."""


@dataclass(slots=True)
class Divergence:
    """What is not known of one connection."""

    users: set[UserId] = field(default_factory=set)
    """As whom it may be there, or not be there, by mistake."""
    seats: dict[tuple[RoomId, UserId | None], bool] = field(default_factory=dict)
    """Rooms, and the user under whom the seat stands. True: it was a member here, so the
    others have to hear of it when the seat is given back."""
    whole: bool = False
    """All that it has may be gone."""
    unsure: bool = False
    """The state has not all its seats: they were taken away, or are lost."""

    def merge(self, other: Divergence) -> None:
        self.users |= other.users
        for seat, was_member in other.seats.items():
            self.seats[seat] = self.seats.get(seat, False) or was_member
        self.whole = self.whole or other.whole
        self.unsure = self.unsure or other.unsure


class Divergences:
    """The doubts of one node, in the order in which they arose."""

    def __init__(self) -> None:
        self._of: dict[ConnId, Divergence] = {}
        self.on_note: Callable[[], None] | None = None
        """Called when there is a new one."""
        self.shaken = False
        """Whether a call of the state has failed: it may have lost anything since."""

    def __len__(self) -> int:
        return len(self._of)

    def shake(self) -> None:
        """A call of the state has failed."""
        self.shaken = True

    def presence(self, conn_id: ConnId, user_id: UserId) -> None:
        """Whether the connection is there as the user."""
        self.note(conn_id, Divergence(users={user_id}))

    def seat(
        self, conn_id: ConnId, room_id: RoomId, user_id: UserId | None, *, member: bool
    ) -> None:
        """Whether the connection has a seat in the room as the user."""
        self.note(conn_id, Divergence(seats={(room_id, user_id): member}))

    def everything(self, conn_id: ConnId) -> None:
        """Whether anything is left of what the connection has."""
        self.note(conn_id, Divergence(whole=True))

    def note(self, conn_id: ConnId, doubt: Divergence) -> None:
        known = self._of.get(conn_id)
        if known is not None:
            known.merge(doubt)
        elif len(self._of) < MOST:
            self._of[conn_id] = doubt
        if self.on_note is not None:
            self.on_note()

    def take(self) -> tuple[ConnId, Divergence] | None:
        """Take out the oldest; None if there is none."""
        conn_id = next(iter(self._of), None)
        return None if conn_id is None else (conn_id, self._of.pop(conn_id))
