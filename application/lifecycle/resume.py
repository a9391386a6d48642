"""A client that comes back, was told of a gap, or joins and wants what was said before: it
gets that, in order.

Rules of this file:

1. A room is joined under its rules before anything of it is sent.
2. A member that is sent what it missed is held by the room's sequencer. The same step that
   reaches the sequencer's position releases it: there is no gap and no duplicate.
3. Nothing is sent into a queue that is half full. A client that does not read fast enough gets
   ``system:gap`` with its position once it has read; it delays no other client.
4. A gap that can't be filled is reported: ``recovered`` is False, and never a guess. A client
   that joins is sent the messages after the gap all the same. A client that comes back is not:
   it has an older part already, and loads the room anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum, auto

from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.concurrency.timers import TimerQueue
from eyewall.application.connections.registry import Connection
from eyewall.application.lifecycle.sessions import Sessions
from eyewall.application.outbound.sender import TAKEN, Sender
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.stores import HistoryStore
from eyewall.application.rooms.membership import Precheck, RoomMembership, TooManyRooms
from eyewall.application.rooms.stream import Streams
from eyewall.domain.errors import Forbidden, NotAMember, Refused, Unavailable, code_of
from eyewall.domain.history import Entry, Page, Position, Since, position_before
from eyewall.domain.identity import RoomId
from eyewall.domain.membership import Membership
from eyewall.domain.session import conn_of

MESSAGES_PER_READ = 64
"""Messages that one reading of the store brings: of the largest size they are 64 MiB."""


MAX_PASSES = 3
"""How often all rooms are brought level before each is let go by itself: where so much is
said that they never stand still together, the answer may come between new messages."""


READ_TIMEOUT = 2.0
"""Seconds that a client gets to read before it is told of a gap instead."""


MAX_SLOW_CLIENTS = 16
"""Clients that may be waited for at a time: a quarter of the workers by default."""


class _End(Enum):
    """How far sending what was missed has come."""

    LEVEL = auto()
    """The client has all that the members here have had."""
    LOST = auto()
    """Something between is gone, or the client's position is none of this epoch."""
    SLOW = auto()
    """The client does not read."""


@dataclass(slots=True)
class _Room:
    """One room on its way back: where the client stands, and how it went so far."""

    at: Position
    end: _End = _End.LEVEL
    in_any_case: bool = False
    """Whether the messages after a gap are wanted too."""
    has_hole: bool = False
    """Whether there was such a gap."""

    def skip_to(self, page: Page) -> bool:
        """Go on after the gap before ``page``; False if that is not wanted."""
        if self.in_any_case:
            self.has_hole = True
            at = page.position
            foreign = self.at.epoch != at.epoch
            self.at = Position(at.epoch, 0 if foreign else page.first - 1)
        return self.in_any_case

    def is_ahead_of(self, here: Position) -> bool:
        """Whether the client has had more than the members here, who stand at ``here``. An
        epoch that was read from the store is ahead of every other."""
        return self.at.is_past(here) or (self.has_hole and self.at.epoch != here.epoch)


@dataclass(frozen=True, slots=True)
class Resumed:
    """What became of one room. ``code``: it was not joined."""

    recovered: bool
    position: Position | None = None
    code: str | None = None


