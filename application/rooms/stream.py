"""The order of rooms with history, as the members on this node see it.

Rules of this file:

1. The store is the truth. A gate keeps the position up to which a room's members here
   have been served, and lets only the next message through.
2. A message that is not the next one is not passed on. One that was is dropped; where
   others are missing before it, they are read from the store, one reading at a time.
3. Moving the position and handing the message to the audience are one step. So is
   reading the position and taking a member in.
4. What waits at a gate is bounded: what does not fit is in the store.


What waits for its turn in a room with history. ``streams`` has the rules."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.connections.registry import BroadcastGroups, Connections
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

PAGE = 64
"""Messages that one reading brings: of the largest size they are 64 MiB."""


TELL_FOREIGN = 60.0
"""Seconds between two log lines about foreign epochs; each is counted."""


CHECK = 10.0
"""Seconds after which a room where nothing happened is compared with the store: the last
message before a silence may have been lost on its way, and nothing comes to tell."""


class Streams:
    """The gates of all rooms with history that have members here."""

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
        self._foreign_told = -math.inf
        self._gates: dict[RoomId, RoomSequencer] = {}
        self._tasks = TaskSet(logger)
        self._timer: Timer | None = None
        self._checking: asyncio.Task[None] | None = None
        self.changes = 0
        """How often rooms have begun or ended to keep a history, as far as this node was
        told: who has asked the state before that asks again."""

    def __len__(self) -> int:
        return len(self._gates)

    # --- what is known of rooms

    def is_plain(self, room_id: RoomId) -> bool:
        """Whether the room has members here and keeps no history."""
        return room_id not in self._gates and room_id in self._broadcast_groups.of

    def is_here(self, room_id: RoomId) -> bool:
        """Whether anybody here is in the room, or about to be."""
        return room_id in self._gates or room_id in self._broadcast_groups.of

    def position(self, room_id: RoomId) -> Position | None:
        """Up to where the members here have been served; None without history."""
        gate = self._gates.get(room_id)
        return None if gate is None else gate.position

    async def retention(self, room_id: RoomId) -> Retention | None:
        """How much the room keeps. The state is asked where no member here says so."""
        gate = self._gates.get(room_id)
        if gate is not None and gate.retention is not None:
            return gate.retention
        return None if self.is_plain(room_id) else await self._ask(room_id)

    async def _ask(self, room_id: RoomId) -> Retention | None:
        room = await self._state.room(room_id)
        retention = None if room is None else Retention.of(room.options)
        gate = self._gates.get(room_id)
        if gate is not None and retention is None:
            self.changes += 1
            self._drop(gate)
        elif gate is not None:
            gate.retention = retention
        return retention

    def changed(self, room_id: RoomId, retention: Retention | None, at: Position | None) -> None:
        """The room's options were changed; ``at`` is where a history that begins stands."""
        self.changes += 1
        gate = self._gates.get(room_id)
        if retention is None:
            if gate is not None:
                self._drop(gate)
            return
        position = None if gate is None else gate.position
        begins = at is not None and (position is None or position.epoch != at.epoch)
        if gate is not None and not begins:
            gate.retention = retention
            return
        if gate is not None:
            self._drop(gate)
        if self._broadcast_groups.get(room_id) is not None:
            gate = self._new(room_id, retention, at)
            if at is None:
                self._read(gate)

    # --- coming and going

    async def open(
        self, room_id: RoomId, retention: Retention | None, as_of: int, *, fresh: bool = False
    ) -> None:
        """Have a gate, if the room keeps a history: a connection is about to come in.

        ``as_of``: the ``changes`` when ``retention`` was asked for. With ``fresh`` the store
        is read in any case, and the members here are served up to its last message. Raises
        ``Unavailable``. The connection comes in, or ``left`` is called, in the same step.
        """
        while True:
            while as_of != self.changes:
                as_of = self.changes
                retention = await self._ask(room_id)
            gate = self._gates.get(room_id)
            if retention is None:
                if gate is not None:
                    self._drop(gate)
                return
            gate = gate or self._new(room_id, retention, None)
            gate.retention = retention
            if gate.position is not None and not fresh:
                return
            # Somebody who leaves meanwhile may close the gate: then there is another one.
            error = await (self._read_anew(gate) if fresh else asyncio.shield(self._read(gate)))
            fresh = False
            if error is not None:
                raise error

    def hold(self, room_id: RoomId, link: Link) -> None:
        """Pass nothing to a member until ``let_go``: it is sent what it missed first."""
        gate = self._gates.get(room_id)
        if gate is not None:
            gate.held.add(link)

    def is_held(self, room_id: RoomId, link: Link) -> bool:
        """Whether that still holds; it does not when the history has ended meanwhile."""
        gate = self._gates.get(room_id)
        return gate is not None and link in gate.held

    def let_go(self, room_id: RoomId, link: Link) -> None:
        """From here on what passes is the member's too."""
        gate = self._gates.get(room_id)
        if gate is not None:
            gate.held.discard(link)

    async def refresh(self, room_id: RoomId) -> None:
        """Serve the members up to the store's last; raises ``Unavailable``."""
        gate = self._gates.get(room_id)
        if gate is not None and (error := await self._read_anew(gate)) is not None:
            raise error

    def left(self, room_id: RoomId) -> None:
        """A connection has gone: the last one closes the gate."""
        gate = self._gates.get(room_id)
        if gate is not None and self._broadcast_groups.get(room_id) is None:
            self._drop(gate)

    def _new(
        self, room_id: RoomId, retention: Retention | None, position: Position | None
    ) -> RoomSequencer:
        gate = self._gates[room_id] = RoomSequencer(room_id, retention, position)
        if self._timer is None:
            self._timer = self._clock.call_later(CHECK, self._check_soon)
        return gate

    def _drop(self, gate: RoomSequencer) -> None:
        del self._gates[gate.room_id]
        waiting, gate.waiting = gate.waiting, {}
        for at, arrival in waiting.items():
            self._late(gate.room_id, at, arrival)

    # --- passing

    def meant(self, room_id: RoomId, skip: Collection[str] = ()) -> int:
        """How many connections here a message is for that is not for ``skip``."""
        audience = self._broadcast_groups.get(room_id)
        return 0 if audience is None else len(audience) - len(self._links(skip, room_id))

    def arrived(self, room_id: RoomId, at: Position, arrival: BufferedMessage) -> None:
        """A message has come, by this node's own doing or from the bus: now, later or not
        at all it passes. Never waits."""
        gate = self._gates.get(room_id)
        if gate is None:
            if self._broadcast_groups.get(room_id) is None:
                self._late(room_id, at, arrival)
                return
            # Members, and no word of a history so far: it begins for them here.
            gate = self._new(room_id, None, at.before)
            gate.hearsay = True
            self._read(gate)
        here = gate.position
        if here is not None and at.follows(here):
            self._release(gate, at, arrival)
            self._release_next(gate)
        elif here is not None and at.epoch == here.epoch and not at.is_past(here):
            self._late(room_id, at, arrival)
        else:
            gate.hold(at, arrival)
            gate.again = True
            self._read(gate)

    def _release(self, gate: RoomSequencer, at: Position, arrival: BufferedMessage | None) -> None:
        gate.position = at
        if arrival is None:
            return
        frame = arrival.frame.with_position(gate.room_id, at)
        skip = self._links(arrival.skip) | gate.held
        if arrival.turn is not None:
            skip.update(arrival.turn.begin(frame))
        self._publish(gate.room_id, frame, skip)

    def _publish(self, room_id: RoomId, frame: EncodedMessage, skip: Collection[Link]) -> None:
        audience = self._broadcast_groups.get(room_id)
        if audience is None:
            return
        waiting = self._held_members.held.get(room_id)
        if waiting is None:
            self._sender.broadcast(audience, frame, skip)
        else:
            self._sender.broadcast(audience, frame, waiting.union(skip))
            self._held_members.keep(room_id, frame, skip)

    def _release_next(self, gate: RoomSequencer) -> None:
        """Let through what waits, as long as it is the next."""
        while (found := gate.next()) is not None:
            self._release(gate, *found)

    @staticmethod
    def _late(room_id: RoomId, at: Position, arrival: BufferedMessage) -> None:
        """The members have had it, or nobody is there: only a turn is still to be had."""
        if arrival.turn is not None:
            arrival.turn.begin(arrival.frame.with_position(room_id, at))

    def _links(self, conn_ids: Collection[str], room_id: RoomId | None = None) -> set[Link]:
        conns = [c for conn_id in conn_ids if (c := self._connections.get(conn_id)) is not None]
        return {conn.link for conn in conns if room_id is None or room_id in conn.roles}

    # --- reading what is missing

    def _read(self, gate: RoomSequencer) -> asyncio.Task[Unavailable | None]:
        if gate.reading is None:
            gate.reading = self._tasks.spawn(self._catch_up(gate))
        return gate.reading

    async def _read_anew(self, gate: RoomSequencer) -> Unavailable | None:
        """Read what the store has now. A reading under way may have begun before the last
        message, so the next one is waited for too: two at most, whatever others ask for."""
        if gate.reading is not None and (error := await asyncio.shield(gate.reading)) is not None:
            return error
        return await asyncio.shield(self._read(gate))

    async def _catch_up(self, gate: RoomSequencer) -> Unavailable | None:
        """Serve the members up to the store's last; returns why that could not be done."""
        try:
            while self._gates.get(gate.room_id) is gate:
                gate.again = False
                if gate.position is None:
                    gate.position = await self._history.position(gate.room_id)
                    self._release_next(gate)
                else:
                    await self._read_page(gate, gate.position)
                if not gate.again and not gate.waiting:
                    break
        except Unavailable as error:
            self._logger.warning("history_not_read", room=gate.room_id, error=told(error))
            self._fail_turns(gate, error)
            return error
        except BaseException:
            # Whatever it was, and be it the node's end: who waits for a turn is told.
            self._fail_turns(gate, Unavailable("the history was not read"))
            raise
        finally:
            gate.reading = None
        return None

    @staticmethod
    def _fail_turns(gate: RoomSequencer, error: Unavailable) -> None:
        for arrival in gate.waiting.values():
            if arrival.turn is not None:
                arrival.turn.fail(error)

    async def _read_page(self, gate: RoomSequencer, since: Position) -> None:
        await self._sender.ready()
        due = list(gate.waiting)
        now = self._clock.wall()
        page = await self._history.read(gate.room_id, since, PAGE, now)
        if self._gates.get(gate.room_id) is not gate or gate.position is None:
            return
        if gate.hearsay and page.position.epoch != since.epoch:
            self._foreign(gate)
        gate.hearsay = False
        if not page.recovered and gate.position == since:
            self._skip(gate, page)
        for at, entry in page.placed():
            if at.follows(gate.position):
                arrival = gate.waiting.pop(at, None) or self._arrival(gate.room_id, entry)
                self._release(gate, at, arrival)
        self._release_next(gate)
        gate.again = gate.again or page.position.is_past(gate.position)
        # What waited before the store was asked is in its answer, or was never true.
        for at, given_up in gate.give_up(due, page.position):
            if at.epoch != page.position.epoch:
                self._foreign(gate)
            self._late(gate.room_id, at, given_up)

    def _foreign(self, gate: RoomSequencer) -> None:
        """A packet had a place of an epoch that the store does not know: now and then, of a
        room that was deleted meanwhile; often, of a node with another store."""
        self._stats.happened(Incident.FOREIGN_EPOCHS)
        now = self._clock.now()
        if now - self._foreign_told >= TELL_FOREIGN:
            self._foreign_told = now
            self._logger.warning("foreign_epoch", room=gate.room_id)

    def _skip(self, gate: RoomSequencer, page: Page) -> None:
        """What the members have to get next is gone: tell them, and go on with the rest.

        They are told the place where they stand: resuming from it, each learns what it
        needs to know, be it that messages or that an epoch ended.
        """
        assert gate.position is not None
        self._logger.warning("history_lost", room=gate.room_id, offset=gate.position.offset)
        # Who is held learns it from what it is sent when it is let go.
        held = gate.held.intersection(self._held_members.held.get(gate.room_id, ()))
        self._publish(gate.room_id, self._sender.encode_gap(gate.room_id, gate.position), held)
        if page.position.epoch == gate.position.epoch:
            gate.position = Position(page.position.epoch, page.first - 1)
        else:
            gate.position = Position(page.position.epoch, 0)
            gate.again = True

    def frame(self, room_id: RoomId, entry: Entry) -> EncodedMessage | None:
        """A kept message, ready to be placed; None, and logged, if it can't be read."""
        try:
            return read_message(
                self._codec, entry.payload, entry.priority, recipient=room_id, fan_out=True
            )
        except MalformedMessage as error:
            self._logger.error("entry_not_read", room=room_id, error=told(error))
            return None

    def _arrival(self, room_id: RoomId, entry: Entry) -> BufferedMessage | None:
        frame = self.frame(room_id, entry)
        return None if frame is None else BufferedMessage(frame, entry.skip)

    # --- comparing

    def _check_soon(self) -> None:
        self._timer = None
        if self._checking is None or self._checking.done():
            self._checking = self._tasks.spawn(self.check())
        if self._gates:
            self._timer = self._clock.call_later(CHECK, self._check_soon)

    async def check(self) -> None:
        """Compare the rooms that stand still with the store, one after the other."""
        for gate in list(self._gates.values()):
            stands = gate.checked == gate.position
            gate.checked = gate.position
            if stands and self._gates.get(gate.room_id) is gate and await self._read(gate):
                return  # away: each of the others would have to wait as long

    async def close(self) -> None:
        """End what is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tasks.close()


MAX_WAITING = 256
"""Messages that wait at one gate for those before them. They are shared with nobody, so
as many as the queue of one connection."""


class OnRelease(Protocol):
    """Somebody who has more to do with a message than to send it to the members."""

    def begin(self, frame: EncodedMessage) -> Collection[Link]:
        """The message's turn has come, or is over already. Returns the links that it was
        sent to. Never waits, never raises."""

    def fail(self, error: Unavailable) -> None:
        """Nobody can say when its turn will come: the store is away."""


@dataclass(slots=True)
class BufferedMessage:
    """A message that wants to pass, without its place; not for the connections ``skip``."""

    frame: EncodedMessage
    skip: Sequence[str] = ()
    turn: OnRelease | None = None


class RoomSequencer:
    """What one room's members here have had, and what waits for them.

    ``position`` is None until the store has been asked for it.
    """

    __slots__ = (
        "again",
        "checked",
        "hearsay",
        "held",
        "position",
        "reading",
        "retention",
        "room_id",
        "waiting",
    )

    def __init__(
        self, room_id: RoomId, retention: Retention | None, position: Position | None
    ) -> None:
        self.room_id = room_id
        self.retention = retention
        """None while it is not known."""
        self.position = position
        self.hearsay = False
        """Whether ``position`` was told by a packet, and the store has not confirmed it."""
        self.held: set[Link] = set()
        """Members whom nothing is passed to: they are being sent what they missed."""
        self.waiting: dict[Position, BufferedMessage] = {}
        self.reading: asyncio.Task[Unavailable | None] | None = None
        self.again = False
        """Whether more may be in the store than the reading under way brings."""
        self.checked = position
        """Where it stood when it was last compared with the store."""

    def hold(self, at: Position, arrival: BufferedMessage) -> None:
        """Have a message wait, if there is room; one with a turn has it in any case."""
        waits = self.waiting.get(at)
        if arrival.turn is not None or (waits is None and len(self.waiting) < MAX_WAITING):
            self.waiting[at] = arrival

    def next(self) -> tuple[Position, BufferedMessage] | None:
        """Take out what may pass now: the message right after the position."""
        if not self.waiting or self.position is None:
            return None
        at = Position(self.position.epoch, self.position.offset + 1)
        arrival = self.waiting.pop(at, None)
        return None if arrival is None else (at, arrival)

    def give_up(
        self, before: Iterable[Position], last: Position
    ) -> list[tuple[Position, BufferedMessage]]:
        """Take out those of the places ``before`` that no reading will bring: the members
        have had them, or the store, which stands at ``last``, does not know them."""
        assert self.position is not None
        found = []
        for at in before:
            if not at.is_past(self.position) or at.is_past(last):
                arrival = self.waiting.pop(at, None)
                if arrival is not None:
                    found.append((at, arrival))
        return found
