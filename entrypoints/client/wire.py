"""The client's JSON codec (docs/protocol.md, "Envelope").

The server's codec reads messages of clients. A message of the server may have a position,
too, and may nest deeper, since a page of history holds messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from eyewall.adapters.codec.json import JsonCodec
from eyewall.domain.envelope import MAX_TOPIC, Envelope, Raw, StreamPosition
from eyewall.domain.errors import InvalidEnvelope, Misuse
from eyewall.domain.history import HistoryPage
from eyewall.domain.identity import RoomId

SUBPROTOCOL: Final = JsonCodec.subprotocol

MAX_REASON: Final = 1000
"""Characters of an exception's text in a nack: enough for any sentence."""

_CODEC = JsonCodec()
_NULL = msgspec.Raw(b"null")


class _Place(msgspec.Struct):
    room: str
    epoch: str
    offset: int


class _Fields(msgspec.Struct, kw_only=True):
    """The fields of a message without its payload."""

    topic: str = ""
    event: str = "message"
    id: str | None = None
    ref: str | None = None
    namespace: str | None = None
    version: str | None = None
    headers: dict[str, str] | None = None
    ack: bool = False
    stream: _Place | None = None


class _Wire(_Fields, kw_only=True):
    data: msgspec.Raw = _NULL


class _Plain(_Fields, kw_only=True):
    data: Any = None


_decode = msgspec.json.Decoder(_Wire).decode


def decode(frame: str | bytes) -> Envelope[Any]:
    """Decode one message; raises ``InvalidEnvelope``."""
    try:
        found = _decode(frame)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise InvalidEnvelope(str(error)) from None
    if not found.topic and found.event != "ack":
        raise InvalidEnvelope("a message without a topic")
    return _envelope(found, raw=Raw(bytes(found.data), _CODEC.format))


def page(answer: Mapping[str, Any]) -> HistoryPage:
    """Decode the answer to ``system:history``; raises ``InvalidEnvelope``."""
    try:
        found = msgspec.convert(answer.get("messages"), list[_Plain])
    except msgspec.ValidationError as error:
        raise InvalidEnvelope(str(error)) from None
    messages = [_envelope(message, data=message.data) for message in found]
    return HistoryPage(messages, answer.get("epoch"), answer.get("offset"))


def _envelope(found: _Fields, *, data: Any = None, raw: Raw | None = None) -> Envelope[Any]:
    at = found.stream
    return Envelope(
        found.topic,
        found.event,
        data,
        found.id,
        found.ref,
        found.namespace,
        found.version,
        found.headers,
        found.ack,
        None if at is None else StreamPosition(RoomId(at.room), at.epoch, at.offset),
        raw,
    )


def encode(
    topic: str, data: Any, event: str = "message", *, id: str | None = None, ack: bool = False
) -> bytes:
    """Encode one message; raises ``ValueError`` for a topic or data that can't be sent."""
    if not isinstance(topic, str) or not 0 < len(topic) <= MAX_TOPIC:
        raise ValueError(f"topic must be 1 to {MAX_TOPIC} characters, not {topic!r:.80}")
    if not isinstance(event, str) or not event:
        raise ValueError(f"event must be a string, not {event!r:.80}")
    try:
        return _CODEC.encode(Envelope(topic, event, data, id, ack=ack))
    except (Misuse, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from error


def accepted(message: Envelope[Any], result: object = None) -> bytes:
    """Return the ack of a handled message; raises ``ValueError`` for a result that can't be
    encoded."""
    data = {"message_id": message.id, "status": "ok"}
    return _answer(message, data if result is None else data | {"result": result})


def refused(message: Envelope[Any], reason: str) -> bytes:
    """Return the nack of a message whose callback has failed."""
    text = reason[:MAX_REASON].encode("utf-8", "replace").decode()
    return _answer(message, {"message_id": message.id, "status": "nack", "error": text})


def _answer(message: Envelope[Any], data: Mapping[str, Any]) -> bytes:
    try:
        return _CODEC.encode(Envelope(message.topic, "ack", data, ref=message.id))
    except (Misuse, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from error
