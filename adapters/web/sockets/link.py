"""One WebSocket connection: reading, writing and the close handshake.

The subclasses carry the bytes (``tcp``, ``tls``). Rules of this file:

1. The states only go forward, from OPEN to CLOSED. From CLOSING on, input is discarded.
2. The application is told of an end once, and only of an end that it did not ask for. It is
   never called from within ``send``, ``close`` or a write: such calls are scheduled for the
   next iteration of the event loop.
3. An idle link holds no parser, list or queue of its own.
4. Backpressure: while more than half of the queue is used, the peer is not read. Its silence
   means nothing then. The connection ends when its writes make no progress for ``write_wait``.
5. A message that the peer has begun has a deadline. A slow trickle would otherwise hold memory
   for ever.
6. The server closes the TCP connection first, after both close frames (RFC 6455, 7.1.1). Many
   clients that meet the end of TCP drop the messages that they have not handled yet, and the
   close code. A close with unread input resets the connection and discards even what was
   written, so the input is read until the peer closes too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

from eyewall.adapters.web.protocol import frames as rfc6455
from eyewall.adapters.web.protocol.close_scanner import CloseScanner
from eyewall.adapters.web.protocol.frames import BINARY, PING, PONG, WebSocketFormat
from eyewall.adapters.web.protocol.parser import Parser, ProtocolError
from eyewall.adapters.web.sockets.backlog import Backlog
from eyewall.adapters.web.sockets.batch import CLOSE_MARKER, NumberedFrame
from eyewall.adapters.web.sockets.loop import SocketLoop
from eyewall.application.ports.logging import shown
from eyewall.application.ports.message import Codec, EncodedMessage, WireFormat
from eyewall.domain.connection import DisconnectReason, close_frame
from eyewall.domain.outbox import Offer

READ_SIZE: Final = 64 * 1024
"""Bytes of one read. From 128 KiB on, every read costs a memory mapping and page faults."""

CONTROL_FRAMES_PER_SECOND: Final = 100
CONTROL_FRAME_BURST: Final = 200
"""Pings and pongs that a peer may send. One every few seconds is enough; the burst is for those
that a proxy held back. Those that arrived while the event loop was stalled do not count."""

MAX_CATCH_UP_READS: Final = 16
"""Reads of ``READ_SIZE`` before a deadline is applied: the message or pong may be in the
kernel's buffer already."""

CLOSE_TIMEOUT: Final = 3.0
"""Seconds that a peer has, once the close frame is written, to send its own and to close;
``write_wait`` if that is less. Enough to read what was written before the close frame, and for
some round trips of the worst networks."""

DISCARD_SIZE: Final = 16 * 1024
"""Bytes of one read when the input is discarded: it may be very many tiny frames. At least a
TLS record."""

PING_FRAME: Final = rfc6455.build_frame(b"", PING)

EARLY_FLUSH_FRAMES: Final = 64
EARLY_FLUSH_BYTES: Final = 64 * 1024
"""Messages, or their bytes, that are collected for one link before they are flushed early. The
end of the batch would be too late to notice that the link has stalled."""

QUEUED: Final = Offer.QUEUED
"""Looked up once: an attribute of an enum costs more than a function call."""

OPEN: Final = 0
CLOSING: Final = 1  # the end is decided; earlier messages are still to be written
CLOSE_QUEUED: Final = 2  # the close frame is written next
CLOSE_SENT: Final = 3  # it is written; the peer's close frame is awaited
FIN_SENT: Final = 4  # both have passed; the server's side of TCP is closed
CLOSED: Final = 5


def refuse_write(_: bytes) -> int:
    """Replace ``write`` of a closed link. It refers to no link, so none is in a cycle."""
    raise BrokenPipeError("the connection is closed")


