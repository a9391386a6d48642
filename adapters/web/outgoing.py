"""The writing half of a connection: what goes out at once, and what has to wait.

``link`` has the other half, and the rules of both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

from eyewall.adapters.web.backlog import Backlog
from eyewall.adapters.web.node import Node
from eyewall.adapters.web.plan import Item
from eyewall.application.frames import Frame, Wire
from eyewall.application.ports import Codec
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.outbox import Offer

EARLY_FRAMES: Final = 64
EARLY_BYTES: Final = 64 * 1024
"""Collected messages of one link, or bytes, that are written without waiting for the
end of the turn: else nobody would notice in time that it has stalled."""

QUEUED: Final = Offer.QUEUED
"""By a name of its own: the look-up of a member in its enum costs more than a call."""

OPEN: Final = 0
ENDING: Final = 1
PARTING: Final = 2
LINGERING: Final = 3
SHUT: Final = 4
GONE: Final = 5

NOTHING: Final[Callable[[bytes], int]] = len
"""Stands in for ``write`` when nothing may go out: takes everything, does nothing."""


class Outgoing(ABC):
    """Writes to a socket for as long as it takes, then to a backlog."""

    __slots__ = ("_backlog", "_goodbye", "_own_bytes", "node", "own", "state", "wire", "write")

    committed = 0
    """Bytes of a refused write that have to be offered again unchanged."""

    write: Callable[[bytes], int]
    """Takes whole frames: the socket itself, the queue of a stalled link, or nothing."""

    def __init__(self, node: Node, wire: Wire) -> None:
        self.node = node
        self.wire = wire
        self.state = OPEN
        self.own: list[Item] | None = None
        self._own_bytes = 0
        self._backlog: Backlog | None = None
        self._goodbye = b""

    # --- what the other half and the transport bring

    codec: Codec
    owner: Any
    last_seen: float
    due: int
    asked: float
    answer_due: float

    @abstractmethod
    def close(self, reason: DisconnectReason) -> None:
        """Write what is queued, then the close frame, then go."""

    @property
    @abstractmethod
    def listening(self) -> bool:
        """Whether the peer is being read."""

    @abstractmethod
    def look(self) -> None:
        """Read what has come by now."""

    @abstractmethod
    def ping(self) -> bool:
        """Ask for a sign of life; False if that ended the link."""

    @abstractmethod
    def fall_silent(self) -> None:
        """Nothing came for too long."""

    @property
    @abstractmethod
    def message_due(self) -> float:
        """When the message that the peer has begun has to be there."""

    @abstractmethod
    def dawdle(self) -> None:
        """That message is overdue."""

    @abstractmethod
    def check(self, now: float) -> bool:
        """Act on a deadline that has passed; False when there is none to watch."""

    @property
    @abstractmethod
    def _writer(self) -> Callable[[bytes | memoryview], int]:
        """Writes without waiting; returns how much was taken, or raises ``OSError``."""

    @abstractmethod
    def _adjust(self) -> None:
        """Watch for what ``wants_read`` and ``wants_write`` say."""

    @abstractmethod
    def _resume(self) -> None:
        """The peer reads again: it may be read again."""

    @abstractmethod
    def _decide(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        """End by the link's own decision."""

    @abstractmethod
    def _lose(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        """The socket is of no use any more."""

    @abstractmethod
    def _linger(self) -> None:
        """The close frame has been written."""

    @property
    def wants_write(self) -> bool:
        return self._backlog is not None

    # --- for the application

    @property
    def queued(self) -> int:
        return len(self._backlog) if self._backlog is not None else 0

    @property
    def crowded(self) -> bool:
        own = self.own
        if self._backlog is not None and self._backlog.crowded:
            return True
        if own is None:
            return False
        queue = self.node.queue
        return len(own) * 2 >= queue.size or self._own_bytes * 2 > queue.max_bytes

    def send(self, frame: Frame) -> Offer:
        if self.state != OPEN:
            return Offer.CLOSED
        size = len(frame.form(self.wire))
        node = self.node
        flush = node.flush
        own = self.own
        if own is None:
            self._own_bytes = 0
        elif (
            self._own_bytes > EARLY_BYTES or len(own) >= EARLY_FRAMES or len(own) >= node.queue.size
        ):
            flush.now()
            self._own_bytes = 0
        if self._backlog is not None and not flush.concerns(self):
            return self._queue(frame, told=True)
        self._own_bytes += size
        flush.send(self, frame, size)
        return QUEUED

    # --- writing

    def stall(self, frames: Sequence[Frame], data: bytes, sent: int) -> None:
        """The socket took only ``sent`` bytes of ``data``, which are ``frames``.

        What the peer has the beginning of must follow; the rest can wait in the queue,
        where the policy decides about it.
        """
        started = sent + self.committed
        end = 0
        whole = 0
        while end < started and whole < len(frames):
            end += len(frames[whole].form(self.wire))
            whole += 1
        self._begin_backlog(memoryview(data)[sent:end])
        for frame in frames[whole:]:
            self._queue(frame)

    def write_failed(self, error: Exception) -> None:
        self._lose(DisconnectReason.WRITE_ERROR, error)

    def part(self) -> None:
        if self.state == ENDING:
            self.state = PARTING
            self.write = NOTHING
            if self._backlog is not None:
                self._backlog.goodbye = self._goodbye
                return
            self._backlog = self._new_backlog()
            self._backlog.goodbye = self._goodbye
            self._drain()

    def on_writable(self) -> None:
        if self._backlog is not None:
            self._drain()

    def _new_backlog(self) -> Backlog:
        return Backlog(self.node.queue, self.node.pool, self.wire, self.node.clock.now())

    def _begin_backlog(self, rest: memoryview) -> None:
        self._backlog = self._new_backlog()
        self._backlog.rest = rest
        if self.node.pool.full:
            self.node.relieve_soon()
        self.write = self._hold
        self.node.heartbeat.attend(self)
        self._adjust()

    def _hold(self, data: bytes) -> int:
        """Stands in for ``write`` while stalled."""
        for frame in self.node.flush.current:
            self._queue(frame)
        return len(data)

    def _queue(self, frame: Frame, *, told: bool = False) -> Offer:
        """Put ``frame`` into the queue; ``told``: its sender hears the outcome from here."""
        backlog = self._backlog
        if backlog is None or self.state > ENDING:
            if not told:
                self.node.loop.call_soon(self.node.intake.dropped, self, frame, Offer.OVERFLOWED)
            return Offer.CLOSED
        offer, dropped = backlog.offer(frame)
        for lost in dropped:
            if not told or lost is not frame:
                self.node.loop.call_soon(self.node.intake.dropped, self, lost, offer)
        if offer is Offer.OVERFLOWED:
            self._overflow()
            return offer
        if not backlog.paused and self.state == OPEN and backlog.crowded:
            backlog.paused = True
            self._adjust()
        if self.node.pool.full:
            if told:  # nothing is being written, and the sender may go on without a pause
                self.node.relieve()
            else:
                self.node.relieve_soon()
        return offer

    def _overflow(self) -> None:
        """The policy is to hang up."""
        self._decide(DisconnectReason.SLOW_CONSUMER)
        self.part()  # what comes after the gap is not written
        self.write = self._hold  # but counted as what it is: it had been taken

    @property
    def held(self) -> int:
        """Bytes that wait here."""
        return self._backlog.held if self._backlog is not None else 0

    def shed(self) -> None:
        """Give way to others: by half of the queue, or, where only the rest of a message
        waits that the peer has the beginning of, by the end of the connection."""
        backlog = self._backlog
        if backlog is None:
            return
        offer, dropped = backlog.shed()
        for lost in dropped:
            self.node.loop.call_soon(self.node.intake.dropped, self, lost, offer)
        if not dropped:
            self._lose(DisconnectReason.SLOW_CONSUMER)
        elif offer is Offer.OVERFLOWED and self.state == OPEN:
            self._overflow()

    def _write_urgently(self, frame: bytes) -> None:
        """Write a control frame before all that waits, but not into another frame."""
        if self._backlog is not None:
            self._backlog.add_urgent(frame)
            return
        try:
            sent = self.write(frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(DisconnectReason.WRITE_ERROR, error)
            return
        if sent < len(frame):
            self._begin_backlog(memoryview(frame)[sent:])

    def _drain(self) -> None:
        """Write as much of the backlog as the socket takes, in one turn's measure."""
        backlog = self._backlog
        assert backlog is not None
        try:
            empty = backlog.drain(self._writer, self.node.clock.now())
        except OSError as error:
            self._lose(DisconnectReason.WRITE_ERROR, error)
            return
        finally:
            if backlog.expired:
                self._abandon(backlog.expired, Offer.EXPIRED)
                backlog.expired = []
        if empty:
            self._drained(backlog)
        else:
            self._adjust()

    def _abandon(self, frames: Sequence[Frame], why: Offer) -> None:
        """Tell of messages that had been taken and are not written after all."""
        for frame in frames:
            self.node.loop.call_soon(self.node.intake.dropped, self, frame, why)

    def _drained(self, backlog: Backlog) -> None:
        self._backlog = None
        if self.state == PARTING:
            self._linger()
            return
        self.write = self._writer
        self._adjust()
        # In the next turn: what was dropped may still be on its way there.
        self.node.loop.call_soon(self.node.intake.drained, self)
        if backlog.paused:
            self._resume()
