"""Administration of rooms: create, update and delete; invite, grant roles, kick and ban.

Rules of this file:

1. Each use case is one decision of the domain in the state store, then its effect: on this
   node's connections at once, on other nodes' connections by a request to each node.
2. A decision that affects members runs to completion with its effect, even if the caller is
   cancelled.
3. A room's history is switched on or off under a claim: one node at a time.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from eyewall.application.cluster.peers import Cluster, NodeTimeout
from eyewall.application.cluster.protocol import (
    MembersRemoved,
    Request,
    RetentionChanged,
    RoleChanged,
)
from eyewall.application.concurrency.locks import KeyedLock
from eyewall.application.connections.registry import Connection, Connections
from eyewall.application.outbound.broadcast import FanOut
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import MemberKey, RoomTransaction, StateStore
from eyewall.application.rooms.history import RoomHistory
from eyewall.application.rooms.membership import RoomMembership
from eyewall.application.rooms.seats import Seats, user_key
from eyewall.application.rooms.stream import Streams
from eyewall.domain.duration import Seconds, seconds
from eyewall.domain.envelope import ROOM, Message
from eyewall.domain.errors import RoomNotFound, Unavailable
from eyewall.domain.history import Retention, position_of
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId
from eyewall.domain.identity import name as check_name
from eyewall.domain.membership import Member, RoomInfo
from eyewall.domain.room import LeaveReason, Room, RoomOptions, RoomRole, Seat, Standing

MAX_BAN = 100 * 365 * 86400.0
"""Seconds: a longer ban never ends, because its end may exceed the range of a date."""


CLAIM_LIFETIME = timedelta(seconds=30)
"""How long a node may take to switch a room's history on or off: five calls of the stores,
each with its deadline. The claim of a node that has died blocks the others for so long."""


CLAIM_RETRY = 0.1
"""Seconds between two tries to get a claim that another node has."""


Seated = list[tuple[ConnId, Seat]]


class _ClaimLost(Exception):
    """The claim on the room has expired, or another node has it."""


class Claim:
    """The exclusive right to switch a room's history: an async context manager."""

    def __init__(self, room_admin: RoomAdmin, room_id: RoomId) -> None:
        self._room_admin = room_admin
        self.room_id = room_id
        self.name = secrets.token_hex(8)
        self.room: Room | None = None
        """The room as it was when it was claimed; None if there was none."""

    async def __aenter__(self) -> Claim:
        self.room = await self._room_admin.claim(self.room_id, self.name)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._room_admin.release_claim(self.room_id, self.name)


@dataclass(frozen=True, slots=True)
class RemovedSeats:
    """The seats that a user lost, and whether the room announces it."""

    seats: Seated
    announce: bool


R = TypeVar("R", bound=Request)


