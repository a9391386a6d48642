"""Tasks with an owner: reported when they fail, ended when the owner ends.

Whatever an application's code raises is a failure of that one call, also what Python means
for the end of a task or of the program (``CancelledError``, ``SystemExit`` and the like).
Code that calls it catches ``BaseException``, and

* where nothing was awaited, that is all: no cancellation arrives there;
* where something was, it passes on what ``is_end`` says.

Ctrl-C comes as a signal, and ends a server by that.


Decisions whose effect follows, whatever happens to the task that asked for them.

Who waits for one may be cancelled between the decision, which then stands in the
cluster's state, and its effect here: a handler is, when its time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import Logger
from eyewall.domain.errors import Refused, Unavailable

CANCEL_GRACE = 0.5
"""Seconds that a task has to end after it was cancelled."""


PARTING = 1.0
"""Seconds for what a node that ends still has to say to an engine. There are a handful of
such calls, and the whole end has five seconds (``server.LETTING_GO``): one engine that is
silent must not keep the adapters from being closed."""


def is_cancelled() -> bool:
    """Whether the running task is to end.

    A ``CancelledError`` without that came from something it waited for, and is a
    failure of that like any other.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_end(error: BaseException) -> bool:
    """Whether ``error``, which came out of an ``await``, is the end of what runs here, and
    not a failure of what was awaited."""
    if isinstance(error, GeneratorExit):
        return not _in_a_task()  # else the application's own: a coroutine is closed outside
    return isinstance(error, asyncio.CancelledError) and is_cancelled()


def _in_a_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no loop runs
        return False


async def briefly(work: Awaitable[Any], seconds: float | None = None) -> None:
    """Await ``work``; raises ``Unavailable`` if it takes longer (None: than ``PARTING``)."""
    most = PARTING if seconds is None else seconds
    try:
        async with asyncio.timeout(most) as limit:
            await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise Unavailable(f"it took longer than {most:g} s") from error


class TaskSet:
    """A set of running tasks."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        """Run ``work``; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(_contained(work), name=name)
        self._running.add(task)
        task.add_done_callback(partial(self._done, work))
        return task

    async def settled(self) -> None:
        """Return when none is running, but for the caller itself."""
        while running := self._running - {asyncio.current_task()}:
            await asyncio.wait(running)

    async def close(self) -> None:
        """Cancel what runs, and wait for its end; the caller itself may be one of them.

        A task that ignores its cancellation is named, and left behind.
        """
        while running := self._running - {asyncio.current_task()}:
            for task in running:
                task.cancel()
            _, deaf = await asyncio.wait(running, timeout=CANCEL_GRACE)
            for task in deaf:
                self._logger.warning("task_does_not_end", task=task.get_name())
            self._running -= deaf

    def _done(self, work: Coroutine[Any, Any, Any], task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        work.close()  # it may have been cancelled before it had begun
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._logger.error(
                "task_failed", task=task.get_name(), error=shown(error), exc_info=error
            )


async def _contained(work: Coroutine[Any, Any, Any]) -> Any:
    """Await ``work``; what would end the loop, or look like a cancellation, is a failure."""
    try:
        return await work
    except Exception:
        raise
    except BaseException as error:
        if is_end(error):
            raise
        raise RuntimeError(f"it raised {shown(error)}") from error


_T = TypeVar("_T")


class Effects:
    """Owns decisions and their effects until both are over."""

    def __init__(self, logger: Logger) -> None:
        self._tasks = TaskSet(logger)

    async def run_to_completion(
        self, work: Callable[[], Awaitable[_T]], then: Callable[[], Awaitable[Any]] | None = None
    ) -> _T:
        """Await ``work``, a decision and its effect, which goes on without the caller.

        ``then`` follows it: in the caller's task, or without the caller when it has
        been cancelled before.
        """
        asked: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                result = await work()
            except BaseException as error:
                if is_end(error):
                    raise
                if not asked.done():
                    asked.set_exception(error)
                elif not isinstance(error, Refused):
                    raise  # nobody else hears of it
            else:
                if not asked.done():
                    asked.set_result(result)

        running = self._tasks.spawn(run())
        running.add_done_callback(lambda _: asked.cancel())
        try:
            result = await asked
        except asyncio.CancelledError:
            if then is not None:
                self._tasks.spawn(_after(running, then))
            raise
        if then is not None:
            await then()
        return result

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.close()


async def _after(running: asyncio.Task[None], then: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.wait([running])
    await then()
