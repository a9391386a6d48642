import asyncio
from contextvars import copy_context

import pytest

from eyewall.application.concurrency.locks import KeyedLock
from tests.application.fakes import finished, settle


class Visits:
    """Who is in, and who was."""

    def __init__(self):
        self.locks = KeyedLock()
        self.log = []
        self.gates = {}

    async def visit(self, key, name):
        async with self.locks.acquire(key):
            self.log.append(f"{name} in")
            await self.gates.setdefault(name, asyncio.Event()).wait()
            self.log.append(f"{name} out")

    def begin(self, key, name):
        return asyncio.ensure_future(self.visit(key, name))

    def leave(self, name):
        self.gates.setdefault(name, asyncio.Event()).set()


@pytest.fixture
def visits():
    return Visits()


async def test_of_one_key_there_is_one_at_a_time_in_the_order_they_came(visits):
    for name in "abc":
        visits.begin("k", name)
    await settle()
    assert visits.log == ["a in"]

    for name in "abc":
        visits.leave(name)
    await settle()
    assert visits.log == ["a in", "a out", "b in", "b out", "c in", "c out"]


async def test_different_keys_don_t_wait_for_each_other(visits):
    first, second = visits.begin("k", "a"), visits.begin("l", "b")
    await settle()

    assert visits.log == ["a in", "b in"]
    first.cancel()
    second.cancel()


async def test_the_holder_of_a_lock_may_acquire_it_again(visits):
    """A hook may leave the room whose join it is told of."""

    async def twice():
        async with visits.locks.acquire("k"), visits.locks.acquire("k"):
            return "both"

    assert await finished(twice()) == "both"


async def test_it_may_also_be_acquired_again_under_a_time_out(visits):
    """``asyncio.wait_for`` and ``gather`` run what they are given in tasks of their own."""

    async def inner():
        async with visits.locks.acquire("k"):
            return "inner"

    async def outer():
        async with visits.locks.acquire("k"):
            return await asyncio.wait_for(inner(), 1), await asyncio.gather(inner(), inner())

    assert await finished(outer()) == ("inner", ["inner", "inner"])
    assert not visits.locks._locks


async def test_tasks_that_share_a_lock_exclude_each_other_too(visits):
    async def outer():
        async with visits.locks.acquire("k"):
            await asyncio.gather(visits.visit("k", "a"), visits.visit("k", "b"))

    task = asyncio.ensure_future(outer())
    await settle()
    assert visits.log == ["a in"]

    visits.leave("a")
    await settle()
    assert visits.log == ["a in", "a out", "b in"]
    visits.leave("b")
    await task


async def test_a_task_that_outlives_the_lock_it_began_in_waits_like_any_other(visits):
    async def outer():
        async with visits.locks.acquire("k"):
            visits.begin("k", "late")

    first = visits.begin("k", "a")
    await settle()
    second = asyncio.ensure_future(outer())
    third = visits.begin("k", "b")
    await settle()

    visits.leave("a")
    await asyncio.gather(first, second)
    await settle()
    assert visits.log == ["a in", "a out", "b in"]

    visits.leave("b")
    await third
    visits.leave("late")
    await settle()
    assert visits.log[3:] == ["b out", "late in", "late out"]


async def test_a_lock_is_released_when_the_inner_ones_are(visits):
    async def outer():
        async with visits.locks.acquire("k"):
            visits.begin("k", "inner")
            await settle()
        visits.log.append("outer out")

    outer_task = asyncio.ensure_future(outer())
    await settle()
    visits.begin("k", "b")
    await settle()
    assert visits.log == ["inner in"]

    visits.leave("inner")
    await outer_task
    visits.leave("b")
    await settle()
    assert visits.log == ["inner in", "inner out", "outer out", "b in", "b out"]


async def test_who_gives_up_waiting_does_not_hold_up_the_next(visits):
    visits.begin("k", "a")
    waiting = visits.begin("k", "b")
    visits.begin("k", "c")
    await settle()

    waiting.cancel()
    visits.leave("a")
    await settle()

    assert visits.log == ["a in", "a out", "c in"]
    visits.leave("c")
    await settle()


async def test_a_lock_is_released_after_an_error_too(visits):
    with pytest.raises(RuntimeError):
        async with visits.locks.acquire("k"):
            raise RuntimeError

    async with visits.locks.acquire("k"):
        pass


async def test_a_lock_leaves_no_trace_in_the_context(visits):
    """A worker whose context was changed by its job has to give way to a fresh one."""
    before = copy_context()

    async with visits.locks.acquire("k"), visits.locks.acquire("k"):
        pass

    assert copy_context() == before


async def test_a_key_that_nobody_uses_takes_no_memory(visits):
    task = visits.begin("k", "a")
    waiting = visits.begin("k", "b")
    await settle()
    waiting.cancel()
    visits.leave("a")
    await task
    await settle()

    assert not visits.locks._locks
