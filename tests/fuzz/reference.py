"""What the parser and the inflater should say of any bytes, in the plainest way there is.

Everything is there at once, nothing is fast, and nothing is shared with what is tested
but the figures of the limits. Each event bears the offset at which it is due, so that a
parser may be asked after every chunk.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from eyewall.adapters.web.protocol.deflate import INFLATE_SIZE, MAX_FINAL_BLOCKS, RATIO_EXEMPT_BYTES
from eyewall.adapters.web.protocol.parser import (
    MAX_EMPTY_FRAGMENTS,
    MAX_FRAGMENTS,
    MIN_MEAN_FRAGMENT,
    OVERHEAD_SHIFT,
)
from eyewall.domain.connection import DisconnectReason as Reason

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

FLUSH_TAIL = b"\x00\x00\xff\xff"
OCTET = 8 * 258
"""Bytes that one octet may inflate to."""

WRONG = frozenset({Reason.PROTOCOL_ERROR})
LARGE = frozenset({Reason.MESSAGE_TOO_BIG})


class Broken(Exception):
    """The bytes are wrong; ``reasons`` say how the connection may end."""

    def __init__(self, *reasons: Reason) -> None:
        super().__init__(*reasons)
        self.reasons = frozenset(reasons)


@dataclass
class Expected:
    """What a stream holds. Offsets count from its beginning."""

    events: list[tuple[int, tuple[int, bytes]]] = field(default_factory=list)
    """Each with the offset of its last byte's end."""

    failure: frozenset[Reason] = frozenset()
    """Why it fails, if it does."""

    told: int = 0
    """Where the failure can be known at the earliest."""
    due: int = 0
    """Where it must be known: a header may be read as a whole first."""

    idle: set[int] = field(default_factory=set)
    """The offsets at which nothing is held."""

    def until(self, at: int) -> list[tuple[int, bytes]]:
        return [event for offset, event in self.events if offset <= at]


def expected(data: bytes, limit: int, *, deflate: float | bool | None = False) -> Expected:
    """Read a client's stream. ``deflate`` is False, or the greatest ratio (None: any)."""
    reader = _Reader(limit, deflate)
    at: int | None = 0
    while at is not None:
        at = reader.read_frame(data, at)
    return reader.found


class _Reader:
    def __init__(self, limit: int, deflate: float | bool | None) -> None:
        self.found = Expected(idle={0})
        self._limit = limit
        self._deflate = deflate
        self._message: tuple[int, bool, list[bytes]] | None = None

    def read_frame(self, data: bytes, at: int) -> int | None:
        """Read the frame at an offset; returns where the next begins, None at the end."""
        if len(data) < at + 2:
            return None
        first, second = data[at], data[at + 1]
        within = self._message is not None
        if not header_is_right(first, second, within=within, deflate=self._deflate):
            return self._failed(WRONG, at + 2)
        size_end = at + 2 + {126: 2, 127: 8}.get(second & 127, 0)
        start = size_end + 4
        if len(data) < size_end:
            return None
        extended = int.from_bytes(data[at + 2 : size_end], "big")
        length = extended if second & 127 > 125 else second & 127
        if length >= 1 << 63:
            return self._failed(WRONG, size_end, start)
        if first & 15 < CLOSE and self._too_large(first, length):
            return self._failed(LARGE, size_end, start)
        end = start + length
        if len(data) < end:
            return None
        try:
            self._take(first, unmasked(data[start - 4 : start], data[start:end]), end)
        except Broken as broken:
            return self._failed(broken.reasons, end)
        if first & 15 == CLOSE:
            return None
        if self._message is None:
            self.found.idle.add(end)
        return end

    def _failed(self, reasons: frozenset[Reason], told: int, due: int | None = None) -> None:
        self.found.failure, self.found.told, self.found.due = reasons, told, due or told

    def _too_large(self, first: int, length: int) -> bool:
        _, compressed, parts = self._message or (0, bool(first & 0x40), [])
        most = self._limit
        if compressed:
            most += (most >> OVERHEAD_SHIFT) + 64
        return sum(map(len, parts)) + length > most

    def _take(self, first: int, payload: bytes, end: int) -> None:
        opcode, final = first & 15, bool(first & 0x80)
        if opcode >= CLOSE:
            if opcode == CLOSE:
                check_close(payload)
            self.found.events.append((end, (opcode, payload)))
            return
        if self._message is None and final:
            message = (opcode, bool(first & 0x40), [payload])
        else:
            message = self._message or (opcode, bool(first & 0x40), [])
            message[2].append(payload)
            check_fragments(message, final, self._limit)
            self._message = None if final else message
        if final:
            whole = whole_message(*message, self._limit, self._deflate)
            self.found.events.append((end, whole))


