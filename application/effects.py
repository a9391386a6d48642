"""Decisions whose effect follows, whatever happens to the task that asked for them.

Who waits for one may be cancelled between the decision, which then stands in the
cluster's state, and its effect here: a handler is, when its time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from eyewall.application.ports import Logger
from eyewall.application.tasks import Tasks, is_end
from eyewall.domain.errors import Refused

_T = TypeVar("_T")


class Effects:
    """Owns decisions and their effects until both are over."""

    def __init__(self, logger: Logger) -> None:
        self._tasks = Tasks(logger)

    async def see_through(
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
