"""What the nodes of a cluster share, as promises: the bus, and what holds for all of them.

Every port's docstring is its contract, and ``eyewall.testing.contracts`` holds adapters to it. What
holds for every call of every port here:

* it returns within ``PROMISED`` seconds, or raises ``Unavailable`` when it can't: a retry
  within a call counts against that time;
* whoever calls may be cancelled, and so is the call then: it leaves no lock and no
  connection in a state that a later call finds, and no subscription that nobody knows of;
* a call that raised ``Unavailable`` or was cancelled may have been done all the same,
  where nothing else is said; calling again is safe;
* it raises what its port names, and nothing else.

The hub does not rely on it: ``guards`` has a deadline of its own behind each call, and turns
what else is raised into ``Unavailable``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar, runtime_checkable

from eyewall.domain.errors import Unavailable
from eyewall.domain.history import Entry, Page, Position, Retention
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId
from eyewall.domain.mailbox import Evicted, StoredMessage
from eyewall.domain.presence import PresenceState
from eyewall.domain.room import Room, Standing

T = TypeVar("T")


PROMISED = 5.0
"""Seconds that a call may take. A handler, a join or a publish waits for it, and so does a
client: the shipped ones wait as long for an answer, unless they are told otherwise."""


def methods(port: type) -> list[str]:
    """Return the names of the methods that a port promises."""
    found = [name for name, value in vars(port).items() if inspect.isfunction(value)]
    return [name for name in found if not name.startswith("_")]


def has_methods_of(adapter: object, port: type) -> bool:
    """Whether an adapter has what an optional port promises.

    ``isinstance`` does not say so: from Python 3.12 on it passes over the methods of an
    adapter that hands calls on to another by ``__getattr__``.
    """
    return all(callable(getattr(adapter, name, None)) for name in methods(port))


@runtime_checkable
class Lifecycle(Protocol):
    """Something that is opened at start and closed at shutdown. Optional.

    What several servers share is opened by each and stays open until the last has
    closed it; it can be opened again. ``open`` raises ``Unavailable``; it has ten seconds,
    and ``close`` has two.
    """

    async def open(self) -> None: ...
    async def close(self) -> None: ...


MemberKey = str
"""Whose standing: ``u:<user_id>``, or ``c:<conn_id>`` of an anonymous connection."""


RoomTransaction = Callable[[Room | None, Standing], tuple[Room | None, T]]
"""A decision of the domain about a room and one member's standing in it.

It changes the standing in place, and returns the room to keep (None: no room) and its
result. It raises before it changes anything, and may be run more than once."""


class StateStore(Protocol):
    """What must be true for the whole cluster: rooms, seats, presence, leases.

    * each method is one atomic step, which sees what all earlier ones have done; a rule
      that raises leaves nothing behind;
    * a room without seats that is not ``lasting`` is gone, and so is a ``blank`` standing;
    * what a node owns (seats, presence) is gone when its lease, which counts from its
      last ``renew``, has lapsed or was released: every seat that bears its name, and every
      user as whom a connection of its has appeared and not vanished.

    Any method raises ``Unavailable`` when the engine is away.
    """

    async def decide(
        self, room_id: RoomId, member: MemberKey | None, rule: RoomTransaction[T]
    ) -> T:
        """Run ``rule`` on the room and the member's standing (blank for None)."""

    async def room(self, room_id: RoomId) -> Room | None:
        """Return a copy of the room's record."""

    async def standings(self, room_id: RoomId) -> dict[MemberKey, Standing]:
        """Return copies of all standings that have seats."""

    async def remove_room(self, room_id: RoomId) -> dict[MemberKey, Standing] | None:
        """Forget the room; returns the standings with seats, None if it was unknown."""

    async def rooms(self) -> list[RoomId]:
        """Return the rooms that are ``listed``."""

    async def appear(self, node: NodeId, conn_id: ConnId, user_id: UserId, now: datetime) -> None:
        """A connection of the user is there."""

    async def vanish(
        self, conn_id: ConnId, user_id: UserId, now: datetime, linger: float = 0.0
    ) -> int:
        """It is gone; returns how many connections the user still has.

        A user who has none any more stays online for ``linger`` seconds.
        """

    async def connections_of(
        self, user_ids: Sequence[UserId]
    ) -> dict[UserId, dict[ConnId, NodeId]]:
        """Return where the users' connections are, oldest first; who has none is left out."""

    async def presence(
        self, user_ids: Sequence[UserId], now: datetime
    ) -> dict[UserId, PresenceState]:
        """Return the state of every user asked for."""

    async def set_typing(
        self, user_id: UserId, room_id: RoomId, until: datetime | None, now: datetime
    ) -> None:
        """The user types in the room until then; None: no longer."""

    async def keep_sessions(self, records: Mapping[str, tuple[str, float]]) -> None:
        """Keep each record under its name for so many seconds; the oldest may go first."""

    async def take_session(self, name: str) -> str | None:
        """Return the record of that name, and keep it no longer."""

    async def renew(self, node: NodeId, ttl: float) -> list[NodeId]:
        """Renew a node's lease for ``ttl`` seconds; returns the nodes that are alive."""

    async def release(self, node: NodeId, now: datetime) -> None:
        """The node ends in order: take back everything that it owns."""


