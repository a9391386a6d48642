"""The tasks that a server owns beside its handlers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from eyewall.application.ports import Logger
from eyewall.application.tasks import Tasks

Work = Coroutine[Any, Any, Any] | Callable[[], Any]


class Background:
    """Work that waits for the start, and then runs until it is done or ended.

    Its failure is logged and ends nothing else. A function that was given before a start
    runs in each life from that one on, a coroutine in one; what is given to a running
    server is part of that life only.
    """

    def __init__(self, logger: Logger) -> None:
        self._waiting: list[Work] = []
        self._begun: list[Work] = []
        """The functions that have waited, and will again."""
        self._tasks = Tasks(logger)
        self._is_open = False

    def __len__(self) -> int:
        """Return how many run."""
        return len(self._tasks)

    def add(self, work: Work) -> None:
        """Run ``work``; before ``open`` it waits for ``start``.

        Raises ``ValueError`` for what can't be run.
        """
        if not (inspect.iscoroutine(work) or callable(work)):
            raise ValueError(f"work must be a coroutine or a function, not {work!r}")
        if self._is_open:
            self._run(work)
        else:
            self._waiting.append(work)

    def adopt(self, other: Background) -> None:
        """Take over the functions that wait with ``other``: they wait there too.

        A coroutine can be run only once, and is left to ``other``.
        """
        given = [*other._begun, *other._waiting]
        self._waiting += [work for work in given if not inspect.iscoroutine(work)]

    def open(self) -> None:
        """Run at once what is added from here on: a startup hook may wait for it."""
        self._is_open = True

    def start(self) -> None:
        """Run what has waited."""
        waiting, self._waiting = self._waiting, []
        self._begun += [work for work in waiting if not inspect.iscoroutine(work)]
        for work in waiting:
            self._run(work)

    def _run(self, work: Work) -> None:
        coroutine = work if inspect.iscoroutine(work) else call(work)
        self._tasks.spawn(coroutine, getattr(work, "__qualname__", None))

    async def close(self) -> None:
        """End what runs. Functions that have waited do so again, and so does what is added
        from here on."""
        self._is_open = False
        self._waiting[:0], self._begun = self._begun, []
        await self._tasks.close()

    def drop_coroutines(self) -> None:
        """Forget the coroutines that wait, without a warning that they were never awaited."""
        for work in self._waiting:
            if inspect.iscoroutine(work):
                work.close()
        self._waiting = [work for work in self._waiting if not inspect.iscoroutine(work)]

    def drop(self) -> None:
        """Forget all that waits."""
        self.drop_coroutines()
        self._waiting.clear()


async def call(work: Any) -> None:
    """Call a function, plain or async, and wait for it."""
    result = work()
    if inspect.isawaitable(result):
        await result
