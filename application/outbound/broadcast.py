"""To many at once: a room, everybody, or whoever fits, on this node and the others.

The local members come first; then the others hear of it, as the bytes already encoded.
A message from the bus is fanned out here and never published again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from eyewall.application.cluster.packet import BadPacket, strings
from eyewall.application.cluster.peers import Cluster
from eyewall.application.connections.registry import BroadcastGroups, Connections
from eyewall.application.outbound.held_members import HeldMembers
from eyewall.application.outbound.recipients import Filter, checked, where_in, where_out
from eyewall.application.outbound.sender import Sender
from eyewall.application.ports.message import Codec, EncodedMessage, read_frame, read_text
from eyewall.application.ports.transport import Link
from eyewall.domain.envelope import Message
from eyewall.domain.identity import RoomId, Where

_ROOM, _ALL, _TEXT, _WHERE = "room", "all", "text", "where"


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
        cluster.on_cast(_ROOM, self._take_room)
        cluster.on_cast(_ALL, self._take_all)
        cluster.on_cast(_TEXT, self._take_text)
        cluster.on_cast(_WHERE, self._take_where)

    # --- what is sent here

    async def to_room(
        self,
        room_id: RoomId,
        message: Message,
        *,
        skip: Collection[str] = (),
        skip_user: str | None = None,
    ) -> int:
        """Send to a room, except to the connections ``skip`` and to one user's.

        Returns how many connections of this node were meant.
        """
        frame = self._sender.frame(message, recipient=room_id, fan_out=True)
        reached = await self._local_room(room_id, frame, skip, skip_user)
        header: dict[str, Any] = {"room": room_id, "p": int(frame.priority)}
        if skip:
            header["x"] = list(skip)
        if skip_user is not None:
            header["u"] = skip_user
        await self._cluster.cast_room(room_id, _ROOM, header, frame.payload)
        return reached

    async def to_all(self, message: Message) -> int:
        frame = self._sender.frame(message, recipient="*", fan_out=True)
        reached = await self._sender.to_audience(self._connections.everyone, frame)
        await self._cluster.cast_all(_ALL, {"p": int(frame.priority)}, frame.payload)
        return reached

    async def text_to_all(self, text: str) -> int:
        frame = self._sender.text(text, fan_out=True)
        reached = await self._sender.to_audience(self._connections.everyone, frame)
        await self._cluster.cast_all(_TEXT, {}, frame.payload)
        return reached

    async def to_fitting(self, message: Message, fits: Filter | Where) -> int:
        """Send to whom ``fits`` says; a ``Where`` means the cluster, a callable this node."""
        fits = checked(fits)
        # Read before anybody gets it: what can't be asked of others is nobody's.
        where = where_out(fits) if isinstance(fits, Where) else None
        frame = self._sender.frame(message, recipient="*", fan_out=True)
        reached = await self._local_fitting(frame, fits)
        if where is not None:
            header = {"p": int(frame.priority), "where": where}
            await self._cluster.cast_all(_WHERE, header, frame.payload)
        return reached

    # --- this node

    async def _local_room(
        self, room_id: str, frame: EncodedMessage, skip: Collection[str], skip_user: str | None
    ) -> int:
        await self._sender.ready()
        return self._publish(room_id, frame, skip, skip_user)

    def _publish(
        self, room_id: str, frame: EncodedMessage, skip: Collection[str], skip_user: str | None
    ) -> int:
        """Send to the members who are here now; returns to how many."""
        audience = self._broadcast_groups.get(room_id)
        if audience is None:
            return 0
        links = self._links(skip, skip_user)
        held = self._held_members.held
        if not held or not (waiting := held.get(RoomId(room_id))):
            return self._sender.publish(audience, frame, links)
        reached = self._sender.publish(audience, frame, waiting.union(links))
        return reached + self._held_members.keep(RoomId(room_id), frame, links)

    def _links(self, skip: Collection[str], skip_user: str | None) -> Collection[Link]:
        if not skip and skip_user is None:
            return ()
        conns = [c for conn_id in skip if (c := self._connections.get(conn_id)) is not None]
        if skip_user is not None:
            conns += self._connections.of_user(skip_user)
        return {conn.link for conn in conns}

    async def _local_fitting(self, frame: EncodedMessage, fits: Filter) -> int:
        await self._sender.ready()
        conns = [conn for conn in self._connections if conn.is_in and fits(conn.meta)]
        return self._sender.to_many(conns, frame)

    # --- what other nodes sent

    def _frame(self, header: dict[str, Any], payload: bytes, recipient: str) -> EncodedMessage:
        return read_frame(self._codec, header, payload, recipient=recipient, fan_out=True)

    def _take_room(self, header: dict[str, Any], payload: bytes) -> None:
        room_id, skip, user = header.get("room"), strings(header.get("x", [])), header.get("u")
        if not isinstance(room_id, str) or not isinstance(user, str | None):
            raise BadPacket("a room's message without a room")
        self._publish(room_id, self._frame(header, payload, room_id), skip, user)

    def _take_all(self, header: dict[str, Any], payload: bytes) -> None:
        self._sender.publish(self._connections.everyone, self._frame(header, payload, "*"))

    def _take_text(self, header: dict[str, Any], payload: bytes) -> None:
        frame = self._sender.text(read_text(payload), fan_out=True)
        self._sender.publish(self._connections.everyone, frame)

    def _take_where(self, header: dict[str, Any], payload: bytes) -> None:
        fits = where_in(header.get("where"))
        frame = self._frame(header, payload, "*")
        conns = [conn for conn in self._connections if conn.is_in and fits(conn.meta)]
        self._sender.to_many(conns, frame)