class Resumer:
    """Brings connections back to where they were."""

    def __init__(
        self,
        *,
        rooms: RoomMembership,
        sessions: Sessions,
        streams: Streams,
        history: HistoryStore,
        sender: Sender,
        clock: Clock,
        stalls: Stalls,
        free: bool,
    ) -> None:
        self._rooms = rooms
        self._sessions = sessions
        self._streams = streams
        self._history = history
        self._sender = sender
        self._clock = clock
        self._free = free
        """Whether clients may join rooms by themselves."""
        self._deadlines = TimerQueue(clock, stalls)
        self._slow: dict[Connection, asyncio.Event] = {}

    async def resume(
        self,
        conn: Connection,
        name: str | None,
        wanted: Mapping[RoomId, Position | None],
        precheck: Precheck | None = None,
    ) -> dict[RoomId, Resumed]:
        """Join ``wanted`` and send what came after each position; ``precheck`` is that of
        ``RoomMembership.join``.

        Raises ``Unavailable`` if the session can't be looked for, and ``TooManyRooms``.
        """
        session = None if name is None else await self._sessions.resume(name, conn)
        was_in = frozenset[RoomId]() if session is None else session.rooms
        was = {conn.id} if name is None else {conn.id, conn_of(name)}
        done: dict[RoomId, Resumed] = {}
        back: dict[RoomId, _Room] = {}
        try:
            for room_id, since in wanted.items():
                may = self._free or room_id in was_in or room_id in conn.roles
                hold = since is not None
                resumed = await self._join(room_id, conn, precheck, may=may, hold=hold)
                done[room_id] = resumed
                if since is not None and resumed.position is not None:
                    back[room_id] = _Room(since)
            await self._bring_back(conn, back, was)
        finally:
            for room_id in back:
                self._streams.release_member(room_id, conn.link)
            self._sessions.returned(conn)
        for room_id, room in back.items():
            done[room_id] = self._result(room_id, conn, room)
        return done

    async def _join(
        self, room_id: RoomId, conn: Connection, precheck: Precheck | None, *, may: bool, hold: bool
    ) -> Resumed:
        try:
            if not may:
                raise Forbidden(f"you may not join {room_id}")
            membership = await self._rooms.join(room_id, conn, hold=hold, precheck=precheck)
        except TooManyRooms:
            raise
        except (Refused, Unavailable) as error:
            return Resumed(recovered=False, code=code_of(error))
        if membership.epoch is None or membership.offset is None:
            return Resumed(recovered=False)
        return Resumed(recovered=False, position=Position(membership.epoch, membership.offset))

    def _result(self, room_id: RoomId, conn: Connection, room: _Room) -> Resumed:
        if room_id not in conn.roles:  # it was put out meanwhile, and told so
            return Resumed(recovered=False, code=Forbidden.code)
        if room.end is _End.LOST:
            return Resumed(recovered=False, position=self._streams.position(room_id))
        return Resumed(recovered=True, position=room.at)

    async def join(
        self, room_id: RoomId, conn: Connection, since: Since, precheck: Precheck | None = None
    ) -> tuple[Membership, bool]:
        """Join a room and send the kept messages from ``since`` on. Returns the membership,
        at the last message sent, and whether all messages asked for were sent.

        ``precheck`` and the errors are those of ``RoomMembership.join``. Also raises
        ``NotAMember``, if the connection leaves the room before the messages are sent.
        """
        try:
            membership = await self._rooms.join(
                room_id, conn, hold=True, fresh=since != 0, precheck=precheck
            )
            if membership.epoch is None or membership.offset is None:
                return membership, since == 0
            here = Position(membership.epoch, membership.offset)
            room = _Room(position_before(since, here), in_any_case=True)
            await self._bring_back(conn, {room_id: room}, {conn.id})
        finally:
            self._streams.release_member(room_id, conn.link)
        if room_id not in conn.roles:
            raise NotAMember(f"you are not in {room_id} any more")
        at = self._streams.position(room_id) if room.end is _End.LOST else room.at
        epoch, offset = (None, None) if at is None else (at.epoch, at.offset)
        whole = room.end is not _End.LOST and not room.has_hole
        role = conn.roles[room_id]
        return replace(membership, role=role, epoch=epoch, offset=offset), whole

    async def catch_up(self, conn: Connection, places: Mapping[RoomId, Position]) -> None:
        """Send a member the messages of each room after its position there, while the rooms'
        sequencers hold it. ``system:gap`` reports what the history does not have."""
        back = {room_id: _Room(at) for room_id, at in places.items()}
        try:
            await self._bring_back(conn, back, {conn.id})
        finally:
            for room_id in back:
                self._streams.release_member(room_id, conn.link)
        for room_id, room in back.items():
            if room.end is _End.LOST and room_id in conn.roles and conn.is_open:
                self._sender.enqueue_or_report(conn, self._sender.encode_gap(room_id, room.at))

    # --- sending what was missed

    async def _bring_back(
        self, conn: Connection, back: Mapping[RoomId, _Room], was: AbstractSet[str]
    ) -> None:
        """Send what was missed in all rooms, and let the connection go when it is level
        with all of them at the same moment."""
        for _ in range(MAX_PASSES):
            for room_id, room in back.items():
                await self._send_missed(room_id, conn, room, was)
            if not any(self._is_behind(room_id, room) for room_id, room in back.items()):
                return  # nothing waits until they are let go
        for room_id, room in back.items():
            await self._send_missed(room_id, conn, room, was)
            self._streams.release_member(room_id, conn.link)

    def _is_behind(self, room_id: RoomId, room: _Room) -> bool:
        position = self._streams.position(room_id)
        return room.end is _End.LEVEL and position is not None and position.is_past(room.at)

    async def _send_missed(
        self, room_id: RoomId, conn: Connection, room: _Room, was: AbstractSet[str]
    ) -> None:
        if room.end is not _End.LEVEL:
            return
        try:
            room.end = await self._catch_up(room_id, conn, room, was)
        except Unavailable:
            room.end = _End.LOST
        if room.end is _End.SLOW:
            self._sender.gaps.note_after(conn, room_id, room.at)

    async def _catch_up(
        self, room_id: RoomId, conn: Connection, room: _Room, was: AbstractSet[str]
    ) -> _End:
        """Send page by page until the client has reached the sequencer's position."""
        while True:
            here = self._streams.position(room_id)
            if not self._streams.is_held(room_id, conn.link) or here is None or not conn.is_open:
                return _End.LOST
            if room_id in self._rooms.rooms_to_settle(conn):
                return _End.LOST  # it may not be the new user's to read
            if room.is_ahead_of(here):
                # It has had more from another node than the members here have.
                await self._streams.refresh(room_id)
                here = self._streams.position(room_id)
                if here is None or room.is_ahead_of(here):
                    return _End.LOST
            if room.at == here:
                return _End.LEVEL
            page = await self._history.read(room_id, room.at, MESSAGES_PER_READ, self._clock.wall())
            if not page.recovered and not room.skip_to(page):
                return _End.LOST
            end = await self._send_page(room_id, conn, room, was, list(page.with_positions()))
            if end is not _End.LEVEL:
                return end

    async def _send_page(
        self,
        room_id: RoomId,
        conn: Connection,
        room: _Room,
        was: AbstractSet[str],
        placed: list[tuple[Position, Entry]],
    ) -> _End:
        for at, entry in placed:
            if conn.link.is_half_full and not await self._has_read(conn):
                return _End.SLOW
            here = self._streams.position(room_id)
            if here is None or not self._streams.is_held(room_id, conn.link):
                return _End.LOST
            if self._rooms.moving and room_id in self._rooms.rooms_to_settle(conn):
                return _End.LOST
            if at.is_past(here):
                break  # the sequencer will release it
            if was.isdisjoint(entry.skip):
                encoded = self._streams.read_entry(room_id, entry)
                if encoded is None:
                    self._streams.report_unreadable(room_id, entry, conn)
                elif (
                    self._sender.enqueue(conn.link, encoded.with_position(room_id, at)) not in TAKEN
                ):
                    return _End.SLOW
            room.at = at
        return _End.LEVEL

    # --- clients that do not read

    async def _has_read(self, conn: Connection) -> bool:
        """Wait for the client to read; False if it does not, or if too many don't."""
        while conn.link.is_half_full and not conn.link.queued and conn.is_open:  # noqa: ASYNC110
            # It is only collected: it goes out in one of the next turns, or shows itself to
            # be stuck. Behind a large fan-out that may be many.
            await asyncio.sleep(0)
        if not conn.link.is_half_full:
            return conn.is_open
        if len(self._slow) >= MAX_SLOW_CLIENTS:
            return False
        read = self._slow[conn] = asyncio.Event()
        deadline = self._deadlines.at(self._clock.now() + READ_TIMEOUT, read.set)
        try:
            await read.wait()
        finally:
            deadline.cancel()
            del self._slow[conn]
        return conn.is_open and not conn.link.is_half_full

    def close(self) -> None:
        """End the timer."""
        self._deadlines.close()

    def drained(self, conn: Connection) -> None:
        """The client has read all that waited for it, or has gone."""
        read = self._slow.get(conn)
        if read is not None:
            read.set()
