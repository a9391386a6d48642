"""The bytes that all queues of a node hold together.

Rules of this file:

1. A payload in many queues counts once: the bytes of a broadcast are shared among its
   recipients.
2. The pool counts and compares. The owner of the queues decides which of them shed load.
"""

from __future__ import annotations

from typing import Final

KEPT: Final = 0.75
"""The share of ``max_bytes`` at which shedding stops. Shedding searches all queues for the
largest, so it must not begin again with the next message."""


class Pool:
    """Counts the bytes of objects by reference counting: each once, while it has a holder.

    Objects are compared by identity; a holder has to keep its object alive.
    """

    __slots__ = ("_holders", "bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._holders: dict[int, int] = {}

    @property
    def full(self) -> bool:
        """Whether it holds more than ``max_bytes``."""
        return self.bytes > self.max_bytes

    @property
    def roomy(self) -> bool:
        """Whether shedding may stop."""
        return self.bytes <= self.max_bytes * KEPT

    def hold(self, thing: object, size: int) -> None:
        """Count one more holder of ``thing``, which has ``size`` bytes."""
        holders = self._holders.get(id(thing), 0)
        if not holders:
            self.bytes += size
        self._holders[id(thing)] = holders + 1

    def release(self, thing: object, size: int) -> None:
        """Count one holder less; raises ``KeyError`` if it has none."""
        holders = self._holders[id(thing)] - 1
        if holders:
            self._holders[id(thing)] = holders
        else:
            del self._holders[id(thing)]
            self.bytes -= size
