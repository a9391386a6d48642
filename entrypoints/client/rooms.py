"""The rooms that a client is in, and how far it has come in those that keep history.

Rules of this file:

1. The position of a room is the last message that was taken: nothing before it is
   missing. A message further on is not taken; what lies between is asked for.
2. While a room is asked for, what comes ahead of its turn is kept aside. When the answer
   says that everything has been sent, what is still missing was not meant for this client
   (a message to all but one), and what was kept is taken.
3. What the client could not take, because its own queue was full, is a gap like any other.
4. Who joins to hear what was said before is asked for until the answer comes, as in 2, and
   goes back to where the replay begins. Of what it brings the ids say nothing: it may have
   been handled before, and is wanted again.
5. Bounded: what is kept aside, in messages and in bytes, over all rooms.
6. A room that the application leaves is out: nothing more is asked for in it, and what
   still comes from it does not bring it back, until it is joined again, or a new
   connection has begun without it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, Generic, Protocol, TypeVar

from eyewall.client.replay import Replay
from eyewall.domain.envelope import StreamPosition
from eyewall.domain.history import MAX_OFFSET, Since

M = TypeVar("M")

MOST_EARLY: Final = 256
"""Messages kept aside: what the server may have had in its queue before the replay."""

MOST_EARLY_BYTES: Final = 8 * 1024 * 1024
"""Bytes kept aside, for the same reason."""

PASSING: Final = frozenset({"unavailable", "overloaded", "rate_limited"})
"""Codes that say nothing about the client's place in a room."""

Place = dict[str, Any]
"""``{"epoch": ..., "offset": ...}``, or empty where the room keeps no history."""


class Roomy(Protocol):
    """Something that may be full."""

    @property
    def roomy(self) -> bool: ...


class Verdict(Enum):
    """What is to be done with a message of a room with history."""

    TAKE = auto()
    REPEAT = auto()
    """It was taken before."""
    GAP = auto()
    """Something before it is missing."""


@dataclass(slots=True)
class Recovered(Generic[M]):
    """What the answer about one room says.

    ``lost``: the gap could not be filled. ``code``: the client is not in the room any
    more, and why. ``later``: the server could not say now, and is to be asked again.
    ``early``: what was kept aside and is next, in order; what lies between was not meant
    for this client. With all of that taken, it has come to ``upto``.
    """

    lost: bool = False
    code: str | None = None
    later: bool = False
    early: list[M] = field(default_factory=list)
    upto: int = 0


@dataclass(slots=True)
class _Room(Generic[M]):
    epoch: str | None = None
    offset: int = 0
    behind: bool = False
    """Something is missing, and has not been asked for."""
    blocked: Roomy | None = None
    """The queue that was full; there is no use in asking before it has drained."""
    asked: bool = False
    early: dict[int, tuple[M, int]] = field(default_factory=dict)
    dropped: int | None = None
    """The first message since the room was asked for that came and could not be kept."""
    again: int = 0
    """Up to where messages are taken by their place alone, because they were replayed."""

    @property
    def place(self) -> Place:
        return {} if self.epoch is None else {"epoch": self.epoch, "offset": self.offset}

    def drop(self, offset: int) -> None:
        self.dropped = offset if self.dropped is None else min(self.dropped, offset)


