"""The MessagePack codec against another reader of MessagePack, and against JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from typing import Any

import msgpack

from eyewall.adapters.codec.json import MAX_DEPTH, JsonCodec
from eyewall.adapters.codec.msgpack import MsgpackCodec
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import InvalidEnvelope, InvalidJson, Refused
from tests.fuzz.json_target import Kinds, check_fields, check_naming, fits

CODEC = MsgpackCodec()
JSON = JsonCodec()

GROWTH = 8
"""How many times longer a message may become: a control character is one octet here and
six in JSON, a float is nine here, up to 24 in JSON, and three there at the least."""

NO_OPENERS = bytes({*range(256)} - {*range(0x81, 0x90), *range(0x91, 0xA0), *range(0xDC, 0xE0)})
"""All but what arrays and maps begin with."""

TIMESTAMP = 0xFF
"""The type of the one extension that readers look into."""


@dataclass(frozen=True)
class Extension:
    """What only those who agreed on it understand."""

    code: int
    data: bytes


class Pairs(list[tuple[Any, Any]]):
    """A map with every key, whatever it is."""


def check(data: bytes) -> None:
    truth, kinds = expected(data)
    try:
        found = CODEC.decode(data)
    except Refused as refused:
        assert type(refused) in kinds, f"{refused!r} instead of {kinds or truth}"
        check_naming(refused, fields_of(truth) if isinstance(truth, Pairs) else None)
        return
    assert not kinds or None in kinds, f"{found} instead of {kinds}"
    if truth is None:
        return
    fields = fields_of(truth)
    check_fields(found, fields)
    check_data(found, fields.get("data"))
    if not found.topic:  # an ack in its short form is for the server, and goes nowhere
        return
    check_within(found, len(data))
    check_across(found, len(data), fields.get("data"))


def read(data: bytes) -> Any:
    """Read MessagePack; an octet that is no UTF-8 is half a surrogate pair in the text."""
    return msgpack.unpackb(
        data,
        strict_map_key=False,
        unicode_errors="surrogateescape",
        object_pairs_hook=Pairs,
        ext_hook=Extension,
    )


def expected(data: bytes) -> tuple[Any, Kinds]:
    """Return the value, and how it may be refused (None: or accepted); an empty set
    for what must be accepted."""
    try:
        value = read(data)
    except (ValueError, RecursionError):
        # What is nested too deep for one reader is so for the other; and an extension may
        # be wrong within, which matters to one of them.
        within = {None} if TIMESTAMP in data else set()
        return None, {InvalidJson, InvalidEnvelope, *within}
    if levels(value, in_keys=True) > MAX_DEPTH:
        if levels(value, in_keys=False) > MAX_DEPTH:
            return None, {InvalidEnvelope, InvalidJson}
        return None, {InvalidEnvelope, InvalidJson, None}  # no reader of JSON gets such a key
    if not isinstance(value, Pairs):
        return value, {InvalidEnvelope} if is_json(value) else {InvalidEnvelope, InvalidJson}
    kinds: Kinds = set() if fits(fields_of(value)) else {InvalidEnvelope}
    if not is_json(Pairs(pair for pair in value if pair[0] != "data")):
        kinds |= {InvalidEnvelope, InvalidJson, None}
    elif not kinds and ("stream" in fields_of(value) or twice(value)):
        kinds = {InvalidEnvelope, None}
    if kinds and not is_json(value):
        kinds |= {InvalidJson}
    if not kinds and not is_json(value) and len(data.translate(None, NO_OPENERS)) >= MAX_DEPTH:
        # It may be deep, so it is looked into at once; else when somebody reads it.
        kinds = {InvalidEnvelope, None}
    return value, kinds


def fields_of(value: Any) -> dict[str, Any]:
    return {key: plain(one) for key, one in value if isinstance(key, str)}


def twice(value: Pairs) -> bool:
    """Whether a field or header comes twice: the first may be refused for what it is."""
    maps = [value, *(one for key, one in value if key == "headers")]
    return any(len({repr(key) for key, _ in pairs}) < len(pairs) for pairs in maps)


def plain(value: Any) -> Any:
    """Turn maps into dicts, as far as their keys allow."""
    if isinstance(value, Pairs):
        if not all(isinstance(key, str) for key, _ in value):
            return value
        return {key: plain(one) for key, one in value}
    return [plain(one) for one in value] if isinstance(value, list) else value


def is_json(value: Any) -> bool:
    """Whether JSON can hold it, and it is what it says it is."""
    if isinstance(value, Pairs):
        return all(isinstance(key, str) and is_json(key) and is_json(one) for key, one in value)
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, str):
        return value.isprintable() or not any("\ud800" <= c < "\ue000" for c in value)
    if isinstance(value, float):
        return isfinite(value)
    return value is None or isinstance(value, bool | int)


def levels(value: Any, *, in_keys: bool) -> int:
    """Return how deep arrays and maps nest, in keys too or not."""
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, list)]:
        depth += 1
        inner = [one for array in level if not isinstance(array, Pairs) for one in array]
        for pairs in level:
            if isinstance(pairs, Pairs):
                inner += [one for _, one in pairs]
                inner += [key for key, _ in pairs if in_keys]
        level = inner
    return depth


def check_data(found: Envelope[Any], truth: Any) -> None:
    assert found.raw is not None
    assert same(plain(read(found.raw.data)), truth), "another payload"
    try:
        data = found.data
    except InvalidEnvelope:
        assert not is_json(truth_of(found)), "a payload that JSON can hold was refused"
        return
    assert is_json(truth_of(found)), "a payload that JSON can't hold was read"
    assert data == truth


def truth_of(found: Envelope[Any]) -> Any:
    assert found.raw is not None
    return read(found.raw.data)


def same(one: Any, other: Any) -> bool:
    """Equal, and a NaN equals another."""
    return repr(one) == repr(other)


def check_within(found: Envelope[Any], size: int) -> None:
    """Within the codec a payload is relayed byte for byte."""
    payload = CODEC.encode(found)
    assert len(payload) <= size + 64, f"{size} bytes became {len(payload)}"
    again = CODEC.decode(payload)
    assert again._key() == found._key(), "other fields when read again"
    assert again.raw == found.raw, "another payload when read again"


def check_across(found: Envelope[Any], size: int, truth: Any) -> None:
    """It says the same in JSON, and in MessagePack again; or is refused as when read."""
    try:
        payload = JSON.encode(found)
    except InvalidEnvelope:
        assert not is_json(truth_of(found)), "a payload that JSON can hold was refused"
        return
    assert is_json(truth_of(found)), "a payload that JSON can't hold went into it"
    assert len(payload) <= size * GROWTH + 64, f"{size} bytes became {len(payload)}"
    assert json.loads(payload).get("data") == truth, "another payload in JSON"
    there = JSON.decode(payload)
    assert there._key() == found._key(), "other fields in JSON"
    back = CODEC.decode(CODEC.recode(payload))
    assert back._key() == found._key(), "other fields there and back"
    assert back.data == truth, "another payload there and back"
