"""The application's callbacks, run one after another in a task of their own.

So the connection is read while a callback runs, and a callback may itself send a request
and wait for its answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from eyewall.application.concurrency.tasks import is_cancelled
from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import Logger
from eyewall.client.inbox import Inbox

MAX_NOTIFICATIONS = 64
"""Notices (a state, a lost room) that wait. One who takes no notice of so many changes
takes none of the next."""


async def invoke(callback: Callable[..., Any], *args: Any) -> Any:
    """Call a plain or async function, and return its result."""
    result = callback(*args)
    return await result if inspect.isawaitable(result) else result


class Notifier:
    """Tells callbacks what happens to the client itself."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._waiting: Inbox[tuple[Callable[..., Any], tuple[Any, ...]]] = Inbox(MAX_NOTIFICATIONS)

    def tell(self, callbacks: list[Callable[..., Any]], *args: Any) -> None:
        """Have them called soon."""
        for callback in callbacks:
            if not self._waiting.put((callback, args), 0):
                self._logger.warning("notice_dropped", callback=_name(callback))

    def close(self) -> None:
        """Take nothing more; what waits is still told."""
        self._waiting.close()

    async def run(self) -> None:
        """Call them, until closed."""
        while (notice := await self._waiting.get()) is not None:
            callback, args = notice
            await run_logged(self._logger, invoke(callback, *args), _name(callback))


async def run_logged(
    logger: Logger, work: Awaitable[Any], name: str
) -> tuple[Any, BaseException | None]:
    """Return the result, or what was raised, which is logged too."""
    try:
        return await work, None
    except BaseException as error:
        # A CancelledError of its own making is a failure like any other; the end of this
        # very task, and of the process, is passed on.
        if not isinstance(error, Exception) and (
            is_cancelled() or isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))
        ):
            raise
        logger.error("callback_failed", callback=name, error=shown(error), exc_info=error)
        return None, error


def _name(callback: Callable[..., Any]) -> str:
    return getattr(callback, "__qualname__", None) or type(callback).__qualname__
