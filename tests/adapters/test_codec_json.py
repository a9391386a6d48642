"""The JSON codec: each row of protocol.md, "Envelope"."""

import json
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.adapters.codec.json import MAX_DEPTH, JsonCodec
from eyewall.application.outbound.sender import ack
from eyewall.application.ports.message import Acknowledges, Codec
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


def shown(envelope):
    return json.loads(CODEC.encode(envelope))


def test_it_is_what_its_name_says():
    assert CODEC.name == "json"
    assert CODEC.subprotocol == "eyewall.v1.json"
    assert CODEC.binary is False
    assert CODEC.format.name == "json"
    codec: Codec = CODEC
    assert codec


# --- reading


def test_every_field_is_read():
    envelope = decode(
        event="say",
        id="m1",
        ref="m0",
        namespace="chat",
        version="v2",
        data={"text": "hi"},
        headers={"trace": "1"},
        ack=True,
    )

    assert envelope == Envelope(
        "t", "say", {"text": "hi"}, "m1", "m0", "chat", "v2", {"trace": "1"}, ack=True
    )


def test_what_is_left_out_has_its_default():
    envelope = decode()

    assert envelope == Envelope("t")
    assert envelope.event == "message"
    assert envelope.data is None
    assert envelope.headers == {}
    assert envelope.ack is False


def test_text_and_bytes_are_read_alike():
    assert CODEC.decode('{"topic":"ü"}') == CODEC.decode('{"topic":"ü"}'.encode())


def test_white_space_around_and_within_is_nothing():
    assert CODEC.decode(b' \n{ "topic"\t:\r"t" } ') == Envelope("t")


def test_unknown_fields_are_ignored():
    assert decode(colour={"deep": [1]}, retain=True) == Envelope("t")


@pytest.mark.parametrize("value", [None, True, 5, 2.5, "x", [1], {"a": 1}], ids=repr)
def test_data_may_be_any_value(value):
    assert decode(data=value).data == value


@pytest.mark.parametrize("topic", ["t", "x" * MAX_TOPIC, "😀" * MAX_TOPIC])
def test_a_topic_has_up_to_256_characters(topic):
    assert decode(topic=topic).topic == topic


@pytest.mark.parametrize("topic", ["", "x" * (MAX_TOPIC + 1)])
def test_a_topic_of_another_length_is_refused(topic):
    error = refusal(json.dumps({"topic": topic, "id": "m"}))

    assert error.ref == "m"
    assert error.topic is None, "an error can't bear a topic that no client may use"


