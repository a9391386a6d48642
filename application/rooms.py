"""In and out of rooms: the cluster's decision first, then its effect on this node.

Rules of this file:

1. The domain decides, in one atomic step of the state store; what this node knows of
   its own members follows, and is never asked for a decision about others.
2. Steps that wait between a decision and its effect take turns per connection.
3. ``on_join`` and ``on_leave`` come in pairs, per connection and room.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta

from eyewall.application.cluster import Cluster
from eyewall.application.connections import Connection
from eyewall.application.fanout import Audiences, FanOut
from eyewall.application.frames import Frame
from eyewall.application.hooks import Event, Hooks
from eyewall.application.middleware import method
from eyewall.application.ports import AccessController, Clock, Logger, MemberKey, StateStore
from eyewall.application.turns import Turns
from eyewall.domain.envelope import ROOM, Message
from eyewall.domain.errors import ConnectionClosed, Forbidden, Refused, RoomNotFound, Unavailable
from eyewall.domain.identity import NodeId, RoomId, UserId
from eyewall.domain.identity import name as check_name
from eyewall.domain.membership import Membership
from eyewall.domain.room import JoinOptions, LeaveReason, Room, RoomOptions, Seat, Standing

MAX_ROOMS = 1000
"""Rooms that one connection may be in."""


def user_key(user_id: str) -> MemberKey:
    return f"u:{user_id}"


def member_key(conn: Connection) -> MemberKey:
    """Whose standing it is: the user's, or an anonymous connection's own."""
    if conn.moving_from is not None:
        return conn.moving_from
    return _key_of(conn, conn.user_id)


def _key_of(conn: Connection, user_id: UserId | None) -> MemberKey:
    return f"c:{conn.id}" if user_id is None else user_key(user_id)


@dataclass(frozen=True, slots=True)
class _Left:
    """What the others are told of who left."""

    announce: bool = False
    connections: int = 0


class Rooms:
    """Joining and leaving, for connections of this node."""

    def __init__(
        self,
        *,
        node: NodeId,
        state: StateStore,
        cluster: Cluster,
        audiences: Audiences,
        fanout: FanOut,
        hooks: Hooks,
        clock: Clock,
        logger: Logger,
        access: AccessController | None,
        implicit: bool,
        invite_grace: float,
    ) -> None:
        self._node = node
        self._state = state
        self._cluster = cluster
        self._audiences = audiences
        self._fanout = fanout
        self._hooks = hooks
        self._clock = clock
        self._logger = logger
        self._can_subscribe = None if access is None else method(access, "can_subscribe")
        self._implicit = implicit
        self._invite_grace = timedelta(seconds=invite_grace)
        self._turns = Turns()
        self._on_gone: list[Callable[[Connection, RoomId], None]] = []

    def on_gone(self, step: Callable[[Connection, RoomId], None]) -> None:
        """Have ``step`` run, without waiting, when a connection is out of a room."""
        self._on_gone.append(step)

    def implied(self, room_id: RoomId) -> Room:
        """The room that arises because somebody names it.

        Raises ``RoomNotFound`` where rooms have to be created.
        """
        if not self._implicit:
            raise RoomNotFound(f"there is no room {room_id}")
        return Room(room_id, RoomOptions(), self._clock.wall())

    # --- joining

    async def join(
        self, room_id: RoomId, conn: Connection, options: JoinOptions | None = None
    ) -> Membership:
        """Let a connection in; the membership that it has already is returned.

        Raises ``Forbidden`` (access controller), ``JoinForbidden``, ``RoomFull``,
        ``RoomNotFound`` or ``ConnectionClosed``.
        """
        check_name(room_id, "room_id")
        if self._can_subscribe is not None:
            allowed = self._can_subscribe(conn.meta, room_id)
            if not (await allowed if inspect.isawaitable(allowed) else allowed):
                raise Forbidden(f"you may not join {room_id}")
        async with self._turns.take(conn.id):
            return await self._join(room_id, conn, options)

    async def _join(
        self, room_id: RoomId, conn: Connection, options: JoinOptions | None
    ) -> Membership:
        if not conn.is_open:
            raise ConnectionClosed(f"{conn.id} is closed")
        here = room_id in conn.roles
        if not here:
            if len(conn.roles) >= MAX_ROOMS:
                raise Forbidden(f"a connection may be in {MAX_ROOMS} rooms")
            # Heard before it is decided: what is published after the ack must arrive.
            await self._cluster.hear_room(room_id)
        try:
            room, seat, connections = await self._admit(room_id, conn, options)
        except BaseException:
            if not here:
                self._cluster.leave_room(room_id)
            raise
        if not here:
            await self._enter(room_id, conn, seat)
            await self._hooks.tell(Event.JOIN, room_id, conn)
            if room.options.announce:
                await self._announce(room_id, "join", conn, connections)
        return Membership(room_id, conn.id, seat.role, room.seats)

    async def _admit(
        self, room_id: RoomId, conn: Connection, options: JoinOptions | None
    ) -> tuple[Room, Seat, int]:
        now = self._clock.wall()

        def rule(room: Room | None, standing: Standing) -> tuple[Room, tuple[Room, Seat, int]]:
            room = room or self.implied(room_id)
            seat = room.admit(
                standing, conn.id, self._node, roles=conn.meta.roles, options=options, now=now
            )
            return room, (room, seat, len(standing.seats))

        return await self._state.decide(room_id, member_key(conn), rule)

    async def _enter(self, room_id: RoomId, conn: Connection, seat: Seat) -> None:
        """Let what was decided take effect here."""
        if not conn.is_open:
            # It ended while the store decided, and nobody knew of this seat then.
            self._cluster.leave_room(room_id)
            await self._release(room_id, conn, LeaveReason.DISCONNECTED)
            raise ConnectionClosed(f"{conn.id} is closed")
        self._audiences.add(room_id, conn.link)
        conn.enter(room_id, seat.role)

    async def become(self, conn: Connection, before: UserId | None) -> None:
        """Move the seats of a connection that has become another user's.

        Where the new user is banned, or the room's policy says no, it is out.
        """
        was, now = _key_of(conn, before), self._clock.wall()
        async with self._turns.take(conn.id):
            for room_id, role in list(conn.roles.items()):
                conn.moving_from = was
                await self._release(room_id, conn, LeaveReason.LEFT)
                conn.moving_from = None
                try:
                    await self._admit(room_id, conn, JoinOptions(role=role, force=True))
                except Refused as error:
                    self._logger.info("seat_lost", room=room_id, why=error.code, at=str(now))
                    self._unseat(room_id, conn)
                    await self._gone(room_id, conn, LeaveReason.KICKED, _Left())

    # --- leaving

    async def leave(
        self, room_id: RoomId, conn: Connection, reason: LeaveReason = LeaveReason.LEFT
    ) -> bool:
        """Take a connection out; False if it was not in."""
        async with self._turns.take(conn.id):
            if room_id not in conn.roles or not conn.is_open:
                return False
            self._unseat(room_id, conn)
            left = await self._release(room_id, conn, reason)
            await self._gone(room_id, conn, reason, left)
            return True

    async def leave_all(self, conn: Connection) -> int:
        """Take a connection out of all rooms; returns of how many."""
        return sum([await self.leave(room_id, conn) for room_id in list(conn.roles)])

    async def removed(
        self, room_id: RoomId, conns: Collection[Connection], why: LeaveReason, notice: Frame
    ) -> None:
        """Let the cluster's decision to remove ``conns`` take effect here.

        Each that was in is sent ``notice``.
        """
        for conn in conns:
            async with self._turns.take(conn.id):
                if room_id not in conn.roles or not conn.is_open:
                    continue
                if why is not LeaveReason.DELETED and await self._is_seated(room_id, conn):
                    continue  # it came back in after that decision
                self._unseat(room_id, conn)
                self._fanout.tell([conn], notice)
                await self._gone(room_id, conn, why, _Left())

    async def _is_seated(self, room_id: RoomId, conn: Connection) -> bool:
        def rule(room: Room | None, standing: Standing) -> tuple[Room | None, bool]:
            return room, conn.id in standing.seats

        return await self._state.decide(room_id, member_key(conn), rule)

    def ended(self, conn: Connection) -> None:
        """The end of a connection is decided: no room sends to it any more."""
        for room_id in conn.roles:
            self._audiences.discard(room_id, conn.link)

    async def after_end(self, conn: Connection) -> None:
        """Give back the seats of a connection that has ended."""
        why = LeaveReason.DISCONNECTED
        async with self._turns.take(conn.id):
            for room_id in list(conn.roles):
                self._audiences.discard(room_id, conn.link)
                self._cluster.leave_room(room_id)
                left = _Left()
                try:
                    left = await self._release(room_id, conn, why)
                except Unavailable as error:
                    # The store takes the seat back by itself when the lease lapses.
                    self._logger.warning("seat_not_released", room=room_id, error=str(error))
                await self._gone(room_id, conn, why, left)

    def _unseat(self, room_id: RoomId, conn: Connection) -> None:
        self._audiences.discard(room_id, conn.link)
        conn.roles.pop(room_id, None)
        self._cluster.leave_room(room_id)

    async def _release(self, room_id: RoomId, conn: Connection, why: LeaveReason) -> _Left:
        now = self._clock.wall()

        def rule(room: Room | None, standing: Standing) -> tuple[Room | None, _Left]:
            if room is None:
                return None, _Left()
            gone = room.release(standing, [conn.id], why, now=now, grace=self._invite_grace)
            announce = bool(gone) and room.options.announce
            return room, _Left(announce, len(standing.seats))

        return await self._state.decide(room_id, member_key(conn), rule)

    async def _gone(self, room_id: RoomId, conn: Connection, why: LeaveReason, left: _Left) -> None:
        for step in self._on_gone:
            step(conn, room_id)
        await self._hooks.tell(Event.LEAVE, room_id, conn, why)
        if left.announce:
            await self._announce(room_id, "leave", conn, left.connections)

    async def _announce(
        self, room_id: RoomId, event: str, conn: Connection, connections: int
    ) -> None:
        """Tell the other members; who joins knows it from the ack."""
        data = {"user_id": conn.user_id, "connections": connections}
        try:
            await self._fanout.to_room(
                room_id, Message(f"{ROOM}{room_id}", event, data), skip=[conn.id]
            )
        except Unavailable as error:
            self._logger.warning("not_announced", room=room_id, error=str(error))
