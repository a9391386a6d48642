"""The stores that the nodes of a cluster share: state, history, offline messages.

Every port's docstring is its contract, and ``eyewall.testing.contracts`` holds adapters to it.
For every call of these ports and of the bus:

* it returns within ``PROMISED`` seconds, or raises ``Unavailable``; retries within the call
  count against that time;
* the caller may be cancelled, and the call with it: no lock, connection or subscription is
  left behind in a state that affects a later call;
* a call that raised ``Unavailable`` or was cancelled may have taken effect, unless the port
  says otherwise; calling again is safe;
* it raises only the errors that its port names.

The hub does not rely on this: ``call_guard`` has a deadline for each call, and converts every
other error into ``Unavailable``.
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
"""Seconds that a call may take. A handler, a join or a publish waits for it, and so does the
client: by default the shipped clients wait as long for an answer."""


def methods(port: type) -> list[str]:
    """Return the names of a port's methods."""
    found = [name for name, value in vars(port).items() if inspect.isfunction(value)]
    return [name for name in found if not name.startswith("_")]


def has_methods_of(adapter: object, port: type) -> bool:
    """Whether an adapter has the methods of an optional port.

    ``isinstance`` can't answer it: from Python 3.12 on it ignores the methods of an adapter
    that forwards calls by ``__getattr__``.
    """
    return all(callable(getattr(adapter, name, None)) for name in methods(port))


@runtime_checkable
class Lifecycle(Protocol):
    """An adapter that is opened at start and closed at shutdown. Optional.

    An adapter that several servers share is opened by each, stays open until the last has
    closed it, and can be opened again.
    """

    async def open(self) -> None:
        """Connect to the engine, within ten seconds; raises ``Unavailable``."""

    async def close(self) -> None:
        """Release what ``open`` took, within two seconds."""


MemberKey = str
"""The owner of a standing: ``u:<user_id>``, or ``c:<conn_id>`` of an anonymous connection."""


RoomTransaction = Callable[[Room | None, Standing], tuple[Room | None, T]]
"""A decision of the domain about a room and one member's standing in it.

It changes the standing in place, and returns the room to keep (None: no room) and its
result. It raises before it changes anything, and may be run more than once."""


class StateStore(Protocol):
    """The state that the whole cluster shares: rooms, seats, presence, leases.

    * each method is one atomic step that sees the effect of all earlier ones; a
      transaction that raises changes nothing;
    * a room without seats that is not ``lasting`` is removed, and so is a ``blank`` standing;
    * a node's lease counts from its last ``renew``. When it has lapsed or was released, all
      that the node owns is removed: its seats, and the presence of each user as whom one of
      its connections has appeared and not vanished.

    Any method raises ``Unavailable`` when the engine can't be reached.
    """

    async def decide(
        self, room_id: RoomId, member: MemberKey | None, rule: RoomTransaction[T]
    ) -> T:
        """Run ``rule`` on the room and the member's standing (blank for None).

        Returns its result; raises what it raises.
        """

    async def room(self, room_id: RoomId) -> Room | None:
        """Return a copy of the room's record; None if there is no such room."""

    async def standings(self, room_id: RoomId) -> dict[MemberKey, Standing]:
        """Return copies of all standings of the room that have seats."""

    async def remove_room(self, room_id: RoomId) -> dict[MemberKey, Standing] | None:
        """Remove the room; returns the standings with seats, None if it was unknown."""

    async def rooms(self) -> list[RoomId]:
        """Return the rooms that are ``listed``."""

    async def appear(self, node: NodeId, conn_id: ConnId, user_id: UserId, now: datetime) -> None:
        """Add a connection of the user on a node. Idempotent."""

    async def vanish(
        self, conn_id: ConnId, user_id: UserId, now: datetime, linger: float = 0.0
    ) -> int:
        """Remove a connection of the user; returns how many the user still has.

        After the last one the user stays online for ``linger`` seconds.
        """

    async def connections_of(
        self, user_ids: Sequence[UserId]
    ) -> dict[UserId, dict[ConnId, NodeId]]:
        """Return each user's connections with their nodes, oldest first.

        A user without connections is left out.
        """

    async def presence(
        self, user_ids: Sequence[UserId], now: datetime
    ) -> dict[UserId, PresenceState]:
        """Return the presence of each of ``user_ids``."""

    async def set_typing(
        self, user_id: UserId, room_id: RoomId, until: datetime | None, now: datetime
    ) -> None:
        """Note that the user types in the room until ``until``; None: no longer."""

    async def keep_sessions(self, records: Mapping[str, tuple[str, float]]) -> None:
        """Keep each record under its name for so many seconds; the oldest may be evicted."""

    async def take_session(self, name: str) -> str | None:
        """Remove and return the record of that name; None if there is none."""

    async def renew(self, node: NodeId, ttl: float) -> list[NodeId]:
        """Renew a node's lease for ``ttl`` seconds; returns the nodes that are alive."""

    async def release(self, node: NodeId, now: datetime) -> None:
        """Remove everything that the node owns: it shuts down in order."""


