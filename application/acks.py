"""Messages that are to be acknowledged, on all nodes at once.

Rules of this file:

1. All nodes work at the same time, and so do all connections of a node: one that is
   silent holds up nobody's answer.
2. A node that does not answer in time is ``UNKNOWN``, not failed; whatever goes wrong
   with one node, the outcomes of the others stand.
3. Failure handlers run here, at the node that was asked to send, and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from eyewall.application.cluster import Cluster
from eyewall.application.connections import Connection, Connections
from eyewall.application.deliveries import Deliveries, Outcome
from eyewall.application.frames import Frame
from eyewall.application.locate import Recipient
from eyewall.application.outcomes import outcome_out, outcomes_in, read_frame, unknown
from eyewall.application.packets import BadPacket, strings
from eyewall.application.ports import Clock, Codec
from eyewall.application.send import Sender
from eyewall.domain.delivery import Plan
from eyewall.domain.envelope import Message
from eyewall.domain.errors import ConnectionClosed, Unavailable
from eyewall.domain.identity import ConnId, NodeId
from eyewall.domain.report import FailureReason

_DELIVER = "deliver"
MARGIN = 2.0
"""Seconds that another node gets on top of the time its clients have."""
PAGE = 1000
"""Connections that one question is about: the answer, about 200 bytes for each and at
most 1 KiB for a client that gives its reasons, has to fit a packet."""


class Acks:
    """Delivers to connections wherever they are, and waits for their acks."""

    def __init__(
        self,
        *,
        node: NodeId,
        cluster: Cluster,
        connections: Connections,
        deliveries: Deliveries,
        sender: Sender,
        codec: Codec,
        clock: Clock,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._connections = connections
        self._deliveries = deliveries
        self._sender = sender
        self._codec = codec
        self._clock = clock
        cluster.on_call(_DELIVER, self._take_deliver)

    async def deliver(
        self,
        recipients: list[Recipient],
        message: Message,
        plan: Plan,
        *,
        result: bool = False,
    ) -> list[tuple[str, Outcome]]:
        """Deliver with acks, everywhere at once; the failure handlers have run."""
        frame = self._sender.frame(message, ack=True)
        parts = [
            self._on(node, some, recipient.name, frame, plan, result=result)
            for recipient in recipients
            for node, conn_ids in recipient.by_node.items()
            for some in ([conn_ids] if node == self._node else _pages(conn_ids))
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

    async def _on(
        self,
        node: NodeId,
        conn_ids: list[ConnId],
        name: str,
        frame: Frame,
        plan: Plan,
        *,
        result: bool,
    ) -> list[tuple[str, Outcome]]:
        if node == self._node:
            outcomes = await self._here(conn_ids, frame.addressed(name), plan)
        else:
            outcomes = await self._there(node, conn_ids, frame, plan, result=result)
        return [(name, outcome) for outcome in outcomes]

    async def _here(self, conn_ids: Iterable[ConnId], frame: Frame, plan: Plan) -> list[Outcome]:
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

    async def _there(
        self, node: NodeId, conn_ids: list[ConnId], frame: Frame, plan: Plan, *, result: bool
    ) -> list[Outcome]:
        left = None if plan.deadline is None else plan.deadline - self._clock.now()
        header = {
            "conns": conn_ids,
            "p": int(frame.priority),
            "plan": [plan.ack_timeout, plan.retry_max, plan.retry_backoff, left],
            "result": result,
        }
        timeout = plan.longest() + MARGIN
        try:
            answers = await self._cluster.call(
                node, _DELIVER, header, frame.payload, timeout=timeout
            )
            return outcomes_in(answers, conn_ids)
        except (Unavailable, BadPacket) as error:
            away = error if isinstance(error, Unavailable) else Unavailable(str(error))
            return [unknown(conn_id, away) for conn_id in conn_ids]

    async def _take_deliver(self, header: Mapping[str, Any], payload: bytes) -> Any:
        frame = read_frame(self._codec, header, payload)
        timeout, retries, backoff, left = header["plan"]
        deadline = None if left is None else self._clock.now() + left
        plan = Plan(timeout, retries, backoff, deadline)
        conn_ids = [ConnId(conn_id) for conn_id in strings(header["conns"])]
        outcomes = await self._here(conn_ids, frame, plan)
        return [outcome_out(outcome, result=bool(header["result"])) for outcome in outcomes]


def _pages(conn_ids: list[ConnId]) -> list[list[ConnId]]:
    return [conn_ids[i : i + PAGE] for i in range(0, len(conn_ids), PAGE)]
