"""One connection, whatever carries its bytes: what goes in, what waits, how it ends.

Rules of this file:

1. The states only go forward: open, ending (its close is decided, what was sent
   before is still to be written), parting (the close frame is next), shut (nothing
   more goes out; what comes is thrown away until the peer has closed too), gone.
2. The application hears of an end once, and only of one that it did not ask for. It
   is never called from within ``send``, ``close`` or a write: what happens there is
   told in the next turn of the loop.
3. An idle link holds no parser, list or queue of its own.
4. A peer that does not read its messages is not read either, once half of its queue
   is used. Its silence means nothing then; what ends it is that its writes make no
   progress for ``write_wait``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

from eyewall.adapters.web import wire as rfc6455
from eyewall.adapters.web.node import Node
from eyewall.adapters.web.plan import LAST, Item
from eyewall.adapters.web.wire import BINARY, PING, PONG, Parser, Violation
from eyewall.application.frames import Frame, Wire
from eyewall.application.ports import Codec
from eyewall.domain.connection import DisconnectReason, close_frame
from eyewall.domain.outbox import Offer, Outbox

CHUNK: Final = 64 * 1024
"""Bytes read at a time. From 128 KiB on every read costs a mapping and page faults."""

DRAIN: Final = 16 * 1024
"""Bytes that leave the queue at a time: what has left it can't be dropped any more."""

DRAINS: Final = 16
"""How often in one turn."""

EARLY_FRAMES: Final = 64
EARLY_BYTES: Final = 64 * 1024
"""Collected messages of one link, or bytes, that are written without waiting for the
end of the turn: else nobody would notice in time that it has stalled."""

CONTROLS_PER_SECOND: Final = 100
CONTROLS_AT_ONCE: Final = 200
"""Pings and pongs that a peer may send."""

URGENT_BYTES: Final = 4096
"""Pongs that wait for a half-written frame. RFC 6455 (5.5.3) lets a server leave out
all but the newest."""

LINGER: Final = 2.0
"""Seconds that a peer has to close its side after our close frame."""

OPEN: Final = 0
ENDING: Final = 1
PARTING: Final = 2
SHUT: Final = 3
GONE: Final = 4

PING_FRAME: Final = rfc6455.build(b"", PING)

NOTHING: Final[Callable[[bytes], int]] = len
"""Stands in for ``write`` when nothing may go out: takes everything, does nothing."""


class Backlog:
    """What waits because the peer does not read."""

    __slots__ = ("outbox", "paused", "rest", "since", "urgent")

    def __init__(self, outbox: Outbox[Frame], since: float) -> None:
        self.outbox = outbox
        self.rest = memoryview(b"")
        """Bytes that must go out before anything else: a frame is half-written."""
        self.urgent = b""
        """Control frames, to go right after."""
        self.since = since
        """When bytes were last taken."""
        self.paused = False
        """Whether the peer is not read either."""


