"""Connections' seats in the cluster's state: taken, given back, moved to another user.

Rules of this file:

1. The domain decides, in one atomic step of the state store. A transaction returns values: the
   store's own room and seats are not kept.
2. A seat stands under the user that its connection had when it took the seat. If the
   connection changes its user, the old user is noted until the seat has moved.
3. The caller holds the connection's lock.
4. A failed decision may have been made all the same: the seat is noted as a divergence
   until it is compared with the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from eyewall.application.connections.registry import Connection
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.stores import MemberKey, RoomTransaction, StateStore
from eyewall.application.rooms.divergence import Divergences
from eyewall.domain.errors import Refused, RoomNotFound, Unavailable
from eyewall.domain.history import Retention
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId
from eyewall.domain.room import JoinOptions, LeaveReason, Room, RoomOptions, RoomRole, Standing

_T = TypeVar("_T")


def user_key(user_id: str) -> MemberKey:
    """Return the key of a user's standing in a room."""
    return f"u:{user_id}"


def user_of(key: MemberKey) -> UserId | None:
    """Return the user of a standing; None for that of an anonymous connection."""
    return UserId(key.removeprefix("u:")) if key.startswith("u:") else None


def _key(conn_id: ConnId, user_id: UserId | None) -> MemberKey:
    """Return the key of a standing: the user's, or an anonymous connection's own."""
    return f"c:{conn_id}" if user_id is None else user_key(user_id)


@dataclass(frozen=True, slots=True)
class JoinResult:
    """A seat as the store decided it.

    ``members`` counts the room's connections, ``connections`` the user's in the room.
    """

    role: RoomRole
    members: int
    connections: int
    announce: bool
    history: Retention | None = None
    """How many messages the room keeps, and for how long; None if it keeps none."""


@dataclass(frozen=True, slots=True)
class LeaveResult:
    """A seat that was given back: its user, and how many connections the user still has in the
    room.

    ``after_grace``: the leave is announced only if the user is not back within the grace period.
    """

    user_id: UserId | None = None
    connections: int = 0
    announce: bool = False
    after_grace: bool = False


