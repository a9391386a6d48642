"""The JSON codec: the contract of the codecs, the syntax of JSON, and what is done without
decoding."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.adapters.codec.json import JsonCodec
from eyewall.application.outbound.sender import ack
from eyewall.application.ports.message import Acknowledges
from eyewall.domain.envelope import MAX_FIELD, Envelope
from eyewall.domain.errors import InvalidEnvelope, InvalidJson
from eyewall.testing.contracts import CodecContract

CODEC = JsonCodec()

WHATEVER = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates are no text, and no codec takes them.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def decode(**fields):
    return CODEC.decode(json.dumps({"topic": "t", **fields}))


def refusal(payload, kind=InvalidEnvelope):
    with pytest.raises(kind) as caught:
        CODEC.decode(payload)
    assert type(caught.value) is kind
    return caught.value


def nested(depth):
    """A whole message whose brackets nest so deeply, the envelope's included."""
    inner = depth - 1
    return b'{"id":"m","topic":"t","data":' + b"[" * inner + b"]" * inner + b"}"


class TestJsonCodec(CodecContract):
    @pytest.fixture
    def codec(self):
        return CODEC

    @pytest.fixture
    def pack(self):
        return lambda value: json.dumps(value, ensure_ascii=False).encode()

    @pytest.fixture
    def unpack(self):
        return json.loads


def test_it_is_written_as_text_without_spaces():
    assert CODEC.binary is False
    assert CODEC.encode(Envelope("t", data=[1, "ü"])) == '{"topic":"t","data":[1,"ü"]}'.encode()


def test_a_number_that_python_can_not_hold_is_no_envelope():
    refusal("1e999")


# --- reading


def test_white_space_around_and_within_is_nothing():
    assert CODEC.decode(b' \n{ "topic"\t:\r"t" } ') == Envelope("t")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"hello",
        b'{"topic":"t"',
        b'{"topic":"t",}',
        b'{"topic":"t"} {"topic":"t"}',
        b'{"topic":"t"}x',
        b"{topic:'t'}",
        b'{"topic":"t","data":NaN}',
        b'{"topic":"t","data":Infinity}',
        b'{"topic":"t","data":01}',
        b'{"topic":"t","data":1.}',
        b'{"topic":"t","data":.5}',
        b'{"topic":"t","data":+1}',
        b'{"topic":"t","data":"\n"}',
        b'{"topic":"t","data":"\\x"}',
        b'{"topic":"t","data":"\\u12"}',
        b'{"topic":"t","data":[1,]}',
        b'\xef\xbb\xbf{"topic":"t"}',
        b'{"topic":"t"}'.decode().encode("utf-16"),
        b'// no\n{"topic":"t"}',
    ],
)
def test_what_can_not_be_parsed_is_no_json(payload):
    refusal(payload, InvalidJson)


@pytest.mark.parametrize(
    "payload", [b'{"topic":5, oops', b"[1, 2", b'{"topic":"t","ack":1', b'5 "x"', b'{"id":1}}']
)
def test_a_wrong_type_does_not_hide_that_the_rest_is_no_json(payload):
    refusal(payload, InvalidJson)


@pytest.mark.parametrize(
    "payload",
    [b'{"topic":"\xff"}', b'{"topic":"t","data":"\xc3\x28"}', b'{"topic":"t","x":"\x80"}'],
)
def test_invalid_utf8_is_no_json_wherever_it_stands(payload):
    """Also where nobody looks: relayed, it would have every receiver hang up."""
    refusal(payload, InvalidJson)


@pytest.mark.parametrize("data", ["\\ud800", "\\udc00 and more", "\\ud83d and more", "cut \\uD83D"])
def test_half_a_surrogate_pair_is_json_that_python_can_not_hold(data):
    """Browsers write it for a text that was cut within an emoji: the sender learns which
    of its messages that was."""
    text = f'{{"id":"7","topic":"chat:say","data":"{data}","ack":true}}'

    found = refusal(text, InvalidEnvelope)

    assert (found.ref, found.topic) == ("7", "chat:say")


def test_half_a_surrogate_pair_in_a_topic_or_id_is_not_given_back():
    found = refusal('{"id":"\\ud800","topic":"t\\udc00"}', InvalidEnvelope)

    assert (found.ref, found.topic) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        '{"id":"7","ref":1,"topic":"t","data":"\\ud800"}',
        '{"id":"7","ref":1,"topic":"t","\\ud800":1}',
        '{"id":"7","topic":"t","data":["\\ud800",1%s]}' % ("0" * 5000),
    ],
)
def test_half_a_surrogate_pair_is_json_whatever_else_is_wrong(text):
    found = refusal(text, InvalidEnvelope)

    assert (found.ref, found.topic) == ("7", "t")


def test_half_a_surrogate_pair_is_json_without_an_object_too():
    refusal('["\\ud800"]', InvalidEnvelope)


@pytest.mark.parametrize(
    "payload", ['{"topic":"\\ud800","data":NaN}', b'{"topic":"\\ud800","data":"\xed\xa0\x80"}']
)
def test_half_a_surrogate_pair_does_not_excuse_what_is_no_json(payload):
    refusal(payload, InvalidJson)


