"""To named recipients: a connection, users, a room with acks. Every one gets a report.

Where the recipients are is asked once; then this node's connections and the other
nodes work at the same time. A remote connection counts like a local one when its ack
was asked for, and as ``FORWARDED`` when not; a node that does not answer is ``UNKNOWN``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from eyewall.application.cluster import Cluster, Silent
from eyewall.application.connections import Connection, Connections
from eyewall.application.deliveries import Deliveries, Outcome
from eyewall.application.fanout import Filter, where_in, where_out
from eyewall.application.frames import Frame
from eyewall.application.locate import By, Locator, Recipient
from eyewall.application.outcomes import outcome_in, outcome_out, read_frame
from eyewall.application.ports import Clock, Codec
from eyewall.application.send import Sender
from eyewall.application.turns import Turns
from eyewall.domain.delivery import Plan
from eyewall.domain.duration import seconds
from eyewall.domain.envelope import Envelope, Message
from eyewall.domain.errors import AckTimeout, ConnectionClosed, UserOffline
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId, Where
from eyewall.domain.report import (
    AckOptions,
    AckResult,
    BatchDeliveryReport,
    DeliveryReport,
    DeliveryStatus,
    FailureReason,
    SendOptions,
    Target,
    TargetKind,
)

_SEND, _TEXT, _DELIVER, _WHO = "send", "conn_text", "deliver", "who"
MARGIN = 2.0
"""Seconds that another node gets on top of the time its clients have."""


class Messages:
    """Sends to recipients by name, and says what became of it."""

    def __init__(
        self,
        *,
        node: NodeId,
        cluster: Cluster,
        connections: Connections,
        locator: Locator,
        deliveries: Deliveries,
        sender: Sender,
        codec: Codec,
        clock: Clock,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._connections = connections
        self._locate = locator
        self._deliveries = deliveries
        self._sender = sender
        self._codec = codec
        self._clock = clock
        self._turns = Turns()
        cluster.on_cast(_SEND, self._take_send)
        cluster.on_cast(_TEXT, self._take_text)
        cluster.on_call(_DELIVER, self._take_deliver)
        cluster.on_call(_WHO, self._take_who)

    # --- the use cases

    async def to_conn(
        self, conn_id: str, message: Message, options: SendOptions | None = None
    ) -> DeliveryReport:
        """Send to one connection, wherever it is."""
        recipient = await self._locate.conn(conn_id)
        if not recipient.by_node:
            error = ConnectionClosed(f"{conn_id} is not connected")
            frame = self._sender.frame(message)
            await self._sender.failed(frame, conn_id, FailureReason.CONN_CLOSED, error)
            return DeliveryReport(conn_id, DeliveryStatus.FAILED, error)
        return (await self._send([recipient], message, options or SendOptions()))[0]

    async def to_users(
        self, user_ids: Iterable[str], message: Message, options: SendOptions | None = None
    ) -> BatchDeliveryReport:
        """Send to all connections of all users; a user without one is reported as one."""
        users = [UserId(user_id) for user_id in dict.fromkeys(user_ids)]
        where = await self._locate.users(users)
        here = [r for r in where if r.by_node]
        reports = await self._send(here, message, options or SendOptions())
        for away in (r.name for r in where if not r.by_node):
            error = UserOffline(f"{away} has no connection")
            frame = self._sender.frame(message, recipient=away)
            await self._sender.failed(frame, away, FailureReason.USER_OFFLINE, error)
            reports.append(DeliveryReport(away, DeliveryStatus.FAILED, error))
        return BatchDeliveryReport.of(reports)

    async def with_ack(
        self, target: Target, message: Message, options: AckOptions | None = None
    ) -> AckResult:
        """Send to all that ``target`` means, and wait for all acks or the time-out.

        Raises ``AckTimeout`` under ``require_all`` if one was missing.
        """
        chosen = options or AckOptions()
        recipient = await self._locate.target(target)
        if not recipient.by_node:
            return await self._nobody(target, message)
        timeout = seconds(chosen.timeout, "timeout")
        outcomes = await self._deliver([recipient], message, Plan(timeout, 0, 0.0, None))
        silent = [o for _, o in outcomes if _is_silent(o)]
        if silent and chosen.require_all:
            raise AckTimeout(f"{len(silent)} of {len(outcomes)} did not acknowledge in time")
        return AckResult(
            expected=len(outcomes),
            received=sum(o.delivered for _, o in outcomes),
            nacked=sum(o.reason is FailureReason.NACKED for _, o in outcomes),
            timed_out=bool(silent),
            errors=[str(o.error) for _, o in outcomes if o.error is not None],
        )

    async def request(self, conn_id: str, message: Message, timeout: float) -> Any:
        """Return the ``result`` of the client's ack.

        Raises ``Nacked``, ``AckTimeout`` or ``ConnectionClosed``.
        """
        recipient = await self._locate.conn(conn_id)
        if not recipient.by_node:
            raise ConnectionClosed(f"{conn_id} is not connected")
        outcomes = await self._deliver([recipient], message, Plan(timeout, 0, 0.0, None))
        (_, outcome) = outcomes[0]
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    async def to_room_acked(
        self, room_id: RoomId, message: Message, options: SendOptions, skip: Collection[str] = ()
    ) -> int:
        """Deliver to a room's connections with an ack each; returns how many are here."""
        everyone = await self._locate.room(room_id)
        by_node = {
            node: [c for c in conn_ids if c not in skip]
            for node, conn_ids in everyone.by_node.items()
        }
        plan = Plan.of(options, self._clock.now())
        await self._deliver([Recipient(room_id, by_node)], message, plan)
        return len(by_node.get(self._node, ()))

    async def to_fitting_acked(
        self, fits: Filter | Where, message: Message, options: SendOptions
    ) -> int:
        """Deliver to whom ``fits`` says, with an ack each; returns how many are here."""
        by_node: By = {self._node: [c.id for c in self._connections if fits(c.meta)]}
        if isinstance(fits, Where):
            header = {"where": where_out(fits)}
            for node in await self._cluster.others():
                by_node[node] = await self._cluster.call(node, _WHO, header)
        plan = Plan.of(options, self._clock.now())
        await self._deliver([Recipient("*", by_node)], message, plan)
        return len(by_node[self._node])

    async def text_to_conn(self, conn_id: str, text: str) -> DeliveryReport:
        """Send one text frame without an envelope, wherever the connection is."""
        conn = self._connections.get(conn_id)
        if conn is None:
            node = await self._locate.remote(conn_id)
            if node is None:
                error = ConnectionClosed(f"{conn_id} is not connected")
                frame = self._sender.text(text)
                await self._sender.failed(frame, conn_id, FailureReason.CONN_CLOSED, error)
                return DeliveryReport(conn_id, DeliveryStatus.FAILED, error)
            await self._cluster.cast_node(node, _TEXT, {"conn": conn_id}, text.encode())
            return DeliveryReport(conn_id, DeliveryStatus.FORWARDED)
        return await self._to_local(conn.id, self._sender.text(text))

    async def reply(self, conn: Connection, request: Envelope, data: Any) -> None:
        """Answer a request with a message of its topic; raises as ``Sender.send`` does."""
        frame = self._sender.answer_frame(request, data)
        error = await self._sender.to_conn(conn, frame)
        if error is not None:
            raise error

    # --- sending

    async def _send(
        self, recipients: list[Recipient], message: Message, options: SendOptions
    ) -> list[DeliveryReport]:
        if options.ordering_key is not None:
            # Two sends of one key never overlap: the later waits for the earlier's acks.
            async with self._turns.take(options.ordering_key):
                return await self._send_now(recipients, message, options)
        return await self._send_now(recipients, message, options)

    async def _send_now(
        self, recipients: list[Recipient], message: Message, options: SendOptions
    ) -> list[DeliveryReport]:
        if options.require_ack:
            plan = Plan.of(options, self._clock.now())
            return [_report(o) for _, o in await self._deliver(recipients, message, plan)]
        frame = self._sender.frame(message)
        await self._sender.ready()
        reports: list[DeliveryReport] = []
        for recipient in recipients:
            reports += await self._forward(recipient, frame.addressed(recipient.name))
        return reports

    async def _forward(self, recipient: Recipient, frame: Frame) -> list[DeliveryReport]:
        reports = []
        for node, conn_ids in recipient.by_node.items():
            if node == self._node:
                reports += [await self._to_local(conn_id, frame) for conn_id in conn_ids]
            else:
                header = {"conns": conn_ids, "p": int(frame.priority)}
                await self._cluster.cast_node(node, _SEND, header, frame.payload)
                reports += [DeliveryReport(c, DeliveryStatus.FORWARDED) for c in conn_ids]
        return reports

    async def _to_local(self, conn_id: ConnId, frame: Frame) -> DeliveryReport:
        conn = self._connections.get(conn_id)
        if conn is None:
            error = ConnectionClosed(f"{conn_id} is closed")
            await self._sender.failed(frame, conn_id, FailureReason.CONN_CLOSED, error)
            return DeliveryReport(conn_id, DeliveryStatus.FAILED, error)
        refused = await self._sender.to_conn(conn, frame)
        if refused is None:
            return DeliveryReport(conn_id, DeliveryStatus.OK)
        closed = isinstance(refused, ConnectionClosed)
        status = DeliveryStatus.FAILED if closed else DeliveryStatus.DROPPED
        return DeliveryReport(conn_id, status, refused)

    async def _deliver(
        self, recipients: list[Recipient], message: Message, plan: Plan
    ) -> list[tuple[str, Outcome]]:
        """Deliver with acks, everywhere at once; the failure handlers have run."""
        frame = self._sender.frame(message, ack=True)
        parts = [
            self._deliver_on(node, conn_ids, recipient.name, frame, plan)
            for recipient in recipients
            for node, conn_ids in recipient.by_node.items()
        ]
        found = [pair for part in await asyncio.gather(*parts) for pair in part]
        for name, outcome in found:
            if outcome.reason is not None:
                await self._sender.failed(
                    frame.addressed(name),
                    outcome.conn_id,
                    outcome.reason,
                    outcome.error,
                    duration=outcome.seconds,
                )
        return found

    async def _deliver_on(
        self, node: NodeId, conn_ids: list[ConnId], name: str, frame: Frame, plan: Plan
    ) -> list[tuple[str, Outcome]]:
        if node == self._node:
            outcomes = await self._deliver_here(conn_ids, frame.addressed(name), plan)
        else:
            outcomes = await self._deliver_there(node, conn_ids, frame, plan)
        return [(name, outcome) for outcome in outcomes]

    async def _deliver_here(
        self, conn_ids: Iterable[ConnId], frame: Frame, plan: Plan
    ) -> list[Outcome]:
        found: list[Connection] = []
        gone: list[Outcome] = []
        for conn_id in conn_ids:
            conn = self._connections.get(conn_id)
            if conn is not None:
                found.append(conn)
            else:
                error = ConnectionClosed(f"{conn_id} is closed")
                gone.append(Outcome(conn_id, False, 1, FailureReason.CONN_CLOSED, error))
        return gone + await self._deliveries.deliver(found, frame, plan)

    async def _deliver_there(
        self, node: NodeId, conn_ids: list[ConnId], frame: Frame, plan: Plan
    ) -> list[Outcome]:
        patience = plan.longest()
        left = None if plan.deadline is None else plan.deadline - self._clock.now()
        header = {
            "conns": conn_ids,
            "p": int(frame.priority),
            "plan": [plan.ack_timeout, plan.retry_max, plan.retry_backoff, left],
        }
        try:
            answers = await self._cluster.call(
                node, _DELIVER, header, frame.payload, timeout=patience + MARGIN
            )
        except Silent as error:
            return [Outcome(c, False, 1, FailureReason.UNKNOWN, error) for c in conn_ids]
        return [outcome_in(answer) for answer in answers]

    async def _nobody(self, target: Target, message: Message) -> AckResult:
        """There is nobody to wait for: a user or a connection that is not there failed."""
        frame = self._sender.frame(message, recipient=target.id)
        match target.kind:
            case TargetKind.ROOM:
                return AckResult(0, 0, 0, timed_out=False)
            case TargetKind.USER:
                error: UserOffline | ConnectionClosed = UserOffline(f"{target.id} is offline")
                reason = FailureReason.USER_OFFLINE
            case TargetKind.CONN:
                error = ConnectionClosed(f"{target.id} is not connected")
                reason = FailureReason.CONN_CLOSED
        await self._sender.failed(frame, target.id, reason, error)
        return AckResult(1, 0, 0, timed_out=False, errors=[str(error)])

    # --- what other nodes ask for

    def _take_send(self, header: Mapping[str, Any], payload: bytes) -> None:
        frame = read_frame(self._codec, header, payload)
        conns = [c for conn_id in header["conns"] if (c := self._connections.get(conn_id))]
        self._sender.to_many(conns, frame)

    def _take_text(self, header: Mapping[str, Any], payload: bytes) -> None:
        conn = self._connections.get(header["conn"])
        if conn is not None:
            self._sender.to_many([conn], self._sender.text(payload.decode()))

    async def _take_who(self, header: Mapping[str, Any], _: bytes) -> list[ConnId]:
        fits = where_in(header["where"])
        return [conn.id for conn in self._connections if fits(conn.meta)]

    async def _take_deliver(self, header: Mapping[str, Any], payload: bytes) -> Any:
        frame = read_frame(self._codec, header, payload)
        timeout, retries, backoff, left = header["plan"]
        deadline = None if left is None else self._clock.now() + left
        plan = Plan(timeout, retries, backoff, deadline)
        outcomes = await self._deliver_here(header["conns"], frame, plan)
        return [outcome_out(outcome) for outcome in outcomes]


def _report(outcome: Outcome) -> DeliveryReport:
    if outcome.reason is FailureReason.UNKNOWN and isinstance(outcome.error, Silent):
        return DeliveryReport(outcome.conn_id, DeliveryStatus.UNKNOWN, outcome.error)
    return outcome.report()


def _is_silent(outcome: Outcome) -> bool:
    return outcome.reason is FailureReason.ACK_TIMEOUT or isinstance(outcome.error, Silent)
