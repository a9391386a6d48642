"""Who handles which message when: a lane per ordering key, a pool of workers for all.

Rules of this file:

1. Two jobs of one key never overlap, and are done in the order of ``submit``.
2. A worker that has taken a job wakes the next idle one before it awaits, if more is
   waiting: a job that suspends holds up only its own lane.
3. A lane with much to do goes to the end of the line after a few jobs, so that one
   flooder can't keep a worker for itself.
4. What waits is bounded, for all lanes together and for each of them.

A task per message would cost as much again as reading the message; workers live long
and one wake-up serves a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context, copy_context
from typing import Generic, TypeVar

J = TypeVar("J")

TURN = 8
"""Jobs that a lane may have done before the next lane has its turn."""


class _Lane(Generic[J]):
    __slots__ = ("jobs", "key")

    def __init__(self, key: Hashable, job: J) -> None:
        self.key = key
        self.jobs: deque[J] = deque((job,))


class Lanes(Generic[J]):
    """Runs ``handle`` on what is submitted.

    ``handle`` should not raise; what it raises all the same goes to ``on_fault``.
    """

    def __init__(
        self,
        handle: Callable[[J], Awaitable[None]],
        *,
        workers: int,
        worker_queue: int,
        lane_queue: int,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._handle = handle
        self._on_fault = on_fault
        self._size = workers
        self._most_waiting = worker_queue
        self._most_in_lane = lane_queue
        self._lanes: dict[Hashable, _Lane[J]] = {}
        self._ready: deque[_Lane[J]] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._waking = False
        self._workers: set[asyncio.Task[None]] = set()
        self._clean: Context | None = None
        self._running = 0
        self._quiet: asyncio.Event = asyncio.Event()
        self._stopping = False
        self.waiting = 0
        """Jobs that no worker has taken yet."""

    @property
    def running(self) -> int:
        """Jobs that are in work."""
        return self._running

    def start(self) -> None:
        """Start the workers on the running loop."""
        self._stopping = False
        self._clean = copy_context()
        for _ in range(self._size):
            self._hire()

    async def stop(self) -> None:
        """End the workers; jobs in work are cancelled, jobs that wait forgotten."""
        self._stopping = True
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        self._lanes.clear()
        self._ready.clear()
        self._idle.clear()
        self._waking = False
        self.waiting = 0

    async def idle(self) -> None:
        """Return when nothing waits and nothing is in work."""
        while self.waiting or self._running:
            self._quiet.clear()
            await self._quiet.wait()

    def submit(self, key: Hashable, job: J) -> bool:
        """Queue a job; False if a bound is reached and it was not taken."""
        lane = self._lanes.get(key)
        if self.waiting >= self._most_waiting:
            return False
        if lane is None:
            lane = self._lanes[key] = _Lane(key, job)
            self._ready.append(lane)
        elif len(lane.jobs) >= self._most_in_lane:
            return False
        else:
            lane.jobs.append(job)
        self.waiting += 1
        if not self._waking:
            self._wake_one()
        return True

    def _wake_one(self) -> None:
        while self._idle:
            wake = self._idle.popleft()
            if not wake.done():
                self._waking = True
                wake.set_result(None)
                return

    def _hire(self) -> None:
        assert self._clean is not None
        task = asyncio.get_running_loop().create_task(self._work(), context=self._clean.copy())
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        clean = copy_context()
        while True:
            if not self._ready:
                wake = loop.create_future()
                self._idle.append(wake)
                await wake
                self._waking = False
                continue
            await self._serve(self._ready.popleft())
            # Context variables that a handler set must not be seen by the next
            # message: a worker whose context was changed gives way to a fresh one.
            if copy_context() != clean:
                self._hire()
                return

    async def _serve(self, lane: _Lane[J]) -> None:
        """Do a few jobs of one lane, one after the other."""
        clean = copy_context()
        self._running += 1
        try:
            for _ in range(TURN):
                job = lane.jobs.popleft()
                self.waiting -= 1
                if self._ready and not self._waking:
                    self._wake_one()
                await self._do(job)
                if not lane.jobs:
                    del self._lanes[lane.key]
                    return
                if copy_context() != clean:
                    break
            self._ready.append(lane)
        finally:
            self._running -= 1
            if not self._running and not self.waiting:
                self._quiet.set()

    async def _do(self, job: J) -> None:
        try:
            await self._handle(job)
        except asyncio.CancelledError as error:
            if self._stopping:
                raise
            # The handler cancelled itself: that ends its job, not the worker.
            task = asyncio.current_task()
            while task is not None and task.cancelling():
                task.uncancel()
            self._on_fault(error)
        except Exception as error:  # noqa: BLE001  (a fault of one job ends only that job)
            self._on_fault(error)
