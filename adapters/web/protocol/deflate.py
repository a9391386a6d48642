"""permessage-deflate (RFC 7692): messages are compressed once, and inflated within limits.

Rules of this file:

1. A message is compressed once, and its receivers share the bytes. If compression does not make
   it smaller, the uncompressed bytes are shared.
2. Every message is inflated alone: between messages a connection holds no state.
3. Inflating goes in steps and stops at the first byte too many. So a message takes no more
   memory than the largest that is allowed.

Data that can't be inflated ends the connection with 1002: RFC 7692 names no code, and 1007 means
that a text is not UTF-8. A message that inflates to too much ends it with 1009, like one that is
as large uncompressed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from eyewall.adapters.web.protocol.frames import COMPRESSED, PlainFormat, build_frame
from eyewall.adapters.web.protocol.parser import ProtocolError
from eyewall.application.ports.message import EncodedMessage
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.duration import count

FLUSH_TAIL: Final = b"\x00\x00\xff\xff"
"""The end of a flush: the sender leaves it out, the receiver appends it (7.2)."""

EMPTY_FINAL_BLOCK: Final = b"\x01\x00\x00\xff\xff"
"""An empty final block. Behind a complete message it ends the data; behind a truncated one it
does not. zlib would not report a truncated message otherwise."""

MIN_WINDOW_BITS: Final = 9
MAX_WINDOW_BITS: Final = 15
"""Window sizes in bits. With 8, zlib produces no raw deflate data."""

LOOKAHEAD: Final = 262
"""Bytes by which the longest match distance of zlib is shorter than its window."""

INPUT_SIZE: Final = 16 * 1024
"""Compressed bytes of one step: at each step zlib copies the input that it has not consumed."""

INFLATE_SIZE: Final = 64 * 1024
"""Inflated bytes of one step."""

RATIO_EXEMPT_BYTES: Final = 1 << 20
"""Bytes that a message may inflate to whatever its ratio: the default ``max_message_size``
allows as much uncompressed, and inflating it takes a few milliseconds."""

MAX_FINAL_BLOCKS: Final = 16
"""Final blocks in one message. A client that can't flush ends its data with one (7.2.3.4); each
costs a new inflater."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionConfig:
    """Compression of messages. Raises ``ValueError`` for a value out of its range.

    >>> server = Server(compression=CompressionConfig(threshold=1024))
    """

    threshold: int = 256
    """Bytes. A smaller message is not compressed: it fits into one packet either way, and
    compressing it takes longer than sending it."""

    level: int = 6
    """1 (fast) to 9 (small). 6 is zlib's default: higher levels are slower, and hardly smaller."""

    mem_level: int = 8
    """1 to 9: the memory for compressing. 8, zlib's default, takes 256 KiB, and only while a
    message is compressed, so a lower level saves little."""

    max_ratio: float | None = 100.0
    """The largest ratio of a received message's inflated size to its compressed size, beyond the
    first MiB. JSON of many similar records has 50, a zip bomb 1000. None: no limit but
    ``max_message_size``."""

    def __post_init__(self) -> None:
        count(self.threshold, "threshold", least=0)
        for name in ("level", "mem_level"):
            if count(getattr(self, name), name) > 9:
                raise ValueError(f"{name} must be 1 to 9, not {getattr(self, name)}")
        ratio: object = self.max_ratio
        if ratio is not None:
            number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
            if not number or not self.max_ratio >= 1:  # type: ignore[operator]
                raise ValueError(f"max_ratio must be at least 1, not {ratio!r}")


