"""Histories over real sockets: one order for everybody, pages, and gaps that are told."""

from __future__ import annotations

import asyncio

import pytest

from eyewall import (
    AckOptions,
    HistoryPage,
    Membership,
    Message,
    QueueConfig,
    RoomOptions,
    SendOptions,
    StreamPosition,
    Target,
)
from tests.entrypoints.house import cluster, commanded
from tests.entrypoints.wire import eventually, peer, soon

KEEPS = RoomOptions(history_size=500)


async def messages(client, count, room="r"):
    """The next ``count`` messages of a room that a client gets."""
    found = []
    while len(found) < count:
        message = await client.receive()
        if message["topic"] == f"room:{room}":
            found.append(message)
    return found


async def test_all_members_of_two_servers_see_one_order_whoever_publishes_at_once(pair):
    """Clients and applications of both servers publish at the same time."""
    await pair.here.hub.create_room("r", KEEPS)
    await pair.ada.join("r")
    await pair.ben.join("r")

    async def application(server, name):
        for n in range(50):
            await server.hub.broadcast_room("r", "room:r", data=f"{name}{n}")

    async def client(one, name):
        for n in range(50):
            await one.send("system:publish", {"room": "r", "data": f"{name}{n}"})

    await asyncio.gather(
        application(pair.here, "a"),
        application(pair.there, "b"),
        client(pair.ada, "c"),
        client(pair.ben, "d"),
    )
    ada, ben = await messages(pair.ada, 200), await messages(pair.ben, 200)

    assert ada == ben
    assert [m["stream"]["offset"] for m in ada] == list(range(1, 201))
    assert len({m["stream"]["epoch"] for m in ada}) == 1
    for name in "abcd":
        said = [m["data"] for m in ada if m["data"].startswith(name)]
        assert said == [f"{name}{n}" for n in range(50)], "and each publisher's own order"
    kept = (await pair.there.hub.history("r", limit=200)).messages
    assert [m.data for m in kept] == [m["data"] for m in ada]


async def test_the_hub_reads_pages_and_says_where_a_room_stands(pair):
    hub = pair.here.hub
    created = await hub.create_room("r", KEEPS)
    membership = await hub.join("r", pair.ben.conn_id)
    for n in range(3):
        await hub.emit_to_room("r", Message("room:r", data=n))

    page = await pair.there.hub.history("r", membership, limit=2)

    assert isinstance(membership, Membership)
    assert (membership.epoch, membership.offset) == (created.epoch, 0)
    assert isinstance(page, HistoryPage)
    assert [m.data for m in page.messages] == [0, 1]
    assert page.messages[1].stream == StreamPosition("r", created.epoch, 2)
    assert (page.epoch, page.offset) == (created.epoch, 3)
    assert (await hub.room("r")).offset == 3


async def test_a_client_reads_what_it_has_heard(pair):
    await pair.here.hub.create_room("r", KEEPS)
    await pair.ada.join("r")
    await pair.ada.send("system:publish", {"room": "r", "event": "say", "data": {"é": [1, 2.50]}})
    (live,) = await messages(pair.ada, 1)

    answer = await pair.ada.request("system:history", {"room": "r"})

    assert answer["messages"] == [live]
    assert (answer["epoch"], answer["offset"]) == (live["stream"]["epoch"], 1)


async def test_without_commands_no_client_reads_a_history():
    async with commanded(client_commands=False) as server, peer(server) as ada:
        assert (await ada.refused("system:history", {"room": "r"}))["code"] == "handler_not_found"


async def test_a_client_that_did_not_read_is_told_of_its_gap():
    """Its queue is full, it reads again, and then it knows from where on it lacks messages."""
    async with (
        commanded(queue=QueueConfig(size=4)) as server,
        peer(server, query="?name=ada") as ada,
    ):
        await server.hub.create_room("r", RoomOptions(history_size=2000))
        await ada.join("r")
        transport = ada.socket.transport
        transport.pause_reading()
        sent = 0
        while not server.hub.stats().drops:
            await server.hub.broadcast_room("r", "room:r", data="x" * 50_000)
            sent += 1
            await asyncio.sleep(0)
            assert sent < 2000
        transport.resume_reading()

        offsets = []
        while (message := await ada.receive())["topic"] == "room:r":
            offsets.append(message["stream"]["offset"])

        assert message["topic"] == "system:gap"
        assert message["data"]["offset"] == len(offsets)
        assert offsets == list(range(1, len(offsets) + 1))
        await eventually(lambda: not len(server._node.parts.sender.gaps))
        rest = await soon(server.hub.history("r", message["data"], limit=2000))
        assert len(rest.messages) == sent - len(offsets)


