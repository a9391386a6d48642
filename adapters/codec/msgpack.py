"""The MessagePack codec, on msgspec: the envelope of the JSON codec in binary frames.

Rules of this file:

1. In both codecs a payload is any JSON value. MessagePack's other values (binary, extensions,
   keys that are not strings, infinities) are refused when the payload is read: members that use
   JSON could not get the same.
2. A payload received as MessagePack is relayed to clients of MessagePack byte for byte.
3. Any other message is transcoded from its JSON, so that all clients get the same. A number that
   MessagePack can't represent becomes the nearest float, as in JavaScript.
"""

from __future__ import annotations

import json
from itertools import chain
from math import isfinite
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from eyewall.adapters.codec.json import MAX_DEPTH, Field, JsonCodec
from eyewall.adapters.codec.payload import load_as
from eyewall.domain.envelope import (
    HEADERS_TOO_MUCH,
    MAX_FIELD,
    MAX_TOPIC,
    Envelope,
    Raw,
    headers_fit,
)
from eyewall.domain.errors import InvalidEnvelope, InvalidJson, ValidationError

_NULL: Final = b"\xc0"
_OPENERS: Final = frozenset({*range(0x81, 0x90), *range(0x91, 0xA0), *range(0xDC, 0xE0)})
"""The first bytes of arrays and maps that are not empty; texts and numbers may contain them too.
An empty one is the innermost, and adds at most one level."""
_NOT_OPENERS: Final = bytes(set(range(256)) - _OPENERS)
_JSON_TYPES: Final = frozenset({dict, list, str, int, float, bool, type(None)})
_LEAST_INT, _MOST_INT = -(2**63), 2**64 - 1

_UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class _Position(msgspec.Struct):
    """Only the server assigns positions. That of a client is checked and not used."""

    room: str
    epoch: str
    offset: int


class _Wire(msgspec.Struct):
    """The fields of a received message; unknown ones are skipped. Except for ``data``, a field
    that is nil has the wrong type."""

    topic: str | UnsetType = UNSET
    event: Field = "message"
    id: Field | UnsetType = UNSET
    ref: Field | UnsetType = UNSET
    namespace: Field | UnsetType = UNSET
    version: Field | UnsetType = UNSET
    data: msgspec.Raw = msgspec.Raw(_NULL)
    headers: dict[str, str] | UnsetType = UNSET
    ack: bool = False
    stream: _Position | UnsetType = UNSET


class _Loose(msgspec.Struct):
    """The two fields by which a client recognises the message that was wrong."""

    topic: msgspec.Raw = msgspec.Raw(_NULL)
    id: msgspec.Raw = msgspec.Raw(_NULL)


class MsgpackFormat:
    """Reads payload bytes that are MessagePack."""

    name = "msgpack"

    def __init__(self) -> None:
        self._decode = msgspec.msgpack.Decoder().decode
        self._decode_fields = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode

    def loads(self, data: bytes) -> Any:
        try:
            value = self._decode(data)
        except _UNREADABLE as error:
            raise InvalidEnvelope(f"data: {error}") from None
        _check(value)
        return value

    def check(self, data: bytes) -> None:
        # A value that is no JSON is found by decoding only.
        self.loads(data)

    def load(self, data: bytes, into: Any) -> Any:
        return load_as(into, data, self.loads)

    def fields(self, data: bytes) -> dict[str, Raw]:
        try:
            found = self._decode_fields(data)
        except _UNREADABLE:
            raise ValidationError({"_schema": ["must be an object"]}) from None
        return {name: Raw(bytes(value), self) for name, value in found.items()}


