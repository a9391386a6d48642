"""What waits for its turn in a room with history. ``streams`` has the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from eyewall.application.frames import Frame
from eyewall.application.ports import Link
from eyewall.domain.errors import Unavailable
from eyewall.domain.history import Position, Retention
from eyewall.domain.identity import RoomId

MAX_WAITING = 256
"""Messages that wait at one gate for those before them. They are shared with nobody, so
as many as the queue of one connection."""


class Turn(Protocol):
    """Somebody who has more to do with a message than to send it to the members."""

    def begin(self, frame: Frame) -> Collection[Link]:
        """The message's turn has come, or is over already. Returns the links that it was
        sent to. Never waits, never raises."""

    def fail(self, error: Unavailable) -> None:
        """Nobody can say when its turn will come: the store is away."""


@dataclass(slots=True)
class Arrival:
    """A message that wants to pass, without its place; not for the connections ``skip``."""

    frame: Frame
    skip: Sequence[str] = ()
    turn: Turn | None = None


class Gate:
    """What one room's members here have had, and what waits for them.

    ``position`` is None until the store has been asked for it.
    """

    __slots__ = (
        "again",
        "checked",
        "hearsay",
        "held",
        "position",
        "reading",
        "retention",
        "room_id",
        "waiting",
    )

    def __init__(
        self, room_id: RoomId, retention: Retention | None, position: Position | None
    ) -> None:
        self.room_id = room_id
        self.retention = retention
        """None while it is not known."""
        self.position = position
        self.hearsay = False
        """Whether ``position`` was told by a packet, and the store has not confirmed it."""
        self.held: set[Link] = set()
        """Members whom nothing is passed to: they are being sent what they missed."""
        self.waiting: dict[Position, Arrival] = {}
        self.reading: asyncio.Task[Unavailable | None] | None = None
        self.again = False
        """Whether more may be in the store than the reading under way brings."""
        self.checked = position
        """Where it stood when it was last compared with the store."""

    def hold(self, at: Position, arrival: Arrival) -> None:
        """Have a message wait, if there is room; one with a turn has it in any case."""
        waits = self.waiting.get(at)
        if arrival.turn is not None or (waits is None and len(self.waiting) < MAX_WAITING):
            self.waiting[at] = arrival

    def next(self) -> tuple[Position, Arrival] | None:
        """Take out what may pass now: the message right after the position."""
        if not self.waiting or self.position is None:
            return None
        at = Position(self.position.epoch, self.position.offset + 1)
        arrival = self.waiting.pop(at, None)
        return None if arrival is None else (at, arrival)

    def give_up(self, before: Iterable[Position], last: Position) -> list[tuple[Position, Arrival]]:
        """Take out those of the places ``before`` that no reading will bring: the members
        have had them, or the store, which stands at ``last``, does not know them."""
        assert self.position is not None
        found = []
        for at in before:
            if not at.is_past(self.position) or at.is_past(last):
                arrival = self.waiting.pop(at, None)
                if arrival is not None:
                    found.append((at, arrival))
        return found
