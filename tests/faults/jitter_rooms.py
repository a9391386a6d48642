"""What a client of ``jitter`` knows of a room: its messages, by the rules for the offsets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stay:
    """What a connection brought of a room without history, and what it had to bring."""

    conn_id: str
    asked_at: int
    """The first number that was not acked yet when the join was asked for."""
    since: int | None = None
    """The first number that was not sent yet when the join was answered."""
    fenced: int = 0
    """The first number that was not acked yet when the last fence was set: what is before
    it was on its way before the fence was answered."""
    got: list[int] = field(default_factory=list)


class Room:
    """One client in one room, by the rules for the offsets."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch: str | None = None
        self.last = 0
        self.got: list[tuple[int, Any]] = []
        self.kept: dict[int, Any] = {}
        """What came during a resume and does not follow what was taken."""
        self.resuming = False
        self.gap = False
        """Whether a gap was told while a resume was under way."""
        self.stays: list[Stay] = []

    @property
    def position(self) -> dict[str, Any]:
        return {} if self.epoch is None else {"epoch": self.epoch, "offset": self.last}

    def take(self, offset: int, data: Any) -> bool:
        """Take a message by its offset; False if others are missing before it."""
        if offset > self.last + 1:
            self.kept[offset] = data
            return False
        if offset == self.last + 1:
            self._deliver(offset, data)
            while self.last + 1 in self.kept:
                self._deliver(self.last + 1, self.kept.pop(self.last + 1))
        return True

    def _deliver(self, offset: int, data: Any) -> None:
        self.got.append((offset, data))
        self.last = offset

    def recovered(self, offset: int) -> None:
        """The replay up to ``offset`` is here: what is missing of it was not meant for us."""
        for at in sorted(self.kept):
            if at <= offset:
                data = self.kept.pop(at)
                if at > self.last:
                    self._deliver(at, data)
        self.last = max(self.last, offset)
        for at in sorted(self.kept):
            if at in self.kept and at <= self.last + 1:
                self.take(at, self.kept.pop(at))
