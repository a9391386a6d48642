"""Joining and leaving rooms: the cluster's decision first, then its effect on this node.

Rules of this file:

1. The members that this node keeps follow the decisions of the state. No decision is made
   from them.
2. A decision and its effect hold the connection's lock. Hooks and announcements run when the
   lock is released.
3. ``on_join`` and ``on_leave`` come in pairs, per connection and room.
4. An effect looks again whether the connection is open and which user it belongs to. A
   decision for another user is void.
5. A decision that takes rights away runs to completion even if the caller is cancelled.
6. The access controller's answer is about the user and roles that the connection had when it
   was asked. If they have changed when the answer comes, the controller is asked again.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial

from eyewall.application.cluster.peers import Cluster
from eyewall.application.concurrency.locks import KeyedLock
from eyewall.application.concurrency.tasks import Effects, TaskSet, is_end
from eyewall.application.connections.hooks import Event, Hooks
from eyewall.application.connections.registry import BroadcastGroups, Connection
from eyewall.application.outbound.held_members import HeldMembers
from eyewall.application.outbound.sender import Sender
from eyewall.application.ports.logging import shown, told
from eyewall.application.ports.plugins import AccessController, Logger, method
from eyewall.application.rooms.announcements import Announcements, JoinLeaveQueue
from eyewall.application.rooms.divergence import Divergence
from eyewall.application.rooms.seats import JoinResult, LeaveResult, Seats
from eyewall.application.rooms.stream import Streams
from eyewall.domain.errors import ConnectionClosed, Forbidden, Refused, Unavailable, code_of
from eyewall.domain.history import Position
from eyewall.domain.identity import ConnId, ConnMeta, RoomId, UserId
from eyewall.domain.identity import name as check_name
from eyewall.domain.membership import Membership
from eyewall.domain.room import JoinOptions, LeaveReason, RoomRole

MAX_ROOMS = 1000
"""Rooms that one connection may be in: more than a person can follow. Each costs an entry
here and one in the cluster's state, and leaving them all is work for both."""


KICKED = "system:kicked"


Precheck = Callable[[], Awaitable[None]]


_ANNOUNCED = LeaveResult()
"""A leave that the deciding node announces, if it is announced."""


class TooManyRooms(Forbidden):
    """The connection is in as many rooms as one may be."""

    code = Forbidden.code


class _UserChanged(Exception):
    """The connection belongs to another user by now."""


