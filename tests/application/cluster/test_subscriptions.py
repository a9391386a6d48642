"""Subscriptions: one per channel, as long as a caller needs it."""

import asyncio

import pytest

from eyewall.application.cluster.subscriptions import BusSubscriptions
from eyewall.domain.errors import Unavailable
from tests.application.engines import Bus
from tests.application.fakes import RecordingLogger, settle


@pytest.fixture
async def bus():
    bus = Bus()
    await bus.open()
    yield bus
    await bus.close()


@pytest.fixture
def heard():
    return []


@pytest.fixture
async def channels(bus, heard):
    channels = BusSubscriptions(bus, heard.append, RecordingLogger())
    yield channels
    await channels.close()


async def test_a_channel_is_heard_when_acquire_returns(channels, bus, heard):
    await channels.acquire("lab")

    await bus.publish("lab", b"x")
    await settle()

    assert channels.is_subscribed("lab")
    assert heard == [b"x"]


async def test_many_needs_are_one_subscription(channels, bus, heard):
    await asyncio.gather(*(channels.acquire("lab") for _ in range(3)))
    assert bus.subscribed == ["lab"]

    channels.release("lab")
    channels.release("lab")
    await settle()
    assert bus.listeners_of("lab") == 1

    channels.release("lab")
    await settle()
    assert bus.listeners_of("lab") == 0
    assert len(channels) == 0


async def test_who_asks_while_it_is_under_way_waits_for_it(channels, bus):
    bus.slow = asyncio.Event()
    asked = [asyncio.create_task(channels.acquire("lab")) for _ in range(2)]
    await settle()
    assert not any(task.done() for task in asked)
    assert not channels.is_subscribed("lab")

    bus.slow.set()
    await asyncio.gather(*asked)

    assert bus.subscribed == ["lab"]
    assert channels.is_subscribed("lab")


async def test_a_bus_that_is_away_is_told_to_all_who_asked(channels, bus):
    bus.away = True

    results = await asyncio.gather(
        *(channels.acquire("lab") for _ in range(2)), return_exceptions=True
    )

    assert [type(result) for result in results] == [Unavailable, Unavailable]
    assert len(channels) == 0


async def test_a_channel_that_failed_is_tried_anew(channels, bus):
    bus.away = True
    with pytest.raises(Unavailable):
        await channels.acquire("lab")
    bus.away = False

    await channels.acquire("lab")

    assert channels.is_subscribed("lab")


async def test_who_gives_up_waiting_leaves_it_to_the_others(channels, bus):
    bus.slow = asyncio.Event()
    one, two = (asyncio.create_task(channels.acquire("lab")) for _ in range(2))
    await settle()

    one.cancel()
    bus.slow.set()
    await two

    assert channels.is_subscribed("lab")
    channels.release("lab")
    await settle()
    assert bus.listeners_of("lab") == 0


async def test_a_subscription_that_nobody_wants_by_then_is_closed(channels, bus):
    bus.slow = asyncio.Event()
    asked = asyncio.create_task(channels.acquire("lab"))
    await settle()
    asked.cancel()
    await settle()

    bus.slow.set()
    await settle()

    assert bus.subscribed == ["lab"]
    assert bus.listeners_of("lab") == 0


async def test_a_channel_that_is_needed_again_at_once_is_not_heard_twice(channels, bus, heard):
    """The old subscription may still stand while the new one does."""
    await channels.acquire("lab")
    channels.release("lab")
    await channels.acquire("lab")
    await bus.publish("lab", b"x")
    await settle()

    assert heard == [b"x"]


async def test_what_was_on_its_way_is_not_heard_after_the_release(channels, bus, heard):
    await channels.acquire("lab")
    await bus.publish("lab", b"x")

    channels.release("lab")
    await settle()

    assert heard == []


async def test_releasing_what_nobody_needs_changes_nothing(channels):
    channels.release("lab")

    assert len(channels) == 0


async def test_close_returns_when_all_are_closed_also_those_given_back_before(channels, bus):
    """A channel given back in the last moment must not stay on a bus that others share."""
    for name in ("a", "b", "c"):
        await channels.acquire(name)
    await channels.acquire("c")
    channels.release("a")

    await channels.close()

    assert [bus.listeners_of(name) for name in ("a", "b", "c")] == [0, 0, 0]
    assert len(channels) == 0


async def test_a_subscription_that_can_not_be_closed_is_logged(bus):
    class Stuck:
        async def close(self):
            raise Unavailable("no answer")

    async def subscribe(channel, handler):
        return Stuck()

    bus.subscribe = subscribe
    logger = RecordingLogger()
    channels = BusSubscriptions(bus, print, logger)
    await channels.acquire("lab")

    await channels.close()

    assert logger.of("warning") == ["unsubscribe_failed"]


async def test_a_bus_may_be_plain(heard):
    class Plain:
        def __init__(self):
            self.closed = False

        def subscribe(self, channel, handler):
            handler(b"retained")
            return self

        def close(self):
            self.closed = True

    bus = Plain()
    channels = BusSubscriptions(bus, heard.append, RecordingLogger())
    await channels.acquire("lab")
    await channels.close()

    assert heard == [b"retained"]
    assert bus.closed


async def test_a_plain_bus_that_is_away_says_so_at_once_and_is_asked_again():
    class Away:
        asked = 0

        def subscribe(self, channel, handler):
            self.asked += 1
            raise Unavailable("the bus is away")

    bus = Away()
    channels = BusSubscriptions(bus, print, RecordingLogger())
    for _ in range(2):
        with pytest.raises(Unavailable):
            await channels.acquire("lab")

    assert bus.asked == 2
    assert len(channels) == 0
