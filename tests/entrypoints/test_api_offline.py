"""api.md and guarantees.md: messages to users who are away, over real sockets."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from eyewall import (
    FailureReason,
    MemoryPubSub,
    MemoryState,
    Message,
    Misuse,
    OfflineStore,
    RetryPolicy,
    SendOptions,
    Server,
    UserOffline,
)
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.adapters.offline.sqlite import SqliteOffline
from tests.entrypoints.house import ADA, NEWS, ack, by_name, open_house
from tests.entrypoints.wire import UNIT, WITHIN, eventually, peer, running, soon

STORE = SendOptions(offline="store", ack_timeout=WITHIN)
IMPATIENT = SendOptions(offline="store", ack_timeout=0.1 * UNIT)


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path) -> OfflineStore:
    return MemoryOffline() if request.param == "memory" else SqliteOffline(tmp_path / "offline.db")


@pytest.fixture
async def house(store):
    async with open_house(offline=store) as house:
        yield house


async def test_what_is_sent_to_a_user_who_is_away_comes_at_the_next_connect(house):
    failures = []
    house.hub.on_user_offline(failures.append)
    for number in range(3):
        report = await house.hub.send_to_user(ADA, Message("news", data=number), STORE)
        assert (report.total, report.stored, report.failed) == (1, 1, 0)
    assert [failure.reason for failure in failures] == [FailureReason.USER_OFFLINE] * 3

    client = await house.come("ada")
    heard = [await client.receive() for _ in range(3)]

    assert [message["data"] for message in heard] == [0, 1, 2]
    assert all(message["ack"] is True for message in heard)
    assert len({message["id"] for message in heard}) == 3


@pytest.mark.parametrize("nobody", [None, "", "u" * 201, 5])
async def test_what_is_no_user_is_refused_and_nothing_is_kept_for_it(house, nobody):
    failures = []
    house.hub.on_send_failure(failures.append)

    for send in (house.hub.send_to_user, house.hub.send_to_user_with_retry):
        with pytest.raises(ValueError, match="user_id must be"):
            await send(nobody, NEWS, options=STORE)
    with pytest.raises(ValueError, match="user_id must be"):
        await house.hub.send_to_users(["ada", nobody], NEWS, STORE)

    assert failures == []


async def test_it_comes_until_it_is_acked(house):
    await house.hub.send_to_user(ADA, NEWS, STORE)
    client = await house.come("ada")
    first = await client.receive()
    await client.socket.close()
    await eventually(lambda: not house.hub.user_connections(ADA))

    client = await house.come("ada")
    assert await ack(client) == first["id"]
    await client.before_fence()
    await client.socket.close()
    await eventually(lambda: not house.hub.user_connections(ADA))
    client = await house.come("ada")

    assert await client.before_fence() == []


async def test_a_message_that_no_device_has_acked_is_stored(house):
    await house.come("ada")

    report = await house.hub.send_to_user(ADA, NEWS, IMPATIENT)

    assert (report.total, report.stored, report.failed) == (1, 1, 0)
    again = await house.come("ada")
    assert (await again.receive())["data"] == {"n": 1}


async def test_one_ack_is_enough(house):
    phone, laptop = await house.come("ada"), await house.come("ada")
    sending = asyncio.ensure_future(house.hub.send_to_user(ADA, NEWS, IMPATIENT))
    await ack(phone)
    await laptop.receive()

    report = await sending

    assert (report.success, report.stored) == (1, 0)
    assert await (await house.come("ada")).before_fence() == []


async def test_a_nack_settles_it(house):
    client = await house.come("ada")
    sending = asyncio.ensure_future(house.hub.send_to_user(ADA, NEWS, STORE))
    await ack(client, nack="no")

    assert (await sending).stored == 0
    assert await (await house.come("ada")).before_fence() == []


async def test_a_late_ack_takes_it_out_of_the_store(house):
    client = await house.come("ada")
    assert (await house.hub.send_to_user(ADA, NEWS, IMPATIENT)).stored == 1
    await ack(client)
    await client.before_fence()
    await soon(house.server._node.parts.stored.late_acks.close())

    assert await (await house.come("ada")).before_fence() == []


async def test_newer_messages_come_after_the_stored_ones(house):
    for number in range(40):
        await house.hub.send_to_user(ADA, Message("old", data=number), STORE)
    client = await house.come("ada")
    sending = asyncio.ensure_future(house.hub.send_to_user(ADA, Message("new")))
    heard = []
    while len(heard) < 41:
        message = await client.receive()
        heard.append((message["topic"], message.get("data")))
        if message.get("ack"):
            await client.send(message["topic"], event="ack", ref=message["id"])

    assert heard == [*(("old", number) for number in range(40)), ("new", None)]
    assert (await sending).success == 1


async def test_stored_messages_come_before_the_first_answer(house):
    """At connect: registered, welcomed, hooks, stored messages, then reading."""
    await house.hub.send_to_user(ADA, NEWS, STORE)

    @house.hub.on_connect
    async def hello(conn):
        await conn.send("hello")

    client = await house.come("ada")

    assert [message["topic"] for message in await client.before_fence()] == ["hello", "news"]


async def test_clients_of_messagepack_get_them_too(house):
    await house.hub.send_to_user(ADA, NEWS, STORE)
    protocols = [Subprotocol("eyewall.v1.msgpack")]
    async with connect(f"{house.server.url}?name=ada", subprotocols=protocols) as socket:
        assert msgspec.msgpack.decode(await soon(socket.recv()))["topic"] == "system:welcome"
        message = msgspec.msgpack.decode(await soon(socket.recv()))

    assert (message["topic"], message["data"], message["ack"]) == ("news", {"n": 1}, True)


async def test_with_retries_it_is_stored_at_the_end(house):
    policy = RetryPolicy(max_retries=1, base_delay=0.0)

    result = await house.hub.send_to_user_with_retry(ADA, NEWS, policy, STORE)

    assert result.success
    assert await ack(await house.come("ada"))


async def test_what_is_stored_outlives_the_server(store, tmp_path):
    async with open_house(offline=store) as house:
        await house.hub.send_to_user(ADA, NEWS, STORE)
    if isinstance(store, SqliteOffline):
        store = SqliteOffline(tmp_path / "offline.db")

    async with open_house(offline=store) as house:
        assert await ack(await house.come("ada"))


async def test_the_user_may_come_to_any_node(store):
    shared = {
        "pubsub": MemoryPubSub(),
        "state": MemoryState(),
        "offline": store,
        "authenticator": by_name,
    }
    async with running(node_id="n1", **shared) as here, running(node_id="n2", **shared) as there:
        for number in range(40):
            await here.hub.send_to_user(ADA, Message("old", data=number), STORE)
        async with (
            peer(there, query="?name=ada") as phone,
            peer(here, query="?name=ada") as laptop,
        ):
            heard = []
            for _ in range(40):
                # Acked when both have it: what one of them has acked is nobody's any more.
                both = [await phone.receive(), await laptop.receive()]
                heard.append([message["data"] for message in both])
                for client, message in zip((phone, laptop), both, strict=True):
                    await client.send("old", event="ack", ref=message["id"])

    assert heard == [[number, number] for number in range(40)]


async def test_the_server_may_store_by_default(store):
    async with open_house(offline=store, offline_default="store") as house:
        assert (await house.hub.send_to_user(ADA, NEWS)).stored == 1
        assert (await house.hub.send_to_user(ADA, NEWS, SendOptions(offline="drop"))).failed == 1

        assert len(await (await house.come("ada")).before_fence()) == 1


async def test_without_a_store_nothing_is_stored():
    async with open_house() as house:
        report = await house.hub.send_to_user(ADA, NEWS)
        assert isinstance(report.reports[0].error, UserOffline)

        with pytest.raises(Misuse):
            await house.hub.send_to_user(ADA, NEWS, STORE)


def test_a_default_without_a_store_is_refused():
    with pytest.raises(ValueError, match="offline_default"):
        Server(offline_default="store")
