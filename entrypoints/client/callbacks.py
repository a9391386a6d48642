"""The application's callbacks, run one after another in a task of their own.

The connection is read while a callback runs, so a callback may send a request and await the
answer.
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
"""Notifications (a state, a lost room) that wait for a callback. Further ones are dropped: a
callback that is so far behind can't use them."""


async def invoke(callback: Callable[..., Any], *args: Any) -> Any:
    """Call a plain or async function, and return its result."""
    result = callback(*args)
    return await result if inspect.isawaitable(result) else result


class Notifier:
    """Calls the callbacks for changes of the client's state, and for lost rooms."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._waiting: Inbox[tuple[Callable[..., Any], tuple[Any, ...]]] = Inbox(MAX_NOTIFICATIONS)

    def tell(self, callbacks: list[Callable[..., Any]], *args: Any) -> None:
        """Queue a call of each callback."""
        for callback in callbacks:
            if not self._waiting.put((callback, args), 0):
                self._logger.warning("notice_dropped", callback=_name(callback))

    def close(self) -> None:
        """Take no more calls; the queued ones are still made."""
        self._waiting.close()

    async def run(self) -> None:
        """Make the queued calls, until closed."""
        while (notice := await self._waiting.get()) is not None:
            callback, args = notice
            await run_logged(self._logger, invoke(callback, *args), _name(callback))


async def run_logged(
    logger: Logger, work: Awaitable[Any], name: str
) -> tuple[Any, BaseException | None]:
    """Return the result, or the exception, which is also logged."""
    try:
        return await work, None
    except BaseException as error:
        # A CancelledError of the callback's own is a failure like any other; the end of this
        # task, or of the process, is raised again.
        if not isinstance(error, Exception) and (
            is_cancelled() or isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))
        ):
            raise
        logger.error("callback_failed", callback=name, error=shown(error), exc_info=error)
        return None, error


def _name(callback: Callable[..., Any]) -> str:
    return getattr(callback, "__qualname__", None) or type(callback).__qualname__
