"""Payloads checked by topic against marshmallow schemas."""

from __future__ import annotations

import json

import pytest
from marshmallow import Schema, fields, validates_schema
from marshmallow import ValidationError as Mistake

from eyewall.adapters.validation.marshmallow import MarshmallowValidator
from eyewall.domain.errors import ValidationError


class Author(Schema):
    name = fields.Str(required=True)


class Chat(Schema):
    text = fields.Str(required=True)
    author = fields.Nested(Author)
    numbers = fields.List(fields.Int())


class Lobby(Schema):
    shout = fields.Bool(required=True)


class Range(Schema):
    low = fields.Int()
    high = fields.Int()

    @validates_schema
    def in_order(self, data, **kwargs):
        if data["low"] > data["high"]:
            raise Mistake("low is above high")


def fields_of(validator: MarshmallowValidator, topic: str, data) -> dict:
    with pytest.raises(ValidationError) as refused:
        validator.validate(topic, "message", data)
    return refused.value.fields


@pytest.mark.parametrize("schema", [Chat, Chat()])
def test_what_fits_passes_by_class_or_instance(schema):
    MarshmallowValidator({"chat:*": schema}).validate("chat:a", "message", {"text": "hello"})


@pytest.mark.parametrize("schema", [Chat, Chat()])
def test_what_does_not_fit_is_told_by_field(schema):
    told = fields_of(MarshmallowValidator({"chat:*": schema}), "chat:a", {"text": 1, "x": 2})

    assert told == {"text": ["Not a valid string."], "x": ["Unknown field."]}


def test_an_exact_topic_beats_a_wildcard():
    validator = MarshmallowValidator({"chat:*": Chat, "chat:lobby": Lobby})

    validator.validate("chat:lobby", "message", {"shout": True})
    assert set(fields_of(validator, "chat:lobby", {"text": "x"})) == {"shout", "text"}


def test_the_longest_prefix_wins():
    validator = MarshmallowValidator({"*": Chat, "chat:*": Chat, "chat:room:*": Lobby})

    validator.validate("chat:room:a", "message", {"shout": True})


def test_a_topic_without_a_schema_passes():
    MarshmallowValidator({"chat:*": Chat}).validate("shop:buy", "message", object())


def test_nested_mistakes_keep_their_place_and_fit_into_json():
    """marshmallow counts list items with whole numbers; JSON's keys are texts."""
    data = {"text": "x", "author": {}, "numbers": [1, "no"]}

    told = fields_of(MarshmallowValidator({"*": Chat}), "a", data)

    assert told["author"] == {"name": ["Missing data for required field."]}
    assert told["numbers"] == {"1": ["Not a valid integer."]}
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("data", [None, "text", 7, [], [{"text": "x"}]])
def test_a_payload_that_is_no_object_is_told_as_a_whole(data):
    told = fields_of(MarshmallowValidator({"*": Chat}), "a", data)

    assert told == {"_schema": ["Invalid input type."]}


def test_a_mistake_of_several_fields_together_is_told_as_a_whole():
    told = fields_of(MarshmallowValidator({"*": Range}), "a", {"low": 2, "high": 1})

    assert told == {"_schema": ["low is above high"]}


@pytest.mark.parametrize("schema", [None, object(), dict, {"text": fields.Str()}, fields.Str()])
def test_what_is_no_schema_is_told_where_it_is_built(schema):
    with pytest.raises(ValueError, match="'chat' needs a marshmallow schema"):
        MarshmallowValidator({"chat": schema})


@pytest.mark.parametrize("pattern", ["", "chat*", "a:*:b", "system:x"])
def test_a_bad_pattern_is_told_where_it_is_built(pattern):
    with pytest.raises(ValueError):  # noqa: PT011  (the domain's own text)
        MarshmallowValidator({pattern: Chat})
