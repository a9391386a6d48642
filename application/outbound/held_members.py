"""Held members of rooms: their authorization is pending, and their messages wait.

A connection that an ``on_connect`` hook has joined to a room may still be refused. A
connection whose user has changed may not be authorized for the room. The room's messages are
queued meanwhile: delivered when the member is released, dropped when it is removed.

Rules of this file:

1. The queue of one connection has the bounds and the policy of its link's queue, and all
   queues together are bounded by ``MAX_WAITING``. Dropped messages are counted and reported.
2. Releasing a member and sending its queue is one step: order is FIFO.
3. Nearly always no member is held: then ``held`` is empty, and a sender checks only that.
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
"""Bytes for all connections together: eight full queues. A message that many connections wait
for is stored and counted once."""


_NONE: Final = frozenset[RoomId]()


class HeldMembers:
    """The held members of this node's rooms, and the messages that wait for them."""

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
        """The links of held members, by room. Changed only here."""

    def __len__(self) -> int:
        """Return for how many connections messages wait."""
        return len(self._queues)

    def hold(self, room_id: RoomId, conn: Connection) -> None:
        """Hold back the room's messages for a member until ``release``."""
        self.held.setdefault(room_id, set()).add(conn.link)
        conn.held |= {room_id}

    def keep(self, room_id: RoomId, message: EncodedMessage, skip: Collection[Link] = ()) -> int:
        """Queue a room's message for its held members, except ``skip``; returns their number."""
        links = [link for link in self.held.get(room_id, ()) if link not in skip]
        for link in links:
            self._keep(link.owner, message)
        return len(links)

    def _keep(self, conn: Connection, message: EncodedMessage) -> None:
        queue = self._queues.get(conn.link)
        if queue is None:
            queue = self._queues[conn.link] = Outbox(self._config, self._pool)
        offer, dropped = Offer.DROPPED_NEWEST, [message]
        if not self._pool.full:
            offer, lost = queue.offer(message)
            dropped = list(lost)
        for each in dropped:
            self._sender.drop(conn, each)
        if offer is Offer.OVERFLOWED:
            self._connections.end(conn, DisconnectReason.SLOW_CONSUMER)

    def release(self, rooms: Collection[RoomId], conn: Connection) -> None:
        """Send a member the messages of ``rooms`` that have waited; later ones are not held."""
        if conn.held.isdisjoint(rooms):
            return
        for message in self._let_go(rooms, conn):
            self._sender.enqueue_or_report(conn, message)
        if not conn.link.queued:
            self._sender.send_gaps(conn)

    def discard(self, rooms: Collection[RoomId], conn: Connection) -> None:
        """Drop the messages of ``rooms`` for a connection that has left them."""
        if not conn.held.isdisjoint(rooms):
            self._let_go(rooms, conn)

    def _let_go(self, rooms: Collection[RoomId], conn: Connection) -> list[EncodedMessage]:
        """Stop holding a connection for ``rooms``; returns their waiting messages in order."""
        for room_id in conn.held.intersection(rooms):
            waiting = self.held[room_id]
            waiting.discard(conn.link)
            if not waiting:
                del self.held[room_id]
        conn.held = conn.held.difference(rooms) or _NONE
        queue = self._queues.pop(conn.link, None)
        if queue is None:
            return []
        messages = queue.clear()
        others = [message for message in messages if _room_of(message) not in rooms]
        if others:
            self._queues[conn.link] = queue
            for message in others:
                queue.offer(message)
        return [message for message in messages if _room_of(message) in rooms]


def _room_of(message: EncodedMessage) -> str | None:
    return message.stream or message.recipient
