"""What the hubs of one test share: the time, the bus and the stores."""

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
"""The clocks of the worlds in which a hub is open."""

OUTSIDE = 0.5
"""Real seconds that something outside (a database, a thread) has to answer while a hub is
closed, before the fake time goes on to the deadline that such a wait has."""


class World:
    """Time, which passes when a test says so; and when all that can happen has happened."""

    def __init__(self, at: datetime | None = None) -> None:
        self.clock = FakeClock(at=at)
        self.bus = MemoryPubSub()
        self.state = MemoryState(clock=self.clock.now)
        self.history = MemoryHistory()
        self.offline = MemoryOffline(clock=self.clock.now)
        self.pools: list[Pool] = []
        """The threads of the hubs that are open."""
        self.hubs = 0
        """How many there have been."""
        self._before: Clock | None = None
        """The clock that the test went by before this world."""
        self._left = 0.0
        self._passing: asyncio.Task[None] | None = None

    def ruling(self) -> AbstractContextManager[None]:
        """Have what runs within, and the tasks that it begins, go by this time."""
        return ruled_by(self.clock)

    def rule(self) -> None:
        """Have the test itself go by this time, until the last of the hubs has closed."""
        _RULING.add(self.clock)
        before = CLOCK.get()
        if before is not self.clock:
            self._before = before
            CLOCK.set(self.clock)

    def stand_back(self) -> None:
        """One of the hubs has closed. With the last one the test goes by the clock of before
        again, or by the real one if the world of that clock has ended, too: worlds may end in
        any order, and in another context than they began in."""
        if self.pools:
            return
        _RULING.discard(self.clock)
        if CLOCK.get() is self.clock:
            CLOCK.set(self._before if self._before in _RULING else None)

    def advance(self, by: Seconds) -> asyncio.Task[None]:
        """Have time pass, from the next await on; what is returned ends with it."""
        self._left += seconds(by, "advance")
        if self._passing is None or self._passing.done():
            self._passing = asyncio.get_running_loop().create_task(self._pass())
        return self._passing

    async def _pass(self) -> None:
        with self.ruling():
            while self._left:
                by, self._left = self._left, 0.0
                await self.clock.advance(by, self._rest)
            await self._rest()

    async def _rest(self) -> None:
        await settle(self.pools)

    async def settle(self) -> None:
        """Return when the time that was to pass has passed, and all it set off is done."""
        await self.passed()
        await self._rest()

    async def passed(self) -> None:
        """Return when the time that was to pass has passed. A failure of what was due is raised
        once: what comes after it, a hub's end for one, goes on."""
        if self._passing is not None:
            passing = self._passing
            try:
                await asyncio.shield(passing)
            finally:
                if passing is self._passing and passing.done():
                    self._passing = None

    async def end(self, work: Coroutine[Any, Any, None]) -> None:
        """Await ``work``, moving time on where nothing else brings it to its end.

        A failure of what was due meanwhile is raised when ``work`` has ended.
        """
        with self.ruling():
            task = asyncio.ensure_future(work)
        try:
            await self.settle()
        finally:
            while not task.done():
                await asyncio.wait([task], timeout=OUTSIDE)
                if not task.done():
                    await self.clock.advance(1.0, self._rest)
            await task

    def asked(self, hub: Hub) -> Hub:
        """Return ``hub``, whose coroutines begin when the time that was to pass before
        they were called has passed."""
        return cast("Hub", _Asked(hub, self))

    def after(self, call: Awaitable[T]) -> Awaitable[T]:
        """Await ``call`` after what is to pass now."""
        passing = self._passing
        return call if passing is None or passing.done() else _later(passing, call)


class _Asked:
    """A hub as a test calls it."""

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
