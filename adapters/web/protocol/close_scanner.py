"""Finds the peer's close frame in input that is otherwise discarded.

After the server's end is decided, input is not processed (RFC 6455, 1.4 and 7.1.7). Only the
headers are read, for the offset of the next frame. So the connection can be closed when the close
frame arrives, and not at the deadline. Between two reads, a number and half a header are kept.
"""

from __future__ import annotations

from typing import Final

from eyewall.adapters.web.protocol.frames import CLOSE, MASKED

EXTENDED_HEADER_SIZES: Final = {126: 4, 127: 10}
"""Bytes of a header with an extended length, without the mask, by the seven bits of its length."""


class CloseScanner:
    """Finds the header of a close frame, however the bytes are cut.

    A peer that sends no valid frames is not found to close; the deadline ends its connection.
    """

    __slots__ = ("_head", "_skip", "found")

    def __init__(self) -> None:
        self.found = False
        self._skip = 0  # bytes of a frame that have not arrived
        self._head = b""  # the beginning of a header

    def feed(self, data: bytes) -> int:
        """Scan the next bytes. Returns how many frames began in them."""
        if self._head:
            data = self._head + data
            self._head = b""
        at, size, frames = self._skip, len(data), 0
        while size - at >= 2:
            if data[at] & 15 == CLOSE:  # the peer's last frame, valid or not
                self.found = True
                return frames
            second = data[at + 1]
            length = second & ~MASKED
            start = at + EXTENDED_HEADER_SIZES.get(length, 2)
            if length > 125:
                if start > size:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            at = start + length + (4 if second & MASKED else 0)
            frames += 1
        if at < size:
            self._skip, self._head = 0, data[at:]
        else:
            self._skip = at - size
        return frames
