"""The queue between the connection and the application."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from eyewall.client.inbox import Inbox
from tests.entrypoints.wire import soon


@given(st.lists(st.integers(0, 60), max_size=40))
def test_it_is_bounded_in_number_and_in_bytes(sizes):
    box: Inbox[int] = Inbox(size=5, max_bytes=100)
    waiting: list[int] = []
    for size in sizes:
        fits = not waiting or (len(waiting) < 5 and sum(waiting) + size <= 100)
        assert box.put(size, size) is fits
        waiting += [size] if fits else []

    assert len(box) == len(waiting)


def test_one_that_is_larger_than_the_bound_passes_an_empty_queue():
    box: Inbox[str] = Inbox(size=5, max_bytes=100)

    assert box.put("large", 1000)
    assert not box.put("small", 1)


async def test_what_is_put_is_got_in_its_order():
    box: Inbox[int] = Inbox()
    getting = asyncio.ensure_future(box.get())
    await asyncio.sleep(0)
    assert box.put(1, 1)
    assert box.put(2, 1)

    assert await soon(getting) == 1
    assert await soon(box.get()) == 2


async def test_it_tells_when_there_is_place_again_once():
    box: Inbox[int] = Inbox(size=4)
    told = []
    box.on_space = lambda: told.append(len(box))
    for number in range(4):
        box.put(number, 1)
    assert not box.has_space
    for _ in range(4):
        await box.get()

    assert told == [2]
    assert box.has_space


async def test_a_closed_one_takes_nothing_and_gives_what_it_has():
    box: Inbox[int] = Inbox()
    box.put(1, 1)
    box.close()

    assert not box.put(2, 1)
    assert await soon(box.get()) == 1
    assert await soon(box.get()) is None


async def test_who_waits_is_told_of_the_close():
    box: Inbox[int] = Inbox()
    getting = asyncio.ensure_future(box.get())
    await asyncio.sleep(0)
    box.close()

    assert await soon(getting) is None


async def test_what_is_cleared_leaves_place():
    box: Inbox[int] = Inbox(size=1, max_bytes=10)
    box.put(1, 10)
    box.clear()

    assert box.put(2, 10)
    assert await soon(box.get()) == 2
