"""Tasks with an owner: reported when they fail, ended when the owner ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from eyewall.application.logs import shown
from eyewall.application.ports import Logger

LAST_WORD = 0.5
"""Seconds that a task has to end after it was cancelled."""


def is_cancelled() -> bool:
    """Whether the running task is to end.

    A ``CancelledError`` without that came from something it waited for, and is a
    failure of that like any other.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Tasks:
    """A set of running tasks."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        """Run ``work``; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._done)
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
            _, deaf = await asyncio.wait(running, timeout=LAST_WORD)
            for task in deaf:
                self._logger.warning("task_does_not_end", task=task.get_name())
            self._running -= deaf

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._logger.error(
                "task_failed", task=task.get_name(), error=shown(error), exc_info=error
            )
