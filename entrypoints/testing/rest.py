"""When there is nothing left to do but to wait for somebody outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from typing import Any, Protocol
from weakref import WeakKeyDictionary

TURNS = 10_000
"""Turns of the loop after which something is taken to go round in circles: far more than
anything takes that ends, and less than a second."""

BLIND_TURNS = 100
"""Turns that are given to a loop that can't be asked what is left to do, such as uvloop's:
many times those that a message takes through handlers, the bus and another node."""


class Pool(Protocol):
    """Threads in which something may go on while the loop has nothing to do."""

    @property
    def at_work(self) -> bool: ...

    async def rest(self) -> None: ...


_settling: WeakKeyDictionary[asyncio.AbstractEventLoop, int] = WeakKeyDictionary()
"""How many wait in ``settle``, by loop: their turns are nobody's work."""


async def settle(pools: Collection[Pool] = ()) -> None:
    """Return when nothing is left to do, on the loop and in ``pools``, but to wait."""
    loop = asyncio.get_running_loop()
    _settling[loop] = _settling.get(loop, 0) + 1
    try:
        for turn in range(TURNS):
            await asyncio.sleep(0)
            if not _is_idle(loop, turn):
                continue
            busy = next((pool for pool in pools if pool.at_work), None)
            if busy is None:
                return
            await busy.rest()
    finally:
        _settling[loop] -= 1
    raise AssertionError(f"the loop did not come to rest in {TURNS} turns")


def _is_idle(loop: asyncio.AbstractEventLoop, turn: int) -> bool:
    ready = getattr(loop, "_ready", None)  # asyncio's own loops say what is left to do
    return turn >= BLIND_TURNS if ready is None else len(ready) < _settling[loop]


async def finished(work: Awaitable[Any]) -> Any:
    """Return the result of ``work``, which has to end without any time passing."""
    task = asyncio.ensure_future(work)
    await settle()
    if not task.done():
        task.cancel()
        raise AssertionError("it waits for something that does not happen by itself")
    return task.result()