@dataclass(frozen=True, slots=True)
class Owned:
    """The entries of a state for one connection: the users as whom it is present, and its
    seats, each a room and the standing that the seat is in."""

    conn_id: ConnId
    users: Collection[UserId] = ()
    seats: Collection[tuple[RoomId, MemberKey]] = ()


@runtime_checkable
class KnowsOwned(Protocol):
    """A state store that can list what a node owns. Optional.

    The hub compares the list with its own connections at intervals. Without this port it
    only restores missing entries, and can't find entries of connections that have ended.
    """

    async def owned(self, node: NodeId, after: str, limit: int) -> list[Owned]:
        """Return what the node owns, by connection: the first ``limit`` whose ids sort
        after ``after`` (empty: from the first on), in the order of their ids."""


class HistoryStore(Protocol):
    """The stored messages of rooms. It defines their order.

    * each method is one atomic step that sees the effect of all earlier ones, of every node;
    * within an epoch the offsets of a room count up by one per message, from 1;
    * a room begins a new epoch at its first use, at the first use after ``remove``, and when
      its last messages may have been lost. Epoch names are unique and have 1 to 64 characters;
    * entries are returned as they were appended.

    Any method raises ``Unavailable`` when the engine can't be reached.
    """

    async def append(
        self, room_id: RoomId, entry: Entry, retention: Retention, now: datetime
    ) -> Position:
        """Append a message to the room; returns its position.

        Messages beyond ``retention`` are removed, the oldest first. ``retention`` applies
        from this call to the next ``append``. Messages that the previous ``retention`` had
        made too old are removed too, and do not come back.
        """

    async def position(self, room_id: RoomId) -> Position:
        """Return the position of the room's last message."""

    async def read(
        self, room_id: RoomId, since: Position | None, limit: int, now: datetime
    ) -> Page:
        """Return the first ``limit`` messages after ``since``; for None the newest.

        If messages after ``since`` are missing, the page is not ``recovered``: it has the
        first of the remaining messages, or none if ``since`` is of another epoch.
        """

    async def remove(self, room_id: RoomId) -> None:
        """Remove the room's messages and its epoch. Idempotent."""


class OfflineStore(Protocol):
    """Stores messages for users who are offline.

    * each method is one atomic step, durable when it returns: a crash afterwards loses
      nothing of it;
    * a user's messages have increasing positions, in the order of their storing; a position
      is not used again after its message is removed;
    * a user's messages are limited by count, bytes and age; evicted messages, the oldest
      first, are returned by the call that removed them, and by no other;
    * nodes that share an object, or its engine, share the messages.

    Any method raises ``Unavailable`` if it could not be done; then it had no effect.
    """

    async def store(self, user_id: UserId, message: StoredMessage) -> list[Evicted]:
        """Store a message; returns the messages that were evicted for it.

        A message whose id is stored for the user already is left as it is.
        """

    async def waiting(
        self, user_id: UserId, after: int, limit: int, now: datetime
    ) -> list[tuple[int, StoredMessage]]:
        """Return at most ``limit`` messages after a position (0: all), the oldest first.

        Messages that are too old at ``now`` are left out; only ``expire`` removes them.
        """

    async def remove(self, user_id: UserId, message_id: str) -> bool:
        """Remove a message; False if it was not stored."""

    async def expire(self, now: datetime, limit: int) -> list[Evicted]:
        """Remove messages that are too old at ``now``: at most ``limit``, of any users."""

    async def claim(self, user_id: UserId, owner: str, ttl: float) -> str:
        """Take or renew the lease for the replay of a user's messages; returns its holder.

        ``owner`` gets it unless another owner holds it. It lapses after ``ttl`` seconds.
        """

    async def release(self, user_id: UserId, owner: str) -> None:
        """Release the lease, if ``owner`` holds it."""


class AdapterFailed(Unavailable):
    """An adapter raised an error that its port does not allow."""

    code = Unavailable.code
