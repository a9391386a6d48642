"""The bus in memory: what every bus promises, and several loops in one process."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.application.ports.bus import CountsSubscribers
from eyewall.application.ports.stores import Lifecycle
from eyewall.testing.contracts.bus import END, BusContract, RecordingHandler, opened

PLACE = ContextVar("place", default="nowhere")


class TestMemoryBus(BusContract):
    @pytest.fixture
    def connect(self):
        bus = MemoryPubSub()
        return lambda: bus


@pytest.fixture
async def bus():
    async with opened(MemoryPubSub()) as bus:
        yield bus


def test_it_opens_and_counts(bus):
    assert isinstance(bus, Lifecycle)
    assert isinstance(bus, CountsSubscribers)


async def test_it_knows_who_listens(bus):
    assert bus.listeners("lab") == 0
    one = bus.subscribe("lab", print)
    two = bus.subscribe("lab", print)
    assert bus.listeners("lab") == 2

    one.close()
    one.close()
    assert bus.listeners("lab") == 1
    two.close()
    assert bus.listeners("lab") == 0


async def test_a_payload_on_its_way_does_not_reach_who_has_closed(bus):
    handler = RecordingHandler(1.0)
    subscription = bus.subscribe("lab", handler)

    await bus.publish("lab", b"late")
    subscription.close()
    await asyncio.sleep(0)

    assert handler.payloads == []


async def test_closing_the_bus_ends_what_is_subscribed():
    bus = MemoryPubSub()
    await bus.open()
    handler = RecordingHandler(1.0)
    bus.subscribe("lab", handler)

    await bus.publish("lab", b"late")
    await bus.close()
    await asyncio.sleep(0)

    assert handler.payloads == []
    assert bus.listeners("lab") == 0


async def test_closing_more_often_than_opening_closes_nobody_elses():
    bus = MemoryPubSub()
    await bus.close()
    await bus.open()

    assert bus.subscribe("lab", print)


async def test_a_handler_runs_in_its_own_context(bus):
    """What a publisher's context variables say is not about who hears."""
    seen = []
    PLACE.set("subscriber")
    bus.subscribe("lab", lambda _: seen.append(PLACE.get()))

    async def publish():
        PLACE.set("publisher")
        await bus.publish("lab", b"x")

    await asyncio.create_task(publish())
    await asyncio.sleep(0)

    assert seen == ["subscriber"]


async def test_servers_on_several_loops_hear_each_other(bus):
    here = asyncio.get_running_loop()
    received = RecordingHandler(10.0)
    loops = []

    def handler(payload):
        loops.append(asyncio.get_running_loop())
        received(payload)

    bus.subscribe("lab", handler)

    async def elsewhere():
        await bus.publish("lab", END)

    with ThreadPoolExecutor(1) as pool:
        await here.run_in_executor(pool, asyncio.run, elsewhere())

    assert await received.until_end() == []
    assert loops == [here]


async def test_a_loop_that_has_ended_hears_nothing_and_harms_nobody(bus):
    async def elsewhere():
        bus.subscribe("lab", print)

    with ThreadPoolExecutor(1) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, asyncio.run, elsewhere())
    handler = RecordingHandler(1.0)
    bus.subscribe("lab", handler)

    await bus.publish("lab", END)

    assert await handler.until_end() == []
