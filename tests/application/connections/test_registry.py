import asyncio
from datetime import timedelta

import pytest

from eyewall.domain.connection import DisconnectReason
from eyewall.domain.envelope import Message
from eyewall.domain.errors import ConnectionClosed, Overloaded, ShuttingDown
from eyewall.domain.identity import ConnMeta
from tests.application.fakes import START, settle


@pytest.fixture
def ends(node):
    """What the ``on_disconnect`` hooks heard: user, reason, rooms."""
    ends = []

    @node.hub.on_disconnect
    def hook(conn, reason):
        ends.append((conn.user_id, reason, set(conn.rooms)))

    return ends


# --- what is known of one


async def test_what_a_connection_says_of_itself(node):
    ada = await node.connect("ada", tags={"vip"})
    await node.hub.join("r", ada.id)
    await node.advance(30)
    ada.say({"topic": "x"})
    await node.advance(5)

    conn = ada.conn
    assert conn.user_id == "ada"
    assert conn.meta.tags == {"vip"}
    assert conn.is_open
    assert conn.rooms == {"r"}
    assert conn.connected_at == START
    assert conn.last_activity == START + timedelta(seconds=30)
    assert conn.user_data == {}


async def test_user_data_is_kept_for_as_long_as_the_connection(node):
    ada = await node.connect("ada")

    ada.conn.user_data["seen"] = 1

    assert node.hub.connection(ada.id).user_data == {"seen": 1}


async def test_ids_are_unguessable_and_name_the_node(node):
    clients = [await node.connect() for _ in range(3)]

    assert len({c.id for c in clients}) == 3
    assert all(c.id.endswith("@n1") and len(c.id) > 12 for c in clients)


async def test_the_registry_is_asked_by_id_user_and_tag(node):
    ada = await node.connect("ada", tags={"vip"})
    phone = await node.connect("ada")
    bob = await node.connect("bob", tags={"vip"})
    hub = node.hub

    assert hub.connection(ada.id) is ada.conn
    assert hub.connection("nobody") is None
    assert list(hub.connections()) == [ada.conn, phone.conn, bob.conn]
    assert hub.connection_ids() == [ada.id, phone.id, bob.id]
    assert hub.users() == ["ada", "bob"]
    assert hub.user_connections("ada") == [ada.id, phone.id]
    assert hub.find_by_tag("vip") == [ada.id, bob.id]
    assert hub.get_meta(bob.id).user_id == "bob"
    assert hub.get_meta("nobody") is None


async def test_set_meta_merges_and_moves_every_index(node):
    ada = await node.connect("ada", tags={"vip"}, roles={"admin"})

    meta = node.hub.set_meta(ada.id, tags={"new"}, user_id="eve")

    assert meta.roles == {"admin"}
    assert ada.conn.meta is meta
    assert node.hub.find_by_tag("vip") == []
    assert node.hub.find_by_tag("new") == [ada.id]
    assert node.hub.users() == ["eve"]


async def test_set_meta_of_who_is_not_here(node):
    with pytest.raises(ConnectionClosed):
        node.hub.set_meta("nobody", tags={"x"})


# --- limits


async def test_the_node_s_limit_counts_handshakes_too(make_node):
    node = await make_node(max_connections=2)
    await node.connect("ada")
    node.transport_events.reserve(None)

    with pytest.raises(Overloaded):
        node.transport_events.reserve(None)


async def test_an_address_has_a_limit_of_its_own(make_node):
    node = await make_node(max_connections_per_address=1)
    await node.connect("ada", ip="10.0.0.1")

    with pytest.raises(Overloaded):
        node.transport_events.reserve("10.0.0.1")
    node.transport_events.reserve("10.0.0.2")
    node.transport_events.reserve(None)


async def test_a_place_is_given_back_once(make_node):
    node = await make_node(max_connections=1, max_connections_per_address=1)
    place = node.transport_events.reserve("10.0.0.1")

    place.release()
    place.release()

    node.transport_events.reserve("10.0.0.1")
    with pytest.raises(Overloaded):
        node.transport_events.reserve("10.0.0.1")


async def test_a_connection_that_ends_gives_its_place_back(make_node):
    node = await make_node(max_connections=1)
    ada = await node.connect("ada", ip="10.0.0.1")
    await ada.vanish()

    await node.connect("bob")


async def test_a_draining_node_lets_nobody_in(node):
    node.parts.connections.draining = True

    with pytest.raises(ShuttingDown):
        node.transport_events.reserve(None)


# --- the end


async def test_an_end_is_in_force_when_it_is_decided_not_when_the_socket_is_gone(node):
    ada, bob = await node.connect("ada", tags={"vip"}), await node.connect("bob")
    for client in (ada, bob):
        await node.hub.join("r", client.id)

    await ada.conn.close()

    assert not ada.conn.is_open
    assert node.hub.connection(ada.id) is None
    assert node.hub.users() == ["bob"]
    assert node.hub.find_by_tag("vip") == []
    assert await node.hub.broadcast_room("r", "t") == 1
    assert await node.hub.broadcast("t") == 1
    await settle()
    assert (await node.hub.room("r")).members == 1
    assert not (await node.hub.presence("ada")).online


