"""A client's side of the envelope."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall import Envelope, HistoryPage, InvalidEnvelope, StreamPosition
from eyewall.client import wire
from eyewall.domain.errors import InvalidEnvelope as Invalid

PLACE = {"room": "r", "epoch": "e", "offset": 3}


def test_a_message_has_its_place():
    message = wire.decode(json.dumps({"topic": "room:r", "data": [1], "stream": PLACE}))

    assert message.stream == StreamPosition("r", "e", 3)
    assert message.data == [1]


def test_every_field_is_read():
    fields = {
        "id": "i",
        "ref": "f",
        "topic": "t",
        "event": "e",
        "namespace": "n",
        "version": "v",
        "headers": {"h": "1"},
        "ack": True,
    }
    message = wire.decode(json.dumps({**fields, "data": None, "unknown": 1}))

    assert {name: getattr(message, name) for name in fields} == fields
    assert message.data is None


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "hello",
        "[]",
        "{}",
        '{"topic": 5}',
        '{"topic": "t", "stream": 1}',
        "[" * 100_000,
        "\ud800",
    ],
)
def test_what_is_no_message_is_told(frame):
    with pytest.raises(InvalidEnvelope):
        wire.decode(frame)


@given(st.text())
def test_no_text_breaks_the_reader(text):
    try:
        wire.decode(text)
    except Invalid:
        pass


def test_an_ack_needs_no_topic():
    assert wire.decode('{"event": "ack", "ref": "r1"}').ref == "r1"


def test_a_request_is_written_as_the_protocol_says():
    assert json.loads(wire.encode("t", {"a": 1}, id="r1", ack=True)) == {
        "id": "r1",
        "topic": "t",
        "data": {"a": 1},
        "ack": True,
    }
    assert json.loads(wire.encode("t", None, "e")) == {"topic": "t", "event": "e"}


@pytest.mark.parametrize(
    ("topic", "data", "event"),
    [
        ("", 1, "e"),
        ("t" * 257, 1, "e"),
        (None, 1, "e"),
        ("t", object(), "e"),
        ("t", "\ud800", "e"),
        ("t", 1, ""),
        ("t", 1, 5),
    ],
)
def test_what_cannot_be_sent_is_told_where_it_is_written(topic, data, event):
    with pytest.raises(ValueError):  # noqa: PT011
        wire.encode(topic, data, event)


def test_an_ack_has_the_result_beside_the_status():
    message = Envelope("t", id="m1", ack=True)

    assert json.loads(wire.accepted(message)) == {
        "ref": "m1",
        "topic": "t",
        "event": "ack",
        "data": {"message_id": "m1", "status": "ok"},
    }
    assert json.loads(wire.accepted(message, [1]))["data"]["result"] == [1]


def test_a_result_that_cannot_be_sent_is_told():
    with pytest.raises(ValueError):  # noqa: PT011
        wire.accepted(Envelope("t", id="m1"), object())


def test_a_nack_has_its_reason_bounded_and_readable():
    data = json.loads(wire.refused(Envelope("t", id="m1"), "\ud800" + "x" * 5000))["data"]

    assert (data["message_id"], data["status"]) == ("m1", "nack")
    assert data["error"] == "?" + "x" * (wire.MAX_REASON - 1)


def test_a_page_holds_messages_at_their_places():
    answer = {
        "messages": [{"id": "m3", "topic": "room:r", "data": {"n": 1}, "stream": PLACE}],
        "epoch": "e",
        "offset": 9,
    }
    found = wire.page(answer)

    assert found == HistoryPage(
        [Envelope("room:r", "message", {"n": 1}, "m3", stream=StreamPosition("r", "e", 3))], "e", 9
    )


@pytest.mark.parametrize("messages", [None, 5, [5], [{"topic": 5}]])
def test_a_page_that_is_none_is_told(messages):
    with pytest.raises(InvalidEnvelope):
        wire.page({"messages": messages})
