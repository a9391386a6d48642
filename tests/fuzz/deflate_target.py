"""Compressed messages: hostile ones against the reference, honest ones there and back.

The first byte chooses the limits, and whether the rest is what was compressed or what
is to be.
"""

from __future__ import annotations

import zlib

from eyewall.adapters.codec.json import JsonCodec
from eyewall.adapters.web.protocol.deflate import CompressionConfig, DeflateFormat, Inflater
from eyewall.adapters.web.protocol.frames import PlainFormat
from eyewall.adapters.web.protocol.parser import ProtocolError
from eyewall.application.ports.message import EncodedMessage
from tests.fuzz.frames import deflated
from tests.fuzz.reference import FLUSH_TAIL, Broken, inflated

LIMITS = (1000, 1, 300, 65_536, 200_000, 1 << 20, 3 << 20, 3 << 20)
RATIOS = (100.0, None, 1.0, 2.5)
HONEST = 32

PLAIN = PlainFormat(JsonCodec())


def check(data: bytes) -> None:
    if not data:
        return
    options, rest = data[0], data[1:]
    limit, ratio = LIMITS[options & 7], RATIOS[options >> 3 & 3]
    if options & HONEST:
        check_there_and_back(rest, options)
        rest = deflated(rest, level=1 + options % 9, final=bool(options & 128))
    check_inflated(rest, limit, ratio)


def check_inflated(data: bytes, limit: int, ratio: float | None) -> None:
    try:
        truth, reasons = inflated(data, limit, ratio), frozenset()
    except Broken as broken:
        truth, reasons = b"", broken.reasons
    try:
        found = Inflater(limit, ratio).inflate(data)
    except ProtocolError as violation:
        assert violation.reason in reasons, f"{violation} instead of {reasons or len(truth)}"
    else:
        assert not reasons, f"{len(found)} bytes instead of {reasons}"
        assert found == truth, "other bytes"
        assert len(found) <= limit, "more than is allowed"


def check_there_and_back(data: bytes, options: int) -> None:
    """What goes out compressed is smaller, and any client reads it."""
    content = data * (1 + 40 * (options >> 6 & 1))
    config = CompressionConfig(
        threshold=options >> 3 & 15, level=1 + options % 9, mem_level=1 + options % 9
    )
    frame = EncodedMessage(content, raw=True, binary=bool(options & 1))
    plain, whole = frame.for_wire(PLAIN), DeflateFormat(PLAIN, config).build(frame)
    if not whole[0] & 0x40:
        assert whole == plain
        return
    assert len(whole) < len(plain), "compressed, and no smaller"
    assert whole[0] == plain[0] | 0x40
    payload = whole[2 + {126: 2, 127: 8}.get(whole[1], 0) :]
    assert zlib.decompressobj(-15).decompress(payload + FLUSH_TAIL) == content, "another message"
