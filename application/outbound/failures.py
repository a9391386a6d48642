"""Failure handlers: called when a message is not delivered.

The handlers of the failure's kind run first, then those of ``on_send_failure``. A handler may
be plain or ``async``; its errors are logged and have no other effect.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final, TypeVar

from eyewall.application.concurrency.tasks import CANCEL_GRACE, is_end
from eyewall.application.connections.stats import Stats
from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import Logger
from eyewall.domain.report import Failure, FailureReason, Incident

F = TypeVar("F", bound=Callable[[Failure], Any])


BACKLOG = 10_000
"""Failures of fan-outs that may wait to be reported: a slow handler must not fill the memory.
Further ones are only counted."""


SLICE = 50
"""Failures that are reported in one iteration of the loop, so that plain handlers
don't occupy it."""


class Kind(Enum):
    """The kinds of failures that handlers are registered for."""

    SEND_FAILURE = auto()
    QUEUE_FULL = auto()
    USER_OFFLINE = auto()
    CONNECTION_ERROR = auto()
    TIMEOUT = auto()


KIND_OF: Final = {
    FailureReason.QUEUE_FULL: Kind.QUEUE_FULL,
    FailureReason.BROADCAST_FULL: Kind.QUEUE_FULL,
    FailureReason.PENDING_FULL: Kind.QUEUE_FULL,
    FailureReason.USER_OFFLINE: Kind.USER_OFFLINE,
    FailureReason.CONN_ERROR: Kind.CONNECTION_ERROR,
    FailureReason.CONN_CLOSED: Kind.CONNECTION_ERROR,
    FailureReason.CHANNEL_CLOSED: Kind.CONNECTION_ERROR,
    FailureReason.TIMEOUT: Kind.TIMEOUT,
    FailureReason.SEND_TIMEOUT: Kind.TIMEOUT,
    FailureReason.ACK_TIMEOUT: Kind.TIMEOUT,
}
"""The kind of each reason; for other reasons only the general handlers run."""


class Failures:
    """The failure handlers of one node, and the failures that wait to be reported."""

    def __init__(self, logger: Logger, stats: Stats) -> None:
        self._logger = logger
        self._stats = stats
        self._handlers: dict[Kind, tuple[Callable[[Failure], Any], ...]] = dict.fromkeys(Kind, ())
        self._later: deque[Failure] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, kind: Kind, handler: F) -> F:
        """Register a handler; returns it, so that this works as a decorator.

        Raises ``ValueError`` if it is not callable.
        """
        if not callable(handler):
            raise ValueError(f"a failure handler must be callable, not {handler!r:.80}")
        self._handlers[kind] = (*self._handlers[kind], handler)
        return handler

    def remove(self, handler: Callable[[Failure], Any]) -> bool:
        """Remove a handler from all kinds; False if it was not registered."""
        found = False
        for kind, handlers in self._handlers.items():
            if handler in handlers:
                self._handlers[kind] = tuple(h for h in handlers if h != handler)
                found = True
        return found

    def adopt(self, other: Failures) -> None:
        """Add the handlers that ``other`` has now."""
        for kind, handlers in other._handlers.items():
            self._handlers[kind] = (*self._handlers[kind], *handlers)

    async def tell(self, failure: Failure) -> None:
        """Run the handlers for ``failure`` now."""
        kind = KIND_OF.get(failure.reason)
        specific = self._handlers[kind] if kind is not None else ()
        for handler in (*specific, *self._handlers[Kind.SEND_FAILURE]):
            try:
                result = handler(failure)
                if inspect.isawaitable(result):
                    await result
            except BaseException as error:
                # A handler's error has no effect on delivery: only the cancellation of this
                # task is re-raised.
                if is_end(error):
                    raise
                self._logger.error(
                    "failure_handler_failed",
                    reason=failure.reason.value,
                    recipient=failure.recipient,
                    conn_id=failure.conn_id,
                    user_id=failure.user_id,
                    error=shown(error),
                    exc_info=error,
                )

    def tell_soon(self, failure: Failure) -> None:
        """Run the handlers for ``failure`` later, after the fan-out that it is part of.

        Beyond ``BACKLOG`` the failure is only counted.
        """
        if not any(self._handlers.values()):
            return
        if len(self._later) >= BACKLOG:
            self._stats.happened(Incident.UNREPORTED_FAILURES)
            return
        self._later.append(failure)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell_all())

    async def settled(self) -> None:
        """Wait until the waiting failures are reported."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Cancel the running handler; the waiting failures are only counted."""
        if self._later:
            self._stats.happened(Incident.UNREPORTED_FAILURES, len(self._later))
            self._later.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_GRACE)

    async def _tell_all(self) -> None:
        while self._later:
            for _ in range(min(SLICE, len(self._later))):
                await self.tell(self._later.popleft())
            # Plain handlers never wait: yield to the other tasks.
            await asyncio.sleep(0)