class RoomMembership:
    """Joining and leaving, for connections of this node."""

    def __init__(
        self,
        *,
        seats: Seats,
        cluster: Cluster,
        broadcast_groups: BroadcastGroups,
        held_members: HeldMembers,
        announcements: Announcements,
        streams: Streams,
        sender: Sender,
        hooks: Hooks,
        logger: Logger,
        authorization: JoinAuthorization,
    ) -> None:
        self._seats = seats
        self.moving = seats.moving
        self._cluster = cluster
        self._broadcast_groups = broadcast_groups
        self._held_members = held_members
        self._announcements = announcements
        self._streams = streams
        self._sender = sender
        self._hooks = hooks
        self._logger = logger
        self._authorization = authorization
        self._locks = KeyedLock()
        self._join_leave_queue = JoinLeaveQueue(logger)
        self._tasks = TaskSet(logger)
        self.effects = Effects(logger)
        self._on_leave: list[Callable[[Connection, RoomId], None]] = []
        self._positions_at_join: dict[ConnId, dict[RoomId, Position]] = {}
        """Positions of rooms at the join of connections that were not admitted yet."""
        self._removing: set[tuple[ConnId, RoomId]] = set()
        """Connections that have lost a seat and wait for their lock, while the seat was about to
        be moved to another user: it must not come back under that user."""

    def on_leave(self, step: Callable[[Connection, RoomId], None]) -> None:
        """Call ``step`` when a connection has left a room; it never waits."""
        self._on_leave.append(step)

    # --- joining

    async def join(
        self,
        room_id: RoomId,
        conn: Connection,
        options: JoinOptions | None = None,
        *,
        hold: bool = False,
        fresh: bool = False,
        precheck: Precheck | None = None,
    ) -> Membership:
        """Join a connection to a room and return its membership, also if it is a member already.

        With ``hold`` it gets nothing of the room's history until ``Streams.release_member``. With
        ``fresh`` the history store is read in any case: the membership's position is that of
        the store's last message, and the join fails while the store is away. ``precheck`` is
        awaited on every try; it raises if the connection's user may not make this request.

        Raises ``Forbidden`` (access controller), ``JoinForbidden``, ``RoomFull``,
        ``RoomNotFound``, ``ConnectionClosed`` or ``Unavailable``.
        """
        check_name(room_id, "room_id")
        asked_by = conn.user_id
        for _ in range(MAX_TRIES):
            owner = await self._authorization.check(room_id, conn)
            if precheck is not None:
                await precheck()
            async with self._locks.acquire(conn.id):
                if conn.user_id != asked_by:
                    options, asked_by = _options_for_new_user(options, asked_by), conn.user_id
                membership = await self._join(room_id, conn, owner, options, hold, fresh)
            await self._join_leave_queue.run(conn)
            if membership is not None:
                return membership
        raise Forbidden(USER_KEEPS_CHANGING)

    async def _join(
        self,
        room_id: RoomId,
        conn: Connection,
        owner: ConnMeta,
        options: JoinOptions | None,
        hold: bool,
        fresh: bool,
    ) -> Membership | None:
        """Join; None, and not joined, if the connection belongs to another user by now."""
        if not conn.is_open:
            raise ConnectionClosed(f"{conn.id} is closed")
        if room_id in self._seats.seats_under_old_user(conn):
            await self._move(room_id, conn)
        if not conn.meta.is_same_owner(owner):
            return None
        if room_id in conn.roles:
            as_of = self._streams.changes
            taken = await self._seats.take(room_id, conn, options)
            if fresh:
                await self._streams.open(room_id, taken.history, as_of, fresh=True)
            if not conn.meta.is_same_owner(owner):
                return None  # its seat is moved first
            conn.enter(room_id, taken.role)
            return self._membership(room_id, conn, taken, hold)
        if len(conn.roles) >= MAX_ROOMS:
            raise TooManyRooms(f"a connection may be in {MAX_ROOMS} rooms")
        # Subscribed before the decision: a message published after the ack must arrive.
        await self._cluster.hear_room(room_id)
        try:
            taken = await self._take_seat(room_id, conn, owner, options, fresh)
        except BaseException as error:
            self._cluster.leave_room(room_id)
            self._streams.remove_if_empty(room_id)
            if isinstance(error, _UserChanged):
                return None
            if isinstance(error, ConnectionClosed) or not isinstance(error, Refused):
                # The state may have a seat that this node does not know of.
                self._tasks.spawn(self._undo_join(room_id, conn))
            raise
        # No wait from here on: the next message that is released is the member's first.
        self._apply_join(room_id, conn, taken)
        return self._membership(room_id, conn, taken, hold)

    async def _take_seat(
        self,
        room_id: RoomId,
        conn: Connection,
        owner: ConnMeta,
        options: JoinOptions | None,
        fresh: bool,
    ) -> JoinResult:
        """Take a seat and make sure of the sequencer; the connection is open, and still
        ``owner``'s, then."""
        as_of = self._streams.changes
        if not conn.meta.is_same_owner(owner):
            raise _UserChanged
        taken = await self._seats.take(room_id, conn, options)
        await self._streams.open(room_id, taken.history, as_of, fresh=fresh)
        if not conn.is_open:
            raise ConnectionClosed(f"{conn.id} is closed")
        if not conn.meta.is_same_owner(owner):
            await self._seats.undo(room_id, conn)
            raise _UserChanged
        return taken

    def _membership(
        self, room_id: RoomId, conn: Connection, taken: JoinResult, hold: bool
    ) -> Membership:
        at = self._streams.position(room_id)
        if hold or not conn.is_admitted:
            self._streams.hold_member(room_id, conn.link)
        if at is not None and not conn.is_admitted:
            self._positions_at_join.setdefault(conn.id, {}).setdefault(room_id, at)
        epoch, offset = (None, None) if at is None else (at.epoch, at.offset)
        return Membership(room_id, conn.id, taken.role, taken.members, epoch, offset)

    def _apply_join(self, room_id: RoomId, conn: Connection, taken: JoinResult) -> None:
        """Apply a join on this node."""
        self._broadcast_groups.add(room_id, conn.link)
        conn.enter(room_id, taken.role)
        if not conn.is_admitted:
            self._held_members.hold(room_id, conn)
        user_id = conn.user_id

        async def notice() -> None:
            await self._hooks.tell(Event.JOIN, room_id, conn)
            if taken.announce:
                await self._announcements.join(room_id, conn.id, user_id, taken.connections)

        self._join_leave_queue.add(conn, notice)

    async def _undo_join(self, room_id: RoomId, conn: Connection) -> None:
        async with self._locks.acquire(conn.id):
            if room_id not in conn.roles:
                await self._give_back(room_id, conn, LeaveReason.DISCONNECTED)

    def admit(self, conn: Connection) -> Mapping[RoomId, Position]:
        """Release the rooms that a connection has joined before it was admitted. Returns the
        positions of those with history: the caller sends what came since, and then calls
        ``Streams.release_member``."""
        self._release_all(conn)
        positions = self._positions_at_join.pop(conn.id, {})
        return {room_id: at for room_id, at in positions.items() if room_id in conn.roles}

    # --- leaving

    async def leave(
        self, room_id: RoomId, conn: Connection, reason: LeaveReason = LeaveReason.LEFT
    ) -> bool:
        """Remove a connection from a room; False if it was not a member."""
        return await self.effects.run_to_completion(
            partial(self._leave, room_id, conn, reason), partial(self._join_leave_queue.run, conn)
        )

    async def _leave(self, room_id: RoomId, conn: Connection, reason: LeaveReason) -> bool:
        async with self._locks.acquire(conn.id):
            if room_id not in conn.roles or not conn.is_open:
                return False
            left = await self._seats.give_back(room_id, conn, reason)
            self._remove(room_id, conn, reason, left)
            return True

    async def leave_all(self, conn: Connection) -> int:
        """Take a connection out of all rooms; returns of how many."""
        return sum([await self.leave(room_id, conn) for room_id in list(conn.roles)])

    async def apply_removal(
        self, room_id: RoomId, conns: Collection[Connection], why: LeaveReason, reason: str
    ) -> None:
        """Apply the cluster's decision to remove ``conns``; each client gets the ``reason``."""
        moving = {(conn.id, room_id) for conn in conns if room_id in self.rooms_to_settle(conn)}
        self._removing |= moving
        try:
            for conn in conns:
                async with self._locks.acquire(conn.id):
                    if room_id in conn.roles and not await self._seats.holds(room_id, conn):
                        self._expel(room_id, conn, why, reason)
        finally:
            self._removing -= moving
        for conn in conns:
            await self._join_leave_queue.run(conn)

    async def apply_role(
        self, room_id: RoomId, conns: Collection[Connection], role: RoomRole
    ) -> None:
        """Apply the cluster's decision on the role of ``conns``.

        The state is read again: a later decision may have come first.
        """
        for conn in conns:
            async with self._locks.acquire(conn.id):
                if room_id in conn.roles:
                    now = await self._seats.role(room_id, conn)
                    conn.enter(room_id, role if now is None else now)

    def _expel(
        self,
        room_id: RoomId,
        conn: Connection,
        why: LeaveReason,
        reason: str,
        left: LeaveResult = _ANNOUNCED,
    ) -> None:
        """Remove a member whose seat is gone by another's decision. A connection that has ended
        leaves in ``after_end``."""
        if conn.is_open:
            self._remove(room_id, conn, why, left)
            data = {"room": room_id, "reason": reason}
            notice = self._sender.encode_notice(KICKED, "kicked", data)
            self._sender.enqueue_to_each([conn], notice)

    def ended(self, conn: Connection) -> None:
        """Stop sending to a connection whose end is decided."""
        self._held_members.discard(conn.held, conn)
        for room_id in conn.roles:
            self._broadcast_groups.discard(room_id, conn.link)
        self._positions_at_join.pop(conn.id, None)

    async def after_end(self, conn: Connection) -> None:
        """Give back the seats of a connection that has ended; returns after its hooks."""
        why = LeaveReason.DISCONNECTED
        async with self._locks.acquire(conn.id):
            away = False
            for room_id in list(conn.roles):
                # The state is away: each further room would wait as long.
                left = None if away else await self._give_back(room_id, conn, why)
                if left is None:
                    away = True
                    self._seats.note_divergence(room_id, conn)
                self._apply_leave(room_id, conn, why, left or LeaveResult())
            self._seats.forget(conn)
        await self._join_leave_queue.settled(conn)

    async def _give_back(
        self, room_id: RoomId, conn: Connection, why: LeaveReason
    ) -> LeaveResult | None:
        try:
            return await self._seats.give_back(room_id, conn, why)
        except Unavailable as error:
            # The seat is marked as diverging, and taken back when the state is there.
            self._logger.warning("seat_not_released", room=room_id, error=told(error))
            return None

    def _remove(
        self, room_id: RoomId, conn: Connection, why: LeaveReason, left: LeaveResult
    ) -> None:
        # A connection that has ended keeps its rooms, for the hooks of the disconnect.
        conn.roles.pop(room_id, None)
        self._apply_leave(room_id, conn, why, left)

    def _apply_leave(
        self, room_id: RoomId, conn: Connection, why: LeaveReason, left: LeaveResult
    ) -> None:
        """Apply a leave on this node."""
        self._seats.forget_room(room_id, conn)
        self._held_members.discard((room_id,), conn)
        self._broadcast_groups.discard(room_id, conn.link)
        self._streams.release_member(room_id, conn.link)
        self._streams.remove_if_empty(room_id)
        self._cluster.leave_room(room_id)
        for step in self._on_leave:
            step(conn, room_id)

        async def notice() -> None:
            await self._hooks.tell(Event.LEAVE, room_id, conn, why)
            await self._announcements.leave(room_id, conn.id, left)

        self._join_leave_queue.add(conn, notice)

    # --- another user, another lease

    def user_changed(self, conn: Connection, before: UserId | None) -> None:
        """The connection belongs to another user than ``before``; ``change_user`` has to follow.

        It gets nothing of its rooms until it is decided whether the new user may be in them. An
        anonymous connection stays in its rooms if there is no access controller.
        """
        self._seats.user_changed(conn, before)
        rooms_to_settle = self._seats.seats_under_old_user(conn)
        self._release_all(conn)
        if conn.is_admitted and (before is not None or self._authorization.is_guarded):
            for room_id in rooms_to_settle:
                if room_id in conn.roles:
                    self._held_members.hold(room_id, conn)

    def _release_all(self, conn: Connection) -> None:
        """Release the rooms in which the connection's membership is decided."""
        if conn.held and conn.is_admitted:
            self._held_members.release(
                conn.held.difference(self._seats.seats_under_old_user(conn)), conn
            )

    def rooms_to_settle(self, conn: Connection) -> Collection[RoomId]:
        """The rooms where the connection's seat is still that of its former user."""
        return self._seats.seats_under_old_user(conn)

    async def settle(self, room_id: RoomId, conn: Connection) -> None:
        """Return when the connection's seat is that of its user, not of the former one.
        Raises ``Unavailable`` if the state is away."""
        while room_id in self._seats.seats_under_old_user(conn) and conn.is_open:
            async with self._locks.acquire(conn.id):
                if room_id in self._seats.seats_under_old_user(conn):
                    await self._move(room_id, conn)
            await self._join_leave_queue.run(conn)

    async def change_user(self, conn: Connection) -> None:
        """Move the connection's seats to its new user; ``run_notices`` has to follow.

        It is removed from rooms that the new user may not join.
        """
        async with self._locks.acquire(conn.id):
            await self._move_all(conn)

    async def run_notices(self, conn: Connection) -> None:
        """Run the hooks and announcements of ``change_user``."""
        await self._join_leave_queue.run(conn)

    async def _move_all(self, conn: Connection) -> None:
        for room_id in self._seats.seats_under_old_user(conn):
            if conn.is_open and room_id in conn.roles:
                await self._move(room_id, conn)

    async def _move(self, room_id: RoomId, conn: Connection) -> None:
        left: LeaveResult | None = None
        for _ in range(MAX_TRIES):
            refused = await self._refusal(room_id, conn)
            owner = conn.meta
            if left is None:
                left = await self._seats.give_back(room_id, conn, LeaveReason.LEFT)
                role = conn.roles.get(room_id)
                if role is None:
                    return  # it is out: there is nothing to move
                # The rights of an anonymous connection pass to its user; a user's rights don't.
                options = _options_for_new_user(JoinOptions(role=role, force=True), left.user_id)
                # Undecided until it has a seat under the new user.
                self._seats.keep_under(room_id, conn, left.user_id)
            if (conn.id, room_id) in self._removing:
                return  # it is removed when this lock is released
            if not conn.meta.is_same_owner(owner):
                continue
            try:
                if refused is not None:
                    raise refused
                taken = await self._seats.take(room_id, conn, options)
            except Refused as error:
                self._expel(room_id, conn, LeaveReason.KICKED, code_of(error), left)
                return
            if conn.meta.is_same_owner(owner):
                self._apply_move(room_id, conn, taken, left)
                return
            await self._seats.undo(room_id, conn)
        self._expel(room_id, conn, LeaveReason.KICKED, Forbidden.code, left or _ANNOUNCED)

    async def _refusal(self, room_id: RoomId, conn: Connection) -> Refused | None:
        """The refusal of the connection's user, None if there is none. An access controller
        that fails refuses."""
        try:
            return await self._authorization.refusal(room_id, conn)
        except BaseException as error:  # (the application's own code)
            if is_end(error):
                raise
            self._logger.error(
                "access_not_decided", room=room_id, conn_id=conn.id, error=shown(error)
            )
            return Forbidden(f"you may not be in {room_id}")

    def _apply_move(
        self, room_id: RoomId, conn: Connection, taken: JoinResult, left: LeaveResult
    ) -> None:
        """Apply on this node that a member belongs to another user."""
        conn.enter(room_id, taken.role)
        self._seats.forget_room(room_id, conn)
        self._release_all(conn)
        user_id = conn.user_id

        async def notice() -> None:
            if left.announce:
                await self._announcements.leave(room_id, conn.id, left)
                await self._announcements.join(room_id, conn.id, user_id, taken.connections)

        self._join_leave_queue.add(conn, notice)

    async def reconcile(
        self, conn_id: ConnId, conn: Connection | None, divergence: Divergence
    ) -> None:
        """Compare diverging seats with the state, and correct the differences.

        ``conn`` is None for a connection that has ended. Raises ``Unavailable``.
        """
        async with self._locks.acquire(conn_id):
            if conn is not None:
                await self._move_all(conn)
            for (room_id, name), member in divergence.seats.items():
                if conn is None or (room_id, name) not in self._seats.of(conn):
                    await self._remove_orphan(room_id, conn_id, name, member=member)
            if conn is not None:
                failed = {room_id for room_id, _ in divergence.seats}
                for room_id in list(conn.roles):
                    if divergence.everything or room_id in failed:
                        await self._restore_seat(room_id, conn)
                    elif divergence.seats_missing:
                        await self._apply_missed_decision(room_id, conn)
        if conn is not None:
            await self._join_leave_queue.run(conn)

    async def _remove_orphan(
        self, room_id: RoomId, conn_id: ConnId, name: UserId | None, *, member: bool
    ) -> None:
        """Take a seat without a connection out of the state."""
        why = LeaveReason.DISCONNECTED
        left = await self._seats.take_away(room_id, conn_id, name, why, member=member)
        if member:
            await self._announcements.leave(room_id, conn_id, left)

    async def _restore_seat(self, room_id: RoomId, conn: Connection) -> None:
        """Put back a seat that the state may have lost, unless the room is full by now."""
        role = conn.roles.get(room_id)
        if role is None or not conn.is_open:
            return
        try:
            taken = await self._seats.take(room_id, conn, JoinOptions(role=role, force=True))
        except Refused as error:
            self._expel(room_id, conn, LeaveReason.KICKED, code_of(error))
            return
        if conn.is_open and room_id in conn.roles:
            conn.enter(room_id, taken.role)

    async def _apply_missed_decision(self, room_id: RoomId, conn: Connection) -> None:
        """Apply another node's decision whose request has not arrived here."""
        found = await self._seats.role_or_reason(room_id, conn)
        if room_id not in conn.roles:
            return
        if isinstance(found, RoomRole):
            conn.enter(room_id, found)
        else:
            self._expel(room_id, conn, found, found.value)

    async def close(self) -> None:
        """End what is under way."""
        await self.effects.close()  # first: a cancelled task leaves its notices to others
        await self._join_leave_queue.close()
        await self._announcements.close()
        await self._tasks.close()


