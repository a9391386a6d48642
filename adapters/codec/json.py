"""The JSON codec, on msgspec. JSON is the canonical form of every message.

A payload stays raw bytes from decode to encode. It is relayed without being decoded, so numbers
keep every digit and keys their order (protocol.md, "Envelope").
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import UNSET, UnsetType

from eyewall.adapters.codec.payload import load_as
from eyewall.domain.envelope import (
    HEADERS_TOO_MUCH,
    MAX_FIELD,
    MAX_TOPIC,
    Envelope,
    Raw,
    headers_fit,
)
from eyewall.domain.errors import InvalidEnvelope, InvalidJson, Misuse, ValidationError

MAX_DEPTH = 64
"""Depth to which arrays and objects may nest, the envelope included: deeper than payloads that
people write, and far below the recursion limits of parsers."""

_NULL = b"null"
_ACK = b'{"ref":%b,"topic":%b,"event":"ack","data":{"message_id":%b,"status":"ok"}}'
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = [(c in b"[{") - (c in b"]}") for c in range(256)]
"""The change of the depth by each byte."""


_SMALL = 1024
"""Bytes up to which decoding a payload is as fast as scanning it."""
_SHAPE = bytes(
    ord("0") if c in b"0123456789+" else ord("e") if c in b"eE" else ord(" ") for c in range(256)
)
"""The role of each byte in a number that may be too large: a digit (or a plus), an exponent."""
_FEW_QUOTES = 64
_EXPONENT = b"0e0"
_LONG = b"0" * 300
"""Digits below which a number without an exponent stays below 1.8e308. Integers have a limit of
4,300 digits too (``sys.get_int_max_str_digits``)."""


Field = Annotated[str, msgspec.Meta(max_length=MAX_FIELD)]


class _Position(msgspec.Struct):
    """Only the server assigns positions. That of a client is checked and not used."""

    room: str
    epoch: str
    offset: int


class _Wire(msgspec.Struct):
    """The fields of a received message; unknown ones are skipped. Except for ``data``, a field
    that is null has the wrong type."""

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


def _relayed(raw: Raw) -> msgspec.Raw | None:
    """Return a received payload as JSON; None for null. Raises ``InvalidEnvelope`` if it was
    received in another format and JSON can't represent it."""
    data = raw.data if raw.format.name == JsonFormat.name else msgspec.json.encode(raw.decode())
    return msgspec.Raw(data) if data != _NULL else None


