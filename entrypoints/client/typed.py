"""What was said of typing a moment ago, so that not every key stroke is a message."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

DEFAULT_TTL: Final = 5.0
"""Seconds for which a server takes a user to type that says nothing of its own
(protocol.md, ``system:typing``)."""


@dataclass(frozen=True, slots=True)
class _Said:
    room: str
    ttl: float | None
    link: object
    is_in: bool
    at: float


class Typed:
    """Remembers one word: the last ``typing(room, True)``.

    It holds for half of its ttl, so that the others hear the next one before the first has run
    out; and only on the connection that it was said on, since a cut ends typing, and while the
    client is in the room, or not, as it was then.
    """

    def __init__(self) -> None:
        self._said: _Said | None = None

    def holds(self, room: str, ttl: float | None, link: object, *, is_in: bool) -> bool:
        """Whether the very same was said lately."""
        said = self._said
        if said is None or said.link is not link or said.is_in is not is_in:
            return False
        if (said.room, said.ttl) != (room, ttl):
            return False
        half = (DEFAULT_TTL if ttl is None else ttl) / 2
        return time.monotonic() - said.at < half

    def say(self, room: str, ttl: float | None, link: object, *, is_in: bool) -> object:
        """It is said now; returns what ``take_back`` wants."""
        self._said = _Said(room, ttl, link, is_in, time.monotonic())
        return self._said

    def take_back(self, said: object) -> None:
        """It was refused, or has not arrived; nothing changes if something was said since."""
        if self._said is said:
            self._said = None

    def forget(self) -> None:
        """The others have heard something else, or will."""
        self._said = None