WRONG = {
    "topic": [None, 5, ["t"], {"t": 1}, True],
    "event": [None, 5, [], {}, False],
    "id": [None, 5, 1.5, [], {}, True],
    "ref": [None, 5, []],
    "namespace": [None, 5, {}],
    "version": [None, 2, []],
    "headers": [None, "x", [], 5, {"a": 1}, {"a": None}, {"a": {}}],
    "ack": [None, "yes", 1, 0, [], "true"],
    "stream": [None, 5, "x", [], {}, {"room": "r", "epoch": "e"}, {"room": 1}],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_field_of_the_wrong_type_is_refused(field, value):
    refusal(json.dumps({"topic": "t", "id": "m", "ack": False} | {field: value}))


@pytest.mark.parametrize("text", ["5", "null", "true", '"t"', "[]", '[{"topic":"t"}]', "1e999"])
def test_what_is_json_and_no_object_is_no_envelope(text):
    refusal(text)


def test_an_object_without_a_topic_is_no_envelope():
    assert refusal('{"id":"m"}').ref == "m"


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


# --- which message it was


@pytest.mark.parametrize(
    ("payload", "ref", "topic"),
    [
        ('{"topic":"t","id":"m","ack":1}', "m", "t"),
        ('{"ack":1,"id":"m","topic":"t"}', "m", "t"),
        ('{"topic":5,"id":"m"}', "m", None),
        ('{"topic":"t","id":5}', None, "t"),
        ('{"topic":"t","headers":{"a":1}}', None, "t"),
        ("[]", None, None),
    ],
)
def test_a_refusal_names_the_message_by_what_can_be_read(payload, ref, topic):
    error = refusal(payload)

    assert (error.ref, error.topic) == (ref, topic)


# --- acks


def test_a_request_for_an_ack_needs_an_id():
    assert refusal('{"topic":"t","ack":true}').topic == "t"
    refusal('{"topic":"t","ack":true,"id":""}')


def test_the_short_form_of_an_ack_needs_no_topic():
    envelope = CODEC.decode(b'{"event":"ack","ref":"m"}')

    assert (envelope.event, envelope.ref, envelope.topic) == ("ack", "m", "")


@pytest.mark.parametrize("topic", [None, 5, "x" * 257])
def test_an_acks_topic_is_right_if_there_is_one(topic):
    refusal(json.dumps({"event": "ack", "ref": "m", "topic": topic}))


def test_nothing_else_goes_without_a_topic():
    refusal('{"event":"message","ref":"m"}')


# --- bounds


def test_a_message_may_nest_64_deep():
    assert CODEC.decode(nested(MAX_DEPTH)).data is not None
    assert MAX_DEPTH == 64


@pytest.mark.parametrize("depth", [65, 66, 200, 900])
def test_a_message_that_nests_deeper_is_refused_by_its_name(depth):
    error = refusal(nested(depth))

    assert (error.ref, error.topic) == ("m", "t")
    assert "deeper" in str(error)


@pytest.mark.parametrize("depth", [1_000, 5_000, 100_000])
def test_a_message_that_nests_beyond_any_parser_is_refused_too(depth):
    assert "deeper" in str(refusal(nested(depth)))


def test_depth_counts_objects_and_arrays_and_not_their_number():
    deep = "[" * 32 + '{"a":' * 31 + "1" + "}" * 31 + "]" * 32
    wide = "[" + ",".join(["[]"] * 500) + "]"

    assert CODEC.decode(f'{{"topic":"t","data":{deep}}}')
    assert CODEC.decode(f'{{"topic":"t","data":{wide}}}')
    refusal(f'{{"topic":"t","data":[{deep}]}}')


def test_depth_counts_in_fields_that_nobody_reads():
    refusal('{"topic":"t","unknown":' + "[" * 64 + "]" * 64 + "}")


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


def test_keys_keep_their_order():
    envelope = decode(data={"z": 1, "a": 2, "m": 3})

    assert list(envelope.data) == ["z", "a", "m"]


def test_a_payload_splits_into_its_fields_undecoded():
    envelope = CODEC.decode(b'{"topic":"t","data":{"room":"lab","data":{"n":1.0e0 }}}')

    fields = envelope.raw.fields()

    assert fields["room"].decode() == "lab"
    assert fields["data"].data == b'{"n":1.0e0 }'


@pytest.mark.parametrize("data", ["null", "5", "[1]", '"x"'])
def test_only_an_object_has_fields(data):
    envelope = CODEC.decode(f'{{"topic":"t","data":{data}}}')

    with pytest.raises(ValidationError):
        envelope.raw.fields()


# --- writing


def test_defaults_are_left_out():
    assert CODEC.encode(Envelope("t")) == b'{"topic":"t"}'
    assert CODEC.encode(Envelope("t", headers={}, ack=False)) == b'{"topic":"t"}'
    assert CODEC.encode(CODEC.decode(b'{"topic":"t","data":null}')) == b'{"topic":"t"}'


def test_every_other_field_is_written():
    envelope = Envelope(
        "t",
        "say",
        {"a": 1},
        "m1",
        "m0",
        "chat",
        "v2",
        {"trace": "1"},
        ack=True,
        stream=StreamPosition("lab", "e", 7),
    )

    assert shown(envelope) == {
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


@pytest.mark.parametrize("data", [False, 0, "", [], {}], ids=repr)
def test_empty_data_is_data(data):
    assert shown(Envelope("t", data=data))["data"] == data


def test_a_raw_payload_goes_out_as_it_came_at_any_depth():
    raw = CODEC.decode(b'{"topic":"t","data":{"n":1e999}}').raw

    assert CODEC.encode(Envelope("t", data=raw)) == b'{"topic":"t","data":{"n":1e999}}'
    assert CODEC.encode(Envelope("t", data={"quoted": [raw]})) == (
        b'{"topic":"t","data":{"quoted":[{"n":1e999}]}}'
    )
    assert CODEC.encode(Envelope("t", raw=raw)) == b'{"topic":"t","data":{"n":1e999}}'


def test_a_read_only_mapping_goes_out_as_an_object():
    assert shown(Envelope("t", data={"m": MappingProxyType({"a": 1})}))["data"] == {"m": {"a": 1}}


@pytest.mark.parametrize(
    "data",
    [object(), {1, object()}, {"a": lambda: 0}, "\ud800", {"k": "\udc00"}],
    ids=["object", "set", "function", "surrogate", "nested surrogate"],
)
def test_data_that_json_can_not_hold_is_our_mistake(data):
    with pytest.raises(Misuse, match="t can't be sent"):
        CODEC.encode(Envelope("t", data=data))


def test_data_that_holds_itself_is_our_mistake():
    data = []
    data.append(data)

    with pytest.raises(Misuse):
        CODEC.encode(Envelope("t", data=data))


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


def test_a_raw_payload_is_equal_by_its_bytes():
    assert decode(data=[1]).raw == Raw(b"[1]", CODEC.format)


# --- how long the fields may be

LONGEST = "x" * MAX_FIELD
FULL_HEADERS = {f"{n:02}": "x" * (MAX_HEADER_CHARACTERS // MAX_HEADERS - 2) for n in range(64)}


@pytest.mark.parametrize("name", ["id", "ref", "event", "namespace", "version"])
def test_a_field_has_its_longest_length(name):
    message = {"topic": "t", name: LONGEST}
    assert getattr(CODEC.decode(msgspec.json.encode(message)), name) == LONGEST

    error = refusal(msgspec.json.encode({"id": "m", **message, name: LONGEST + "x"}))
    assert error.topic == "t"
    assert error.ref == (None if name == "id" else "m")


def test_headers_have_a_bound_in_number_and_in_all():
    message = {"id": "m", "topic": "t"}
    assert (
        CODEC.decode(msgspec.json.encode({**message, "headers": FULL_HEADERS})).headers
        == FULL_HEADERS
    )

    many = {str(n): "" for n in range(MAX_HEADERS + 1)}
    for headers in (many, FULL_HEADERS | {"00": "x" * 255}, {"x" * 9000: "x" * 9000}):
        error = refusal(msgspec.json.encode({**message, "headers": headers}))
        assert (error.ref, error.topic) == ("m", "t")


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
