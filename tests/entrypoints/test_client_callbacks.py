"""Callbacks that run in a task of their own."""

from __future__ import annotations

import asyncio

import pytest

from eyewall.client.callbacks import MAX_NOTIFICATIONS, Notifier, invoke, run_logged
from tests.application.fakes import RecordingLogger
from tests.entrypoints.wire import soon


@pytest.fixture
def logger():
    return RecordingLogger()


async def test_plain_and_async_functions_are_called_alike():
    async def later(a, b):
        return a + b

    assert await invoke(lambda a, b: a + b, 1, 2) == 3
    assert await invoke(later, 1, 2) == 3


async def fails(error):
    raise error


@pytest.mark.parametrize("error", [RuntimeError("broken"), asyncio.CancelledError()])
async def test_what_a_callback_raises_is_logged_and_returned(logger, error):
    """Also a cancellation that is not the end of the task that calls it."""
    assert await run_logged(logger, fails(error), "callback") == (None, error)
    assert logger.fields("callback_failed")["callback"] == "callback"


async def test_the_end_of_the_task_is_passed_on(logger):
    task = asyncio.ensure_future(run_logged(logger, asyncio.Event().wait(), "callback"))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_end_of_the_process_is_passed_on(logger):
    with pytest.raises(SystemExit):
        await run_logged(logger, fails(SystemExit(1)), "callback")


async def test_notices_are_told_in_order_to_everybody_until_closed(logger):
    notices = Notifier(logger)
    told = []

    async def slow(state):
        await asyncio.sleep(0)
        told.append(("slow", state))

    def broken(state):
        raise RuntimeError

    listeners = [slow, broken, lambda state: told.append(("quick", state))]
    notices.tell(listeners, "open")
    notices.tell(listeners, "closed")
    notices.close()
    await soon(notices.run())

    assert told == [("slow", "open"), ("quick", "open"), ("slow", "closed"), ("quick", "closed")]


def test_who_takes_no_notice_gets_no_more(logger):
    notices = Notifier(logger)
    for _ in range(MAX_NOTIFICATIONS + 1):
        notices.tell([print], "open")

    assert logger.fields("notice_dropped")["callback"] == "print"
