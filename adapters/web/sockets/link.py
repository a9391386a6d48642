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
from eyewall.adapters.web.protocol.close_scanner import CloseSearch
from eyewall.adapters.web.protocol.frames import BINARY, PING, PONG, SocketWire
from eyewall.adapters.web.protocol.parser import Parser, Violation
from eyewall.adapters.web.sockets.backlog import Backlog
from eyewall.adapters.web.sockets.batch import LAST, Item
from eyewall.adapters.web.sockets.loop import Node
from eyewall.application.frames import Frame, Wire
from eyewall.application.logs import shown
from eyewall.application.ports import Codec
from eyewall.domain.connection import DisconnectReason, close_frame
from eyewall.domain.outbox import Offer

CHUNK: Final = 64 * 1024
"""Bytes read at a time. From 128 KiB on every read costs a mapping and page faults."""

CONTROLS_PER_SECOND: Final = 100
CONTROLS_AT_ONCE: Final = 200
"""Pings and pongs that a peer may send. Nobody needs more than one in some seconds; the ones
that a proxy held back come all at once. Those that have come during a stall do not count."""

LOOKS: Final = 16
"""Reads, of a ``CHUNK`` each, before a peer is judged by what has not come."""

LINGER: Final = 3.0
"""Seconds that a peer has for its close frame and the end of its side once our close frame
is written, ``write_wait`` if that is less: for reading what was written before it, and some
round trips of the worst networks. Its socket is of no other use by then."""

DISCARD: Final = 16 * 1024
"""Bytes read at a time when they are thrown away, which may be very many tiny frames. No
less than a TLS record."""

PING_FRAME: Final = rfc6455.build(b"", PING)

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


