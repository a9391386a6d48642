"""The one shape of a message."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain.envelope import (
    MAX_FIELD,
    MAX_HEADER_CHARACTERS,
    MAX_HEADERS,
    Envelope,
    Message,
    Priority,
    Raw,
    StreamPosition,
)
from eyewall.domain.errors import InvalidEnvelope, ValidationError

FIELDS = ["id", "event", "namespace", "version"]

relaxed = settings(deadline=None)


class Words:
    """A format whose payloads are words; it remembers how often it was asked."""

    def __init__(self, name="words"):
        self.name = name
        self.decoded = 0

    def loads(self, data):
        self.decoded += 1
        if data == b"unspeakable":
            raise InvalidEnvelope("that can't be said")
        return data.decode().split()

    def fields(self, data):
        pairs = (word.split(b"=") for word in data.split())
        return {key.decode(): Raw(value, self) for key, value in pairs}

    def load(self, data, into):
        try:
            return into(data.decode())
        except ValueError:
            raise ValidationError({"data": ["not a number"]}) from None


def raw(data=b"hello world", format=None):
    return Raw(data, format or Words())


# --- raw payloads


def test_a_raw_payload_is_decoded_by_its_format():
    assert raw().decode() == ["hello", "world"]


def test_a_raw_payload_can_be_loaded_as_a_type():
    assert raw(b"12").load(int) == 12

    with pytest.raises(ValidationError):
        raw(b"twelve").load(int)


def test_a_raw_payload_can_be_split_without_decoding_its_parts():
    words = Words()

    fields = raw(b"room=lab data=hello", words).fields()

    assert fields == {"room": Raw(b"lab", words), "data": Raw(b"hello", words)}
    assert words.decoded == 0


def test_raw_payloads_are_equal_by_bytes_and_format():
    assert raw(b"a") == raw(b"a")
    assert hash(raw(b"a")) == hash(raw(b"a"))
    assert raw(b"a") != raw(b"b")
    assert raw(b"a") != raw(b"a", Words("other"))
    assert raw(b"a") != b"a"


def test_a_long_raw_payload_is_shown_cut_short():
    assert repr(raw(b"short")) == "Raw(b'short')"
    assert len(repr(raw(b"x" * 10_000))) < 100
    assert repr(raw(b"x" * 61)).endswith("...)")


# --- envelopes


def test_an_envelope_has_the_protocols_defaults():
    envelope = Envelope("chat")

    assert (envelope.topic, envelope.event, envelope.data) == ("chat", "message", None)
    assert envelope.id is envelope.ref is envelope.namespace is envelope.version is None
    assert envelope.headers == {}
    assert envelope.ack is False
    assert envelope.stream is envelope.raw is None


def test_an_envelope_has_room_for_nothing_but_its_fields():
    """What middleware passes on goes into the context, not onto the message."""
    envelope = Envelope("chat", data=1)

    with pytest.raises(AttributeError):
        envelope.anything = 1
    with pytest.raises(AttributeError):
        envelope.data = 2

    assert envelope.data == 1


def test_the_default_headers_are_nobodys_to_fill():
    """They are shared among all envelopes without headers."""
    with pytest.raises(TypeError):
        Envelope("chat").headers["a"] = "b"


def test_a_payload_is_decoded_on_first_use_and_once():
    words = Words()
    envelope = Envelope("chat", raw=raw(format=words))
    assert words.decoded == 0

    assert envelope.data == ["hello", "world"]
    assert envelope.data is envelope.data
    assert words.decoded == 1


def test_showing_an_envelope_does_not_decode_it():
    words = Words()
    envelope = Envelope("chat", id="1", raw=raw(format=words))

    assert repr(envelope) == "Envelope('chat', event='message', id='1', raw=Raw(b'hello world'))"
    assert words.decoded == 0


def test_a_long_payload_is_shown_cut_short():
    assert len(repr(Envelope("chat", data="x" * 10_000))) < 200


def test_a_payload_that_can_not_be_held_is_refused_when_it_is_asked_for():
    envelope = Envelope("chat", raw=raw(b"unspeakable"))

    for _ in range(2):
        with pytest.raises(InvalidEnvelope):
            envelope.data  # noqa: B018


def test_a_payload_made_from_objects_needs_no_decoding():
    data = {"text": "hi"}

    assert Envelope("chat", data=data).data is data


def test_a_received_payload_can_be_loaded_as_a_type():
    assert Envelope("chat", raw=raw(b"12")).load(int) == 12


def test_a_payload_made_from_objects_is_not_loaded():
    with pytest.raises(InvalidEnvelope, match="only a received message"):
        Envelope("chat", data=12).load(int)


def test_other_data_leaves_everything_else():
    """A handler that asks for a type gets the message with its payload as that."""
    position = StreamPosition("lab", "e1", 7)
    envelope = Envelope(
        "chat", "say", None, "1", "0", "ns", "v2", {"a": "b"}, True, position, raw(b"12")
    )

    copy = envelope.with_data(12)

    assert copy.data == 12
    assert envelope.data == ["12"]
    for field in ("topic", "event", "id", "ref", "namespace", "version", "headers", "ack"):
        assert getattr(copy, field) == getattr(envelope, field)
    assert copy.stream == position
    assert copy.raw is envelope.raw
    assert copy.load(int) == 12


def test_other_data_may_be_none():
    assert Envelope("chat", raw=raw()).with_data(None).data is None


def test_envelopes_are_equal_by_what_they_say():
    assert Envelope("chat", data=["hello", "world"]) == Envelope("chat", raw=raw())
    assert Envelope("chat", headers={}) == Envelope("chat")
    assert Envelope("chat") != "chat"


@pytest.mark.parametrize(
    "other",
    [
        {"topic": "other"},
        {"event": "other"},
        {"data": 2},
        {"id": "other"},
        {"ref": "other"},
        {"namespace": "other"},
        {"version": "other"},
        {"headers": {"a": "c"}},
        {"ack": False},
        {"stream": StreamPosition("lab", "e1", 8)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_difference_in_any_field_makes_envelopes_unequal(other):
    same = {
        "topic": "chat",
        "event": "say",
        "data": 1,
        "id": "1",
        "ref": "0",
        "namespace": "ns",
        "version": "v2",
        "headers": {"a": "b"},
        "ack": True,
        "stream": StreamPosition("lab", "e1", 7),
    }
    assert Envelope(**same) == Envelope(**same)

    assert Envelope(**same) != Envelope(**(same | other))


def test_an_envelope_has_no_hash():
    """Its payload may be any JSON value, and those have none."""
    with pytest.raises(TypeError, match="unhashable"):
        hash(Envelope("chat"))


def test_a_position_is_a_value():
    position = StreamPosition("lab", "e1", 7)

    assert position == StreamPosition(room="lab", epoch="e1", offset=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        position.offset = 8


# --- messages


def test_a_message_has_the_documented_defaults():
    message = Message("chat")

    assert (message.event, message.data, message.priority) == ("message", None, Priority.NORMAL)
    assert message.id is message.namespace is message.version is message.headers is None


@pytest.mark.parametrize(
    ("longest", "longer"),
    [
        *(({name: "x" * MAX_FIELD}, {name: "x" * (MAX_FIELD + 1)}) for name in FIELDS),
        (
            {"headers": dict.fromkeys(map(str, range(MAX_HEADERS)), "")},
            {"headers": dict.fromkeys(map(str, range(MAX_HEADERS + 1)), "")},
        ),
        (
            {"headers": {"a": "x" * (MAX_HEADER_CHARACTERS - 1)}},
            {"headers": {"ab": "x" * (MAX_HEADER_CHARACTERS - 1)}},
        ),
    ],
    ids=[*FIELDS, "many headers", "long headers"],
)
def test_a_message_is_made_only_if_whoever_gets_it_would_read_it(longest, longer):
    """A client's ack repeats the id: one that is refused when it comes back is no id."""
    (name,) = longest
    assert getattr(Message("chat", **longest), name) == longest[name]

    with pytest.raises(ValueError, match=f"{name} must be at most"):
        Message("chat", **longer)


