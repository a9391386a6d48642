"""permessage-deflate (RFC 7692): messages compressed once, and inflated within bounds.

Rules of this file:

1. A message is compressed once, and all who receive it compressed share the bytes. What
   compression does not make smaller is shared with those who take none.
2. Every message is inflated by itself: between messages a connection holds nothing.
3. Inflating goes in steps, and stops at the first byte too many: a message never takes
   more memory than one that is allowed.

Data that can't be inflated ends the connection with 1002: RFC 7692 names no code, and
1007 says of a text that it is not UTF-8. A message that inflates to too much ends it with
1009, as one that is as large uncompressed does.
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
"""What a flush ends with; left out by the sender, put back by the receiver (7.2)."""

EMPTY_FINAL_BLOCK: Final = b"\x01\x00\x00\xff\xff"
"""An empty final block. Put behind a whole message, it is the end of the data; behind one
that was cut off it is not, which zlib would not tell otherwise."""

MIN_WINDOW_BITS: Final = 9
MAX_WINDOW_BITS: Final = 15
"""Windows in bits, from the smallest that zlib makes raw deflate data with."""

LOOKAHEAD: Final = 262
"""Bytes of a window that zlib does not look back into."""

INPUT_SIZE: Final = 16 * 1024
"""Bytes taken in at a time: zlib copies at each step what it has not taken yet."""

INFLATE_SIZE: Final = 64 * 1024
"""Bytes inflated at a time."""

RATIO_EXEMPT_BYTES: Final = 1 << 20
"""Bytes that any message may inflate to, whatever its ratio: uncompressed they would be
welcome at the default ``max_message_size``, and they take a few milliseconds."""

MAX_FINAL_BLOCKS: Final = 16
"""Final blocks in one message. Who can't flush makes one (7.2.3.4); each costs a new
inflater."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionConfig:
    """Compression of messages. Raises ``ValueError`` for a value out of its range.

    >>> server = Server(compression=CompressionConfig(threshold=1024))
    """

    threshold: int = 256
    """Bytes: a smaller message goes uncompressed. It fits into one packet either way, and
    compressing it costs more time than sending it."""

    level: int = 6
    """1 (fast) to 9 (small). zlib's own default: beyond it, messages get slower but hardly
    smaller."""

    mem_level: int = 8
    """1 to 9: memory for compressing, 256 KiB at 8, zlib's own default. It is held only
    while a message is compressed, so there is nothing to save."""

    max_ratio: float | None = 100.0
    """How many times larger than itself a received message may inflate to, beyond the
    first MiB. JSON of many like records comes to 50, a bomb to 1000. None: no limit but
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
    """The messages of another wire, compressed where it pays. Implements ``WebSocketFormat``."""

    inflates = True

    def __init__(self, plain: PlainFormat, config: CompressionConfig) -> None:
        self.name = f"{plain.name}+deflate"
        self._plain = plain
        self._config = config

    def build(self, frame: EncodedMessage) -> bytes:
        whole = frame.form(self._plain)
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
        # A window that just holds the message says the same with less to set up.
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
    """Inflates whole messages, of at most ``most`` bytes each."""

    def __init__(self, most: int, max_ratio: float | None) -> None:
        self._max_size = most
        self._max_ratio = max_ratio

    def inflate(self, data: bytes) -> bytes:
        """Return what ``data`` holds; raises ``ProtocolError``."""
        work = _Inflation(self._max_size, self._max_ratio, len(data))
        view = memoryview(data)
        try:
            for at in range(0, len(view), INPUT_SIZE):
                work.feed(view[at : at + INPUT_SIZE])
            # A client that ends with a final block may have left out the octet that is
            # to follow it (7.2.3.4): then this is the end already.
            if not work.ended:
                work.feed(FLUSH_TAIL + EMPTY_FINAL_BLOCK)
        except zlib.error as error:
            raise _invalid_data(str(error)) from None
        if not work.ended:
            raise _invalid_data("it ends within a block")
        return work.result()


class _Inflation:
    """One message on its way to being inflated."""

    __slots__ = ("_finals", "_max_ratio", "_max_size", "_out", "_size", "_stream", "_whole")

    def __init__(self, most: int, max_ratio: float | None, whole: int) -> None:
        self._max_size = most
        self._max_ratio = max_ratio
        self._whole = whole  # bytes, compressed: a message may begin with what shrinks best
        self._out: list[bytes] = []
        self._size = 0
        self._finals = 0
        self._stream = zlib.decompressobj(-MAX_WINDOW_BITS)

    @property
    def ended(self) -> bool:
        """Whether what was taken in last was a final block, and nothing behind it."""
        return self._stream.eof

    def result(self) -> bytes:
        return self._out[0] if len(self._out) == 1 else b"".join(self._out)

    def feed(self, data: memoryview | bytes) -> None:
        """Take in a piece; raises ``ProtocolError`` or ``zlib.error``."""
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
                if not rest:  # what it still has to give comes with the next piece
                    return

    def _restart(self) -> None:
        """More blocks follow a final one."""
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
