"""Payloads as the types that handlers declare."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypedDict

import marshmallow
import msgspec
import pytest
from marshmallow import fields

from eyewall.adapters.codec.json import JsonCodec
from eyewall.domain.errors import InvalidEnvelope, ValidationError

CODEC = JsonCodec()


@dataclass
class To:
    name: str


@dataclass
class Said:
    text: str
    to: To | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self):
        if not self.text:
            raise ValueError("text must not be empty")


class Point(msgspec.Struct, forbid_unknown_fields=True):
    x: int
    y: int = 0


class Move(TypedDict):
    kind: Literal["move"]
    points: list[Point]


class ChatSchema(marshmallow.Schema):
    text = fields.Str(required=True)
    at = fields.AwareDateTime()


def load(data, into):
    return CODEC.decode(b'{"topic":"t","data":' + data + b"}").load(into)


def wrong(data, into):
    with pytest.raises(ValidationError) as caught:
        load(data, into)
    return caught.value.fields


def test_a_dataclass():
    said = load(b'{"text":"hi","to":{"name":"ada"},"more":1}', Said)

    assert said == Said("hi", To("ada"))


def test_a_struct():
    assert load(b'{"x":1}', Point) == Point(1, 0)


def test_a_typed_dict():
    assert load(b'{"kind":"move","points":[{"x":1}]}', Move) == {
        "kind": "move",
        "points": [Point(1, 0)],
    }


@pytest.mark.parametrize(
    ("into", "data", "value"),
    [
        (int, b"5", 5),
        (list[int], b"[1,2]", [1, 2]),
        (dict[int, str], b'{"1":"a"}', {1: "a"}),
        (int | None, b"null", None),
        (datetime, b'"2026-01-01T00:00:00Z"', datetime(2026, 1, 1, tzinfo=UTC)),
        (bytes, b'"aGk="', b"hi"),
    ],
    ids=str,
)
def test_any_type_that_json_can_stand_for(into, data, value):
    assert load(data, into) == value


def test_a_marshmallow_schema_by_class_and_by_instance():
    assert load(b'{"text":"hi"}', ChatSchema) == {"text": "hi"}
    assert load(b'{"text":"hi","more":1}', ChatSchema(unknown="exclude")) == {"text": "hi"}


@pytest.mark.parametrize(
    ("data", "into", "at"),
    [
        (b"{}", Said, "text"),
        (b'{"text":5}', Said, "text"),
        (b'{"text":"hi","to":{"name":5}}', Said, "to.name"),
        (b'{"text":"hi","to":{}}', Said, "to.name"),
        (b'{"text":"hi","tags":["a",5]}', Said, "tags[1]"),
        (b'{"text":""}', Said, "_schema"),
        (b'{"x":1,"z":2}', Point, "_schema"),
        (b'{"kind":"jump","points":[]}', Move, "kind"),
        (b"[]", Said, "_schema"),
        (b"null", Said, "_schema"),
        (b'"5"', int, "_schema"),
        (b"{}", ChatSchema, "text"),
        (b'{"text":5}', ChatSchema, "text"),
        (b'{"text":"hi","x":1}', ChatSchema, "x"),
        (b"[]", ChatSchema, "_schema"),
        (b"null", ChatSchema, "_schema"),
    ],
)
def test_what_does_not_fit_is_named_by_its_field(data, into, at):
    found = wrong(data, into)

    assert list(found) in ([at], [at.replace("[1]", "[...]")])
    assert all(isinstance(text, str) for texts in found.values() for text in texts)


def test_all_that_is_wrong_is_told_at_once_by_a_schema():
    assert set(wrong(b'{"at":"never"}', ChatSchema)) == {"text", "at"}


def test_what_can_not_be_decoded_at_all_is_no_matter_of_a_schema():
    with pytest.raises(InvalidEnvelope):
        load(b'{"text":1e999}', Said)
