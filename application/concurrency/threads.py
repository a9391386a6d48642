"""The thread pool of plain handlers.

The threads are daemons, unlike those of ``concurrent.futures``: a handler that never returns
must not block the end of the process.
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
    """One call of a function in a thread; its result settles ``future`` on the loop."""

    __slots__ = ("_on_change", "_questions", "fn", "future", "loop")

    def __init__(self, fn: Callable[[], Any], on_change: Callable[[], None]) -> None:
        self.fn = fn
        self._on_change = on_change
        self._questions = 0
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    @property
    def waits(self) -> bool:
        """Whether its thread waits for the loop."""
        return self._questions > 0

    async def ask(self, work: Awaitable[T]) -> T:
        """Await ``work`` on the loop for the call's thread, which waits for it."""
        self._questions += 1
        self._on_change()
        try:
            return await work
        finally:
            self._questions -= 1

    def make(self) -> None:
        """Run the function in the current thread, and pass its result to the loop."""
        result: Any = None
        error: BaseException | None = None
        _here.call = self
        try:
            result = self.fn()
        except Exception as raised:  # noqa: BLE001  (the caller gets it)
            error = raised
        except BaseException as stop:  # noqa: BLE001  (a ``SystemExit``, for example)
            # A handler that calls ``sys.exit`` must not end the server.
            error = _failed(stop)
        finally:
            _here.call = None
        if isinstance(error, StopIteration):  # a future can't hold it (PEP 479)
            error = _failed(error)
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:
            pass  # the loop is closed

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return  # cancelled
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


def _failed(stop: BaseException) -> RuntimeError:
    error = RuntimeError(f"the handler raised {type(stop).__name__}")
    error.__cause__ = stop
    return error


class _Here(threading.local):
    """The call that the current thread makes."""

    call: ThreadCall | None = None


_here = _Here()


def current_call() -> ThreadCall | None:
    """Return the call that this thread makes; None in a thread outside the pool."""
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
        """Run ``fn(*args)`` in a thread, in a copy of the caller's context.

        Returns its result; raises its error.
        """
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
        """Whether a thread runs a call that does not wait for the loop."""
        return any(not call.waits for call in self._awaited)

    async def rest(self) -> None:
        """Wait until no call is at work."""
        while self.at_work:
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """End the threads after their current calls; cancel calls that have not begun."""
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
        del call  # release its objects now, not at the next call
        idle.release()


def call_from_thread(
    loop: asyncio.AbstractEventLoop, fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any
) -> T:
    """Run ``await fn(*args, **kwargs)`` on ``loop``, and block this thread until it has ended.

    Returns its result; raises its error, and ``Misuse`` on the loop's own thread, where it
    would be a deadlock.
    """
    if runs_here(loop):
        raise Misuse("from_thread is for plain handlers: await it instead")

    call = current_call()

    async def run() -> T:
        work = fn(*args, **kwargs)
        return await (work if call is None else call.ask(work))

    return asyncio.run_coroutine_threadsafe(run(), loop).result()


def runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether ``loop`` runs in the calling thread."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