def _options_for_new_user(options: JoinOptions | None, before: UserId | None) -> JoinOptions | None:
    """Return the options of a join after a change of user. They lack the rights that ``options``
    gave to the user ``before``; the rights of an anonymous connection are kept."""
    if before is None or options is None:
        return options
    return JoinOptions(role=min(options.role, RoomRole.MEMBER))


MAX_TRIES = 3
"""Attempts of a decision while the connection's user changes. After these it is refused: a
connection whose user keeps changing would keep the access controller busy for ever."""


USER_KEEPS_CHANGING = "this connection goes on becoming somebody else"


class JoinAuthorization:
    """Asks the access controller about each join, ``hub.join`` and ``force`` included."""

    def __init__(self, access: AccessController | None) -> None:
        self._can_subscribe = None if access is None else method(access, "can_subscribe")

    @property
    def is_guarded(self) -> bool:
        """Whether there is an access controller."""
        return self._can_subscribe is not None

    async def check(self, room_id: RoomId, conn: Connection) -> ConnMeta:
        """Return the connection's user and roles, as of the answer, that may join the room.

        Raises ``Forbidden`` if they may not.
        """
        if self._can_subscribe is None:
            return conn.meta
        for _ in range(MAX_TRIES):
            meta = conn.meta
            allowed = self._can_subscribe(meta, room_id)
            if inspect.isawaitable(allowed):
                allowed = await allowed
            if conn.meta.is_same_owner(meta):
                if not allowed:
                    raise Forbidden(f"you may not join {room_id}")
                return conn.meta
        raise Forbidden(USER_KEEPS_CHANGING)

    async def refusal(self, room_id: RoomId, conn: Connection) -> Forbidden | None:
        """What ``check`` would raise."""
        try:
            await self.check(room_id, conn)
        except Forbidden as error:
            return error
        return None