async def test_a_cluster_that_shares_no_history_begins_epochs_of_its_own():
    """A server's own memory is not another's: positions of one are foreign to the other."""
    async with cluster() as one, cluster() as other:
        first = await one.here.hub.create_room("r", KEEPS)
        second = await other.here.hub.create_room("r", KEEPS)
        await one.here.hub.broadcast_room("r", "room:r")

        assert first.epoch != second.epoch
        assert (await other.here.hub.history("r", first)).messages == []


async def confirm(client, message):
    """Acknowledge a message, if it asks for that."""
    if message.get("ack"):
        await client.send(message["topic"], {"status": "ok"}, event="ack", ref=message["id"])


async def passing(hub, way, message, skip):
    """Send what the room is not to keep."""
    if way == "broadcast_room":
        await hub.broadcast_room("r", message.topic, message.event, message.data, history=False)
    elif way == "emit_to_room":
        await hub.emit_to_room("r", message, SendOptions(history=False))
    elif way == "emit_to_room_except":
        await hub.emit_to_room_except("r", skip, message, SendOptions(history=False))
    elif way == "acked":
        await hub.emit_to_room("r", message, SendOptions(history=False, require_ack=True))
    elif way == "acked but for one":
        options = SendOptions(history=False, require_ack=True)
        await hub.emit_to_room_except("r", skip, message, options)
    else:
        await hub.emit_with_ack(Target.room("r"), message, AckOptions(history=False))


@pytest.mark.parametrize(
    "way",
    [
        *("broadcast_room", "emit_to_room", "emit_to_room_except"),
        *("acked", "acked but for one", "emit_with_ack"),
    ],
)
async def test_what_is_not_to_be_kept_takes_no_place_on_any_node(pair, way):
    """It reaches the members of both nodes, without a position; the room keeps what was said."""
    hub = pair.here.hub
    await hub.create_room("r", RoomOptions(history_size=2))
    for client in (pair.ada, pair.ben):
        await client.join("r")
    await hub.broadcast_room("r", "room:r", data="one")
    await hub.broadcast_room("r", "room:r", data="two")

    note = Message("room:r", "read", {"by": "ada"})
    call = asyncio.create_task(passing(hub, way, note, skip=[pair.ada.conn_id]))
    there = await messages(pair.ben, 3)
    await confirm(pair.ben, there[-1])
    if "but" not in way and "except" not in way:
        here = await messages(pair.ada, 3)
        assert here[-1]["id"] == there[-1]["id"]
        await confirm(pair.ada, here[-1])
    await call
    await hub.broadcast_room("r", "room:r", data="three")

    assert [m["data"] for m in there] == ["one", "two", {"by": "ada"}]
    assert "stream" not in there[-1]
    (after,) = await messages(pair.ben, 1)
    assert after["stream"]["offset"] == 3, "the next one's place is free"
    kept = (await pair.there.hub.history("r")).messages
    assert [m.data for m in kept] == ["two", "three"]


async def test_what_is_not_kept_reaches_a_room_that_keeps_nothing_too(pair):
    await pair.ben.join("r")

    await pair.here.hub.broadcast_room("r", "room:r", "read", history=False)

    assert (await messages(pair.ben, 1))[0]["event"] == "read"


@pytest.mark.parametrize("wrong", [None, 0, "no"])
async def test_whether_a_message_is_kept_is_yes_or_no(pair, wrong):
    with pytest.raises(ValueError, match="history must be True or False"):
        await pair.here.hub.broadcast_room("r", "room:r", history=wrong)
    for options in (SendOptions, AckOptions):
        with pytest.raises(ValueError, match="history must be True or False"):
            options(history=wrong)
