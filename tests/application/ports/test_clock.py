"""Whose time it is: the real one, unless what runs is ruled by another clock."""

from __future__ import annotations

import asyncio

import pytest

from eyewall.application.ports.clock import CLOCK, ruled_by
from tests.application.fakes import FakeClock


async def test_what_is_begun_within_goes_by_the_clock():
    clock = FakeClock()

    async def whose():
        await asyncio.sleep(0)
        return CLOCK.get()

    with ruled_by(clock):
        task = asyncio.ensure_future(whose())

    assert (await task, CLOCK.get()) == (clock, None)


def test_of_two_the_inner_one_rules_until_it_is_left():
    outer, inner = FakeClock(), FakeClock()

    def leave_by_an_error():
        with ruled_by(inner):
            assert CLOCK.get() is inner
            raise LookupError

    with ruled_by(outer):
        with pytest.raises(LookupError):
            leave_by_an_error()
        assert CLOCK.get() is outer
