"""api.md, "Hub": users, metadata, rooms and messaging on one node."""

from __future__ import annotations

import pytest

from eyewall import (
    ConnectionClosed,
    DisconnectReason,
)
from tests.entrypoints.house import ADA, BEN, CY, NEWS
from tests.entrypoints.wire import UNIT, eventually, peer

# --- who is here


async def test_connections_and_users_of_this_node(house):
    one, two, nobody = await house.come("ada"), await house.come("ada"), await house.come()
    hub = house.hub

    assert set(hub.connection_ids()) == {one.conn_id, two.conn_id, nobody.conn_id}
    assert {conn.id for conn in hub.connections()} == set(hub.connection_ids())
    assert hub.users() == ["ada"]
    assert set(hub.user_connections(ADA)) == {one.conn_id, two.conn_id}
    assert hub.user_connections(BEN) == []
    assert hub.connection(one.conn_id).id == one.conn_id
    assert hub.connection("nobody") is None
    assert hub.get_meta("nobody") is None


async def test_set_meta_merges_and_moves_every_index(house):
    client = await house.come("ada", tags="red blue", roles="staff")
    hub = house.hub

    meta = hub.set_meta(client.conn_id, user_id="ben", tags=["green"], device_id="d1")

    assert meta == hub.get_meta(client.conn_id)
    assert (meta.user_id, meta.tags, meta.device_id) == ("ben", {"green"}, "d1")
    assert meta.roles == {"staff"}, "a field that is not named stays"
    assert meta.ip == "127.0.0.1"
    assert hub.users() == ["ben"]
    assert hub.user_connections(ADA) == []
    assert hub.user_connections(BEN) == [client.conn_id]
    assert hub.find_by_tag("red") == hub.find_by_tag("blue") == []
    assert hub.find_by_tag("green") == [client.conn_id]
    assert (await hub.presence(ADA)).online is False
    assert (await hub.presence(BEN)).online is True


async def test_set_meta_of_what_is_wrong_raises(house):
    client = await house.come("ada")

    with pytest.raises((ValueError, TypeError)):
        house.hub.set_meta(client.conn_id, colour="red")
    with pytest.raises(ConnectionClosed):
        house.hub.set_meta("nobody", device_id="d1")


async def test_indexes_forget_who_leaves(house):
    async with peer(house.server, query="?name=ada&tags=red") as client:
        assert house.hub.find_by_tag("red") == [client.conn_id]
    await eventually(lambda: not house.hub.connection_ids())

    assert house.hub.find_by_tag("red") == []
    assert house.hub.users() == []


async def test_a_user_who_logs_in_later_is_found(house):
    client = await house.come()
    house.hub.set_meta(client.conn_id, user_id=ADA)

    report = await house.hub.send_to_user(ADA, NEWS)

    assert report.success == 1
    assert (await client.receive())["topic"] == "news"


# --- presence


async def test_presence_of_users(house):
    await house.come("ada")
    await house.come("ada")
    hub = house.hub

    ada = await hub.presence(ADA)
    many = await hub.presence_many([ADA, BEN])

    assert (ada.online, ada.connections, ada.typing) == (True, 2, {})
    assert set(many) == {"ada", "ben"}
    assert (many[BEN].online, many[BEN].connections, many[BEN].last_seen) == (False, 0, None)


async def test_typing_is_seen_until_it_ends(house):
    await house.come("ada")
    ben = await house.come("ben")
    hub = house.hub
    await hub.join("r", ben.conn_id)

    await hub.set_typing(ADA, "r", ttl=0.2 * UNIT)

    until = (await hub.presence(ADA)).typing["r"]
    assert until.tzinfo is not None
    assert (await ben.expect("room:r", "typing"))["data"] == {"user_id": "ada", "typing": True}
    assert (await ben.expect("room:r", "typing"))["data"] == {"user_id": "ada", "typing": False}
    assert (await hub.presence(ADA)).typing == {}


# --- operations


async def test_disconnecting_a_user_or_a_connection(house):
    hub = house.hub
    one, two, ben = await house.come("ada"), await house.come("ada"), await house.come("ben")

    assert await hub.disconnect_user(ADA, DisconnectReason.DISCONNECTED) == 2
    assert await hub.disconnect_user(CY, DisconnectReason.DISCONNECTED) == 0
    assert await hub.disconnect_conn(ben.conn_id, DisconnectReason.NORMAL) is True
    assert await hub.disconnect_conn(ben.conn_id, DisconnectReason.NORMAL) is False
    assert hub.connection_ids() == [], "a connection ends when its close is decided"

    for client in (one, two):
        assert await client.closed() == (4503, "disconnected")
    assert await ben.closed() == (1000, "normal")


async def test_counts(house):
    hub = house.hub
    one, two = await house.come("ada"), await house.come("ada")
    await hub.join("r", one.conn_id)
    hub.reset_stats()

    await one.refused("nowhere")
    await one.send("x", event="ack", ref="unknown")
    await one.send("nowhere")
    await one.receive()
    await hub.broadcast("news", "message", 1)
    stats = hub.stats()

    assert (stats.connections, stats.users, stats.rooms) == (2, 1, 1)
    assert stats.in_messages == 3, "routed or not, acks too"
    assert stats.errors == 2, "every error or nack sent"
    assert stats.out_messages == 4, "acks and errors too"
    assert stats.drops == 0
    assert stats.started_at.tzinfo is not None
    assert stats.uptime >= 0
    await two.receive()
    hub.reset_stats()
    cleared = hub.stats()
    assert (cleared.in_messages, cleared.out_messages, cleared.errors) == (0, 0, 0)
    assert (cleared.connections, cleared.users, cleared.rooms) == (2, 1, 1)