class SocketLink(ABC):
    """Implements ``Link``, ``WriteTarget``, ``PollTarget`` and ``HeartbeatTarget``."""

    __slots__ = (
        "_backlog",
        "_close_frame",
        "_close_scanner",
        "_control_tat",
        "_deadline",
        "_inflates",
        "_message_started",
        "_parser",
        "_pending_bytes",
        "_reading",
        "_refusal",
        "codec",
        "due_tick",
        "io",
        "last_ping",
        "last_seen",
        "owner",
        "pending",
        "pong_deadline",
        "state",
        "wire",
        "write",
    )

    retry_bytes = 0
    """Bytes of a refused write that have to be repeated unchanged."""

    write: Callable[[bytes], int]
    """Takes whole frames, returns the bytes taken: the socket's ``send`` while the peer reads,
    ``_enqueue_current`` while the link is stalled, and from CLOSE_QUEUED on; ``refuse_write``
    in CLOSED."""

    def __init__(self, io: SocketLoop, codec: Codec, wire: WebSocketFormat) -> None:
        self.io = io
        self.wire: WireFormat = wire
        self.state = OPEN
        self.pending: list[NumberedFrame] | None = None
        self._pending_bytes = 0
        self._backlog: Backlog | None = None
        self._close_frame = b""
        self._refusal = Offer.CLOSED  # the outcome of a message that comes too late
        self._inflates = wire.inflates
        self.codec = codec
        self.owner: Any = None
        self.last_seen = io.clock.now()
        self.due_tick = 0
        self.last_ping = 0.0
        self.pong_deadline = 0.0
        self._parser: Parser | None = None
        self._reading = False
        self._message_started = 0.0  # when the message in the parser began to arrive
        self._control_tat = 0.0  # GCRA: the theoretical arrival time of the next control frame
        self._deadline = 0.0  # for the close handshake
        self._close_scanner: CloseScanner | None = None  # from CLOSING on, until it has found
        io.add(self)

    # --- what the subclasses add: the socket

    @abstractmethod
    def on_readable(self) -> None:
        """Read once. The socket has input, its end or an error."""

    @abstractmethod
    def _shutdown_write(self) -> None:
        """Close the server's side of the connection. May raise ``OSError``."""

    @abstractmethod
    def _close_socket(self) -> None:
        """Close the socket."""

    @property
    @abstractmethod
    def _writer(self) -> Callable[[bytes | memoryview], int]:
        """Writes without blocking. Returns the bytes taken, or raises ``OSError``."""

    @abstractmethod
    def _adjust(self) -> None:
        """Watch the socket for what ``wants_read`` and ``wants_write`` say."""

    @property
    def wants_write(self) -> bool:
        return self._backlog is not None

    @property
    def wants_read(self) -> bool:
        return self._reading and not (self._backlog is not None and self._backlog.reading_paused)

    # --- for the application: Link

    @property
    def queued(self) -> int:
        return len(self._backlog) if self._backlog is not None else 0

    @property
    def is_half_full(self) -> bool:
        pending = self.pending
        if self._backlog is not None and self._backlog.is_half_full:
            return True
        if pending is None:
            return False
        queue = self.io.queue
        return len(pending) * 2 >= queue.size or self._pending_bytes * 2 > queue.max_bytes

    def send(self, frame: EncodedMessage) -> Offer:
        if self.state != OPEN:
            return Offer.CLOSED
        size = len(frame.for_wire(self.wire))
        io = self.io
        writer = io.writer
        pending = self.pending
        if pending is None:
            self._pending_bytes = 0
        elif (
            self._pending_bytes > EARLY_FLUSH_BYTES
            or len(pending) >= EARLY_FLUSH_FRAMES
            or len(pending) >= io.queue.size
        ):
            writer.flush_now()
            self._pending_bytes = 0
        if self._backlog is not None and not writer.has_pending(self):
            return self._enqueue(frame, reported=True)
        self._pending_bytes += size
        writer.collect(self, frame, size)
        return QUEUED

    def close(self, reason: DisconnectReason) -> None:
        code, text = close_frame(reason)
        self._start_closing(rfc6455.build_close_frame(code, text))

    # --- reading

    def prepend_input(self, data: bytes) -> None:
        """Keep the bytes that arrived with the handshake until ``start_reading`` or the close."""
        if data:
            self._parser = self.io.new_parser(inflates=self._inflates)
            self._parser.feed(data, 0)

    def start_reading(self) -> None:
        """Start reading, with the input that ``prepend_input`` kept."""
        if self.state == OPEN:
            self._reading = True
            self.last_seen = self._message_started = self.io.clock.now()
            self.io.heartbeat.add(self)
            self._adjust()
            if self._parser is not None:
                self._data_received(b"")

    def on_rescheduled(self) -> None:
        if self.state == OPEN and self.wants_read:
            self._data_received(b"")

    def on_error(self, error: Exception) -> None:
        """Log an error that the peer did not cause, and fail the connection with 1011."""
        self.io.logger.error("connection_failed", error=shown(error), exc_info=error)
        self._fail(DisconnectReason.INTERNAL_ERROR, error)

    def _data_received(self, data: bytes) -> None:
        """Parse ``data``, or the rest of earlier data, and hand its messages to the application."""
        io = self.io
        parser = self._parser or (io.inflating_parser if self._inflates else io.parser)
        events = parser.feed(data)
        if parser.idle:
            self._parser = None
        elif self._parser is None:
            self._parser = parser
            self._message_started = self.last_seen
            if self._inflates:
                io.inflating_parser = io.new_parser(inflates=True)
            else:
                io.parser = io.new_parser()
        elif events and (not parser.in_message or any(opcode <= BINARY for opcode, _ in events)):
            self._message_started = self.last_seen  # the parser holds the next message
        io.received_count += len(events)
        received = io.transport_events.received
        for opcode, payload in events:
            if opcode <= BINARY:
                received(self, payload, binary=opcode == BINARY)
            else:
                self._control_received(opcode, payload)
            if self.state != OPEN:
                return
        if parser.failure is not None:
            self._fail(parser.failure.reason, parser.failure)
        elif parser.has_more:
            io.poller.reschedule(self)

    def _control_received(self, opcode: int, payload: bytes) -> None:
        if opcode == rfc6455.CLOSE:
            self._start_closing(rfc6455.build_frame(payload[:2], rfc6455.CLOSE))
            self._report_lost(DisconnectReason.CLIENT_CLOSED)
            return
        now = self.io.now
        self._control_tat = max(self._control_tat, now) + 1 / CONTROL_FRAMES_PER_SECOND
        most = CONTROL_FRAME_BURST / CONTROL_FRAMES_PER_SECOND
        if self._control_tat - now > most and self.io.stalls.is_recent:
            self._control_tat = now + most
        if self._control_tat - now > most:
            text = "too many control frames"
            self._fail(
                DisconnectReason.POLICY_VIOLATION,
                ProtocolError(DisconnectReason.POLICY_VIOLATION, text),
            )
        elif opcode == PING:
            self._write_control(rfc6455.build_frame(payload, PONG))

    def _discard_input(self, data: bytes) -> None:
        """Search input that arrives from CLOSING on for the peer's close frame."""
        scanner = self._close_scanner
        if scanner is not None:
            self.io.received_count += scanner.feed(data)
            if scanner.found:
                self._close_scanner = None
                if self.state == CLOSE_SENT:
                    self._shutdown()

    def _eof_received(self) -> None:
        """The peer has closed its side of the connection."""
        self._reading = False
        if self.state in (CLOSING, CLOSE_QUEUED):
            self._adjust()  # it may still read: go on writing what is queued
        else:
            self._connection_lost(DisconnectReason.CONNECTION_LOST)

    def _on_read_error(self, error: BaseException | None) -> None:
        vanished = error is None or isinstance(error, ConnectionError | TimeoutError)
        reason = DisconnectReason.CONNECTION_LOST if vanished else DisconnectReason.READ_ERROR
        self._connection_lost(reason, error)

    def _resume_reading(self) -> None:
        now = self.io.clock.now()
        self._message_started += now - self.last_seen  # the pause was the server's
        self.last_seen = now
        if self._parser is not None and self._parser.has_more:
            self.io.poller.reschedule(self)

    # --- writing

    def on_partial_write(self, frames: Sequence[EncodedMessage], data: bytes, sent: int) -> None:
        """Queue the rest of a write. The socket took ``sent`` bytes of ``data``, which are
        the bytes of ``frames``.

        A frame of which the peer has the beginning must follow whole. The others go into the
        queue, where the drop policy applies.
        """
        started = sent + self.retry_bytes
        end = 0
        whole = 0
        while end < started and whole < len(frames):
            end += len(frames[whole].for_wire(self.wire))
            whole += 1
        self._begin_backlog(memoryview(data)[sent:end], frames[:whole])
        for frame in frames[whole:]:
            self._enqueue(frame)

    def on_write_error(self, frames: Sequence[EncodedMessage], error: Exception) -> None:
        self._connection_lost(DisconnectReason.WRITE_ERROR, error)
        self._report_dropped(frames, Offer.CLOSED)

    def queue_close_frame(self, late: Sequence[EncodedMessage] = ()) -> None:
        if self.state == CLOSING:
            self.state = CLOSE_QUEUED
            self.write = self._enqueue_current
            if self._backlog is not None:
                self._backlog.close_frame = self._close_frame
            else:
                self._backlog = self._new_backlog()
                self._backlog.close_frame = self._close_frame
                self._drain()
        self._report_dropped(late, self._refusal)

    def on_writable(self) -> None:
        if self._backlog is not None:
            self._drain()

    def _new_backlog(self) -> Backlog:
        return Backlog(self.io.queue, self.io.pool, self.wire, self.io.clock.now())

    def _begin_backlog(self, rest: memoryview, frames: Sequence[EncodedMessage] = ()) -> None:
        """Stall the link. ``rest`` is written first: the end of the bytes of ``frames``."""
        self._backlog = self._new_backlog()
        self._backlog.partial = rest
        self._backlog.partial_frames = frames
        if self.io.pool.full:
            self.io.shed_load_soon()
        self.write = self._enqueue_current
        self.io.heartbeat.watch_deadline(self)
        self._adjust()

    def _enqueue_current(self, data: bytes) -> int:
        """Replaces ``write`` while the link is stalled or ends: queues or reports each message."""
        for frame in self.io.writer.current:
            self._enqueue(frame)
        return len(data)

    def _enqueue(self, frame: EncodedMessage, *, reported: bool = False) -> Offer:
        """Put ``frame`` into the queue; returns the outcome.

        With ``reported`` the sender gets that outcome. Without, the application is told of a
        drop by ``TransportEvents.dropped``.
        """
        backlog = self._backlog
        if backlog is None or self.state > CLOSING:
            if not reported:
                self._report_dropped((frame,), self._refusal)
            return Offer.CLOSED
        offer, dropped = backlog.offer(frame)
        for lost in dropped:
            if not reported or lost is not frame:
                self.io.loop.call_soon(self.io.transport_events.dropped, self, lost, offer)
        if offer is Offer.OVERFLOWED:
            self._overflow()
            return offer
        if not backlog.reading_paused and self.state == OPEN and backlog.is_half_full:
            backlog.reading_paused = True
            self._adjust()
        if self.io.pool.full:
            if reported:  # no write is under way, and the sender may send on without a pause
                self.io.shed_load()
            else:
                self.io.shed_load_soon()
        return offer

    def _overflow(self) -> None:
        """End the connection, as the drop policy says."""
        self._refusal = Offer.OVERFLOWED  # messages behind the dropped one are reported alike
        self._fail(DisconnectReason.SLOW_CONSUMER)
        self.queue_close_frame()

    @property
    def held_bytes(self) -> int:
        """Bytes that the queue of this link keeps in memory."""
        return self._backlog.held_bytes if self._backlog is not None else 0

    def shed(self) -> None:
        """Drop half of the queue by the drop policy.

        If only the rest of a half-written message waits, it can't be dropped: the connection
        ends.
        """
        backlog = self._backlog
        if backlog is None:
            return
        offer, dropped = backlog.shed()
        for lost in dropped:
            self.io.loop.call_soon(self.io.transport_events.dropped, self, lost, offer)
        if not dropped:
            self._connection_lost(DisconnectReason.SLOW_CONSUMER)
        elif offer is Offer.OVERFLOWED and self.state == OPEN:
            self._overflow()

    def _write_control(self, frame: bytes) -> None:
        """Write a control frame before the queued messages, but not into a half-written one."""
        if self._backlog is not None:
            self._backlog.add_control(frame)
            return
        try:
            sent = self.write(frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._connection_lost(DisconnectReason.WRITE_ERROR, error)
            return
        if sent < len(frame):
            self._begin_backlog(memoryview(frame)[sent:])

    def _drain(self) -> None:
        """Write from the backlog, as much as one iteration of the event loop may."""
        backlog = self._backlog
        assert backlog is not None
        try:
            empty = backlog.drain(self._writer, self.io.clock.now())
        except OSError as error:
            self._connection_lost(DisconnectReason.WRITE_ERROR, error)
            return
        finally:
            if backlog.expired:
                self._report_dropped(backlog.expired, Offer.EXPIRED)
                backlog.expired = []
        if empty:
            self._on_drained(backlog)
        else:
            self._adjust()

    def _report_dropped(self, frames: Sequence[EncodedMessage], why: Offer) -> None:
        """Tell the application of messages that were accepted and will not be written."""
        for frame in frames:
            self.io.loop.call_soon(self.io.transport_events.dropped, self, frame, why)

    def _on_drained(self, backlog: Backlog) -> None:
        self._backlog = None
        if self.state == CLOSE_QUEUED:
            self._on_close_sent()
            return
        self.write = self._writer
        self._adjust()
        # Scheduled, like the reports of drops, so that it comes behind them.
        self.io.loop.call_soon(self.io.transport_events.drained, self)
        if backlog.reading_paused:
            self._resume_reading()

    # --- for the heartbeat

    @property
    def is_reading(self) -> bool:
        return self.state == OPEN and self.wants_read

    @property
    def message_deadline(self) -> float:
        parser = self._parser
        if parser is None or parser.has_more:
            return math.inf
        return self._message_started + self.io.message_timeout

    def read_pending(self) -> None:
        io = self.io
        for _ in range(MAX_CATCH_UP_READS):
            if not self.is_reading or io.writer.full:
                break
            before, io.now = self.last_seen, io.clock.now()
            try:
                if self._parser is not None and self._parser.has_more:
                    self.on_rescheduled()
                else:
                    self.on_readable()
                    if self.last_seen == before:
                        break
            except Exception as error:  # noqa: BLE001  (one link never stops the others)
                self.on_error(error)

    def extend_deadlines(self, seconds: float) -> None:
        """Add the seconds of a stall of the event loop to every deadline of the peer."""
        self.pong_deadline += seconds
        self._deadline += seconds
        if self.wants_read:
            self._message_started += seconds
        if self._backlog is not None:
            self._backlog.last_progress += seconds

    def ping(self) -> bool:
        if self._backlog is None:
            self._write_control(PING_FRAME)
            if self._backlog is None:
                self.last_ping = self.io.clock.now()
        return self.state != CLOSED

    def on_pong_timeout(self) -> None:
        self._fail(DisconnectReason.HEARTBEAT_TIMEOUT)

    def on_message_timeout(self) -> None:
        reason = DisconnectReason.POLICY_VIOLATION
        self._fail(reason, ProtocolError(reason, "a message took too long to come"))

    def check_deadlines(self, now: float) -> bool:
        if self.state != OPEN:
            if now >= self._deadline:
                self._retry_io()
                if self.state != CLOSED and now >= self._deadline:
                    self.abort()
            return self.state != CLOSED
        if self._backlog is None:
            return False
        wait = self.io.heartbeat.write_wait
        if now - self._backlog.last_progress >= wait:
            self._retry_io()
        if self._backlog is not None and now - self._backlog.last_progress >= wait:
            self._fail(
                DisconnectReason.SLOW_CONSUMER, TimeoutError(f"nothing was taken for {wait:g} s")
            )
        return True

    def _retry_io(self) -> None:
        """Write and read once more before a deadline is applied: the readiness of the socket
        may not have been handled yet."""
        try:
            self.on_writable()
            if self.state != CLOSED and self.wants_read:
                self.on_readable()
        except Exception as error:  # noqa: BLE001  (one link never stops the others)
            self.on_error(error)

    # --- closing

    def abort(self) -> None:
        """Close the socket now; queued messages are lost."""
        self._connection_lost(DisconnectReason.CONNECTION_LOST)

    def _fail(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        """Fail the WebSocket connection (RFC 6455, 7.1.7): send a close frame, and tell the
        application."""
        if self.state == OPEN:
            self.close(reason)
            self._report_lost(reason, error)

    def _report_lost(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        self.io.loop.call_soon(self.io.transport_events.lost, self, reason, error)

    def _start_closing(self, frame: bytes) -> None:
        """Write the messages sent so far, then the close frame ``frame``, then nothing."""
        if self.state != OPEN:
            return
        self.state = CLOSING
        self._close_frame = frame
        self._close_scanner = self._scanner_behind(self._parser)
        self._parser = None
        self._reading = True  # to discard the input, and to see the peer's close
        self._deadline = self.io.clock.now() + self.io.heartbeat.write_wait
        self.io.heartbeat.watch_deadline(self)
        if self._backlog is not None:
            self._backlog.reading_paused = False
        self._adjust()
        self.io.writer.collect(self, CLOSE_MARKER, 0)

    def _scanner_behind(self, parser: Parser | None) -> CloseScanner | None:
        """Return a scanner that goes on where the parser stopped; None if the peer's close
        frame has arrived."""
        scanner = CloseScanner()
        if parser is not None:
            if parser.closed:
                return None
            scanner.feed(parser.unparsed)
        return None if scanner.found else scanner

    def _on_close_sent(self) -> None:
        self.state = CLOSE_SENT
        timeout = min(CLOSE_TIMEOUT, self.io.heartbeat.write_wait)
        self._deadline = self.io.clock.now() + timeout
        if not self._reading:  # the peer has closed its side
            self._close_now()
        elif self._close_scanner is None:
            self._shutdown()
        else:
            self._adjust()

    def _shutdown(self) -> None:
        """Close the server's side of TCP first: both close frames have passed."""
        self.state = FIN_SENT
        try:
            self._shutdown_write()
        except OSError:
            self._close_now()
        else:
            self._adjust()

    def _connection_lost(
        self, reason: DisconnectReason, error: BaseException | None = None
    ) -> None:
        """Close the socket at once. In OPEN, the application is told."""
        if self.state == OPEN:
            self._report_lost(reason, error)
        self._close_now()

    def _close_now(self) -> None:
        if self.state != CLOSED:
            self.state = CLOSED
            self.write = refuse_write  # so the next flush reports what is pending
            self._refusal = Offer.CLOSED
            if self._backlog is not None:
                self._report_dropped(self._backlog.discard(), Offer.CLOSED)
            self._backlog = self._parser = None
            self._close_socket()
            self.io.remove(self)
