"""Tasks with an owner: reported when they fail, ended when the owner ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from eyewall.application.ports import Logger


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
        """Return when none is running."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def close(self) -> None:
        """Cancel what runs, and wait for its end."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._logger.error(
                "task_failed", task=task.get_name(), error=repr(error), exc_info=error
            )
