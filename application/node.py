"""One node: the order in which its parts start and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from eyewall.application.build import Parts
from eyewall.application.concurrency.tasks import is_cancelled
from eyewall.application.config import NodeConfig, Ports
from eyewall.application.hub.hub import Hub
from eyewall.application.ports.logging import shown
from eyewall.application.ports.stores import Lifecycle, has_methods_of
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import NodeId

OPEN_TIMEOUT = 10.0
"""Seconds that an adapter has to open: a container usually has thirty to become ready."""


CLOSE_TIMEOUT = 2.0
"""Seconds that an adapter has to close: one that hangs must not hold up the others."""


class Node:
    """One node, from its start to its end."""

    def __init__(self, config: NodeConfig, ports: Ports, hub: Hub | None = None) -> None:
        """``hub`` is what handlers get as ``ctx.hub``; None makes one that calls this node."""
        self.config = config
        self.ports = ports
        self.parts = Parts(config, ports, hub)
        self.hub = self.parts.hub
        self.transport_events = self.parts.transport_events
        self._open: list[Lifecycle] = []

    def adopt(self, other: Node) -> None:
        """Copy the handlers, hooks and failure handlers that are registered with ``other``."""
        self.parts.router.adopt(other.parts.router)
        self.parts.hooks.adopt(other.parts.hooks)
        self.parts.failures.adopt(other.parts.failures)

    def successor(self, node_id: NodeId) -> Node:
        """Return a new node with the same adapters, registrations and hub.

        It can start in another event loop or process: it shares no other state with this one.
        """
        node = Node(replace(self.config, node_id=node_id), self.ports, self.hub)
        node.adopt(self)
        return node

    async def start(self) -> None:
        """Open the adapters and join the cluster."""
        self.parts.stats.begin()
        for adapter in self._adapters():
            await self._open_up(adapter)
            self._open.append(adapter)
        self.parts.connections.draining = False
        await self.parts.cluster.start()
        self.parts.reconciler.start()
        self.parts.offline.start()
        self.parts.receiver.start()

    async def finish_work(self) -> None:
        """Wait for running handlers and pending acks."""
        await self.parts.receiver.idle()
        await self.parts.pending_acks.settled()

    async def cut_work(self) -> None:
        """Cancel the handlers that still run; their requests are answered."""
        await self.parts.receiver.stop()

    async def finish_hooks(self) -> None:
        """Wait for the hooks of ended connections and of failed deliveries."""
        await self.parts.connections.settled()
        await self.parts.failures.settled()

    async def stop(self) -> None:
        """Cancel all work, leave the cluster, close the adapters."""
        await self.parts.receiver.stop()
        self.parts.pending_acks.close()
        await self.parts.offline.close()
        self.parts.expiry.close()
        self.parts.resumer.close()
        self.parts.stall_log.close()
        await self.parts.connections.close()
        await self.parts.failures.close()
        await self.parts.operations.close()
        await self.parts.reconciler.close()
        await self.parts.cluster_state.close()
        await self.parts.rooms.close()
        await self.parts.publisher.close()
        await self.parts.streams.close()
        await self.parts.presences.close()
        self.parts.threads.close()
        await self.parts.sessions.leave()
        self.parts.sessions.close()
        await self.parts.cluster.stop()
        while self._open:
            await self._close(self._open.pop())

    async def _open_up(self, adapter: Lifecycle) -> None:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT) as limit:
                await adapter.open()
        except TimeoutError as error:
            if not limit.expired():
                raise
            name = type(adapter).__name__
            raise Unavailable(f"{name} did not open within {OPEN_TIMEOUT:g} s") from error

    async def _close(self, adapter: Lifecycle) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await adapter.close()
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled():
                raise
            # Logged, not raised: the other adapters are closed, too.
            self.parts.logger.error(
                "close_failed", adapter=type(adapter).__name__, error=shown(error)
            )

    def _adapters(self) -> Sequence[Lifecycle]:
        ports: list[Any] = [
            self.ports.pubsub,
            self.ports.state,
            self.ports.history,
            self.ports.offline,
            self.ports.metrics,
            self.ports.authenticator,
            self.ports.access_controller,
            self.ports.validator,
            self.ports.limiter,
        ]
        return [port for port in ports if has_methods_of(port, Lifecycle)]
