"""Operations on connections, wherever in the cluster they are."""

import asyncio

import pytest

from eyewall.application.cluster.peers import CALL_TIMEOUT
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import (
    ConnectionClosed,
    Forbidden,
    JoinForbidden,
    RoomFull,
    Unavailable,
)
from eyewall.domain.room import JoinOptions, RoomOptions, RoomRole
from tests.application.engines import Bus
from tests.application.fakes import settle

# --- ends


async def test_a_connection_is_ended_here_and_elsewhere(one, two):
    here, there = await one.connect("ada"), await two.connect("bob")

    for client in (here, there):
        assert await one.hub.disconnect_conn(client.id) is True
        assert client.closed is DisconnectReason.DISCONNECTED
        assert await one.hub.disconnect_conn(client.id) is False


@pytest.mark.parametrize("conn_id", ["", "x", "x@n1", "x@n2", "x@n9", "@", "@@n2"])
async def test_ending_what_is_not_there_says_so(one, two, conn_id):
    assert await one.hub.disconnect_conn(conn_id) is False


async def test_a_user_is_ended_on_all_nodes(one, two, make_node):
    clients = [await node.connect("ada") for node in (one, two, two)]
    bob = await two.connect("bob")
    three = await make_node()

    assert await three.hub.disconnect_user("ada", DisconnectReason.POLICY_VIOLATION) == 3

    assert {client.closed for client in clients} == {DisconnectReason.POLICY_VIOLATION}
    assert bob.closed is None
    assert await one.hub.disconnect_user("ada") == 0
    await settle()
    assert not (await one.hub.presence("ada")).online


async def test_a_reason_may_be_its_name_and_has_to_be_one(one):
    ada = await one.connect("ada")
    with pytest.raises(ValueError, match="bored"):
        await one.hub.disconnect_conn(ada.id, "bored")

    await one.hub.disconnect_conn(ada.id, "replaced")

    assert ada.closed is DisconnectReason.REPLACED


async def test_a_silent_node_does_not_keep_the_others_from_ending_a_user(make_node, clock):
    bus = Bus()
    one, two, three = [await make_node(pubsub=bus) for _ in range(3)]
    lost, found, own = [await node.connect("ada") for node in (two, three, one)]
    bus.deaf.add("eyewall:node:n2")
    ending = asyncio.create_task(one.hub.disconnect_user("ada"))
    await settle()
    assert found.closed is own.closed is DisconnectReason.DISCONNECTED

    await clock.advance(CALL_TIMEOUT)

    assert await ending == 2
    assert lost.closed is None
    assert one.logger.fields("node_silent")["asked"] == "disconnect"


async def test_a_bus_that_is_away_is_an_error_after_the_own_connections_have_ended(make_node):
    bus = Bus()
    one, two = await make_node(pubsub=bus), await make_node(pubsub=bus)
    own, _ = await one.connect("ada"), await two.connect("ada")
    bus.away = True

    with pytest.raises(Unavailable):
        await one.hub.disconnect_user("ada")

    assert own.closed is DisconnectReason.DISCONNECTED


async def test_the_oldest_connection_of_a_user_has_to_go(make_node):
    one = await make_node(max_connections_per_user=2)
    two = await make_node(max_connections_per_user=2)
    clients = [await node.connect("ada") for node in (one, two, one, two)]
    other = await one.connect("bob")

    assert [client.closed for client in clients] == [
        DisconnectReason.REPLACED,
        DisconnectReason.REPLACED,
        None,
        None,
    ]
    assert other.closed is None
    assert (await one.hub.presence("ada")).connections == 2


async def test_anonymous_connections_are_nobodys_oldest(make_node):
    node = await make_node(max_connections_per_user=1)

    clients = [await node.connect() for _ in range(3)]

    assert {client.closed for client in clients} == {None}


# --- rooms of connections elsewhere


async def test_a_connection_elsewhere_joins_and_leaves(one, two):
    ada = await two.connect("ada", roles=["staff"])
    await one.hub.create_room("lab", RoomOptions(policy="private", allowed_roles=["staff"]))

    membership = await one.hub.join("lab", ada.id, JoinOptions(role=RoomRole.MODERATOR))

    assert (membership.conn_id, membership.role, membership.members) == (
        ada.id,
        RoomRole.MODERATOR,
        1,
    )
    assert ada.conn.roles == {"lab": RoomRole.MODERATOR}
    assert await one.hub.leave("lab", ada.id) is True
    assert await one.hub.leave("lab", ada.id) is False
    assert ada.conn.rooms == frozenset()


async def test_a_connection_elsewhere_leaves_all(one, two):
    ada = await two.connect("ada")
    for room in ("a", "b"):
        await one.hub.join(room, ada.id)

    assert await one.hub.leave_all(ada.id) == 2
    assert await one.hub.leave_all(ada.id) == 0


async def test_join_options_travel(one, two):
    await one.hub.create_room("lab", RoomOptions(policy="invite_only"))
    ada, bob = await two.connect("ada"), await two.connect("bob")
    with pytest.raises(JoinForbidden):
        await one.hub.join("lab", ada.id)

    assert await one.hub.join("lab", ada.id, JoinOptions(force=True))
    assert await one.hub.join("lab", bob.id, JoinOptions(invited_by="ada"))


async def test_a_refusal_elsewhere_is_the_same_refusal(one, two):
    await one.hub.create_room("lab", RoomOptions(capacity=1))
    ada, bob = await two.connect("ada"), await two.connect("bob")
    await one.hub.join("lab", ada.id)
    with pytest.raises(RoomFull):
        await one.hub.join("lab", bob.id)
    await one.hub.ban("lab", "bob")
    with pytest.raises(JoinForbidden):
        await one.hub.join("lab", bob.id)


async def test_the_access_controller_of_that_node_is_asked(one, make_node):
    class Nobody:
        def can_publish(self, meta, topic, event):
            return True

        def can_subscribe(self, meta, room_id):
            return False

    strict = await make_node(access_controller=Nobody())
    ada = await strict.connect("ada")

    with pytest.raises(Forbidden):
        await one.hub.join("lab", ada.id, JoinOptions(force=True))


@pytest.mark.parametrize("conn_id", ["", "x", "x@n1", "x@n2", "x@n9"])
async def test_a_connection_that_is_nowhere_can_not_join(one, two, conn_id):
    with pytest.raises(ConnectionClosed):
        await one.hub.join("lab", conn_id)
    assert await one.hub.room("lab") is None


async def test_a_node_that_does_not_answer_is_unavailable(make_node, clock):
    bus = Bus()
    one, two = await make_node(pubsub=bus), await make_node(pubsub=bus)
    ada = await two.connect("ada")
    bus.deaf.add("eyewall:node:n2")
    joining = asyncio.create_task(one.hub.join("lab", ada.id))

    await clock.advance(CALL_TIMEOUT)

    with pytest.raises(Unavailable):
        await joining


# --- errors


async def test_what_went_wrong_with_a_connection_is_told_to_the_hooks(one):
    told = []
    one.hub.on_error(lambda conn, error: told.append((conn.id, error)))
    ada = await one.connect("ada")
    error = OSError("reset")

    await ada.vanish(DisconnectReason.READ_ERROR, error)

    assert told == [(ada.id, error)]