class RoomAdmin:
    """Use cases on rooms, and on users in rooms. Each takes effect in the whole cluster."""

    def __init__(
        self,
        *,
        node: NodeId,
        state: StateStore,
        cluster: Cluster,
        connections: Connections,
        rooms: RoomMembership,
        seats: Seats,
        streams: Streams,
        room_history: RoomHistory,
        fanout: FanOut,
        clock: Clock,
        logger: Logger,
    ) -> None:
        self._node = node
        self._state = state
        self._cluster = cluster
        self._connections = connections
        self._rooms = rooms
        self._implicit_room = seats.implicit_room
        self._streams = streams
        self._room_history = room_history
        self._fanout = fanout
        self._clock = clock
        self._logger = logger
        self._room_locks = KeyedLock()
        cluster.on_request(MembersRemoved, self._handle_removed)
        cluster.on_request(RoleChanged, self._handle_role)
        cluster.on_request(RetentionChanged, self._handle_retention)

    # --- rooms

    async def create(self, room_id: RoomId, options: RoomOptions | None) -> RoomInfo:
        """Create the room and return it. Raises ``RoomExists`` if it exists with other options,
        ``Unavailable``."""
        check_name(room_id, "room_id")
        wanted = options or RoomOptions()
        now = self._clock.wall()

        def transaction(room: Room | None, _: Standing) -> tuple[Room, RoomInfo]:
            room = room or Room(room_id, wanted, now)
            room.create(wanted)
            return room, info(room)

        return await self._switch(room_id, transaction)

    async def update(self, room_id: RoomId, changes: Mapping[str, Any]) -> RoomInfo:
        """Change the named options and return the room. Raises ``RoomNotFound``, ``ValueError``,
        ``Unavailable``."""

        def transaction(room: Room | None, _: Standing) -> tuple[Room, RoomInfo]:
            if room is None:
                raise RoomNotFound(f"there is no room {room_id}")
            room.change(changes)
            return room, info(room)

        if not changes.keys().isdisjoint(("history_size", "history_ttl")):
            return await self._switch(room_id, transaction)

        async def act() -> RoomInfo:
            known = await self._state.decide(room_id, None, transaction)
            return await self._room_history.with_position(known)

        return await self._rooms.effects.run_to_completion(act)

    async def _switch(self, room_id: RoomId, transaction: RoomTransaction[RoomInfo]) -> RoomInfo:
        """Apply ``transaction`` to a room's options, and switch its history accordingly."""

        async def act() -> RoomInfo:
            while True:
                async with self._room_locks.acquire(room_id), Claim(self, room_id) as claim:
                    try:
                        return await self._switch_alone(claim, transaction)
                    except _ClaimLost:
                        continue  # the room was created meanwhile, or the claim has expired

        return await self._rooms.effects.run_to_completion(act)

    async def _switch_alone(self, claim: Claim, transaction: RoomTransaction[RoomInfo]) -> RoomInfo:
        room_id, before = claim.room_id, claim.room
        kept = None if before is None else Retention.of(before.options)

        def wanted(room: Room | None, standing: Standing) -> tuple[Room | None, RoomInfo]:
            if room is not None and not room.is_claimed_by(claim.name):
                raise _ClaimLost
            return transaction(room, standing)

        # Before the decision: no node appends while the room keeps no history.
        epoch = None
        if before is not None and kept is None and self._would_have_history(before, transaction):
            epoch = (await self._room_history.renew(room_id)).epoch
        known = await self._state.decide(room_id, None, wanted)
        if before is not None and Retention.of(known.options) != kept:
            await self._apply_retention(known, epoch)
        return await self._room_history.with_position(known)

    @staticmethod
    def _would_have_history(room: Room, transaction: RoomTransaction[RoomInfo]) -> bool:
        """Whether the transaction leaves the room with a history; raises the errors of the
        transaction."""
        _, known = transaction(copy.copy(room), Standing())
        return Retention.of(known.options) is not None

    async def claim(self, room_id: RoomId, name: str) -> Room | None:
        """Wait until this node has the claim ``name`` on the room; return a copy of the room.

        Returns None if there is no room. Raises ``Unavailable``.
        """

        def transaction(
            room: Room | None, _: Standing
        ) -> tuple[Room | None, tuple[Room | None, bool]]:
            now = self._clock.wall()
            mine = room is None or room.claim(name, now=now, until=now + CLAIM_LIFETIME)
            return room, (copy.copy(room), mine)

        while True:
            room, mine = await self._state.decide(room_id, None, transaction)
            if mine:
                return room
            over = asyncio.Event()
            timer = self._clock.call_later(CLAIM_RETRY, over.set)
            try:
                await over.wait()
            finally:
                timer.cancel()

    async def release_claim(self, room_id: RoomId, name: str) -> None:
        """Release the claim; never raises ``Unavailable``, because the claim expires anyway."""

        def transaction(room: Room | None, _: Standing) -> tuple[Room | None, None]:
            if room is not None:
                room.let_go(name)
            return room, None

        try:
            await self._state.decide(room_id, None, transaction)
        except Unavailable as error:
            self._logger.warning("claim_not_released", room=room_id, error=told(error))

    async def _apply_retention(self, room: RoomInfo, epoch: str | None) -> None:
        """Tell the members' nodes the room's new retention; ``epoch`` is that of a new history."""
        retention = Retention.of(room.options)
        seats = _seats(await self._state.standings(room.id))
        await self._on_nodes(
            seats, partial(RetentionChanged, room.id, retention, epoch), self._handle_retention
        )
        if retention is None:
            await self._room_history.forget(room.id)

    async def delete(self, room_id: RoomId) -> None:
        """Delete the room with its history; its members are removed. Raises ``RoomNotFound``,
        ``Unavailable``."""

        async def act() -> None:
            async with self._room_locks.acquire(room_id), Claim(self, room_id) as claim:
                await self._delete_alone(claim)

        await self._rooms.effects.run_to_completion(act)

    async def _delete_alone(self, claim: Claim) -> None:
        room_id, room = claim.room_id, claim.room
        kept = room is not None and Retention.of(room.options) is not None
        if kept:  # first: if this fails, nothing is deleted
            await self._room_history.forget(room_id)
        seated = await self._state.remove_room(room_id)
        if seated is None:
            raise RoomNotFound(f"there is no room {room_id}")
        await self._remove(room_id, _seats(seated), LeaveReason.DELETED, "deleted")
        # Again: a node may have published meanwhile. A new room of the same name keeps its
        # history.
        if kept and await self._state.room(room_id) is None:
            await self._room_history.forget(room_id)

    async def room(self, room_id: RoomId) -> RoomInfo | None:
        """Return the room with its position; None if it does not exist. Raises ``Unavailable``."""
        room = await self._state.room(room_id)
        return None if room is None else await self._room_history.with_position(info(room))

    async def rooms(self) -> list[RoomId]:
        """Return the ids of rooms with members and of created ones. Raises ``Unavailable``."""
        return await self._state.rooms()

    async def members(self, room_id: RoomId) -> list[Member]:
        """Return the users of a room in the order of their joins. Raises ``Unavailable``.

        All anonymous connections together are one member without a user.
        """
        found: dict[MemberKey | None, list[Standing]] = defaultdict(list)
        for key, standing in (await self._state.standings(room_id)).items():
            found[key if key.startswith("u:") else None].append(standing)
        members = [_member(key, standings) for key, standings in found.items()]
        return sorted(members, key=lambda member: member.joined_at)

    # --- users in rooms

    async def invite(self, room_id: RoomId, user_id: UserId) -> None:
        """Invite the user; creates an implicit room. Raises ``RoomNotFound`` if there is no room
        and implicit rooms are off, ``Unavailable``."""

        def transaction(room: Room | None, standing: Standing) -> tuple[Room, None]:
            room = room or self._implicit_room(room_id)
            room.invite(standing)
            return room, None

        await self._state.decide(room_id, _key(room_id, user_id), transaction)

    async def revoke_invite(self, room_id: RoomId, user_id: UserId) -> None:
        """Revoke an invite, if there is one. Raises ``Unavailable``."""

        def transaction(room: Room | None, standing: Standing) -> tuple[Room | None, None]:
            if room is not None:
                room.revoke_invite(standing)
            return room, None

        await self._state.decide(room_id, user_key(user_id), transaction)

    async def set_role(self, room_id: RoomId, user_id: UserId, role: RoomRole) -> None:
        """Grant the user a role, now and for later joins. Raises ``RoomNotFound`` if there is no
        room and implicit rooms are off, ``Unavailable``."""
        role = RoomRole(role)

        def transaction(room: Room | None, standing: Standing) -> tuple[Room, Seated]:
            room = room or self._implicit_room(room_id)
            room.grant(standing, role)
            return room, list(standing.seats.items())

        key = _key(room_id, user_id)

        async def act() -> None:
            await self._settle(room_id, user_id)
            seats = await self._state.decide(room_id, key, transaction)
            await self._on_nodes(seats, partial(RoleChanged, room_id, role), self._handle_role)

        await self._rooms.effects.run_to_completion(act)

    async def kick(self, room_id: RoomId, user_id: UserId, reason: str) -> int:
        """Remove the user's connections from the room; returns how many. Raises ``Unavailable``."""
        now = self._clock.wall()

        def transaction(room: Room | None, standing: Standing) -> tuple[Room | None, RemovedSeats]:
            if room is None:
                return None, RemovedSeats([], announce=False)
            removed = room.release(standing, list(standing.seats), LeaveReason.KICKED, now=now)
            return room, RemovedSeats(removed, room.options.announce)

        async def act() -> int:
            await self._settle(room_id, user_id)
            removed = await self._state.decide(room_id, user_key(user_id), transaction)
            await self._remove_user(room_id, user_id, removed, LeaveReason.KICKED, reason)
            if removed.seats:
                self._log("kicked", room_id, user_id, removed)
            return len(removed.seats)

        return await self._rooms.effects.run_to_completion(act)

    async def ban(self, room_id: RoomId, user_id: UserId, duration: Seconds | None) -> int:
        """Ban the user for ``duration`` (None: for ever) and remove its connections from the
        room; returns how many.

        Raises ``ValueError`` for a bad duration, ``RoomNotFound`` if there is no room and
        implicit rooms are off, ``Unavailable``.
        """
        now = self._clock.wall()
        span = None
        if duration is not None:
            length = seconds(duration, "duration", positive=True)
            span = timedelta(seconds=length) if length < MAX_BAN else None

        def transaction(room: Room | None, standing: Standing) -> tuple[Room, RemovedSeats]:
            room = room or self._implicit_room(room_id)
            removed = room.ban(standing, now=now, duration=span)
            return room, RemovedSeats(removed, room.options.announce)

        key = _key(room_id, user_id)

        async def act() -> int:
            removed = await self._state.decide(room_id, key, transaction)
            await self._remove_user(room_id, user_id, removed, LeaveReason.BANNED, "banned")
            await self._settle(room_id, user_id)  # last: it must find the ban
            self._log("banned", room_id, user_id, removed)
            return len(removed.seats)

        return await self._rooms.effects.run_to_completion(act)

    async def unban(self, room_id: RoomId, user_id: UserId) -> None:
        """End a ban, if there is one. Raises ``Unavailable``."""

        def transaction(room: Room | None, standing: Standing) -> tuple[Room | None, None]:
            if room is not None:
                room.unban(standing)
            return room, None

        await self._state.decide(room_id, user_key(user_id), transaction)

    async def _settle(self, room_id: RoomId, user_id: UserId) -> None:
        """Move seats of the user's connections that still stand under an old user."""
        for conn in self._connections.of_user(user_id):
            if room_id in self._rooms.rooms_to_settle(conn):
                await self._rooms.settle(room_id, conn)

    def _log(self, event: str, room_id: RoomId, user_id: UserId, removed: RemovedSeats) -> None:
        self._logger.info(event, room=room_id, user_id=user_id, connections=len(removed.seats))

    # --- effects

    async def _remove_user(
        self, room_id: RoomId, user_id: UserId, removed: RemovedSeats, why: LeaveReason, reason: str
    ) -> None:
        await self._remove(room_id, removed.seats, why, reason)
        if removed.seats and removed.announce:
            data = {"user_id": user_id, "connections": 0}
            await self._fanout.to_room(room_id, Message(f"{ROOM}{room_id}", "leave", data))

    async def _remove(self, room_id: RoomId, seats: Seated, why: LeaveReason, reason: str) -> None:
        """Have every node remove its connections that lost their seat."""
        told = partial(MembersRemoved, room_id, why, reason)
        await self._on_nodes(seats, told, self._handle_removed)

    async def _on_nodes(
        self,
        seats: Seated,
        request: Callable[[tuple[ConnId, ...]], R],
        here: Callable[[R, bytes], Awaitable[None]],
    ) -> None:
        """Send ``request`` to all nodes of ``seats`` concurrently; ``here`` handles it on this one.

        Raises ``Unavailable`` if the bus is unavailable, after all nodes were tried. A node that
        does not answer is logged. The decision stands either way: a node that misses it finds
        it by its reconciliation (``lifecycle/reconciliation``).
        """
        parts = [
            here(request(tuple(conn_ids)), b"")
            if node == self._node
            else self._ask(node, request(tuple(conn_ids)))
            for node, conn_ids in _by_node(seats).items()
        ]
        for result in await asyncio.gather(*parts, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _ask(self, node: NodeId, request: Request) -> None:
        try:
            await self._cluster.request(node, request)
        except NodeTimeout as error:
            self._logger.warning("node_silent", asked=request.kind, error=told(error))

    async def _handle_removed(self, change: MembersRemoved, _: bytes) -> None:
        conns = self._here(change.conns)
        await self._rooms.apply_removal(change.room, conns, change.why, change.reason)

    async def _handle_role(self, change: RoleChanged, _: bytes) -> None:
        await self._rooms.apply_role(change.room, self._here(change.conns), change.role)

    async def _handle_retention(self, change: RetentionChanged, _: bytes) -> None:
        at = None if change.epoch is None else position_of((change.epoch, 0))
        self._streams.set_retention(change.room, change.retention, at)

    def _here(self, conn_ids: Collection[ConnId]) -> list[Connection]:
        return [c for conn_id in conn_ids if (c := self._connections.get(conn_id))]


def info(room: Room) -> RoomInfo:
    """Return a room's record as the API shows it, without its position."""
    return RoomInfo(room.id, room.options, room.seats, room.created_at)


def _key(room_id: RoomId, user_id: UserId) -> MemberKey:
    check_name(room_id, "room_id")
    return user_key(check_name(user_id, "user_id"))


def _member(key: MemberKey | None, standings: list[Standing]) -> Member:
    seats = [seat for standing in standings for seat in standing.seats.values()]
    return Member(
        user_id=None if key is None else UserId(key.removeprefix("u:")),
        role=max(standing.highest_role() for standing in standings),
        connections=len(seats),
        joined_at=min(seat.joined_at for seat in seats),
    )


def _seats(standings: Mapping[MemberKey, Standing]) -> Seated:
    return [seat for standing in standings.values() for seat in standing.seats.items()]


def _by_node(seats: Seated) -> dict[NodeId, list[ConnId]]:
    found: dict[NodeId, list[ConnId]] = defaultdict(list)
    for conn_id, seat in seats:
        found[seat.node].append(conn_id)
    return found
