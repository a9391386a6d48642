"""Work beside the handlers: when it runs, what its failure does, and how it ends."""

from __future__ import annotations

import asyncio
import inspect
from functools import partial

import pytest

from eyewall.background import Background, call
from tests.application.fakes import RecordingLogger, settle


@pytest.fixture
def logger():
    return RecordingLogger()


@pytest.fixture
def background(logger):
    return Background(logger)


async def test_what_is_given_before_waits_for_the_start(background):
    ran = []

    async def work():
        ran.append("coroutine")

    background.add(work())
    background.add(work)
    background.add(lambda: ran.append("plain"))
    background.add(partial(work))
    background.open()
    await settle()
    assert ran == []

    background.start()
    await settle()
    assert ran == ["coroutine", "coroutine", "plain", "coroutine"]


async def test_what_is_given_once_it_is_open_runs_at_once(background):
    """A startup hook may wait for what it has put into the background."""
    ran = asyncio.Event()
    background.open()

    async def work():
        ran.set()

    background.add(work)
    await settle()

    assert ran.is_set()


async def test_it_runs_once_however_often_it_is_started(background):
    ran = []
    background.add(lambda: ran.append(1))
    background.open()
    background.start()
    background.start()
    await settle()

    assert ran == [1]


@pytest.mark.parametrize("kind", ["coroutine", "async function", "plain function"])
async def test_a_failure_is_logged_under_its_name_and_ends_nothing_else(background, logger, kind):
    def plain():
        raise RuntimeError("the tide is out")

    async def work():
        plain()

    def steady():
        return asyncio.Event().wait()

    background.open()
    background.add(steady)
    given = {"coroutine": work, "async function": lambda: work, "plain function": lambda: plain}
    background.add(given[kind]())
    await settle()

    assert logger.of("error") == ["task_failed"]
    fields = logger.fields("task_failed")
    assert "the tide is out" in fields["error"]
    assert fields["task"].endswith("plain" if kind == "plain function" else "work")
    assert len(background) == 1
    await background.close()


async def test_close_ends_what_runs_and_what_comes_later_waits_again(background):
    ended, ran = asyncio.Event(), []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    background.open()
    background.add(work)
    await settle()
    await background.close()
    background.add(lambda: ran.append(1))
    await settle()

    assert ended.is_set()
    assert len(background) == 0
    assert ran == []


async def test_what_is_dropped_is_closed_and_never_runs(background):
    """A coroutine that is left lying makes Python warn that nobody awaited it."""
    ran = []

    async def work():
        ran.append(1)

    waits = work()
    background.add(waits)
    background.add(work)
    background.drop()
    background.open()
    background.start()
    await settle()

    assert inspect.getcoroutinestate(waits) == inspect.CORO_CLOSED
    assert ran == []


@pytest.mark.parametrize("wrong", [None, 42, "work", []])
def test_what_can_not_be_run_is_refused_where_it_is_given(background, wrong):
    with pytest.raises(ValueError, match="coroutine or a function"):
        background.add(wrong)


async def test_call_waits_for_what_an_async_function_does():
    order = []

    async def slow():
        await asyncio.sleep(0)
        order.append("slow")

    await call(slow)
    await call(lambda: order.append("plain"))

    assert order == ["slow", "plain"]


async def test_what_waits_with_one_can_be_taken_over_but_for_coroutines(background, logger):
    """A function runs each time; a coroutine only once, and stays where it was given."""
    ran, other = [], Background(logger)

    async def work(name):
        ran.append(name)

    background.add(partial(work, "function"))
    background.add(work("coroutine"))
    other.adopt(background)
    for owner in (other, background):
        owner.open()
        owner.start()
        await settle()

    assert ran == ["function", "function", "coroutine"]
