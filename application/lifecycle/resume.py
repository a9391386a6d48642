"""Sends missed messages, in order, to a client that resumes, that asks after a gap, or that
joins a room with its history.

Rules of this file:

1. A room is joined under its rules before anything of it is sent.
2. A member that is sent what it missed is held by the room's sequencer. The same step that
   reaches the sequencer's position releases it: there is no gap and no duplicate.
3. Nothing is sent into a queue that is half full. A client that does not read fast enough gets
   ``system:gap`` with its position once it has read; it delays no other client.
4. A gap that can't be filled is reported: ``recovered`` is False, and never a guess. A client
   that joins still gets the messages after the gap. A client that resumes does not: it has older
   messages already, and loads the room anew.
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
"""Messages that one read of the store returns: of the largest size they are 64 MiB."""


MAX_PASSES = 3
"""Passes over all rooms before each room is released on its own. Rooms that are so busy that
they never catch up together may deliver new messages before the answer to the resume."""


READ_TIMEOUT = 2.0
"""Seconds that a client has to read its queue; after that it gets a gap instead."""


MAX_SLOW_CLIENTS = 16
"""Slow clients that are waited for at the same time: a quarter of the default workers."""


class _End(Enum):
    """The state of sending a room's missed messages."""

    CAUGHT_UP = auto()
    """The client has every message that the members on this node have had."""
    LOST = auto()
    """A message in between is gone, or the client's position is of another epoch."""
    SLOW = auto()
    """The client does not read its queue."""


@dataclass(slots=True)
class _Room:
    """One room that is caught up: the client's position, and the state of sending."""

    at: Position
    end: _End = _End.CAUGHT_UP
    in_any_case: bool = False
    """Whether the messages after a gap are sent, too."""
    has_hole: bool = False
    """Whether there was such a gap."""

    def skip_to(self, page: Page) -> bool:
        """Skip the gap before ``page``; False if messages after a gap are not sent."""
        if self.in_any_case:
            self.has_hole = True
            at = page.position
            foreign = self.at.epoch != at.epoch
            self.at = Position(at.epoch, 0 if foreign else page.first - 1)
        return self.in_any_case

    def is_ahead_of(self, here: Position) -> bool:
        """Whether the client has had more than the members on this node, whose position is
        ``here``. An epoch that was read from the store is ahead of every other."""
        return self.at.is_past(here) or (self.has_hole and self.at.epoch != here.epoch)


@dataclass(frozen=True, slots=True)
class Resumed:
    """The result of one room's resume. ``code``: the error that kept it from being joined."""

    recovered: bool
    position: Position | None = None
    code: str | None = None


