"""One connection, whatever carries its bytes: what comes in, what goes out, how it ends.

Rules of this file:

1. The states only go forward: open, ending (its close is decided, what was sent
   before is still to be written), parting (the close frame is next), lingering (it is
   written; the socket stays open both ways until the peer's has come), shut (both have
   been said, and our side of the socket is closed), gone. From ending on what comes is
   thrown away.
2. The application hears of an end once, and only of one that it did not ask for. It
   is never called from within ``send``, ``close`` or a write: what happens there is
   told in the next turn of the loop.
3. An idle link holds no parser, list or queue of its own.
4. A peer that does not read its messages is not read either, once half of its queue
   is used. Its silence means nothing then; what ends it is that its writes make no
   progress for ``write_wait``.
5. What a peer begins it has to finish: a message of which some comes now and then, but
   never the end, would be held for ever.
6. The server closes the TCP connection first, but after both close frames (RFC 6455,
   7.1.1). Many clients that find its end drop what they have not handled yet, and the
   code with it. What is unread at a close would reset the connection and take away even
   what was written: so it is read, to the peer's own end.
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
"""Bytes read at a time. From 128 KiB on every read costs a mapping and page faults."""

CONTROL_FRAMES_PER_SECOND: Final = 100
CONTROL_FRAME_BURST: Final = 200
"""Pings and pongs that a peer may send. Nobody needs more than one in some seconds; the ones
that a proxy held back come all at once. Those that have come during a stall do not count."""

MAX_CATCH_UP_READS: Final = 16
"""Reads, of a ``READ_SIZE`` each, before a peer is judged by what has not come."""

CLOSE_TIMEOUT: Final = 3.0
"""Seconds that a peer has for its close frame and the end of its side once our close frame
is written, ``write_wait`` if that is less: for reading what was written before it, and some
round trips of the worst networks. Its socket is of no other use by then."""

DISCARD_SIZE: Final = 16 * 1024
"""Bytes read at a time when they are thrown away, which may be very many tiny frames. No
less than a TLS record."""

PING_FRAME: Final = rfc6455.build_frame(b"", PING)

EARLY_FLUSH_FRAMES: Final = 64
EARLY_FLUSH_BYTES: Final = 64 * 1024
"""Collected messages of one link, or bytes, that are written without waiting for the
end of the turn: else nobody would notice in time that it has stalled."""

QUEUED: Final = Offer.QUEUED
"""By a name of its own: the look-up of a member in its enum costs more than a call."""

OPEN: Final = 0
CLOSING: Final = 1
CLOSE_QUEUED: Final = 2
CLOSE_SENT: Final = 3
FIN_SENT: Final = 4
CLOSED: Final = 5

DISCARD_WRITES: Final[Callable[[bytes], int]] = len
"""Stands in for ``write`` when nothing may go out: takes everything, does nothing."""


class SocketLink(ABC):
    """Implements ``Link``; the subclasses carry the bytes."""

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
    """Bytes of a refused write that have to be offered again unchanged."""

    write: Callable[[bytes], int]
    """Takes whole frames: the socket itself, the queue of a stalled link, or nothing."""

    def __init__(self, io: SocketLoop, codec: Codec, wire: WebSocketFormat) -> None:
        self.io = io
        self.wire: WireFormat = wire
        self.state = OPEN
        self.pending: list[NumberedFrame] | None = None
        self._pending_bytes = 0
        self._backlog: Backlog | None = None
        self._close_frame = b""
        self._inflates = wire.inflates
        self.codec = codec
        self.owner: Any = None
        self.last_seen = io.clock.now()
        self.due_tick = 0
        self.last_ping = 0.0
        self.pong_deadline = 0.0
        self._parser: Parser | None = None
        self._reading = False
        self._message_started = 0.0  # when what the parser holds began to come
        self._control_tat = 0.0  # when the control frames so far would have been due
        self._deadline = 0.0
        # For the peer's close frame, once our end is decided; None when it has come.
        self._close_scanner: CloseScanner | None = None
        io.add(self)

    # --- what carries the bytes

    @abstractmethod
    def on_readable(self) -> None:
        """There is something to read, or the end."""

    @abstractmethod
    def _shutdown_write(self) -> None:
        """Tell the peer that nothing more comes; may raise ``OSError``."""

    @abstractmethod
    def _close_socket(self) -> None:
        """Close the socket."""

    @property
    @abstractmethod
    def _writer(self) -> Callable[[bytes | memoryview], int]:
        """Writes without waiting; returns how much was taken, or raises ``OSError``."""

    @abstractmethod
    def _adjust(self) -> None:
        """Watch for what ``wants_read`` and ``wants_write`` say."""

    @property
    def wants_write(self) -> bool:
        return self._backlog is not None

    @property
    def wants_read(self) -> bool:
        return self._reading and not (self._backlog is not None and self._backlog.reading_paused)

    # --- for the application

    @property
    def queued(self) -> int:
        return len(self._backlog) if self._backlog is not None else 0

    @property
    def crowded(self) -> bool:
        pending = self.pending
        if self._backlog is not None and self._backlog.crowded:
            return True
        if pending is None:
            return False
        queue = self.io.queue
        return len(pending) * 2 >= queue.size or self._pending_bytes * 2 > queue.max_bytes

    def send(self, frame: EncodedMessage) -> Offer:
        if self.state != OPEN:
            return Offer.CLOSED
        size = len(frame.form(self.wire))
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
        """What came behind the handshake: it waits for ``start_reading``, or for our end."""
        if data:
            self._parser = self.io.new_parser(inflates=self._inflates)
            self._parser.feed(data, 0)

    def start_reading(self) -> None:
        """Start reading, with what came before."""
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
        """Something that is no fault of the peer's."""
        self.io.logger.error("connection_failed", error=shown(error), exc_info=error)
        self._fail(DisconnectReason.INTERNAL_ERROR, error)

    def _data_received(self, data: bytes) -> None:
        """Hand on the messages in ``data``, or what was left of earlier data."""
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
            self._message_started = self.last_seen  # what was held is through, this is the next
        io.received_count += len(events)
        received = io.intake.received
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
        """The end is decided: only the peer's close frame is of interest."""
        search = self._close_scanner
        if search is not None:
            self.io.received_count += search.feed(data)
            if search.found:
                self._close_scanner = None
                if self.state == CLOSE_SENT:
                    self._shutdown()

    def _eof_received(self) -> None:
        """The peer has closed its side."""
        self._reading = False
        if self.state in (CLOSING, CLOSE_QUEUED):
            self._adjust()  # it may still be reading: what waits for it goes on
        else:
            self._connection_lost(DisconnectReason.CONNECTION_LOST)

    def _on_read_error(self, error: BaseException | None) -> None:
        vanished = error is None or isinstance(error, ConnectionError | TimeoutError)
        reason = DisconnectReason.CONNECTION_LOST if vanished else DisconnectReason.READ_ERROR
        self._connection_lost(reason, error)

    def _resume_reading(self) -> None:
        now = self.io.clock.now()
        self._message_started += now - self.last_seen  # the silence was ours
        self.last_seen = now
        if self._parser is not None and self._parser.has_more:
            self.io.poller.reschedule(self)

    # --- writing

    def on_partial_write(self, frames: Sequence[EncodedMessage], data: bytes, sent: int) -> None:
        """The socket took only ``sent`` bytes of ``data``, which are ``frames``.

        What the peer has the beginning of must follow; the rest can wait in the queue,
        where the policy decides about it.
        """
        started = sent + self.retry_bytes
        end = 0
        whole = 0
        while end < started and whole < len(frames):
            end += len(frames[whole].form(self.wire))
            whole += 1
        self._begin_backlog(memoryview(data)[sent:end])
        for frame in frames[whole:]:
            self._enqueue(frame)

    def on_write_error(self, error: Exception) -> None:
        self._connection_lost(DisconnectReason.WRITE_ERROR, error)

    def queue_close_frame(self) -> None:
        if self.state == CLOSING:
            self.state = CLOSE_QUEUED
            self.write = DISCARD_WRITES
            if self._backlog is not None:
                self._backlog.close_frame = self._close_frame
                return
            self._backlog = self._new_backlog()
            self._backlog.close_frame = self._close_frame
            self._drain()

    def on_writable(self) -> None:
        if self._backlog is not None:
            self._drain()

    def _new_backlog(self) -> Backlog:
        return Backlog(self.io.queue, self.io.pool, self.wire, self.io.clock.now())

    def _begin_backlog(self, rest: memoryview) -> None:
        self._backlog = self._new_backlog()
        self._backlog.partial = rest
        if self.io.pool.full:
            self.io.shed_load_soon()
        self.write = self._enqueue_current
        self.io.heartbeat.watch_deadline(self)
        self._adjust()

    def _enqueue_current(self, data: bytes) -> int:
        """Stands in for ``write`` while stalled."""
        for frame in self.io.writer.current:
            self._enqueue(frame)
        return len(data)

    def _enqueue(self, frame: EncodedMessage, *, reported: bool = False) -> Offer:
        """Put ``frame`` into the queue; ``reported``: its sender hears the outcome from here."""
        backlog = self._backlog
        if backlog is None or self.state > CLOSING:
            if not reported:
                self.io.loop.call_soon(self.io.intake.dropped, self, frame, Offer.OVERFLOWED)
            return Offer.CLOSED
        offer, dropped = backlog.offer(frame)
        for lost in dropped:
            if not reported or lost is not frame:
                self.io.loop.call_soon(self.io.intake.dropped, self, lost, offer)
        if offer is Offer.OVERFLOWED:
            self._overflow()
            return offer
        if not backlog.reading_paused and self.state == OPEN and backlog.crowded:
            backlog.reading_paused = True
            self._adjust()
        if self.io.pool.full:
            if reported:  # nothing is being written, and the sender may go on without a pause
                self.io.shed_load()
            else:
                self.io.shed_load_soon()
        return offer

    def _overflow(self) -> None:
        """The policy is to hang up."""
        self._fail(DisconnectReason.SLOW_CONSUMER)
        self.queue_close_frame()  # what comes after the gap is not written
        self.write = self._enqueue_current  # but counted as what it is: it had been taken

    @property
    def held_bytes(self) -> int:
        """Bytes that wait here."""
        return self._backlog.held_bytes if self._backlog is not None else 0

    def shed(self) -> None:
        """Give way to others: by half of the queue, or, where only the rest of a message
        waits that the peer has the beginning of, by the end of the connection."""
        backlog = self._backlog
        if backlog is None:
            return
        offer, dropped = backlog.shed()
        for lost in dropped:
            self.io.loop.call_soon(self.io.intake.dropped, self, lost, offer)
        if not dropped:
            self._connection_lost(DisconnectReason.SLOW_CONSUMER)
        elif offer is Offer.OVERFLOWED and self.state == OPEN:
            self._overflow()

    def _write_control(self, frame: bytes) -> None:
        """Write a control frame before all that waits, but not into another frame."""
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
        """Write as much of the backlog as the socket takes, in one turn's measure."""
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
        """Tell of messages that had been taken and are not written after all."""
        for frame in frames:
            self.io.loop.call_soon(self.io.intake.dropped, self, frame, why)

    def _on_drained(self, backlog: Backlog) -> None:
        self._backlog = None
        if self.state == CLOSE_QUEUED:
            self._on_close_sent()
            return
        self.write = self._writer
        self._adjust()
        # In the next turn: what was dropped may still be on its way there.
        self.io.loop.call_soon(self.io.intake.drained, self)
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

    def look(self) -> None:
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
        """Nothing was read or written for so long."""
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
        """Write and read what can be: nobody may have come to it in time."""
        try:
            self.on_writable()
            if self.state != CLOSED and self.wants_read:
                self.on_readable()
        except Exception as error:  # noqa: BLE001  (one link never stops the others)
            self.on_error(error)

    # --- the end

    def abort(self) -> None:
        """Close the socket now, whatever is left."""
        self._connection_lost(DisconnectReason.CONNECTION_LOST)

    def _fail(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        """End by the link's own decision."""
        if self.state == OPEN:
            self.close(reason)
            self._report_lost(reason, error)

    def _report_lost(self, reason: DisconnectReason, error: BaseException | None = None) -> None:
        self.io.loop.call_soon(self.io.intake.lost, self, reason, error)

    def _start_closing(self, goodbye: bytes) -> None:
        """Write what was sent so far, then ``close_frame``, then nothing."""
        if self.state != OPEN:
            return
        self.state = CLOSING
        self._close_frame = goodbye
        self._close_scanner = self._scanner_behind(self._parser)
        self._parser = None
        self._reading = True  # to throw away what comes, and to see the end
        self._deadline = self.io.clock.now() + self.io.heartbeat.write_wait
        self.io.heartbeat.watch_deadline(self)
        if self._backlog is not None:
            self._backlog.reading_paused = False
        self._adjust()
        self.io.writer.collect(self, CLOSE_MARKER, 0)

    def _scanner_behind(self, parser: Parser | None) -> CloseScanner | None:
        """Look on for the peer's close frame where its frames were last read."""
        search = CloseScanner()
        if parser is not None:
            if parser.closed:
                return None
            search.feed(parser.unparsed)
        return None if search.found else search

    def _on_close_sent(self) -> None:
        self.state = CLOSE_SENT
        linger = min(CLOSE_TIMEOUT, self.io.heartbeat.write_wait)
        self._deadline = self.io.clock.now() + linger
        if not self._reading:  # the peer has closed its side
            self._close_now()
        elif self._close_scanner is None:
            self._shutdown()
        else:
            self._adjust()

    def _shutdown(self) -> None:
        """Both sides have said that they are done: be the first to close."""
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
        """The socket is of no use any more."""
        if self.state == OPEN:
            self._report_lost(reason, error)
        self._close_now()

    def _close_now(self) -> None:
        if self.state != CLOSED:
            self.state = CLOSED
            self.write = DISCARD_WRITES
            self.pending = None
            if self._backlog is not None:
                self._report_dropped(self._backlog.discard(), Offer.CLOSED)
            self._backlog = self._parser = None
            self._close_socket()
            self.io.remove(self)
