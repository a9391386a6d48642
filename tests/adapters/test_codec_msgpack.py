"""The MessagePack codec: the envelope of protocol.md in another coat."""

from __future__ import annotations

import json
import math
import tracemalloc
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall.adapters.codec.json import MAX_DEPTH, JsonCodec
from eyewall.adapters.codec.msgpack import MsgpackCodec
from eyewall.adapters.web.protocol.frames import PlainFormat, build_frame
from eyewall.application.ports.message import Codec, EncodedMessage, Transcoder
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

JSON = JsonCodec()
CODEC = MsgpackCodec()

CHARACTERS = st.characters(exclude_categories=["Cs"])  # lone surrogates are no text
WHATEVER = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(CHARACTERS),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(CHARACTERS), inner, max_size=4)
    ),
    max_leaves=20,
)


def pack(value) -> bytes:
    return msgspec.msgpack.encode(value)


def unpack(data: bytes):
    return msgspec.msgpack.decode(data)


def decode(**fields) -> Envelope:
    return CODEC.decode(pack({"topic": "t", **fields}))


def refusal(payload, kind=InvalidEnvelope):
    with pytest.raises(kind) as caught:
        CODEC.decode(payload)
    assert type(caught.value) is kind
    return caught.value


def packed(data: bytes) -> bytes:
    """A message with this payload, whatever it is."""
    return b"\x83\xa2id\xa1m\xa5topic\xa1t\xa4data" + data


def nested(depth: int) -> bytes:
    """A message that nests so deeply, the envelope counted."""
    return packed(b"\x91" * (depth - 2) + b"\x90")


def shown(envelope: Envelope):
    return unpack(CODEC.encode(envelope))


def test_it_is_what_its_name_says():
    assert CODEC.name == "msgpack"
    assert CODEC.subprotocol == "eyewall.v1.msgpack"
    assert CODEC.binary is True
    assert CODEC.format.name == "msgpack"
    codec: Codec = CODEC
    assert isinstance(codec, Transcoder)


# --- reading


def test_every_field_is_read():
    envelope = decode(
        event="e",
        id="m1",
        ref="m0",
        namespace="n",
        version="v2",
        data={"a": [1, 2.5, None, True]},
        headers={"h": "x"},
        ack=True,
        stream={"room": "r", "epoch": "e", "offset": 1},
        unknown=[1, {"x": None}],
    )

    assert envelope == Envelope(
        "t", "e", {"a": [1, 2.5, None, True]}, "m1", "m0", "n", "v2", {"h": "x"}, True
    )


def test_what_is_left_out_has_its_default():
    envelope = decode()

    assert (envelope.event, envelope.id, envelope.ack, envelope.data) == (
        "message",
        None,
        False,
        None,
    )


def test_the_payload_stays_raw_until_it_is_asked_for():
    data = b"\xd9\x02ab"  # not the shortest way to say "ab"

    envelope = CODEC.decode(packed(data))

    assert envelope.raw == Raw(data, CODEC.format)
    assert envelope.data == "ab"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        pack({"topic": "t"}) + b"\x00",
        pack({"topic": "t"})[:-1],
        b"\x81\xa5topic\xa1\xff",
    ],
    ids=["empty", "an opcode that is none", "more behind it", "cut off", "no UTF-8"],
)
def test_what_can_not_be_parsed_is_told_so(payload):
    refusal(payload, InvalidJson)


def test_a_text_is_no_messagepack():
    refusal('{"topic": "t"}', InvalidJson)


