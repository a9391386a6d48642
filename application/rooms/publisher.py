"""Publishes messages to rooms; in a room with history each message gets its position.

Rules of this file:

1. A message gets its offset when the history store accepts it. If the store rejects it, no
   member gets it.
2. A message that has its position is delivered to the members on all nodes, even if the caller
   is cancelled.
3. Notices of the server (typing, joins and leaves), messages that are not kept, and messages
   to a room without history have no position: they go by ``fanout``.
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
    """Check nothing: the default of ``before_append``."""


class Published(NamedTuple):
    """How many connections of this node are recipients, and the message's position (None
    without history)."""

    delivered: int
    position: Position | None = None


class Publisher:
    """Publishes messages to rooms of the cluster."""

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
        cluster.on_event(StreamMessage, self._handle_message)

    def to_room(
        self, room_id: RoomId, message: Message, *, skip: Collection[str] = (), keep: bool = True
    ) -> Awaitable[int]:
        """Send to a room, except to the connections ``skip``; returns how many connections of
        this node are recipients. Without ``keep`` the message is not stored in the history.

        Raises ``Unavailable`` if the history store does not accept the message. A plain
        function: a room without history costs only the check, and no coroutine.
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
        before_append: Callable[[], None] = _nothing,
    ) -> Published:
        """Send to a room as ``to_room`` does; returns the message's position, too.

        ``before_append`` is called right before the message goes to the store or to the members:
        if it raises, the message is not sent and the error is raised here.
        """
        retention = await self._streams.retention(room_id)
        if retention is None:
            await self._fanout.ready()
            before_append()
            return Published(await self._fanout.to_room(room_id, message, skip=skip))
        encoded = self._sender.encode(message, recipient=room_id, fan_out=True)
        buffered = BufferedMessage(encoded, list(skip))
        at = await self.append(room_id, retention, buffered, encoded, before_append=before_append)
        return Published(self._streams.recipient_count(room_id, skip), at)

    async def append(
        self,
        room_id: RoomId,
        retention: Retention,
        buffered: BufferedMessage,
        kept: EncodedMessage,
        delivered_by: Sequence[NodeId] = (),
        before_append: Callable[[], None] = _nothing,
    ) -> Position:
        """Append a message to the room's history and deliver it; returns its position.

        The store and the other nodes get ``kept``. The nodes ``delivered_by`` get the message by
        another way. Raises ``InvalidEnvelope`` for a payload that can't be decoded, because the
        history would send it to every later member; ``Unavailable``.
        """
        if kept.envelope is not None and kept.envelope.raw is not None:
            kept.envelope.raw.check()
        await self._sender.ready()
        work = partial(
            self._append, room_id, retention, buffered, kept, delivered_by, before_append
        )
        return await self._effects.run_to_completion(work)

    async def _append(
        self,
        room_id: RoomId,
        retention: Retention,
        buffered: BufferedMessage,
        kept: EncodedMessage,
        delivered_by: Sequence[NodeId],
        before_append: Callable[[], None],
    ) -> Position:
        before_append()
        entry = Entry(kept.payload, kept.priority, buffered.skip)
        at = await self._history.append(room_id, entry, retention, self._clock.wall())
        # No await in between: a later message of this node must not overtake this one.
        self._streams.accept(room_id, at, buffered)
        position = RoomPosition(room_id, at, tuple(ConnId(conn_id) for conn_id in buffered.skip))
        sent = StreamMessage(position, kept.priority, tuple(delivered_by))
        await self._cluster.notify_room(room_id, sent, kept.payload)
        return at

    def accept(self, position: RoomPosition, buffered: BufferedMessage) -> None:
        """Deliver a message that another node has appended, at its ``position``."""
        buffered.skip = position.skip
        self._streams.accept(position.room, position.at, buffered)

    def _handle_message(self, sent: StreamMessage, payload: bytes) -> None:
        room_id = sent.position.room
        if self._node in sent.delivered_by or not self._streams.is_here(room_id):
            return
        encoded = read_message(self._codec, payload, sent.priority, recipient=room_id, fan_out=True)
        self.accept(sent.position, BufferedMessage(encoded))

    async def close(self) -> None:
        """Cancel the messages that are in flight."""
        await self._effects.close()
