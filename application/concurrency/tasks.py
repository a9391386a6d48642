"""Tasks with an owner, the meaning of errors that leave a task, and work that is not cancelled.

Rules of this file:

1. A ``TaskSet`` logs the failures of its tasks, and cancels them when its owner ends.
2. An error of the application's code is a failure of that one call, also a ``CancelledError``
   or ``SystemExit``. The caller catches ``BaseException``. Where it has awaited something, it
   re-raises the errors for which ``is_end`` is true; without an await no cancellation can
   arrive. Ctrl-C comes as a signal, and stops the server by that.
3. ``Effects`` runs a decision and its effect to completion even if the caller is cancelled,
   as a handler is at its timeout: a decision stands in the cluster's state, and its effect on
   this node must follow.
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
"""Seconds that a task has to end after its cancellation: time for a ``finally`` block, and
short against the five seconds of the whole shutdown."""


PARTING = 1.0
"""Seconds for a call to an engine at a node's shutdown. There are a handful of such calls, and
the whole shutdown has five seconds: an engine that does not answer must not keep the other
adapters from being closed."""


def is_cancelled() -> bool:
    """Whether the running task is being cancelled.

    Otherwise a ``CancelledError`` came from the awaited object, and is its failure.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_end(error: BaseException) -> bool:
    """Whether ``error``, raised by an ``await``, ends the running task.

    Otherwise it is a failure of the awaited object.
    """
    if isinstance(error, GeneratorExit):
        return not _in_a_task()  # a coroutine is closed outside of tasks
    return isinstance(error, asyncio.CancelledError) and is_cancelled()


def _in_a_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no loop runs
        return False


async def briefly(work: Awaitable[Any], seconds: float | None = None) -> None:
    """Await ``work`` for at most ``seconds`` (None: ``PARTING``); then raise ``Unavailable``."""
    most = PARTING if seconds is None else seconds
    try:
        async with asyncio.timeout(most) as limit:
            await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise Unavailable(f"it took longer than {most:g} s") from error


class TaskSet:
    """The running tasks of one owner."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        """Run ``work`` in a task, which is returned; an error of it is logged."""
        task = asyncio.get_running_loop().create_task(_contained(work), name=name)
        self._running.add(task)
        task.add_done_callback(partial(self._done, work))
        return task

    async def settled(self) -> None:
        """Wait until no task runs, except the caller's own."""
        while running := self._running - {asyncio.current_task()}:
            await asyncio.wait(running)

    async def close(self) -> None:
        """Cancel the running tasks, except the caller's own, and wait for their end.

        A task that ignores its cancellation for ``CANCEL_GRACE`` is logged and abandoned.
        """
        while running := self._running - {asyncio.current_task()}:
            for task in running:
                task.cancel()
            _, stuck = await asyncio.wait(running, timeout=CANCEL_GRACE)
            for task in stuck:
                self._logger.warning("task_does_not_end", task=task.get_name())
            self._running -= stuck

    def _done(self, work: Coroutine[Any, Any, Any], task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        work.close()  # it may have been cancelled before it began
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._logger.error(
                "task_failed", task=task.get_name(), error=shown(error), exc_info=error
            )


async def _contained(work: Coroutine[Any, Any, Any]) -> Any:
    """Await ``work``; errors that would end the loop or look like a cancellation are wrapped."""
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
    """Runs decisions with their effects to completion, whatever happens to the callers."""

    def __init__(self, logger: Logger) -> None:
        self._tasks = TaskSet(logger)

    async def run_to_completion(
        self, work: Callable[[], Awaitable[_T]], then: Callable[[], Awaitable[Any]] | None = None
    ) -> _T:
        """Run ``work``, a decision and its effect, even if the caller is cancelled.

        Returns its result; raises its error. ``then`` runs after it: in the caller's task,
        or in a task of its own if the caller was cancelled.
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
                    raise  # the caller has gone: the task set logs it
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
        """Cancel the running work, and wait for its end."""
        await self._tasks.close()


async def _after(running: asyncio.Task[None], then: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.wait([running])
    await then()
