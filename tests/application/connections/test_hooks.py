import asyncio

import pytest

from eyewall.application.connections.hooks import Event, Hooks
from tests.application.fakes import RecordingLogger, settle


@pytest.fixture
def logger():
    return RecordingLogger()


@pytest.fixture
def hooks(logger):
    return Hooks(logger)


@pytest.fixture
def heard(hooks):
    """What hooks were told, with hooks ``plain`` and ``waits`` on JOIN."""
    heard = []

    async def waits(*args):
        await asyncio.sleep(0)
        heard.append(("waits", *args))

    hooks.add(Event.JOIN, lambda *args: heard.append(("plain", *args)))
    hooks.add(Event.JOIN, waits)
    return heard


async def test_plain_and_async_hooks_run_in_the_order_in_which_they_were_added(hooks, heard):
    hooks.add(Event.JOIN, lambda *args: heard.append("last"))

    await hooks.tell(Event.JOIN, "room", "conn")

    assert heard == [("plain", "room", "conn"), ("waits", "room", "conn"), "last"]


async def test_a_hook_hears_only_of_its_event(hooks, heard):
    await hooks.tell(Event.LEAVE, "room", "conn", "left")

    assert heard == []


def test_adding_one_returns_it_so_that_it_decorates(hooks):
    def hook():
        """Nothing."""

    assert hooks.add(Event.ERROR, hook) is hook


async def test_a_hook_that_is_taken_back_hears_nothing_more(hooks, heard):
    plain = hooks.of(Event.JOIN)[0]
    hooks.add(Event.LEAVE, plain)

    assert hooks.remove(plain)
    await hooks.tell(Event.JOIN)
    await hooks.tell(Event.LEAVE)

    assert heard == [("waits",)]
    assert not hooks.remove(plain)


async def test_a_bound_method_can_be_taken_back(hooks):
    class Watcher:
        def hear(self):
            pass

    watcher = Watcher()
    hooks.add(Event.JOIN, watcher.hear)

    assert hooks.remove(watcher.hear)
    assert hooks.of(Event.JOIN) == ()


async def test_one_that_is_told_and_raises_is_logged_and_changes_nothing(hooks, logger, heard):
    def broken(*args):
        raise RuntimeError("no")

    hooks._of[Event.JOIN] = (broken, *hooks.of(Event.JOIN))

    await hooks.tell(Event.JOIN, "room")

    assert heard == [("plain", "room"), ("waits", "room")]
    assert "broken" in logger.fields("hook_failed")["hook"]


async def test_one_that_awaits_something_cancelled_changes_nothing_either(hooks, logger):
    heard = []

    async def broken():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    hooks.add(Event.LEAVE, broken)
    hooks.add(Event.LEAVE, lambda: heard.append("next"))

    await hooks.tell(Event.LEAVE)

    assert heard == ["next"]
    assert logger.of("error") == ["hook_failed"]


async def test_the_end_of_the_task_that_tells_ends_the_telling(hooks):
    heard = []

    async def slow():
        await asyncio.Event().wait()

    hooks.add(Event.LEAVE, slow)
    hooks.add(Event.LEAVE, lambda: heard.append("next"))
    task = asyncio.ensure_future(hooks.tell(Event.LEAVE))
    await settle()
    task.cancel()
    await settle()

    assert task.cancelled()
    assert heard == []


async def test_what_a_hook_that_is_asked_raises_goes_to_the_caller(hooks, heard):
    async def no(*args):
        raise PermissionError("no")

    hooks._of[Event.JOIN] = (no, *hooks.of(Event.JOIN))

    with pytest.raises(PermissionError):
        await hooks.ask(Event.JOIN, "room")
    assert heard == []


async def test_hooks_added_meanwhile_hear_of_the_next_event(hooks):
    heard = []

    def hook():
        heard.append("first")
        hooks.add(Event.LEAVE, lambda: heard.append("added"))

    hooks.add(Event.LEAVE, hook)
    await hooks.tell(Event.LEAVE)
    assert heard == ["first"]

    hooks.remove(hook)
    await hooks.tell(Event.LEAVE)
    assert heard == ["first", "added"]


async def test_a_hook_object_without_a_name_can_fail_too(hooks, logger):
    class Watcher:
        def __call__(self):
            raise RuntimeError

    hooks.add(Event.LEAVE, Watcher())
    await hooks.tell(Event.LEAVE)

    assert "Watcher" in logger.fields("hook_failed")["hook"]
