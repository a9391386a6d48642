"""What clients send: frames that are right in all but what a test wants wrong."""

from __future__ import annotations

import zlib

FIRST = (0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0xC1, 0xC2, 0x41, 0x42, 0x89, 0x8A, 0x88, 0xC0)
"""First bytes that a script names by their place; other bytes stand for themselves."""

MASK = b"\x01\x02\x03\x04"


def frame(first: int, payload: bytes, mask: bytes = MASK) -> bytes:
    """Build a frame with its size in the shortest form."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def deflated(data: bytes, *, level: int = 6, final: bool = False) -> bytes:
    """Compress a message: flushed, and without the flush's tail."""
    deflater = zlib.compressobj(level, zlib.DEFLATED, -15)
    if final:
        return deflater.compress(data) + deflater.flush(zlib.Z_FINISH)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def scripted(script: bytes) -> bytes:
    """Make a stream of a script: random bytes would seldom have a right header.

    Each frame takes a first byte, a size and its payload from the script. Sizes from
    0xE0 on stand for larger payloads than are there (what is there, repeated), from
    0xF8 on for so many frames without a payload.
    """
    out = bytearray()
    at = 0
    while at + 2 <= len(script):
        first, size = script[at], script[at + 1]
        first = FIRST[first] if first < len(FIRST) else first
        part = script[at + 2 : at + 2 + min(size, 60)]
        at += 2 + len(part)
        if size >= 0xF8:
            at -= len(part)
            out += frame(first, b"") * (1 << (size & 7))
            continue
        if size >= 0xE0:
            size = (size - 0xE0) * 97
        payload = (part * (size // len(part) + 1))[:size] if part else b""
        if first in (0xC1, 0xC2):
            payload = deflated(payload)
        out += frame(first, payload)
    return bytes(out)
