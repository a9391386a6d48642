"""The write queue of a stalled connection: queued frames, and the bytes of a half-written one.

A half-written frame is completed first. Control frames follow it, then the queued messages,
then the close frame. Messages stay frames until they are written, so that the drop policy can
drop one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

from eyewall.application.ports.message import EncodedMessage, WireFormat
from eyewall.domain.outbox import Offer, Outbox, QueueConfig
from eyewall.domain.pool import Pool

DRAIN_BYTES: Final = 16 * 1024
"""Bytes taken from the queue for one write. Once taken, a message can't be dropped."""

DRAINS_PER_TURN: Final = 16
"""Writes of one connection in one iteration of the event loop."""

MAX_CONTROL_BYTES: Final = 4096
"""Bytes of pongs that wait for a half-written frame. RFC 6455 (5.5.3) lets a server answer only
the newest ping."""

NO_BYTES: Final = memoryview(b"")


class Backlog:
    """Exists only while a connection is stalled or writes its close frame."""

    __slots__ = (
        "_config",
        "_control",
        "_outbox",
        "_partial",
        "_partial_source",
        "_pool",
        "_wire",
        "close_frame",
        "expired",
        "last_progress",
        "partial_frames",
        "reading_paused",
    )

    def __init__(self, config: QueueConfig, pool: Pool, wire: WireFormat, now: float) -> None:
        self._config = config
        self._pool = pool
        self._wire = wire
        self._outbox: Outbox[EncodedMessage] = Outbox(config, pool)
        self._control = b""
        self._partial = NO_BYTES
        self._partial_source = b""  # the buffer that ``partial`` is a view of
        self.partial_frames: Sequence[EncodedMessage] = ()
        """The messages whose bytes end with ``partial``."""
        self.close_frame = b""
        """The close frame, which is written last."""
        self.reading_paused = False
        """Whether the peer is not read, as backpressure."""
        self.expired: list[EncodedMessage] = []
        """Messages whose ``expires`` had passed when they could have been written."""
        self.last_progress = now
        """When the socket last took bytes."""

    def __len__(self) -> int:
        """Messages in the queue, the half-written one included."""
        return len(self._outbox) + bool(self.partial)

    @property
    def partial(self) -> memoryview:
        """The bytes that are written next: the rest of a half-written frame."""
        return self._partial

    @partial.setter
    def partial(self, view: memoryview) -> None:
        self._partial = view = view or NO_BYTES  # an empty view would keep its buffer alive
        before, after = self._partial_source, cast("bytes", view.obj)
        if after is not before:
            self._partial_source = after
            if after:
                self._pool.hold(after, len(after))
            if before:
                self._pool.release(before, len(before))

    @property
    def held_bytes(self) -> int:
        """Bytes that the queue keeps in memory, those shared with other queues included."""
        return self._outbox.bytes + len(self._partial_source)

    @property
    def is_half_full(self) -> bool:
        """Whether more than half of the queue is used."""
        outbox, config = self._outbox, self._config
        return len(outbox) * 2 > config.size or outbox.bytes * 2 > config.max_bytes

    def offer(self, frame: EncodedMessage) -> tuple[Offer, Sequence[EncodedMessage]]:
        """Queue a frame. Returns the outcome, and the frames that the drop policy dropped."""
        return self._outbox.offer(frame)

    def shed(self) -> tuple[Offer, Sequence[EncodedMessage]]:
        """Drop half of the queue by the drop policy. Returns the outcome and the dropped
        frames."""
        return self._outbox.shed()

    def discard(self) -> list[EncodedMessage]:
        """Empty the queue. Returns the messages of which nothing was written."""
        left = len(self.partial)
        unwritten: list[EncodedMessage] = []
        for frame in reversed(self.partial_frames):
            left -= len(frame.for_wire(self._wire))
            if left < 0:
                break
            unwritten.append(frame)
        self.partial, self.partial_frames = NO_BYTES, ()
        return unwritten[::-1] + self._outbox.clear()

    def add_control(self, frame: bytes) -> None:
        """Queue a control frame; above ``MAX_CONTROL_BYTES`` it is left out."""
        if len(self._control) < MAX_CONTROL_BYTES:
            self._control += frame

    def advance(self, count: int, now: float) -> None:
        """The socket took ``count`` bytes of ``partial``."""
        self.partial = self.partial[count:]
        self.last_progress = now

    def _take_unexpired(self, now: float) -> list[EncodedMessage]:
        """Return the next messages to write; expired ones are added to ``expired``."""
        while frames := self._outbox.take(DRAIN_BYTES):
            late = [f for f in frames if f.expires is not None and f.expires <= now]
            self.expired += late
            if len(late) < len(frames):
                return [f for f in frames if f not in late] if late else frames
        return []

    def prepare_next(self, now: float) -> bool:
        """Make ``partial`` the bytes to write next. False if there are none."""
        if self.partial:
            return True
        self.partial_frames = ()
        if self._control:
            data, self._control = self._control, b""
        elif frames := self._take_unexpired(now):
            data = b"".join([frame.for_wire(self._wire) for frame in frames])
            self.partial_frames = frames
        else:
            data, self.close_frame = self.close_frame, b""
        self.partial = memoryview(data)
        return bool(data)

    def drain(self, write: Callable[[memoryview], int], now: float) -> bool:
        """Write for one iteration of the event loop. True when nothing is left.

        Raises ``OSError`` when the socket can't be written to.
        """
        for _ in range(DRAINS_PER_TURN):
            if not self.prepare_next(now):
                return True
            try:
                self.advance(write(self.partial), now)
            except BlockingIOError:
                return False
            if self.partial:
                return False
        return False
