"""The outbound queue of a connection that does not read fast enough: order and drop policy.

Rules of this file:

1. Higher priorities are sent first; within a priority the order is FIFO.
2. Messages of one stream (a room with history) keep their order across priorities: one that
   would overtake an earlier message of its room is queued with that message's priority.
3. The queue is bounded in messages and in bytes. One message larger than ``max_bytes`` is
   accepted into an empty queue: it could never be sent otherwise.
4. Dropped messages are returned to the caller, which counts and reports them. A message
   never evicts one of a higher priority, and evicts nothing unless it fits then.
5. A partly written message is not in the queue: it can be neither dropped nor overtaken.
6. The queues of a node are bounded together, too: when they hold too much, the largest shed
   half of their bytes, by the same policy.
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
    """What is dropped when a connection's queue is full."""

    DROP_NEWEST = "drop_newest"
    """The message that does not fit."""

    DROP_OLDEST = "drop_oldest"
    """The oldest messages of the lowest priority, but none of a higher priority than
    the message that does not fit: then that one."""

    DROP_AND_DISCONNECT = "drop_and_disconnect"
    """The message that does not fit, and the connection is closed (4413)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """The limits of one connection's outbound queue."""

    size: int = 256
    """Messages. At 1 KiB each a stuck client holds 256 KiB of its own; the bytes of a
    broadcast are shared among its recipients and cost little."""

    max_bytes: int = 8 * 2**20
    """Bytes, as framed. Eight of the largest messages that are accepted by default."""

    drop_policy: DropPolicy = DropPolicy.DROP_NEWEST
    """By default the newest is dropped: the client sees a prefix of what was sent to it."""

    def __post_init__(self) -> None:
        count(self.size, "QueueConfig.size")
        count(self.max_bytes, "QueueConfig.max_bytes")
        object.__setattr__(self, "drop_policy", DropPolicy(self.drop_policy))


class Offer(Enum):
    """The outcome of offering a message to a queue."""

    QUEUED = auto()
    DROPPED_NEWEST = auto()
    """The message was not accepted."""
    DROPPED_OLDEST = auto()
    """The message was accepted; earlier ones were dropped for it."""
    OVERFLOWED = auto()
    """The message was not accepted, and the caller closes the connection."""
    CLOSED = auto()
    """The connection has ended or is ending: the message was not offered."""
    EXPIRED = auto()
    """The message was queued, and its ``ttl`` passed before it could be written."""


