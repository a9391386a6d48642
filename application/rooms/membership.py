"""In and out of rooms: the cluster's decision first, then its effect on this node.

Rules of this file:

1. What this node knows of its own members follows the decision, and is never asked
   for a decision about others.
2. Steps that wait between a decision and its effect take turns per connection; hooks
   and announcements follow when the turn is over.
3. ``on_join`` and ``on_leave`` come in pairs, per connection and room.
4. An effect asks again whether the connection is open, and whose it is: it may have
   ended, or become another user's, meanwhile. What was decided for that other is void.
5. What takes rights away is seen through, whatever happens to the task that asked.


Who may listen where, by the access controller's word.

A word is about the owner that the connection had when it was asked for. Where the
connection has become another user's, or got other roles, while the controller thought
about it, the word is void, and the controller is asked again.
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


Admit = Callable[[], Awaitable[None]]


_ANNOUNCED = LeaveResult()
"""The others hear of it from whoever decided it, if at all."""


class TooManyRooms(Forbidden):
    """The connection is in as many rooms as one may be."""

    code = Forbidden.code


class _Another(Exception):
    """The connection has become another user's meanwhile."""


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
        door: JoinAuthorization,
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
        self._door = door
        self._locks = KeyedLock()
        self._notices = JoinLeaveQueue(logger)
        self._tasks = TaskSet(logger)
        self.effects = Effects(logger)
        self._on_gone: list[Callable[[Connection, RoomId], None]] = []
        self._places: dict[ConnId, dict[RoomId, Position]] = {}
        """Where connections that are not let in yet stood in rooms when they joined them."""
        self._removing: set[tuple[ConnId, RoomId]] = set()
        """Connections that have lost a seat, and wait for their turn to be put out, while
        that seat was about to be moved: it must not come back under another name."""

    def on_gone(self, step: Callable[[Connection, RoomId], None]) -> None:
        """Have ``step`` run, without waiting, when a connection is out of a room."""
        self._on_gone.append(step)

    # --- joining

    async def join(
        self,
        room_id: RoomId,
        conn: Connection,
        options: JoinOptions | None = None,
        *,
        hold: bool = False,
        fresh: bool = False,
        admit: Admit | None = None,
    ) -> Membership:
        """Let a connection in; the membership that it has already is returned.

        With ``hold`` it gets nothing of the room's history until ``Streams.let_go``. With
        ``fresh`` the history store is read in any case: the membership's position is that of
        the store's last message, and the join fails while the store is away. ``admit`` is
        asked, on every try, whether the owner may ask for this at all.

        Raises ``Forbidden`` (access controller), ``JoinForbidden``, ``RoomFull``,
        ``RoomNotFound``, ``ConnectionClosed`` or ``Unavailable``.
        """
        check_name(room_id, "room_id")
        asked_by = conn.user_id
        for _ in range(TRIES):
            owner = await self._door.check(room_id, conn)
            if admit is not None:
                await admit()
            async with self._locks.acquire(conn.id):
                if conn.user_id != asked_by:
                    options, asked_by = _carried(options, asked_by), conn.user_id
                membership = await self._join(room_id, conn, owner, options, hold, fresh)
            await self._notices.tell(conn)
            if membership is not None:
                return membership
        raise Forbidden(CHANGING)

    async def _join(
        self,
        room_id: RoomId,
        conn: Connection,
        owner: ConnMeta,
        options: JoinOptions | None,
        hold: bool,
        fresh: bool,
    ) -> Membership | None:
        """Seat the connection; None if it is not ``owner``'s any more, and out then."""
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
        # Heard before it is decided: what is published after the ack must arrive.
        await self._cluster.hear_room(room_id)
        try:
            taken = await self._seat(room_id, conn, owner, options, fresh)
        except BaseException as error:
            self._cluster.leave_room(room_id)
            self._streams.left(room_id)
            if isinstance(error, _Another):
                return None
            if isinstance(error, ConnectionClosed) or not isinstance(error, Refused):
                # It may have got a seat that nobody knows of.
                self._tasks.spawn(self._take_back(room_id, conn))
            raise
        # Nothing waits from here on: what passes the gate next is the member's first.
        self._enter(room_id, conn, taken)
        return self._membership(room_id, conn, taken, hold)

    async def _seat(
        self,
        room_id: RoomId,
        conn: Connection,
        owner: ConnMeta,
        options: JoinOptions | None,
        fresh: bool,
    ) -> JoinResult:
        """Take a seat and have a gate; the connection is open, and ``owner``'s, then."""
        as_of = self._streams.changes
        if not conn.meta.is_same_owner(owner):
            raise _Another
        taken = await self._seats.take(room_id, conn, options)
        await self._streams.open(room_id, taken.history, as_of, fresh=fresh)
        if not conn.is_open:
            raise ConnectionClosed(f"{conn.id} is closed")
        if not conn.meta.is_same_owner(owner):
            await self._seats.undo(room_id, conn)
            raise _Another
        return taken

    def _membership(
        self, room_id: RoomId, conn: Connection, taken: JoinResult, hold: bool
    ) -> Membership:
        at = self._streams.position(room_id)
        if hold or not conn.is_admitted:
            self._streams.hold(room_id, conn.link)
        if at is not None and not conn.is_admitted:
            self._places.setdefault(conn.id, {}).setdefault(room_id, at)
        epoch, offset = (None, None) if at is None else (at.epoch, at.offset)
        return Membership(room_id, conn.id, taken.role, taken.members, epoch, offset)

    def _enter(self, room_id: RoomId, conn: Connection, taken: JoinResult) -> None:
        """Let what was decided take effect here."""
        self._broadcast_groups.add(room_id, conn.link)
        conn.enter(room_id, taken.role)
        if not conn.is_admitted:
            self._held_members.hold(room_id, conn)
        user_id = conn.user_id

        async def notice() -> None:
            await self._hooks.tell(Event.JOIN, room_id, conn)
            if taken.announce:
                await self._announcements.join(room_id, conn.id, user_id, taken.connections)

        self._notices.note(conn, notice)

    async def _take_back(self, room_id: RoomId, conn: Connection) -> None:
        async with self._locks.acquire(conn.id):
            if room_id not in conn.roles:
                await self._give_back(room_id, conn, LeaveReason.DISCONNECTED)

    def admit(self, conn: Connection) -> Mapping[RoomId, Position]:
        """Let a connection that has just been let in hear the rooms that it has joined
        before that. Returns where it stood in those with history: what came since then it
        has to be sent, and ``Streams.let_go`` has to follow."""
        self._release_all(conn)
        places = self._places.pop(conn.id, {})
        return {room_id: at for room_id, at in places.items() if room_id in conn.roles}

    # --- leaving

    async def leave(
        self, room_id: RoomId, conn: Connection, reason: LeaveReason = LeaveReason.LEFT
    ) -> bool:
        """Take a connection out; False if it was not in."""
        return await self.effects.run_to_completion(
            partial(self._leave, room_id, conn, reason), partial(self._notices.tell, conn)
        )

    async def _leave(self, room_id: RoomId, conn: Connection, reason: LeaveReason) -> bool:
        async with self._locks.acquire(conn.id):
            if room_id not in conn.roles or not conn.is_open:
                return False
            left = await self._seats.give_back(room_id, conn, reason)
            self._exit(room_id, conn, reason, left)
            return True

    async def leave_all(self, conn: Connection) -> int:
        """Take a connection out of all rooms; returns of how many."""
        return sum([await self.leave(room_id, conn) for room_id in list(conn.roles)])

    async def removed(
        self, room_id: RoomId, conns: Collection[Connection], why: LeaveReason, reason: str
    ) -> None:
        """Let the cluster's decision to remove ``conns`` take effect here.

        Each that was in is told ``reason``.
        """
        moving = {(conn.id, room_id) for conn in conns if room_id in self.unsettled(conn)}
        self._removing |= moving
        try:
            for conn in conns:
                async with self._locks.acquire(conn.id):
                    if room_id in conn.roles and not await self._seats.holds(room_id, conn):
                        self._put_out(room_id, conn, why, reason)
        finally:
            self._removing -= moving
        for conn in conns:
            await self._notices.tell(conn)

    async def promoted(
        self, room_id: RoomId, conns: Collection[Connection], role: RoomRole
    ) -> None:
        """Let the cluster's decision on the role of ``conns`` take effect here.

        The state is asked again: joins and other decisions may have overtaken this one.
        """
        for conn in conns:
            async with self._locks.acquire(conn.id):
                if room_id in conn.roles:
                    now = await self._seats.role(room_id, conn)
                    conn.enter(room_id, role if now is None else now)

    def _put_out(
        self,
        room_id: RoomId,
        conn: Connection,
        why: LeaveReason,
        reason: str,
        left: LeaveResult = _ANNOUNCED,
    ) -> None:
        """Its seat is gone, and not by its own doing; who has ended leaves by itself."""
        if conn.is_open:
            self._exit(room_id, conn, why, left)
            data = {"room": room_id, "reason": reason}
            notice = self._sender.encode_notice(KICKED, "kicked", data)
            self._sender.enqueue_to_each([conn], notice)

    def ended(self, conn: Connection) -> None:
        """The end of a connection is decided: no room sends to it any more."""
        self._held_members.discard(conn.held, conn)
        for room_id in conn.roles:
            self._broadcast_groups.discard(room_id, conn.link)
        self._places.pop(conn.id, None)

    async def after_end(self, conn: Connection) -> None:
        """Give back the seats of a connection that has ended; the hooks have run then."""
        why = LeaveReason.DISCONNECTED
        async with self._locks.acquire(conn.id):
            away = False
            for room_id in list(conn.roles):
                # Away: each of the others would have to wait as long.
                left = None if away else await self._give_back(room_id, conn, why)
                if left is None:
                    away = True
                    self._seats.doubt(room_id, conn)
                self._left(room_id, conn, why, left or LeaveResult())
            self._seats.forget(conn)
        await self._notices.settled(conn)

    async def _give_back(
        self, room_id: RoomId, conn: Connection, why: LeaveReason
    ) -> LeaveResult | None:
        try:
            return await self._seats.give_back(room_id, conn, why)
        except Unavailable as error:
            # It is in doubt now, and taken back as soon as the state is there.
            self._logger.warning("seat_not_released", room=room_id, error=told(error))
            return None

    def _exit(self, room_id: RoomId, conn: Connection, why: LeaveReason, left: LeaveResult) -> None:
        # Who has ended keeps the list of its rooms, for the hooks of the disconnect.
        conn.roles.pop(room_id, None)
        self._left(room_id, conn, why, left)

    def _left(self, room_id: RoomId, conn: Connection, why: LeaveReason, left: LeaveResult) -> None:
        """Let it take effect here that a connection is out of a room."""
        self._seats.forget_room(room_id, conn)
        self._held_members.discard((room_id,), conn)
        self._broadcast_groups.discard(room_id, conn.link)
        self._streams.let_go(room_id, conn.link)
        self._streams.left(room_id)
        self._cluster.leave_room(room_id)
        for step in self._on_gone:
            step(conn, room_id)

        async def notice() -> None:
            await self._hooks.tell(Event.LEAVE, room_id, conn, why)
            await self._announcements.leave(room_id, conn.id, left)

        self._notices.note(conn, notice)

    # --- another user, another lease

    def renamed(self, conn: Connection, before: UserId | None) -> None:
        """The connection is another user's now than ``before``; ``become`` has to follow.

        Until it is decided whether that one may be in a room it hears nothing of it. Who was
        nobody keeps its place where there is nobody to ask.
        """
        self._seats.renamed(conn, before)
        unsettled = self._seats.seats_under_old_user(conn)
        self._release_all(conn)
        if conn.is_admitted and (before is not None or self._door.is_guarded):
            for room_id in unsettled:
                if room_id in conn.roles:
                    self._held_members.hold(room_id, conn)

    def _release_all(self, conn: Connection) -> None:
        """Let a member hear the rooms in which nothing is to be decided any more."""
        if conn.held and conn.is_admitted:
            self._held_members.release(
                conn.held.difference(self._seats.seats_under_old_user(conn)), conn
            )

    def unsettled(self, conn: Connection) -> Collection[RoomId]:
        """The rooms where the connection's membership still is that of another user."""
        return self._seats.seats_under_old_user(conn)

    async def settle(self, room_id: RoomId, conn: Connection) -> None:
        """Return when the connection's membership is its user's own, not that of the user
        whose it was before. Raises ``Unavailable`` when that can't be decided."""
        while room_id in self._seats.seats_under_old_user(conn) and conn.is_open:
            async with self._locks.acquire(conn.id):
                if room_id in self._seats.seats_under_old_user(conn):
                    await self._move(room_id, conn)
            await self._notices.tell(conn)

    async def become(self, conn: Connection) -> None:
        """Move the seats of a connection that has become another user's; ``tell`` has to
        follow.

        Where the new user would not be let in, it is out.
        """
        async with self._locks.acquire(conn.id):
            await self._move_all(conn)

    async def tell(self, conn: Connection) -> None:
        """Have the hooks and the others hear of what ``become`` has changed."""
        await self._notices.tell(conn)

    async def _move_all(self, conn: Connection) -> None:
        for room_id in self._seats.seats_under_old_user(conn):
            if conn.is_open and room_id in conn.roles:
                await self._move(room_id, conn)

    async def _move(self, room_id: RoomId, conn: Connection) -> None:
        left: LeaveResult | None = None
        for _ in range(TRIES):
            refused = await self._word(room_id, conn)
            owner = conn.meta
            if left is None:
                left = await self._seats.give_back(room_id, conn, LeaveReason.LEFT)
                role = conn.roles.get(room_id)
                if role is None:
                    return  # it is out: there is nothing to move
                # Where it was let in as nobody, it was let in as itself, and stays.
                options = _carried(JoinOptions(role=role, force=True), left.user_id)
                # Until it has another: what it had by the other's right is undecided.
                self._seats.stays(room_id, conn, left.user_id)
            if (conn.id, room_id) in self._removing:
                return  # it is put out when this turn is over
            if not conn.meta.is_same_owner(owner):
                continue
            try:
                if refused is not None:
                    raise refused
                taken = await self._seats.take(room_id, conn, options)
            except Refused as error:
                self._put_out(room_id, conn, LeaveReason.KICKED, code_of(error), left)
                return
            if conn.meta.is_same_owner(owner):
                self._moved(room_id, conn, taken, left)
                return
            await self._seats.undo(room_id, conn)
        self._put_out(room_id, conn, LeaveReason.KICKED, Forbidden.code, left or _ANNOUNCED)

    async def _word(self, room_id: RoomId, conn: Connection) -> Refused | None:
        """Why the connection's owner may not be in the room. A controller that fails has
        not let it in."""
        try:
            return await self._door.refusal(room_id, conn)
        except BaseException as error:  # (the application's own code)
            if is_end(error):
                raise
            self._logger.error(
                "access_not_decided", room=room_id, conn_id=conn.id, error=shown(error)
            )
            return Forbidden(f"you may not be in {room_id}")

    def _moved(
        self, room_id: RoomId, conn: Connection, taken: JoinResult, left: LeaveResult
    ) -> None:
        """Let it take effect here that a member is another user's."""
        conn.enter(room_id, taken.role)
        self._seats.forget_room(room_id, conn)
        self._release_all(conn)
        user_id = conn.user_id

        async def notice() -> None:
            if left.announce:
                await self._announcements.leave(room_id, conn.id, left)
                await self._announcements.join(room_id, conn.id, user_id, taken.connections)

        self._notices.note(conn, notice)

    async def mend(self, conn_id: ConnId, conn: Connection | None, doubt: Divergence) -> None:
        """Compare seats that are in doubt with the state, and put right what differs.

        ``conn`` is None for a connection that is gone. Raises ``Unavailable``.
        """
        async with self._locks.acquire(conn_id):
            if conn is not None:
                await self._move_all(conn)
            for (room_id, name), member in doubt.seats.items():
                if conn is None or (room_id, name) not in self._seats.of(conn):
                    await self._take_away(room_id, conn_id, name, member=member)
            if conn is not None:
                failed = {room_id for room_id, _ in doubt.seats}
                for room_id in list(conn.roles):
                    if doubt.whole or room_id in failed:
                        await self._put_back(room_id, conn)
                    elif doubt.unsure:
                        await self._follow(room_id, conn)
        if conn is not None:
            await self._notices.tell(conn)

    async def _take_away(
        self, room_id: RoomId, conn_id: ConnId, name: UserId | None, *, member: bool
    ) -> None:
        """Take a seat that nobody sits on out of the state."""
        why = LeaveReason.DISCONNECTED
        left = await self._seats.take_away(room_id, conn_id, name, why, member=member)
        if member:
            await self._announcements.leave(room_id, conn_id, left)

    async def _put_back(self, room_id: RoomId, conn: Connection) -> None:
        """Put back a seat that the state may have lost. One that somebody else has taken
        meanwhile stays theirs."""
        role = conn.roles.get(room_id)
        if role is None or not conn.is_open:
            return
        try:
            taken = await self._seats.take(room_id, conn, JoinOptions(role=role, force=True))
        except Refused as error:
            self._put_out(room_id, conn, LeaveReason.KICKED, code_of(error))
            return
        if conn.is_open and room_id in conn.roles:
            conn.enter(room_id, taken.role)

    async def _follow(self, room_id: RoomId, conn: Connection) -> None:
        """Let it take effect here what others have decided, if this node has not heard of it."""
        found = await self._seats.verdict(room_id, conn)
        if room_id not in conn.roles:
            return
        if isinstance(found, RoomRole):
            conn.enter(room_id, found)
        else:
            self._put_out(room_id, conn, found, found.value)

    async def close(self) -> None:
        """End what is under way."""
        await self.effects.close()  # first: who is cancelled leaves its notices to others
        await self._notices.close()
        await self._announcements.close()
        await self._tasks.close()


