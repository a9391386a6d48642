"""The JSON codec against the standard library's: it takes what is right, and only that."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from eyewall.adapters.codec.json import MAX_DEPTH, JsonCodec
from eyewall.domain.envelope import MAX_TOPIC, Envelope
from eyewall.domain.errors import InvalidEnvelope, InvalidJson, Refused

CODEC = JsonCodec()
TEXTS = ("topic", "event", "id", "ref", "namespace", "version")

Kinds = set[type[Refused] | None]
"""How something may be refused; None in it: or not at all."""


class Number(str):
    """A number with all its digits."""

    __slots__ = ()


class Object(dict[str, Any]):
    """An object that knows whether it has a name twice: the last counts."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = len(self) < len(pairs)


def check(data: bytes) -> None:
    truth, kinds = expected(data)
    try:
        found = CODEC.decode(data)
    except Refused as refused:
        assert type(refused) in kinds, f"{refused!r} instead of {kinds or truth}"
        check_naming(refused, truth)
        check_as_text(data, None, kinds)
        return
    assert not kinds or None in kinds, f"{found} instead of {kinds}"
    assert isinstance(truth, dict)
    check_fields(found, truth)
    check_data(found, truth.get("data"))
    check_relayed(found, len(data))
    check_as_text(data, found, kinds)


def expected(data: bytes) -> tuple[Any, Kinds]:
    """Return the value, and how it may be refused (None: or accepted); an empty set
    for what must be accepted."""
    try:
        value = read(data)
    except RecursionError:
        return None, {InvalidJson, InvalidEnvelope}
    except ValueError:
        return None, too_deep_to_tell(data)
    if levels(value) > MAX_DEPTH or not isinstance(value, Object):
        return value, {InvalidEnvelope}
    kinds: Kinds = set() if fits(value) else {InvalidEnvelope}
    if not kinds and halves(value):
        # Python can't hold such a text; whether one that nobody reads matters is left open.
        kinds = {InvalidEnvelope, None}
    if not kinds and ("stream" in value or twice(value)):
        # The server's own field: a client has no use for an offset that is no integer.
        # And what comes twice may be refused for what the first was.
        kinds = {InvalidEnvelope, None}
    return value, kinds


def read(data: bytes) -> Any:
    """Read JSON as RFC 8259 has it; raises ``ValueError``."""
    return json.loads(
        data.decode(),
        object_pairs_hook=Object,
        parse_int=Number,
        parse_float=Number,
        parse_constant=refuse_constant,
    )


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def too_deep_to_tell(data: bytes) -> Kinds:
    """What is no JSON may nest beyond any parser before that shows."""
    deep = data.count(b"[") + data.count(b"{") > MAX_DEPTH
    return {InvalidJson, InvalidEnvelope} if deep else {InvalidJson}


def fits(value: dict[str, Any]) -> bool:
    """protocol.md, "Envelope"."""
    for name in TEXTS:
        if name in value and not is_text(value[name]):
            return False
    headers = value.get("headers", {})
    if not isinstance(headers, dict) or not all(map(is_text, headers.values())):
        return False
    if not isinstance(value.get("ack", False), bool):
        return False
    if value.get("ack") and not value.get("id"):
        return False
    if not isinstance(value.get("stream", {}), dict):
        return False
    if "topic" not in value:
        return value.get("event") == "ack"
    # An ack's topic is looked at as any other if it is there.
    return 0 < len(value["topic"]) <= MAX_TOPIC


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Number)


def halves(value: Any) -> bool:
    """Whether there is half a surrogate pair in it, keys included."""
    return any(0xD800 <= ord(c) < 0xE000 for c in json.dumps(value, ensure_ascii=False))


def twice(value: Any) -> bool:
    """Whether any object in it has a name twice."""
    if isinstance(value, Object):
        return value.twice or any(map(twice, value.values()))
    return isinstance(value, list) and any(map(twice, value))


def levels(value: Any) -> int:
    deepest, stack = 0, [(value, 1)]
    while stack:
        inner, level = stack.pop()
        if isinstance(inner, dict | list):
            deepest = max(deepest, level)
            values = inner.values() if isinstance(inner, dict) else inner
            stack.extend((one, level + 1) for one in values)
    return deepest


def check_fields(found: Envelope[Any], truth: dict[str, Any]) -> None:
    assert found.topic == truth.get("topic", "")
    assert found.event == truth.get("event", "message")
    for name in ("id", "ref", "namespace", "version"):
        assert getattr(found, name) == (truth.get(name) or None), name
    assert dict(found.headers) == truth.get("headers", {})
    assert found.ack is truth.get("ack", False)
    assert found.stream is None, "a client placed a message"


def check_data(found: Envelope[Any], truth: Any) -> None:
    assert found.raw is not None
    assert read(found.raw.data) == truth, "another payload"
    try:
        data = found.data
    except InvalidEnvelope:
        assert halves(truth) or beyond(truth), "a payload that Python can hold was refused"
        return
    plain = json.loads(found.raw.data)
    assert data == plain or beyond(truth), "the payload was read as something else"


def beyond(value: Any) -> bool:
    """Whether there is a number in it that may be refused, or read as one close to it."""
    if isinstance(value, dict):
        return any(map(beyond, value.values()))
    if isinstance(value, list):
        return any(map(beyond, value))
    if not isinstance(value, Number):
        return False
    return len(value) > 4000 or abs(float(value)) == float("inf")


def check_relayed(found: Envelope[Any], size: int) -> None:
    """What goes out is JSON, says the same, and is hardly longer than what came in."""
    if not found.topic:  # an ack in its short form is for the server, and goes nowhere
        return
    payload = CODEC.encode(found)
    assert len(payload) <= size + 64, f"{size} bytes became {len(payload)}"
    again = CODEC.decode(payload)
    assert again._key() == found._key(), "other fields when read again"
    assert again.raw == found.raw, "another payload when read again"
    assert CODEC.encode(again) == payload
    assert fits(read(payload))


def check_naming(refused: Refused, truth: Any) -> None:
    """A refusal names the message by what really stands in it."""
    for name, shown in (("id", "ref"), ("topic", "topic")):
        text = getattr(refused, shown, None)
        assert text is None or truth is None or text == truth.get(name), shown


def check_as_text(data: bytes, found: Envelope[Any] | None, kinds: Kinds) -> None:
    """A text says the same as its bytes."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        again = CODEC.decode(text)
    except Refused as refused:
        assert found is None, "refused as a text only"
        assert type(refused) in kinds, f"{refused!r} instead of {kinds}"
        return
    assert found is not None, "accepted as a text only"
    assert again._key() == found._key()
    assert again.raw == found.raw