class Seats:
    """The seats of this node's connections."""

    def __init__(
        self,
        *,
        node: NodeId,
        state: StateStore,
        clock: Clock,
        implicit: bool,
        invite_grace: float,
        presence_grace: float = 0.0,
        divergences: Divergences | None = None,
    ) -> None:
        self._divergences = Divergences() if divergences is None else divergences
        self._node = node
        self._state = state
        self._clock = clock
        self._implicit = implicit
        self._invite_grace = timedelta(seconds=invite_grace)
        self._presence_grace = timedelta(seconds=presence_grace)
        self._old_users: dict[ConnId, dict[RoomId, UserId | None]] = {}
        self.moving: Mapping[ConnId, object] = self._old_users
        """Connections that have seats under an old user. It is nearly always empty, so the check
        for every message costs one look."""

    def implicit_room(self, room_id: RoomId) -> Room:
        """Return a new implicit room.

        Raises ``RoomNotFound`` if rooms have to be created explicitly.
        """
        if not self._implicit:
            raise RoomNotFound(f"there is no room {room_id}")
        return Room(room_id, RoomOptions(), self._clock.wall())

    # --- decisions

    async def take(
        self, room_id: RoomId, conn: Connection, options: JoinOptions | None
    ) -> JoinResult:
        """Seat the connection and return its seat; a seat that it has already stays as it is.

        Raises ``Refused`` if the room's rules forbid it, ``RoomNotFound``, ``Unavailable``.
        """
        now, user_id, roles = self._clock.wall(), conn.user_id, conn.meta.roles

        def transaction(room: Room | None, standing: Standing) -> tuple[Room, JoinResult]:
            room = room or self.implicit_room(room_id)
            seat = room.admit(standing, conn.id, self._node, roles=roles, options=options, now=now)
            announce = room.options.announce and not standing.is_back(now)
            keeps = Retention.of(room.options)
            return room, JoinResult(seat.role, room.seats, len(standing.seats), announce, keeps)

        taken = await self._decide(
            room_id, conn.id, user_id, transaction, member=room_id in conn.roles
        )
        if conn.user_id != user_id:
            self._old_users.setdefault(conn.id, {})[room_id] = user_id
        return taken

    async def give_back(self, room_id: RoomId, conn: Connection, why: LeaveReason) -> LeaveResult:
        """Give the connection's seat back; without one nothing changes. Raises ``Unavailable``."""
        user_id, member = self.user_in(room_id, conn), room_id in conn.roles
        left = await self.take_away(room_id, conn.id, user_id, why, member=member)
        self.forget_room(room_id, conn)
        return left

    async def take_away(
        self,
        room_id: RoomId,
        conn_id: ConnId,
        user_id: UserId | None,
        why: LeaveReason,
        *,
        member: bool,
    ) -> LeaveResult:
        """Give back the seat under ``user_id`` of a connection that may have ended. Raises
        ``Unavailable``."""
        now = self._clock.wall()

        def transaction(room: Room | None, standing: Standing) -> tuple[Room | None, LeaveResult]:
            if room is None:
                return None, LeaveResult(user_id)
            gone = room.release(standing, [conn_id], why, now=now, grace=self._invite_grace)
            announce = bool(gone) and room.options.announce
            after_grace = (
                announce and why is LeaveReason.DISCONNECTED and bool(self._presence_grace)
            )
            if after_grace:
                standing.leave_for(conn_id, now + self._presence_grace)
            return room, LeaveResult(user_id, len(standing.seats), announce, after_grace)

        return await self._decide(room_id, conn_id, user_id, transaction, member=member)

    async def undo(self, room_id: RoomId, conn: Connection) -> None:
        """Withdraw a seat that was taken for a user that the connection no longer has. Raises
        ``Unavailable``."""

        def transaction(room: Room | None, standing: Standing) -> tuple[Room | None, None]:
            if room is not None:
                room.withdraw(standing, conn.id)
            return room, None

        user_id = self.user_in(room_id, conn)
        await self._decide(room_id, conn.id, user_id, transaction, member=False)
        self.forget_room(room_id, conn)

    async def _decide(
        self,
        room_id: RoomId,
        conn_id: ConnId,
        user_id: UserId | None,
        transaction: RoomTransaction[_T],
        *,
        member: bool,
    ) -> _T:
        try:
            return await self._state.decide(room_id, _key(conn_id, user_id), transaction)
        except Refused:
            raise
        except BaseException:
            self._divergences.note_seat(conn_id, room_id, user_id, member=member)
            raise

    def note_divergence(self, room_id: RoomId, conn: Connection) -> None:
        """Note the member's seat as a divergence: it is compared with the state."""
        self._divergences.note_seat(conn.id, room_id, self.user_in(room_id, conn), member=True)

    async def end_absence(
        self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None
    ) -> LeaveResult:
        """End the grace period of a lost connection; return the leave to announce.

        Nothing is announced if the user has come back meanwhile. Raises ``Unavailable``.
        """

        def transaction(room: Room | None, standing: Standing) -> tuple[Room | None, LeaveResult]:
            away = standing.stays_away(conn_id)
            announce = away and room is not None and room.options.announce
            return room, LeaveResult(user_id, len(standing.seats), announce)

        return await self._state.decide(room_id, _key(conn_id, user_id), transaction)

    async def holds(self, room_id: RoomId, conn: Connection) -> bool:
        """Whether the store has a seat for the connection; False while it is unavailable."""
        return await self.role(room_id, conn) is not None

    async def role(self, room_id: RoomId, conn: Connection) -> RoomRole | None:
        """Return the role of the connection's seat in the store.

        None without a seat, and while the store is unavailable.
        """

        try:
            found = await self.role_or_reason(room_id, conn)
        except Unavailable:
            return None
        return found if isinstance(found, RoomRole) else None

    async def role_or_reason(self, room_id: RoomId, conn: Connection) -> RoomRole | LeaveReason:
        """Return the role of the connection's seat in the store, or why it has no seat there.

        Raises ``Unavailable``.
        """
        now = self._clock.wall()

        def transaction(
            room: Room | None, standing: Standing
        ) -> tuple[Room | None, RoomRole | LeaveReason]:
            seat = standing.seats.get(conn.id)
            if seat is not None:
                return room, seat.role
            return room, (LeaveReason.BANNED if standing.is_banned(now) else LeaveReason.KICKED)

        user_id = self.user_in(room_id, conn)
        return await self._state.decide(room_id, _key(conn.id, user_id), transaction)

    # --- the user that a seat stands under

    def of(self, conn: Connection) -> set[tuple[RoomId, UserId | None]]:
        """Return the seats that the connection should have, as pairs of room and user."""
        return {(room_id, self.user_in(room_id, conn)) for room_id in conn.roles}

    def keep_under(self, room_id: RoomId, conn: Connection, user_id: UserId | None) -> None:
        """Note that the seat could not be moved and still stands under ``user_id``."""
        if user_id != conn.user_id:
            self._old_users.setdefault(conn.id, {})[room_id] = user_id

    def user_changed(self, conn: Connection, before: UserId | None) -> None:
        """Note that the connection has changed its user; its seats still are ``before``'s."""
        old_users = self._old_users.setdefault(conn.id, {})
        for room_id in conn.roles:
            if old_users.setdefault(room_id, before) == conn.user_id:
                del old_users[room_id]  # the connection is that user's again
        if not old_users:
            self.forget(conn)

    def seats_under_old_user(self, conn: Connection) -> list[RoomId]:
        """Return the rooms in which the connection's seat stands under an old user."""
        return list(self._old_users.get(conn.id, ()))

    def user_in(self, room_id: RoomId, conn: Connection) -> UserId | None:
        """Return the user that the connection's seat in the room stands under."""
        return self._old_users.get(conn.id, {}).get(room_id, conn.user_id)

    def forget_room(self, room_id: RoomId, conn: Connection) -> None:
        """Forget the old user of the connection's seat in the room: it needs no move."""
        old_users = self._old_users.get(conn.id, {})
        old_users.pop(room_id, None)
        if not old_users:
            self.forget(conn)

    def forget(self, conn: Connection) -> None:
        """Forget the old users of all the connection's seats: they need no move."""
        self._old_users.pop(conn.id, None)
