"""What a peer still sends once our end is decided: thrown away, up to its close frame.

Nothing of it is processed (RFC 6455, 1.4 and 7.1.7): headers are looked at for where the
next frame begins, so that the close frame is found and the connection can be closed then,
not a deadline later. What is kept between two reads is a number and half a header.
"""

from __future__ import annotations

from typing import Final

from eyewall.adapters.web.protocol.frames import CLOSE, MASKED

EXTENDED_HEADER_SIZES: Final = {126: 4, 127: 10}
"""Bytes of a header without its mask, where they are not two, by the length that it begins
with."""


class CloseScanner:
    """Looks for the header of a close frame, whichever way the bytes are cut.

    A peer that does not keep to frames is not found to close; it has until the deadline.
    """

    __slots__ = ("_head", "_skip", "found")

    def __init__(self) -> None:
        self.found = False
        self._skip = 0  # bytes of a frame that are still to come
        self._head = b""  # the beginning of a header

    def feed(self, data: bytes) -> int:
        """Look through the next bytes; returns how many frames began in them."""
        if self._head:
            data = self._head + data
            self._head = b""
        at, size, frames = self._skip, len(data), 0
        while size - at >= 2:
            if data[at] & 15 == CLOSE:  # whatever is wrong with it, it was the peer's last
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
