"""What the hubs of one test share: the clock, the bus and the stores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, TypeVar, cast
from weakref import WeakSet

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.hub.hub import Hub
from eyewall.application.ports.clock import CLOCK, Clock, ruled_by
from eyewall.domain.duration import Seconds, seconds
from eyewall.testing.clock import FakeClock
from eyewall.testing.rest import Pool, settle

T = TypeVar("T")

_RULING: WeakSet[Clock] = WeakSet()
"""The clocks of worlds that have an open hub."""

OUTSIDE_TIMEOUT = 0.5
"""Real seconds for an answer from outside (a database, a thread) while a hub closes. Then fake
time passes, up to the deadline of that wait."""


class World:
    """The clock, bus and stores of a test. Time passes only by ``advance``.

    ``at`` is the date and time at which it begins; None is now.
    """

    def __init__(self, at: datetime | None = None) -> None:
        self.clock = FakeClock(at=at)
        self.bus = MemoryPubSub()
        self.state = MemoryState(clock=self.clock.now)
        self.history = MemoryHistory()
        self.offline = MemoryOffline(clock=self.clock.now)
        self.pools: list[Pool] = []
        """The worker threads of the open hubs."""
        self.hubs = 0
        """The number of hubs so far."""
        self._before: Clock | None = None
        """The clock that the test used before this world."""
        self._left = 0.0
        self._passing: asyncio.Task[None] | None = None

    def using_clock(self) -> AbstractContextManager[None]:
        """Use this clock in the context, and in the tasks that it starts."""
        return ruled_by(self.clock)

    def install_clock(self) -> None:
        """Use this clock in the test itself, until the last hub has closed."""
        _RULING.add(self.clock)
        before = CLOCK.get()
        if before is not self.clock:
            self._before = before
            CLOCK.set(self.clock)

    def restore_clock(self) -> None:
        """Restore the previous clock of the test if the last hub has closed.

        The real clock is used if the world of the previous one has ended, too. Worlds may end
        in any order, and in another context than they began in.
        """
        if self.pools:
            return
        _RULING.discard(self.clock)
        if CLOCK.get() is self.clock:
            CLOCK.set(self._before if self._before in _RULING else None)

    def advance(self, by: Seconds) -> asyncio.Task[None]:
        """Let ``by`` pass from the next await on; the returned task ends when it has passed."""
        self._left += seconds(by, "advance")
        if self._passing is None or self._passing.done():
            self._passing = asyncio.get_running_loop().create_task(self._pass())
        return self._passing

    async def _pass(self) -> None:
        with self.using_clock():
            while self._left:
                by, self._left = self._left, 0.0
                await self.clock.advance(by, self._rest)
            await self._rest()

    async def _rest(self) -> None:
        await settle(self.pools)

    async def settle(self) -> None:
        """Return when pending time has passed, and everything that it caused is done."""
        await self.passed()
        await self._rest()

    async def passed(self) -> None:
        """Return when pending time has passed. An error of due work is raised once, so that later
        calls, such as the end of a hub, go on."""
        if self._passing is not None:
            passing = self._passing
            try:
                await asyncio.shield(passing)
            finally:
                if passing is self._passing and passing.done():
                    self._passing = None

    async def end(self, work: Coroutine[Any, Any, None]) -> None:
        """Await ``work``; advance time if it does not end without.

        An error of work that became due is raised after ``work`` has ended.
        """
        with self.using_clock():
            task = asyncio.ensure_future(work)
        try:
            await self.settle()
        finally:
            while not task.done():
                await asyncio.wait([task], timeout=OUTSIDE_TIMEOUT)
                if not task.done():
                    await self.clock.advance(1.0, self._rest)
            await task

    def paced(self, hub: Hub) -> Hub:
        """Return ``hub`` for a test: its coroutines start after the time that is pending when they
        are called."""
        return cast("Hub", _PacedHub(hub, self))

    def after(self, call: Awaitable[T]) -> Awaitable[T]:
        """Return ``call``, to start after the time that is pending now."""
        passing = self._passing
        return call if passing is None or passing.done() else _later(passing, call)


class _PacedHub:
    """A hub whose coroutines wait for pending time."""

    def __init__(self, hub: Hub, world: World) -> None:
        self._hub = hub
        self._world = world

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._hub, name)
        if not asyncio.iscoroutinefunction(found):
            return found
        return lambda *args, **kwargs: self._world.after(found(*args, **kwargs))


async def _later(passing: asyncio.Task[None], call: Awaitable[T]) -> T:
    await asyncio.shield(passing)
    return await call
