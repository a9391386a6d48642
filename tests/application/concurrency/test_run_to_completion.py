"""Decisions whose effect follows, whatever happens to who asked for them."""

import asyncio

import pytest

from eyewall.application.concurrency.tasks import Effects
from eyewall.domain.errors import RoomFull
from tests.application.fakes import RecordingLogger, settle


@pytest.fixture
def logger():
    return RecordingLogger()


@pytest.fixture
def effects(logger):
    return Effects(logger)


class Work:
    """Decides, waits, and takes effect."""

    def __init__(self, error=None):
        self.gate = asyncio.Event()
        self.done = []
        self.error = error

    async def __call__(self):
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.done.append("effect")
        return 7

    async def then(self):
        self.done.append("then")


async def test_the_caller_gets_the_result_and_what_follows_has_run(effects):
    work = Work()
    work.gate.set()

    assert await effects.run_to_completion(work, work.then) == 7
    assert work.done == ["effect", "then"]


async def test_the_caller_gets_the_refusal(effects):
    work = Work(RoomFull("lab"))
    work.gate.set()

    with pytest.raises(RoomFull):
        await effects.run_to_completion(work, work.then)
    assert work.done == []


async def test_the_effect_follows_without_the_caller(effects):
    """Who is cancelled in the middle takes nothing back."""
    work = Work()
    caller = asyncio.create_task(effects.run_to_completion(work, work.then))
    await settle()

    caller.cancel()
    await settle()
    assert caller.cancelled()
    work.gate.set()
    await settle()

    assert work.done == ["effect", "then"]


@pytest.mark.parametrize(("error", "told"), [(RoomFull("lab"), 0), (RuntimeError("broken"), 1)])
async def test_what_fails_without_the_caller_is_logged_unless_it_is_a_refusal(
    effects, logger, error, told
):
    work = Work(error)
    caller = asyncio.create_task(effects.run_to_completion(work))
    await settle()
    caller.cancel()
    work.gate.set()
    await settle()

    assert logger.of("error") == ["task_failed"] * told


async def test_closing_ends_what_is_under_way(effects):
    work = Work()
    caller = asyncio.create_task(effects.run_to_completion(work, work.then))
    await settle()

    await effects.close()
    await settle()

    assert caller.cancelled()
    assert "effect" not in work.done
