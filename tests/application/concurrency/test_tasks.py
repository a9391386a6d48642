import asyncio
import contextlib

import pytest

from eyewall.application.concurrency.tasks import TaskSet, is_cancelled
from tests.application.fakes import RecordingLogger, finished, settle


@pytest.fixture
def logger():
    return RecordingLogger()


@pytest.fixture
def tasks(logger):
    return TaskSet(logger)


async def test_a_task_that_ends_is_forgotten(tasks):
    tasks.spawn(asyncio.sleep(0))
    assert len(tasks) == 1

    await settle()
    assert len(tasks) == 0


async def test_a_task_that_fails_is_logged(tasks, logger):
    async def fail():
        raise RuntimeError("broken")

    tasks.spawn(fail(), "the task")
    await settle()

    fields = logger.fields("task_failed")
    assert fields["task"] == "the task"
    assert "broken" in fields["error"]


async def test_a_task_that_is_cancelled_did_not_fail(tasks, logger):
    tasks.spawn(asyncio.Event().wait()).cancel()
    await settle()

    assert logger.entries == []


async def test_settled_waits_for_all_those_that_they_begin_too(tasks):
    done = []

    async def first():
        await asyncio.sleep(0)
        tasks.spawn(second())

    async def second():
        await asyncio.sleep(0)
        done.append("second")

    tasks.spawn(first())
    await tasks.settled()

    assert done == ["second"]


async def test_a_task_may_wait_for_all_others_that_it_belongs_to(tasks):
    tasks.spawn(asyncio.sleep(0))

    await finished(tasks.spawn(tasks.settled()))

    assert len(tasks) == 0


async def test_close_ends_them_and_waits_for_their_end(tasks):
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("work")

    tasks.spawn(work())
    await settle()
    await tasks.close()

    assert ended == ["work"]


async def test_a_task_may_close_those_that_it_belongs_to(tasks):
    """A background task that shuts the server down gets to the end of it."""
    other = tasks.spawn(asyncio.Event().wait())

    async def closer():
        await tasks.close()
        return "closed"

    assert await finished(tasks.spawn(closer())) == "closed"
    assert other.cancelled()


async def test_a_cancelled_future_does_not_mean_that_the_task_is_to_end():
    future = asyncio.get_running_loop().create_future()
    future.cancel()

    with pytest.raises(asyncio.CancelledError):
        await future

    assert not is_cancelled()


async def test_a_task_knows_that_it_is_to_end():
    seen = []

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(is_cancelled())

    task = asyncio.ensure_future(work())
    await settle()
    task.cancel()
    await task

    assert seen == [True]


async def test_close_leaves_behind_who_does_not_listen(tasks, logger):
    held = asyncio.Event()

    async def deaf():
        while not held.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await held.wait()

    tasks.spawn(deaf(), "deaf")
    await settle()
    await tasks.close()

    assert len(tasks) == 0
    assert "task_does_not_end" in str(vars(logger))
    held.set()
    await settle()
