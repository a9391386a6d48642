"""The threads in which plain handlers run.

They are daemons, which those of ``concurrent.futures`` are not: a handler that never
returns must not hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any


class _Call:
    """A call on its way through a thread and back."""

    __slots__ = ("fn", "future", "loop")

    def __init__(self, fn: Callable[[], Any]) -> None:
        self.fn = fn
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def make(self) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = self.fn()
        except (StopIteration, SystemExit) as stop:
            # A future can't hold the one (PEP 479), and the other would end the loop: a
            # library that gives up must not take the server along.
            error = RuntimeError(f"the handler raised {type(stop).__name__}")
            error.__cause__ = stop
        except BaseException as raised:  # noqa: BLE001  (it belongs to who awaits the call)
            error = raised
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:
            pass  # the loop has ended meanwhile

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return  # cancelled meanwhile
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Threads:
    """A pool of at most ``size`` threads, each started when it is first needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Return what ``fn(*args)`` returns, in a thread; context variables come along."""
        call = _Call(partial(copy_context().run, fn, *args))
        self._calls.put(call)
        if not self._idle.acquire(blocking=False) and self._started < self._size:
            self._started += 1
            work = partial(_work, self._calls, self._idle)
            threading.Thread(target=work, name=f"eyewall-{self._started}", daemon=True).start()
        return await call.future

    def close(self) -> None:
        """Let the threads end; calls that have not begun are cancelled."""
        calls, started = self._calls, self._started
        self._calls, self._idle, self._started = SimpleQueue(), threading.Semaphore(0), 0
        try:
            while True:
                if (call := calls.get_nowait()) is not None:
                    call.future.cancel()
        except Empty:
            pass
        for _ in range(started):
            calls.put(None)


def _work(calls: SimpleQueue[_Call | None], idle: threading.Semaphore) -> None:
    while (call := calls.get()) is not None:
        if not call.future.cancelled():
            call.make()
        del call  # what it holds should not wait for the next one
        idle.release()
