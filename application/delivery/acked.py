"""Delivery with acks, on all nodes at once.

Rules of this file:

1. All nodes, and all connections of a node, are served concurrently: a silent one does not
   delay the others' outcomes.
2. The outcomes of a node that does not answer in time are ``UNKNOWN``, not failed; they do not
   change the outcomes of other nodes.
3. Failure handlers run on the sending node only.
4. In a room with history a message is sent in the order of the room's stream. Members that
   joined after the recipients were located get it, too, without an ack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from eyewall.application.cluster.packet import BadPacket
from eyewall.application.cluster.peers import Cluster
from eyewall.application.cluster.protocol import Deliver, RoomPosition
from eyewall.application.connections.registry import Connection, Connections
from eyewall.application.delivery.locator import Recipient
from eyewall.application.delivery.pending_acks import (
    AckBatch,
    Outcome,
    PendingAcks,
    outcomes_in,
    outcomes_out,
    unknown,
)
from eyewall.application.outbound.recipients import RecipientFilter
from eyewall.application.outbound.sender import Addressee, Sender
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.message import Codec, EncodedMessage, read_message
from eyewall.application.ports.transport import Link
from eyewall.application.rooms.publisher import Publisher
from eyewall.application.rooms.stream import BufferedMessage
from eyewall.domain.delivery import Plan
from eyewall.domain.envelope import Message
from eyewall.domain.errors import ConnectionClosed, Unavailable
from eyewall.domain.identity import ConnId, NodeId, RoomId
from eyewall.domain.report import FailureReason

MARGIN = 2.0
"""Seconds that another node gets on top of the time of its clients."""


CONNECTIONS_PER_REQUEST = 1000
"""Most connections of one request to a node: the answer, about 200 bytes for each and some
1 KiB for a nack with a text, has to fit a packet (``pending_acks.MAX_ANSWER``)."""


class AckedDelivery:
    """Delivers to connections on any node, and waits for their acks."""

    def __init__(
        self,
        *,
        node: NodeId,
        cluster: Cluster,
        connections: Connections,
        pending_acks: PendingAcks,
        sender: Sender,
        publisher: Publisher,
        codec: Codec,
        clock: Clock,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._connections = connections
        self._pending_acks = pending_acks
        self._sender = sender
        self._publisher = publisher
        self._codec = codec
        self._clock = clock
        cluster.on_request(Deliver, self._take_deliver)

    async def deliver(
        self,
        recipients: list[Recipient],
        message: Message,
        plan: Plan,
        *,
        result: bool = False,
    ) -> list[tuple[str, Outcome]]:
        """Deliver to all connections of the recipients; returns each outcome with the name of
        its recipient. With ``result`` the outcomes have the clients' results. The failure
        handlers have run."""
        encoded = self._sender.encode(message, ack=True)
        parts = [
            self._to_node(node, some, recipient, encoded, plan, result=result)
            for recipient in recipients
            for node, conn_ids in recipient.by_node.items()
            for some in ([conn_ids] if node == self._node else _pages(conn_ids))
        ]
        found = [pair for part in await asyncio.gather(*parts) for pair in part]
        await self._report(found, encoded)
        return found

    async def to_room(
        self,
        everyone: Recipient,
        message: Message,
        plan: Plan,
        skip: Collection[str] = (),
        *,
        keep: bool = True,
    ) -> list[tuple[str, Outcome]]:
        """Deliver to ``everyone``, the located members of a room, except ``skip``; without
        ``keep`` the message stays out of the room's history.

        Raises ``Unavailable`` if the history store does not accept it: no member gets it then.
        """
        room_id = RoomId(everyone.name)
        retention = await self._publisher.retention(room_id) if keep else None
        if retention is None:
            return await self.deliver([everyone], message, plan)
        encoded = self._sender.encode(message, ack=True, recipient=room_id)
        assert encoded.envelope is not None
        # A reader of the history is not asked for an ack.
        kept = self._sender.encode(replace(message, id=encoded.envelope.id), recipient=room_id)
        found, gone = self._found(everyone.by_node.get(self._node, ()))
        delivery = _SequencedDelivery(self._pending_acks, found, plan, everyone.whom)
        others = {node: ids for node, ids in everyone.by_node.items() if node != self._node}
        buffered = BufferedMessage(encoded, list(skip), delivery)
        try:
            at = await self._publisher.append(room_id, retention, buffered, kept, list(others))
        except BaseException:
            delivery.cancel()
            raise
        position = RoomPosition(room_id, at, tuple(ConnId(conn_id) for conn_id in skip))
        # For a later page of a node, or a request that the next message has overtaken, this
        # position is past: the message is sent again under its id, with its position.
        parts = [
            self._request(node, some, encoded, plan, everyone.whom, position=position)
            for node, conn_ids in others.items()
            for some in _pages(conn_ids)
        ]
        answers = await asyncio.gather(delivery.outcomes(), *parts)
        outcomes: list[tuple[str, Outcome]] = []
        for part in (gone, *answers):
            outcomes += [(room_id, _with_user(outcome, everyone)) for outcome in part]
        await self._report(outcomes, encoded)
        return outcomes

    async def _report(self, found: Iterable[tuple[str, Outcome]], encoded: EncodedMessage) -> None:
        """Run the failure handlers for the undelivered messages."""
        for name, outcome in found:
            if outcome.reason is not None:
                await self._sender.report(
                    encoded.addressed(name),
                    Addressee(outcome.conn_id, outcome.user_id),
                    outcome.reason,
                    outcome.error,
                    duration=outcome.seconds,
                )

    async def to_remote(
        self,
        node: NodeId,
        conn_id: ConnId,
        encoded: EncodedMessage,
        plan: Plan,
        whom: RecipientFilter,
    ) -> Outcome:
        """Deliver to one connection of another node; the caller reports a failure."""
        (outcome,) = await self._request(node, [conn_id], encoded, plan, whom)
        return outcome

    async def _to_node(
        self,
        node: NodeId,
        conn_ids: list[ConnId],
        recipient: Recipient,
        encoded: EncodedMessage,
        plan: Plan,
        *,
        result: bool,
    ) -> list[tuple[str, Outcome]]:
        name, whom = recipient.name, recipient.whom
        if node == self._node:
            outcomes = await self._to_local(conn_ids, encoded.addressed(name), plan, whom)
        else:
            outcomes = await self._request(node, conn_ids, encoded, plan, whom, result=result)
        return [(name, _with_user(outcome, recipient)) for outcome in outcomes]

    async def _to_local(
        self, conn_ids: Iterable[ConnId], encoded: EncodedMessage, plan: Plan, whom: RecipientFilter
    ) -> list[Outcome]:
        found, gone = self._found(conn_ids)
        return gone + await self._pending_acks.deliver(found, encoded, plan, whom)

    def _found(self, conn_ids: Iterable[ConnId]) -> tuple[list[Connection], list[Outcome]]:
        """Return the open connections of this node, and the outcomes of those that ended."""
        found: list[Connection] = []
        gone: list[Outcome] = []
        for conn_id in conn_ids:
            conn = self._connections.get(conn_id)
            if conn is not None:
                found.append(conn)
            else:
                error = ConnectionClosed(f"{conn_id} is closed")
                gone.append(Outcome(conn_id, False, 1, FailureReason.CONN_CLOSED, error))
        return found, gone

    async def _request(
        self,
        node: NodeId,
        conn_ids: list[ConnId],
        encoded: EncodedMessage,
        plan: Plan,
        whom: RecipientFilter,
        *,
        result: bool = False,
        position: RoomPosition | None = None,
    ) -> list[Outcome]:
        left = None if plan.deadline is None else plan.deadline - self._clock.now()
        asked = Deliver(
            tuple(conn_ids),
            encoded.priority,
            plan.ack_timeout,
            plan.retry_max,
            plan.retry_backoff,
            left,
            result,
            whom.named(),
            position,
        )
        timeout = plan.longest() + MARGIN
        try:
            answers = await self._cluster.request(node, asked, encoded.payload, timeout=timeout)
            return outcomes_in(answers, conn_ids)
        except (Unavailable, BadPacket) as error:
            away = error if isinstance(error, Unavailable) else Unavailable(str(error))
            return [unknown(conn_id, away) for conn_id in conn_ids]

    async def _take_deliver(self, asked: Deliver, payload: bytes) -> list[dict[str, Any]]:
        encoded = read_message(self._codec, payload, asked.priority)
        left = asked.time_left
        deadline = None if left is None else self._clock.now() + left
        plan = Plan(asked.ack_timeout, asked.retries, asked.backoff, deadline)
        whom = RecipientFilter.of(asked.recipients)
        if asked.position is not None:
            found, outcomes = self._found(asked.conns)
            delivery = _SequencedDelivery(self._pending_acks, found, plan, whom)
            self._publisher.accept(asked.position, BufferedMessage(encoded, on_release=delivery))
            outcomes += await delivery.outcomes()
        else:
            outcomes = await self._to_local(asked.conns, encoded, plan, whom)
        return outcomes_out(outcomes, result=asked.result)


class _SequencedDelivery:
    """Deliveries that begin when the room's sequencer releases their message."""

    def __init__(
        self,
        pending_acks: PendingAcks,
        conns: Sequence[Connection],
        plan: Plan,
        whom: RecipientFilter,
    ) -> None:
        self._pending_acks = pending_acks
        self._conns = conns
        self._plan = plan
        self._whom = whom
        self._begun: asyncio.Future[AckBatch] = asyncio.get_running_loop().create_future()

    def begin(self, encoded: EncodedMessage) -> Collection[Link]:
        """Send the message and start to wait for the acks; returns the links that got it."""
        if self._begun.done():
            return ()  # the caller was cancelled
        try:
            batch = self._pending_acks.begin(self._conns, encoded, self._plan, self._whom)
            self._begun.set_result(batch)
        except Exception as error:  # noqa: BLE001  (``outcomes`` raises it)
            self._begun.set_exception(error)
        return [conn.link for conn in self._conns]

    def fail(self, error: Unavailable) -> None:
        """Give the message up: its outcomes are unknown."""
        if not self._begun.done():
            self._begun.set_exception(error)

    def cancel(self) -> None:
        """Stop to wait: the message is sent without acks."""
        self._begun.cancel()

    async def outcomes(self) -> list[Outcome]:
        """Wait until the message was sent and answered; returns the outcomes."""
        try:
            batch = await self._begun
        except Unavailable as error:
            return [unknown(conn.id, error) for conn in self._conns]
        return await self._pending_acks.finish(batch)


def _with_user(outcome: Outcome, recipient: Recipient) -> Outcome:
    """Add the user that the locator found, if the connection's node named none."""
    if outcome.user_id is None:
        outcome.user_id = recipient.owner(outcome.conn_id)
    return outcome


def _pages(conn_ids: list[ConnId]) -> list[list[ConnId]]:
    step = CONNECTIONS_PER_REQUEST
    return [conn_ids[i : i + step] for i in range(0, len(conn_ids), step)]