class Queued(Protocol):
    """An encoded message in an outbox. These properties are constant while it is queued."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def body(self) -> object:
        """The object that holds the bytes; several queues may share it."""

    @property
    def priority(self) -> Priority:
        """Its priority in the queue."""

    @property
    def stream(self) -> str | None:
        """The id of its room if the room keeps a history, else None."""


F = TypeVar("F", bound=Queued)


class Outbox(Generic[F]):
    """The messages queued for one stalled connection, in sending order."""

    __slots__ = ("_bytes", "_config", "_pool", "_queues", "_streams")

    def __init__(self, config: QueueConfig, pool: Pool | None = None) -> None:
        self._config = config
        self._pool = pool or Pool(config.max_bytes)
        self._queues: tuple[deque[F], ...] = tuple(deque() for _ in Priority)
        self._bytes = [0] * len(Priority)
        # The number of queued messages of each stream by priority.
        self._streams: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    @property
    def bytes(self) -> int:
        """Bytes of all queued messages together."""
        return sum(self._bytes)

    def offer(self, message: F) -> tuple[Offer, Sequence[F]]:
        """Queue a message if the limits and the policy allow it; return the outcome and the
        dropped messages.

        With ``DROPPED_OLDEST`` these are the evicted ones, the oldest of the lowest priority
        first; with ``DROPPED_NEWEST`` and ``OVERFLOWED`` the message itself.
        """
        if self._fits(message):
            self._append(message)
            return Offer.QUEUED, ()
        match self._config.drop_policy:
            case DropPolicy.DROP_NEWEST:
                return Offer.DROPPED_NEWEST, (message,)
            case DropPolicy.DROP_AND_DISCONNECT:
                return Offer.OVERFLOWED, (message,)
            case DropPolicy.DROP_OLDEST:
                return self._evict_for(message)

    def take(self, max_bytes: int) -> list[F]:
        """Remove and return the next messages to send, of at most ``max_bytes`` together.

        The first is returned whatever its size, so that every call makes progress.
        """
        taken: list[F] = []
        left = max_bytes
        for priority in reversed(Priority):
            queue = self._queues[priority]
            while queue:
                if taken and queue[0].size > left:
                    return taken
                message = self._popleft(priority)
                left -= message.size
                taken.append(message)
        return taken

    def shed(self) -> tuple[Offer, Sequence[F]]:
        """Drop half of the bytes, and at least one message, by the policy.

        Returns the outcome and the dropped messages. With ``OVERFLOWED`` all were dropped, and
        the caller closes the connection.
        """
        if self._config.drop_policy is DropPolicy.DROP_AND_DISCONNECT:
            return Offer.OVERFLOWED, self.clear()
        oldest = self._config.drop_policy is DropPolicy.DROP_OLDEST
        most = self.bytes // 2
        victims: list[F] = []
        while (len(self) and not victims) or self.bytes > most:
            lowest = next(p for p in Priority if self._queues[p])
            victims.append(self._popleft(lowest) if oldest else self._pop(lowest))
        return Offer.DROPPED_OLDEST if oldest else Offer.DROPPED_NEWEST, victims

    def clear(self) -> list[F]:
        """Remove and return all messages, in sending order."""
        messages = [message for queue in reversed(self._queues) for message in queue]
        for message in messages:
            self._pool.release(message.body, message.size)
        for queue in self._queues:
            queue.clear()
        self._bytes = [0] * len(Priority)
        self._streams.clear()
        return messages

    def _fits(self, message: F, above: int = -1) -> bool:
        """Whether the message would fit if only the priorities higher than ``above`` were
        kept."""
        kept = sum(map(len, self._queues[above + 1 :]))
        if kept == 0:
            return True
        kept_bytes = sum(self._bytes[above + 1 :])
        return kept < self._config.size and kept_bytes + message.size <= self._config.max_bytes

    def _evict_for(self, message: F) -> tuple[Offer, Sequence[F]]:
        # Checked first: messages evicted for one that is then dropped, too, would be lost in
        # vain.
        if not self._fits(message, above=message.priority):
            return Offer.DROPPED_NEWEST, (message,)
        victims: list[F] = []
        while not self._fits(message):
            lowest = next(p for p in Priority if self._queues[p])
            victims.append(self._popleft(lowest))
        self._append(message)
        return Offer.DROPPED_OLDEST, victims

    def _append(self, message: F) -> None:
        priority = message.priority
        if message.stream is not None:
            waiting = self._streams.setdefault(message.stream, [0] * len(Priority))
            # The lowest priority with a message of the room is sent last, so a position at
            # its end is behind all messages of the room.
            priority = next((p for p in Priority if p < priority and waiting[p]), priority)
            waiting[priority] += 1
        self._queues[priority].append(message)
        self._bytes[priority] += message.size
        self._pool.hold(message.body, message.size)

    def _popleft(self, priority: Priority) -> F:
        return self._removed(self._queues[priority].popleft(), priority)

    def _pop(self, priority: Priority) -> F:
        return self._removed(self._queues[priority].pop(), priority)

    def _removed(self, message: F, priority: Priority) -> F:
        """Subtract a message that has left its queue."""
        self._bytes[priority] -= message.size
        self._pool.release(message.body, message.size)
        if message.stream is not None:
            waiting = self._streams[message.stream]
            waiting[priority] -= 1
            if not any(waiting):
                del self._streams[message.stream]
        return message
