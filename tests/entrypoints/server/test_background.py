"""Work beside the handlers: when it runs, what its failure does, and how it ends."""

from __future__ import annotations

import asyncio
import inspect
import threading
from functools import partial

import pytest

from eyewall.server.background import Background, BackgroundTask, call
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


async def test_coroutines_that_are_dropped_are_closed_and_never_run(background):
    """Python warns of a coroutine that is never awaited. Functions wait for the next start."""
    ran = []

    async def work(what):
        ran.append(what)

    waits = work("coroutine")
    background.add(waits)
    background.add(work, "function")
    background.drop_coroutines()
    background.open()
    background.start()
    await settle()

    assert inspect.getcoroutinestate(waits) == inspect.CORO_CLOSED
    assert ran == ["function"]


async def stream():
    yield 1


async def work_on(what, *, much=1):
    pass


@pytest.mark.parametrize("wrong", [None, 42, "work", [], stream])
def test_what_can_not_be_run_is_refused_where_it_is_given(background, wrong):
    with pytest.raises(ValueError, match="coroutine or a function"):
        background.add(wrong)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2), {}), ((1,), {"little": 1}), ((), {"much": 1})],
    ids=repr,
)
def test_arguments_that_do_not_fit_are_refused_where_they_are_given(background, args, kwargs):
    with pytest.raises(ValueError, match=r"work_on.* can't be called like that"):
        background.add(work_on, *args, **kwargs)


def test_a_coroutine_takes_no_further_arguments(background):
    waits = work_on(1)
    with pytest.raises(ValueError, match="work_on is a coroutine"):
        background.add(waits, 1)
    waits.close()


async def test_a_function_gets_its_arguments_in_each_life(background):
    ran = []

    async def work(*args, **kwargs):
        ran.append((args, kwargs))

    background.add(work, 1, "b", much=2)
    background.add(lambda *args: ran.append(args), 3)
    background.add(max, 4, 5)  # which does not say how it is called
    for _ in range(2):
        background.open()
        background.start()
        await settle()
        await background.close()

    assert ran == [((1, "b"), {"much": 2}), (3,)] * 2


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


# --- handles


class Endless:
    """Work that says where it is, and may take its time to end (``rest``)."""

    def __init__(self):
        self.begun, self.ended, self.rest = 0, 0, asyncio.Event()
        self.rest.set()

    async def __call__(self):
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            await self.rest.wait()
            self.ended += 1


def given(background, work):
    return BackgroundTask(background.add(work), lambda: background)


async def begin(background):
    background.open()
    background.start()
    await settle()


@pytest.mark.parametrize("kind", ["function", "coroutine"])
async def test_what_was_cancelled_before_the_start_never_runs(background, kind):
    endless = Endless()
    work = endless if kind == "function" else endless()
    task = given(background, work)
    assert task.done is False

    task.cancel()
    assert task.done is True
    task.cancel()
    for _ in range(2):
        await begin(background)
        await background.close()

    assert (endless.begun, task.done) == (0, True)
    if kind == "coroutine":
        assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
async def test_what_runs_is_ended_and_done_when_it_has_cleaned_up(background, logger, when):
    endless = Endless()
    if when == "before the start":
        task = given(background, endless)
        await begin(background)
    else:
        await begin(background)
        task = given(background, endless)
        await settle()
    assert (endless.begun, task.done) == (1, False)

    endless.rest.clear()
    for _ in range(2):  # the second finds it cleaning up, and leaves it alone
        task.cancel()
        await settle()
    before = (endless.ended, task.done)
    endless.rest.set()
    await settle()

    assert before == (0, False)
    assert (endless.ended, task.done, len(background)) == (1, True, 0)
    task.cancel()
    await background.close()
    await begin(background)
    assert (endless.begun, task.done) == (1, True), "nor in a later life"
    assert logger.of("error") == []


