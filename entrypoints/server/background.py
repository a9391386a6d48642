"""The background tasks that a server owns beside its handlers.

Rules of this file:

1. A function that is added before a start runs in that life of the server and in each later
   one; a coroutine runs in one life. Work added to a running server belongs to that life only.
2. A handle may be used in any thread, and by the work that it cancels. A cancelled function
   does not run in a later life.
3. While a test overrides the runtime of the application's server, the handle of a function
   means its job in the test's server; the job in the application's server is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.concurrency.threads import runs_here
from eyewall.application.ports.plugins import Logger

Work = Coroutine[Any, Any, Any] | Callable[..., Any]


class Job:
    """One piece of work, from when it is added to its end, over all lives of the server."""

    def __init__(self, work: Work, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.work = work
        self.args = args
        self.kwargs = kwargs
        self.is_cancelled = False
        self.task: asyncio.Task[Any] | None = None
        """The task of this life, or of the last one; None before the first."""

    @property
    def name(self) -> str:
        return getattr(self.work, "__qualname__", None) or type(self.work).__qualname__

    @property
    def is_once(self) -> bool:
        return inspect.iscoroutine(self.work)

    @property
    def is_done(self) -> bool:
        if self.task is not None:
            return self.task.done()
        return self.is_cancelled or (
            inspect.iscoroutine(self.work)
            and inspect.getcoroutinestate(self.work) == inspect.CORO_CLOSED
        )

    def copy(self) -> Job:
        """Return a new job for the same work."""
        return Job(self.work, self.args, self.kwargs)

    def coroutine(self) -> Coroutine[Any, Any, Any]:
        if inspect.iscoroutine(self.work):
            return self.work
        return call(self.work, *self.args, **self.kwargs)

    def end(self) -> None:
        """Cancel the task. A coroutine without one is closed, so that Python does not warn that
        it was never awaited."""
        if self.task is not None:
            if not self.task.cancelling():  # a second cancel would interrupt its clean-up
                self.task.cancel()
        elif inspect.iscoroutine(self.work):
            self.work.close()


class Background:
    """Runs jobs between start and close; before the start they wait.

    The failure of a job is logged and affects nothing else.
    """

    def __init__(self, logger: Logger) -> None:
        self._waiting: list[Job] = []
        self._repeating: list[Job] = []
        """Functions of this life that wait again for the next one."""
        self._adopted: dict[Job, Job] = {}
        """Jobs of another ``Background``, each with its copy here."""
        self._tasks = TaskSet(logger)
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop of this life, or of the last one."""

    def __len__(self) -> int:
        """Return the number of running jobs."""
        return len(self._tasks)

    def add(self, work: Work, *args: Any, **kwargs: Any) -> Job:
        """Run ``work`` at once, or after ``start`` if that is still to come; in any thread.

        Raises ``ValueError`` for work that can't be run, or not with these arguments.
        """
        check_work(work, args, kwargs)
        job, loop = Job(work, args, kwargs), self._loop
        if not self._is_open or loop is None:
            self._waiting.append(job)
        elif runs_here(loop):
            self._start_job(job)
        else:
            loop.call_soon_threadsafe(self._start_job, job)
        return job

    def adopt(self, other: Background) -> None:
        """Copy the functions that wait with ``other``; they go on waiting there.

        A coroutine can run only once and stays with ``other``.
        """
        given = [*other._repeating, *other._waiting]
        self._adopted = {job: job.copy() for job in given if _is_repeatable(job)}
        self._waiting += self._adopted.values()

    def open(self) -> None:
        """Run work that is added from now on at once: a startup hook may wait for it."""
        self._loop = asyncio.get_running_loop()
        self._is_open = True

    def start(self) -> None:
        """Run the waiting jobs."""
        waiting, self._waiting = self._waiting, []
        self._repeating += filter(_is_repeatable, waiting)
        for job in waiting:
            self._start_job(job)

    def _start_job(self, job: Job) -> None:
        if not self._is_open:  # added in a thread, and its life has ended meanwhile
            job.is_cancelled = True
        if job.is_cancelled:
            job.end()
        else:
            job.task = self._tasks.spawn(job.coroutine(), job.name)

    # --- for handles

    def local(self, job: Job) -> Job:
        """Return the job that runs here for ``job``: its copy if there is one, else itself."""
        return self._adopted.get(job, job)

    def cancel(self, job: Job) -> None:
        """Cancel a job, in this life and later ones. Idempotent; in any thread."""
        job.is_cancelled = True
        loop = self._loop
        if loop is None or loop.is_closed() or runs_here(loop):
            job.end()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closing, with all its tasks
                loop.call_soon_threadsafe(job.end)

    # --- the end

    async def close(self) -> None:
        """Cancel the running jobs. Functions wait for the next start, and so does work that is
        added from now on."""
        self._is_open = False
        again, self._repeating = self._repeating, []
        self._waiting[:0] = filter(_is_repeatable, again)
        await self._tasks.close()

    def drop_coroutines(self) -> None:
        """Close the waiting coroutines, so that Python does not warn that they were never
        awaited."""
        for job in self._waiting:
            if job.is_once:
                job.end()
        self._waiting = [job for job in self._waiting if not job.is_once]


class BackgroundTask:
    """The handle of work that was given to ``server.background``.

    It may be kept over several lives of the server, and used in any thread.
    """

    __slots__ = ("_job", "_owner")

    def __init__(self, job: Job, owner: Callable[[], Background]) -> None:
        self._job = job
        self._owner = owner

    def cancel(self) -> None:
        """Cancel the work. Idempotent.

        Work that waits for the start never runs; running work gets a ``CancelledError`` at its
        ``await``; a function does not run in later lives of the server either. The work itself
        may call it, also after its end. A second call does not interrupt a clean-up.
        """
        owner = self._owner()
        owner.cancel(owner.local(self._job))

    @property
    def done(self) -> bool:
        """Whether the work has ended: returned, failed, or was cancelled and has cleaned up.

        False while it waits for its first start and while it runs; False again for a function
        that runs in a later life of the server.
        """
        return self._owner().local(self._job).is_done

    def __repr__(self) -> str:
        return f"<BackgroundTask {self._job.name} done={self.done}>"


def _is_repeatable(job: Job) -> bool:
    return not (job.is_once or job.is_cancelled)


def check_work(work: Work, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for work that can't be run, or not with these arguments."""
    if inspect.iscoroutine(work):
        if args or kwargs:
            raise ValueError(f"{work.__qualname__} is a coroutine, which has its arguments already")
        return
    if not callable(work) or inspect.isasyncgenfunction(work):
        raise ValueError(f"work must be a coroutine or a function, not {work!r:.80}")
    try:
        signature = inspect.signature(work)
    except (TypeError, ValueError):
        return  # a builtin without a signature
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{work!r:.80} can't be called like that: {error}") from None


async def call(work: Any, *args: Any, **kwargs: Any) -> None:
    """Call a function, plain or async, and await it."""
    result = work(*args, **kwargs)
    if inspect.isawaitable(result):
        await result
