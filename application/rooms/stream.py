"""The order of messages in rooms with history, for the members on this node.

Rules of this file:

1. The history store decides the order. A sequencer keeps the position up to which the room's
   members on this node have been served, and releases only the message that follows it.
2. A message that does not follow the position is buffered, and the missing messages before it
   are read from the store, one read at a time. A message at or before the position is a
   duplicate and is dropped.
3. Moving the position and handing the message to the members is one step without a wait. So is
   reading the position and adding a member.
4. The buffer of a sequencer is bounded. A message that does not fit is read from the store.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.connections.registry import BroadcastGroups, Connection, Connections
from eyewall.application.connections.stats import Stats
from eyewall.application.outbound.held_members import HeldMembers
from eyewall.application.outbound.sender import Sender
from eyewall.application.ports.clock import Clock, Timer
from eyewall.application.ports.logging import told
from eyewall.application.ports.message import Codec, EncodedMessage, MalformedMessage, read_message
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import HistoryStore, StateStore
from eyewall.application.ports.transport import Link
from eyewall.domain.errors import Unavailable
from eyewall.domain.history import Entry, Page, Position, Retention
from eyewall.domain.identity import RoomId
from eyewall.domain.report import Incident

MESSAGES_PER_READ = 64
"""Messages that one reading brings: of the largest size they are 64 MiB."""


FOREIGN_EPOCH_PERIOD = 60.0
"""Seconds between two log lines about foreign epochs; each is counted."""


CHECK_PERIOD = 10.0
"""Seconds after which a room where nothing happened is compared with the store: the last
message before a silence may have been lost on the bus, and no later message shows the gap."""


class Streams:
    """The sequencers of all rooms with history that have members on this node."""

    def __init__(
        self,
        *,
        history: HistoryStore,
        state: StateStore,
        connections: Connections,
        broadcast_groups: BroadcastGroups,
        held_members: HeldMembers,
        sender: Sender,
        codec: Codec,
        clock: Clock,
        logger: Logger,
        stats: Stats,
    ) -> None:
        self._history = history
        self._state = state
        self._connections = connections
        self._broadcast_groups = broadcast_groups
        self._held_members = held_members
        self._sender = sender
        self._codec = codec
        self._clock = clock
        self._logger = logger
        self._stats = stats
        self._foreign_epoch_logged = -math.inf
        self._sequencers: dict[RoomId, RoomSequencer] = {}
        self._tasks = TaskSet(logger)
        self._timer: Timer | None = None
        self._checking: asyncio.Task[None] | None = None
        self.changes = 0
        """Counts the changes of rooms' retention that this node has applied. A caller that has
        read the state before such a change reads it again."""

    def __len__(self) -> int:
        return len(self._sequencers)

    # --- what is known of rooms

    def is_plain(self, room_id: RoomId) -> bool:
        """Whether the room has members here and keeps no history."""
        return room_id not in self._sequencers and room_id in self._broadcast_groups.of

    def is_here(self, room_id: RoomId) -> bool:
        """Whether the room has members on this node, or a connection is about to join."""
        return room_id in self._sequencers or room_id in self._broadcast_groups.of

    def position(self, room_id: RoomId) -> Position | None:
        """The position up to which members here are served; None without history."""
        sequencer = self._sequencers.get(room_id)
        return None if sequencer is None else sequencer.position

    async def retention(self, room_id: RoomId) -> Retention | None:
        """The room's retention; None without history. Reads the state if the room has no members
        on this node. Raises ``Unavailable``."""
        sequencer = self._sequencers.get(room_id)
        if sequencer is not None and sequencer.retention is not None:
            return sequencer.retention
        return None if self.is_plain(room_id) else await self._read_retention(room_id)

    async def _read_retention(self, room_id: RoomId) -> Retention | None:
        room = await self._state.room(room_id)
        retention = None if room is None else Retention.of(room.options)
        sequencer = self._sequencers.get(room_id)
        if sequencer is not None and retention is None:
            self.changes += 1
            self._remove(sequencer)
        elif sequencer is not None:
            sequencer.retention = retention
        return retention

    def set_retention(
        self, room_id: RoomId, retention: Retention | None, at: Position | None
    ) -> None:
        """Apply a changed retention; ``at`` is the position of a history that begins."""
        self.changes += 1
        sequencer = self._sequencers.get(room_id)
        if retention is None:
            if sequencer is not None:
                self._remove(sequencer)
            return
        position = None if sequencer is None else sequencer.position
        begins = at is not None and (position is None or position.epoch != at.epoch)
        if sequencer is not None and not begins:
            sequencer.retention = retention
            return
        if sequencer is not None:
            self._remove(sequencer)
        if self._broadcast_groups.get(room_id) is not None:
            sequencer = self._add(room_id, retention, at)
            if at is None:
                self._start_read(sequencer)

    # --- coming and going

    async def open(
        self, room_id: RoomId, retention: Retention | None, as_of: int, *, fresh: bool = False
    ) -> None:
        """Make sure of a sequencer, if the room keeps a history: a connection is about to join.

        ``as_of``: the ``changes`` when ``retention`` was asked for. With ``fresh`` the store
        is read in any case, and the members here are served up to its last message. Raises
        ``Unavailable``. The caller adds the connection, or calls ``remove_if_empty``, without a
        wait after this.
        """
        while True:
            while as_of != self.changes:
                as_of = self.changes
                retention = await self._read_retention(room_id)
            sequencer = self._sequencers.get(room_id)
            if retention is None:
                if sequencer is not None:
                    self._remove(sequencer)
                return
            sequencer = sequencer or self._add(room_id, retention, None)
            sequencer.retention = retention
            if sequencer.position is not None and not fresh:
                return
            # A member that leaves meanwhile may remove the sequencer: the next pass adds another.
            error = await (
                self._read_to_end(sequencer)
                if fresh
                else asyncio.shield(self._start_read(sequencer))
            )
            fresh = False
            if error is not None:
                raise error

    def hold_member(self, room_id: RoomId, link: Link) -> None:
        """Pass nothing to a member until ``release_member``: it is sent what it missed first."""
        sequencer = self._sequencers.get(room_id)
        if sequencer is not None:
            sequencer.held.add(link)

    def is_held(self, room_id: RoomId, link: Link) -> bool:
        """Whether the member is held; it is not if the history has ended meanwhile."""
        sequencer = self._sequencers.get(room_id)
        return sequencer is not None and link in sequencer.held

    def release_member(self, room_id: RoomId, link: Link) -> None:
        """End ``hold_member``: the member gets each message that is released from now on."""
        sequencer = self._sequencers.get(room_id)
        if sequencer is not None:
            sequencer.held.discard(link)

    async def refresh(self, room_id: RoomId) -> None:
        """Serve the members up to the store's last message; raises ``Unavailable``."""
        sequencer = self._sequencers.get(room_id)
        if sequencer is not None and (error := await self._read_to_end(sequencer)) is not None:
            raise error

    def remove_if_empty(self, room_id: RoomId) -> None:
        """A connection has left: with the last one the sequencer is removed."""
        sequencer = self._sequencers.get(room_id)
        if sequencer is not None and self._broadcast_groups.get(room_id) is None:
            self._remove(sequencer)

    def _add(
        self, room_id: RoomId, retention: Retention | None, position: Position | None
    ) -> RoomSequencer:
        sequencer = self._sequencers[room_id] = RoomSequencer(room_id, retention, position)
        if self._timer is None:
            self._timer = self._clock.call_later(CHECK_PERIOD, self._check_soon)
        return sequencer

    def _remove(self, sequencer: RoomSequencer) -> None:
        del self._sequencers[sequencer.room_id]
        waiting, sequencer.waiting = sequencer.waiting, {}
        for at, buffered in waiting.items():
            self._release_late(sequencer.room_id, at, buffered)

    # --- passing

    def recipient_count(self, room_id: RoomId, skip: Collection[str] = ()) -> int:
        """How many connections of this node get a message that is not for ``skip``."""
        group = self._broadcast_groups.get(room_id)
        return 0 if group is None else len(group) - len(self._links(skip, room_id))

    def accept(self, room_id: RoomId, at: Position, buffered: BufferedMessage) -> None:
        """Take a message that this node has published or that came from the bus: release it,
        buffer it, or drop it as a duplicate. Never waits."""
        sequencer = self._sequencers.get(room_id)
        if sequencer is None:
            if self._broadcast_groups.get(room_id) is None:
                self._release_late(room_id, at, buffered)
                return
            # The room has members, and this node did not know of a history: it begins here.
            sequencer = self._add(room_id, None, at.before)
            sequencer.unconfirmed = True
            self._start_read(sequencer)
        here = sequencer.position
        if here is not None and at.follows(here):
            self._release(sequencer, at, buffered)
            self._release_next(sequencer)
        elif here is not None and at.epoch == here.epoch and not at.is_past(here):
            self._release_late(room_id, at, buffered)
        else:
            sequencer.hold(at, buffered)
            sequencer.reread = True
            self._start_read(sequencer)

    def _release(
        self, sequencer: RoomSequencer, at: Position, buffered: BufferedMessage | None
    ) -> None:
        sequencer.position = at
        if buffered is None:
            return
        encoded = buffered.encoded.with_position(sequencer.room_id, at)
        skip = self._links(buffered.skip) | sequencer.held
        if buffered.on_release is not None:
            skip.update(buffered.on_release.begin(encoded))
        self._publish(sequencer.room_id, encoded, skip)

    def _publish(self, room_id: RoomId, encoded: EncodedMessage, skip: Collection[Link]) -> None:
        group = self._broadcast_groups.get(room_id)
        if group is None:
            return
        waiting = self._held_members.held.get(room_id)
        if waiting is None:
            self._sender.broadcast(group, encoded, skip)
        else:
            self._sender.broadcast(group, encoded, waiting.union(skip))
            self._held_members.keep(room_id, encoded, skip)

    def _release_next(self, sequencer: RoomSequencer) -> None:
        """Release buffered messages as long as the next one is there."""
        while (found := sequencer.next()) is not None:
            self._release(sequencer, *found)

    @staticmethod
    def _release_late(room_id: RoomId, at: Position, buffered: BufferedMessage) -> None:
        """Only the caller that waits for the message is told: the members have had it, or there
        are none."""
        if buffered.on_release is not None:
            buffered.on_release.begin(buffered.encoded.with_position(room_id, at))

    def _links(self, conn_ids: Collection[str], room_id: RoomId | None = None) -> set[Link]:
        conns = [c for conn_id in conn_ids if (c := self._connections.get(conn_id)) is not None]
        return {conn.link for conn in conns if room_id is None or room_id in conn.roles}

    # --- reading what is missing

    def _start_read(self, sequencer: RoomSequencer) -> asyncio.Task[Unavailable | None]:
        if sequencer.reading is None:
            sequencer.reading = self._tasks.spawn(self._catch_up(sequencer))
        return sequencer.reading

    async def _read_to_end(self, sequencer: RoomSequencer) -> Unavailable | None:
        """Read what the store has now. A reading under way may have begun before the last
        message, so the next one is waited for too: two at most, whatever others ask for."""
        if (
            sequencer.reading is not None
            and (error := await asyncio.shield(sequencer.reading)) is not None
        ):
            return error
        return await asyncio.shield(self._start_read(sequencer))

    async def _catch_up(self, sequencer: RoomSequencer) -> Unavailable | None:
        """Serve the members up to the store's last message; returns the error if that failed."""
        try:
            while self._sequencers.get(sequencer.room_id) is sequencer:
                sequencer.reread = False
                if sequencer.position is None:
                    sequencer.position = await self._history.position(sequencer.room_id)
                    self._release_next(sequencer)
                else:
                    await self._read_page(sequencer, sequencer.position)
                if not sequencer.reread and not sequencer.waiting:
                    break
        except Unavailable as error:
            self._logger.warning("history_not_read", room=sequencer.room_id, error=told(error))
            self._fail_waiting(sequencer, error)
            return error
        except BaseException:
            # Callers that wait for a message get the error of any failure, the node's end included.
            self._fail_waiting(sequencer, Unavailable("the history was not read"))
            raise
        finally:
            sequencer.reading = None
        return None

    @staticmethod
    def _fail_waiting(sequencer: RoomSequencer, error: Unavailable) -> None:
        for buffered in sequencer.waiting.values():
            if buffered.on_release is not None:
                buffered.on_release.fail(error)

    async def _read_page(self, sequencer: RoomSequencer, since: Position) -> None:
        await self._sender.ready()
        due = list(sequencer.waiting)
        now = self._clock.wall()
        page = await self._history.read(sequencer.room_id, since, MESSAGES_PER_READ, now)
        if self._sequencers.get(sequencer.room_id) is not sequencer or sequencer.position is None:
            return
        if sequencer.unconfirmed and page.position.epoch != since.epoch:
            self._count_foreign_epoch(sequencer)
        sequencer.unconfirmed = False
        if not page.recovered and sequencer.position == since:
            self._skip_lost(sequencer, page)
        for at, entry in page.with_positions():
            if at.follows(sequencer.position):
                buffered = sequencer.waiting.pop(at, None) or self._buffer(sequencer, entry)
                self._release(sequencer, at, buffered)
        self._release_next(sequencer)
        sequencer.reread = sequencer.reread or page.position.is_past(sequencer.position)
        # A message buffered before the read is in the page, or its position was never true.
        for at, given_up in sequencer.take_stale(due, page.position):
            if at.epoch != page.position.epoch:
                self._count_foreign_epoch(sequencer)
            self._release_late(sequencer.room_id, at, given_up)

    def _count_foreign_epoch(self, sequencer: RoomSequencer) -> None:
        """A packet had a position of an epoch that the store does not know. Rarely: the room
        was deleted meanwhile. Often: a node uses another store."""
        self._stats.happened(Incident.FOREIGN_EPOCHS)
        now = self._clock.now()
        if now - self._foreign_epoch_logged >= FOREIGN_EPOCH_PERIOD:
            self._foreign_epoch_logged = now
            self._logger.warning("foreign_epoch", room=sequencer.room_id)

    def _skip_lost(self, sequencer: RoomSequencer, page: Page) -> None:
        """The next messages were trimmed: send the members a gap, and go on with the rest.

        The gap has the position up to which they were served. A client that resumes from it
        learns whether messages or the whole epoch are lost.
        """
        assert sequencer.position is not None
        self._logger.warning(
            "history_lost", room=sequencer.room_id, offset=sequencer.position.offset
        )
        # A held member learns it from what it is sent when it is released.
        held = sequencer.held.intersection(self._held_members.held.get(sequencer.room_id, ()))
        self._publish(
            sequencer.room_id, self._sender.encode_gap(sequencer.room_id, sequencer.position), held
        )
        if page.position.epoch == sequencer.position.epoch:
            sequencer.position = Position(page.position.epoch, page.first - 1)
        else:
            sequencer.position = Position(page.position.epoch, 0)
            sequencer.reread = True

    def read_entry(self, room_id: RoomId, entry: Entry) -> EncodedMessage | None:
        """Return a kept message without its position; None, and logged, if it can't be read."""
        try:
            return read_message(
                self._codec, entry.payload, entry.priority, recipient=room_id, fan_out=True
            )
        except MalformedMessage as error:
            self._logger.error("entry_not_read", room=room_id, error=told(error))
            return None

    def _buffer(self, sequencer: RoomSequencer, entry: Entry) -> BufferedMessage | None:
        """Return a kept message. One that can't be read is missed by the members, without a
        gap: a client that fetched it would meet the same entry."""
        room_id = sequencer.room_id
        encoded = self.read_entry(room_id, entry)
        if encoded is not None:
            return BufferedMessage(encoded, entry.skip)
        skip = self._links(entry.skip) | sequencer.held
        waiting = self._held_members.held.get(room_id, ())
        for link in self._broadcast_groups.get(room_id) or ():
            if link not in skip and link not in waiting:
                self.report_unreadable(room_id, entry, link.owner)
        return None

    def report_unreadable(self, room_id: RoomId, entry: Entry, conn: Connection) -> None:
        """Count and report a kept message that can't be read, and that ``conn`` misses."""
        lost = EncodedMessage(entry.payload, raw=True, recipient=room_id)
        self._sender.report_unreadable(conn, lost)

    # --- comparing

    def _check_soon(self) -> None:
        self._timer = None
        if self._checking is None or self._checking.done():
            self._checking = self._tasks.spawn(self.check())
        if self._sequencers:
            self._timer = self._clock.call_later(CHECK_PERIOD, self._check_soon)

    async def check(self) -> None:
        """Compare idle rooms with the store, one after the other."""
        for sequencer in list(self._sequencers.values()):
            stands = sequencer.checked == sequencer.position
            sequencer.checked = sequencer.position
            if (
                stands
                and self._sequencers.get(sequencer.room_id) is sequencer
                and await self._start_read(sequencer)
            ):
                return  # the store is away: each further room would wait as long

    async def close(self) -> None:
        """End what is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tasks.close()


MAX_WAITING = 256
"""Buffered messages of one room that wait for those before them: as many as fit into the
queue of one connection."""


class OnRelease(Protocol):
    """A caller that waits for its message to be released, such as one that waits for acks."""

    def begin(self, encoded: EncodedMessage) -> Collection[Link]:
        """The message is released now, or was released before. Returns the links that the
        caller has sent it to. Never waits, never raises."""

    def fail(self, error: Unavailable) -> None:
        """The store is away: it is unknown when the message will be released."""


@dataclass(slots=True)
class BufferedMessage:
    """A message without its position that waits for its release; not for ``skip``."""

    encoded: EncodedMessage
    skip: Sequence[str] = ()
    on_release: OnRelease | None = None


class RoomSequencer:
    """The position of one room's members on this node, and the messages that wait for it.

    ``position`` is None until it was read from the store.
    """

    __slots__ = (
        "checked",
        "held",
        "position",
        "reading",
        "reread",
        "retention",
        "room_id",
        "unconfirmed",
        "waiting",
    )

    def __init__(
        self, room_id: RoomId, retention: Retention | None, position: Position | None
    ) -> None:
        self.room_id = room_id
        self.retention = retention
        """None while it is not known."""
        self.position = position
        self.unconfirmed = False
        """Whether ``position`` was told by a packet, and the store has not confirmed it."""
        self.held: set[Link] = set()
        """Links of members that are still being sent what they missed."""
        self.waiting: dict[Position, BufferedMessage] = {}
        self.reading: asyncio.Task[Unavailable | None] | None = None
        self.reread = False
        """Whether the store may have more than the read in flight brings."""
        self.checked = position
        """Where it stood when it was last compared with the store."""

    def hold(self, at: Position, buffered: BufferedMessage) -> None:
        """Buffer a message if there is room. One with ``on_release`` is buffered in any case."""
        waits = self.waiting.get(at)
        if buffered.on_release is not None or (waits is None and len(self.waiting) < MAX_WAITING):
            self.waiting[at] = buffered

    def next(self) -> tuple[Position, BufferedMessage] | None:
        """Take out the message that follows the position; None if it is not there."""
        if not self.waiting or self.position is None:
            return None
        at = Position(self.position.epoch, self.position.offset + 1)
        buffered = self.waiting.pop(at, None)
        return None if buffered is None else (at, buffered)

    def take_stale(
        self, before: Iterable[Position], last: Position
    ) -> list[tuple[Position, BufferedMessage]]:
        """Take out the buffered messages at positions ``before`` that no read will bring: the
        members have had them, or the store, whose last position is ``last``, lacks them."""
        assert self.position is not None
        found = []
        for at in before:
            if not at.is_past(self.position) or at.is_past(last):
                buffered = self.waiting.pop(at, None)
                if buffered is not None:
                    found.append((at, buffered))
        return found
