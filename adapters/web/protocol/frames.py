"""Builds RFC 6455 frames, and defines the formats that put messages into them.

Frames from a client are parsed in ``parser``.
"""

from __future__ import annotations

from typing import Final, Protocol

from eyewall.application.ports.message import Codec, EncodedMessage, Transcoder, WireFormat

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

FINAL: Final = 0x80
RESERVED: Final = 0x70
COMPRESSED: Final = 0x40
MASKED: Final = 0x80

MAX_REASON_BYTES: Final = 123
"""Bytes of the reason in a close frame: of the 125 of a control frame, two are the code."""


def build_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return an unfragmented server frame."""
    size = len(payload)
    if size < 126:
        return bytes((FINAL | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((FINAL | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((FINAL | opcode, 127)) + size.to_bytes(8, "big") + payload


def build_close_frame(code: int, reason: str) -> bytes:
    """Return a close frame. A reason that is too long is cut between characters."""
    text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
    return build_frame(code.to_bytes(2, "big") + text, CLOSE)


class WebSocketFormat(WireFormat, Protocol):
    """The frames of one codec, compressed or not."""

    inflates: bool
    """Whether the peer may send compressed messages."""


class PlainFormat:
    """The uncompressed messages of one codec. Implements ``WebSocketFormat``."""

    inflates = False

    def __init__(self, codec: Codec) -> None:
        self.name = codec.name
        self._encode = None if codec.name == "json" else codec.encode
        self._recode = codec.recode if isinstance(codec, Transcoder) else None
        self._opcode = BINARY if codec.binary else TEXT

    def build(self, frame: EncodedMessage) -> bytes:
        if frame.raw:
            return build_frame(frame.payload, BINARY if frame.binary else TEXT)
        if self._encode is None:  # ``payload`` is the canonical form already
            return build_frame(frame.payload, self._opcode)
        envelope = frame.envelope
        if self._recode is not None:
            raw = None if envelope is None else envelope.raw
            if envelope is None or raw is None or raw.format.name != self.name:
                return build_frame(self._recode(frame.payload), self._opcode)
        elif envelope is None:
            return build_frame(frame.payload, TEXT)
        return build_frame(self._encode(envelope), self._opcode)
