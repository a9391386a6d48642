"""Fan-out: one message to a room, to all, or to filtered connections of the cluster.

The message is queued for the connections of this node first, then published on the bus as
the bytes already encoded. A message from the bus is fanned out here, and never published again.
"""

from __future__ import annotations

from collections.abc import Collection

from eyewall.application.cluster.fields import where_fields
from eyewall.application.cluster.peers import Cluster
from eyewall.application.cluster.protocol import (
    BroadcastMessage,
    BroadcastText,
    FilteredMessage,
    RoomMessage,
)
from eyewall.application.connections.registry import BroadcastGroups, Connections
from eyewall.application.outbound.held_members import HeldMembers
from eyewall.application.outbound.recipients import Filter, checked
from eyewall.application.outbound.sender import Sender
from eyewall.application.ports.message import Codec, EncodedMessage, read_message, read_text
from eyewall.application.ports.transport import Link
from eyewall.domain.envelope import Message
from eyewall.domain.identity import ConnId, RoomId, UserId, Where


class FanOut:
    """Sends one message to many connections of the cluster."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        broadcast_groups: BroadcastGroups,
        held_members: HeldMembers,
        connections: Connections,
        sender: Sender,
        codec: Codec,
    ) -> None:
        self._cluster = cluster
        self._broadcast_groups = broadcast_groups
        self._held_members = held_members
        self._connections = connections
        self._sender = sender
        self._codec = codec
        self.ready = sender.ready
        cluster.on_event(RoomMessage, self._take_room)
        cluster.on_event(BroadcastMessage, self._take_all)
        cluster.on_event(BroadcastText, self._take_text)
        cluster.on_event(FilteredMessage, self._take_where)

    # --- messages of this node

    async def to_room(
        self,
        room_id: RoomId,
        message: Message,
        *,
        skip: Collection[str] = (),
        skip_user: str | None = None,
    ) -> int:
        """Send to a room, except to the connections ``skip`` and those of ``skip_user``.

        Returns the number of recipients on this node. Raises ``Misuse`` for data that can't be
        encoded. A bus that can't be reached is counted, not raised.
        """
        encoded = self._sender.encode(message, recipient=room_id, fan_out=True)
        reached = await self._local_room(room_id, encoded, skip, skip_user)
        sent = RoomMessage(
            room_id,
            encoded.priority,
            tuple(ConnId(conn_id) for conn_id in skip),
            None if skip_user is None else UserId(skip_user),
        )
        await self._cluster.notify_room(room_id, sent, encoded.payload)
        return reached

    async def to_all(self, message: Message) -> int:
        """Send to all connections of the cluster; returns and raises as ``to_room``."""
        encoded = self._sender.encode(message, recipient="*", fan_out=True)
        reached = await self._sender.broadcast_when_ready(self._connections.everyone, encoded)
        await self._cluster.notify_all(BroadcastMessage(encoded.priority), encoded.payload)
        return reached

    async def text_to_all(self, text: str) -> int:
        """Send a text without an envelope to all; returns and raises as ``to_room``."""
        encoded = self._sender.encode_text(text, fan_out=True)
        reached = await self._sender.broadcast_when_ready(self._connections.everyone, encoded)
        await self._cluster.notify_all(BroadcastText(), encoded.payload)
        return reached

    async def to_fitting(self, message: Message, fits: Filter | Where) -> int:
        """Send to the connections that ``fits`` accepts; returns and raises as ``to_room``.

        A ``Where`` selects in the cluster, a callable on this node. Raises ``ValueError`` if
        it is neither.
        """
        fits = checked(fits)
        if isinstance(fits, Where):
            where_fields(fits)  # raises before any connection gets the message
        encoded = self._sender.encode(message, recipient="*", fan_out=True)
        reached = await self._local_fitting(encoded, fits)
        if isinstance(fits, Where):
            await self._cluster.notify_all(FilteredMessage(encoded.priority, fits), encoded.payload)
        return reached

    # --- this node

    async def _local_room(
        self, room_id: str, encoded: EncodedMessage, skip: Collection[str], skip_user: str | None
    ) -> int:
        await self._sender.ready()
        return self._publish(room_id, encoded, skip, skip_user)

    def _publish(
        self, room_id: str, encoded: EncodedMessage, skip: Collection[str], skip_user: str | None
    ) -> int:
        """Queue for the current members on this node; returns their number."""
        group = self._broadcast_groups.get(room_id)
        if group is None:
            return 0
        links = self._links(skip, skip_user)
        held = self._held_members.held
        if not held or not (waiting := held.get(RoomId(room_id))):
            return self._sender.broadcast(group, encoded, links)
        reached = self._sender.broadcast(group, encoded, waiting.union(links))
        return reached + self._held_members.keep(RoomId(room_id), encoded, links)

    def _links(self, skip: Collection[str], skip_user: str | None) -> Collection[Link]:
        if not skip and skip_user is None:
            return ()
        conns = [c for conn_id in skip if (c := self._connections.get(conn_id)) is not None]
        if skip_user is not None:
            conns += self._connections.of_user(skip_user)
        return {conn.link for conn in conns}

    async def _local_fitting(self, encoded: EncodedMessage, fits: Filter) -> int:
        await self._sender.ready()
        conns = [conn for conn in self._connections if conn.is_admitted and fits(conn.meta)]
        return self._sender.enqueue_to_each(conns, encoded)

    # --- messages of other nodes

    def _read(self, priority: int, payload: bytes, recipient: str) -> EncodedMessage:
        return read_message(self._codec, payload, priority, recipient=recipient, fan_out=True)

    def _take_room(self, sent: RoomMessage, payload: bytes) -> None:
        encoded = self._read(sent.priority, payload, sent.room)
        self._publish(sent.room, encoded, sent.skip, sent.skip_user)

    def _take_all(self, sent: BroadcastMessage, payload: bytes) -> None:
        encoded = self._read(sent.priority, payload, "*")
        self._sender.broadcast(self._connections.everyone, encoded)

    def _take_text(self, _: BroadcastText, payload: bytes) -> None:
        encoded = self._sender.encode_text(read_text(payload), fan_out=True)
        self._sender.broadcast(self._connections.everyone, encoded)

    def _take_where(self, sent: FilteredMessage, payload: bytes) -> None:
        encoded = self._read(sent.priority, payload, "*")
        conns = [conn for conn in self._connections if conn.is_admitted and sent.where(conn.meta)]
        self._sender.enqueue_to_each(conns, encoded)
