"""protocol.md under ``eyewall.v1.msgpack``: the same, in binary frames."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
import websockets

from eyewall import CompressionConfig, Envelope, MemoryPubSub, MemoryState, Message, RoomOptions
from eyewall.adapters.codec.msgpack import MsgpackCodec
from tests.entrypoints.wire_clients import JSON, MSGPACK, PATIENCE, running, talking

pytestmark = pytest.mark.usefixtures("transport")


async def test_the_welcome_is_the_first_message():
    async with running() as server, talking(server) as client:
        assert client.welcome["topic"] == "system:welcome"
        assert client.welcome["event"] == "welcome"
        assert client.welcome["data"]["session"]
        assert client.welcome["data"]["max_message_size"] == 1 << 20


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([MSGPACK, JSON], MSGPACK), ([JSON, MSGPACK], JSON), (["other", MSGPACK], MSGPACK)],
)
async def test_the_first_known_subprotocol_of_the_client_is_taken(offered, chosen):
    async with running() as server, websockets.connect(server.url, subprotocols=offered) as socket:
        assert socket.subprotocol == chosen


async def test_a_handler_gets_and_answers_python_objects():
    async with running() as server, talking(server) as client:

        @server.on("echo:ping")
        async def ping(ctx: Any, msg: Envelope) -> Any:
            await ctx.send("echo:pong", "message", {"echo": msg.data["text"]})
            return {"seen": msg.data}

        await client.send("echo:ping", {"text": "hé"}, id="m1", ack=True)

        pong, ack = await client.receive(), await client.receive()
        assert (pong["topic"], pong["data"]) == ("echo:pong", {"echo": "hé"})
        assert ack == {
            "ref": "m1",
            "topic": "echo:ping",
            "event": "ack",
            "data": {"message_id": "m1", "status": "ok", "seen": {"text": "hé"}},
        }


async def test_a_payload_is_loaded_as_the_handlers_type():
    class Said(msgspec.Struct):
        text: str

    async with running() as server, talking(server) as client:

        @server.on("say")
        async def say(ctx: Any, msg: Envelope[Said]) -> Any:
            return msg.data.text

        assert (await client.ask("say", {"text": "x"}))["result"] == "x"
        refused = await client.ask("say", {"text": 1}, id="q2")
        assert (refused["status"], refused["code"]) == ("nack", "validation")
        assert list(refused["fields"]) == ["text"]


async def test_the_errors_of_a_frame_that_can_not_be_read():
    async with running() as server, talking(server) as client:
        for frame, code, topic in [
            ('{"topic": "t"}', "unsupported_data", "system:error"),
            (b"\xc1", "invalid_json", "system:error"),
            (msgspec.msgpack.encode({"topic": "t", "ack": True}), "invalid_envelope", "t"),
            (b"\x82\xa5topic\xa1t\xa4data" + b"\x91" * 100 + b"\xc0", "invalid_envelope", "t"),
            (msgspec.msgpack.encode({"topic": "nowhere"}), "handler_not_found", "nowhere"),
        ]:
            await client.socket.send(frame)
            error = await client.receive()
            assert (error["event"], error["topic"], error["data"]["code"]) == ("error", topic, code)


async def test_a_binary_frame_under_json_is_still_refused():
    async with running() as server, talking(server, JSON) as client:
        await client.socket.send(msgspec.msgpack.encode({"topic": "t"}))

        assert (await client.receive())["data"]["code"] == "unsupported_data"


@pytest.mark.parametrize("data", [b"bytes", float("inf"), {1: "one"}, msgspec.msgpack.Ext(5, b"x")])
async def test_a_payload_that_json_has_not_is_refused_when_it_is_used(data):
    async with running() as server, talking(server) as client:

        @server.on("read")
        async def read(ctx: Any, msg: Envelope) -> Any:
            return msg.data

        @server.on("relay")
        async def relay(ctx: Any, msg: Envelope) -> None:
            await ctx.send("other", "message", msg.raw)

        assert (await client.ask("read", data))["code"] == "invalid_envelope"
        assert (await client.ask("relay", data, id="q2"))["code"] == "invalid_envelope"
        await client.ask("system:join", {"room": "r"}, id="q3")
        refused = await client.ask("system:publish", {"room": "r", "data": data}, id="q4")
        assert refused["code"] == "invalid_envelope"


async def test_a_request_that_is_sent_again_gets_the_same_answer():
    async with running() as server, talking(server) as client:
        calls = []

        @server.on("count")
        async def count(ctx: Any, msg: Envelope) -> Any:
            calls.append(msg.id)
            return {"n": len(calls)}

        first = await client.ask("count", id="same")
        again = await client.ask("count", id="same")

        assert first == again == {"message_id": "same", "status": "ok", "n": 1}


async def test_a_client_acks_in_messagepack():
    async with running() as server, talking(server) as client:
        asking = asyncio.create_task(
            server.hub.request(client.welcome["data"]["conn_id"], Message("q", data={"a": 1}))
        )
        asked = await client.receive()
        assert (asked["ack"], asked["data"]) == (True, {"a": 1})

        answer = {"message_id": asked["id"], "status": "ok", "result": [1, {"b": None}]}
        await client.send("q", answer, event="ack", ref=asked["id"])

        assert await asking == [1, {"b": None}]


async def test_commands_are_answered():
    async with running() as server, talking(server) as client:
        joined = await client.ask("system:join", {"room": "r"})
        assert (joined["room"], joined["members"]) == ("r", 1)
        members = await client.ask("system:members", {"room": "r"}, id="q2")
        assert len(members["members"]) == 1
        refused = await client.ask("system:publish", {"room": "other", "data": 1}, id="q3")
        assert refused["code"] == "not_a_member"
        left = await client.ask("system:leave", {"room": "r"}, id="q4")
        assert left["status"] == "ok"


PAYLOAD = {"text": "hé", "n": [1, 2.5, -(2**63), 2**64 - 1], "deep": {"a": [None, True]}}


async def test_a_room_of_both_codecs_gets_each_message_in_its_own():
    async with (
        running() as server,
        talking(server) as packed,
        talking(server, JSON) as text,
    ):
        await packed.ask("system:join", {"room": "r"})
        await text.ask("system:join", {"room": "r"})

        for sender in (packed, text):
            await sender.send("system:publish", {"room": "r", "data": PAYLOAD})
            for member in (packed, text):
                got = await member.receive()
                assert (got["topic"], got["data"]) == ("room:r", PAYLOAD)


async def test_a_payload_goes_byte_for_byte_to_members_of_the_same_codec():
    odd = b"\xdc\x00\x02\xd9\x01a\xcd\x00\x01"  # ["a", 1], said at length
    message = b"\x82\xa5topic\xaesystem:publish\xa4data\x82\xa4room\xa1r\xa4data" + odd
    async with running() as server, talking(server) as one, talking(server) as other:
        await one.ask("system:join", {"room": "r"})
        await other.ask("system:join", {"room": "r"})

        await one.socket.send(message)

        frame = await other.raw()
        fields = msgspec.msgpack.decode(frame, type=dict[str, msgspec.Raw])
        assert bytes(fields["data"]) == odd


async def test_a_raw_payload_may_be_handed_to_any_send():
    async with (
        running() as server,
        talking(server) as packed,
        talking(server, JSON) as text,
    ):

        @server.on("shout")
        async def shout(ctx: Any, msg: Envelope) -> None:
            await ctx.hub.broadcast("shouted", "message", msg.raw)

        for sender in (packed, text):
            await sender.send("shout", PAYLOAD)
            for member in (packed, text):
                assert (await member.receive())["data"] == PAYLOAD


@pytest.mark.parametrize("compression", [None, CompressionConfig()], ids=["plain", "deflate"])
async def test_a_message_is_converted_once_however_many_members_there_are(monkeypatch, compression):
    counts = {"encode": 0, "recode": 0}
    for name in counts:
        original = getattr(MsgpackCodec, name)

        def counting(codec, message, *, name=name, original=original):
            counts[name] += 1
            return original(codec, message)

        monkeypatch.setattr(MsgpackCodec, name, counting)
    offer = "deflate" if compression else None
    async with (
        running(compression=compression) as server,
        talking(server) as a,
        talking(server) as b,
        talking(server, JSON) as c,
        talking(server, compression=offer) as d,
        talking(server) as e,
    ):
        members = (a, b, c, d, e)
        for member in members:
            await member.ask("system:join", {"room": "r"})
        counts.update(encode=0, recode=0)

        await server.hub.broadcast_room("r", "t", "message", {"text": "x" * 1000})
        await c.send("system:publish", {"room": "r", "data": "y" * 1000})
        for member in members:
            assert (await member.receive())["topic"] == "t"
            assert (await member.receive())["topic"] == "room:r"
        assert counts == {"encode": 0, "recode": 2}

        await a.send("system:publish", {"room": "r", "data": "z" * 1000})
        for member in members:
            assert (await member.receive())["data"] == "z" * 1000
        assert counts == {"encode": 1, "recode": 2}


async def test_members_on_another_node_get_the_same():
    shared = {"pubsub": MemoryPubSub(), "state": MemoryState()}
    async with (
        running(**shared) as here,
        running(**shared) as there,
        talking(here) as one,
        talking(there) as packed,
        talking(there, JSON) as text,
    ):
        for member in (one, packed, text):
            await member.ask("system:join", {"room": "r"})

        await one.send("system:publish", {"room": "r", "data": PAYLOAD})

        for member in (one, packed, text):
            assert (await member.receive())["data"] == PAYLOAD


async def test_a_number_that_messagepack_can_not_hold_stops_nobody():
    """JSON members get every digit; the others the nearest float."""
    publish = '{"topic": "system:publish", "data": {"room": "r", "data": [1e300, %s]}}' % ("9" * 30)
    async with (
        running() as server,
        talking(server) as packed,
        talking(server, JSON) as text,
    ):
        await packed.ask("system:join", {"room": "r"})
        await text.ask("system:join", {"room": "r"})

        await text.socket.send(publish)

        assert '"data":[1e300, %s]' % ("9" * 30) in str(await text.raw())
        assert (await packed.receive())["data"] == [1e300, 1e30]


async def test_raw_frames_are_untouched():
    async with running() as server, talking(server) as client:
        conn = server.hub.connection(client.welcome["data"]["conn_id"])
        assert conn is not None
        seen: list[Any] = []

        @server.hub.on_message
        def look(_conn: Any, raw: str | bytes) -> bool:
            seen.append(raw)
            return True

        await conn.send_raw("text")
        await conn.send_raw(b"\x00\x01")
        assert [await client.raw(), await client.raw()] == ["text", b"\x00\x01"]
        await client.socket.send("a text under msgpack")
        await client.socket.send(b"\xc1")
        async with asyncio.timeout(PATIENCE):
            while len(seen) < 2:
                await asyncio.sleep(0.001)
        assert seen == ["a text under msgpack", b"\xc1"]


async def test_notices_of_the_server_come_in_the_clients_codec():
    async with running() as server, talking(server) as packed, talking(server, JSON) as text:
        stopping = asyncio.create_task(server.shutdown(2))

        for client in (packed, text):
            notice = await client.receive()
            assert (notice["topic"], notice["event"]) == ("system:draining", "draining")
            assert json.dumps(notice["data"]["reconnect_in"])
        await stopping


async def test_a_message_bears_its_place_whoever_published_it():
    """From JSON, from MessagePack, which is relayed as it came, and out of the history."""
    async with running(client_commands=True) as server, talking(server) as client:
        info = await server.hub.create_room("r", RoomOptions(history_size=5))
        await client.ask("system:join", {"room": "r"}, id="q1")
        await server.hub.broadcast_room("r", "room:r", data=1)
        await client.send("system:publish", {"room": "r", "data": {"n": 2}})
        live = [await client.receive(), await client.receive()]

        answer = await client.ask("system:history", {"room": "r"}, id="q2")

        assert [m["stream"] for m in live] == [
            {"room": "r", "epoch": info.epoch, "offset": n} for n in (1, 2)
        ]
        assert answer["messages"] == live
