"""What nobody can hold is refused when it is published, and costs one message if it is there."""

import json
from datetime import UTC, datetime

import pytest

from eyewall.adapters.codec.json import JsonFormat
from eyewall.application.dispatch import commands
from eyewall.domain.envelope import Message
from eyewall.domain.errors import InvalidEnvelope
from eyewall.domain.history import Entry, Retention
from eyewall.domain.identity import RoomId
from eyewall.domain.report import SendOptions
from eyewall.domain.room import RoomOptions

ACKED = SendOptions(require_ack=True)
LAB = RoomId("lab")
UNHOLDABLE = ["1e999", "-1e999", "[1, 1e400]", '{"a": {"b": 1e309}}', "9" * 5000, "1E+0400"]
HOLDABLE = ["1e308", "1e-999", "0e999", "9" * 400, '"1e999"', '{"1e999": "1e999"}']


@pytest.fixture
async def ada(node):
    await node.hub.create_room("lab", RoomOptions(history_size=100))
    ada = await node.connect("ada")
    for room in ("lab", "hall"):
        await node.hub.join(room, ada.id)
    ada.heard()
    return ada


def publish(room, data, ack="true"):
    return (
        f'{{"id": "1", "topic": "system:publish", "ack": {ack}, '
        f'"data": {{"room": "{room}", "data": {data}}}}}'
    )


def without_answer(heard):
    return [m for m in heard if m.get("event") not in ("ack", "error")]


@pytest.mark.parametrize("room", ["lab", "hall"])
@pytest.mark.parametrize("data", UNHOLDABLE, ids=lambda data: data[:20])
async def test_a_client_can_not_publish_what_nobody_can_hold(node, ada, room, data):
    [nack] = await ada.ask(publish(room, data))
    assert nack["data"]["code"] == "invalid_envelope"
    [error] = await ada.ask(publish(room, data, ack="false"))
    assert error["event"] == "error"
    assert error["data"]["code"] == "invalid_envelope"

    assert (await node.hub.history("lab")).messages == []


@pytest.mark.parametrize("data", HOLDABLE, ids=lambda data: data[:20])
async def test_what_can_be_held_is_published_byte_for_byte(node, ada, data):
    await ada.ask(publish("lab", data))

    assert any(data.encode() in frame.payload for frame in ada.link.frames)
    [kept] = (await node.hub.history("lab")).messages
    assert kept.data == json.loads(data)


async def test_a_handler_can_not_have_it_kept(node, ada):
    @node.on("relay")
    async def relay(ctx, msg):
        await ctx.hub.broadcast_room("lab", "room:lab", "message", msg.raw)

    [nack] = await ada.ask('{"id": "1", "topic": "relay", "ack": true, "data": 1e999}')

    assert nack["data"]["code"] == "invalid_envelope"
    assert (await node.hub.history("lab")).messages == []


async def test_nor_with_acks(node, ada):
    raised = []

    @node.on("relay")
    async def relay(ctx, msg):
        try:
            await ctx.hub.emit_to_room("lab", Message("room:lab", data=msg.raw), ACKED)
        except InvalidEnvelope as error:
            raised.append(error)

    await ada.ask('{"topic": "relay", "data": 1e999}')

    assert len(raised) == 1


# --- what is there all the same


BAD = [b'{"topic":"t","data":1e999}', b'{"topic":"t"', b"", b"\xff", b'{"data":1}']


async def keep(node, *payloads):
    for payload in payloads:
        now = datetime.now(UTC)
        await node.history.append(LAB, Entry(payload), Retention(100), now)


def good(n):
    return b'{"topic":"t","data":%d}' % n


@pytest.mark.parametrize("bad", BAD, ids=repr)
async def test_one_bad_message_costs_one_message(node, ada, bad):
    await keep(node, good(1), bad, good(2))

    page = await node.hub.history("lab")
    assert [m.data for m in page.messages] == [1, 2]
    assert page.offset == 3
    assert [m.stream.offset for m in page.messages] == [1, 3]
    assert "entry_not_read" in node.logger.of("error")

    answers = await ada.ask(
        {"id": "h", "topic": "system:history", "ack": True, "data": {"room": "lab"}}
    )
    [answer] = [a for a in answers if a.get("ref") == "h"]
    assert [m["data"] for m in answer["data"]["messages"]] == [1, 2]
    assert answer["data"]["offset"] == 3


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_who_reads_page_by_page_gets_all_the_others(node, ada, limit):
    """A page of nothing but bad ones is not the end."""
    start = await node.hub.room("lab")
    await keep(node, *BAD, good(1), *BAD, good(2), *BAD)

    found, since = [], start
    while page := (await node.hub.history("lab", since, limit)).messages:
        found += [message.data for message in page]
        since = page[-1].stream
    assert found == [1, 2]


async def test_a_member_that_comes_back_gets_all_the_others(node):
    start = await node.hub.create_room("lab", RoomOptions(history_size=100))
    ben = await node.connect("ben", session=True)
    await keep(node, good(1), b'{"topic":"t"', good(2))

    at = {"epoch": start.epoch, "offset": 0}
    heard = await ben.ask(
        {"id": "r", "topic": "system:resume", "ack": True, "data": {"rooms": {"lab": at}}}
    )

    assert [m["data"] for m in without_answer(heard)] == [1, 2]
    [answer] = [m for m in heard if m.get("ref") == "r"]
    assert answer["data"]["rooms"]["lab"]["recovered"]


# --- and it costs little to look


@pytest.fixture
def decoded(monkeypatch):
    """The sizes of the payloads that were decoded."""
    sizes = []
    loads = JsonFormat.loads

    def counted(self, data):
        sizes.append(len(data))
        return loads(self, data)

    monkeypatch.setattr(JsonFormat, "loads", counted)
    return sizes


LARGE = json.dumps([{"n": n, "text": "some eggs"} for n in range(200)])


class Everything:
    def can_publish(self, meta, topic, event):
        return True

    def can_subscribe(self, meta, room):
        return True


@pytest.mark.parametrize("room", ["lab", "hall"])
@pytest.mark.parametrize("access", [None, Everything()], ids=["free", "with access control"])
async def test_a_large_message_is_relayed_kept_and_given_undecoded(
    make_node, decoded, room, access
):
    node = await make_node(client_commands=True, access_controller=access)
    await node.hub.create_room("lab", RoomOptions(history_size=100))
    ada = await node.connect("ada")
    await node.hub.join(room, ada.id)

    await ada.ask(publish(room, LARGE))
    await ada.ask({"id": "h", "topic": "system:history", "ack": True, "data": {"room": room}})

    assert max(decoded) < 100


async def test_of_a_page_only_what_goes_out_is_looked_at(node, ada, monkeypatch):
    monkeypatch.setattr(commands, "MAX_PAGE_BYTES", 1)
    await keep(node, *map(good, range(1, 51)))
    decode, seen = node.node.ports.codec.decode, []

    def counted(payload):
        seen.append(payload)
        return decode(payload)

    monkeypatch.setattr(node.node.ports.codec, "decode", counted)
    answers = await ada.ask(
        {"id": "h", "topic": "system:history", "ack": True, "data": {"room": "lab"}}
    )

    [answer] = [a for a in answers if a.get("ref") == "h"]
    assert [m["data"] for m in answer["data"]["messages"]] == [50]
    assert len([payload for payload in seen if payload.startswith(b'{"topic":"t"')]) == 1
