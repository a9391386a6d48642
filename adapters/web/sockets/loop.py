"""``SocketLoop``: what all links of one node share, from the poller to the memory limit."""

from __future__ import annotations

import asyncio
import heapq
from typing import Final, Protocol

from eyewall.adapters.web.protocol.parser import Inflate, Parser
from eyewall.adapters.web.sockets.batch import WriteBatcher, WriteTarget
from eyewall.adapters.web.sockets.heartbeat import Heartbeat, HeartbeatTarget
from eyewall.adapters.web.sockets.poller import Poller, PollTarget, ReadinessSource, best_source
from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.concurrency.timers import TimerQueue
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.transport import TransportEvents
from eyewall.domain.connection import DisconnectReason, HeartbeatConfig
from eyewall.domain.outbox import QueueConfig
from eyewall.domain.pool import Pool

MAX_QUEUED_BYTES: Final = 256 * 2**20
"""Bytes in all queues of a node together: thirty-two full queues at the defaults, or 25 KiB for
each of 10,000 connections. With the encoded copies, memory use may be twice that, which fits a
machine of 1 GiB. The bound is at least two of the largest queues."""

MIN_MESSAGE_RATE: Final = 8 * 1024
"""Bytes a second at which a message must arrive on average: 64 kbit/s, less than the oldest
mobile networks have. A message of the default largest size gets 128 s."""

MAX_REFUSED_LINKS: Final = 1024
"""Links at the same time that only carry a close frame to a refused client. A client that does
not answer it holds a descriptor for three seconds. A flood of them must not use up all
descriptors, so the oldest link is aborted for a new one."""


class LoopLink(PollTarget, HeartbeatTarget, WriteTarget, Protocol):
    """A link, as the loop sees it."""

    @property
    def held_bytes(self) -> int:
        """Bytes that its queue keeps in memory."""

    def shed(self) -> None:
        """Drop half of the queue, or end the connection if nothing can be dropped."""

    def extend_deadlines(self, seconds: float) -> None:
        """Add the seconds of a stall of the event loop to every deadline of the peer."""

    def abort(self) -> None:
        """Close the socket now."""


class SocketLoop:
    """Owns the links of a node, and the parts that serve all of them.

    ``transport_events`` is set before ``start``: the application is built after the sockets.
    """

    transport_events: TransportEvents

    def __init__(
        self,
        *,
        clock: Clock,
        logger: Logger,
        queue: QueueConfig,
        heartbeat: HeartbeatConfig,
        max_message_size: int,
        batch_budget: int,
        source: ReadinessSource | None = None,
        inflate: Inflate | None = None,
        max_queued: int | None = None,
        stalls: Stalls | None = None,
    ) -> None:
        self.clock = clock
        self.stalls = stalls or Stalls(clock)
        self.stalls.on_stall(self._on_stall)
        self.deadlines = TimerQueue(clock, self.stalls)
        self.logger = logger
        self.queue = queue
        self.pool = Pool(
            max(MAX_QUEUED_BYTES, 2 * queue.max_bytes) if max_queued is None else max_queued
        )
        """Counts the bytes in the queues of all links."""
        self.max_message_size = max_message_size
        self.writer = WriteBatcher()
        self.heartbeat = Heartbeat(clock, heartbeat, self.stalls)
        self.message_timeout = float(heartbeat.pong_timeout) + max_message_size / MIN_MESSAGE_RATE  # type: ignore[arg-type]
        """Seconds that a message may take to arrive. With ``pong_timeout`` added, a client that
        has lost the network meets the pong timeout first, and gets 4408: reconnect."""
        self.poller = Poller(
            source or best_source(),
            received_count=lambda: self.received_count,
            budget=batch_budget,
            is_paused=lambda: self.writer.full,
            on_batch_start=self._on_batch_start,
            on_batch_end=self.writer.flush,
        )
        self.links: set[LoopLink] = set()
        self._refused: dict[LoopLink, None] = {}
        """The links of refused clients, the oldest first."""
        self.received_count = 0
        """Messages and control frames received since the start."""
        self.now = clock.now()
        """When the current batch began: the timestamp of all that is read in it."""
        self.parser = self.new_parser()
        """An idle parser that all links share. A link takes it only while it holds an
        incomplete frame or message."""
        self.inflate = inflate
        self.inflating_parser = self.new_parser(inflates=True)
        """The same for links whose peers may send compressed messages."""
        self.loop: asyncio.AbstractEventLoop
        self._empty = asyncio.Event()
        self._shed_handle: asyncio.Handle | None = None

    def start(self) -> None:
        """Start on the running event loop."""
        self.loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self.now = self.clock.now()
        self.stalls.start()
        self.writer.start()
        self.poller.start()
        self.heartbeat.start()

    def stop(self) -> None:
        """Abort the links that are left, and stop."""
        self.writer.stop()
        for link in list(self.links):
            link.abort()
        if self._shed_handle is not None:
            self._shed_handle.cancel()
            self._shed_handle = None
        self.poller.stop()
        self.heartbeat.stop()
        self.deadlines.close()
        self.stalls.stop()

    async def wait_closed(self) -> None:
        """Return when the last link is closed."""
        while self.links:
            self._empty.clear()
            await self._empty.wait()

    def new_parser(self, *, inflates: bool = False) -> Parser:
        return Parser(self.max_message_size, self.inflate if inflates else None)

    def add(self, link: LoopLink) -> None:
        self.links.add(link)

    def close_refused(self, link: LoopLink) -> None:
        """Close the link of a client that the authenticator has refused."""
        if len(self._refused) >= MAX_REFUSED_LINKS:
            next(iter(self._refused)).abort()
        self._refused[link] = None
        link.close(DisconnectReason.AUTH_FAILED)

    def remove(self, link: LoopLink) -> None:
        self.links.discard(link)
        self._refused.pop(link, None)
        self.heartbeat.remove(link)
        self.poller.unschedule(link)
        if not self.links:
            self._empty.set()

    def shed_load_soon(self) -> None:
        """Schedule ``shed_load``, for when no write is under way."""
        if self._shed_handle is None:
            self._shed_handle = self.loop.call_soon(self.shed_load)

    def shed_load(self) -> None:
        """While the pool is full, drop from the links that hold the most bytes, until a quarter
        of it is free."""
        self._shed_handle = None
        if not self.pool.full:
            return
        held = [(-link.held_bytes, n, link) for n, link in enumerate(self.links) if link.held_bytes]
        self.logger.warning("queues_full", bytes=self.pool.bytes, connections=len(held))
        heapq.heapify(held)
        while held and not self.pool.roomy:
            _, n, link = held[0]
            link.shed()
            if link.held_bytes:
                heapq.heapreplace(held, (-link.held_bytes, n, link))
            else:
                heapq.heappop(held)

    def _on_stall(self, seconds: float) -> None:
        """Extend the deadlines of all peers by the seconds of a stall."""
        for link in self.links:
            link.extend_deadlines(seconds)

    def _on_batch_start(self) -> None:
        self.now = self.clock.now()
        if self.now > self.stalls.bound:
            self.stalls.detect()  # the input of this batch may have waited for long
        self.writer.expect_flush()
