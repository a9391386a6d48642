"""The promises of a ``Codec`` as tests, for authors of a codec.

Derive a class, return your codec from its fixture, and a reader and a writer of the format that are
not your own, and run pytest::

    from eyewall.testing.contracts import CodecContract

    class TestMyCodec(CodecContract):
        @pytest.fixture
        def codec(self):
            return MyCodec()

        @pytest.fixture
        def pack(self):
            return cbor2.dumps

        @pytest.fixture
        def unpack(self):
            return cbor2.loads

``pack(value)`` returns the bytes of a value of JSON (dict, list, str, int, float, bool, None), and
``unpack(data)`` returns the value. The tests hold for every format: what its syntax forbids, how
deep its parser may be driven, and numbers beyond 64 bits are for tests of your own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest

from eyewall.adapters.codec.json import MAX_DEPTH, JsonCodec
from eyewall.application.ports.message import Acknowledges, Codec, Transcoder
from eyewall.domain.envelope import (
    MAX_FIELD,
    MAX_HEADER_CHARACTERS,
    MAX_HEADERS,
    MAX_TOPIC,
    Envelope,
    Raw,
    StreamPosition,
)
from eyewall.domain.errors import InvalidEnvelope, InvalidJson, Misuse, ValidationError

Pack = Callable[[Any], bytes]
Unpack = Callable[[bytes], Any]

JSON = JsonCodec()

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    0.1,
    1.0,
    -0.0,
    1e308,
    5e-324,
    "",
    "x" * 70_000,
    'ü 😀 \n \\ "',
    [],
    [1, [2.5, [None]], "x"],
    {},
    {"": {"z": 1, "a": [True]}, "key": "value"},
]
"""Payloads that every codec carries unchanged."""

NOT_TOPICS = ["", "x" * (MAX_TOPIC + 1)]

WRONG: dict[str, list[Any]] = {
    "topic": [None, 5, ["t"], {"t": 1}, True, *NOT_TOPICS],
    "event": [None, 5, [], {}, False],
    "id": [None, 5, 1.5, [], {}, True],
    "ref": [None, 5, []],
    "namespace": [None, 5, {}],
    "version": [None, 2, []],
    "headers": [None, "x", [], 5, {"a": 1}, {"a": None}, {"a": {}}],
    "ack": [None, "yes", 1, 0, [], "true"],
    "stream": [None, 5, "x", [], {}, {"room": "r", "epoch": "e"}, {"room": 1}],
}
"""Values that a field of a received message may not have."""

UNSENDABLE = {
    "an object": object(),
    "an object in a set": {1, object()},
    "a function": {"a": len},
    "half of a surrogate pair": "\ud800",
    "half of a surrogate pair in a dict": {"k": "\udc00"},
}

LONGEST = "x" * MAX_FIELD
FULL_HEADERS = {
    f"{n:02}": "x" * (MAX_HEADER_CHARACTERS // MAX_HEADERS - 2) for n in range(MAX_HEADERS)
}
TOO_MANY_HEADERS: list[dict[str, str]] = [
    {str(n): "" for n in range(MAX_HEADERS + 1)},
    FULL_HEADERS | {"00": "x" * (MAX_HEADER_CHARACTERS // MAX_HEADERS - 1)},
    {"x" * 9000: "x" * 9000},
]


@dataclass
class Said:
    """A type that payloads are loaded as."""

    text: str
    count: int = 0


def nested(levels: int, innermost: Any = None) -> Any:
    """Return ``innermost``, or an empty list, inside ``levels`` lists."""
    value = [] if innermost is None else [innermost]
    for _ in range(levels - 1):
        value = [value]
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, of the same types, and with their keys in the same order."""
    return repr(one) == repr(other)