class Resumer:
    """Resumes connections, and catches members up with their rooms."""

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
        """Whether clients may join rooms by a command."""
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

        Raises ``Unavailable`` if the session can't be read, and ``TooManyRooms``.
        """
        session = None if name is None else await self._sessions.resume(name, conn)
        was_in = frozenset[RoomId]() if session is None else session.rooms
        own_ids = {conn.id} if name is None else {conn.id, conn_of(name)}
        done: dict[RoomId, Resumed] = {}
        rooms: dict[RoomId, _Room] = {}
        try:
            for room_id, since in wanted.items():
                may = self._free or room_id in was_in or room_id in conn.roles
                hold = since is not None
                resumed = await self._join(room_id, conn, precheck, may=may, hold=hold)
                done[room_id] = resumed
                if since is not None and resumed.position is not None:
                    rooms[room_id] = _Room(since)
            await self._catch_up_all(conn, rooms, own_ids)
        finally:
            for room_id in rooms:
                self._streams.release_member(room_id, conn.link)
            self._sessions.returned(conn)
        for room_id, room in rooms.items():
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
        if room_id not in conn.roles:  # removed meanwhile, and notified of it
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
            await self._catch_up_all(conn, {room_id: room}, {conn.id})
        finally:
            self._streams.release_member(room_id, conn.link)
        if room_id not in conn.roles:
            raise NotAMember(f"you are not in {room_id} any more")
        at = self._streams.position(room_id) if room.end is _End.LOST else room.at
        epoch, offset = (None, None) if at is None else (at.epoch, at.offset)
        whole = room.end is not _End.LOST and not room.has_hole
        role = conn.roles[room_id]
        return replace(membership, role=role, epoch=epoch, offset=offset), whole

    async def catch_up(self, conn: Connection, positions: Mapping[RoomId, Position]) -> None:
        """Send a member the messages of each room after its position there, while the rooms'
        sequencers hold it. ``system:gap`` reports what the history does not have."""
        rooms = {room_id: _Room(at) for room_id, at in positions.items()}
        try:
            await self._catch_up_all(conn, rooms, {conn.id})
        finally:
            for room_id in rooms:
                self._streams.release_member(room_id, conn.link)
        for room_id, room in rooms.items():
            if room.end is _End.LOST and room_id in conn.roles and conn.is_open:
                self._sender.enqueue_or_report(conn, self._sender.encode_gap(room_id, room.at))

    # --- missed messages

    async def _catch_up_all(
        self, conn: Connection, rooms: Mapping[RoomId, _Room], own_ids: AbstractSet[str]
    ) -> None:
        """Send the missed messages of all rooms. The connection is released when it has
        caught up with all rooms at the same moment, or else room by room."""
        for _ in range(MAX_PASSES):
            for room_id, room in rooms.items():
                await self._send_missed(room_id, conn, room, own_ids)
            if not any(self._is_behind(room_id, room) for room_id, room in rooms.items()):
                return  # the caller releases the rooms without a wait
        for room_id, room in rooms.items():
            await self._send_missed(room_id, conn, room, own_ids)
            self._streams.release_member(room_id, conn.link)

    def _is_behind(self, room_id: RoomId, room: _Room) -> bool:
        position = self._streams.position(room_id)
        return room.end is _End.CAUGHT_UP and position is not None and position.is_past(room.at)

    async def _send_missed(
        self, room_id: RoomId, conn: Connection, room: _Room, own_ids: AbstractSet[str]
    ) -> None:
        if room.end is not _End.CAUGHT_UP:
            return
        try:
            room.end = await self._catch_up(room_id, conn, room, own_ids)
        except Unavailable:
            room.end = _End.LOST
        if room.end is _End.SLOW:
            self._sender.gaps.note_after(conn, room_id, room.at)

    async def _catch_up(
        self, room_id: RoomId, conn: Connection, room: _Room, own_ids: AbstractSet[str]
    ) -> _End:
        """Send page by page until the client has reached the sequencer's position."""
        while True:
            here = self._streams.position(room_id)
            if not self._streams.is_held(room_id, conn.link) or here is None or not conn.is_open:
                return _End.LOST
            if room_id in self._rooms.rooms_to_settle(conn):
                return _End.LOST  # the new user may not be allowed to read it
            if room.is_ahead_of(here):
                # The client got more messages from another node than the members here have had.
                await self._streams.refresh(room_id)
                here = self._streams.position(room_id)
                if here is None or room.is_ahead_of(here):
                    return _End.LOST
            if room.at == here:
                return _End.CAUGHT_UP
            page = await self._history.read(room_id, room.at, MESSAGES_PER_READ, self._clock.wall())
            if not page.recovered and not room.skip_to(page):
                return _End.LOST
            end = await self._send_page(room_id, conn, room, own_ids, list(page.with_positions()))
            if end is not _End.CAUGHT_UP:
                return end

    async def _send_page(
        self,
        room_id: RoomId,
        conn: Connection,
        room: _Room,
        own_ids: AbstractSet[str],
        entries: list[tuple[Position, Entry]],
    ) -> _End:
        for at, entry in entries:
            if conn.link.is_half_full and not await self._has_read(conn):
                return _End.SLOW
            here = self._streams.position(room_id)
            if here is None or not self._streams.is_held(room_id, conn.link):
                return _End.LOST
            if self._rooms.moving and room_id in self._rooms.rooms_to_settle(conn):
                return _End.LOST
            if at.is_past(here):
                break  # the sequencer will release it
            if own_ids.isdisjoint(entry.skip):
                encoded = self._streams.read_entry(room_id, entry)
                if encoded is None:
                    self._streams.report_unreadable(room_id, entry, conn)
                elif (
                    self._sender.enqueue(conn.link, encoded.with_position(room_id, at)) not in TAKEN
                ):
                    return _End.SLOW
            room.at = at
        return _End.CAUGHT_UP

    # --- slow clients

    async def _has_read(self, conn: Connection) -> bool:
        """Wait until the client has read its queue; False if it does not read it in time, or if
        too many clients are waited for already."""
        while conn.link.is_half_full and not conn.link.queued and conn.is_open:  # noqa: ASYNC110
            # The messages are only batched, not queued: a later turn of the event loop writes
            # them, or queues them. After a large fan-out that may take many turns.
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
        """Cancel the timers."""
        self._deadlines.close()

    def drained(self, conn: Connection) -> None:
        """Note that the client has read its queue, or that the connection has ended."""
        read = self._slow.get(conn)
        if read is not None:
            read.set()
