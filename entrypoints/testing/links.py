"""Fakes for the WebSocket side: links to peers that read at once or not at all.

Each fake records what it is given, and fails by a named switch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from eyewall.adapters.codec.json import JsonCodec
from eyewall.application.ports.clock import Clock, Timer
from eyewall.application.ports.message import Codec, EncodedMessage
from eyewall.application.ports.transport import TransportEvents
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.outbox import Offer, Outbox, QueueConfig

CODEC = JsonCodec()


class FakeLink:
    """Implements ``Link``.

    * ``stalled``: the peer does not read. Messages are queued, with the limits and the policy of
      the real queue, until ``read``. The link closes when a message has waited ``write_wait``
      seconds;
    * ``full``: every message is dropped, whatever the limits.
    """

    def __init__(
        self,
        clock: Clock,
        intake: TransportEvents,
        *,
        codec: Codec = CODEC,
        queue: QueueConfig | None = None,
        write_wait: float | None = None,
        max_message_size: int | None = None,
    ) -> None:
        self._clock = clock
        self._intake = intake
        self._queue = queue or QueueConfig()
        self._outbox: Outbox[EncodedMessage] = Outbox(self._queue)
        self._write_wait = write_wait
        self._most = max_message_size
        self._giving_up: Timer | None = None
        self.codec = codec
        self.owner: Any = None
        self.last_seen = clock.now()
        self.frames: list[EncodedMessage] = []
        """The messages that the peer has received, in order."""
        self.stalled = False
        self.full = False
        self.closed: DisconnectReason | None = None
        """The reason for which the server closed it; None while it has not."""
        self.gone = False
        self.on_frame: Callable[[], None] = _nothing
        """Called when the peer has received a message or the link has ended."""

    @property
    def queued(self) -> int:
        return len(self._outbox)

    @property
    def is_half_full(self) -> bool:
        outbox, queue = self._outbox, self._queue
        return len(outbox) * 2 > queue.size or outbox.bytes * 2 > queue.max_bytes

    # --- the server's side

    def read_pending(self) -> None:
        """Do nothing: input is passed on at once, so none is ever unread."""

    def send(self, frame: EncodedMessage) -> Offer:
        if self.closed is not None or self.gone:
            return Offer.CLOSED
        if self.full:
            return Offer.DROPPED_NEWEST
        if not self.stalled:
            self._take([frame])
            return Offer.QUEUED
        offer, dropped = self._outbox.offer(frame)
        self._tell_dropped([lost for lost in dropped if lost is not frame], offer)
        if offer is Offer.OVERFLOWED:
            self._give_up()
        elif self._giving_up is None and self._write_wait is not None:
            self._giving_up = self._clock.call_later(self._write_wait, self._give_up)
        return offer

    def take_later(self, frame: EncodedMessage) -> None:
        """Take a message of a fan-out; drops are reported later."""
        if self.closed is not None or self.gone:
            return
        offer = self.send(frame)
        if offer in (Offer.DROPPED_NEWEST, Offer.OVERFLOWED):
            self._tell_dropped([frame], offer)

    def close(self, reason: DisconnectReason) -> None:
        if self.closed is None and not self.gone:
            self.closed = reason
            self._end_wait()
            self._take(self._outbox.clear())

    # --- the peer's side

    def say(self, payload: bytes, *, binary: bool = False) -> None:
        """Receive one message from the peer."""
        self.last_seen = self._clock.now()
        if self._most is not None and len(payload) > self._most:
            self.close(DisconnectReason.MESSAGE_TOO_BIG)
            self._soon(self._intake.lost, DisconnectReason.MESSAGE_TOO_BIG)
        elif self.closed is None:
            self._intake.received(self, payload, binary=binary)

    def read(self) -> None:
        """Let the peer read again: queued messages are delivered, except expired ones."""
        self.stalled = False
        self._end_wait()
        now = self._clock.now()
        waiting = self._outbox.clear()
        late = [f for f in waiting if f.expires is not None and f.expires <= now]
        self._tell_dropped(late, Offer.EXPIRED)
        self._take([frame for frame in waiting if frame not in late])
        if self.closed is None and not self.gone:
            self._soon(self._intake.drained)

    def vanish(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        """Lose the socket: queued messages are dropped."""
        if self.gone or self.closed is not None:
            return
        self.gone = True
        self._end_wait()
        self._intake.lost(self, reason, error)
        self._tell_dropped(self._outbox.clear(), Offer.CLOSED)
        self.on_frame()

    # --- delivery and drops

    def _take(self, frames: Sequence[EncodedMessage]) -> None:
        self.frames += frames
        self.on_frame()

    def _give_up(self) -> None:
        """Close as a slow consumer: the peer did not read in time, or its queue is full."""
        self.close(DisconnectReason.SLOW_CONSUMER)
        self._soon(self._intake.lost, DisconnectReason.SLOW_CONSUMER)

    def _end_wait(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _tell_dropped(self, frames: Sequence[EncodedMessage], why: Offer) -> None:
        for frame in frames:
            self._soon(self._intake.dropped, frame, why)

    def _soon(self, tell: Callable[..., Any], *args: Any) -> None:
        asyncio.get_running_loop().call_soon(tell, self, *args)


def _nothing() -> None:
    """Do nothing: the default callback."""


class FakeAudience:
    """Implements ``BroadcastGroup``."""

    def __init__(self) -> None:
        self._links: dict[Any, None] = {}

    def add(self, link: Any) -> None:
        self._links[link] = None

    def discard(self, link: Any) -> None:
        self._links.pop(link, None)

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._links)

    def broadcast(self, frame: EncodedMessage, skip: Collection[Any] = ()) -> int:
        meant = [link for link in self._links if link not in skip]
        for link in meant:
            link.take_later(frame)
        return len(meant)


class FakeOutbound:
    """Implements ``MessageWriter``. ``crowded``: too many bytes wait to be written."""

    def __init__(self) -> None:
        self._room = asyncio.Event()
        self._room.set()

    @property
    def crowded(self) -> bool:
        return not self._room.is_set()

    @crowded.setter
    def crowded(self, value: bool) -> None:
        (self._room.clear if value else self._room.set)()

    def new_group(self) -> FakeAudience:
        return FakeAudience()

    async def ready(self) -> None:
        await self._room.wait()


class NoTransport:
    """Implements ``Transport`` without sockets."""

    intake: TransportEvents

    def routes(self, path: str) -> list[Any]:
        return []

    def start(self) -> None:
        """Do nothing: there are no sockets."""

    hosts = None
    refusals = None

    def refuse_new(self) -> None:
        """Do nothing: no handshake is pending."""

    async def drain_input(self) -> None:
        """Do nothing: all input has been read."""

    async def stop(self, within: float) -> None:
        """Do nothing: no socket is open."""
