"""When all that can happen has happened."""

from __future__ import annotations

import asyncio
import threading

import pytest

from eyewall.application.concurrency.threads import Threads
from eyewall.testing import rest
from eyewall.testing.rest import finished, settle


async def hops(number, done):
    for _ in range(number):
        await asyncio.sleep(0)
    done.append(number)


async def test_it_returns_when_nothing_is_left_to_do():
    done = []
    tasks = [asyncio.create_task(hops(number, done)) for number in (3, 300)]

    await settle()

    assert done == [3, 300]
    assert all(task.done() for task in tasks)


async def test_several_may_wait_at_a_time():
    """The one's waiting is no work to the other."""
    done = []
    task = asyncio.create_task(hops(5, done))

    await asyncio.gather(settle(), settle(), settle())

    assert task.done()


async def test_what_never_ends_is_told(monkeypatch):
    async def spin():
        while True:
            await asyncio.sleep(0)

    monkeypatch.setattr(rest, "MAX_LOOP_TURNS", 50)
    task = asyncio.create_task(spin())

    with pytest.raises(AssertionError, match="is not idle after 50 turns"):
        await settle()

    task.cancel()


async def test_it_waits_for_what_goes_on_in_threads():
    threads, gate, done = Threads(1), threading.Event(), []

    async def work():
        await threads.run(gate.wait, 10)
        await hops(3, done)

    task = asyncio.create_task(work())
    waiting = asyncio.create_task(settle([threads]))
    await settle()
    assert not waiting.done()

    gate.set()
    await waiting

    assert task.done()
    assert done == [3]
    threads.close()


def test_a_loop_that_does_not_say_what_is_left_gets_turns_enough():
    async def main():
        done = []
        task = asyncio.create_task(hops(50, done))
        await settle()
        return task.done()

    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main())


async def test_what_waits_for_somebody_is_not_finished():
    assert await finished(asyncio.sleep(0, "now")) == "now"
    with pytest.raises(AssertionError, match="waits for time to pass"):
        await finished(asyncio.get_running_loop().create_future())
