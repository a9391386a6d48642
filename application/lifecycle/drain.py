"""Graceful shutdown: steps in a fixed order under one deadline (guarantees.md, "Shutdown").

Rules of this file:

1. The node stops accepting, announces the drain, finishes accepted work and closes the
   connections, in this order. Only then does it leave the bus and the state.
2. A step that has not finished by the deadline is cancelled and reported by its name.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from eyewall.application.concurrency.tasks import CANCEL_GRACE
from eyewall.application.connections.registry import Connections
from eyewall.application.outbound.sender import Sender
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.plugins import Logger
from eyewall.domain.connection import DisconnectReason

Step = tuple[str, Callable[[], Awaitable[Any]]]


RECONNECT_WINDOW = 5.0
"""Seconds over which the clients' reconnects are spread when there are few of them."""


RECONNECTS_PER_SECOND = 200.0
"""Reconnects a second for all other nodes together, at most: a thousand clients take five
seconds, ten thousand fifty."""


async def run_steps(steps: Sequence[Step], *, clock: Clock, until: float) -> list[str]:
    """Run the steps in order until ``until`` on the clock's ``now``.

    Returns the names of the steps that did not finish or raised. A step that begins after the
    deadline runs up to its first wait: work that needs no wait is still done.
    """
    unfinished = []
    for name, run in steps:
        task = asyncio.ensure_future(_awaited(run))
        try:
            await _until(task, clock, until)
        finally:
            task.cancel()  # the caller of the drain may be cancelled
        if not task.done() or task.cancelled():
            unfinished.append(name)
        elif task.exception() is not None:
            unfinished.append(f"{name}: {task.exception()!r}")
    return unfinished


async def _until(task: asyncio.Future[None], clock: Clock, until: float) -> None:
    left = until - clock.now()
    if left <= 0:
        await asyncio.wait([task], timeout=0)
    else:
        due = asyncio.Event()
        bell = asyncio.ensure_future(due.wait())
        timer = clock.call_later(left, due.set)
        try:
            both: tuple[asyncio.Future[Any], ...] = (task, bell)
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            bell.cancel()
    task.cancel()
    # A task that ignores its cancellation is left running.
    await asyncio.wait([task], timeout=CANCEL_GRACE)


async def _awaited(run: Callable[[], Awaitable[Any]]) -> None:
    await run()


class ShutdownNotice:
    """Announces the shutdown to the clients, and closes their connections."""

    def __init__(self, connections: Connections, sender: Sender, logger: Logger) -> None:
        self._connections = connections
        self._sender = sender
        self._logger = logger

    async def announce(self) -> None:
        """Send each client ``system:draining`` with its own delay before it reconnects.

        The window is divided into one equal slot per client, in random order. Each delay is
        random within its slot: fully random delays would let reconnects coincide.
        """
        conns = list(self._connections)
        random.shuffle(conns)
        slot = max(RECONNECT_WINDOW, len(conns) / RECONNECTS_PER_SECOND) / max(1, len(conns))
        for number, conn in enumerate(conns):
            data = {"reconnect_in": round((number + random.random()) * slot, 3)}  # noqa: S311
            notice = self._sender.encode_notice("system:draining", "draining", data)
            self._sender.enqueue_to_each([conn], notice)

    async def close(self) -> None:
        """Close every connection with 1012."""
        for conn in self._connections:
            self._connections.end(conn, DisconnectReason.SERVER_SHUTDOWN)
