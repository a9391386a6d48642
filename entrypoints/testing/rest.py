"""Waits until the event loop is idle: all that remains waits for time or for something outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from typing import Any, Protocol
from weakref import WeakKeyDictionary

MAX_LOOP_TURNS = 10_000
"""Iterations of the loop after which the work counts as endless: far more than finite work takes,
and less than a second."""

UNKNOWN_LOOP_TURNS = 100
"""Iterations for a loop whose queue can't be read, such as uvloop's: many times those that a
message takes through handlers, the bus and another node."""


class Pool(Protocol):
    """Threads that may work while the loop is idle."""

    @property
    def at_work(self) -> bool: ...

    async def rest(self) -> None: ...


_settling: WeakKeyDictionary[asyncio.AbstractEventLoop, int] = WeakKeyDictionary()
"""Tasks that wait in ``settle``, by loop: they don't count as work."""


async def settle(pools: Collection[Pool] = ()) -> None:
    """Return when the loop and the threads of ``pools`` are idle.

    Raises ``AssertionError`` if they are not after ``MAX_LOOP_TURNS``.
    """
    loop = asyncio.get_running_loop()
    _settling[loop] = _settling.get(loop, 0) + 1
    try:
        for turn in range(MAX_LOOP_TURNS):
            await asyncio.sleep(0)
            if not _is_idle(loop, turn):
                continue
            busy = next((pool for pool in pools if pool.at_work), None)
            if busy is None:
                return
            await busy.rest()
    finally:
        _settling[loop] -= 1
    raise AssertionError(f"the loop is not idle after {MAX_LOOP_TURNS} turns")


def _is_idle(loop: asyncio.AbstractEventLoop, turn: int) -> bool:
    ready = getattr(loop, "_ready", None)  # the queue of asyncio's own loops
    return turn >= UNKNOWN_LOOP_TURNS if ready is None else len(ready) < _settling[loop]


async def finished(work: Awaitable[Any]) -> Any:
    """Return the result of ``work``; raises ``AssertionError`` if it needs time to pass."""
    task = asyncio.ensure_future(work)
    await settle()
    if not task.done():
        task.cancel()
        raise AssertionError("it waits for time to pass, or for something outside")
    return task.result()