def test_a_higher_priority_is_more():
    assert Priority.LOW < Priority.NORMAL < Priority.HIGH


@pytest.mark.parametrize("wrong", ["", "a" * 257, None, 7, b"chat"])
def test_a_topic_is_1_to_256_characters(wrong):
    with pytest.raises(ValueError, match="topic must be 1 to 256 characters"):
        Message(wrong)


def test_a_topic_of_256_characters_passes():
    assert len(Message("a" * 256).topic) == 256


@pytest.mark.parametrize(
    "wrong",
    [
        {"event": ""},
        {"event": None},
        {"event": 7},
        {"id": 7},
        {"namespace": 7},
        {"version": 2},
        {"headers": {"a": 1}},
        {"headers": {1: "a"}},
        {"priority": 7},
        {"priority": "high"},
    ],
    ids=str,
)
def test_a_field_of_the_wrong_type_is_refused_where_it_is_written(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) + "|Priority"):
        Message("chat", **wrong)


def test_a_message_takes_the_fields_that_it_is_given():
    message = Message("chat", "say", 1, "id", "ns", "v2", {"a": "b"}, Priority.HIGH)

    assert (message.topic, message.event, message.data, message.id) == ("chat", "say", 1, "id")
    assert (message.namespace, message.version, message.headers) == ("ns", "v2", {"a": "b"})
    assert message.priority is Priority.HIGH


def test_a_priority_may_be_given_by_its_number():
    assert Message("chat", priority=2).priority is Priority.HIGH


def test_a_message_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Message("chat").topic = "other"


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@relaxed
@given(json, json)
def test_envelopes_are_equal_exactly_when_their_payloads_are(one, other):
    assert (Envelope("chat", data=one) == Envelope("chat", data=other)) is (one == other)


@relaxed
@given(st.text(max_size=300))
def test_a_topic_is_taken_as_it_is_or_not_at_all(topic):
    try:
        assert Message(topic).topic == topic
    except ValueError:
        assert not topic or len(topic) > 256
