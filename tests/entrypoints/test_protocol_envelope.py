"""protocol.md, "Envelope": every field, both ways."""

from __future__ import annotations

import json

import pytest

from eyewall import Message, SendOptions, Server
from tests.entrypoints.wire import TEXT, frame, peer, peers, raw_peer, running

pytestmark = pytest.mark.usefixtures("transport")

FIELDS = ("id", "ref", "topic", "event", "namespace", "version", "headers", "ack")


def mirror() -> Server:
    """A server that says what it read."""
    server = Server()

    @server.on("mirror")
    async def say(ctx, msg):
        await ctx.send("read", "message", {name: getattr(msg, name) for name in FIELDS})

    @server.on("relay")
    async def relay(ctx, msg):
        await ctx.hub.broadcast("relayed", "message", msg.raw)

    @server.on("echo")
    async def echo(ctx, msg):
        await ctx.send("echoed", "message", msg.data)

    return server


# --- what a client sends


async def test_the_topic_is_all_that_is_required():
    async with running(mirror()) as server, peer(server) as client:
        await client.send_text('{"topic": "mirror"}')

        read = (await client.expect("read"))["data"]

        assert read == {
            "id": None,
            "ref": None,
            "topic": "mirror",
            "event": "message",
            "namespace": None,
            "version": None,
            "headers": {},
            "ack": False,
        }


async def test_every_field_reaches_the_handler():
    sent = {
        "id": "m1",
        "ref": "m0",
        "topic": "mirror",
        "event": "shout",
        "namespace": "chat",
        "version": "v2",
        "headers": {"trace": "abc", "x": ""},
        "ack": True,
    }
    async with running(mirror()) as server, peer(server) as client:
        await client.send_text(json.dumps(sent))

        assert (await client.expect("read"))["data"] == sent


async def test_unknown_fields_are_ignored():
    async with running(mirror()) as server, peer(server) as client:
        await client.send_text('{"topic": "mirror", "colour": "red", "x": {"y": [1]}}')

        assert (await client.expect("read"))["data"]["topic"] == "mirror"


@pytest.mark.parametrize("value", [None, True, False, 0, -1.5, "", "text", [], [1, [2]], {}])
async def test_data_is_any_json_value(value):
    async with running(mirror()) as server, peer(server) as client:
        await client.send("echo", value)

        echoed = await client.expect("echoed")

        assert echoed.get("data") == value
        assert ("data" in echoed) == (value is not None), "the default, null, is left out"


@pytest.mark.parametrize("length", [1, 255, 256])
async def test_a_topic_has_up_to_256_characters(length):
    async with running() as server, peer(server) as client:
        topic = "é" * length

        assert (await client.refused(topic))["code"] == "handler_not_found"


@pytest.mark.parametrize(
    "topic", ["chat:room:general", "a", "café ☕", "a:b c/d.e", ":", "a::b", "1"]
)
async def test_any_text_may_be_a_topic(topic):
    server = Server()
    server.handle(topic, lambda ctx, msg: {"topic": msg.topic})
    async with running(server), peer(server) as client:
        answer = await client.ask(topic)

        assert answer["topic"] == topic
        assert answer["data"]["topic"] == topic


async def test_the_order_of_fields_does_not_matter():
    async with running(mirror()) as server, peer(server) as client:
        await client.send_text('{"ack": true, "data": 1, "topic": "echo", "id": "late"}')

        assert (await client.until(lambda m: m.get("ref") == "late"))["data"]["status"] == "ok"


async def test_white_space_around_an_envelope_is_no_matter():
    async with running(mirror()) as server, peer(server) as client:
        await client.send_text(' \n\t{ "topic" : "mirror" }\r\n ')

        assert (await client.expect("read"))["data"]["topic"] == "mirror"


async def test_escapes_in_fields_are_read():
    async with running(mirror()) as server, peer(server) as client:
        await client.send_text(r'{"\u0074opic": "mirr\u006fr", "event": "\ud83d\ude00\n"}')

        assert (await client.expect("read"))["data"]["event"] == "😀\n"


async def test_a_payload_of_64_levels_less_the_envelope_is_read():
    async with running(mirror()) as server, peer(server) as client:
        data = "[" * 62 + "1" + "]" * 62
        await client.send_text(f'{{"topic": "echo", "data": {data}}}')

        assert (await client.expect("echoed"))["data"] == json.loads(data)


# --- what the server sends


PAYLOADS = [
    '{"z":1,"a":2,"m":{"y":1,"b":2}}',
    "12345678901234567890123456789012345678901234567890",
    "0.1000000000000000055511151231257827021181583404541015625",
    "[1.0,1e2,1E+2,-0,-0.0,1e-7]",
    "1e999",
    '{"a":1,"a":2}',
    '"\\u00e9\\/é"',
    "[ 1,\\n2 ]".replace("\\n", "\n"),
]
"""Values that a decode and an encode would change."""


@pytest.mark.parametrize("text", PAYLOADS)
async def test_what_is_relayed_keeps_every_byte(text):
    """Numbers keep every digit, and keys their order."""
    async with running(mirror()) as server, peer(server) as client:
        await client.send_text(f'{{"topic": "relay", "data": {text}}}')

        frame = await client.receive_frame()

        assert f'"data":{text}' in frame


