"""What the links of one node share."""

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
"""Bytes that wait in all queues of a node together: thirty-two full ones at the defaults, or
25 KiB for each of 10,000 connections. With the copies that are framed for the wire it may
take twice that in memory, which a machine of 1 GiB has. A queue that may be larger than half
of it counts for more: the bound is at least two of the largest queues."""

MIN_MESSAGE_RATE: Final = 8 * 1024
"""Bytes a second at which a message must come, on the whole: 64 kbit/s, less than the
oldest of mobile networks have. A message of the largest size by default gets 128 s for it."""


MAX_REFUSED_LINKS: Final = 1024
"""The most links at the same time that only tell their clients that they are refused. A client
that does not answer the close holds a descriptor for three seconds; a flood of refused clients
must not take them all, so the oldest link is aborted for a new one."""


class LoopLink(PollTarget, HeartbeatTarget, WriteTarget, Protocol):
    """A link, as the loop that it belongs to sees it."""

    @property
    def held_bytes(self) -> int:
        """Bytes that wait in its queue."""

    def shed(self) -> None:
        """Drop half of the queue, or end the connection where nothing can be dropped."""

    def extend_deadlines(self, seconds: float) -> None:
        """Nothing was read or written for so long: no deadline may have passed by it."""

    def abort(self) -> None:
        """Close the socket now."""


class SocketLoop:
    """The loop, the clock, the limits, and who is connected.

    ``intake`` is set before ``start``: the application needs the sockets first.
    """

    intake: TransportEvents

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
        """What the queues of all links hold."""
        self.max_message_size = max_message_size
        self.writer = WriteBatcher()
        self.heartbeat = Heartbeat(clock, heartbeat, self.stalls)
        self.message_timeout = float(heartbeat.pong_timeout) + max_message_size / MIN_MESSAGE_RATE  # type: ignore[arg-type]
        """Seconds that a message may take to come. The ``pong_timeout`` in it lets who has
        merely lost the network be found silent first: 4408 tells it to come back."""
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
        """The links whose clients were refused, the oldest first."""
        self.received_count = 0
        """Messages and control frames that have come since the start."""
        self.now = clock.now()
        """The time when the batch began: a stamp for all that is read in it."""
        self.parser = self.new_parser()
        """An idle one, for whoever reads next: a link keeps a parser of its own only
        while it has the beginning of something."""
        self.inflate = inflate
        self.inflating_parser = self.new_parser(inflates=True)
        """The same for links whose peers may compress."""
        self.loop: asyncio.AbstractEventLoop
        self._empty = asyncio.Event()
        self._shed_handle: asyncio.Handle | None = None

    def start(self) -> None:
        """Begin on the running loop."""
        self.loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self.now = self.clock.now()
        self.stalls.start()
        self.writer.start()
        self.poller.start()
        self.heartbeat.start()

    def stop(self) -> None:
        """End whatever is still there, at once."""
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
        """Return when the last link is gone."""
        while self.links:
            self._empty.clear()
            await self._empty.wait()

    def new_parser(self, *, inflates: bool = False) -> Parser:
        return Parser(self.max_message_size, self.inflate if inflates else None)

    def add(self, link: LoopLink) -> None:
        self.links.add(link)

    def close_refused(self, link: LoopLink) -> None:
        """Close a link whose client the authenticator has refused."""
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
        """Have ``shed_load`` called when nothing is being written."""
        if self._shed_handle is None:
            self._shed_handle = self.loop.call_soon(self.shed_load)

    def shed_load(self) -> None:
        """The pool is full: let those who hold the most give way, until there is room."""
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
        """Time in which nothing was read or written counts for nobody."""
        for link in self.links:
            link.extend_deadlines(seconds)

    def _on_batch_start(self) -> None:
        self.now = self.clock.now()
        if self.now > self.stalls.bound:
            self.stalls.look()  # what is read next may have waited for long
        self.writer.expect_flush()