class Rooms(Generic[M]):
    """Rooms by name, with messages of the type ``M``."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Room[M]] = {}
        self._out: dict[str, int] = {}
        """Rooms that are left: how many leaves of each are without an answer yet."""
        self._busy: Counter[str] = Counter()
        """Requests about a room, but for leaves, that are under way."""
        self._replays: dict[str, list[Replay]] = {}
        """Joins that ask for what was said before and have no answer yet, oldest first: the
        server sends what they ask for one after the other."""
        self._early = 0
        self._early_bytes = 0

    def __contains__(self, room: str) -> bool:
        return room in self._rooms

    def __len__(self) -> int:
        return len(self._rooms)

    def names(self) -> frozenset[str]:
        """The rooms that the client is in, as far as it knows."""
        return frozenset(self._rooms)

    def place(self, room: str) -> Place:
        """How far it has come in a room that it is in."""
        return self._rooms[room].place

    # --- coming and going

    def joined(self, room: str, epoch: object, offset: object) -> None:
        """The server let the client in, and said where the room stands."""
        known = self._rooms.setdefault(room, _Room())
        if _is_place(epoch, offset) and known.epoch != epoch:
            known.epoch, known.offset = str(epoch), int(str(offset))

    def left(self, room: str) -> None:
        """The client is not in the room any more."""
        known = self._rooms.pop(room, None)
        if known is not None:
            self._let_go(known)

    @contextlib.contextmanager
    def leaving(self, room: str) -> Iterator[None]:
        """The room is out from now on, whatever becomes of the request that says so."""
        self._out[room] = self._out.get(room, 0) + 1
        try:
            yield
        finally:
            if room in self._out:
                self._out[room] -= 1

    def stay(self, room: str) -> None:
        """The room is not out: it is joined again, was never left, or the server knows."""
        self._out.pop(room, None)

    def is_out(self, room: str) -> bool:
        """Whether the application has left, and the server has not said so yet."""
        return room in self._out

    @contextlib.contextmanager
    def busy(self, room: str | None) -> Iterator[None]:
        """Something is to be done in the room, which has to be done before it is left."""
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

    def look(self, at: StreamPosition, *, live: bool = False) -> Verdict:
        """Return what is to be done with a message that stands there.

        ``live``: it is of no replay. Where one begins, the client goes back to before it.
        """
        known = self._rooms.get(at.room)
        replay = self._replay(at.room) if self._replays else None
        if known is None or known.epoch != at.epoch:
            verdict, begins = Verdict.TAKE, True
        else:
            verdict, begins = _verdict(at.offset, known.offset), False
        if replay is None:
            return verdict
        if begins and live and not replay.is_begun:
            return Verdict.GAP  # it has overtaken the replay, which brings it again
        if verdict is Verdict.REPEAT and not live and replay.begins_with(at):
            assert known is not None
            known.offset, known.dropped = at.offset - 1, None
            verdict, begins = Verdict.TAKE, True
        if verdict is not Verdict.REPEAT:
            replay.came(at, begins=begins)
        return verdict

    def is_wanted_again(self, at: StreamPosition) -> bool:
        """Whether a message that is its room's next was asked for by a replay: then it is
        new, whatever has become of its id."""
        known = self._rooms.get(at.room)
        if at.room in self._replays:
            return True
        return known is not None and known.epoch == at.epoch and at.offset <= known.again

    def took(self, at: StreamPosition) -> bool:
        """The message was taken; True if its room begins a new epoch with it, so that what
        came before it may be lost."""
        known = self._rooms.setdefault(at.room, _Room())
        is_new = known.epoch not in (None, at.epoch)
        if is_new:
            self._let_go(known)
            known.again = 0
        known.epoch, known.offset = at.epoch, at.offset
        return is_new

    def missed(self, at: StreamPosition, queue: Roomy) -> None:
        """The message was next, and ``queue`` had no place for it."""
        known = self._rooms.setdefault(at.room, _Room())
        if known.epoch is None:
            known.epoch, known.offset = at.epoch, at.offset - 1
        known.blocked = queue
        if self._is_asked(at.room, known):
            known.drop(at.offset)
        else:
            known.behind = True

    def early(self, at: StreamPosition, message: M, size: int) -> None:
        """A message of ``size`` bytes came ahead of its turn."""
        known = self._rooms.get(at.room)
        if known is None or known.epoch != at.epoch:
            return
        if not self._is_asked(at.room, known):
            known.behind = True
        elif at.offset not in known.early:
            if self._early >= MOST_EARLY or self._early_bytes + size > MOST_EARLY_BYTES:
                known.drop(at.offset)
                return
            known.early[at.offset] = message, size
            self._early += 1
            self._early_bytes += size

    def gap(self, room: str, epoch: object, offset: object) -> None:
        """The server dropped messages after this place."""
        if _is_place(epoch, offset) and room not in self._out:
            known = self._rooms.setdefault(room, _Room())
            if known.epoch is None:
                known.epoch, known.offset = str(epoch), int(str(offset))
            known.behind = True

    def _is_asked(self, room: str, known: _Room[M]) -> bool:
        """Whether an answer is to come before which all that is missing is sent."""
        return known.asked or room in self._replays

    # --- joining with what was said before

    def _replay(self, room: str) -> Replay | None:
        """What the server is sending, or is to send first."""
        replays = self._replays.get(room)
        return replays[0] if replays else None

    def wants(self, room: str, since: Since) -> Replay:
        """A join asks for what was said before; ``replayed`` or ``give_up`` has to follow."""
        replay = Replay(since)
        known = self._rooms.get(room)
        if known is not None and room not in self._replays:
            known.dropped = None
        self._replays.setdefault(room, []).append(replay)
        return replay

    def replayed(self, room: str, replay: Replay, answer: Mapping[str, Any]) -> Recovered[M]:
        """Take in the answer to the join: what is kept from there has been sent."""
        self._over(room, replay)
        known = self._rooms.setdefault(room, _Room())
        early = self._let_go(known)
        epoch, offset = answer.get("epoch"), answer.get("offset")
        if not _is_place(epoch, offset):
            return Recovered()
        upto = int(str(offset))
        known.again = upto
        if known.epoch != epoch:
            known.epoch, known.offset = str(epoch), upto
            return Recovered(upto=upto)
        return self._settle(known, early, upto)

    def give_up(self, room: str, replay: Replay) -> None:
        """No answer will be heard; what comes of it all the same is wanted."""
        if not self._over(room, replay):
            return
        known = self._rooms.get(room)
        if known is None or not replay.is_begun:
            return
        known.again = MAX_OFFSET
        if not self._is_asked(room, known) and (self._let_go(known) or known.dropped is not None):
            known.behind = True

    def _over(self, room: str, replay: Replay) -> bool:
        """Wait for it no longer; False if that was so already."""
        replays = self._replays.get(room, [])
        if replay not in replays:
            return False
        replays.remove(replay)
        if not replays:
            del self._replays[room]
        return True

    # --- asking for what is missing

    def ask(self) -> dict[str, Place]:
        """Return the rooms in which something is missing, as asked for from now on."""
        return self._ask(
            name
            for name, room in self._rooms.items()
            if room.behind and not self._is_asked(name, room)
            if room.blocked is None or room.blocked.roomy
            if name not in self._out
        )

    def ask_all(self) -> dict[str, Place]:
        """Return every room to be in, as asked for from now on: the connection is a new one."""
        for room, leaves in list(self._out.items()):
            if not self._busy[room]:
                self.left(room)
            if not leaves:
                del self._out[room]
        return self._ask(self._rooms)

    def _ask(self, names: Iterable[str]) -> dict[str, Place]:
        places = {}
        for name in list(names):
            room = self._rooms[name]
            self._let_go(room)
            room.behind, room.asked, room.blocked, room.dropped = False, True, None, None
            places[name] = room.place
        return places

    def answered(self, room: str, answer: object) -> Recovered[M]:
        """Take in the answer about a room that was asked for."""
        known = self._rooms.get(room)
        if known is None:
            return Recovered()  # it was left meanwhile
        early = self._let_go(known)
        known.asked = False
        said = answer if isinstance(answer, Mapping) else {}
        code = said.get("code")
        if isinstance(code, str) and code in PASSING:
            known.behind = True
            return Recovered(later=True)
        if isinstance(code, str):
            del self._rooms[room]
            return Recovered(lost=True, code=code)
        epoch, offset = said.get("epoch"), said.get("offset")
        has_place = _is_place(epoch, offset)
        if said.get("recovered") is not True:
            for replay in self._replays.get(room, ()):
                replay.lost = True
            if has_place:
                known.epoch, known.offset = str(epoch), int(str(offset))
            return Recovered(lost=True)
        if has_place and known.epoch != epoch:
            known.epoch, known.offset = str(epoch), int(str(offset))
        elif has_place:
            return self._settle(known, early, int(str(offset)))
        return Recovered()

    def _settle(self, room: _Room[M], early: dict[int, tuple[M, int]], upto: int) -> Recovered[M]:
        """Everything up to ``upto`` has been sent."""
        if room.dropped is not None and room.offset < room.dropped <= upto:
            upto = room.dropped - 1
            room.behind = True
        due = sorted(offset for offset in early if room.offset < offset <= upto)
        return Recovered(early=[early[offset][0] for offset in due], upto=upto)

    def reached(self, room: str, offset: int) -> None:
        """Nothing that was meant for this client is missing up to ``offset``."""
        known = self._rooms.get(room)
        if known is not None:
            known.offset = max(known.offset, offset)

    def not_answered(self, rooms: Iterable[str]) -> None:
        """These were asked for in vain: they are as they were before."""
        for name in rooms:
            known = self._rooms.get(name)
            if known is not None and known.asked:
                self._let_go(known)
                known.asked, known.behind = False, True

    def _let_go(self, room: _Room[M]) -> dict[int, tuple[M, int]]:
        early, room.early = room.early, {}
        self._early -= len(early)
        self._early_bytes -= sum(size for _, size in early.values())
        return early


def _verdict(offset: int, here: int) -> Verdict:
    if offset == here + 1:
        return Verdict.TAKE
    return Verdict.REPEAT if offset <= here else Verdict.GAP


def _is_place(epoch: object, offset: object) -> bool:
    is_offset = isinstance(offset, int) and not isinstance(offset, bool) and offset >= 0
    return is_offset and isinstance(epoch, str)