def test_a_text_that_is_no_unicode_is_no_json():
    refusal('{"topic":"\ud800"}', InvalidJson)


def test_an_escape_in_what_is_no_json_changes_nothing():
    refusal('{"topic":"\\ud800"', InvalidJson)


def test_a_surrogate_pair_is_one_character():
    assert CODEC.decode(b'{"topic":"\\ud83d\\ude00"}').topic == "😀"


def test_of_a_field_that_comes_twice_the_last_counts():
    assert CODEC.decode(b'{"topic":"a","topic":"b"}').topic == "b"


# --- bounds


@pytest.mark.parametrize("depth", [1_000, 5_000, 100_000])
def test_a_message_that_nests_beyond_any_parser_is_refused_too(depth):
    assert "deeper" in str(refusal(nested(depth)))


def test_brackets_in_strings_do_not_nest():
    text = "[{" * 200 + '"\\' + "[" * 200

    assert decode(data=[text], headers={text: text}).data == [text]


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * (1 << 20),
        b"[" * (1 << 19) + b"]" * (1 << 19),
        b'{"topic":"t","data":' + b'{"a":' * 200_000,
        b'{"topic":"t","data":"' + b"[" * (1 << 20),
        b'"' * ((1 << 20) + 1),
        b"\\" * (1 << 20),
    ],
    ids=["open", "closed", "objects", "string", "quotes", "backslashes"],
)
def test_a_mebibyte_of_nonsense_is_refused(payload):
    with pytest.raises((InvalidJson, InvalidEnvelope)):
        CODEC.decode(payload)


def test_a_mebibyte_of_shallow_brackets_costs_one_step_for_each(monkeypatch):
    """A scan that looked again for each level would cost 64 times as much."""
    from eyewall.adapters.codec import json as module

    block = b"[" * 60 + b"]" * 60
    payload = b'{"topic":"t","data":[' + b",".join([block] * 8_000) + b"]}"
    steps = []

    class Counting(list):
        def __getitem__(self, byte):
            steps.append(byte)
            return super().__getitem__(byte)

    monkeypatch.setattr(module, "_STEPS", Counting(module._STEPS))
    CODEC.decode(payload)

    assert len(steps) == 8_000 * 120 + 4


def test_few_brackets_are_not_looked_at_again(monkeypatch):
    from eyewall.adapters.codec import json as module

    monkeypatch.setattr(module, "_STEPS", ())

    assert CODEC.decode(nested(64))


# --- payloads


@pytest.mark.parametrize(
    "number",
    [
        "123456789012345678901234567890.123456789012345678901234567890",
        "1" * 4000,
        "1e999",
        "-0.0",
        "1E+2",
        "0.10",
    ],
)
def test_a_number_keeps_every_digit_on_its_way(number):
    data = f'{{"n":{number}, "b": 1,"a":  2}}'
    envelope = CODEC.decode(f'{{"topic":"t","data":{data}}}')

    assert envelope.raw.data.decode() == data
    assert data in CODEC.encode(envelope).decode()


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 5000], ids=["inf", "-inf", "huge"])
def test_a_number_that_nobody_can_hold_is_refused_when_it_is_read(number):
    envelope = CODEC.decode(f'{{"topic":"t","data":[{number}]}}')

    with pytest.raises(InvalidEnvelope):
        _ = envelope.data


def test_an_integer_may_be_larger_than_64_bits():
    assert CODEC.decode(f'{{"topic":"t","data":{10**300}}}').data == 10**300


def test_a_payload_splits_into_its_fields_undecoded():
    envelope = CODEC.decode(b'{"topic":"t","data":{"room":"lab","data":{"n":1.0e0 }}}')

    fields = envelope.raw.fields()

    assert fields["room"].decode() == "lab"
    assert fields["data"].data == b'{"n":1.0e0 }'


# --- writing


def test_a_raw_payload_goes_out_as_it_came_at_any_depth():
    raw = CODEC.decode(b'{"topic":"t","data":{"n":1e999}}').raw

    assert CODEC.encode(Envelope("t", data=raw)) == b'{"topic":"t","data":{"n":1e999}}'
    assert CODEC.encode(Envelope("t", data={"quoted": [raw]})) == (
        b'{"topic":"t","data":{"quoted":[{"n":1e999}]}}'
    )
    assert CODEC.encode(Envelope("t", raw=raw)) == b'{"topic":"t","data":{"n":1e999}}'


# --- whatever it is


@given(WHATEVER)
def test_whatever_comes_is_relayed_byte_for_byte(value):
    payload = json.dumps({"topic": "t", "data": value}, ensure_ascii=False).encode()
    envelope = CODEC.decode(payload)

    again = CODEC.decode(CODEC.encode(envelope))

    assert again.raw == envelope.raw
    assert json.loads(again.raw.data) == value


