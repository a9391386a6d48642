"""Entries in which this node and the state may differ, noted when a call of the state fails.

Rules of this file:

1. A call that failed may have been done. The entries that it was about may diverge.
2. A divergence is about one connection, open or ended: the users under whom it is present,
   and its seats.
3. Nothing here waits. The number of notes is bounded; a sweep finds what exceeds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from eyewall.domain.identity import ConnId, RoomId, UserId

MOST = 100_000
"""Connections with a divergence: five times those that a node commonly has, all of which may
have come and gone while the state was away."""


@dataclass(slots=True)
class Divergence:
    """What the state may have wrong of one connection."""

    users: set[UserId] = field(default_factory=set)
    """Users under whom its presence may be wrong, either way."""
    seats: dict[tuple[RoomId, UserId | None], bool] = field(default_factory=dict)
    """Its seats that may be wrong, by room and user. True: the connection was a member, so the
    leave is announced when the seat is given back."""
    whole: bool = False
    """Whether all its entries may be missing."""
    unsure: bool = False
    """Whether seats may be missing: removed by others, or lost."""

    def merge(self, other: Divergence) -> None:
        """Add the notes of ``other``."""
        self.users |= other.users
        for seat, was_member in other.seats.items():
            self.seats[seat] = self.seats.get(seat, False) or was_member
        self.whole = self.whole or other.whole
        self.unsure = self.unsure or other.unsure


class Divergences:
    """The divergences of one node, in FIFO order."""

    def __init__(self) -> None:
        self._of: dict[ConnId, Divergence] = {}
        self.on_note: Callable[[], None] | None = None
        """Called after each note."""
        self.shaken = False
        """Whether a call of the state has failed since this was last set to False: the state may
        have lost any entry."""

    def __len__(self) -> int:
        return len(self._of)

    def shake(self) -> None:
        """A call of the state has failed."""
        self.shaken = True

    def presence(self, conn_id: ConnId, user_id: UserId) -> None:
        """Note that the connection's presence under the user may be wrong."""
        self.note(conn_id, Divergence(users={user_id}))

    def seat(
        self, conn_id: ConnId, room_id: RoomId, user_id: UserId | None, *, member: bool
    ) -> None:
        """Note that the connection's seat under the user may be wrong."""
        self.note(conn_id, Divergence(seats={(room_id, user_id): member}))

    def everything(self, conn_id: ConnId) -> None:
        """Note that all entries of the connection may be missing."""
        self.note(conn_id, Divergence(whole=True))

    def note(self, conn_id: ConnId, doubt: Divergence) -> None:
        """Note a divergence; beyond ``MOST`` connections it is left to the sweep."""
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
