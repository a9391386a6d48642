"""What waits for a peer that does not read: frames to choose from, and bytes to finish.

A frame that the peer has the beginning of must follow whole, before anything else.
Control frames come right after it. All others stay frames, so that the policy can drop
one, until they are next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

from eyewall.application.ports.message import EncodedMessage, WireFormat
from eyewall.domain.outbox import Offer, Outbox, QueueConfig
from eyewall.domain.pool import Pool

DRAIN_BYTES: Final = 16 * 1024
"""Bytes that leave the queue at a time: what has left it can't be dropped any more."""

DRAINS_PER_TURN: Final = 16
"""How often in one turn."""

MAX_CONTROL_BYTES: Final = 4096
"""Pongs that wait for a half-written frame. RFC 6455 (5.5.3) lets a server leave out
all but the newest."""


NO_BYTES: Final = memoryview(b"")


class Backlog:
    """Exists only while a connection is stalled, or while it writes its close frame."""

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
        "reading_paused",
    )

    def __init__(self, config: QueueConfig, pool: Pool, wire: WireFormat, now: float) -> None:
        self._config = config
        self._pool = pool
        self._wire = wire
        self._outbox: Outbox[EncodedMessage] = Outbox(config, pool)
        self._control = b""
        self._partial = NO_BYTES
        self._partial_source = b""  # what ``partial`` is cut from, and keeps
        self.close_frame = b""
        """The close frame, to go out when all else has."""
        self.reading_paused = False
        """Whether the peer is not read either."""
        self.expired: list[EncodedMessage] = []
        """Messages whose time was over when they could have been written."""
        self.last_progress = now
        """When bytes were last taken."""

    def __len__(self) -> int:
        """Messages that wait, the half-written one too."""
        return len(self._outbox) + bool(self.partial)

    @property
    def partial(self) -> memoryview:
        """Bytes that must go out before anything else."""
        return self._partial

    @partial.setter
    def partial(self, view: memoryview) -> None:
        self._partial = view = view or NO_BYTES  # an empty one would keep what it was cut from
        before, after = self._partial_source, cast("bytes", view.obj)
        if after is not before:
            self._partial_source = after
            if after:
                self._pool.hold(after, len(after))
            if before:
                self._pool.release(before, len(before))

    @property
    def held_bytes(self) -> int:
        """Bytes that it keeps in memory, shared or not."""
        return self._outbox.bytes + len(self._partial_source)

    @property
    def crowded(self) -> bool:
        """Whether more than half of the queue is used."""
        outbox, config = self._outbox, self._config
        return len(outbox) * 2 > config.size or outbox.bytes * 2 > config.max_bytes

    def offer(self, frame: EncodedMessage) -> tuple[Offer, Sequence[EncodedMessage]]:
        """Queue a frame; the policy decides what is dropped, and that is returned."""
        return self._outbox.offer(frame)

    def shed(self) -> tuple[Offer, Sequence[EncodedMessage]]:
        """Let go of half of the queue by the policy; returns what was dropped."""
        return self._outbox.shed()

    def discard(self) -> list[EncodedMessage]:
        """Nobody will write any of it; returns the messages that the peer has seen
        nothing of."""
        self.partial = NO_BYTES
        return self._outbox.clear()

    def add_control(self, frame: bytes) -> None:
        """Queue a control frame, unless too many wait."""
        if len(self._control) < MAX_CONTROL_BYTES:
            self._control += frame

    def advance(self, count: int, now: float) -> None:
        """The socket took ``count`` bytes of ``partial``."""
        self.partial = self.partial[count:]
        self.last_progress = now

    def _take_unexpired(self, now: float) -> list[EncodedMessage]:
        """The next messages to go out; those whose time is over are set aside."""
        while frames := self._outbox.take(DRAIN_BYTES):
            late = [f for f in frames if f.expires is not None and f.expires <= now]
            self.expired += late
            if len(late) < len(frames):
                return [f for f in frames if f not in late] if late else frames
        return []

    def prepare_next(self, now: float) -> bool:
        """Make ``partial`` what goes out next; False if there is nothing left."""
        if self.partial:
            return True
        if self._control:
            data, self._control = self._control, b""
        elif frames := self._take_unexpired(now):
            data = b"".join([frame.form(self._wire) for frame in frames])
        else:
            data, self.close_frame = self.close_frame, b""
        self.partial = memoryview(data)
        return bool(data)

    def drain(self, write: Callable[[memoryview], int], now: float) -> bool:
        """Write one turn's measure; True when nothing is left.

        Raises ``OSError`` when the socket can't be written to any more.
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
