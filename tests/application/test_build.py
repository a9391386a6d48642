"""The parts of a node: put together without touching anything outside."""

from eyewall.domain.envelope import Message
from tests.application.engines import Bus, Engine
from tests.application.fakes import FakeClock, Harness


async def test_a_node_that_was_only_built_asks_nobody_and_waits_for_nothing():
    """Servers are built at import, long before there is a loop to run on."""
    clock, bus = FakeClock(), Bus()
    engine = Engine(inner=None)

    Harness(clock=clock, pubsub=bus, state=engine)

    assert engine.calls == []
    assert (bus.subscribed, bus.published) == ([], [])
    assert clock.timers == set()


async def test_no_two_nodes_give_their_messages_the_same_ids():
    """Also not when one is started again under its name."""
    first, second = Harness("n1"), Harness("n1")

    ids = {node.parts.sender.encode(Message("news")).envelope.id for node in (first, second, first)}

    assert len(ids) == 3


async def test_the_hub_and_the_sockets_speak_to_the_same_node():
    node = Harness("n1")
    async with node:
        ada = await node.connect("ada")

        assert node.hub.connection(ada.id) is ada.conn
        assert node.hub.stats().connections == 1