def unmasked(mask: bytes, data: bytes) -> bytes:
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    both = int.from_bytes(data, "big") ^ int.from_bytes(key, "big")
    return both.to_bytes(len(data), "big")


def header_is_right(first: int, second: int, *, within: bool, deflate: float | bool | None) -> bool:
    """RFC 6455, 5.2 to 5.5, and RFC 7692, 6. ``within``: a message is unfinished."""
    opcode, final, reserved = first & 15, first & 0x80, first & 0x70
    if not second & 0x80:
        return False
    if opcode in (CLOSE, PING, PONG):
        return bool(final) and not reserved and second & 127 < 126
    if opcode == 0:
        return within and not reserved
    if opcode in (TEXT, BINARY):
        return not within and reserved in ((0,) if deflate is False else (0, 0x40))
    return False


def check_close(payload: bytes) -> None:
    """RFC 6455, 7.4, with the codes that IANA has listed since."""
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big")
    never = code in (1004, 1005, 1006) or code == 1015
    if len(payload) < 2 or never or not (1000 <= code <= 1014 or 3000 <= code <= 4999):
        raise Broken(Reason.PROTOCOL_ERROR)
    check_text(payload[2:])


def check_fragments(message: tuple[int, bool, list[bytes]], final: bool, limit: int) -> None:
    opcode, compressed, parts = message
    if (
        len(parts) > max(MAX_FRAGMENTS, limit // MIN_MEAN_FRAGMENT)
        or parts.count(b"") > MAX_EMPTY_FRAGMENTS
    ):
        raise Broken(Reason.POLICY_VIOLATION)
    if opcode == TEXT and not compressed:
        check_text(b"".join(parts), final=final)


def check_text(data: bytes, *, final: bool = True) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if final or error.end != len(data) or error.reason != "unexpected end of data":
            raise Broken(Reason.INVALID_UTF8) from None


def whole_message(
    opcode: int, compressed: bool, parts: list[bytes], limit: int, deflate: float | bool | None
) -> tuple[int, bytes]:
    data = b"".join(parts)
    if compressed:
        data = inflated(data, limit, None if deflate is None else float(deflate))
    if opcode == TEXT:
        check_text(data)
    return opcode, data


def inflated(data: bytes, limit: int, ratio: float | None) -> bytes:
    """Inflate a message as RFC 7692, 7.2.2, says; raises ``Broken``."""
    most = limit if ratio is None else min(limit, max(RATIO_EXEMPT_BYTES, int(ratio * len(data))))
    out, ended, rest = bytearray(), False, data + FLUSH_TAIL
    for _ in range(MAX_FINAL_BLOCKS + 1):
        inflater = zlib.decompressobj(-15)
        rest = inflate_until_final(inflater, rest, out, most)
        ended = inflater.eof
        if not ended or rest == FLUSH_TAIL:
            break
    whole = rest == FLUSH_TAIL if ended else between_blocks(inflater)  # else: too many final ones
    reasons = [] if whole else [Reason.PROTOCOL_ERROR]
    # What looks for the end may be taken for more of a message that has none.
    if len(out) + (0 if whole else 5 * OCTET) > most:
        reasons.append(Reason.MESSAGE_TOO_BIG)
    if reasons:
        raise Broken(*reasons)
    return bytes(out)


def inflate_until_final(
    inflater: zlib._Decompress, data: bytes, out: bytearray, most: int
) -> bytes:
    """Put what ``data`` holds into ``out``; returns what follows a final block.

    Goes an octet at a time, so that what comes before a mistake is known. It may be
    noticed before the size is, or the other way round, if both are close.
    """
    for at in range(len(data)):
        try:
            out += inflater.decompress(data[at : at + 1])
        except zlib.error:
            reasons = [Reason.PROTOCOL_ERROR]
            if len(out) + OCTET > most:
                reasons.append(Reason.MESSAGE_TOO_BIG)
            raise Broken(*reasons) from None
        if len(out) > most + INFLATE_SIZE:
            raise Broken(Reason.MESSAGE_TOO_BIG)
        if inflater.eof:
            return inflater.unused_data + data[at + 1 :]
    return b""


def between_blocks(inflater: zlib._Decompress) -> bool:
    """Whether an empty final block would be the end."""
    try:
        inflater.decompress(b"\x01\x00\x00\xff\xff")
    except zlib.error:
        return False
    return inflater.eof and not inflater.unused_data