async def test_what_is_queued_is_written_before_the_close(node):
    ada = await node.connect("ada")
    ada.link.stalled = True
    await ada.conn.send("last words")

    await ada.conn.close(DisconnectReason.DISCONNECTED)
    ada.link.read()

    assert [m["topic"] for m in ada.heard()] == ["last words"]
    assert ada.closed is DisconnectReason.DISCONNECTED


async def test_whatever_ends_it_ends_it_once(node, ends):
    ada = await node.connect("ada")

    await ada.conn.close()
    await ada.conn.close(DisconnectReason.DISCONNECTED)
    await node.hub.disconnect_conn(ada.id)
    await ada.vanish()

    assert ends == [("ada", DisconnectReason.NORMAL, set())]


async def test_a_link_that_ended_by_itself_is_not_closed_again(node, ends):
    ada = await node.connect("ada")

    node.transport_events.lost(ada.link, DisconnectReason.CLIENT_CLOSED)
    await settle()

    assert ada.closed is None
    assert ends == [("ada", DisconnectReason.CLIENT_CLOSED, set())]


async def test_the_hooks_of_the_end_still_see_meta_and_rooms(node, ends):
    """It has left them all by then: rooms, indexes, presence, pending acks."""
    ada = await node.connect("ada")
    await node.hub.join("a", ada.id)
    await node.hub.join("b", ada.id)
    seen = []

    @node.hub.on_disconnect
    async def hook(conn, reason):
        seen.append(await node.hub.members("a"))
        seen.append((await node.hub.presence("ada")).online)
        seen.append(node.hub.pending_acks(conn.id))

    await ada.vanish()

    assert ends == [("ada", DisconnectReason.CONNECTION_LOST, {"a", "b"})]
    assert seen == [[], False, []]


async def test_a_disconnect_hook_that_raises_does_not_stop_the_others(node):
    told = []

    @node.hub.on_disconnect
    def broken(conn, reason):
        raise RuntimeError

    node.hub.on_disconnect(lambda conn, reason: told.append(reason))
    ada = await node.connect("ada")
    await ada.vanish()

    assert told == [DisconnectReason.CONNECTION_LOST]


async def test_the_disconnect_hooks_come_after_the_connect_hooks_have_run(node):
    told = []
    gate = asyncio.Event()

    @node.hub.on_connect
    async def begin(conn):
        await gate.wait()
        told.append("connect")

    node.hub.on_disconnect(lambda conn, reason: told.append("disconnect"))
    link = node.link()
    task = asyncio.ensure_future(node.connect("ada", link=link))
    await settle()
    node.transport_events.lost(link, DisconnectReason.CONNECTION_LOST)
    await settle()
    assert told == []

    gate.set()
    await task
    assert told == ["connect", "disconnect"]


async def test_closing_with_an_unknown_reason_is_a_mistake(node):
    ada = await node.connect("ada")

    with pytest.raises(ValueError, match="bored"):
        await ada.conn.close("bored")
    assert ada.conn.is_open


async def test_nothing_is_left_of_connections_that_have_gone(node):
    """Whatever they did before: joined, were sent to, were asked, wrote in a session."""

    @node.on("t")
    async def handler(ctx, msg):
        """Nothing."""

    for n in range(3):
        ada = await node.connect(
            f"u{n}",
            session=True,
            ip=f"10.0.0.{n}",
            meta=ConnMeta(user_id=f"u{n}", expires_at=START + timedelta(hours=1)),
        )
        await node.hub.join("r", ada.id)
        asyncio.ensure_future(node.hub.request(ada.id, Message("ask"))).add_done_callback(
            lambda task: task.exception()
        )
        await ada.ask({"id": "1", "topic": "t", "ack": True})
        await ada.vanish()
    await settle()

    inside = node.parts
    assert len(inside.connections) == len(inside.connections.everyone) == 0
    assert len(inside.connections.roster) == 0
    assert len(inside.connections._limits) == 0
    assert not inside.connections._ending
    assert len(inside.pending_acks) == 0
    assert len(inside.expiry) == 0
    assert len(inside.broadcast_groups) == 0
    assert not inside.rooms._locks._locks
    assert not inside.receiver._handling._lanes


async def test_close_ends_hooks_that_don_t_end(node):
    """A shutdown must come to its end, whatever a hook is waiting for."""

    @node.hub.on_disconnect
    async def stuck(conn, reason):
        await asyncio.Event().wait()

    ada = await node.connect("ada")
    await ada.vanish()

    await node.parts.connections.close()

    assert not node.parts.connections._ending