class SocketLink(ABC):
    """Implements ``Link``; the subclasses carry the bytes."""

    __slots__ = (
        "_backlog",
        "_begun",
        "_controls",
        "_deadline",
        "_goodbye",
        "_inflates",
        "_own_bytes",
        "_parser",
        "_reading",
        "_search",
        "answer_due",
        "asked",
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

    def __init__(self, node: Node, codec: Codec, wire: SocketWire) -> None:
        self.node = node
        self.wire: Wire = wire
        self.state = OPEN
        self.own: list[Item] | None = None
        self._own_bytes = 0
        self._backlog: Backlog | None = None
        self._goodbye = b""
        self._inflates = wire.inflates
        self.codec = codec
        self.owner: Any = None
        self.last_seen = node.clock.now()
        self.due = 0
        self.asked = 0.0
        self.answer_due = 0.0
        self._parser: Parser | None = None
        self._reading = False
        self._begun = 0.0  # when what the parser holds began to come
        self._controls = 0.0  # when the control frames so far would have been due
        self._deadline = 0.0
        # For the peer's close frame, once our end is decided; None when it has come.
        self._search: CloseSearch | None = None
        node.enter(self)

    # --- what carries the bytes

    @abstractmethod
    def on_readable(self) -> None:
        """There is something to read, or the end."""

    @abstractmethod
    def _shut_writing(self) -> None:
        """Tell the peer that nothing more comes; may raise ``OSError``."""

    @abstractmethod
    def _release(self) -> None:
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
        return self._reading and not (self._backlog is not None and self._backlog.paused)

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

    def close(self, reason: DisconnectReason) -> None:
        code, text = close_frame(reason)
        self._end(rfc6455.build_close(code, text))

    # --- reading

    def keep(self, data: bytes) -> None:
        """What came behind the handshake: it waits for ``begin``, or for our end."""
        if data:
            self._parser = self.node.new_parser(inflates=self._inflates)
            self._parser.feed(data, 0)

    def begin(self) -> None:
        """Start reading, with what came before."""
        if self.state == OPEN:
            self._reading = True
            self.last_seen = self._begun = self.node.clock.now()
            self.node.heartbeat.add(self)
            self._adjust()
            if self._parser is not None:
                self._take_in(b"")

    def on_turn(self) -> None:
        if self.state == OPEN and self.wants_read:
            self._take_in(b"")

    def on_error(self, error: Exception) -> None:
        """Something that is no fault of the peer's."""
        self.node.logger.error("connection_failed", error=shown(error), exc_info=error)
        self._decide(DisconnectReason.INTERNAL_ERROR, error)

    def _take_in(self, data: bytes) -> None:
        """Hand on the messages in ``data``, or what was left of earlier data."""
        node = self.node
        parser = self._parser or (node.inflating_parser if self._inflates else node.parser)
        events = parser.feed(data)
        if parser.idle:
            self._parser = None
        elif self._parser is None:
            self._parser = parser
            self._begun = self.last_seen
            if self._inflates:
                node.inflating_parser = node.new_parser(inflates=True)
            else:
                node.parser = node.new_parser()
        elif events and (not parser.amid or any(opcode <= BINARY for opcode, _ in events)):
            self._begun = self.last_seen  # what was held is through, this is the next
        node.taken += len(events)
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
        most = CONTROLS_AT_ONCE / CONTROLS_PER_SECOND
        if self._controls - now > most and self.node.stalls.is_recent:
            self._controls = now + most
        if self._controls - now > most:
            text = "too many control frames"
            self._decide(
                DisconnectReason.POLICY_VIOLATION,
                Violation(DisconnectReason.POLICY_VIOLATION, text),
            )
        elif opcode == PING:
            self._write_urgently(rfc6455.build(payload, PONG))

    def _throw_away(self, data: bytes) -> None:
        """The end is decided: only the peer's close frame is of interest."""
        search = self._search
        if search is not None:
            self.node.taken += search.feed(data)
            if search.found:
                self._search = None
                if self.state == LINGERING:
                    self._shut()

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

    def _resume(self) -> None:
        now = self.node.clock.now()
        self._begun += now - self.last_seen  # the silence was ours
        self.last_seen = now
        if self._parser is not None and self._parser.more:
            self.node.poller.again(self)

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

    # --- for the heartbeat

    @property
    def listening(self) -> bool:
        return self.state == OPEN and self.wants_read

    @property
    def message_due(self) -> float:
        parser = self._parser
        if parser is None or parser.more:
            return math.inf
        return self._begun + self.node.message_time

    def look(self) -> None:
        node = self.node
        for _ in range(LOOKS):
            if not self.listening or node.flush.full:
                break
            before, node.now = self.last_seen, node.clock.now()
            try:
                if self._parser is not None and self._parser.more:
                    self.on_turn()
                else:
                    self.on_readable()
                    if self.last_seen == before:
                        break
            except Exception as error:  # noqa: BLE001  (one link never stops the others)
                self.on_error(error)

    def stood_still(self, seconds: float) -> None:
        """Nothing was read or written for so long."""
        self.answer_due += seconds
        self._deadline += seconds
        if self.wants_read:
            self._begun += seconds
        if self._backlog is not None:
            self._backlog.since += seconds

    def ping(self) -> bool:
        if self._backlog is None:
            self._write_urgently(PING_FRAME)
            if self._backlog is None:
                self.asked = self.node.clock.now()
        return self.state != GONE

    def fall_silent(self) -> None:
        self._decide(DisconnectReason.HEARTBEAT_TIMEOUT)

    def dawdle(self) -> None:
        reason = DisconnectReason.POLICY_VIOLATION
        self._decide(reason, Violation(reason, "a message took too long to come"))

    def check(self, now: float) -> bool:
        if self.state != OPEN:
            if now >= self._deadline:
                self._try_again()
                if self.state != GONE and now >= self._deadline:
                    self.abort()
            return self.state != GONE
        if self._backlog is None:
            return False
        wait = self.node.heartbeat.write_wait
        if now - self._backlog.since >= wait:
            self._try_again()
        if self._backlog is not None and now - self._backlog.since >= wait:
            self._decide(
                DisconnectReason.SLOW_CONSUMER, TimeoutError(f"nothing was taken for {wait:g} s")
            )
        return True

    def _try_again(self) -> None:
        """Write and read what can be: nobody may have come to it in time."""
        try:
            self.on_writable()
            if self.state != GONE and self.wants_read:
                self.on_readable()
        except Exception as error:  # noqa: BLE001  (one link never stops the others)
            self.on_error(error)

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
        self._search = self._search_behind(self._parser)
        self._parser = None
        self._reading = True  # to throw away what comes, and to see the end
        self._deadline = self.node.clock.now() + self.node.heartbeat.write_wait
        self.node.heartbeat.attend(self)
        if self._backlog is not None:
            self._backlog.paused = False
        self._adjust()
        self.node.flush.send(self, LAST, 0)

    def _search_behind(self, parser: Parser | None) -> CloseSearch | None:
        """Look on for the peer's close frame where its frames were last read."""
        search = CloseSearch()
        if parser is not None:
            if parser.closed:
                return None
            search.feed(parser.unread)
        return None if search.found else search

    def _linger(self) -> None:
        self.state = LINGERING
        linger = min(LINGER, self.node.heartbeat.write_wait)
        self._deadline = self.node.clock.now() + linger
        if not self._reading:  # the peer has closed its side
            self._gone()
        elif self._search is None:
            self._shut()
        else:
            self._adjust()

    def _shut(self) -> None:
        """Both sides have said that they are done: be the first to close."""
        self.state = SHUT
        try:
            self._shut_writing()
        except OSError:
            self._gone()
        else:
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
            if self._backlog is not None:
                self._abandon(self._backlog.discard(), Offer.CLOSED)
            self._backlog = self._parser = None
            self._release()
            self.node.leave(self)
