"""Cluster state for servers in one process.

A lock makes every method atomic, also for servers on several event loops.
"""

from __future__ import annotations

import copy
import heapq
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Generic, TypeVar

from eyewall.application.ports.stores import MemberKey, Owned, RoomTransaction
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId
from eyewall.domain.presence import PresenceState, Typing
from eyewall.domain.room import Room, Standing

T = TypeVar("T")

LAST_SEEN = 100_000
"""Offline users whose ``last_seen`` is kept; the oldest are dropped first."""
MAX_SESSIONS = 100_000
"""Sessions kept for clients that reconnect; the oldest are dropped first."""


class MemoryState:
    """Implements ``StateStore``. Servers share it by sharing the object. A closed store keeps
    its state."""

    across_processes = False

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._rooms: dict[RoomId, Room] = {}
        self._standings: dict[RoomId, dict[MemberKey, Standing]] = {}
        self._users: dict[UserId, dict[ConnId, NodeId]] = {}
        self._seats: _Index[tuple[RoomId, MemberKey]] = _Index()
        self._appeared: _Index[UserId] = _Index()
        self._leases: dict[NodeId, float] = {}
        self._last_seen: dict[UserId, datetime] = {}
        self._lingering: dict[UserId, float] = {}
        self._sessions: dict[str, tuple[str, float]] = {}
        self._typing = Typing()

    async def open(self) -> None:
        """Nothing to open: the state lives as long as the object."""

    async def close(self) -> None:
        """Nothing to close: another server may use the object."""

    # --- rooms

    async def decide(
        self, room_id: RoomId, member: MemberKey | None, rule: RoomTransaction[T]
    ) -> T:
        with self._lock:
            self._reap()
            known = None if member is None else self._standings.get(room_id, {}).get(member)
            before = Standing() if known is None else known
            # The transaction gets copies: if it raises, nothing has changed.
            standing = before.copy()
            room, result = rule(copy.copy(self._rooms.get(room_id)), standing)
            if member is not None:
                self._index_seats(room_id, member, before, standing)
                if standing.blank:
                    self._drop_standing(room_id, member)
                else:
                    self._standings.setdefault(room_id, {})[member] = standing
            self._keep(room_id, room)
            return result

    def _index_seats(
        self,
        room_id: RoomId,
        member: MemberKey,
        before: Standing,
        after: Standing,
    ) -> None:
        """Update the index of seats for a changed standing."""
        for conn_id, seat in before.seats.items():
            if conn_id not in after.seats:
                self._seats.discard(seat.node, conn_id, (room_id, member))
        for conn_id, seat in after.seats.items():
            if conn_id not in before.seats:
                self._seats.add(seat.node, conn_id, (room_id, member))

    def _keep(self, room_id: RoomId, room: Room | None) -> None:
        if room is None or not (room.seats or room.lasting):
            self._drop_room(room_id)
        else:
            self._rooms[room_id] = room

    def _drop_room(self, room_id: RoomId) -> dict[MemberKey, Standing]:
        """Remove a room. Returns its standings."""
        self._rooms.pop(room_id, None)
        standings = self._standings.pop(room_id, {})
        for member, standing in standings.items():
            for conn_id, seat in standing.seats.items():
                self._seats.discard(seat.node, conn_id, (room_id, member))
        return standings

    def _drop_standing(self, room_id: RoomId, member: MemberKey) -> None:
        of_room = self._standings.get(room_id, {})
        of_room.pop(member, None)
        if not of_room:
            self._standings.pop(room_id, None)

    async def room(self, room_id: RoomId) -> Room | None:
        with self._lock:
            self._reap()
            return copy.copy(self._rooms.get(room_id))

    async def standings(self, room_id: RoomId) -> dict[MemberKey, Standing]:
        with self._lock:
            self._reap()
            return _seated(self._standings.get(room_id, {}))

    async def remove_room(self, room_id: RoomId) -> dict[MemberKey, Standing] | None:
        with self._lock:
            self._reap()
            if room_id not in self._rooms:
                return None
            return _seated(self._drop_room(room_id))

    async def rooms(self) -> list[RoomId]:
        with self._lock:
            self._reap()
            return [room.id for room in self._rooms.values() if room.listed]

    # --- presence

    async def appear(self, node: NodeId, conn_id: ConnId, user_id: UserId, now: datetime) -> None:
        with self._lock:
            self._lingering.pop(user_id, None)
            self._users.setdefault(user_id, {})[conn_id] = node
            self._appeared.add(node, conn_id, user_id)
            self._saw(user_id, now)

    async def vanish(
        self, conn_id: ConnId, user_id: UserId, now: datetime, linger: float = 0.0
    ) -> int:
        with self._lock:
            self._reap()
            was_there = conn_id in self._users.get(user_id, ())
            left = self._vanish(conn_id, user_id, now)
            if was_there and not left and linger:
                self._linger(user_id, linger)
            return left

    def _linger(self, user_id: UserId, seconds: float) -> None:
        now = self._clock()
        self._lingering[user_id] = now + seconds
        # All users linger equally long, so they end in the order in which they began.
        while self._lingering[first := next(iter(self._lingering))] <= now:
            del self._lingering[first]

    def _vanish(self, conn_id: ConnId, user_id: UserId, now: datetime | None) -> int:
        connections = self._users.get(user_id, {})
        node = connections.pop(conn_id, None)
        if node is not None:
            self._appeared.discard(node, conn_id, user_id)
            if now is not None:
                self._saw(user_id, now)
        if not connections:
            self._users.pop(user_id, None)
            self._typing.clear_user(user_id)
        return len(connections)

    def _saw(self, user_id: UserId, now: datetime) -> None:
        self._last_seen.pop(user_id, None)
        self._last_seen[user_id] = now
        if len(self._last_seen) > LAST_SEEN:
            del self._last_seen[next(iter(self._last_seen))]

    async def connections_of(
        self, user_ids: Sequence[UserId]
    ) -> dict[UserId, dict[ConnId, NodeId]]:
        with self._lock:
            self._reap()
            return {user: dict(self._users[user]) for user in user_ids if user in self._users}

    async def presence(
        self, user_ids: Sequence[UserId], now: datetime
    ) -> dict[UserId, PresenceState]:
        with self._lock:
            self._reap()
            return {user: self._presence(user, now) for user in user_ids}

    def _presence(self, user_id: UserId, now: datetime) -> PresenceState:
        connections = len(self._users.get(user_id, ()))
        return PresenceState(
            online=connections > 0 or self._lingering.get(user_id, 0.0) > self._clock(),
            connections=connections,
            last_seen=now if connections else self._last_seen.get(user_id),
            typing=self._typing.of(user_id, now),
        )

    async def set_typing(
        self, user_id: UserId, room_id: RoomId, until: datetime | None, now: datetime
    ) -> None:
        with self._lock:
            self._typing.due(now)
            if until is None:
                self._typing.clear(user_id, room_id)
            else:
                self._typing.set(user_id, room_id, until)

    # --- sessions

    async def keep_sessions(self, records: Mapping[str, tuple[str, float]]) -> None:
        with self._lock:
            now = self._clock()
            for name, (record, left) in records.items():
                self._sessions.pop(name, None)
                self._sessions[name] = (record, now + left)
            while self._sessions:
                first, (_, until) = next(iter(self._sessions.items()))
                if len(self._sessions) <= MAX_SESSIONS and now < until:
                    break
                del self._sessions[first]

    async def take_session(self, name: str) -> str | None:
        with self._lock:
            record, until = self._sessions.pop(name, (None, 0.0))
            return record if self._clock() < until else None

    # --- leases

    async def renew(self, node: NodeId, ttl: float) -> list[NodeId]:
        with self._lock:
            self._leases[node] = self._clock() + ttl
            self._reap()
            return list(self._leases)

    async def release(self, node: NodeId, now: datetime) -> None:
        with self._lock:
            self._leases.pop(node, None)
            self._forget(node, now)

    def _reap(self) -> None:
        """Remove the seats and the presence of nodes whose leases have expired."""
        now = self._clock()
        for node in [n for n, until in self._leases.items() if until <= now]:
            del self._leases[node]
            self._forget(node, None)

    def _forget(self, node: NodeId, now: datetime | None) -> None:
        for conn_id, (room_id, member) in self._seats.pop(node):
            room = self._rooms[room_id]
            standing = self._standings[room_id][member]
            # Unlike a leave, this keeps the invite: the member did not leave.
            del standing.seats[conn_id]
            room.seats -= 1
            if standing.blank:
                self._drop_standing(room_id, member)
            self._keep(room_id, room)
        for conn_id, user_id in self._appeared.pop(node):
            self._vanish(conn_id, user_id, now)

    async def owned(self, node: NodeId, after: str, limit: int) -> list[Owned]:
        with self._lock:
            self._reap()
            seats, users = self._seats.of(node), self._appeared.of(node)
            ids = heapq.nsmallest(limit, (c for c in seats.keys() | users.keys() if c > after))
            return [Owned(c, tuple(users.get(c, ())), tuple(seats.get(c, ()))) for c in ids]


class _Index(Generic[T]):
    """The values of type ``T`` that belong to each connection of each node."""

    def __init__(self) -> None:
        self._of: dict[NodeId, dict[ConnId, dict[T, None]]] = {}

    def of(self, node: NodeId) -> Mapping[ConnId, Collection[T]]:
        return self._of.get(node, {})

    def add(self, node: NodeId, conn_id: ConnId, what: T) -> None:
        self._of.setdefault(node, {}).setdefault(conn_id, {})[what] = None

    def discard(self, node: NodeId, conn_id: ConnId, what: T) -> None:
        of_node = self._of.get(node, {})
        of_conn = of_node.get(conn_id, {})
        of_conn.pop(what, None)
        if not of_conn:
            of_node.pop(conn_id, None)
        if not of_node:
            self._of.pop(node, None)

    def pop(self, node: NodeId) -> list[tuple[ConnId, T]]:
        """Remove and return all values of a node."""
        gone = self._of.pop(node, {})
        return [(conn_id, what) for conn_id, of_conn in gone.items() for what in of_conn]


def _seated(standings: dict[MemberKey, Standing]) -> dict[MemberKey, Standing]:
    return {key: standing.copy() for key, standing in standings.items() if standing.seats}
