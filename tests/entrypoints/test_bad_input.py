"""protocol.md: what a client may get wrong, and the answer that the page names for it.

Wherever the connection stays open, the next good message on it works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from eyewall import Envelope, Server
from tests.entrypoints.wire import Peer, peer, running

pytestmark = pytest.mark.usefixtures("transport")


@dataclass
class Plot:
    name: str
    size: int = 1


def garden() -> Server:
    server = Server(client_commands=True)

    @server.on("echo")
    async def echo(ctx, msg):
        return {"echo": msg.data}

    @server.on("plot")
    async def plot(ctx, msg: Envelope[Plot]):
        return {"name": msg.data.name}

    @server.on("crash")
    async def crash(ctx, msg):
        raise RuntimeError("the secret is 4711")

    @server.on("versioned", version="v1")
    async def versioned(ctx, msg):
        return {"version": 1}

    return server


@pytest.fixture
async def server():
    async with running(garden()) as server:
        yield server


async def refusal_of(client: Peer, text: str | bytes) -> dict[str, Any]:
    """Send a frame as it is, and return the one message that answers it."""
    await client.send_text(text)
    answer = await client.receive()
    assert await client.before_fence() == [], "one answer, and the connection works on"
    return answer


def deep(levels: int, kind: str = "[]") -> str:
    opening, closing = kind[0], kind[-1]
    if kind == "{}":
        return '{"a":' * levels + "1" + "}" * levels
    return opening * levels + "1" + closing * levels


# --- frames that can't be read: the topic of the error is the server's own

NOT_JSON = {
    "nothing": "",
    "white space": "  \n",
    "a word": "hello",
    "an open brace": "{",
    "no closing brace": '{"topic": "echo"',
    "an open string": '{"topic": "echo',
    "single quotes": "{'topic': 'echo'}",
    "bare keys": '{topic: "echo"}',
    "a trailing comma": '{"topic": "echo",}',
    "a missing comma": '{"topic": "echo" "id": "1"}',
    "a missing colon": '{"topic" "echo"}',
    "two objects": '{"topic": "echo"}{"topic": "echo"}',
    "something after the object": '{"topic": "echo"} x',
    "a comment": '{"topic": "echo"} // hello',
    "a byte order mark": '\ufeff{"topic": "echo"}',
    "NaN": '{"topic": "echo", "data": NaN}',
    "Infinity": '{"topic": "echo", "data": Infinity}',
    "a leading zero": '{"topic": "echo", "data": 01}',
    "a leading plus": '{"topic": "echo", "data": +1}',
    "a number that ends in a point": '{"topic": "echo", "data": 1.}',
    "hexadecimal": '{"topic": "echo", "data": 0x10}',
    "Python's True": '{"topic": "echo", "data": True}',
    "an unknown escape": r'{"topic": "echo", "data": "\q"}',
    "half an escape": r'{"topic": "echo", "data": "\u12"}',
    "a raw line break in a string": '{"topic": "echo", "data": "a\nb"}',
    "a raw null byte in a string": '{"topic": "echo", "data": "a\x00b"}',
    "bad JSON in an unknown field": '{"topic": "echo", "x": [1,]}',
    "JavaScript": "undefined",
}


@pytest.mark.parametrize("text", NOT_JSON.values(), ids=NOT_JSON)
async def test_what_is_no_json_is_refused_as_invalid_json(server, text):
    async with peer(server) as client:
        error = await refusal_of(client, text)

    assert error["topic"] == "system:error"
    assert error["event"] == "error"
    assert error["data"]["code"] == "invalid_json"
    assert error["data"]["error"]
    assert "ref" not in error


NOT_AN_OBJECT = ["null", "true", "0", "1.5", '"echo"', "[]", '[{"topic": "echo"}]', "1e999"]


@pytest.mark.parametrize("text", NOT_AN_OBJECT)
async def test_json_that_is_no_object_is_refused_as_invalid_envelope(server, text):
    async with peer(server) as client:
        error = await refusal_of(client, text)

    assert error["topic"] == "system:error"
    assert error["data"]["code"] == "invalid_envelope"


NO_TOPIC = {
    "none": '{"id": "x"}',
    "none of the fields": "{}",
    "null": '{"id": "x", "topic": null}',
    "a number": '{"id": "x", "topic": 5}',
    "a list": '{"id": "x", "topic": ["echo"]}',
    "an object": '{"id": "x", "topic": {}}',
    "true": '{"id": "x", "topic": true}',
    "empty": '{"id": "x", "topic": ""}',
    "257 characters": '{"id": "x", "topic": "' + "t" * 257 + '"}',
    "a lot": '{"id": "x", "topic": "' + "t" * 100_000 + '"}',
    "in capitals": '{"id": "x", "Topic": "echo"}',
}


@pytest.mark.parametrize("text", NO_TOPIC.values(), ids=NO_TOPIC)
async def test_an_envelope_without_a_good_topic_is_refused(server, text):
    """The error still says which message it is about, where the id could be read."""
    async with peer(server) as client:
        error = await refusal_of(client, text)

    assert error["topic"] == "system:error"
    assert error["data"]["code"] == "invalid_envelope"
    assert error.get("ref") == ("x" if '"x"' in text else None)


WRONG_TYPE = {
    "event is a number": '"event": 5',
    "event is null": '"event": null',
    "event is a list": '"event": ["a"]',
    "ref is a number": '"ref": 5',
    "ref is an object": '"ref": {}',
    "namespace is a number": '"namespace": 1',
    "namespace is true": '"namespace": true',
    "version is a number": '"version": 2',
    "version is a list": '"version": ["v2"]',
    "headers are a list": '"headers": []',
    "headers are a text": '"headers": "a=b"',
    "headers hold a number": '"headers": {"a": 1}',
    "headers hold null": '"headers": {"a": null}',
    "headers hold an object": '"headers": {"a": {}}',
    "ack is a number": '"ack": 1',
    "ack is a text": '"ack": "true"',
    "ack is a list": '"ack": []',
    "stream is a number": '"stream": 5',
    "stream is a text": '"stream": "r:1"',
    "stream is a list": '"stream": []',
    "stream without its fields": '"stream": {"room": "r"}',
    "stream with an offset in words": '"stream": {"room": "r", "epoch": "e", "offset": "1"}',
    "data nests too deep": f'"data": {deep(70)}',
    "objects nest too deep": f'"data": {deep(70, "{}")}',
    "data nests a thousand deep": f'"data": {deep(900)}',
}


@pytest.mark.parametrize("field", WRONG_TYPE.values(), ids=WRONG_TYPE)
async def test_a_field_of_the_wrong_type_is_refused_by_name(server, field):
    """Under the topic and the id of the message, both of which could be read."""
    async with peer(server) as client:
        error = await refusal_of(client, f'{{"topic": "echo", "id": "x", {field}}}')

    assert error["topic"] == "echo"
    assert error["event"] == "error"
    assert error["ref"] == "x"
    assert error["data"]["code"] == "invalid_envelope"


@pytest.mark.parametrize("field", WRONG_TYPE.values(), ids=WRONG_TYPE)
async def test_it_is_an_error_even_if_the_frame_asks_for_an_ack(server, field):
    text = f'{{"topic": "echo", "id": "x", "ack": true, {field}}}'
    if '"ack": true, "ack"' in text:
        text = f'{{"topic": "echo", "id": "x", {field}}}'
    async with peer(server) as client:
        error = await refusal_of(client, text)

    assert error["event"] == "error"
    assert error["ref"] == "x"
    assert "message_id" not in error["data"]


@pytest.mark.parametrize("value", ["5", "[]", "{}", "true"])
async def test_an_id_of_the_wrong_type_is_refused_without_a_ref(server, value):
    async with peer(server) as client:
        error = await refusal_of(client, f'{{"topic": "echo", "id": {value}}}')

    assert error["topic"] == "echo"
    assert error["data"]["code"] == "invalid_envelope"
    assert "ref" not in error


async def test_an_ack_cant_be_asked_for_without_an_id(server):
    async with peer(server) as client:
        error = await refusal_of(client, '{"topic": "echo", "ack": true}')

    assert error["topic"] == "echo"
    assert error["event"] == "error"
    assert error["data"]["code"] == "invalid_envelope"


async def test_a_bracket_in_a_text_is_no_nesting(server):
    async with peer(server) as client:
        answer = await client.request("echo", "[{" * 200 + '"\\')

    assert answer["echo"] == "[{" * 200 + '"\\'


@pytest.mark.parametrize("data", [b"", b"\x00", b'{"topic": "echo"}', b"\xff" * 1000])
async def test_a_binary_frame_is_refused_as_unsupported_data(server, data):
    async with peer(server) as client:
        error = await refusal_of(client, data)

    assert error["topic"] == "system:error"
    assert error["event"] == "error"
    assert error["data"]["code"] == "unsupported_data"


# --- messages that can be read


@pytest.mark.parametrize(
    "topic", ["nowhere", "echo:more", "ech", "Echo", " echo", "system:nothing", "system:", "room:r"]
)
async def test_a_topic_that_nobody_handles_is_refused(server, topic):
    async with peer(server) as client:
        nack = await client.refused(topic)
        await client.send(topic, id="e")
        error = await client.receive()

    assert nack["code"] == "handler_not_found"
    assert error["topic"] == topic
    assert error["ref"] == "e"
    assert error["data"]["code"] == "handler_not_found"


async def test_a_version_that_nobody_handles_is_refused(server):
    async with peer(server) as client:
        assert (await client.request("versioned", version="v1"))["version"] == 1
        assert (await client.refused("versioned", version="v9"))["code"] == "handler_not_found"
        assert (await client.refused("versioned"))["code"] == "handler_not_found"


UNHOLDABLE = ["1e999", "-1e999", "[1, 1e400]", '{"a": {"b": 1e309}}', "9" * 5000]


@pytest.mark.parametrize("data", UNHOLDABLE, ids=lambda data: data[:20])
async def test_a_number_that_nobody_can_hold_is_a_nack_where_a_handler_reads_it(server, data):
    async with peer(server) as client:
        await client.send_text(f'{{"topic": "echo", "id": "x", "ack": true, "data": {data}}}')
        answer = await client.receive()
        assert await client.before_fence() == []

    assert answer["event"] == "ack"
    assert answer["ref"] == "x"
    assert answer["data"]["status"] == "nack"
    assert answer["data"]["code"] == "invalid_envelope"


@pytest.mark.parametrize("data", UNHOLDABLE, ids=lambda data: data[:20])
async def test_a_number_that_nobody_can_hold_is_an_error_without_ack(server, data):
    async with peer(server) as client:
        error = await refusal_of(client, f'{{"topic": "echo", "id": "x", "data": {data}}}')

    assert error["event"] == "error"
    assert error["ref"] == "x"
    assert error["data"]["code"] == "invalid_envelope"


@pytest.mark.parametrize(
    "data", [None, 5, "text", [], {}, {"name": 5}, {"name": None}, {"name": "a", "size": "b"}]
)
async def test_a_payload_that_fails_its_schema_is_refused_with_its_fields(server, data):
    async with peer(server) as client:
        nack = await client.refused("plot", data)

    assert nack["code"] == "validation"
    assert isinstance(nack["fields"], dict)
    assert nack["fields"]


async def test_an_unexpected_error_names_no_internals(server):
    async with peer(server) as client:
        nack = await client.refused("crash")
        await client.send("crash")
        error = await client.receive()
        assert await client.before_fence() == []

    assert nack["code"] == error["data"]["code"] == "internal"
    assert "4711" not in str(nack) + str(error)
    assert "RuntimeError" not in str(nack) + str(error)


# --- a flood of nonsense


async def test_a_thousand_bad_messages_get_a_thousand_answers(server):
    """A client that is wrong all the time is answered all the time, in order."""
    async with peer(server) as client:
        for n in range(1000):
            await client.send_text(f'{{"id": "{n}", "topic": 5}}')

        refs = [(await client.receive())["ref"] for _ in range(1000)]

        assert refs == [str(n) for n in range(1000)]
        assert await client.before_fence() == []