class DeflateFormat:
    """The messages of a plain format, compressed if that makes them smaller. Implements
    ``WebSocketFormat``."""

    inflates = True

    def __init__(self, plain: PlainFormat, config: CompressionConfig) -> None:
        self.name = f"{plain.name}+deflate"
        self._plain = plain
        self._config = config

    def build(self, frame: EncodedMessage) -> bytes:
        whole = frame.for_wire(self._plain)
        start = 2 + {126: 2, 127: 8}.get(whole[1], 0)
        payload = memoryview(whole)[start:]
        if len(payload) < self._config.threshold:
            return whole
        compressed = self._compress(payload)
        if not self._is_smaller(len(payload), len(compressed)):
            return whole
        return build_frame(compressed, COMPRESSED | whole[0] & 15)

    @staticmethod
    def _is_smaller(before: int, after: int) -> bool:
        return after < before

    def _compress(self, payload: memoryview) -> bytes:
        # A window just larger than the message compresses as well, and is faster to set up.
        window = (len(payload) + LOOKAHEAD).bit_length()
        deflater = zlib.compressobj(
            self._config.level,
            zlib.DEFLATED,
            -min(MAX_WINDOW_BITS, max(MIN_WINDOW_BITS, window)),
            self._config.mem_level,
        )
        data = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
        return data[: -len(FLUSH_TAIL)]


class Inflater:
    """Inflates messages of at most ``most`` bytes each."""

    def __init__(self, most: int, max_ratio: float | None) -> None:
        self._max_size = most
        self._max_ratio = max_ratio

    def inflate(self, data: bytes) -> bytes:
        """Return the content of a compressed message. Raises ``ProtocolError``."""
        work = _Inflation(self._max_size, self._max_ratio, len(data))
        view = memoryview(data)
        try:
            for at in range(0, len(view), INPUT_SIZE):
                work.feed(view[at : at + INPUT_SIZE])
            # A client that ends with a final block may leave out the octet behind it
            # (7.2.3.4). The data is then complete already.
            if not work.ended:
                work.feed(FLUSH_TAIL + EMPTY_FINAL_BLOCK)
        except zlib.error as error:
            raise _invalid_data(str(error)) from None
        if not work.ended:
            raise _invalid_data("it ends within a block")
        return work.result()


class _Inflation:
    """The state of one message while it is inflated."""

    __slots__ = ("_finals", "_max_ratio", "_max_size", "_out", "_size", "_stream", "_whole")

    def __init__(self, most: int, max_ratio: float | None, whole: int) -> None:
        self._max_size = most
        self._max_ratio = max_ratio
        self._whole = whole  # compressed bytes of the message: the ratio applies to all of it
        self._out: list[bytes] = []
        self._size = 0
        self._finals = 0
        self._stream = zlib.decompressobj(-MAX_WINDOW_BITS)

    @property
    def ended(self) -> bool:
        """Whether the input so far ends with a final block."""
        return self._stream.eof

    def result(self) -> bytes:
        return self._out[0] if len(self._out) == 1 else b"".join(self._out)

    def feed(self, data: memoryview | bytes) -> None:
        """Inflate a piece. Raises ``ProtocolError`` or ``zlib.error``."""
        rest: memoryview | bytes = data
        while True:
            if self._stream.eof:
                if not rest:
                    return
                self._restart()
            room = min(INFLATE_SIZE, self._max_size - self._size + 1)
            part = self._stream.decompress(rest, room)
            self._collect(part)
            if self._stream.eof:
                rest = self._stream.unused_data
            else:
                rest = self._stream.unconsumed_tail
                if not rest:  # buffered output follows with the next piece
                    return

    def _restart(self) -> None:
        """Start a new stream: more blocks follow a final one."""
        self._finals += 1
        if self._finals > MAX_FINAL_BLOCKS:
            raise _invalid_data("too many final blocks")
        self._stream = zlib.decompressobj(-MAX_WINDOW_BITS)

    def _collect(self, part: bytes) -> None:
        if not part:
            return
        self._out.append(part)
        self._size += len(part)
        if self._size > self._max_size:
            text = f"a message that inflates to more than {self._max_size} bytes"
        elif (
            self._max_ratio is not None
            and self._size > RATIO_EXEMPT_BYTES
            and self._size > self._max_ratio * self._whole
        ):
            text = f"a message that inflates to more than {self._max_ratio:g} times its size"
        else:
            return
        raise ProtocolError(DisconnectReason.MESSAGE_TOO_BIG, text)


def _invalid_data(why: str) -> ProtocolError:
    return ProtocolError(DisconnectReason.PROTOCOL_ERROR, f"the compressed data is broken: {why}")
