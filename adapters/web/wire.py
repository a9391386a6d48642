"""RFC 6455 frames: the server's are built, the client's are parsed. No socket, no clock.

Rules of this file:

1. However the bytes are cut into chunks, the parser gives the same events and the
   same violation.
2. A violation is found as early as the bytes allow: a header that announces too much
   is refused before its payload is waited for.
3. Nothing that a client can send makes the parser hold more than one message, one
   frame and one chunk.
"""

from __future__ import annotations

import codecs
from typing import Final

from tornado.util import _websocket_mask as unmask

from eyewall.application.frames import Frame
from eyewall.application.ports import Codec
from eyewall.domain.connection import DisconnectReason

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

FINAL: Final = 0x80
RESERVED: Final = 0x70
MASKED: Final = 0x80

KNOWN: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})

SLICE: Final = 32
"""Messages that one call of ``Parser.feed`` hands out at most."""

LONG: Final = 4096
"""A partial frame that needs more than this is collected in a bytearray, and not by
concatenation, which would copy it again for every chunk."""

FRAGMENTS: Final = 1024
"""Fragments that any message may have, however small it is."""

FRAGMENT: Final = 64
"""Bytes that fragments beyond these must hold on average: a message of the largest
size may come in as many fragments of this size."""

EMPTY_FRAGMENTS: Final = 64
"""Continuations without a payload that a message may have."""

REASON_BYTES: Final = 123
"""A close frame's payload is at most 125 bytes, two of them the code."""

SENDABLE: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
"""Close codes below 3000 that may be sent (RFC 6455, 7.4.1, and the IANA registry)."""

Event = tuple[int, bytes]
"""TEXT or BINARY with a whole message, or CLOSE, PING or PONG with its payload."""


