"""The state in memory: what every store promises, and what it holds."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from eyewall.adapters.state import memory
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.ports.stores import Lifecycle
from eyewall.testing.contracts.bus import opened
from eyewall.testing.contracts.rules import NOW, joins, leaves
from eyewall.testing.contracts.state import StateContract


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    async def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


class TestMemoryState(StateContract):
    @pytest.fixture
    def connect(self, clock):
        state = MemoryState(clock=clock)
        return lambda: state

    @pytest.fixture
    def advance(self, clock):
        return clock.advance

    async def test_a_lease_lapses_at_its_time(self, state, clock):
        await state.renew("n3", 10.0)

        clock.now += 9.99
        assert "n3" in await state.renew("n1", 600.0)
        clock.now += 0.01
        assert "n3" not in await state.renew("n1", 600.0)

    async def test_a_closed_store_keeps_what_it_holds(self, connect):
        store = connect()
        assert isinstance(store, Lifecycle)
        async with opened(store):
            await store.decide("lab", "u:ada", joins("c1"))

        async with opened(store):
            assert (await store.room("lab")).seats == 1


async def test_no_decision_is_made_while_another_is():
    """Also on another thread: between its look and its change nobody else looks."""
    state = MemoryState()
    order, other_begins, other_ran = [], threading.Event(), threading.Event()

    def slowly(room, standing):
        order.append("first looks")
        pool.submit(asyncio.run, elsewhere())
        other_begins.wait(10)
        other_ran.wait(0.05)
        order.append("first is done")
        return room, None

    def other(room, standing):
        order.append("second looks")
        other_ran.set()
        return room, None

    async def elsewhere():
        other_begins.set()
        await state.decide("lab", "u:bob", other)

    with ThreadPoolExecutor(1) as pool:
        await state.decide("lab", "u:ada", slowly)

    assert order == ["first looks", "first is done", "second looks"]


async def test_what_has_gone_takes_no_memory():
    state = MemoryState()
    await state.renew("n1", 600.0)

    for number in range(100):
        await state.appear("n1", f"c{number}", "ada", NOW)
        await state.decide(f"r{number}", "u:ada", joins(f"c{number}"))
    for number in range(100):
        await state.decide(f"r{number}", "u:ada", leaves(f"c{number}"))
        await state.vanish(f"c{number}", "ada", NOW)

    kept = {name: value for name, value in vars(state).items() if isinstance(value, dict) and value}
    assert set(kept) == {"_leases", "_last_seen"}


async def test_users_who_are_away_are_remembered_up_to_a_number(monkeypatch):
    monkeypatch.setattr(memory, "LAST_SEEN", 3)
    state = MemoryState()
    for number in range(5):
        now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        await state.appear("n1", "c1", f"u{number}", now)
        await state.vanish("c1", f"u{number}", now)

    found = await state.presence([f"u{number}" for number in range(5)], NOW)

    assert [found[user].last_seen is None for user in sorted(found)] == [
        True,
        True,
        False,
        False,
        False,
    ]