def _carried(options: JoinOptions | None, before: UserId | None) -> JoinOptions | None:
    """How a connection is let in that has become another user's since ``options`` were
    meant for ``before``: nothing that was another's right goes along. Where it was
    nobody's, they were meant for the connection itself."""
    if before is None or options is None:
        return options
    return JoinOptions(role=min(options.role, RoomRole.MEMBER))


TRIES = 3
"""How often a decision is made anew because the connection has changed meanwhile. One
that goes on changing is refused: it would keep the controller busy for ever."""


CHANGING = "this connection goes on becoming somebody else"


class JoinAuthorization:
    """Asked for every join, ``hub.join`` and ``force`` included."""

    def __init__(self, access: AccessController | None) -> None:
        self._can_subscribe = None if access is None else method(access, "can_subscribe")

    @property
    def is_guarded(self) -> bool:
        """Whether there is anybody to ask."""
        return self._can_subscribe is not None

    async def check(self, room_id: RoomId, conn: Connection) -> ConnMeta:
        """Return the owner who may listen to the room: the connection's at this moment.

        Raises ``Forbidden`` if that one may not.
        """
        if self._can_subscribe is None:
            return conn.meta
        for _ in range(TRIES):
            meta = conn.meta
            allowed = self._can_subscribe(meta, room_id)
            if inspect.isawaitable(allowed):
                allowed = await allowed
            if conn.meta.is_same_owner(meta):
                if not allowed:
                    raise Forbidden(f"you may not join {room_id}")
                return conn.meta
        raise Forbidden(CHANGING)

    async def refusal(self, room_id: RoomId, conn: Connection) -> Forbidden | None:
        """What ``check`` would raise."""
        try:
            await self.check(room_id, conn)
        except Forbidden as error:
            return error
        return None