class JsonFormat:
    """Reads payload bytes that are JSON."""

    name = "json"

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder().decode
        self._decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def loads(self, data: bytes) -> Any:
        try:
            return self._decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidEnvelope(f"data: {error}") from None

    def check(self, data: bytes) -> None:
        # In valid JSON, only a number can be more than Python represents.
        if len(data) <= _SMALL or _may_be_too_much(data):
            self.loads(data)

    def load(self, data: bytes, into: Any) -> Any:
        return load_as(into, data, self.loads)

    def fields(self, data: bytes) -> dict[str, Raw]:
        try:
            found = self._decode_fields(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise ValidationError({"_schema": ["must be an object"]}) from None
        return {name: Raw(bytes(value), self) for name, value in found.items()}


class JsonCodec:
    """Envelopes as JSON text."""

    name = "json"
    subprotocol = "eyewall.v1.json"
    binary = False

    def __init__(self) -> None:
        self.format = JsonFormat()
        self._null = Raw(_NULL, self.format)
        self._decode = msgspec.json.Decoder(_Wire).decode
        self._decode_loose = msgspec.json.Decoder(_Loose).decode
        self._check = msgspec.json.Decoder(msgspec.Raw).decode
        self._string = msgspec.json.Decoder(str).decode
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode

    def decode(self, payload: bytes | str) -> Envelope:
        """Return the envelope in ``payload``. Raises ``InvalidJson`` or ``InvalidEnvelope``."""
        try:
            if isinstance(payload, str):
                payload = payload.encode()
            elif not payload.isascii():
                payload.decode()  # the parser does not check the text that it skips
            wire = self._decode(payload)
        except msgspec.ValidationError as error:
            assert isinstance(payload, bytes)
            raise self._invalid(payload, str(error)) from None
        except RecursionError:
            raise InvalidEnvelope(f"nested deeper than {MAX_DEPTH}") from None
        except (msgspec.DecodeError, UnicodeError) as error:
            raise _unreadable(payload, error) from None
        if _may_be_deep(payload) and _deep(payload):
            raise self._invalid(payload, f"nested deeper than {MAX_DEPTH}")
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

    def encode(self, envelope: Envelope) -> bytes:
        """Return the message as JSON. Raises ``Misuse`` for data that JSON can't represent."""
        # Hot path: a line for each field, and no loop.
        fields: dict[str, Any] = {}
        if envelope.id is not None:
            fields["id"] = envelope.id
        if envelope.ref is not None:
            fields["ref"] = envelope.ref
        fields["topic"] = envelope.topic
        if envelope.event != "message":
            fields["event"] = envelope.event
        if envelope.namespace is not None:
            fields["namespace"] = envelope.namespace
        if envelope.version is not None:
            fields["version"] = envelope.version
        data = envelope.data if envelope.raw is None else envelope.raw
        if isinstance(data, Raw):
            data = _relayed(data)
        if data is not None:
            fields["data"] = data
        if envelope.headers:
            fields["headers"] = dict(envelope.headers)
        if envelope.ack:
            fields["ack"] = True
        if envelope.stream is not None:
            at = envelope.stream
            fields["stream"] = {"room": at.room, "epoch": at.epoch, "offset": at.offset}
        try:
            return self._encode(fields)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise Misuse(f"the data of {envelope.topic} can't be sent: {error}") from error

    def ack(self, request_id: str, topic: str) -> bytes:
        """Return the ack of a request whose handler returned nothing."""
        ref = self._encode(request_id)
        return _ACK % (ref, self._encode(topic), ref)

    def _invalid(self, payload: bytes, text: str) -> InvalidEnvelope | InvalidJson:
        """Return the error with ``ref`` and ``topic`` of the message, as far as they can be
        read."""
        try:
            self._check(payload)  # a syntax error may follow the first mistake
            loose = self._decode_loose(payload)
        except msgspec.ValidationError:
            return InvalidEnvelope(text)
        except RecursionError:
            return InvalidEnvelope(f"nested deeper than {MAX_DEPTH}")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _unreadable(payload, error)
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
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None


def _plain(data: Any) -> Any:
    """Convert ``Raw`` payloads and read-only mappings for the encoder, at any depth."""
    if isinstance(data, Raw):
        return _relayed(data)
    if isinstance(data, Mapping):
        return dict(data)
    raise TypeError(f"{type(data).__name__} is not JSON")


def _unreadable(payload: bytes | str, error: Exception) -> InvalidJson | InvalidEnvelope:
    """Return ``InvalidJson``, or ``InvalidEnvelope`` for a text cut within a surrogate pair.

    JSON allows such a text (RFC 8259, 8.2) and browsers write it; Python can't represent it.
    """
    whole = payload if isinstance(payload, str) else payload.decode(errors="replace")
    if "\\u" not in whole or isinstance(error, UnicodeError):
        return InvalidJson(str(error))
    try:
        value = _loads(whole)
    except (ValueError, RecursionError):
        return InvalidJson(str(error))
    found = value if isinstance(value, dict) else {}
    ref, topic = (
        text if isinstance(text := found.get(name), str) and _is_unicode(text) else None
        for name in ("id", "topic")
    )
    fits = topic is not None and 0 < len(topic) <= MAX_TOPIC
    ref = ref if ref is None or len(ref) <= MAX_FIELD else None
    return InvalidEnvelope(
        "a text ends within a surrogate pair", ref=ref, topic=topic if fits else None
    )


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# Python's own reads NaN, which is no JSON, and refuses the longest integers, which are JSON.
_loads = json.JSONDecoder(parse_int=float, parse_constant=_no_json).decode


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _may_be_too_much(payload: bytes) -> bool:
    """Whether the JSON may contain a number that Python can't represent. Takes a few passes over
    the bytes; texts are cut out first if there are few."""
    if b"\\" not in payload:
        pieces = payload.split(b'"', _FEW_QUOTES)
        if len(pieces) <= _FEW_QUOTES:
            payload = b'"'.join(pieces[::2])  # without the texts
    shape = payload.translate(_SHAPE)
    return _EXPONENT in shape or _LONG in shape


def _may_be_deep(payload: bytes) -> bool:
    """Whether the JSON may nest too deeply. False, without a scan, for nearly every message: for
    short ones, and for those with few opening brackets."""
    if len(payload) <= 2 * MAX_DEPTH:
        return False
    return payload.count(b"[") + payload.count(b"{") > MAX_DEPTH


def _deep(payload: bytes) -> bool:
    """Whether brackets nest deeper than ``MAX_DEPTH``. Takes one step for each bracket."""
    brackets = _STRING.sub(b"", payload).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets))) > MAX_DEPTH