async def test_what_has_ended_is_done_and_runs_in_the_next_life_again(background):
    begun, over = [], asyncio.Event()

    async def work():
        begun.append(1)
        await over.wait()

    task = given(background, work)
    over.set()
    await begin(background)
    assert task.done is True
    await background.close()
    over.clear()

    await begin(background)
    assert (len(begun), task.done) == (2, False)
    await background.close()
    assert task.done is True
    task.cancel()
    await begin(background)

    assert len(begun) == 2


async def test_what_fails_is_done_and_reported(background, logger):
    async def work():
        raise RuntimeError("the tide is out")

    await begin(background)
    task = given(background, work)
    await settle()

    assert task.done is True
    assert logger.of("error") == ["task_failed"]


@pytest.mark.parametrize("kind", ["async function", "plain function"])
async def test_work_may_cancel_itself(background, logger, kind):
    ran, tasks = [], []

    async def work():
        tasks[0].cancel()
        await asyncio.sleep(0)
        ran.append("behind the cancel")

    def plain():
        tasks[0].cancel()
        ran.append("plain")

    tasks.append(given(background, work if kind == "async function" else plain))
    for _ in range(2):
        await begin(background)
        await background.close()

    assert ran == ([] if kind == "async function" else ["plain"])
    assert (tasks[0].done, logger.of("error")) == (True, [])


async def test_a_thread_may_give_and_cancel(background):
    asyncio.get_running_loop().set_debug(True)  # what is no thread's business raises there
    endless = Endless()
    await begin(background)

    task = await asyncio.to_thread(given, background, endless)
    await settle()
    assert (endless.begun, task.done) == (1, False)
    await asyncio.to_thread(task.cancel)
    await settle()

    assert (endless.ended, task.done) == (1, True)
    waits = endless()
    now = await asyncio.to_thread(lambda: (given(background, waits), task.cancel()))
    await settle()
    assert endless.begun == 2
    now[0].cancel()
    await settle()
    assert now[0].done


async def test_what_a_thread_gave_too_late_does_not_run(background):
    endless = Endless()
    await begin(background)
    waits = endless()
    tasks = []
    thread = threading.Thread(target=lambda: tasks.append(given(background, waits)))
    thread.start()
    thread.join()
    await background.close()
    await settle()
    (task,) = tasks

    assert (endless.begun, task.done) == (0, True)
    assert inspect.getcoroutinestate(waits) == inspect.CORO_CLOSED


def test_a_handle_outlives_the_loop_of_its_work(background):
    endless = Endless()
    tasks = []

    async def life():
        tasks.append(given(background, endless))
        await begin(background)
        await background.close()

    asyncio.run(life())
    asyncio.run(life())

    assert [task.done for task in tasks] == [True, True]
    waits = endless()
    tasks.append(given(background, waits))
    for task in tasks:
        task.cancel()
    assert inspect.getcoroutinestate(waits) == inspect.CORO_CLOSED
    asyncio.run(begin(background))
    assert endless.begun == 3, "once, and twice with the second"


async def test_a_handle_means_what_runs_where_another_stands_in(background, logger):
    """A test ends the poller of its own hub, and leaves the server as it was."""
    endless, other = Endless(), Background(logger)
    run = background.add(endless)
    asked = [background]
    task = BackgroundTask(run, lambda: asked[-1])
    other.adopt(background)
    asked.append(other)
    await begin(other)
    assert task.done is False

    task.cancel()
    await settle()
    assert (endless.ended, task.done) == (1, True)
    await other.close()
    asked.pop()

    assert task.done is False
    await begin(background)
    assert endless.begun == 2
    await background.close()


async def test_what_was_cancelled_is_not_taken_over(background, logger):
    endless, other = Endless(), Background(logger)
    given(background, endless).cancel()

    other.adopt(background)
    await begin(other)

    assert endless.begun == 0


def test_a_handle_shows_what_it_is_of(background):
    assert repr(given(background, work_on(1))) == "<BackgroundTask work_on done=False>"
    background.drop_coroutines()
