"""Runs a server until a signal: SIGTERM or SIGINT drains it, a second signal ends the process.

Python delivers signals to the main thread only. In another thread the runner handles none.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from eyewall.application.concurrency.tasks import CANCEL_GRACE
from eyewall.domain.errors import Misuse

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

DEBOUNCE = {signal.SIGINT: 0.3, signal.SIGTERM: 0.0005}
"""Seconds within which a repeated signal counts as the same one. A terminal sends Ctrl-C to the
whole process group, and a parent (a shell, ``npm``, ``timeout``) may forward it too; a second
keystroke takes longer. Programs send a second SIGTERM on purpose, except those that signal a
process and its group at once."""


_IMPORTING: ContextVar[bool] = ContextVar("importing", default=False)


@contextmanager
def importing() -> Iterator[None]:
    """Import an application in this context: its ``run()`` and ``start()`` raise ``Misuse``."""
    token = _IMPORTING.set(True)
    try:
        yield
    finally:
        _IMPORTING.reset(token)


def check_not_importing() -> None:
    """Raise ``Misuse`` while ``eyewall serve`` imports the application: the import would never
    end, and the server would ignore the command line."""
    if _IMPORTING.get():
        raise Misuse(
            "eyewall serve runs the server itself, after the import (a file that is started "
            "with python needs no eyewall serve): put run() or start() under "
            'if __name__ == "__main__"'
        )


def check_no_loop() -> None:
    """Raise ``RuntimeError`` if an event loop runs in this thread already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "run() makes an event loop of its own, and one runs in this thread already: "
        "await server.start(port=...) there"
    )


async def run_until_signal(
    *,
    start: Callable[[], Coroutine[Any, Any, Any]],
    ended: Callable[[], Coroutine[Any, Any, Any]],
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Await ``start``, then a signal or ``ended``, then ``stop``.

    A signal during ``start`` cancels it. Remaining tasks are cancelled at the end.
    """
    requested = asyncio.Event()
    with _signals(requested):
        if await _finished_before(requested, start()):
            await _finished_before(requested, ended())
        await stop()
        await _cancel_remaining_tasks()


@contextmanager
def _signals(requested: asyncio.Event) -> Iterator[None]:
    """Set ``requested`` at the first signal, and end the process at a second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    first: tuple[int, float] | None = None

    def on_signal(number: int, _frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = number, now
            loop.call_soon_threadsafe(requested.set)
        elif number != first[0] or now - first[1] >= DEBOUNCE[signal.Signals(number)]:
            # A second signal means: do not wait. 128 + n is the shell's convention.
            os._exit(128 + number)

    # Not the loop's own signal handlers: a blocked loop never calls them, and then a second
    # signal is needed most.
    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: the previous handler is not Python's and can't be restored from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


async def _finished_before(requested: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Await ``work``; cancel it if ``requested`` is set first. Returns whether it finished."""
    task, waiter = asyncio.create_task(work), asyncio.create_task(requested.wait())
    try:
        await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def _cancel_remaining_tasks() -> None:
    """Cancel the tasks that are left, and end the process if one ignores its cancellation, for
    which ``asyncio.run`` would wait for ever."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left and (await asyncio.wait(left, timeout=CANCEL_GRACE))[1]:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # missing or broken
                stream.flush()
        os._exit(0)
