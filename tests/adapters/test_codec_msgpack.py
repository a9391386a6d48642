"""The MessagePack codec: the contract of the codecs, the syntax of MessagePack, what JSON lacks,
and the conversion from JSON."""

from __future__ import annotations

import json
import math
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall.adapters.codec.json import JsonCodec
from eyewall.adapters.codec.msgpack import MsgpackCodec
from eyewall.adapters.web.protocol.frames import PlainFormat, build_frame
from eyewall.application.ports.message import EncodedMessage, Transcoder
from eyewall.domain.envelope import Envelope, Raw
from eyewall.domain.errors import InvalidEnvelope, InvalidJson
from eyewall.testing.contracts import CodecContract

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


class TestMsgpackCodec(CodecContract):
    @pytest.fixture
    def codec(self):
        return CODEC

    @pytest.fixture
    def pack(self):
        return pack

    @pytest.fixture
    def unpack(self):
        return unpack


def test_it_is_binary_and_takes_messages_over_from_json():
    assert CODEC.binary is True
    assert isinstance(CODEC, Transcoder)


@pytest.mark.parametrize(
    "message", [{"topic": b"t"}, {"topic": "t", "headers": {1: "a"}}, {"topic": "t", 7: "seven"}]
)
def test_types_that_json_lacks_are_refused_in_the_envelope(message):
    refusal(pack(message))


# --- reading


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


def test_a_worse_mistake_behind_the_first_is_the_one_that_counts():
    refusal(b"\x82\xa5topic\x01\xa1x\xc1", InvalidJson)
    refusal(b"\x82\x07\x01\xa1x\xc1", InvalidJson)


# --- bounds


def test_what_nobody_reads_does_not_hide_how_deep_the_rest_is():
    """A text that is no UTF-8 in an unknown field, and a payload that is fine but deep."""
    deep = b"\x91" * 200 + b"\xc0"

    refusal(b"\x83\xa1x\xa1\xff\xa5topic\xa1t\xa4data" + deep, InvalidEnvelope)


@pytest.mark.parametrize("opener", [b"\x91", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\x81\xa0"])
def test_however_deep_it_is_the_parser_survives(opener):
    refusal(packed(opener * 100_000 + b"\xc0"))


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
