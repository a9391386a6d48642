"""Parses RFC 6455 frames from a client. No socket, no clock.

Rules of this file:

1. The events and the error do not depend on how the bytes are cut into chunks.
2. An error is found as early as possible: a header that announces too many bytes is refused
   before its payload arrives.
3. The parser holds at most one message, one frame and one chunk, whatever a client sends.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Final

from tornado.util import _websocket_mask as unmask

from eyewall.adapters.web.protocol.frames import (
    BINARY,
    CLOSE,
    COMPRESSED,
    CONTINUATION,
    FINAL,
    MASKED,
    PING,
    PONG,
    RESERVED,
    TEXT,
)
from eyewall.domain.connection import DisconnectReason

KNOWN_OPCODES: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})

MESSAGES_PER_FEED: Final = 32
"""Messages that one call of ``Parser.feed`` returns at most."""

BYTEARRAY_SIZE: Final = 4096
"""Bytes from which an incomplete frame is collected in a bytearray. Concatenation would copy it
for every chunk."""

MAX_FRAGMENTS: Final = 1024
"""Fragments that any message may have, however small. A client that streams a message sends some
hundred bytes at a time; each fragment costs as much as a message."""

MIN_MEAN_FRAGMENT: Final = 64
"""Mean bytes of a fragment if there are more than ``MAX_FRAGMENTS``: a message of the largest
size may have as many fragments of this size."""

MAX_EMPTY_FRAGMENTS: Final = 64
"""Continuation frames without a payload that a message may have. Some libraries end a message
with one."""

INFLATED_PER_FEED: Final = 64 * 1024
"""Inflated bytes after which ``Parser.feed`` stops, as it does at ``MESSAGES_PER_FEED``: a
chunk may hold many small messages that are large ones once inflated."""

OVERHEAD_SHIFT: Final = 5
"""A message that deflate can't compress may grow by 1/2**5 and 64 bytes: zlib's bound for its
least favourable settings."""

VALID_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
"""Close codes below 3000 that may be sent (RFC 6455, 7.4.1, and the IANA registry)."""

Event = tuple[int, bytes]
"""An opcode and a payload: TEXT or BINARY with a whole message, or CLOSE, PING or PONG."""

Inflate = Callable[[bytes], bytes]
"""Returns the content of a compressed message; raises ``ProtocolError``."""


class ProtocolError(Exception):
    """The peer broke the protocol or a limit. ``reason`` has the close code."""

    def __init__(self, reason: DisconnectReason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class _FragmentedMessage:
    """The fragments of a message that have arrived."""

    __slots__ = ("_decoder", "_empty", "_fragments", "compressed", "data", "opcode")

    def __init__(self, opcode: int, *, compressed: bool) -> None:
        self.opcode = opcode
        self.compressed = compressed
        self.data = bytearray()
        self._fragments = 0
        self._empty = 0
        # Compressed fragments are inflated and checked for UTF-8 at the end of the message, so
        # that an incomplete message holds no inflater.
        text = opcode == TEXT and not compressed
        self._decoder = codecs.getincrementaldecoder("utf-8")() if text else None

    def add(self, payload: bytes, final: bool, most: int) -> None:
        self._fragments += 1
        self._empty += not payload
        if self._fragments > most or self._empty > MAX_EMPTY_FRAGMENTS:
            raise ProtocolError(DisconnectReason.POLICY_VIOLATION, "too many fragments")
        if self._decoder is not None:
            try:
                self._decoder.decode(payload, final)
            except UnicodeDecodeError:
                raise ProtocolError(DisconnectReason.INVALID_UTF8, "text is not UTF-8") from None
        self.data += payload


class Parser:
    """Parses the frames of one client, chunk by chunk.

    ``failure`` is the error that ended the parsing. After it, and after a close frame, input is
    ignored. Without ``inflate``, compressed messages are an error.
    """

    __slots__ = (
        "_buffer",
        "_ended",
        "_inflate",
        "_inflated",
        "_max_fragments",
        "_max_size",
        "_message",
        "_needed",
        "_offset",
        "_rejected",
        "failure",
    )

    def __init__(self, max_message_size: int, inflate: Inflate | None = None) -> None:
        self._max_size = max_message_size
        self._inflate = inflate
        self._inflated = 0  # inflated bytes in this call of ``feed``
        self._max_fragments = max(MAX_FRAGMENTS, max_message_size // MIN_MEAN_FRAGMENT)
        self._buffer: bytes | bytearray = b""
        self._offset = 0  # of the next frame in ``_buffer``
        self._needed = 2  # bytes of that frame without which parsing can't go on
        self._message: _FragmentedMessage | None = None
        self._ended = False
        self._rejected = b""
        self.failure: ProtocolError | None = None

    @property
    def closed(self) -> bool:
        """Whether a close frame has ended the parsing."""
        return self._ended and self.failure is None

    @property
    def unparsed(self) -> bytes:
        """The input that is in no event yet, from the beginning of a frame. After an error, some
        of its frames may have been returned as events."""
        return self._rejected or bytes(self._buffer[self._offset :])

    @property
    def idle(self) -> bool:
        """Whether the parser holds nothing, so that any other idle parser can replace it."""
        return not self._buffer and self._message is None and not self._ended

    @property
    def in_message(self) -> bool:
        """Whether an incomplete fragmented message is held."""
        return self._message is not None

    @property
    def has_more(self) -> bool:
        """Whether ``feed`` stopped at its limit and must be called again, without data."""
        return len(self._buffer) - self._offset >= self._needed

    def feed(self, data: bytes = b"", most: int = MESSAGES_PER_FEED) -> list[Event]:
        """Parse a chunk. Returns the events of its complete frames, at most ``most``.

        If ``has_more`` is then set, call again before the next chunk is read.
        """
        if self._ended:
            return []
        if self._buffer:
            joined = self._join(data)
            if joined is None:
                return []
            data = joined
        events: list[Event] = []
        try:
            at = self._parse(data, self._offset, events, most)
        except ProtocolError as violation:
            # The traceback would keep the input in a reference cycle, until the garbage
            # collector runs.
            violation.__context__ = None
            self.failure = violation.with_traceback(None)
            self._ended = True
            self._rejected = data[self._offset :]
        if self._ended:
            self._buffer, self._offset, self._message = b"", 0, None
        elif at == len(data):
            self._buffer, self._offset, self._needed = b"", 0, 2
        elif len(data) - at >= self._needed:  # the limit stopped it
            self._buffer, self._offset = data, at
        else:
            rest = data[at:]
            self._buffer = bytearray(rest) if self._needed > BYTEARRAY_SIZE else rest
            self._offset = 0
        return events

    def _join(self, data: bytes) -> bytes | None:
        """Return the buffer with ``data`` appended; None if ``_needed`` bytes are not there."""
        rest = self._buffer
        if isinstance(rest, bytearray):
            rest += data
            if len(rest) < self._needed:
                return None
            self._buffer = b""
            return bytes(rest)
        if data:
            rest = rest[self._offset :] + data
            self._buffer, self._offset = rest, 0
        return rest if len(rest) - self._offset >= self._needed else None

    def _parse(self, data: bytes, at: int, events: list[Event], most: int) -> int:
        """Parse complete frames from ``at`` on. Returns the offset of the first other one."""
        size = len(data)
        limit = self._max_size
        self._needed = 2
        self._inflated = 0
        while size - at >= 2 and len(events) < most and self._inflated < INFLATED_PER_FEED:
            first = data[at]
            length = data[at + 1] - MASKED
            if (first != 0x81 and first != 0x82) or not 0 <= length < 127 or self._message:
                following = self._parse_other_frame(data, at, events)
                if following == at or self._ended:
                    break
                at = following
                continue
            # The usual frame: a whole message of less than 64 KiB.
            start = at + 6
            if length == 126:
                start += 2
                if start > size:
                    self._needed = start - at
                    break
                length = data[at + 2] << 8 | data[at + 3]
            if length > limit:
                raise ProtocolError(
                    DisconnectReason.MESSAGE_TOO_BIG, f"a message of {length} bytes"
                )
            end = start + length
            if end > size:
                self._needed = end - at
                break
            payload = unmask(data[start - 4 : start], data[start:end])
            if first == 0x81 and not payload.isascii():
                _check_text(payload)
            events.append((first & 15, payload))
            at = end
        return at

    def _parse_other_frame(self, data: bytes, at: int, events: list[Event]) -> int:
        """Parse one frame of any kind. Returns where it ends, or ``at`` if it is incomplete."""
        first, second = data[at], data[at + 1]
        self._check_header(first, second)
        length = second & ~MASKED
        start = at + 6 + {126: 2, 127: 8}.get(length, 0)
        if start > len(data):
            self._needed = start - at
            return at
        if length > 125:
            length = int.from_bytes(data[at + 2 : start - 4], "big")
        if length >> 63:
            raise ProtocolError(DisconnectReason.PROTOCOL_ERROR, "a length with its top bit set")
        opcode = first & 15
        if opcode < CLOSE:
            self._check_size(length, compressed=bool(first & COMPRESSED))
        end = start + length
        if end > len(data):
            self._needed = end - at
            return at
        payload = unmask(data[start - 4 : start], data[start:end])
        if opcode >= CLOSE:
            if opcode == CLOSE:
                _check_close(payload)
                self._ended = True
            events.append((opcode, payload))
        else:
            self._add(first, payload, events)
        return end

    def _check_size(self, length: int, *, compressed: bool) -> None:
        """Refuse a data frame that makes its message too big, before its payload arrives."""
        message, limit = self._message, self._max_size
        if message is not None:
            length += len(message.data)
            compressed = message.compressed
        if compressed:
            limit += (limit >> OVERHEAD_SHIFT) + 64
        if length > limit:
            raise ProtocolError(DisconnectReason.MESSAGE_TOO_BIG, f"a message of {length} bytes")

    def _check_header(self, first: int, second: int) -> None:
        opcode = first & 15
        wrong = None
        if first & RESERVED and not self._may_be_compressed(first):
            wrong = "a reserved bit is set"
        elif opcode not in KNOWN_OPCODES:
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
            raise ProtocolError(DisconnectReason.PROTOCOL_ERROR, wrong)

    def _may_be_compressed(self, first: int) -> bool:
        """RFC 7692, 6: the bit is set on the first frame of a data message only."""
        marked = first & RESERVED == COMPRESSED and first & 15 in (TEXT, BINARY)
        return marked and self._inflate is not None

    def _add(self, first: int, payload: bytes, events: list[Event]) -> None:
        """Handle a data frame: a whole message, or a fragment."""
        opcode, final = first & 15, bool(first & FINAL)
        message = self._message
        if message is None:
            if final:
                payload = self._inflated_from(payload) if first & COMPRESSED else payload
                if opcode == TEXT:
                    _check_text(payload)
                events.append((opcode, payload))
                return
            message = self._message = _FragmentedMessage(
                opcode, compressed=bool(first & COMPRESSED)
            )
        message.add(payload, final, self._max_fragments)
        if final:
            self._message = None
            data = bytes(message.data)
            if message.compressed:
                data = self._inflated_from(data)
                if message.opcode == TEXT:
                    _check_text(data)
            events.append((message.opcode, data))

    def _inflated_from(self, data: bytes) -> bytes:
        assert self._inflate is not None
        inflated = self._inflate(data)
        self._inflated += len(inflated)
        return inflated


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise ProtocolError(DisconnectReason.INVALID_UTF8, "text is not UTF-8") from None


def _check_close(payload: bytes) -> None:
    """RFC 6455, 7.4: no payload, or a code that may be sent and a text."""
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else 0
    if not (code in VALID_CLOSE_CODES or 3000 <= code <= 4999):
        raise ProtocolError(DisconnectReason.PROTOCOL_ERROR, f"close code {code}")
    _check_text(payload[2:])
