"""Time that passes when a test says so."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from eyewall.testing import FakeClock


def test_it_begins_when_it_is_told_to_and_stands_still():
    at = datetime(2030, 1, 1, tzinfo=UTC)
    clock = FakeClock(5.0, at)

    assert (clock.now(), clock.wall()) == (5.0, at)
    clock.pass_time(2.5)

    assert (clock.now(), clock.wall()) == (7.5, at + timedelta(seconds=2.5))


def test_it_begins_now_if_nobody_says():
    """Tokens with a real expiry run out by it."""
    before = datetime.now(UTC)

    assert before <= FakeClock().wall() <= datetime.now(UTC)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="zone"):
        FakeClock(at=datetime(2030, 1, 1))  # noqa: DTZ001


def test_timers_are_due_in_their_order_at_their_time():
    clock, seen = FakeClock(0.0), []

    def note(name):
        return lambda: seen.append((name, clock.now()))

    clock.call_later(3, note("third"))
    clock.call_later(1, note("first"))
    clock.call_later(1, note("second"))
    cancelled = clock.call_later(2, note("never"))
    late = clock.call_later(4, note("late"))
    cancelled.cancel()
    cancelled.cancel()
    clock.pass_time(3)

    assert seen == [("first", 1.0), ("second", 1.0), ("third", 3.0)]
    assert clock.timers == {late}


async def test_what_a_timer_sets_off_has_happened_before_time_moves_on():
    """A timer that is set by it is due within the same stretch of time."""
    clock, seen = FakeClock(0.0), []

    async def work():
        await asyncio.sleep(0)
        seen.append(clock.now())
        if len(seen) < 3:
            clock.call_later(1, start)

    def start():
        tasks.append(asyncio.create_task(work()))

    tasks = []
    clock.call_later(1, start)
    await clock.advance(10)

    assert seen == [1.0, 2.0, 3.0]
    assert clock.now() == 10.0
