"""The machine's clock."""

import asyncio
from datetime import UTC, datetime, timedelta

from eyewall.adapters.clock.system import SystemClock
from eyewall.application.ports.clock import Clock


def test_it_is_a_clock():
    clock: Clock = SystemClock()
    assert clock


def test_now_never_goes_back():
    clock = SystemClock()
    times = [clock.now() for _ in range(100)]

    assert times == sorted(times)


def test_wall_is_the_date_in_utc():
    before = datetime.now(UTC)
    wall = SystemClock().wall()

    assert wall.tzinfo is UTC
    assert before <= wall <= before + timedelta(minutes=1)


async def test_call_later_calls_once_its_time_has_come():
    called = asyncio.Event()
    SystemClock().call_later(0.0, called.set)

    assert not called.is_set()
    await asyncio.wait_for(called.wait(), 10)


async def test_a_cancelled_timer_does_not_call():
    called = []
    SystemClock().call_later(0.0, lambda: called.append("cancelled")).cancel()
    later = asyncio.Event()
    SystemClock().call_later(0.0, later.set)

    await asyncio.wait_for(later.wait(), 10)

    assert called == []
