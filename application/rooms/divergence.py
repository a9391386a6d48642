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

MAX_DIVERGENCES = 100_000
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
    everything: bool = False
    """Whether all its entries may be missing."""
    seats_missing: bool = False
    """Whether seats may be missing: removed by others, or lost."""

    def merge(self, other: Divergence) -> None:
        """Add the notes of ``other``."""
        self.users |= other.users
        for seat, was_member in other.seats.items():
            self.seats[seat] = self.seats.get(seat, False) or was_member
        self.everything = self.everything or other.everything
        self.seats_missing = self.seats_missing or other.seats_missing


class Divergences:
    """The divergences of one node, in FIFO order."""

    def __init__(self) -> None:
        self._of: dict[ConnId, Divergence] = {}
        self.on_add: Callable[[], None] | None = None
        """Called after each divergence that is added."""
        self.state_failed = False
        """Whether a call of the state has failed since this was last set to False: the state may
        have lost any entry."""

    def __len__(self) -> int:
        return len(self._of)

    def note_state_failure(self) -> None:
        """A call of the state has failed."""
        self.state_failed = True

    def note_presence(self, conn_id: ConnId, user_id: UserId) -> None:
        """Note that the connection's presence under the user may be wrong."""
        self.add(conn_id, Divergence(users={user_id}))

    def note_seat(
        self, conn_id: ConnId, room_id: RoomId, user_id: UserId | None, *, member: bool
    ) -> None:
        """Note that the connection's seat under the user may be wrong."""
        self.add(conn_id, Divergence(seats={(room_id, user_id): member}))

    def note_all(self, conn_id: ConnId) -> None:
        """Note that all entries of the connection may be missing."""
        self.add(conn_id, Divergence(everything=True))

    def add(self, conn_id: ConnId, divergence: Divergence) -> None:
        """Note a divergence; beyond ``MAX_DIVERGENCES`` connections it is left to the sweep."""
        known = self._of.get(conn_id)
        if known is not None:
            known.merge(divergence)
        elif len(self._of) < MAX_DIVERGENCES:
            self._of[conn_id] = divergence
        if self.on_add is not None:
            self.on_add()

    def pop(self) -> tuple[ConnId, Divergence] | None:
        """Remove and return the oldest; None if there is none."""
        conn_id = next(iter(self._of), None)
        return None if conn_id is None else (conn_id, self._of.pop(conn_id))
