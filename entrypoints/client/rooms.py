"""The client's position in each room with history, and the replay that a join asks for.

Rules of this file:

1. The position of a room is that of the last message that was taken: no message before it is
   missing. A message further on is a gap: the missing ones are requested from the server.
2. While a request for a room is in flight, messages behind a gap are buffered. The answer
   comes after all that the room keeps. What is still missing then was not sent to this client
   (a message to all but one), and the buffered messages are taken.
3. A message that did not fit into the client's own queue leaves a gap like any other.
4. A join with ``since`` is such a request, too. Its replay may go back behind the position,
   and brings messages again that were handled before: their ids do not make them duplicates.
5. The buffer is bounded, in messages and in bytes, over all rooms.
6. A room that the application has left is not requested, and its messages do not bring it
   back, until it is joined again, or a new connection has begun without it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, Generic, Protocol, TypeVar

from eyewall.domain.envelope import StreamPosition
from eyewall.domain.history import MAX_OFFSET, START, Position, Since, wire_since

M = TypeVar("M")

MAX_BUFFERED: Final = 256
"""Messages: what the server may have had in its queue before the replay."""

MAX_BUFFERED_BYTES: Final = 8 * 1024 * 1024
"""Bytes, for the same reason."""

TRANSIENT_CODES: Final = frozenset({"unavailable", "overloaded", "rate_limited"})
"""Codes that say nothing about the client's membership of a room: it asks again."""

WirePosition = dict[str, Any]
"""``{"epoch": ..., "offset": ...}``, or empty where the room keeps no history."""


class Replay:
    """One join with ``since``, from its request to its answer.

    A message may arrive live before the replay, where the client is in the room already. The
    replay is recognised by its first message: it stands before all that came since the join.

    After a reconnect the client continues from its position, and asks from ``since`` again
    only if nothing of the replay had come. The client then says itself whether all has come.
    """

    __slots__ = ("_first", "_since", "has_begun", "is_lost", "is_resumed", "progress")

    def __init__(self, since: Since) -> None:
        self._since = since
        self._first: StreamPosition | None = None
        self.has_begun = False
        """Whether a message came that is certain to belong to the replay."""
        self.is_resumed = False
        """Whether it was continued from a position, instead of ``since``."""
        self.is_lost = False
        """Whether messages of it are lost for good."""
        self.progress = 0
        """Messages that have come since the join was sent."""

    def starts_at(self, at: StreamPosition) -> bool:
        """Return whether a message at or before the client's position is the replay's first."""
        first = self._first
        return first is None or first.epoch != at.epoch or at.offset < first.offset

    def received(self, at: StreamPosition, *, begins: bool = False) -> None:
        """Count a message; ``begins``: it is the first of the replay."""
        self.progress += 1
        if begins or self._first is None:
            self._first = at
        self.has_begun = self.has_begun or begins

    def since_for(self, position: Mapping[str, Any]) -> Any:
        """Return the ``since`` to send from a client at ``position``; empty: it has none."""
        if self.has_begun and position:
            self.is_resumed = True
            return dict(position)
        self._first, self.has_begun, self.is_resumed, self.is_lost = None, False, False, False
        return wire_since(self._since)

    def is_whole(self, answer: Mapping[str, Any]) -> bool:
        """Return whether all messages from ``since`` on have come, given the join's answer."""
        if answer.get("recovered") is not True:
            return False
        return not self.is_resumed or (not self.is_lost and self._reaches_back(answer))

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


class HasSpace(Protocol):
    """A bounded queue."""

    @property
    def has_space(self) -> bool: ...


class Verdict(Enum):
    """What to do with a message of a room with history."""

    TAKE = auto()
    DUPLICATE = auto()
    """It was taken before."""
    GAP = auto()
    """A message before it is missing."""


@dataclass(slots=True)
class RecoveryResult(Generic[M]):
    """What the answer about one room says.

    ``lost``: the gap could not be filled. ``code``: the client is not in the room any more,
    and why. ``later``: the server could not tell now; ask again. ``buffered``: the messages
    to take next, in order; those between them were not sent to this client. When they are
    taken, the position is ``upto``.
    """

    lost: bool = False
    code: str | None = None
    later: bool = False
    buffered: list[M] = field(default_factory=list)
    upto: int = 0