@given(
    topic=TEXT,
    event=TEXT,
    id=st.none() | TEXT,
    ref=st.none() | TEXT,
    namespace=st.none() | TEXT,
    version=st.none() | TEXT,
    headers=st.dictionaries(TEXT, TEXT, max_size=3),
    data=WHATEVER,
)
def test_what_is_written_is_read_again(data, **fields):
    envelope = Envelope(data=data, **fields)

    assert CODEC.decode(CODEC.encode(envelope)) == envelope


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_whatever_is_no_envelope_is_refused_in_so_many_words(payload):
    try:
        envelope = CODEC.decode(payload)
    except (InvalidJson, InvalidEnvelope):
        return
    assert isinstance(envelope, Envelope)


@given(WHATEVER)
def test_whatever_json_it_is_it_is_an_envelope_or_none(value):
    try:
        CODEC.decode(json.dumps(value))
    except InvalidEnvelope:
        return
    assert isinstance(value, dict)


@given(TEXT, TEXT)
def test_the_usual_ack_is_the_same_written_in_one_go(request_id, topic):
    assert isinstance(CODEC, Acknowledges)
    request = Envelope(topic, id=request_id, ack=True)

    assert CODEC.ack(request_id, topic) == CODEC.encode(ack(request))


# --- an id that is too long


def test_an_id_that_is_too_long_is_not_repeated_in_the_error():
    """Also where the message is read another way, for half of a surrogate pair."""
    long = b"x" * (MAX_FIELD + 1)
    assert refusal(b'{"event":"\\ud83d","topic":"t","id":"%b"}' % long).ref is None
    assert refusal(b'{"event":"\\ud83d","topic":"t","id":"m"}').ref == "m"


# --- what Python can't hold, found without decoding

MANY_DIGITS = st.integers(1, 5000).map(lambda n: "7" * n)
NUMBERS = st.builds(
    lambda sign, whole, part, exponent: sign + whole + part + exponent,
    st.sampled_from(["", "-"]),
    st.sampled_from(["0", "1", "17976931348623157", "9" * 299, "9" * 300, "1" + "0" * 308])
    | MANY_DIGITS,
    st.just("") | MANY_DIGITS.map(lambda digits: "." + digits) | st.just(".0"),
    st.just("")
    | st.builds(
        lambda e, sign, digits: e + sign + digits,
        st.sampled_from("eE"),
        st.sampled_from(["", "+", "-"]),
        st.integers(0, 400).map(str) | st.sampled_from(["0009", "00000", "9" * 30]),
    ),
)
STRINGS = (TEXT | st.sampled_from(["1e999", '"', "\\", '",1e999,"', "7" * 310])).map(json.dumps)
PADDING = st.sampled_from(["x" * 1100, "the 3 eggs ", '"' * 1100, "\\" * 1100]).map(json.dumps)


@settings(deadline=None, max_examples=300)
@given(st.lists(NUMBERS | STRINGS, max_size=5), PADDING, st.integers(0, 100))
def test_the_check_fails_where_decoding_does(values, padding, quotes):
    """It says of nothing that it is fine that can't be decoded, and the other way round."""
    values = [*values, padding, *["1", '"a"'] * quotes]
    for data in (f"[{','.join(values)}]", f'{{"1e9": {padding}, "a" : [ {" , ".join(values)} ]}}'):
        raw = CODEC.decode(b'{"topic":"t","data":%b}' % data.encode()).raw
        try:
            raw.decode()
        except InvalidEnvelope:
            with pytest.raises(InvalidEnvelope):
                raw.check()
        else:
            raw.check()


@pytest.mark.parametrize(
    "value",
    [
        ["the 3 eggs of 12 hens " * 200],
        [1.5e-7] * 500,
        [{"id": n, "name": "e9"} for n in range(500)],
        list(range(10**17, 10**17 + 500)),
        ["\\n"] * 500,
    ],
    ids=["text", "small floats", "objects", "integers", "escapes"],
)
def test_what_is_large_and_plain_is_not_decoded_for_the_check(monkeypatch, value):
    raw = CODEC.decode(b'{"topic":"t","data":%b}' % json.dumps(value).encode()).raw
    monkeypatch.setattr(raw.format, "loads", None)

    raw.check()


@pytest.mark.parametrize(
    "number",
    [
        *("1e309", "1E309", "-1e+999", "1.5E+0400", "0.1e310"),
        *("9" * 309 + ".0", "9" * 300 + "e9", "9" * 4301, "-" + "9" * 309 + "e-0"),
    ],
    ids=lambda number: number[-8:],
)
@pytest.mark.parametrize(
    "around",
    ["[{}, %s]", "[%s, {}]", '["\\"", %s, "", {}]', '{{"a": {{"b": [%s]}}, "c": {}}}'],
)
@pytest.mark.parametrize("padding", [f'"{"x" * 1100}"', '"a", ' * 300 + "1", "1, " * 600 + "1"])
def test_a_number_that_is_too_large_is_found_wherever_it_is(number, around, padding):
    data = around.format(f"[{padding}]") % number
    raw = CODEC.decode(b'{"topic":"t","data":%b}' % data.encode()).raw

    with pytest.raises(InvalidEnvelope):
        raw.check()
