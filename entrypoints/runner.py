"""Runs a program until it is told to end: SIGTERM and SIGINT drain, a second ends at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from eyewall.application.tasks import LAST_WORD

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def run_until_signal(
    *,
    start: Callable[[], Coroutine[Any, Any, Any]],
    ended: Callable[[], Coroutine[Any, Any, Any]],
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Await ``start``, then a signal or ``ended``, then ``stop``.

    A signal that comes during ``start`` cancels it.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    caught: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        caught.append(number)
        if len(caught) > 1:
            # Whoever asks twice does not want to wait. 128 + n is the shell's custom.
            os._exit(128 + number)
        loop.call_soon_threadsafe(asked.set)

    # Not the loop's own signal handlers: they are not called while something blocks it,
    # and that is when a second signal is needed.
    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        if await _done_before(asked, start()):
            await _done_before(asked, ended())
        await stop()
        await _end_what_is_left()
    finally:
        for number, handler in before.items():
            # None: what was there is not Python's, and can't be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


async def _done_before(asked: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Await ``work``, and cancel it when ``asked`` comes first; returns whether it was done."""
    task, bell = asyncio.create_task(work), asyncio.create_task(asked.wait())
    try:
        await asyncio.wait([task, bell], return_when=asyncio.FIRST_COMPLETED)
    finally:
        bell.cancel()
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def _end_what_is_left() -> None:
    """End the tasks that nobody owns. ``asyncio.run`` would do so too, but wait for ever
    for one that ignores its cancellation."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left and (await asyncio.wait(left, timeout=LAST_WORD))[1]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
