"""The messages that were handled: a repeat is answered again, and not handled again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

A = TypeVar("A")

LIMIT: Final = 1024
"""Ids remembered: both queues of a client, full (256 each), and as many again that the
server may send another time, because it did not see their acks."""


@dataclass(slots=True)
class Work(Generic[A]):
    """One message: in work until it has an answer."""

    asker: A | None
    """Where its ack is to go; None if nobody asked for one."""
    answer: bytes | None = None
    """The ack, as it was or would have been sent."""


class Handled(Generic[A]):
    """Messages by their ids; the oldest are forgotten first."""

    __slots__ = ("_limit", "_owed", "_works")

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._works: dict[str, Work[A]] = {}
        self._owed: dict[str, A] = {}
        """Where the acks are to go of messages that could not be handled when they came."""

    def __len__(self) -> int:
        return len(self._works)

    def find(self, message_id: str | None) -> Work[A] | None:
        """Return what became of the message; None for one that is new."""
        return None if message_id is None else self._works.get(message_id)

    def owe(self, message_id: str | None, asker: A) -> None:
        """A message that asks for an ack was not its room's next, or had no place. It comes
        again as the room keeps it, and that does not ask: its ack goes to ``asker``."""
        if message_id is not None:
            self._owed[message_id] = asker
            if len(self._owed) > self._limit:
                del self._owed[next(iter(self._owed))]

    def begin(self, message_id: str | None, asker: A | None) -> Work[A]:
        """Take in a new message."""
        work = Work(asker)
        if message_id is not None:
            if self._owed:
                owed = self._owed.pop(message_id, None)
                work.asker = owed if asker is None else asker
            self._works[message_id] = work
            if len(self._works) > self._limit:
                del self._works[next(iter(self._works))]
        return work
