"""The history of a room: positions, retention, trimming, pages.

Rules of this file:

1. An offset is valid only within its epoch. When messages may have been lost, a new epoch
   begins, and an old position is recognised as foreign.
2. Offsets are consecutive; 0 is before the first message. Trimming removes the oldest
   messages, so the kept ones are consecutive, too.
3. A position can be recovered if it is of the current epoch and no later message is missing.
4. An expired message stays expired: a longer ``ttl`` does not bring it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

from eyewall.domain.envelope import Envelope, Priority

if TYPE_CHECKING:
    from eyewall.domain.room import RoomOptions

START: Final = "start"
"""A room's first message, as the beginning of a replay."""
MAX_EPOCH = 64
"""Longest name of an epoch, in characters: it goes out with every message."""
MAX_OFFSET = 2**53 - 1
"""The largest whole number that every client can hold."""


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a room's history: after the message ``offset`` of its epoch."""

    epoch: str
    offset: int

    @property
    def before(self) -> Position:
        """The previous position; of offset 0 itself."""
        return Position(self.epoch, max(0, self.offset - 1))

    def follows(self, other: Position) -> bool:
        """Whether this is the next position after ``other``."""
        return self.epoch == other.epoch and self.offset == other.offset + 1

    def is_past(self, other: Position) -> bool:
        """Whether this is a later position of the same epoch than ``other``."""
        return self.epoch == other.epoch and self.offset > other.offset


def position_of(value: Any) -> Position:
    """Return the position of ``value``; raises ``ValueError`` if it has none.

    ``value`` is anything with an ``epoch`` and an ``offset`` (a ``HistoryPage``, a message's
    ``stream``, a ``Membership``), a mapping with these keys, or a pair of them.
    """
    if isinstance(value, Mapping):
        epoch, offset = value.get("epoch"), value.get("offset")
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        epoch, offset = value
    else:
        epoch, offset = getattr(value, "epoch", None), getattr(value, "offset", None)
    if not isinstance(epoch, str) or not 0 < len(epoch) <= MAX_EPOCH:
        raise ValueError(f"a position needs an epoch, which {value!r:.80} has not")
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset <= MAX_OFFSET:
        raise ValueError(f"a position needs an offset of 0 or more, which {value!r:.80} has not")
    return Position(epoch, offset)


Since = Position | int | Literal["start"]
"""Where a replay begins: after a position, with that many of the newest messages, or with the
room's first message."""


def since_from(value: Any) -> Since:
    """Return where a replay begins; raises ``ValueError``.

    ``value`` is ``"start"``, a number of newest messages (0: none), or what ``position_of`` takes.
    """
    if isinstance(value, str):
        if value == START:
            return START
        raise ValueError(f'since as a text must be "{START}", not {value!r:.80}')
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= MAX_OFFSET:
            return value
        raise ValueError(f"since must be 0 to {MAX_OFFSET} newest messages, not {value!r:.80}")
    return position_of(value)


def wire_since(value: Any) -> dict[str, Any] | int | str:
    """Return ``since`` as a client sends it; raises ``ValueError``."""
    since = since_from(value)
    return wire_position(since) if isinstance(since, Position) else since


def wire_position(value: Any) -> dict[str, Any]:
    """Return a position as the wire has it. ``value`` is what ``position_of`` takes; raises
    ``ValueError``."""
    at = position_of(value)
    return {"epoch": at.epoch, "offset": at.offset}


def position_before(since: Since, here: Position) -> Position:
    """Return the position before the first message of a replay. ``here`` is the position of
    the room's last message."""
    if isinstance(since, Position):
        return since
    if since == START:
        return Position(here.epoch, 0)
    return Position(here.epoch, max(0, here.offset - since))


@dataclass(frozen=True, slots=True)
class Retention:
    """How much a room keeps: ``size`` messages, none older than ``ttl`` seconds."""

    size: int
    ttl: float | None = None

    @staticmethod
    def of(options: RoomOptions) -> Retention | None:
        """Return the retention of a room's options; None for a room without history."""
        if not options.history_size:
            return None
        ttl = options.history_ttl
        assert ttl is None or isinstance(ttl, float)
        return Retention(options.history_size, ttl)


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept message: encoded, without its position, and asking for no ack.

    ``skip`` names the connections that were not to get it.
    """

    payload: bytes
    priority: Priority = Priority.NORMAL
    skip: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A range of a history: ``entries``, oldest first, from the offset ``first`` on.

    ``position`` is that of the room's last message. ``recovered``: no message is missing
    between the requested position and ``first``.
    """

    entries: Sequence[Entry]
    first: int
    position: Position
    recovered: bool

    def with_positions(self) -> Iterator[tuple[Position, Entry]]:
        """Iterate over the entries, each with its position."""
        for offset, entry in enumerate(self.entries, self.first):
            yield Position(self.position.epoch, offset), entry


@dataclass(slots=True)
class Log:
    """The kept messages of one room in one epoch, for stores that hold them in memory.

    Their payloads have at most ``max_bytes`` together; a larger newest message is kept alone.
    """

    epoch: str
    last: int = 0
    """The offset of the newest message, kept or not."""
    max_bytes: int | None = None
    _kept: deque[tuple[datetime, Entry]] = field(default_factory=deque)
    _bytes: int = 0
    _ttl: float | None = None

    @property
    def position(self) -> Position:
        """The position of the newest message."""
        return Position(self.epoch, self.last)

    @property
    def first(self) -> int:
        """The offset of the oldest kept message; one past the last if none is kept."""
        return self.last - len(self._kept) + 1

    def append(self, entry: Entry, retention: Retention, now: datetime) -> Position:
        """Add the next message; returns its position.

        ``retention`` holds for all kept messages from now on; those that have expired under
        the previous one are removed first.
        """
        self.trim(now)
        self._ttl = retention.ttl
        self._kept.append((now, entry))
        self._bytes += len(entry.payload)
        self.last += 1
        while len(self._kept) > retention.size or self._is_too_large:
            self._drop_oldest()
        self.trim(now)
        return self.position

    @property
    def _is_too_large(self) -> bool:
        return self.max_bytes is not None and self._bytes > self.max_bytes and len(self._kept) > 1

    def _drop_oldest(self) -> None:
        self._bytes -= len(self._kept.popleft()[1].payload)

    def trim(self, now: datetime) -> None:
        """Remove the expired messages."""
        if self._ttl is not None:
            while self._kept and (now - self._kept[0][0]).total_seconds() >= self._ttl:
                self._drop_oldest()

    def recovers(self, since: Position) -> bool:
        """Whether all messages after ``since`` are kept."""
        return since.epoch == self.epoch and self.first - 1 <= since.offset <= self.last

    def read(self, since: Position | None, limit: int, now: datetime) -> Page:
        """Return the first ``limit`` messages after ``since``; for None the newest ones.

        Missing messages are left out. For a position of another epoch the page is empty.
        """
        self.trim(now)
        if since is None:
            start, recovered = max(self.first, self.last - limit + 1), True
        else:
            recovered = self.recovers(since)
            of_this = since.epoch == self.epoch
            start = min(max(self.first, since.offset + 1), self.last + 1)
            start = start if of_this else self.last + 1
        at = start - self.first
        entries = [entry for _, entry in islice(self._kept, at, at + limit)]
        return Page(entries, start, self.position, recovered)


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Messages of a room, oldest first, each with its ``stream`` position.

    ``epoch`` and ``offset`` are the position of the room's last message, None where the
    room keeps no history. ``since=page.messages[-1].stream`` asks for the next page.
    """

    messages: list[Envelope[Any]]
    epoch: str | None = None
    offset: int | None = None
