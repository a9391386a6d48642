"""Runs a program until it is told to end: SIGTERM and SIGINT drain, a second ends at once.

In a thread that is not the main one there are no signals: Python hands them to that one.
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

ONE = {signal.SIGINT: 0.3, signal.SIGTERM: 0.0005}
"""Seconds within which the same signal again is the same one. A terminal's Ctrl-C goes to the
whole group of processes, of which one (a shell, ``npm``, ``timeout``) may pass it on as well;
nobody means two keystrokes so soon after another. SIGTERM is sent by programs, which mean two,
but for those that send one to a process and to its group in the same breath."""


_IMPORTING: ContextVar[bool] = ContextVar("importing", default=False)


@contextmanager
def importing() -> Iterator[None]:
    """Import an application whose server is to be run afterwards, and not meanwhile."""
    token = _IMPORTING.set(True)
    try:
        yield
    finally:
        _IMPORTING.reset(token)


def check_not_importing() -> None:
    """Raise ``Misuse`` where the application is only imported: the import would not end, and
    serve without what the command line asks for."""
    if _IMPORTING.get():
        raise Misuse(
            "eyewall serve runs the server itself, after the import (a file that is started "
            "with python needs no eyewall serve): put run() or start() under "
            'if __name__ == "__main__"'
        )


def check_no_loop() -> None:
    """Raise ``RuntimeError`` where a loop runs in this thread already, as in a notebook."""
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

    A signal that comes during ``start`` cancels it.
    """
    asked = asyncio.Event()
    with _signals(asked):
        if await _done_before(asked, start()):
            await _done_before(asked, ended())
        await stop()
        await _end_what_is_left()


@contextmanager
def _signals(asked: asyncio.Event) -> Iterator[None]:
    """Set ``asked`` at the first signal, and end the process at a second."""
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
            loop.call_soon_threadsafe(asked.set)
        elif number != first[0] or now - first[1] >= ONE[signal.Signals(number)]:
            # Whoever asks twice does not want to wait. 128 + n is the shell's custom.
            os._exit(128 + number)

    # Not the loop's own signal handlers: they are not called while something blocks it,
    # and that is when a second signal is needed.
    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
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
    if left and (await asyncio.wait(left, timeout=CANCEL_GRACE))[1]:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # none, or a broken one
                stream.flush()
        os._exit(0)
