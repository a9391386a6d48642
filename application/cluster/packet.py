"""The packets that nodes send each other: a small header, and the bytes for the clients.

Rules of this file:

1. A packet is one byte of version, four bytes of header length (big endian), the header as
   JSON, the payload.
2. The bus is a trust boundary. A packet that is too large, malformed or of another version is
   rejected with ``BadPacket``; the caller counts it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from eyewall.application.ports.message import MalformedMessage

VERSION = 1


MAX_HEADER = 4 * 1024 * 1024
"""Bytes: a header may name many connections (about 40 bytes each)."""


PACKET_SLACK = 64 * 1024
"""Bytes that an envelope may add to a message of the largest size on the bus."""


_FIXED = 5


class BadPacket(MalformedMessage):
    """Bytes on the bus that are no packet of this version."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. ``kind`` names its type in ``cluster/protocol``, ``node`` is its sender."""

    node: str
    kind: str
    header: dict[str, Any]
    payload: bytes = b""

    def pack(self) -> bytes:
        """Return the bytes for the bus."""
        head = json.dumps({"n": self.node, "k": self.kind, "h": self.header}).encode()
        return bytes((VERSION,)) + len(head).to_bytes(4, "big") + head + self.payload


def unpack(data: bytes, *, max_payload: int) -> Packet:
    """Read a packet; raises ``BadPacket``."""
    if len(data) < _FIXED or data[0] != VERSION:
        raise BadPacket("not a packet of this version")
    length = int.from_bytes(data[1:_FIXED], "big")
    if length > MAX_HEADER or _FIXED + length > len(data):
        raise BadPacket("the header's length is wrong")
    if len(data) - _FIXED - length > max_payload:
        raise BadPacket("the payload is too large")
    try:
        head = json.loads(data[_FIXED : _FIXED + length])
        node, kind, header = head["n"], head["k"], head["h"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadPacket(f"the header can't be read: {error}") from None
    if not (isinstance(node, str) and isinstance(kind, str) and isinstance(header, dict)):
        raise BadPacket("the header has fields of the wrong type")
    return Packet(node, kind, header, data[_FIXED + length :])
