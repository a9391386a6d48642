"""The threads in which plain handlers run.

They are daemons, which those of ``concurrent.futures`` are not: a handler that never
returns must not hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from eyewall.domain.errors import Misuse

T = TypeVar("T")


class ThreadCall:
    """A call on its way through a thread and back."""

    __slots__ = ("_on_change", "_questions", "fn", "future", "loop")

    def __init__(self, fn: Callable[[], Any], on_change: Callable[[], None]) -> None:
        self.fn = fn
        self._on_change = on_change
        self._questions = 0
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    @property
    def waits(self) -> bool:
        """Whether it has asked the loop for something that is not done yet."""
        return self._questions > 0

    async def ask(self, work: Awaitable[T]) -> T:
        """On the loop: what its thread has asked for, and waits for."""
        self._questions += 1
        self._on_change()
        try:
            return await work
        finally:
            self._questions -= 1

    def make(self) -> None:
        result: Any = None
        error: BaseException | None = None
        _here.call = self
        try:
            result = self.fn()
        except Exception as raised:  # noqa: BLE001  (it belongs to who awaits the call)
            error = raised
        except BaseException as stop:  # noqa: BLE001  (what ends a task, or the program)
            # A library that gives up must not take the server along.
            error = _failed(stop)
        finally:
            _here.call = None
        if isinstance(error, StopIteration):  # which no future holds (PEP 479)
            error = _failed(error)
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


def _failed(stop: BaseException) -> RuntimeError:
    error = RuntimeError(f"the handler raised {type(stop).__name__}")
    error.__cause__ = stop
    return error


class _Here(threading.local):
    """What the thread is at."""

    call: ThreadCall | None = None


_here = _Here()


def current_call() -> ThreadCall | None:
    """The call that this thread is making; None in a thread of somebody else."""
    return _here.call


class Threads:
    """A pool of at most ``size`` threads, each started when it is first needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._calls: SimpleQueue[ThreadCall | None] = SimpleQueue()
        self._awaited: set[ThreadCall] = set()
        self._changed = asyncio.Event()
        self._idle = threading.Semaphore(0)
        self._started = 0

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Return what ``fn(*args)`` returns, in a thread; context variables come along."""
        call = ThreadCall(partial(copy_context().run, fn, *args), self._changed.set)
        self._calls.put(call)
        if not self._idle.acquire(blocking=False) and self._started < self._size:
            self._started += 1
            work = partial(_work, self._calls, self._idle)
            threading.Thread(target=work, name=f"eyewall-{self._started}", daemon=True).start()
        self._awaited.add(call)
        try:
            return await call.future
        finally:
            self._awaited.discard(call)
            self._changed.set()

    @property
    def at_work(self) -> bool:
        """Whether anything goes on in a thread, without waiting for the loop."""
        return any(not call.waits for call in self._awaited)

    async def rest(self) -> None:
        """Return when nothing is at work."""
        while self.at_work:
            self._changed.clear()
            await self._changed.wait()

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


def _work(calls: SimpleQueue[ThreadCall | None], idle: threading.Semaphore) -> None:
    while (call := calls.get()) is not None:
        if not call.future.cancelled():
            call.make()
        del call  # what it holds should not wait for the next one
        idle.release()


def call_from_thread(
    loop: asyncio.AbstractEventLoop, fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any
) -> T:
    """Run ``await fn(*args, **kwargs)`` on ``loop``, and block this thread until it has ended.

    Returns the result or raises. Raises ``Misuse`` on the loop itself: that would be a deadlock.
    """
    if _runs_here(loop):
        raise Misuse("from_thread is for plain handlers: await it instead")

    call = current_call()

    async def run() -> T:
        work = fn(*args, **kwargs)
        return await (work if call is None else call.ask(work))

    return asyncio.run_coroutine_threadsafe(run(), loop).result()


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
