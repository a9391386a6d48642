"""What waits for a connection that does not read fast enough, and what is dropped.

Rules of this file:

1. A higher priority is sent first; within a priority, what came first.
2. Frames of one stream (a room with history) keep the order in which they came,
   whatever their priorities: one that would overtake an earlier frame of its room
   waits in that frame's lane, and counts as of that priority while it waits.
3. The queue is bounded in frames and in bytes. One frame larger than ``max_bytes``
   passes if nothing else waits: it could never be sent otherwise.
4. Whatever is dropped is handed back to the caller, who counts and reports it. To
   make room, a frame never pushes out one of a higher priority, and nothing is
   pushed out in vain.
5. A frame that is partly written is not here: it can be neither dropped nor overtaken.
6. The queues of a node are bounded together, too: when it holds too much, those that hold
   the most let go of half, again by the policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Generic, Protocol, TypeVar

from eyewall.domain.duration import count
from eyewall.domain.envelope import Priority
from eyewall.domain.pool import Pool


class DropPolicy(StrEnum):
    """What gives way when a connection's queue is full."""

    DROP_NEWEST = "drop_newest"
    """The message that does not fit."""

    DROP_OLDEST = "drop_oldest"
    """The oldest messages of the lowest priority, but none of a higher priority than
    the message that does not fit: then that one."""

    DROP_AND_DISCONNECT = "drop_and_disconnect"
    """The message that does not fit, and the connection with it (4413)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """How much may wait for one connection that does not read."""

    size: int = 256
    """Messages. At 1 KiB each a stuck client holds 256 KiB of its own; the bytes of a
    broadcast are shared among its recipients and cost little."""

    max_bytes: int = 8 * 2**20
    """Bytes, as framed. Eight of the largest messages that are let in by default."""

    drop_policy: DropPolicy = DropPolicy.DROP_NEWEST
    """The newest goes by default: the client sees a prefix of what was sent to it."""

    def __post_init__(self) -> None:
        count(self.size, "QueueConfig.size")
        count(self.max_bytes, "QueueConfig.max_bytes")
        object.__setattr__(self, "drop_policy", DropPolicy(self.drop_policy))


class Offer(Enum):
    """What became of a frame that was offered to a queue."""

    QUEUED = auto()
    DROPPED_NEWEST = auto()
    """The frame was not taken."""
    DROPPED_OLDEST = auto()
    """The frame was taken; earlier ones were dropped for it."""
    OVERFLOWED = auto()
    """The frame was not taken, and the caller hangs up."""
    CLOSED = auto()
    """The connection has ended or is ending: no queue was asked."""
    EXPIRED = auto()
    """The frame had been taken; its time was over before the peer had read so far."""


class Queued(Protocol):
    """What an outbox has to know of a frame. None of it may change while it waits."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def body(self) -> object:
        """What those bytes are kept in; others may share it."""

    @property
    def priority(self) -> Priority:
        """What it overtakes and what overtakes it."""

    @property
    def stream(self) -> str | None:
        """The id of its room if that keeps history, else None."""


F = TypeVar("F", bound=Queued)