@dataclass(frozen=True, slots=True)
class Owned:
    """What a state has of one connection: the users as whom it is there, and its seats,
    each a room and whose standing it is in."""

    conn_id: ConnId
    users: Collection[UserId] = ()
    seats: Collection[tuple[RoomId, MemberKey]] = ()


@runtime_checkable
class KnowsOwned(Protocol):
    """A state store that can say what a node owns. Optional.

    The hub compares it with what it believes, now and then. Without this it can only
    put back what may be missing, and does not find what is left of connections that have
    gone.
    """

    async def owned(self, node: NodeId, after: str, limit: int) -> list[Owned]:
        """Return what the node owns, by connection: the first ``limit`` whose ids sort
        after ``after`` (empty: from the first on), in the order of their ids."""


class HistoryStore(Protocol):
    """What rooms keep of their messages. The truth about their order.

    * each method is one atomic step, which sees what all earlier ones have done, by
      whichever node;
    * the offsets of a room are one more for each message, from 1, within an epoch;
    * a room that is asked for the first time, or again after ``remove``, begins a new
      epoch, and so does every room whose last messages may have been lost; no two epochs
      have the same name, which is 1 to 64 characters;
    * entries come back as they were appended.

    Any method raises ``Unavailable`` when the engine is away.
    """

    async def append(
        self, room_id: RoomId, entry: Entry, retention: Retention, now: datetime
    ) -> Position:
        """Keep a message as the room's next; returns where it stands.

        What ``retention`` does not let the room keep is gone, the oldest first. It is the
        word from this call to the next ``append``; what had become too old by the one
        before is gone too, and does not come back.
        """

    async def position(self, room_id: RoomId) -> Position:
        """Return the position of the room's last message."""

    async def read(
        self, room_id: RoomId, since: Position | None, limit: int, now: datetime
    ) -> Page:
        """Return the first ``limit`` messages after ``since``; for None the newest.

        Where messages after ``since`` are missing the page is not ``recovered``: it has
        the first of those that are left, and none if ``since`` is of another epoch.
        """

    async def remove(self, room_id: RoomId) -> None:
        """Forget the room's messages and its epoch; one that has none is no error."""


class OfflineStore(Protocol):
    """Keeps messages for users who are away.

    * each method is one atomic step, and what it did stands when it returns: a process
      that dies afterwards loses nothing of it;
    * a user's messages have positions: the later one was stored has the higher, whether
      those before it are still there or not;
    * what is kept for a user is limited by count, bytes and age; what goes, the oldest
      first, is returned by the call that removed it, and by no other;
    * nodes that share an object, or what stands behind it, share what is kept.

    Any method raises ``Unavailable`` when it could not be done; then nothing was.
    """

    async def store(self, user_id: UserId, message: StoredMessage) -> list[Evicted]:
        """Keep a message; returns what had to go for it.

        One whose id is kept for the user already is left as it is.
        """

    async def waiting(
        self, user_id: UserId, after: int, limit: int, now: datetime
    ) -> list[tuple[int, StoredMessage]]:
        """Return the first messages beyond a position (0: all), which come oldest first.

        What is too old at ``now`` is left out, and still there for ``expire``.
        """

    async def remove(self, user_id: UserId, message_id: str) -> bool:
        """Keep a message no longer; False if it was not there."""

    async def expire(self, now: datetime, limit: int) -> list[Evicted]:
        """Remove what is too old at ``now``, at most ``limit`` messages of any users."""

    async def claim(self, user_id: UserId, owner: str, ttl: float) -> str:
        """Take or renew the right to replay a user's messages; returns who has it then.

        It goes to ``owner`` unless somebody else has it, and lapses after ``ttl`` seconds.
        """

    async def release(self, user_id: UserId, owner: str) -> None:
        """Give the right back, if ``owner`` has it."""


class AdapterFailed(Unavailable):
    """An adapter raised an error that its port does not allow."""

    code = Unavailable.code
