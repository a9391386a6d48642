"""Envelopes of any make, through both codecs and between nodes, and back.

The first byte chooses what the rest is: the parts of an envelope that the server makes,
a client's message in one of the codecs, or a packet from the bus.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from math import inf
from typing import Any

import msgspec

from eyewall.adapters.codec.json import JsonCodec
from eyewall.adapters.codec.msgpack import MsgpackCodec
from eyewall.application.cluster.packet import BadPacket, unpack
from eyewall.domain.envelope import MAX_TOPIC, Envelope, Message, Raw, StreamPosition
from eyewall.domain.errors import InvalidEnvelope, Misuse, Refused, ValidationError
from eyewall.domain.identity import RoomId
from eyewall.domain.topic import Pattern
from tests.fuzz.values import Dice, is_json, received

JSON = JsonCodec()
MSGPACK = MsgpackCodec()
FIELDS = ("id", "ref", "namespace", "version")
MAX_PAYLOAD = 300


@dataclasses.dataclass
class Order:
    """What a handler may have declared."""

    name: str
    count: int = 1
    tags: list[str] = dataclasses.field(default_factory=list)
    parent: Order | None = None


TYPES: tuple[Any, ...] = (
    Order,
    msgspec.defstruct("Loose", [("a", Any, None)]),
    dict[str, int],
    str,
)


def check(data: bytes) -> None:
    if not data:
        return
    KINDS[data[0] % len(KINDS)](data[1:])


# --- made here


def check_made(data: bytes) -> None:
    dice = Dice(data)
    topic = dice.text(300)
    fields = {name: dice.text(30) or None for name in FIELDS if dice.flag()}
    headers = {dice.text(8): dice.text(8) for _ in range(dice.number(4))}
    stream = StreamPosition(RoomId(dice.text(9)), dice.text(9), dice.number(255))
    stream_or_none = stream if dice.flag() else None
    event = dice.text(20) or "message"
    value = dice.value()
    check_message(topic, event, value, headers)
    check_pattern(topic, event)
    made = Envelope(topic, event, value, headers=headers, stream=stream_or_none, **fields)
    repr(made)
    sound = all(map(is_json, (topic, event, headers, value, *fields.values(), stream.epoch)))
    sound = sound and is_json(stream.room)
    for codec in (JSON, MSGPACK):
        try:
            payload = codec.encode(made)
        except Misuse:
            assert not sound, f"{codec.name} can't write what JSON can hold"
            continue
        try:
            again = codec.decode(payload)
        except InvalidEnvelope:
            assert not 0 < len(topic) <= MAX_TOPIC, f"{codec.name} can't read what it wrote"
            continue
        check_same(made, again)
        assert again.with_data(1).data == 1


def check_message(topic: str, event: str, value: Any, headers: dict[str, str]) -> None:
    right = 0 < len(topic) <= MAX_TOPIC
    try:
        message = Message(topic, event, value, headers=headers)
    except ValueError:
        assert not right
        return
    assert right
    assert (message.topic, message.event, message.data) == (topic, event, value)


def check_pattern(text: str, topic: str) -> None:
    try:
        pattern = Pattern(text)
    except ValueError:
        return
    assert text.count("*") <= 1
    server = topic.startswith("system:")
    if "*" not in text:
        assert pattern.matches(topic) == (text == topic)
    else:
        assert pattern.matches(topic) == (topic.startswith(text[:-1]) and not server)
        assert pattern.matches(text[:-1] + "x")


def check_same(made: Envelope[Any], again: Envelope[Any]) -> None:
    for name in ("topic", "event", *FIELDS):
        assert getattr(made, name) == getattr(again, name), name
    assert dict(made.headers) == dict(again.headers)
    assert made.ack == again.ack
    value = decoded(again)
    if value is UNREADABLE:  # no float is near enough: in MessagePack that is an infinity
        assert again.raw is not None
        assert again.raw.format.name == MSGPACK.name
        assert not is_json(received(made.data), largest=sys.float_info.max)
    else:
        check_close(value, received(made.data))


# --- a client's


def check_json(data: bytes) -> None:
    check_client(JSON, data)


def check_msgpack(data: bytes) -> None:
    check_client(MSGPACK, data)


def check_client(codec: JsonCodec | MsgpackCodec, data: bytes) -> None:
    """A message goes on in both codecs, and says the same; only refusals come out."""
    try:
        found = codec.decode(data)
    except Refused:
        return
    assert found.raw is not None
    assert repr(found)
    value = decoded(found)
    for into in TYPES:
        check_load(found.raw, into)
    check_split(found.raw, value)
    if not found.topic:  # an ack in its short form is for the server, and goes nowhere
        return
    try:
        canonical = JSON.encode(found)
    except InvalidEnvelope:
        assert value is UNREADABLE
        return
    through_json = JSON.decode(canonical)
    through_both = MSGPACK.decode(MSGPACK.recode(canonical))
    assert through_json._key() == found._key() == through_both._key()
    assert MSGPACK.decode(MSGPACK.encode(through_json)).raw == through_both.raw
    if value is not UNREADABLE:
        assert through_json.data == value
        check_close(decoded(through_both), value)


UNREADABLE = object()


def decoded(found: Envelope[Any]) -> Any:
    try:
        return found.data
    except InvalidEnvelope:
        return UNREADABLE


def check_load(raw: Raw, into: Any) -> None:
    try:
        raw.load(into)
    except (ValidationError, InvalidEnvelope) as refused:
        if isinstance(refused, ValidationError):
            assert refused.details()["fields"]


def check_split(raw: Raw, value: Any) -> None:
    """An object's fields, one by one, are what they are together."""
    try:
        fields = raw.fields()
    except ValidationError:
        assert value is UNREADABLE or not isinstance(value, dict)
        return
    if value is not UNREADABLE:
        assert {name: field.decode() for name, field in fields.items()} == value


def check_close(found: Any, value: Any) -> None:
    """A number that MessagePack can't hold is the nearest that it can."""
    if isinstance(value, dict):
        assert list(found) == list(value)
        for key in value:
            check_close(found[key], value[key])
    elif isinstance(value, list):
        assert len(found) == len(value)
        for one, other in zip(found, value, strict=True):
            check_close(one, other)
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        assert found in (value, nearest(value))
    else:
        assert type(found) is type(value)
        assert found == value


def nearest(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf


# --- another node's


def check_packet(data: bytes) -> None:
    try:
        packet = unpack(data, max_payload=MAX_PAYLOAD)
    except BadPacket:
        return
    assert len(packet.payload) <= MAX_PAYLOAD
    assert unpack(packet.pack(), max_payload=MAX_PAYLOAD) == packet


KINDS: tuple[Callable[[bytes], None], ...] = (check_made, check_json, check_msgpack, check_packet)