class Violation(Exception):
    """The peer broke the protocol, or a limit on it."""

    def __init__(self, reason: DisconnectReason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def build(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return a whole, unfragmented server frame."""
    size = len(payload)
    if size < 126:
        return bytes((FINAL | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((FINAL | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((FINAL | opcode, 127)) + size.to_bytes(8, "big") + payload


def build_close(code: int, reason: str) -> bytes:
    """Return a close frame; a reason that is too long is cut between characters."""
    text = reason.encode()[:REASON_BYTES].decode(errors="ignore").encode()
    return build(code.to_bytes(2, "big") + text, CLOSE)


class TextWire:
    """The messages of one codec, uncompressed. Implements ``Wire``."""

    def __init__(self, codec: Codec) -> None:
        self.name = codec.name
        self._encode = None if codec.name == "json" else codec.encode
        self._opcode = BINARY if codec.binary else TEXT

    def build(self, frame: Frame) -> bytes:
        if frame.raw or frame.envelope is None:
            return build(frame.payload, BINARY if frame.binary else TEXT)
        if self._encode is None:  # ``payload`` is the canonical form already
            return build(frame.payload, self._opcode)
        return build(self._encode(frame.envelope), self._opcode)


class _Message:
    """A message that comes in fragments, as far as it has come."""

    __slots__ = ("_decoder", "_empty", "_fragments", "data", "opcode")

    def __init__(self, opcode: int) -> None:
        self.opcode = opcode
        self.data = bytearray()
        self._fragments = 0
        self._empty = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT else None

    def add(self, payload: bytes, final: bool, most: int) -> None:
        self._fragments += 1
        self._empty += not payload
        if self._fragments > most or self._empty > EMPTY_FRAGMENTS:
            raise Violation(DisconnectReason.POLICY_VIOLATION, "too many fragments")
        if self._decoder is not None:
            try:
                self._decoder.decode(payload, final)
            except UnicodeDecodeError:
                raise Violation(DisconnectReason.INVALID_UTF8, "text is not UTF-8") from None
        self.data += payload


class Parser:
    """Reads the frames of one client, chunk by chunk.

    ``failure`` is the violation that ended the reading; after it, as after a close
    frame, whatever comes is ignored.
    """

    __slots__ = ("_at", "_ended", "_limit", "_message", "_most", "_need", "_rest", "failure")

    def __init__(self, max_message_size: int) -> None:
        self._limit = max_message_size
        self._most = max(FRAGMENTS, max_message_size // FRAGMENT)
        self._rest: bytes | bytearray = b""
        self._at = 0  # where in ``_rest`` the next frame begins
        self._need = 2  # how many bytes from there would tell more
        self._message: _Message | None = None
        self._ended = False
        self.failure: Violation | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is held: any other idle parser could go on in its place."""
        return not self._rest and self._message is None and not self._ended

    @property
    def more(self) -> bool:
        """Whether ``feed`` stopped at its limit and should be called again, without data."""
        return len(self._rest) - self._at >= self._need

    def feed(self, data: bytes = b"", most: int = SLICE) -> list[Event]:
        """Take in a chunk; returns the events of its whole frames, at most ``most``.

        With ``more`` set the rest waits: call again before the next chunk is read.
        """
        if self._ended:
            return []
        if self._rest:
            joined = self._join(data)
            if joined is None:
                return []
            data = joined
        events: list[Event] = []
        try:
            at = self._parse(data, self._at, events, most)
        except Violation as violation:
            self.failure = violation
            self._ended = True
        if self._ended:
            self._rest, self._at, self._message = b"", 0, None
        elif at == len(data):
            self._rest, self._at, self._need = b"", 0, 2
        elif len(data) - at >= self._need:  # the limit stopped it
            self._rest, self._at = data, at
        else:
            rest = data[at:]
            self._rest, self._at = bytearray(rest) if self._need > LONG else rest, 0
        return events

    def _join(self, data: bytes) -> bytes | None:
        """Put ``data`` behind what was left; None if that still is no frame."""
        rest = self._rest
        if isinstance(rest, bytearray):
            rest += data
            if len(rest) < self._need:
                return None
            self._rest = b""
            return bytes(rest)
        if data:
            rest = rest[self._at :] + data
            self._rest, self._at = rest, 0
        return rest if len(rest) - self._at >= self._need else None

    def _parse(self, data: bytes, at: int, events: list[Event], most: int) -> int:
        """Read whole frames from ``at`` on; returns where the first that is not read begins."""
        size = len(data)
        limit = self._limit
        self._need = 2
        while size - at >= 2 and len(events) < most:
            first = data[at]
            length = data[at + 1] - MASKED
            if (first != 0x81 and first != 0x82) or not 0 <= length < 127 or self._message:
                following = self._odd(data, at, events)
                if following == at or self._ended:
                    break
                at = following
                continue
            # A whole message in one frame, of a usual size: nearly every frame there is.
            start = at + 6
            if length == 126:
                start += 2
                if start > size:
                    self._need = start - at
                    break
                length = data[at + 2] << 8 | data[at + 3]
            if length > limit:
                raise Violation(DisconnectReason.MESSAGE_TOO_BIG, f"a message of {length} bytes")
            end = start + length
            if end > size:
                self._need = end - at
                break
            payload = unmask(data[start - 4 : start], data[start:end])
            if first == 0x81 and not payload.isascii():
                _check_text(payload)
            events.append((first & 15, payload))
            at = end
        return at

    def _odd(self, data: bytes, at: int, events: list[Event]) -> int:
        """Read one frame of any kind; returns where it ends, or ``at`` if it is not whole."""
        first, second = data[at], data[at + 1]
        self._check_header(first, second)
        length = second & ~MASKED
        start = at + 6 + {126: 2, 127: 8}.get(length, 0)
        if start > len(data):
            self._need = start - at
            return at
        if length > 125:
            length = int.from_bytes(data[at + 2 : start - 4], "big")
        if length >> 63:
            raise Violation(DisconnectReason.PROTOCOL_ERROR, "a length with its top bit set")
        opcode = first & 15
        so_far = len(self._message.data) if self._message and opcode < CLOSE else 0
        if so_far + length > self._limit and opcode < CLOSE:
            total = so_far + length
            raise Violation(DisconnectReason.MESSAGE_TOO_BIG, f"a message of {total} bytes")
        end = start + length
        if end > len(data):
            self._need = end - at
            return at
        payload = unmask(data[start - 4 : start], data[start:end])
        if opcode >= CLOSE:
            if opcode == CLOSE:
                _check_close(payload)
                self._ended = True
            events.append((opcode, payload))
        else:
            self._add(opcode, payload, bool(first & FINAL), events)
        return end

    def _check_header(self, first: int, second: int) -> None:
        opcode = first & 15
        wrong = None
        if first & RESERVED:
            wrong = "a reserved bit is set"
        elif opcode not in KNOWN:
            wrong = f"unknown opcode {opcode}"
        elif opcode >= CLOSE and not first & FINAL:
            wrong = "a fragmented control frame"
        elif opcode == CONTINUATION and self._message is None:
            wrong = "a continuation of nothing"
        elif 0 < opcode < CLOSE and self._message is not None:
            wrong = "a new message within a fragmented one"
        elif not second & MASKED:
            wrong = "the frame is not masked"
        elif opcode >= CLOSE and second & ~MASKED > 125:
            wrong = "a control frame of more than 125 bytes"
        if wrong is not None:
            raise Violation(DisconnectReason.PROTOCOL_ERROR, wrong)

    def _add(self, opcode: int, payload: bytes, final: bool, events: list[Event]) -> None:
        """Take in a data frame: a whole message, or a fragment of one."""
        message = self._message
        if message is None:
            if final:
                if opcode == TEXT:
                    _check_text(payload)
                events.append((opcode, payload))
                return
            message = self._message = _Message(opcode)
        message.add(payload, final, self._most)
        if final:
            self._message = None
            events.append((message.opcode, bytes(message.data)))


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise Violation(DisconnectReason.INVALID_UTF8, "text is not UTF-8") from None


def _check_close(payload: bytes) -> None:
    """RFC 6455, 7.4: no payload, or a code that may be sent and a text."""
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else 0
    if not (code in SENDABLE or 3000 <= code <= 4999):
        raise Violation(DisconnectReason.PROTOCOL_ERROR, f"close code {code}")
    _check_text(payload[2:])