class CodecContract:
    """The promises of ``Codec``, one test per promise."""

    @pytest.fixture
    def codec(self) -> Codec:
        raise NotImplementedError("return your codec")

    @pytest.fixture
    def pack(self) -> Pack:
        raise NotImplementedError("return a function that writes a value in the codec's format")

    @pytest.fixture
    def unpack(self) -> Unpack:
        raise NotImplementedError("return a function that reads a value in the codec's format")

    def refusal(self, codec: Codec, payload: bytes | str, kind: type[Any] = InvalidEnvelope) -> Any:
        """Return the error with which the codec refuses ``payload``, which is of that kind."""
        with pytest.raises(kind) as caught:
            codec.decode(payload)
        assert type(caught.value) is kind
        return caught.value

    def test_its_names_agree(self, codec: Codec) -> None:
        assert codec.subprotocol == f"eyewall.v1.{codec.name}"
        assert codec.format.name == codec.name
        assert isinstance(codec.binary, bool)

    # --- reading

    def test_every_field_is_read(self, codec: Codec, pack: Pack) -> None:
        fields = {
            "topic": "t",
            "event": "say",
            "id": "m1",
            "ref": "m0",
            "namespace": "chat",
            "version": "v2",
            "data": {"text": "hi"},
            "headers": {"trace": "1"},
            "ack": True,
        }

        assert codec.decode(pack(fields)) == Envelope(
            "t", "say", {"text": "hi"}, "m1", "m0", "chat", "v2", {"trace": "1"}, ack=True
        )

    def test_a_field_that_is_left_out_has_its_default(self, codec: Codec, pack: Pack) -> None:
        envelope = codec.decode(pack({"topic": "t"}))

        assert envelope == Envelope("t")
        assert (envelope.event, envelope.data, envelope.headers) == ("message", None, {})
        assert (envelope.id, envelope.ref, envelope.stream) == (None, None, None)
        assert envelope.ack is False

    def test_a_text_frame_is_read_by_a_codec_of_text_only(self, codec: Codec, pack: Pack) -> None:
        if codec.binary:
            self.refusal(codec, '{"topic":"t"}', InvalidJson)
        else:
            payload = pack({"topic": "ü"})
            assert codec.decode(payload.decode()) == codec.decode(payload) == Envelope("ü")

    def test_unknown_fields_are_ignored(self, codec: Codec, pack: Pack) -> None:
        payload = pack({"colour": {"deep": [1]}, "topic": "t", "retain": None})

        assert codec.decode(payload) == Envelope("t")

    def test_a_position_of_a_client_is_not_taken_over(self, codec: Codec, pack: Pack) -> None:
        stream = {"room": "lab", "epoch": "e", "offset": 7}

        assert codec.decode(pack({"topic": "t", "stream": stream})).stream is None

    @pytest.mark.parametrize("topic", ["t", "x" * MAX_TOPIC, "😀" * MAX_TOPIC])
    def test_a_topic_has_up_to_256_characters(self, codec: Codec, pack: Pack, topic: str) -> None:
        assert codec.decode(pack({"topic": topic})).topic == topic

    @pytest.mark.parametrize("field", ["id", "ref", "event", "namespace", "version"])
    def test_any_other_name_has_up_to_256_characters(
        self, codec: Codec, pack: Pack, field: str
    ) -> None:
        message = {"id": "m", "topic": "t"}
        assert getattr(codec.decode(pack({**message, field: LONGEST})), field) == LONGEST

        error = self.refusal(codec, pack({**message, field: LONGEST + "x"}))
        assert (error.ref, error.topic) == (None if field == "id" else "m", "t")

    def test_headers_are_limited_in_number_and_in_all(self, codec: Codec, pack: Pack) -> None:
        message = {"id": "m", "topic": "t"}
        headers = codec.decode(pack({**message, "headers": FULL_HEADERS})).headers
        assert headers == FULL_HEADERS

        for too_many in TOO_MANY_HEADERS:
            error = self.refusal(codec, pack({**message, "headers": too_many}))
            assert (error.ref, error.topic) == ("m", "t")

    # --- refusals

    @pytest.mark.parametrize(
        ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
    )
    def test_a_field_of_the_wrong_type_is_refused(
        self, codec: Codec, pack: Pack, field: str, value: Any
    ) -> None:
        self.refusal(codec, pack({"topic": "t", "id": "m", "ack": False, field: value}))

    @pytest.mark.parametrize("value", [5, None, True, "t", [], [{"topic": "t"}], {}], ids=repr)
    def test_a_value_that_is_no_object_with_a_topic_is_no_envelope(
        self, codec: Codec, pack: Pack, value: Any
    ) -> None:
        self.refusal(codec, pack(value))

    @pytest.mark.parametrize(
        ("message", "ref", "topic"),
        [
            ({"topic": "t", "id": "m", "ack": 1}, "m", "t"),
            ({"ack": 1, "id": "m", "topic": "t"}, "m", "t"),
            ({"id": "m"}, "m", None),
            ({"topic": 5, "id": "m"}, "m", None),
            ({"topic": "t", "id": 5}, None, "t"),
            ({"topic": "t", "headers": {"a": 1}}, None, "t"),
            *(({"topic": topic, "id": "m"}, "m", None) for topic in NOT_TOPICS),
            ([], None, None),
        ],
    )
    def test_a_refusal_names_the_message_as_far_as_it_can_be_read(
        self, codec: Codec, pack: Pack, message: Any, ref: str | None, topic: str | None
    ) -> None:
        error = self.refusal(codec, pack(message))

        assert (error.ref, error.topic) == (ref, topic)

    def test_bytes_that_are_not_one_whole_value_are_refused(self, codec: Codec, pack: Pack) -> None:
        whole = pack({"topic": "t"})

        for payload in (b"", whole[:-1], whole[1:], whole + whole):
            self.refusal(codec, payload, InvalidJson)

    def test_damaged_bytes_are_refused_or_are_an_envelope(self, codec: Codec, pack: Pack) -> None:
        """No other exception leaves the codec."""
        draw = random.Random(7)  # noqa: S311  (the same damage each time)
        whole = pack({"topic": "t", "id": "m", "ack": True, "data": VALUES[-1], "headers": {}})
        for _ in range(1000):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
            for payload in (bytes(damaged), draw.randbytes(draw.randrange(40))):
                try:
                    envelope = codec.decode(payload)
                except (InvalidJson, InvalidEnvelope):
                    continue
                assert isinstance(envelope, Envelope)

    # --- acks

    @pytest.mark.parametrize("without", [{}, {"id": ""}], ids=["no id", "an empty id"])
    def test_a_message_that_asks_for_an_ack_needs_an_id(
        self, codec: Codec, pack: Pack, without: dict[str, str]
    ) -> None:
        error = self.refusal(codec, pack({"topic": "t", "ack": True, **without}))

        assert (error.ref, error.topic) in ((None, "t"), ("", "t"))

    def test_an_ack_needs_no_topic(self, codec: Codec, pack: Pack) -> None:
        envelope = codec.decode(pack({"event": "ack", "ref": "m"}))

        assert (envelope.event, envelope.ref, envelope.topic) == ("ack", "m", "")

    @pytest.mark.parametrize("topic", [None, 5, "x" * (MAX_TOPIC + 1)])
    def test_the_topic_of_an_ack_is_checked_if_there_is_one(
        self, codec: Codec, pack: Pack, topic: Any
    ) -> None:
        self.refusal(codec, pack({"event": "ack", "ref": "m", "topic": topic}))

    def test_any_other_message_needs_a_topic(self, codec: Codec, pack: Pack) -> None:
        self.refusal(codec, pack({"event": "message", "ref": "m"}))

    def test_the_usual_ack_is_the_one_that_encode_would_write(
        self, codec: Codec, unpack: Unpack
    ) -> None:
        """For a codec that implements ``Acknowledges``."""
        if isinstance(codec, Acknowledges):
            for request_id, topic in (("m1", "t"), ('"\\\n', "ü 😀")):
                assert unpack(codec.ack(request_id, topic)) == {
                    "ref": request_id,
                    "topic": topic,
                    "event": "ack",
                    "data": {"message_id": request_id, "status": "ok"},
                }

    # --- depth

    def test_a_message_nests_64_deep_the_envelope_counted(self, codec: Codec, pack: Pack) -> None:
        deepest = nested(MAX_DEPTH - 1)

        assert MAX_DEPTH == 64
        assert codec.decode(pack({"topic": "t", "data": deepest})).data == deepest

    @pytest.mark.parametrize("levels", [65, 66, 200])
    @pytest.mark.parametrize("field", ["data", "unknown"])
    def test_a_message_that_nests_deeper_is_refused_by_its_name(
        self, codec: Codec, pack: Pack, field: str, levels: int
    ) -> None:
        error = self.refusal(codec, pack({"id": "m", "topic": "t", field: nested(levels - 1)}))

        assert (error.ref, error.topic) == ("m", "t")
        assert "deeper" in str(error)

    def test_objects_nest_as_arrays_do(self, codec: Codec, pack: Pack) -> None:
        inner: Any = {"a": 1}
        for _ in range(MAX_DEPTH // 2 - 2):
            inner = {"a": inner}
        data = nested(MAX_DEPTH // 2, inner)  # with the envelope: MAX_DEPTH levels

        assert codec.decode(pack({"topic": "t", "data": data})).data == data
        self.refusal(codec, pack({"topic": "t", "data": [data]}))

    def test_values_side_by_side_do_not_nest(self, codec: Codec, pack: Pack) -> None:
        data: list[Any] = [[], {}] * 1000

        assert codec.decode(pack({"topic": "t", "data": data})).data == data

    # --- payloads

    @pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
    def test_a_payload_is_read_with_its_types_and_the_order_of_its_keys(
        self, codec: Codec, pack: Pack, value: Any
    ) -> None:
        envelope = codec.decode(pack({"topic": "t", "data": value}))

        assert same(envelope.data, value)
        if envelope.raw is not None:
            envelope.raw.check()

    @pytest.mark.parametrize("value", VALUES[1:], ids=lambda value: repr(value)[:20])
    def test_a_received_payload_is_relayed_byte_for_byte(
        self, codec: Codec, pack: Pack, unpack: Unpack, value: Any
    ) -> None:
        received = codec.decode(pack({"topic": "t", "data": value}))
        assert received.raw == Raw(pack(value), codec.format)

        assert codec.decode(codec.encode(received)).raw == received.raw
        assert same(unpack(codec.encode(Envelope("t", data=received.raw)))["data"], value)
        quoted = Envelope("t", data={"quoted": [received.raw]})
        assert same(unpack(codec.encode(quoted))["data"], {"quoted": [value]})

    @pytest.mark.parametrize("value", VALUES[1:], ids=lambda value: repr(value)[:20])
    def test_a_payload_means_the_same_to_clients_of_json(
        self, codec: Codec, pack: Pack, unpack: Unpack, value: Any
    ) -> None:
        to_json = JSON.encode(codec.decode(pack({"topic": "t", "data": value})))
        from_json = codec.encode(JSON.decode(json.dumps({"topic": "t", "data": value})))

        assert same(json.loads(to_json), {"topic": "t", "data": value})
        assert same(unpack(from_json), {"topic": "t", "data": value})

    def test_an_object_splits_into_its_fields_undecoded(self, codec: Codec, pack: Pack) -> None:
        value = {"room": "lab", "data": {"n": 1.5}}
        raw = codec.decode(pack({"topic": "t", "data": value})).raw
        assert raw is not None

        fields = raw.fields()

        assert {name: field.decode() for name, field in fields.items()} == value
        assert fields["data"] == Raw(pack({"n": 1.5}), codec.format)

    @pytest.mark.parametrize("value", [None, 5, [1], "x"], ids=repr)
    def test_only_an_object_has_fields(self, codec: Codec, pack: Pack, value: Any) -> None:
        with pytest.raises(ValidationError):
            Raw(pack(value), codec.format).fields()

    def test_a_payload_is_loaded_as_a_type(self, codec: Codec, pack: Pack) -> None:
        assert Raw(pack({"text": "hi", "count": 2}), codec.format).load(Said) == Said("hi", 2)

        with pytest.raises(ValidationError) as caught:
            Raw(pack({"text": 1}), codec.format).load(Said)
        assert list(caught.value.fields) == ["text"]

    # --- writing

    def test_fields_that_hold_their_default_are_left_out(
        self, codec: Codec, pack: Pack, unpack: Unpack
    ) -> None:
        received = codec.decode(pack({"topic": "t", "data": None, "headers": {}, "ack": False}))

        for envelope in (Envelope("t"), Envelope("t", headers={}, ack=False), received):
            assert unpack(codec.encode(envelope)) == {"topic": "t"}

    def test_every_other_field_is_written(self, codec: Codec, unpack: Unpack) -> None:
        stream = StreamPosition("lab", "e", 7)
        envelope = Envelope(
            "t", "say", {"a": 1}, "m1", "m0", "chat", "v2", {"trace": "1"}, True, stream
        )

        assert unpack(codec.encode(envelope)) == {
            "id": "m1",
            "ref": "m0",
            "topic": "t",
            "event": "say",
            "namespace": "chat",
            "version": "v2",
            "data": {"a": 1},
            "headers": {"trace": "1"},
            "ack": True,
            "stream": {"room": "lab", "epoch": "e", "offset": 7},
        }

    @pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
    def test_a_message_that_is_written_is_read_again(self, codec: Codec, value: Any) -> None:
        envelope = Envelope("ü", "😀", value, "m1", "m0", "chat", "v2", {"": "x"}, ack=True)

        again = codec.decode(codec.encode(envelope))

        assert again == envelope
        assert same(again.data, value)

    @pytest.mark.parametrize("data", [False, 0, "", [], {}], ids=repr)
    def test_empty_data_is_written(self, codec: Codec, unpack: Unpack, data: Any) -> None:
        assert same(unpack(codec.encode(Envelope("t", data=data)))["data"], data)

    def test_python_objects_become_what_they_are_in_json(
        self, codec: Codec, unpack: Unpack
    ) -> None:
        """A client of another codec gets the same."""
        envelope = Envelope(
            "t", data={"b": b"\x01", 7: (1,), "s": Said("x"), "m": MappingProxyType({"a": 1})}
        )

        assert unpack(codec.encode(envelope)) == json.loads(JSON.encode(envelope))
        assert unpack(codec.encode(envelope))["data"] == {
            "b": "AQ==",
            "7": [1],
            "s": {"text": "x", "count": 0},
            "m": {"a": 1},
        }

    @pytest.mark.parametrize("data", UNSENDABLE.values(), ids=UNSENDABLE)
    def test_data_that_the_format_can_not_hold_is_a_misuse(self, codec: Codec, data: Any) -> None:
        with pytest.raises(Misuse, match="t can't be sent"):
            codec.encode(Envelope("t", data=data))

    def test_data_that_holds_itself_is_a_misuse(self, codec: Codec) -> None:
        data: list[Any] = []
        data.append(data)

        with pytest.raises(Misuse):
            codec.encode(Envelope("t", data=data))

    def test_a_message_of_json_is_taken_over(self, codec: Codec, unpack: Unpack) -> None:
        """For a codec that implements ``Transcoder``."""
        if isinstance(codec, Transcoder):
            stream = StreamPosition("lab", "e", 7)
            for value in VALUES:
                envelope = Envelope("t", "say", value, "m", headers={"a": "b"}, stream=stream)
                recoded = codec.recode(JSON.encode(envelope))
                assert same(unpack(recoded), json.loads(JSON.encode(envelope)))
