"""Messages to rooms, each at its place where the room keeps a history.

Rules of this file:

1. A message has its place from the moment when the store has it. What the store does
   not take nobody gets.
2. What was given a place goes on to the members, here and elsewhere, whatever happens
   to the task that asked.
3. Notices of the server itself (typing, joins and leaves) have no place, nor has a message
   that is not to be kept: they go by ``fanout``, and so does every message of a room
   without history.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

from eyewall.application.cluster.peers import Cluster
from eyewall.application.cluster.protocol import RoomPosition, StreamMessage
from eyewall.application.concurrency.tasks import Effects
from eyewall.application.outbound.broadcast import FanOut
from eyewall.application.outbound.sender import Sender
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.message import Codec, EncodedMessage, read_message
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import HistoryStore
from eyewall.application.rooms.stream import BufferedMessage, Streams
from eyewall.domain.envelope import Message
from eyewall.domain.history import Entry, Position, Retention
from eyewall.domain.identity import ConnId, NodeId, RoomId


def _nothing() -> None:
    """There is nothing to look at again."""


class Published(NamedTuple):
    """How many connections of this node were meant, and where the message stands (None
    without history)."""

    delivered: int
    position: Position | None = None


class Publisher:
    """Publishes to rooms of the cluster."""

    def __init__(
        self,
        *,
        node: NodeId,
        history: HistoryStore,
        streams: Streams,
        fanout: FanOut,
        cluster: Cluster,
        sender: Sender,
        codec: Codec,
        clock: Clock,
        logger: Logger,
    ) -> None:
        self._node = node
        self._history = history
        self._streams = streams
        self._fanout = fanout
        self._cluster = cluster
        self._sender = sender
        self._codec = codec
        self._clock = clock
        self._effects = Effects(logger)
        self.is_plain = streams.is_plain
        self.retention = streams.retention
        cluster.on_event(StreamMessage, self._take)

    def to_room(
        self, room_id: RoomId, message: Message, *, skip: Collection[str] = (), keep: bool = True
    ) -> Awaitable[int]:
        """Send to a room, except to the connections ``skip``; returns how many connections
        of this node were meant. Without ``keep`` it takes no place in the room's history.

        Plain, so that a room without history pays for nothing but the question. Raises
        ``Unavailable`` when the message can't be given its place.
        """
        if not keep or self.is_plain(room_id):
            return self._fanout.to_room(room_id, message, skip=skip)
        return self._delivered(room_id, message, skip)

    async def _delivered(self, room_id: RoomId, message: Message, skip: Collection[str]) -> int:
        return (await self.publish(room_id, message, skip=skip)).delivered

    async def publish(
        self,
        room_id: RoomId,
        message: Message,
        *,
        skip: Collection[str] = (),
        look: Callable[[], None] = _nothing,
    ) -> Published:
        """The same; returns where the message stands too.

        ``look`` is called right before the message is given to the store or to the members:
        what it raises keeps it back.
        """
        retention = await self._streams.retention(room_id)
        if retention is None:
            await self._fanout.ready()
            look()
            return Published(await self._fanout.to_room(room_id, message, skip=skip))
        encoded = self._sender.encode(message, recipient=room_id, fan_out=True)
        arrival = BufferedMessage(encoded, list(skip))
        at = await self.place(room_id, retention, arrival, encoded, look=look)
        return Published(self._streams.recipient_count(room_id, skip), at)

    async def place(
        self,
        room_id: RoomId,
        retention: Retention,
        arrival: BufferedMessage,
        kept: EncodedMessage,
        called: Sequence[NodeId] = (),
        look: Callable[[], None] = _nothing,
    ) -> Position:
        """Give a message its place: ``kept`` is what the store and the other nodes get.

        The nodes ``called`` hear of it in another way. Raises ``InvalidEnvelope`` for a
        payload of a client that nobody can hold: it would be kept for all who come.
        """
        if kept.envelope is not None and kept.envelope.raw is not None:
            kept.envelope.raw.check()
        await self._sender.ready()
        work = partial(self._place, room_id, retention, arrival, kept, called, look)
        return await self._effects.run_to_completion(work)

    async def _place(
        self,
        room_id: RoomId,
        retention: Retention,
        arrival: BufferedMessage,
        kept: EncodedMessage,
        called: Sequence[NodeId],
        look: Callable[[], None],
    ) -> Position:
        look()
        entry = Entry(kept.payload, kept.priority, arrival.skip)
        at = await self._history.append(room_id, entry, retention, self._clock.wall())
        # Nothing waits in between: a later message of this node must not come first.
        self._streams.arrived(room_id, at, arrival)
        position = RoomPosition(room_id, at, tuple(ConnId(conn_id) for conn_id in arrival.skip))
        sent = StreamMessage(position, kept.priority, tuple(called))
        await self._cluster.notify_room(room_id, sent, kept.payload)
        return at

    def arrived(self, position: RoomPosition, arrival: BufferedMessage) -> None:
        """Take in a message that another node gave its position."""
        arrival.skip = position.skip
        self._streams.arrived(position.room, position.at, arrival)

    def _take(self, sent: StreamMessage, payload: bytes) -> None:
        room_id = sent.position.room
        if self._node in sent.delivered_by or not self._streams.is_here(room_id):
            return
        encoded = read_message(self._codec, payload, sent.priority, recipient=room_id, fan_out=True)
        self.arrived(sent.position, BufferedMessage(encoded))

    async def close(self) -> None:
        """End what is under way."""
        await self._effects.close()
