"""A join that asks for what was said before, from the asking to the answer.

Rules of this file:

1. What comes may have been taken before, by a membership that has ended or by this one: it
   is wanted again, each message once.
2. Something live may come before the replay, where the client was in the room already. So
   the replay is known by its first message: it stands before all that has come since.
3. On a further connection the client goes on from where it is, and asks from ``since`` again
   only where nothing has come. That all of it has come is then for the client to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eyewall.domain.envelope import StreamPosition
from eyewall.domain.history import START, Position, Since, wire_since


class Replay:
    """What one join has asked for, and what has come of it."""

    __slots__ = ("_first", "_since", "is_begun", "is_resent", "lost", "progress")

    def __init__(self, since: Since) -> None:
        self._since = since
        self._first: StreamPosition | None = None
        self.is_begun = False
        """Whether something came that is certain to be of the replay."""
        self.is_resent = False
        """Whether it was asked for in another way since."""
        self.lost = False
        """Whether something of it is gone for good."""
        self.progress = 0
        """Messages that have come since it was asked for."""

    def begins_with(self, at: StreamPosition) -> bool:
        """Whether a message that stands where the client has been is the replay's first."""
        first = self._first
        return first is None or first.epoch != at.epoch or at.offset < first.offset

    def came(self, at: StreamPosition, *, begins: bool = False) -> None:
        """A message was let through. ``begins``: it is the first of the replay."""
        self.progress += 1
        if begins or self._first is None:
            self._first = at
        self.is_begun = self.is_begun or begins

    def asks(self, place: Mapping[str, Any]) -> Any:
        """What to ask for from a client that stands at ``place`` now; empty: nowhere."""
        if self.is_begun and place:
            self.is_resent = True
            return dict(place)
        self._first, self.is_begun, self.is_resent, self.lost = None, False, False, False
        return wire_since(self._since)

    def is_whole(self, answer: Mapping[str, Any]) -> bool:
        """Whether all that was asked for has come, as the answer and what came before say."""
        if answer.get("recovered") is not True:
            return False
        return not self.is_resent or (not self.lost and self._reaches_back(answer))

    def _reaches_back(self, answer: Mapping[str, Any]) -> bool:
        first, since = self._first, self._since
        if first is None or first.epoch != answer.get("epoch"):
            return False
        if isinstance(since, Position):
            return (first.epoch, first.offset) == (since.epoch, since.offset + 1)
        if since == START or first.offset == 1:
            return first.offset == 1
        offset = answer.get("offset")
        return isinstance(offset, int) and offset - first.offset + 1 >= since