@pytest.mark.parametrize(
    "payload",
    [
        pack([]),
        pack(1),
        pack({}),
        pack({"topic": ""}),
        pack({"topic": "x" * (MAX_TOPIC + 1)}),
        pack({"topic": 1}),
        pack({"topic": None}),
        pack({"topic": b"t"}),
        pack({"topic": "t", "event": 1}),
        pack({"topic": "t", "id": 1}),
        pack({"topic": "t", "ref": None}),
        pack({"topic": "t", "headers": {"a": 1}}),
        pack({"topic": "t", "headers": {1: "a"}}),
        pack({"topic": "t", "ack": 1}),
        pack({"topic": "t", "ack": True}),
        pack({"topic": "t", "stream": {"room": "r"}}),
        pack({"topic": "t", 7: "seven"}),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(payload):
    refusal(payload)


def test_a_refusal_names_the_message_as_far_as_it_could_be_read():
    error = refusal(pack({"topic": "t", "id": "m1", "ack": 3}))
    assert (error.ref, error.topic) == ("m1", "t")

    error = refusal(pack({"topic": 3, "id": "m1"}))
    assert (error.ref, error.topic) == ("m1", None)

    error = refusal(pack({"topic": "", "id": 3}))
    assert (error.ref, error.topic) == (None, None)


def test_a_worse_mistake_behind_the_first_is_the_one_that_counts():
    refusal(b"\x82\xa5topic\x01\xa1x\xc1", InvalidJson)
    refusal(b"\x82\x07\x01\xa1x\xc1", InvalidJson)


def test_an_ack_needs_no_topic():
    envelope = CODEC.decode(pack({"event": "ack", "ref": "m1"}))

    assert (envelope.topic, envelope.event, envelope.ref) == ("", "ack", "m1")


# --- bounds


def test_a_message_may_nest_to_the_limit_and_no_deeper():
    assert CODEC.decode(nested(MAX_DEPTH)).data is not None

    error = refusal(nested(MAX_DEPTH + 1))

    assert (error.ref, error.topic) == ("m", "t")


def test_maps_count_as_arrays_do():
    at_limit, deeper = (packed(b"\x81\xa1k" * n + b"\x80") for n in (MAX_DEPTH - 2, MAX_DEPTH - 1))

    CODEC.decode(at_limit)
    refusal(deeper)


def test_what_nobody_reads_does_not_hide_how_deep_the_rest_is():
    """A text that is no UTF-8 in an unknown field, and a payload that is fine but deep."""
    deep = b"\x91" * 200 + b"\xc0"

    refusal(b"\x83\xa1x\xa1\xff\xa5topic\xa1t\xa4data" + deep, InvalidEnvelope)


@pytest.mark.parametrize("opener", [b"\x91", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\x81\xa0"])
def test_however_deep_it_is_the_parser_survives(opener):
    refusal(packed(opener * 100_000 + b"\xc0"))


def test_many_containers_side_by_side_are_not_deep():
    data = [[], {}] * 1000

    assert decode(data=data).data == data


def test_texts_that_look_like_containers_are_not_deep():
    text = "".join(map(chr, range(0x80, 0xA0))) * 10  # as UTF-8, bytes that open arrays

    assert decode(data=text).data == text


@pytest.mark.parametrize(
    "claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]
)
def test_a_size_that_is_only_claimed_takes_no_memory(claim):
    tracemalloc.start()

    refusal(packed(claim + b"\x01" * 100), InvalidJson)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


# --- what JSON can't hold

BEYOND_JSON = {
    "binary": b"\xc4\x01a",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "an extension": b"\xd4\x05\x00",
    "infinity": pack(math.inf),
    "not a number": pack(math.nan),
    "a key that is a number": pack({1: 2}),
    "a key that is nil": b"\x81\xc0\x01",
    "a key that is binary": b"\x81\xc4\x01a\x01",
    "a key that is an array": b"\x81\x90\x01",
    "a key that is a map": b"\x81\x80\x01",
    "text that is not UTF-8": b"\xa1\xff",
}


@pytest.mark.parametrize("data", BEYOND_JSON.values(), ids=BEYOND_JSON)
@pytest.mark.parametrize("around", [b"", b"\x92\x01", b"\x82\xa1a\x91\x02\xa1k"], ids=str)
def test_what_json_has_not_is_refused_where_the_payload_is_read_or_relayed(data, around):
    """Members that use JSON, or are on another node, could not get it."""
    envelope = CODEC.decode(packed(around + data))

    with pytest.raises(InvalidEnvelope):
        _ = envelope.data
    with pytest.raises(InvalidEnvelope):
        envelope.load(dict)
    with pytest.raises(InvalidEnvelope):
        JSON.encode(envelope)


def test_the_refusal_says_what_to_do():
    with pytest.raises(InvalidEnvelope, match="send them as text"):
        _ = decode(data={"file": b"123"}).data


# --- payloads by type and by field


class Said(msgspec.Struct):
    text: str
    to: list[str] = []


def test_a_payload_is_loaded_as_a_type():
    assert decode(data={"text": "hi", "to": ["a"]}).load(Said) == Said("hi", ["a"])

    with pytest.raises(ValidationError) as caught:
        decode(data={"text": 1}).load(Said)
    assert list(caught.value.fields) == ["text"]


def test_an_object_is_split_into_its_fields_undecoded():
    raw = decode(data={"room": "r", "data": {"a": 1}}).raw
    assert raw is not None

    fields = raw.fields()

    assert fields["data"].data == pack({"a": 1})
    assert fields["data"].decode() == {"a": 1}
    with pytest.raises(ValidationError):
        Raw(pack([1]), CODEC.format).fields()


# --- writing


def test_fields_that_hold_their_default_are_left_out():
    assert shown(Envelope("t")) == {"topic": "t"}
    assert shown(CODEC.decode(packed(b"\xc0"))) == {"id": "m", "topic": "t"}


def test_every_field_is_written():
    stream = StreamPosition("r", "e", 7)
    envelope = Envelope("t", "e", [1], "m", "m0", "n", "v", {"h": "x"}, True, stream)

    assert shown(envelope) == {
        "id": "m",
        "ref": "m0",
        "topic": "t",
        "event": "e",
        "namespace": "n",
        "version": "v",
        "data": [1],
        "headers": {"h": "x"},
        "ack": True,
        "stream": {"room": "r", "epoch": "e", "offset": 7},
    }


def test_python_objects_become_what_they_are_in_json():
    """A client of MessagePack on another node gets them by way of JSON."""
    envelope = Envelope("t", data={"a": b"\x01", 7: (1,), "s": Said("x")})

    assert shown(envelope)["data"] == json.loads(JSON.encode(envelope))["data"]
    assert shown(envelope)["data"]["a"] == "AQ=="
    assert shown(Envelope("t", data=MappingProxyType({"a": 1})))["data"] == {"a": 1}


def test_what_json_can_not_hold_is_a_misuse():
    with pytest.raises(Misuse):
        CODEC.encode(Envelope("t", data=object()))


# --- from one codec to the other


@given(WHATEVER)
def test_a_payload_is_relayed_byte_for_byte_within_the_codec(value):
    raw = Raw(pack(value), CODEC.format)
    packed_again = msgspec.msgpack.decode(
        CODEC.encode(Envelope("t", raw=raw)), type=dict[str, msgspec.Raw]
    )

    assert bytes(packed_again.get("data", pack(None))) == raw.data


@given(WHATEVER)
def test_a_payload_means_the_same_in_both_codecs(value):
    as_json = Raw(msgspec.json.encode(value), JSON.format)
    as_msgpack = Raw(pack(value), CODEC.format)

    for raw in (as_json, as_msgpack):
        envelope = Envelope("t", raw=raw)
        assert json.loads(JSON.encode(envelope)).get("data") == value
        assert shown(envelope).get("data") == value


@pytest.mark.parametrize(
    ("number", "nearest"),
    [
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"18446744073709551616", 2.0**64),
        (b"-9223372036854775809", -(2.0**63)),
        (b"1e999", math.inf),
        (b"[-1e999]", [-math.inf]),
        (b"9" * 5000, math.inf),
    ],
)
def test_a_number_that_messagepack_can_not_hold_is_the_nearest_float(number, nearest):
    """As it is to a client in JavaScript; one bad number must not stop a room's message."""
    envelope = JSON.decode(b'{"topic":"t","data":' + number + b"}")

    data = unpack(CODEC.recode(JSON.encode(envelope)))["data"]

    assert data == nearest
    assert type(data) is type(nearest)


def test_half_a_surrogate_pair_becomes_a_question_mark():
    payload = b'{"topic":"t","data":["\\ud800","\\u00e9"]}'

    assert unpack(CODEC.recode(payload)) == {"topic": "t", "data": ["?", "é"]}


# --- in frames


class Counting(MsgpackCodec):
    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0
        self.recoded = 0

    def encode(self, envelope):
        self.encoded += 1
        return super().encode(envelope)

    def recode(self, payload):
        self.recoded += 1
        return super().recode(payload)


def frame_of(envelope: Envelope) -> EncodedMessage:
    return EncodedMessage(JSON.encode(envelope), envelope=envelope)


def test_a_message_goes_out_in_a_binary_frame():
    form = PlainFormat(CODEC).build(frame_of(Envelope("t", data={"a": 1})))

    assert form == build_frame(pack({"topic": "t", "data": {"a": 1}}), 2)


def test_an_answer_that_was_kept_as_json_goes_out_as_messagepack():
    form = PlainFormat(CODEC).build(EncodedMessage(b'{"topic":"t","event":"ack"}'))

    assert form == build_frame(pack({"topic": "t", "event": "ack"}), 2)


def test_raw_frames_are_left_alone():
    assert PlainFormat(CODEC).build(EncodedMessage(b"hi", raw=True)) == build_frame(b"hi", 1)
    assert PlainFormat(CODEC).build(EncodedMessage(b"hi", raw=True, binary=True)) == build_frame(
        b"hi", 2
    )


@pytest.mark.parametrize(
    ("envelope", "encoded", "recoded"),
    [
        (Envelope("t", data=[1]), 0, 1),
        (Envelope("t", raw=Raw(b"[1]", JSON.format)), 0, 1),
        (Envelope("t", raw=Raw(b"\x91\x01", CODEC.format)), 1, 0),
    ],
    ids=["made here", "came as JSON", "came as MessagePack"],
)
def test_a_message_is_converted_once_for_all_members(envelope, encoded, recoded):
    codec = Counting()
    wire = PlainFormat(codec)
    frame = frame_of(envelope)

    forms = {id(frame.addressed(str(n)).for_wire(wire)) for n in range(1000)}

    assert len(forms) == 1
    assert (codec.encoded, codec.recoded) == (encoded, recoded)


# --- how long the fields may be

LONGEST = "x" * MAX_FIELD
FULL_HEADERS = {f"{n:02}": "x" * (MAX_HEADER_CHARACTERS // MAX_HEADERS - 2) for n in range(64)}


@pytest.mark.parametrize("name", ["id", "ref", "event", "namespace", "version"])
def test_a_field_has_its_longest_length(name):
    message = {"topic": "t", name: LONGEST}
    assert getattr(CODEC.decode(msgspec.msgpack.encode(message)), name) == LONGEST

    error = refusal(msgspec.msgpack.encode({"id": "m", **message, name: LONGEST + "x"}))
    assert error.topic == "t"
    assert error.ref == (None if name == "id" else "m")


def test_headers_have_a_bound_in_number_and_in_all():
    message = {"id": "m", "topic": "t"}
    assert (
        CODEC.decode(msgspec.msgpack.encode({**message, "headers": FULL_HEADERS})).headers
        == FULL_HEADERS
    )

    many = {str(n): "" for n in range(MAX_HEADERS + 1)}
    for headers in (many, FULL_HEADERS | {"00": "x" * 255}, {"x" * 9000: "x" * 9000}):
        error = refusal(msgspec.msgpack.encode({**message, "headers": headers}))
        assert (error.ref, error.topic) == ("m", "t")
