"""Members of rooms that wait for a word on whether they may be there, and what waits for them.

A connection that an ``on_connect`` hook has joined to a room may be refused yet; one that has
become another user's may have no right to the room. What the room sends meanwhile is theirs
when they are let in, and nobody's when they are not.

Rules of this file:

1. What waits for one connection is bounded like its queue, by the same policy, and what waits
   for all of them together by ``MAX_WAITING``. What is dropped is counted and told.
2. Letting a member go and sending it what has waited is one step: nothing later comes first.
3. Nearly always nobody waits: then ``held`` is empty, which is all that a sender looks at.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from eyewall.application.connections.registry import Connection, Connections
from eyewall.application.outbound.sender import Sender
from eyewall.application.ports.message import EncodedMessage
from eyewall.application.ports.transport import Link
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.identity import RoomId
from eyewall.domain.outbox import Offer, Outbox, QueueConfig
from eyewall.domain.pool import Pool

MAX_WAITING: Final = 64 * 2**20
"""Bytes for all connections together; what many of them wait for is held once."""


_NONE: Final = frozenset[RoomId]()


class HeldMembers:
    """Who waits to hear a room, and what it has to hear then."""

    def __init__(
        self,
        *,
        connections: Connections,
        sender: Sender,
        queue: QueueConfig,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._connections = connections
        self._sender = sender
        self._config = queue
        self._pool = Pool(max_waiting)
        self._queues: dict[Link, Outbox[EncodedMessage]] = {}
        self.held: dict[RoomId, set[Link]] = {}
        """The members who wait, by room. Changed only here."""

    def __len__(self) -> int:
        """For how many connections something waits."""
        return len(self._queues)

    def hold(self, room_id: RoomId, conn: Connection) -> None:
        """Send a member nothing of the room until ``release``."""
        self.held.setdefault(room_id, set()).add(conn.link)
        conn.held |= {room_id}

    def keep(self, room_id: RoomId, frame: EncodedMessage, skip: Collection[Link] = ()) -> int:
        """Keep a message of a room for the members who wait, except ``skip``; returns for how
        many it is."""
        links = [link for link in self.held.get(room_id, ()) if link not in skip]
        for link in links:
            self._keep(link.owner, frame)
        return len(links)

    def _keep(self, conn: Connection, frame: EncodedMessage) -> None:
        queue = self._queues.get(conn.link)
        if queue is None:
            queue = self._queues[conn.link] = Outbox(self._config, self._pool)
        offer, dropped = Offer.DROPPED_NEWEST, [frame]
        if not self._pool.full:
            offer, lost = queue.offer(frame)
            dropped = list(lost)
        for each in dropped:
            self._sender.drop(conn, each)
        if offer is Offer.OVERFLOWED:
            self._connections.end(conn, DisconnectReason.SLOW_CONSUMER)

    def release(self, rooms: Collection[RoomId], conn: Connection) -> None:
        """Send a member of ``rooms`` what has waited, and what comes from now on."""
        if conn.held.isdisjoint(rooms):
            return
        for frame in self._let_go(rooms, conn):
            self._sender.enqueue_or_report(conn, frame)
        if not conn.link.queued:
            self._sender.send_gaps(conn)

    def discard(self, rooms: Collection[RoomId], conn: Connection) -> None:
        """A connection is not in ``rooms`` any more: what they sent is not for it."""
        if not conn.held.isdisjoint(rooms):
            self._let_go(rooms, conn)

    def _let_go(self, rooms: Collection[RoomId], conn: Connection) -> list[EncodedMessage]:
        """Hold a connection no longer; returns what has waited for it, in order."""
        for room_id in conn.held.intersection(rooms):
            waiting = self.held[room_id]
            waiting.discard(conn.link)
            if not waiting:
                del self.held[room_id]
        conn.held = conn.held.difference(rooms) or _NONE
        queue = self._queues.pop(conn.link, None)
        if queue is None:
            return []
        frames = queue.clear()
        others = [frame for frame in frames if _room_of(frame) not in rooms]
        if others:
            self._queues[conn.link] = queue
            for frame in others:
                queue.offer(frame)
        return [frame for frame in frames if _room_of(frame) in rooms]


def _room_of(frame: EncodedMessage) -> str | None:
    return frame.stream or frame.recipient