@pytest.mark.parametrize("text", [text for text in PAYLOADS if text != "1e999"])
async def test_what_is_published_keeps_every_byte(text):
    async with running(client_commands=True) as server, peer(server) as client:
        await client.join("r")
        await client.send_text(
            f'{{"topic": "system:publish", "data": {{"room": "r", "data": {text}}}}}'
        )

        frame = await client.receive_frame()

        assert f'"data":{text}' in frame


async def test_fields_that_hold_their_default_are_left_out():
    """A message of the server has an id and a topic, and nothing that says nothing."""
    async with running() as server, peer(server) as client:
        await server.hub.broadcast("news", "message", None)

        message = await client.receive()

        assert set(message) == {"id", "topic"}


async def test_the_fields_of_a_message_travel():
    async with running() as server, peer(server) as client:
        message = Message(
            topic="news",
            event="flash",
            data={"text": "storm"},
            id="n1",
            namespace="press",
            version="v2",
            headers={"trace": "abc"},
        )
        await server.hub.broadcast_with_filter(message, lambda meta: True)

        assert await client.receive() == {
            "id": "n1",
            "topic": "news",
            "event": "flash",
            "data": {"text": "storm"},
            "namespace": "press",
            "version": "v2",
            "headers": {"trace": "abc"},
        }


async def test_a_message_that_asks_for_an_ack_says_so():
    async with running() as server, peer(server) as client:
        sending = server.hub.emit_with_ack
        from eyewall import AckOptions, Target

        result = sending(Target.conn(client.conn_id), Message("news"), AckOptions(timeout=0.2))
        await result

        message = await client.receive()

        assert message["ack"] is True
        assert message["id"]


async def test_payloads_within_payloads_keep_their_bytes():
    """A ``Raw`` payload may stand anywhere in what a handler sends; so may its headers."""
    server = Server()

    @server.on("wrap")
    async def wrap(ctx, msg):
        await ctx.send("wrapped", "message", {"inner": [msg.raw], "headers": msg.headers})

    async with running(server), peer(server) as client:
        await client.send_text('{"topic": "wrap", "data": {"n": 1.00}}')

        assert '"data":{"inner":[{"n": 1.00}],"headers":{}}' in await client.receive_frame()


async def test_a_message_without_a_payload_is_relayed_as_one():
    """``msg.raw`` is there whatever the payload; null is the default, and left out."""
    async with running(mirror()) as server, peer(server) as client:
        await client.send_text('{"topic": "relay"}')

        assert set(await client.receive()) == {"id", "topic"}


async def test_every_message_that_the_server_originates_has_an_id_of_its_own():
    server = Server()

    @server.on("all")
    async def everything(ctx, msg):
        me = ctx.conn.id
        hub = ctx.hub
        await ctx.send("a", "message", 1)
        await ctx.conn.send("b", "message", 1)
        await ctx.send_message(Message("c"), SendOptions())
        await hub.send_to_conn(me, "d", "message", 1)
        await hub.broadcast("e", "message", 1)
        await hub.join("r", me)
        await hub.broadcast_room("r", "f", "message", 1)
        await hub.emit_to_room("r", Message("g"))

    async with running(server), peer(server) as client:
        await client.send("all")

        ids = [(await client.expect(topic))["id"] for topic in "abcdefg"]

        assert all(isinstance(found, str) and found for found in ids)
        assert len(set(ids)) == 7


async def test_one_broadcast_is_one_message_with_one_id():
    """Whoever gets it: the same message has the same id."""
    async with running() as server, peers(server, 3) as clients:
        await server.hub.broadcast("news", "message", 1)

        assert len({(await client.expect("news"))["id"] for client in clients}) == 1


async def test_a_handlers_reply_has_the_topic_and_id_of_its_request():
    server = Server()

    @server.on("question")
    async def answer(ctx, msg):
        await ctx.reply({"n": 42})

    async with running(server), peer(server) as client:
        await client.send("question", id="q")

        reply = await client.receive()

        assert reply["topic"] == "question"
        assert reply["ref"] == "q"
        assert reply["data"] == {"n": 42}
        assert reply["id"]


async def test_a_reply_to_a_request_without_an_id_has_no_ref():
    server = Server()

    @server.on("question")
    async def answer(ctx, msg):
        await ctx.reply("here")

    async with running(server), raw_peer(server) as client:
        await client.write(frame(TEXT, b'{"topic": "question"}'))

        assert "ref" not in await client.read_envelope()


async def test_a_raw_text_is_a_frame_without_an_envelope():
    async with running() as server, peer(server) as client:
        assert await server.hub.broadcast_text("not json at all") == 1
        await server.hub.send_text_to_conn(client.conn_id, "")

        assert await client.receive_frame() == "not json at all"
        assert await client.receive_frame() == ""


async def test_non_ascii_text_travels_both_ways():
    async with running(mirror()) as server, peer(server) as client:
        await client.send("echo", {"schlüssel": "☕ \u2028 \x7f 😀"})

        assert (await client.expect("echoed"))["data"] == {"schlüssel": "☕ \u2028 \x7f 😀"}
