"""The WebSocket side of one node: HTTP handshakes, and the sockets behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Final

from eyewall.adapters.web.http.handshake import HandshakeConfig, HandshakeEndpoint
from eyewall.adapters.web.http.origin import Hosts, OriginRule, Origins
from eyewall.adapters.web.http.proxies import TrustedProxies
from eyewall.adapters.web.http.refusals import RefusalLog
from eyewall.adapters.web.protocol.deflate import CompressionConfig, Inflater
from eyewall.adapters.web.sockets.batch import WriteBatcher
from eyewall.adapters.web.sockets.loop import SocketLoop
from eyewall.adapters.web.sockets.poller import ReadinessSource
from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import guarded
from eyewall.application.ports.message import Codec
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.transport import TransportEvents
from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.handshake import RefuseWith
from eyewall.domain.outbox import QueueConfig

DRAIN_INPUT_TIMEOUT: Final = 1.0
"""Seconds that ``drain_input`` waits for clients that do not stop sending."""


class WebSocketGateway:
    """Accepts, reads, writes and closes the WebSocket connections of a node.

    ``transport_events`` is set before ``start``. A gateway may be started again after ``stop``.
    The first of ``codecs`` serves clients that name no subprotocol.
    """

    def __init__(
        self,
        *,
        codecs: Sequence[Codec],
        clock: Clock,
        logger: Logger,
        queue: QueueConfig,
        heartbeat: HeartbeatConfig,
        max_message_size: int,
        handshake_timeout: float,
        check_origin: OriginRule = None,
        trusted_proxies: Collection[str] = (),
        batch_budget: int = 512,
        source: ReadinessSource | None = None,
        compression: CompressionConfig | None = None,
        max_queued: int | None = None,
        allowed_hosts: Collection[str] | None = None,
        refuse_with: RefuseWith = RefuseWith.HTTP,
        stalls: Stalls | None = None,
    ) -> None:
        logger = guarded(logger)
        inflater = compression and Inflater(max_message_size, compression.max_ratio)
        self._io = SocketLoop(
            clock=clock,
            logger=logger,
            queue=queue,
            heartbeat=heartbeat,
            max_message_size=max_message_size,
            batch_budget=batch_budget,
            source=source,
            inflate=inflater.inflate if inflater else None,
            max_queued=max_queued,
            stalls=stalls,
        )
        proxies = TrustedProxies(trusted_proxies)
        config = HandshakeConfig(
            timeout=handshake_timeout,
            origins=Origins(check_origin),
            hosts=Hosts(allowed_hosts),
            proxies=proxies,
            refusals=RefusalLog(clock, logger, proxies),
            refuse_with=refuse_with,
        )
        self._endpoint = HandshakeEndpoint(self._io, config, codecs, compression)

    @property
    def transport_events(self) -> TransportEvents:
        """The application's side: it is told of every connection."""
        return self._io.transport_events

    @transport_events.setter
    def transport_events(self, transport_events: TransportEvents) -> None:
        self._io.transport_events = transport_events

    @property
    def outbound(self) -> WriteBatcher:
        return self._io.writer

    @property
    def hosts(self) -> Hosts:
        """The hosts that are served."""
        return self._endpoint.config.hosts

    @property
    def refusals(self) -> RefusalLog:
        """Counts and logs the refused handshakes."""
        return self._endpoint.config.refusals

    def __len__(self) -> int:
        return len(self._io.links)

    def routes(self, path: str = "/ws") -> list[Any]:
        """Return rules for a Tornado application, which accept handshakes at ``path``.

        Raises ``ValueError`` for a path that is no regular expression, or whose groups have
        names that Tornado reserves.
        """
        return self._endpoint.routes(path)

    def start(self) -> None:
        """Start on the running event loop, and accept handshakes."""
        self._io.start()
        self._endpoint.open()

    def refuse_new(self) -> None:
        """Refuse further handshakes, and those that wait for a decision, with 503."""
        self._endpoint.close()

    async def drain_input(self) -> None:
        """Return when the messages that clients have sent so far were handed to the application,
        or after ``DRAIN_INPUT_TIMEOUT`` seconds."""
        if len(self):
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_INPUT_TIMEOUT):
                    await self._io.poller.wait_idle()

    async def stop(self, within: float) -> None:
        """Wait for the connections, which the application has closed, and stop.

        Connections that are left after ``within`` seconds are aborted.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._io.wait_closed()
        self._endpoint.close()
        self._io.stop()
        self.refusals.close()
