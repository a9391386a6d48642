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

from eyewall.application.tasks import LAST_WORD

J = TypeVar("J")

TURN = 8
"""Jobs that a lane may have done before the next lane has its turn."""


class _Lane(Generic[J]):
    """What waits under one key: nearly always a single job, which needs no queue."""

    __slots__ = ("in_work", "key", "later", "next")

    def __init__(self, key: Hashable, job: J) -> None:
        self.key = key
        self.next: J | None = job
        """None when no job of the lane waits."""
        self.later: deque[J] | None = None
        """Those behind ``next``; a lane that had none yet has no queue either."""
        self.in_work: J | None = None

    def __len__(self) -> int:
        """How many jobs wait."""
        if self.next is None:
            return 0
        return 1 if self.later is None else 1 + len(self.later)

    @property
    def jobs(self) -> list[J]:
        """Those that no worker has taken yet."""
        return [] if self.next is None else [self.next, *(self.later or ())]

    def add(self, job: J) -> None:
        if self.next is None:
            self.next = job
        elif self.later is None:
            self.later = deque((job,))
        else:
            self.later.append(job)


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
        """What every worker begins with; None while none should be hired."""
        self._running = 0
        self._quiet: asyncio.Event = asyncio.Event()
        self.waiting = 0
        """Jobs that no worker has taken yet."""

    @property
    def running(self) -> int:
        """Jobs that are in work."""
        return self._running

    @property
    def stopping(self) -> bool:
        """Whether a job that is cancelled is so because the lanes end."""
        return self._clean is None

    def start(self) -> None:
        """Start the workers on the running loop."""
        self._clean = copy_context()
        for _ in range(self._size):
            self._hire()

    async def stop(self) -> list[J]:
        """End the workers: jobs in work are cancelled. Returns those that nobody saw to:
        what still waits, and what goes on although it was cancelled."""
        self._clean = None
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers, timeout=LAST_WORD)
        lanes = self._lanes.values()
        left = [lane.in_work for lane in lanes if lane.in_work is not None]
        left += [job for lane in lanes for job in lane.jobs]
        self._lanes.clear()
        self._ready.clear()
        self._idle.clear()
        self._waking = False
        self.waiting = 0
        self._quiet.set()
        return left

    async def idle(self) -> None:
        """Return when nothing waits and nothing is in work."""
        while self.waiting or self._running:
            self._quiet.clear()
            await self._quiet.wait()

    def submit(self, key: Hashable, job: J) -> bool:
        """Queue a job; False if a bound is reached and it was not taken."""
        if self.waiting >= self._most_waiting:
            return False
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, job)
            self._ready.append(lane)
        elif len(lane) >= self._most_in_lane:
            return False
        else:
            lane.add(job)
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
        if self._clean is not None and len(self._workers) < self._size:
            self._waking = True
            self._hire()

    def _hire(self) -> None:
        assert self._clean is not None
        task = asyncio.get_running_loop().create_task(self._work(), context=self._clean.copy())
        self._workers.add(task)
        task.add_done_callback(self._left)

    def _left(self, worker: asyncio.Task[None]) -> None:
        """A worker has ended. Another is hired when there is work for it: the loop may
        be about to end, and this worker with it."""
        self._workers.discard(worker)
        self._waking = False
        if not worker.cancelled() and (error := worker.exception()) is not None:
            self._on_fault(error)
        if self._ready:
            self._wake_one()

    async def _work(self) -> None:
        self._waking = False
        clean = copy_context()
        worker = asyncio.current_task()
        assert worker is not None
        # Context variables that a handler set must not be seen by the next message: a
        # worker whose context was changed gives way to a fresh one.
        while copy_context() == clean:
            if self._ready:
                await self._serve(self._ready.popleft(), worker, clean)
            else:
                await self._rest()

    async def _rest(self) -> None:
        """Wait to be woken."""
        wake = asyncio.get_running_loop().create_future()
        self._idle.append(wake)
        await wake
        self._waking = False

    async def _serve(self, lane: _Lane[J], worker: asyncio.Task[None], clean: Context) -> None:
        """Do a few jobs of one lane, one after the other."""
        self._running += 1
        try:
            for _ in range(TURN):
                job = lane.in_work = lane.next
                assert job is not None
                lane.next = lane.later.popleft() if lane.later else None
                self.waiting -= 1
                if self._ready and not self._waking:
                    self._wake_one()
                try:
                    await self._handle(job)
                except Exception as error:  # noqa: BLE001  (of one job: it ends only that)
                    self._on_fault(error)
                except asyncio.CancelledError as error:
                    if worker.cancelling():
                        raise
                    self._on_fault(error)
                if worker.cancelling():
                    # The job asked for the end of its task. It gets it here: otherwise
                    # the next job would be hit.
                    raise asyncio.CancelledError
                if lane.next is None or copy_context() != clean:
                    break
        finally:
            lane.in_work = None
            # Whatever ended it, the lane's later jobs find a worker.
            if lane.next is not None:
                self._ready.append(lane)
            else:
                self._lanes.pop(lane.key, None)
            self._running -= 1
            if not self._running and not self.waiting:
                self._quiet.set()
