"""What all the queues of a node hold together.

Rules of this file:

1. What waits in many queues is held once, and counts once: the bytes of a broadcast are
   shared, however many of its recipients don't read.
2. It counts and compares. Who gives way when it is full is decided by what holds the queues.
"""

from __future__ import annotations

from typing import Final

KEPT: Final = 0.75
"""How full a pool is when enough was taken out of it. Making room means looking through all
queues for the largest: the next time must not come with the next message."""


class Pool:
    """Counts bytes of things that are there, each as long as somebody holds it.

    A thing is known by its identity; who holds one keeps it alive.
    """

    __slots__ = ("_holders", "bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._holders: dict[int, int] = {}

    @property
    def full(self) -> bool:
        """Whether it holds more than it should."""
        return self.bytes > self.max_bytes

    @property
    def roomy(self) -> bool:
        """Whether enough was taken out of it, once it was full."""
        return self.bytes <= self.max_bytes * KEPT

    def hold(self, thing: object, size: int) -> None:
        """Count one more holder of ``thing``, which has ``size`` bytes."""
        holders = self._holders.get(id(thing), 0)
        if not holders:
            self.bytes += size
        self._holders[id(thing)] = holders + 1

    def release(self, thing: object, size: int) -> None:
        """Count one holder less; raises ``KeyError`` if there is none."""
        holders = self._holders[id(thing)] - 1
        if holders:
            self._holders[id(thing)] = holders
        else:
            del self._holders[id(thing)]
            self.bytes -= size