class MsgpackCodec:
    """Envelopes as MessagePack. Implements ``Codec`` and ``Transcoder``."""

    name = "msgpack"
    subprotocol = "eyewall.v1.msgpack"
    binary = True

    def __init__(self) -> None:
        self.format = MsgpackFormat()
        self._null = Raw(_NULL, self.format)
        self._json = JsonCodec()
        self._decode = msgspec.msgpack.Decoder(_Wire).decode
        self._decode_loose = msgspec.msgpack.Decoder(_Loose).decode
        self._decode_any = msgspec.msgpack.Decoder().decode
        self._skip = msgspec.msgpack.Decoder(msgspec.Raw).decode
        self._string = msgspec.msgpack.Decoder(str).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._from_json = msgspec.json.Decoder().decode

    # --- reading

    def decode(self, payload: bytes | str) -> Envelope:
        """Return the envelope in ``payload``. Raises ``InvalidJson`` (it is no MessagePack) or
        ``InvalidEnvelope``."""
        if isinstance(payload, str):
            raise InvalidJson("a text is no MessagePack")
        try:
            wire = self._decode(payload)
        except msgspec.ValidationError as error:
            raise self._invalid(payload, str(error)) from None
        except RecursionError:
            raise InvalidEnvelope(f"nested deeper than {MAX_DEPTH}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidJson(str(error)) from None
        # Few openers can't nest deeply: nearly every message needs no further check.
        if len(payload.translate(None, _NOT_OPENERS)) >= MAX_DEPTH:
            self._check_depth(payload)
        topic = wire.topic
        if topic is UNSET and wire.event == "ack":
            topic = ""  # an ack is identified by its ref
        elif topic is UNSET or not 0 < len(topic) <= MAX_TOPIC:
            raise self._invalid(payload, f"topic must be a string of 1 to {MAX_TOPIC} characters")
        if wire.headers and not headers_fit(wire.headers):
            raise self._invalid(payload, HEADERS_TOO_MUCH)
        if wire.ack and not wire.id:
            raise self._invalid(payload, "ack needs an id")
        data = bytes(wire.data)
        return Envelope(
            topic,
            wire.event,
            None,
            wire.id or None,
            wire.ref or None,
            wire.namespace or None,
            wire.version or None,
            wire.headers or None,
            wire.ack,
            None,
            self._null if data == _NULL else Raw(data, self.format),
        )

    def _check_depth(self, payload: bytes) -> None:
        """Raise for a message that nests too deeply or can't be decoded: a text that is no UTF-8
        in a skipped field must not hide the depth."""
        try:
            if _levels(self._decode_any(payload)) <= MAX_DEPTH:
                return
        except RecursionError:
            pass
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._invalid(payload, str(error)) from None
        raise self._invalid(payload, f"nested deeper than {MAX_DEPTH}")

    def _invalid(self, payload: bytes, text: str) -> InvalidEnvelope | InvalidJson:
        """Return the error with ``ref`` and ``topic`` of the message, as far as they can be
        read."""
        try:
            self._skip(payload)  # a syntax error may follow the first mistake
            loose = self._decode_loose(payload)
        except msgspec.ValidationError:
            return InvalidEnvelope(text)
        except RecursionError:
            return InvalidEnvelope(f"nested deeper than {MAX_DEPTH}")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return InvalidJson(str(error))
        topic = self._text(loose.topic)
        if topic is not None and not 0 < len(topic) <= MAX_TOPIC:
            topic = None
        ref = self._text(loose.id)
        if ref is not None and len(ref) > MAX_FIELD:
            ref = None
        return InvalidEnvelope(text, ref=ref, topic=topic)

    def _text(self, raw: msgspec.Raw) -> str | None:
        try:
            return self._string(raw)
        except _UNREADABLE:
            return None

    # --- writing

    def encode(self, envelope: Envelope) -> bytes:
        """Return the message as MessagePack. Raises ``Misuse`` for data that JSON can't
        represent, ``InvalidEnvelope`` for such a received payload."""
        raw = envelope.raw
        if raw is None or raw.format.name != self.name:
            return self.recode(self._json.encode(envelope))
        head = Envelope(
            envelope.topic,
            envelope.event,
            None,
            envelope.id,
            envelope.ref,
            envelope.namespace,
            envelope.version,
            envelope.headers,
            envelope.ack,
            envelope.stream,
        )
        fields = self._from_json(self._json.encode(head))
        if raw.data != _NULL:
            fields["data"] = msgspec.Raw(raw.data)
        return self._encode(fields)

    def recode(self, payload: bytes) -> bytes:
        """Return a JSON message as MessagePack."""
        try:
            return self._encode(self._from_json(payload))
        except (msgspec.MsgspecError, OverflowError, UnicodeError):
            return self._encode(_tolerant(payload))


def _check(value: Any) -> None:
    """Raise ``InvalidEnvelope`` if ``value`` contains anything that JSON can't represent.

    It goes level by level, so that the work for each value is done in C.
    """
    level = [value]
    while level:
        kinds = set(map(type, level))
        if kinds - _JSON_TYPES:
            raise InvalidEnvelope("data: JSON has no binary and no extensions: send them as text")
        if float in kinds and not all(map(isfinite, (v for v in level if type(v) is float))):
            raise InvalidEnvelope("data: JSON has no infinity and no NaN")
        inner: list[Any] = []
        if list in kinds:
            inner += chain.from_iterable(v for v in level if type(v) is list)
        if dict in kinds:
            maps = [v for v in level if type(v) is dict]
            if set(map(type, chain.from_iterable(maps))) - {str}:
                raise InvalidEnvelope("data: keys must be strings")
            inner += chain.from_iterable(map(dict.values, maps))
        level = inner


def _levels(value: Any) -> int:
    """Return how deep arrays and maps nest in ``value``, up to ``MAX_DEPTH + 1``."""
    level = [value]
    for depth in range(MAX_DEPTH + 2):
        containers = [v for v in level if type(v) in (dict, list)]
        if not containers:
            return depth
        level = list(chain.from_iterable(v.values() if type(v) is dict else v for v in containers))
    return MAX_DEPTH + 1


def _tolerant(payload: bytes) -> Any:
    """Return the value of JSON that msgspec can't read or MessagePack can't represent.

    Payloads are relayed without being decoded, so they may contain numbers that no type
    represents, and halves of surrogate pairs.
    """
    value = json.loads(payload.decode(errors="replace"), parse_int=_number, strict=False)
    clean = json.dumps(value, ensure_ascii=False).encode(errors="replace")
    return json.loads(clean, parse_int=_number)


def _number(digits: str) -> int | float:
    # More digits are out of range, and Python refuses to read the longest integers.
    if len(digits) <= len(str(_LEAST_INT)) and _LEAST_INT <= (whole := int(digits)) <= _MOST_INT:
        return whole
    return float(digits)
