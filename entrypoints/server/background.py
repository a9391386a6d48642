"""The tasks that a server owns beside its handlers.

Rules of this file:

1. A function that was given before a start runs in each life of the server from that one on,
   a coroutine in one; what is given to a running server is part of that life only.
2. A handle may be asked, and used to cancel, from anywhere: also in a thread, also by what
   it cancels. A function that was cancelled runs in no later life.
3. While a test's server stands in for the application's, the handle of a function means its run
   in the test's server; the run in the application's server is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.ports.plugins import Logger

Work = Coroutine[Any, Any, Any] | Callable[..., Any]


class Run:
    """One piece of work, from when it is given to its end, in life after life."""

    def __init__(self, work: Work, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.work = work
        self.args = args
        self.kwargs = kwargs
        self.is_cancelled = False
        self.task: asyncio.Task[Any] | None = None
        """What runs, or was the last to run."""

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

    def again(self) -> Run:
        """The same work, to be run by another."""
        return Run(self.work, self.args, self.kwargs)

    def coroutine(self) -> Coroutine[Any, Any, Any]:
        if inspect.iscoroutine(self.work):
            return self.work
        return call(self.work, *self.args, **self.kwargs)

    def end(self) -> None:
        """End what runs; a coroutine that waits is closed, without a warning that it was
        never awaited."""
        if self.task is not None:
            if not self.task.cancelling():  # a second one would cut its clean-up short
                self.task.cancel()
        elif inspect.iscoroutine(self.work):
            self.work.close()


class Background:
    """Work that waits for the start, and then runs until it is done or ended.

    Its failure is logged and ends nothing else.
    """

    def __init__(self, logger: Logger) -> None:
        self._waiting: list[Run] = []
        self._begun: list[Run] = []
        """The functions that have waited, and will again."""
        self._adopted: dict[Run, Run] = {}
        """What was taken over from another, and what runs here in its place."""
        self._tasks = TaskSet(logger)
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where it runs, or ran last."""

    def __len__(self) -> int:
        """Return how many run."""
        return len(self._tasks)

    def add(self, work: Work, *args: Any, **kwargs: Any) -> Run:
        """Run ``work``; before ``open`` it waits for ``start``. In any thread.

        Raises ``ValueError`` for what can't be run, or not with these arguments.
        """
        check(work, args, kwargs)
        run, loop = Run(work, args, kwargs), self._loop
        if not self._is_open or loop is None:
            self._waiting.append(run)
        elif _is_here(loop):
            self._run(run)
        else:
            loop.call_soon_threadsafe(self._run, run)
        return run

    def adopt(self, other: Background) -> None:
        """Take over the functions that wait with ``other``: they wait there too.

        A coroutine can be run only once, and is left to ``other``.
        """
        given = [*other._begun, *other._waiting]
        self._adopted = {run: run.again() for run in given if _comes_again(run)}
        self._waiting += self._adopted.values()

    def open(self) -> None:
        """Run at once what is added from here on: a startup hook may wait for it."""
        self._loop = asyncio.get_running_loop()
        self._is_open = True

    def start(self) -> None:
        """Run what has waited."""
        waiting, self._waiting = self._waiting, []
        self._begun += filter(_comes_again, waiting)
        for run in waiting:
            self._run(run)

    def _run(self, run: Run) -> None:
        if not self._is_open:  # it was given in a thread, and the life that it was for is over
            run.is_cancelled = True
        if run.is_cancelled:
            run.end()
        else:
            run.task = self._tasks.spawn(run.coroutine(), run.name)

    # --- what a handle asks

    def here(self, run: Run) -> Run:
        """Return what stands for ``run`` here: itself, unless it was taken over."""
        return self._adopted.get(run, run)

    def cancel(self, run: Run) -> None:
        """End it, now and for later lives. May be called again, late, and in any thread."""
        run.is_cancelled = True
        loop = self._loop
        if loop is None or loop.is_closed() or _is_here(loop):
            run.end()
        else:
            with contextlib.suppress(RuntimeError):  # the loop ends, and what runs in it too
                loop.call_soon_threadsafe(run.end)

    # --- the end

    async def close(self) -> None:
        """End what runs. Functions that have waited do so again, and so does what is added
        from here on."""
        self._is_open = False
        again, self._begun = self._begun, []
        self._waiting[:0] = filter(_comes_again, again)
        await self._tasks.close()

    def drop_coroutines(self) -> None:
        """Forget the coroutines that wait, without a warning that they were never awaited."""
        for run in self._waiting:
            if run.is_once:
                run.end()
        self._waiting = [run for run in self._waiting if not run.is_once]


class BackgroundTask:
    """The handle of work that ``server.background`` has taken.

    It may be kept over the lives of the server, and used in any thread.
    """

    __slots__ = ("_owner", "_run")

    def __init__(self, run: Run, owner: Callable[[], Background]) -> None:
        self._run = run
        self._owner = owner

    def cancel(self) -> None:
        """End the work: what waits for the start never runs, what runs gets a
        ``CancelledError`` where it awaits, and a function does not run in later lives of the
        server either. May be called by the work itself, when it has ended, and again, which
        leaves a clean-up alone.
        """
        owner = self._owner()
        owner.cancel(owner.here(self._run))

    @property
    def done(self) -> bool:
        """Whether it has ended: it has returned, failed, or was cancelled and has cleaned up.

        False while it waits for its first start, and while it runs; so it is False again for a
        function that runs in a later life of the server.
        """
        return self._owner().here(self._run).is_done

    def __repr__(self) -> str:
        return f"<BackgroundTask {self._run.name} done={self.done}>"


def _comes_again(run: Run) -> bool:
    return not (run.is_once or run.is_cancelled)


def check(work: Work, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
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
        return  # a builtin that does not say how it is called
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{work!r:.80} can't be called like that: {error}") from None


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


async def call(work: Any, *args: Any, **kwargs: Any) -> None:
    """Call a function, plain or async, and wait for it."""
    result = work(*args, **kwargs)
    if inspect.isawaitable(result):
        await result
