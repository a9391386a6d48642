"""Where in the cluster a recipient's connections are."""

import asyncio

import pytest

from eyewall.adapters.state.memory import MemoryState
from eyewall.application.cluster.peers import CALL_TIMEOUT
from eyewall.application.delivery.locator import RecipientLocator, node_of
from eyewall.domain.identity import Where
from eyewall.domain.report import Target
from tests.application.engines import Bus, Engine
from tests.application.fakes import raw_kind, settle


@pytest.fixture
def bus():
    return Bus()


@pytest.fixture
def pair_config(bus):
    return {"pubsub": bus}


@pytest.fixture
def locator(one):
    return make_locator(one)


def make_locator(node, state=None):
    return RecipientLocator(
        node=node.hub.node_id,
        state=state or node.state,
        cluster=node.parts.cluster,
        connections=node.parts.connections,
        broadcast_groups=node.parts.broadcast_groups,
        logger=node.logger,
    )


@pytest.mark.parametrize(
    ("conn_id", "node"),
    [("abc@n1", "n1"), ("abc@host@1", "host@1"), ("abc", ""), ("", ""), ("abc@", "")],
)
def test_a_connections_id_names_its_node(conn_id, node):
    assert node_of(conn_id) == node


async def test_a_connection_is_here_or_where_its_id_says(locator, one, two):
    here, there = await one.connect("ada"), await two.connect("ada")

    assert (await locator.conn(here.id)).by_node == {"n1": [here.id]}
    assert (await locator.conn(there.id)).by_node == {"n2": [there.id]}


@pytest.mark.parametrize("conn_id", ["gone@n1", "gone@n9", "no id", ""])
async def test_a_connection_that_is_nowhere(locator, conn_id):
    assert (await locator.conn(conn_id)).by_node == {}


async def test_a_node_whose_lease_has_lapsed_has_no_connections(locator, one, two, clock):
    there = await two.connect("ada")
    two.parts.cluster._timer.cancel()

    await clock.advance(10)

    assert (await locator.conn(there.id)).by_node == {}
    assert (await locator.users(["ada"]))[0].by_node == {}


async def test_users_are_found_on_all_nodes_this_one_first(locator, one, two):
    there, here = await two.connect("ada"), await one.connect("ada")
    bob = await two.connect("bob")

    ada, found, nobody = await locator.users(["ada", "bob", "eve"])

    assert list(ada.by_node.items()) == [("n1", [here.id]), ("n2", [there.id])]
    assert (found.name, found.by_node) == ("bob", {"n2": [bob.id]})
    assert (nobody.name, nobody.by_node) == ("eve", {})


async def test_this_node_knows_its_own_best(make_node, clock):
    """What ended while the state was asked is not there, whatever the state says."""
    engine = Engine(MemoryState(clock=clock.now))
    node = await make_node(state=engine)
    locator = make_locator(node)
    ada, phone = await node.connect("ada"), await node.connect("ada")
    engine.after.add("connections_of")
    asking = asyncio.create_task(locator.users(["ada"]))
    await settle()
    await ada.vanish()
    engine.go_on()

    (found,) = await asking

    assert found.by_node == {"n1": [phone.id]}


async def test_a_rooms_members_but_for_some(locator, one, two):
    clients = [await node.connect("ada") for node in (one, one, two, two)]
    for client, node in zip(clients, (one, one, two, two), strict=True):
        await node.hub.join("lab", client.id)
    a, b, c, d = (client.id for client in clients)

    assert (await locator.room("lab")).by_node == {"n1": [a, b], "n2": [c, d]}
    assert (await locator.room("lab", [a, b, d])).by_node == {"n2": [c]}
    assert (await locator.room("hall")).by_node == {}


@pytest.mark.parametrize("kind", ["conn", "user", "room"])
async def test_a_target_is_a_connection_a_user_or_a_room(locator, one, kind):
    ada = await one.connect("ada")
    await one.hub.join("lab", ada.id)
    name = {"conn": ada.id, "user": "ada", "room": "lab"}[kind]

    found = await locator.target(getattr(Target, kind)(name))

    assert (found.name, found.by_node) == (name, {"n1": [ada.id]})


async def test_whoever_fits(locator, one, two):
    here, there = await one.connect("a", tags=["x"]), await two.connect("b", tags=["x"])
    await two.connect("c")

    assert (await locator.fitting(Where(tags=["x"]))).by_node == {
        "n1": [here.id],
        "n2": [there.id],
    }
    assert (await locator.fitting(Where(user_ids=["z"]))).by_node == {}
    assert (await locator.fitting(lambda meta: "x" in meta.tags)).by_node == {"n1": [here.id]}


async def test_nodes_are_asked_at_the_same_time_and_one_may_be_silent(
    make_node, bus, locator, one, two, clock
):
    three = await make_node(pubsub=bus)
    here, there = await one.connect("a"), await three.connect("b")
    await two.connect("c")
    bus.deaf.add("eyewall:node:n2")
    asking = asyncio.create_task(locator.fitting(Where()))

    await clock.advance(CALL_TIMEOUT)

    assert (await asking).by_node == {"n1": [here.id], "n3": [there.id]}
    assert one.logger.fields("node_silent")["asked"] == "who"


async def test_an_answer_that_makes_no_sense_is_nobody(locator, one, two):
    async def nonsense(header, payload):
        return [5]

    two.parts.cluster.on_request(raw_kind("who"), nonsense)

    assert (await locator.fitting(Where())).by_node == {}


async def test_whose_the_connections_are_is_known_where_they_are_found(locator, one, two):
    here, there, nobody = await one.connect("ada"), await two.connect("ben"), await two.connect()
    for client in (here, there, nobody):
        await one.hub.join("lab", client.id)

    room, conn, user = (
        await locator.room("lab"),
        await locator.conn(here.id),
        await locator.target(Target.user("ben")),
    )

    assert [room.owner(client.id) for client in (here, there, nobody)] == ["ada", "ben", None]
    assert room.without([here.id]).owner(there.id) == "ben"
    assert (conn.owner(here.id), user.owner(there.id)) == ("ada", "ben")
    assert (await locator.conn(there.id)).owner(there.id) is None


async def test_a_connection_with_seats_under_two_names_is_found_once(one, two):
    """It has become another user's, and its seat is about to be moved."""
    ada = await two.connect("ada")
    await one.hub.join("lab", ada.id)

    class Moving:
        async def standings(self, room_id):
            (standing,) = (await one.state.standings(room_id)).values()
            return {"u:ada": standing, "u:ben": standing}

    found = await make_locator(one, Moving()).room("lab")

    assert found.by_node == {"n2": [ada.id]}