class SocketLink(ABC):
    """Implements ``Link``; the subclasses carry the bytes."""

    __slots__ = (
        "_backlog",
        "_controls",
        "_deadline",
        "_goodbye",
        "_own_bytes",
        "_parser",
        "_reading",
        "codec",
        "due",
        "last_seen",
        "node",
        "own",
        "owner",
        "state",
        "wire",
        "write",
    )

    committed = 0
    """Bytes of a refused write that have to be offered again unchanged."""

    write: Callable[[bytes], int]
    """Takes whole frames: the socket itself, the queue of a stalled link, or nothing."""

    def __init__(self, node: Node, codec: Codec, wire: Wire) -> None:
        self.node = node
        self.codec = codec
        self.wire = wire
        self.owner: Any = None
        self.state = OPEN
        self.last_seen = node.clock.now()
        self.due = 0
        self.own: list[Item] | None = None
        self._own_bytes = 0
        self._backlog: Backlog | None = None
        self._parser: Parser | None = None
        self._reading = False
        self._controls = 0.0  # when the control frames so far would have been due
        self._deadline = 0.0
        self._goodbye = b""
        node.enter(self)

    # --- what carries the bytes

    @property
    @abstractmethod
    def _writer(self) -> Callable[[bytes | memoryview], int]:
        """Writes without waiting; returns how much was taken, or raises ``OSError``."""

    @abstractmethod
    def on_readable(self) -> None:
        """There is something to read, or the end."""

    @abstractmethod
    def _adjust(self) -> None:
        """Watch for what ``wants_read`` and ``wants_write`` say."""

    @abstractmethod
    def _shut_writing(self) -> None:
        """Tell the peer that nothing more comes; may raise ``OSError``."""

    @abstractmethod
    def _release(self) -> None:
        """Close the socket."""

    @property
    def wants_read(self) -> bool:
        return self._reading and not (self._backlog and self._backlog.paused)

    @property
    def wants_write(self) -> bool:
        return self._backlog is not None

    # --- for the application

    @property
    def queued(self) -> int:
        backlog = self._backlog
        return len(backlog.outbox) + bool(backlog.rest) if backlog else 0

    def send(self, frame: Frame) -> Offer:
        if self.state != OPEN:
            return Offer.DROPPED_NEWEST
        size = len(frame.form(self.wire))
        flush = self.node.flush
        own = self.own
        if own is None:
            self._own_bytes = 0
        elif self._own_bytes > EARLY_BYTES or len(own) >= min(EARLY_FRAMES, self.node.queue.size):
            flush.now()
            self._own_bytes = 0
        if self._backlog is not None and not flush.concerns(self):
            return self._queue(frame, told=True)
        self._own_bytes += size
        flush.send(self, frame, size)
        return Offer.QUEUED

    def close(self, reason: DisconnectReason) -> None:
        code, text = close_frame(reason)
        self._end(rfc6455.build_close(code, text))

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
            if self._backlog is None:
                self._backlog = Backlog(Outbox(self.node.queue), self.node.clock.now())
                self._drain()

    def on_writable(self) -> None:
        if self._backlog is not None:
            self._drain()

    def _begin_backlog(self, rest: memoryview) -> None:
        self._backlog = Backlog(Outbox(self.node.queue), self.node.clock.now())
        self._backlog.rest = rest
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
            return Offer.DROPPED_NEWEST
        outbox = backlog.outbox
        offer, dropped = outbox.offer(frame)
        for lost in dropped:
            if not told or lost is not frame:
                self.node.loop.call_soon(self.node.intake.dropped, self, lost, offer)
        if offer is Offer.OVERFLOWED:
            self._decide(DisconnectReason.SLOW_CONSUMER)
        elif not backlog.paused and self.state == OPEN:
            queue = self.node.queue
            if len(outbox) * 2 > queue.size or outbox.bytes * 2 > queue.max_bytes:
                backlog.paused = True
                self._adjust()
        return offer

    def _write_urgently(self, frame: bytes) -> None:
        """Write a control frame before all that waits, but not into another frame."""
        backlog = self._backlog
        if backlog is not None:
            if len(backlog.urgent) < URGENT_BYTES:
                backlog.urgent += frame
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
            for _ in range(DRAINS):
                if not backlog.rest and not self._refill(backlog):
                    self._drained(backlog)
                    return
                sent = self._writer(backlog.rest)
                backlog.since = self.node.clock.now()
                backlog.rest = backlog.rest[sent:]
                if backlog.rest:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(DisconnectReason.WRITE_ERROR, error)
            return
        self._adjust()

    def _refill(self, backlog: Backlog) -> bool:
        """Choose what goes out next; False if nothing is left."""
        if backlog.urgent:
            data, backlog.urgent = backlog.urgent, b""
        elif len(backlog.outbox):
            frames = backlog.outbox.take(DRAIN)
            data = b"".join([frame.form(self.wire) for frame in frames])
        elif self.state == PARTING and self._goodbye:
            data, self._goodbye = self._goodbye, b""
        else:
            return False
        backlog.rest = memoryview(data)
        return True

    def _drained(self, backlog: Backlog) -> None:
        self._backlog = None
        if self.state == PARTING:
            self._shut()
            return
        self.write = self._writer
        self._adjust()
        if backlog.paused:
            self.last_seen = self.node.clock.now()  # its silence was ours
            if self._parser is not None and self._parser.more:
                self.node.poller.again(self)

    # --- reading

    def begin(self, data: bytes = b"") -> None:
        """Start reading, with what came before."""
        if self.state == OPEN:
            self._reading = True
            self.last_seen = self.node.clock.now()
            self.node.heartbeat.add(self)
            self._adjust()
            if data:
                self._take_in(data)

    def on_turn(self) -> None:
        if self.state == OPEN and self.wants_read:
            self._take_in(b"")

    def on_error(self, error: Exception) -> None:
        """Something that is no fault of the peer's."""
        self.node.logger.error("connection_failed", error=repr(error), exc_info=error)
        self._decide(DisconnectReason.INTERNAL_ERROR, error)

    def _take_in(self, data: bytes) -> None:
        """Hand on the messages in ``data``, or what was left of earlier data."""
        node = self.node
        parser = self._parser or node.parser
        events = parser.feed(data)
        if parser.idle:
            self._parser = None
        elif self._parser is None:
            self._parser, node.parser = parser, node.new_parser()
        received = node.intake.received
        for opcode, payload in events:
            if opcode <= BINARY:
                received(self, payload, binary=opcode == BINARY)
            else:
                self._take_control(opcode, payload)
            if self.state != OPEN:
                return
        if parser.failure is not None:
            self._decide(parser.failure.reason, parser.failure)
        elif parser.more:
            node.poller.again(self)

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == rfc6455.CLOSE:
            self._end(rfc6455.build(payload[:2], rfc6455.CLOSE))
            self._tell_end(DisconnectReason.CLIENT_CLOSED)
            return
        now = self.node.now
        self._controls = max(self._controls, now) + 1 / CONTROLS_PER_SECOND
        if self._controls - now > CONTROLS_AT_ONCE / CONTROLS_PER_SECOND:
            text = "too many control frames"
            self._decide(
                DisconnectReason.POLICY_VIOLATION,
                Violation(DisconnectReason.POLICY_VIOLATION, text),
            )
        elif opcode == PING:
            self._write_urgently(rfc6455.build(payload, PONG))

    def _end_of_input(self) -> None:
        """The peer has closed its side."""
        self._reading = False
        if self.state in (ENDING, PARTING):
            self._adjust()  # it may still be reading: what waits for it goes on
        else:
            self._lose(DisconnectReason.CONNECTION_LOST)

    def _read_failed(self, error: BaseException | None) -> None:
        vanished = error is None or isinstance(error, ConnectionError | TimeoutError)
        reason = DisconnectReason.CONNECTION_LOST if vanished else DisconnectReason.READ_ERROR
        self._lose(reason, error)

    # --- for the heartbeat

    @property
    def listening(self) -> bool:
        return self.state == OPEN and self.wants_read

    def ping(self) -> bool:
        if self._backlog is None:
            self._write_urgently(PING_FRAME)
        return self.state != GONE

    def fall_silent(self) -> None:
        self._decide(DisconnectReason.HEARTBEAT_TIMEOUT)

    def check(self, now: float) -> bool:
        if self.state != OPEN:
            if now >= self._deadline:
                self.abort()
            return self.state != GONE
        if self._backlog is None:
            return False
        if now - self._backlog.since >= self.node.heartbeat.write_wait:
            self._decide(DisconnectReason.SLOW_CONSUMER)
        return True

    # --- the end

    def abort(self) -> None:
        """Close the socket now, whatever is left."""
        self._lose(DisconnectReason.CONNECTION_LOST)

    def _decide(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        """End by the link's own decision."""
        if self.state == OPEN:
            self.close(reason)
            self._tell_end(reason, error)

    def _tell_end(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        self.node.loop.call_soon(self.node.intake.lost, self, reason, error)

    def _end(self, goodbye: bytes) -> None:
        """Write what was sent so far, then ``goodbye``, then nothing."""
        if self.state != OPEN:
            return
        self.state = ENDING
        self._goodbye = goodbye
        self._parser = None
        self._reading = True  # to throw away what comes, and to see the end
        self._deadline = self.node.clock.now() + self.node.heartbeat.write_wait
        self.node.heartbeat.attend(self)
        if self._backlog is not None:
            self._backlog.paused = False
        self._adjust()
        self.node.flush.send(self, LAST, 0)

    def _shut(self) -> None:
        """Our side is done: wait for the peer's, lest a reset takes the close frame away."""
        self.state = SHUT
        try:
            self._shut_writing()
        except OSError:
            self._gone()
            return
        if not self._reading:  # the peer's was closed before
            self._gone()
            return
        linger = min(LINGER, self.node.heartbeat.write_wait)
        self._deadline = self.node.clock.now() + linger
        self._adjust()

    def _lose(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        """The socket is of no use any more."""
        if self.state == OPEN:
            self._tell_end(reason, error)
        self._gone()

    def _gone(self) -> None:
        if self.state != GONE:
            self.state = GONE
            self.write = NOTHING
            self.own = None
            self._backlog = self._parser = None
            self._release()
            self.node.leave(self)