@dataclass(slots=True)
class _Room(Generic[M]):
    epoch: str | None = None
    offset: int = 0
    has_gap: bool = False
    """Messages are missing, and not requested yet."""
    full_queue: HasSpace | None = None
    """The queue that was full: a request is of no use before it has space."""
    is_requested: bool = False
    buffered: dict[int, tuple[M, int]] = field(default_factory=dict)
    first_dropped: int | None = None
    """The lowest offset since the request that came and did not fit into the buffer."""
    replayed_upto: int = 0
    """Up to here a message is new by its position alone, whatever its id, since a replay
    brought it again."""

    @property
    def position(self) -> WirePosition:
        return {} if self.epoch is None else {"epoch": self.epoch, "offset": self.offset}

    def drop(self, offset: int) -> None:
        first = self.first_dropped
        self.first_dropped = offset if first is None else min(first, offset)


class RoomTracker(Generic[M]):
    """The rooms that the client is in, by name, with messages of the type ``M``."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Room[M]] = {}
        self._leaves: dict[str, int] = {}
        """Rooms that the application has left: how many of its leaves are in flight."""
        self._busy: Counter[str] = Counter()
        """Requests in flight about a room, without leaves."""
        self._replays: dict[str, list[Replay]] = {}
        """Joins with ``since`` in flight, oldest first: the server sends their replays one
        after the other."""
        self._buffered = 0
        self._buffered_bytes = 0

    def __contains__(self, room: str) -> bool:
        return room in self._rooms

    def __len__(self) -> int:
        return len(self._rooms)

    def names(self) -> frozenset[str]:
        """Return the rooms that the client is in, as far as it knows."""
        return frozenset(self._rooms)

    def position(self, room: str) -> WirePosition:
        """Return the position in a room that the client is in."""
        return self._rooms[room].position

    # --- join and leave

    def joined(self, room: str, epoch: object, offset: object) -> None:
        """Note that the server has joined the client, to a room that stands there."""
        known = self._rooms.setdefault(room, _Room())
        if _is_position(epoch, offset) and known.epoch != epoch:
            known.epoch, known.offset = str(epoch), int(str(offset))

    def left(self, room: str) -> None:
        """Forget a room that the client is not in any more."""
        known = self._rooms.pop(room, None)
        if known is not None:
            self._take_buffer(known)

    @contextlib.contextmanager
    def leaving(self, room: str) -> Iterator[None]:
        """Count the room as left from now on, whatever is answered to the leave in flight."""
        self._leaves[room] = self._leaves.get(room, 0) + 1
        try:
            yield
        finally:
            if room in self._leaves:
                self._leaves[room] -= 1

    def cancel_leave(self, room: str) -> None:
        """Do not count the room as left: it is joined again, was kept, or the server knows."""
        self._leaves.pop(room, None)

    def is_left(self, room: str) -> bool:
        """Return whether the application has left, and the server has not confirmed it yet."""
        return room in self._leaves

    @contextlib.contextmanager
    def busy(self, room: str | None) -> Iterator[None]:
        """Note a request in flight that the room is needed for, before it may be left."""
        if room is None:
            yield
            return
        self._busy[room] += 1
        try:
            yield
        finally:
            self._busy[room] -= 1
            if not self._busy[room]:
                del self._busy[room]

    # --- messages

    def classify(self, at: StreamPosition, *, live: bool = False) -> Verdict:
        """Return what to do with a message at this position.

        ``live``: it belongs to no replay. At the first message of a replay the client's
        position goes back to before it.
        """
        known = self._rooms.get(at.room)
        replay = self._replay(at.room) if self._replays else None
        if known is None or known.epoch != at.epoch:
            verdict, begins = Verdict.TAKE, True
        else:
            verdict, begins = _verdict(at.offset, known.offset), False
        if replay is None:
            return verdict
        if begins and live and not replay.has_begun:
            return Verdict.GAP  # it has overtaken the replay, which brings it again
        if verdict is Verdict.DUPLICATE and not live and replay.starts_at(at):
            assert known is not None
            known.offset, known.first_dropped = at.offset - 1, None
            verdict, begins = Verdict.TAKE, True
        if verdict is not Verdict.DUPLICATE:
            replay.received(at, begins=begins)
        return verdict

    def is_replayed(self, at: StreamPosition) -> bool:
        """Return whether the next message of its room was asked for by a join with ``since``:
        then it is new, even if its id was handled before."""
        known = self._rooms.get(at.room)
        if at.room in self._replays:
            return True
        return known is not None and known.epoch == at.epoch and at.offset <= known.replayed_upto

    def mark_taken(self, at: StreamPosition) -> bool:
        """Move the position to a message that was taken. True if a new epoch begins with it:
        messages before it may be lost."""
        known = self._rooms.setdefault(at.room, _Room())
        is_new = known.epoch not in (None, at.epoch)
        if is_new:
            self._take_buffer(known)
            known.replayed_upto = 0
        known.epoch, known.offset = at.epoch, at.offset
        return is_new

    def mark_dropped(self, at: StreamPosition, queue: HasSpace) -> None:
        """Note a gap: the next message of its room did not fit into ``queue``."""
        known = self._rooms.setdefault(at.room, _Room())
        if known.epoch is None:
            known.epoch, known.offset = at.epoch, at.offset - 1
        known.full_queue = queue
        if self._is_requested(at.room, known):
            known.drop(at.offset)
        else:
            known.has_gap = True

    def buffer(self, at: StreamPosition, message: M, size: int) -> None:
        """Keep a message of ``size`` bytes behind a gap, if a request is in flight."""
        known = self._rooms.get(at.room)
        if known is None or known.epoch != at.epoch:
            return
        if not self._is_requested(at.room, known):
            known.has_gap = True
        elif at.offset not in known.buffered:
            if self._buffered >= MAX_BUFFERED or self._buffered_bytes + size > MAX_BUFFERED_BYTES:
                known.drop(at.offset)
                return
            known.buffered[at.offset] = message, size
            self._buffered += 1
            self._buffered_bytes += size

    def mark_gap(self, room: str, epoch: object, offset: object) -> None:
        """Note that the server has dropped messages after this position."""
        if _is_position(epoch, offset) and room not in self._leaves:
            known = self._rooms.setdefault(room, _Room())
            if known.epoch is None:
                known.epoch, known.offset = str(epoch), int(str(offset))
            known.has_gap = True

    def _is_requested(self, room: str, known: _Room[M]) -> bool:
        """Return whether an answer is awaited that comes after all missing messages."""
        return known.is_requested or room in self._replays

    # --- joins with ``since``

    def _replay(self, room: str) -> Replay | None:
        """Return the replay that the server sends now, or next."""
        replays = self._replays.get(room)
        return replays[0] if replays else None

    def begin_replay(self, room: str, since: Since) -> Replay:
        """Note a join with ``since``; ``finish_replay`` or ``abandon_replay`` must follow."""
        replay = Replay(since)
        known = self._rooms.get(room)
        if known is not None and room not in self._replays:
            known.first_dropped = None
        self._replays.setdefault(room, []).append(replay)
        return replay

    def finish_replay(
        self, room: str, replay: Replay, answer: Mapping[str, Any]
    ) -> RecoveryResult[M]:
        """Take the answer to the join: all that the room keeps was sent before it."""
        self._remove_replay(room, replay)
        known = self._rooms.setdefault(room, _Room())
        buffered = self._take_buffer(known)
        epoch, offset = answer.get("epoch"), answer.get("offset")
        if not _is_position(epoch, offset):
            return RecoveryResult()
        upto = int(str(offset))
        known.replayed_upto = upto
        if known.epoch != epoch:
            known.epoch, known.offset = str(epoch), upto
            return RecoveryResult(upto=upto)
        return self._settle(known, buffered, upto)

    def abandon_replay(self, room: str, replay: Replay) -> None:
        """Await no answer any more; messages of the replay that still come are taken."""
        if not self._remove_replay(room, replay):
            return
        known = self._rooms.get(room)
        if known is None or not replay.has_begun:
            return
        known.replayed_upto = MAX_OFFSET
        if self._is_requested(room, known):
            return
        if self._take_buffer(known) or known.first_dropped is not None:
            known.has_gap = True

    def _remove_replay(self, room: str, replay: Replay) -> bool:
        """Remove it; False if it is not there any more."""
        replays = self._replays.get(room, [])
        if replay not in replays:
            return False
        replays.remove(replay)
        if not replays:
            del self._replays[room]
        return True

    # --- requests for what is missing

    def request_gaps(self) -> dict[str, WirePosition]:
        """Return the rooms with gaps, and mark them as requested."""
        return self._request(
            name
            for name, room in self._rooms.items()
            if room.has_gap and not self._is_requested(name, room)
            if room.full_queue is None or room.full_queue.has_space
            if name not in self._leaves
        )

    def request_all(self) -> dict[str, WirePosition]:
        """Return all rooms to be in on a new connection, and mark them as requested."""
        for room, leaves in list(self._leaves.items()):
            if not self._busy[room]:
                self.left(room)
            if not leaves:
                del self._leaves[room]
        return self._request(self._rooms)

    def _request(self, names: Iterable[str]) -> dict[str, WirePosition]:
        positions = {}
        for name in list(names):
            room = self._rooms[name]
            self._take_buffer(room)
            room.has_gap, room.is_requested = False, True
            room.full_queue, room.first_dropped = None, None
            positions[name] = room.position
        return positions

    def apply_answer(self, room: str, answer: object) -> RecoveryResult[M]:
        """Take the answer about a room that was requested."""
        known = self._rooms.get(room)
        if known is None:
            return RecoveryResult()  # it was left meanwhile
        buffered = self._take_buffer(known)
        known.is_requested = False
        said = answer if isinstance(answer, Mapping) else {}
        code = said.get("code")
        if isinstance(code, str) and code in TRANSIENT_CODES:
            known.has_gap = True
            return RecoveryResult(later=True)
        if isinstance(code, str):
            del self._rooms[room]
            return RecoveryResult(lost=True, code=code)
        epoch, offset = said.get("epoch"), said.get("offset")
        has_position = _is_position(epoch, offset)
        if said.get("recovered") is not True:
            for replay in self._replays.get(room, ()):
                replay.is_lost = True
            if has_position:
                known.epoch, known.offset = str(epoch), int(str(offset))
            return RecoveryResult(lost=True)
        if has_position and known.epoch != epoch:
            known.epoch, known.offset = str(epoch), int(str(offset))
        elif has_position:
            return self._settle(known, buffered, int(str(offset)))
        return RecoveryResult()

    def _settle(
        self, room: _Room[M], buffered: dict[int, tuple[M, int]], upto: int
    ) -> RecoveryResult[M]:
        """Return the buffered messages to take, now that all up to ``upto`` was sent."""
        if room.first_dropped is not None and room.offset < room.first_dropped <= upto:
            upto = room.first_dropped - 1
            room.has_gap = True
        due = sorted(offset for offset in buffered if room.offset < offset <= upto)
        return RecoveryResult(buffered=[buffered[offset][0] for offset in due], upto=upto)

    def advance(self, room: str, offset: int) -> None:
        """Move the position up to ``offset``: no message for this client is missing there."""
        known = self._rooms.get(room)
        if known is not None:
            known.offset = max(known.offset, offset)

    def restore_gaps(self, rooms: Iterable[str]) -> None:
        """Mark rooms whose request got no answer as having gaps again."""
        for name in rooms:
            known = self._rooms.get(name)
            if known is not None and known.is_requested:
                self._take_buffer(known)
                known.is_requested, known.has_gap = False, True

    def _take_buffer(self, room: _Room[M]) -> dict[int, tuple[M, int]]:
        """Empty the room's buffer; return what was in it."""
        buffered, room.buffered = room.buffered, {}
        self._buffered -= len(buffered)
        self._buffered_bytes -= sum(size for _, size in buffered.values())
        return buffered


def _verdict(offset: int, position: int) -> Verdict:
    if offset == position + 1:
        return Verdict.TAKE
    return Verdict.DUPLICATE if offset <= position else Verdict.GAP


def _is_position(epoch: object, offset: object) -> bool:
    is_offset = isinstance(offset, int) and not isinstance(offset, bool) and offset >= 0
    return is_offset and isinstance(epoch, str)