class Outbox(Generic[F]):
    """The frames that wait for one stalled connection, in sending order."""

    __slots__ = ("_bytes", "_config", "_lanes", "_pool", "_streams")

    def __init__(self, config: QueueConfig, pool: Pool | None = None) -> None:
        self._config = config
        self._pool = pool or Pool(config.max_bytes)
        self._lanes: tuple[deque[F], ...] = tuple(deque() for _ in Priority)
        self._bytes = [0] * len(Priority)
        # How many frames of each stream wait in each lane.
        self._streams: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    @property
    def bytes(self) -> int:
        """The sizes of all waiting frames together."""
        return sum(self._bytes)

    def offer(self, frame: F) -> tuple[Offer, Sequence[F]]:
        """Take in ``frame`` if the bounds and the policy let it; say what was dropped.

        The frames that come back are lost: with ``DROPPED_OLDEST`` those that gave
        way, the oldest of the lowest priority first; with ``DROPPED_NEWEST`` and
        ``OVERFLOWED`` the frame itself.
        """
        if self._fits(frame):
            self._append(frame)
            return Offer.QUEUED, ()
        match self._config.drop_policy:
            case DropPolicy.DROP_NEWEST:
                return Offer.DROPPED_NEWEST, (frame,)
            case DropPolicy.DROP_AND_DISCONNECT:
                return Offer.OVERFLOWED, (frame,)
            case DropPolicy.DROP_OLDEST:
                return self._push_out(frame)

    def take(self, max_bytes: int) -> list[F]:
        """Remove and return the next frames to send, of at most ``max_bytes`` together.

        The first comes however large it is, so that every call makes progress.
        """
        taken: list[F] = []
        left = max_bytes
        for priority in reversed(Priority):
            lane = self._lanes[priority]
            while lane:
                if taken and lane[0].size > left:
                    return taken
                frame = self._popleft(priority)
                left -= frame.size
                taken.append(frame)
        return taken

    def shed(self) -> tuple[Offer, Sequence[F]]:
        """Let go of half of the bytes, and at least of one frame, by the policy.

        Returns what was dropped, and the outcome to report it by. ``OVERFLOWED``: it was
        all, and the caller hangs up.
        """
        if self._config.drop_policy is DropPolicy.DROP_AND_DISCONNECT:
            return Offer.OVERFLOWED, self.clear()
        oldest = self._config.drop_policy is DropPolicy.DROP_OLDEST
        most = self.bytes // 2
        victims: list[F] = []
        while (len(self) and not victims) or self.bytes > most:
            lowest = next(p for p in Priority if self._lanes[p])
            victims.append(self._popleft(lowest) if oldest else self._pop(lowest))
        return Offer.DROPPED_OLDEST if oldest else Offer.DROPPED_NEWEST, victims

    def clear(self) -> list[F]:
        """Remove and return all frames, in sending order."""
        frames = [frame for lane in reversed(self._lanes) for frame in lane]
        for frame in frames:
            self._pool.release(frame.body, frame.size)
        for lane in self._lanes:
            lane.clear()
        self._bytes = [0] * len(Priority)
        self._streams.clear()
        return frames

    def _fits(self, frame: F, above: int = -1) -> bool:
        """Whether ``frame`` would fit if only the lanes ``above`` a priority were kept."""
        kept = sum(map(len, self._lanes[above + 1 :]))
        if kept == 0:
            return True
        kept_bytes = sum(self._bytes[above + 1 :])
        return kept < self._config.size and kept_bytes + frame.size <= self._config.max_bytes

    def _push_out(self, frame: F) -> tuple[Offer, Sequence[F]]:
        # First whether it can be done at all: frames that gave way for one that is
        # then dropped too would be lost for nothing.
        if not self._fits(frame, above=frame.priority):
            return Offer.DROPPED_NEWEST, (frame,)
        victims: list[F] = []
        while not self._fits(frame):
            lowest = next(p for p in Priority if self._lanes[p])
            victims.append(self._popleft(lowest))
        self._append(frame)
        return Offer.DROPPED_OLDEST, victims

    def _append(self, frame: F) -> None:
        lane = frame.priority
        if frame.stream is not None:
            waiting = self._streams.setdefault(frame.stream, [0] * len(Priority))
            # The lowest lane with a frame of the room is the one sent last, so
            # behind it, or below, is behind them all.
            lane = next((p for p in Priority if p < lane and waiting[p]), lane)
            waiting[lane] += 1
        self._lanes[lane].append(frame)
        self._bytes[lane] += frame.size
        self._pool.hold(frame.body, frame.size)

    def _popleft(self, lane: Priority) -> F:
        return self._gone(self._lanes[lane].popleft(), lane)

    def _pop(self, lane: Priority) -> F:
        return self._gone(self._lanes[lane].pop(), lane)

    def _gone(self, frame: F, lane: Priority) -> F:
        """Count off a frame that has left its lane."""
        self._bytes[lane] -= frame.size
        self._pool.release(frame.body, frame.size)
        if frame.stream is not None:
            waiting = self._streams[frame.stream]
            waiting[lane] -= 1
            if not any(waiting):
                del self._streams[frame.stream]
        return frame
