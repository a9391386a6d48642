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
      the real queue, until ``read``, also when the link is closing. The link closes when a message
      has waited ``write_wait`` seconds; so long again, and the queue is dropped;
    * ``full``: every message is dropped, whatever the limits; ``read`` then reports ``drained``.
    """

    def __init__(
        self,
        clock: Clock,
        transport_events: TransportEvents,
        *,
        codec: Codec = CODEC,
        queue: QueueConfig | None = None,
        write_wait: float | None = None,
        max_message_size: int | None = None,
    ) -> None:
        self._clock = clock
        self._transport_events = transport_events
        self._queue = queue or QueueConfig()
        self._outbox: Outbox[EncodedMessage] = Outbox(self._queue)
        self._write_wait = write_wait
        self._most = max_message_size
        self._deadline: Timer | None = None
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
        """Whether the socket is lost."""
        self._overflowed = False
        self._was_full = False
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
        if self._ended:
            return Offer.CLOSED
        offer, lost = self._offer(frame)
        self._report_dropped([each for each in lost if each is not frame], offer)
        if offer is Offer.OVERFLOWED:
            self._overflow()
        return offer

    def take_broadcast(self, frame: EncodedMessage) -> None:
        """Take a message of a group; its own drop is reported later, too."""
        if self._ended:
            overflowed = self._overflowed and not self.gone
            self._report_dropped([frame], Offer.OVERFLOWED if overflowed else Offer.CLOSED)
            return
        offer, lost = self._offer(frame)
        self._report_dropped(lost, offer)
        if offer is Offer.OVERFLOWED:
            self._overflow()

    def close(self, reason: DisconnectReason) -> None:
        if self._ended:
            return
        self.closed = reason
        if self.queued:
            self._set_deadline(self._cut_off)
        self.on_frame()

    # --- the peer's side

    def say(self, payload: bytes, *, binary: bool = False) -> None:
        """Receive one message from the peer."""
        self.last_seen = self._clock.now()
        if self._ended:
            return
        if self._most is not None and len(payload) > self._most:
            self._fail(DisconnectReason.MESSAGE_TOO_BIG)
        else:
            self._transport_events.received(self, payload, binary=binary)

    def read(self) -> None:
        """Let the peer read again: queued messages are delivered, except expired ones."""
        self.stalled = False
        self._end_wait()
        now = self._clock.now()
        waiting = self._outbox.clear()
        late = [f for f in waiting if f.expires is not None and f.expires <= now]
        self._report_dropped(late, Offer.EXPIRED)
        self._deliver([frame for frame in waiting if frame not in late])
        if (waiting or self._was_full) and not self._ended:
            self._was_full = False
            self._soon(self._transport_events.drained)

    def vanish(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        """Lose the socket: queued messages are dropped."""
        if self.gone:
            return
        if self.closed is None:
            self._soon(self._transport_events.lost, reason, error)
        self._cut_off()

    # --- delivery and drops

    @property
    def _ended(self) -> bool:
        return self.closed is not None or self.gone

    def _offer(self, frame: EncodedMessage) -> tuple[Offer, Sequence[EncodedMessage]]:
        """Deliver or queue a message; return the outcome and the dropped messages."""
        if self.full:
            self._was_full = True
            return Offer.DROPPED_NEWEST, [frame]
        if not self.stalled:
            self._deliver([frame])
            return Offer.QUEUED, ()
        if self._deadline is None:
            self._set_deadline(self._give_up)
        return self._outbox.offer(frame)

    def _deliver(self, frames: Sequence[EncodedMessage]) -> None:
        self.frames += frames
        self.on_frame()

    def _overflow(self) -> None:
        self._overflowed = True
        self._give_up()

    def _give_up(self) -> None:
        """Close as a slow consumer: the peer did not read in time, or its queue is full."""
        self._fail(DisconnectReason.SLOW_CONSUMER)

    def _fail(self, reason: DisconnectReason) -> None:
        self.close(reason)
        self._soon(self._transport_events.lost, reason)

    def _cut_off(self) -> None:
        """End without the peer: what is queued is lost."""
        self.gone = True
        self._end_wait()
        self._report_dropped(self._outbox.clear(), Offer.CLOSED)
        self.on_frame()

    def _set_deadline(self, late: Callable[[], None]) -> None:
        self._end_wait()
        if self._write_wait is not None:
            self._deadline = self._clock.call_later(self._write_wait, late)

    def _end_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _report_dropped(self, frames: Sequence[EncodedMessage], why: Offer) -> None:
        for frame in frames:
            self._soon(self._transport_events.dropped, frame, why)

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
            link.take_broadcast(frame)
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

    transport_events: TransportEvents

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
