"""What the links of one node share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from eyewall.adapters.web.flush import Flush
from eyewall.adapters.web.heartbeat import Heartbeat
from eyewall.adapters.web.parser import Inflate, Parser
from eyewall.adapters.web.poller import Poller, Source, best_source
from eyewall.application.ports import Clock, Intake, Logger
from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.outbox import QueueConfig

if TYPE_CHECKING:
    from eyewall.adapters.web.link import SocketLink

SLOWEST: Final = 8 * 1024
"""Bytes a second at which a message must come, on the whole: 64 kbit/s, less than the
oldest of mobile networks have. A message of the largest size by default gets 128 s for it."""


class Node:
    """The loop, the clock, the limits, and who is connected.

    ``intake`` is set before ``start``: the application needs the sockets first.
    """

    intake: Intake

    def __init__(
        self,
        *,
        clock: Clock,
        logger: Logger,
        queue: QueueConfig,
        heartbeat: HeartbeatConfig,
        max_message_size: int,
        batch_budget: int,
        source: Source | None = None,
        inflate: Inflate | None = None,
    ) -> None:
        self.clock = clock
        self.logger = logger
        self.queue = queue
        self.max_message_size = max_message_size
        self.flush = Flush()
        self.heartbeat = Heartbeat(clock, heartbeat)
        self.message_time = float(heartbeat.pong_timeout) + max_message_size / SLOWEST  # type: ignore[arg-type]
        """Seconds that a message may take to come. The ``pong_timeout`` in it lets who has
        merely lost the network be found silent first: 4408 tells it to come back."""
        self.poller = Poller(
            source or best_source(),
            waiting=lambda: self.intake.waiting(),
            budget=batch_budget,
            held=lambda: self.flush.full,
            before=self._before_batch,
            after=self.flush.turn,
        )
        self.links: set[SocketLink] = set()
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

    def start(self) -> None:
        """Begin on the running loop."""
        self.loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self.now = self.clock.now()
        self.flush.start()
        self.poller.start()
        self.heartbeat.start()

    def stop(self) -> None:
        """End whatever is still there, at once."""
        self.flush.stop()
        for link in list(self.links):
            link.abort()
        self.poller.stop()
        self.heartbeat.stop()

    async def empty(self) -> None:
        """Return when the last link is gone."""
        while self.links:
            self._empty.clear()
            await self._empty.wait()

    def new_parser(self, *, inflates: bool = False) -> Parser:
        return Parser(self.max_message_size, self.inflate if inflates else None)

    def enter(self, link: SocketLink) -> None:
        self.links.add(link)

    def leave(self, link: SocketLink) -> None:
        self.links.discard(link)
        self.heartbeat.remove(link)
        self.poller.withdraw(link)
        if not self.links:
            self._empty.set()

    def _before_batch(self) -> None:
        self.now = self.clock.now()
        self.flush.hold()
