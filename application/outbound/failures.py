"""Who is told when a message does not arrive.

The handler for the kind of failure runs first, then ``on_send_failure``. A handler
may be plain or ``async``; one that raises is logged and changes nothing.
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
"""Failures of fan-outs that may wait to be reported; beyond, they are only counted."""


SLICE = 50
"""Failures that are told in one turn of the loop."""


class Kind(Enum):
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
"""Which specific handlers hear of a reason; the other reasons only reach the general."""


class Failures:
    """Failure handlers of one node, and the failures that wait to be told."""

    def __init__(self, logger: Logger, stats: Stats) -> None:
        self._logger = logger
        self._stats = stats
        self._handlers: dict[Kind, tuple[Callable[[Failure], Any], ...]] = dict.fromkeys(Kind, ())
        self._later: deque[Failure] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, kind: Kind, handler: F) -> F:
        """Register a handler; returns it, so that this works as a decorator."""
        if not callable(handler):
            raise ValueError(f"a failure handler must be callable, not {handler!r:.80}")
        self._handlers[kind] = (*self._handlers[kind], handler)
        return handler

    def remove(self, handler: Callable[[Failure], Any]) -> bool:
        found = False
        for kind, handlers in self._handlers.items():
            if handler in handlers:
                self._handlers[kind] = tuple(h for h in handlers if h != handler)
                found = True
        return found

    def adopt(self, other: Failures) -> None:
        """Take over the handlers that ``other`` has now."""
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
                # A watcher can't break delivery: only the end of this very task is
                # passed on.
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
        """Run the handlers for ``failure`` after the fan-out that it is part of."""
        if not any(self._handlers.values()):
            return
        if len(self._later) >= BACKLOG:
            self._stats.happened(Incident.UNREPORTED_FAILURES)
            return
        self._later.append(failure)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell_all())

    async def settled(self) -> None:
        """Return when what waits has been told."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """End the handlers that still run; what waits is forgotten."""
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
            # Plain handlers never wait: the others have their turn in between.
            await asyncio.sleep(0)
