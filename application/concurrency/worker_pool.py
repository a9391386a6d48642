"""A FIFO lane per ordering key, and a pool of workers that serves all lanes.

Rules of this file:

1. Two jobs of one key never overlap, and run in the order of ``submit``.
2. A worker that has taken a job wakes the next idle worker before it awaits, if more jobs
   wait: a job that suspends blocks only its own lane.
3. Lanes are served round-robin: after a few jobs a lane goes to the end of the queue, so that
   one flooder can't occupy a worker.
4. The waiting jobs are bounded, for all lanes together and for each lane.
5. Fairness: an owner with jobs in lanes of many keys has a share of the workers and of the
   queue. Above its share it gets only spare capacity: a reserve of both is always left to the
   others. An owner that uses only its own lane costs nothing here: the lane is its bound.
6. The running jobs of an owner that has gone don't count: as many workers replace theirs, up
   to the size of the pool. Its waiting jobs run last.

A task per message would double the cost of reading the message. Workers are long-lived, and
one wake-up serves a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

from eyewall.application.concurrency.tasks import CANCEL_GRACE, is_end

J = TypeVar("J")


MAX_JOBS_PER_TURN = 8
"""Jobs that a lane may run before the next lane is served: enough to amortize the switch, and
few enough for fairness."""


SHARE = 16
"""An owner's share is this fraction: 4 of 64 workers, 128 of a queue of 2,048 jobs."""


RESERVE = 4
"""This fraction is reserved for owners below their share: an owner that floods many keys gets
three quarters at most, and the others find capacity."""


class _Share:
    """The use of one owner in lanes of other keys than its own."""

    __slots__ = ("gone", "held", "lost", "owner", "running", "waiting")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.running = 0
        self.waiting = 0
        self.held: dict[_Lane[Any], None] = {}
        """Lanes that wait until the owner is below its share, or capacity is spare."""
        self.gone = False
        self.lost = 0
        """Running jobs that don't count, because the owner has gone since they began."""


class _Extra(Generic[J]):
    """The fairness data of a lane that several owners share, or whose owner has gone."""

    __slots__ = ("gone", "held_by", "lost", "owners")

    def __init__(self) -> None:
        self.owners: deque[_Share] = deque()
        """The owner of each waiting job; empty in the own lane of an owner that has gone."""
        self.held_by: _Share | None = None
        self.gone = False
        self.lost = False
        """Whether its running job doesn't count, because the owner has gone meanwhile."""

    def payer(self) -> _Share:
        """Return the owner that the next job is charged to.

        It is the owner of a waiting job here with the fewest running jobs: an owner behind a
        flooder's job does not wait for the flooder's share.
        """
        return min(self.owners, key=_in_work)

    @property
    def is_last(self) -> bool:
        """Whether all owners of its jobs have gone."""
        return self.gone or all(share.gone for share in self.owners)


def _in_work(share: _Share) -> int:
    return share.running


class _Lane(Generic[J]):
    """The waiting jobs of one key: nearly always a single one, which needs no queue."""

    __slots__ = ("extra", "in_work", "key", "later", "next")

    def __init__(self, key: Hashable, job: J) -> None:
        self.key = key
        self.next: J | None = job
        """The first waiting job; None if no job waits."""
        self.later: deque[J] | None = None
        """The jobs behind ``next``; created when there is a second one."""
        self.in_work: J | None = None
        self.extra: _Extra[J] | None = None
        """None for the own lane of an owner that is connected."""

    def __len__(self) -> int:
        """Return how many jobs wait."""
        if self.next is None:
            return 0
        return 1 if self.later is None else 1 + len(self.later)

    @property
    def jobs(self) -> list[J]:
        """The jobs that no worker has taken yet, in FIFO order."""
        return [] if self.next is None else [self.next, *(self.later or ())]

    def add(self, job: J) -> None:
        """Append a job."""
        if self.next is None:
            self.next = job
        elif self.later is None:
            self.later = deque((job,))
        else:
            self.later.append(job)


class LaneWorkers(Generic[J]):
    """Runs ``handle`` on each submitted job.

    An error of ``handle``, against its contract, is passed to ``on_fault``. An accepted job of
    an owner that has gone may be evicted for others; it is passed to ``on_drop``.
    """

    def __init__(
        self,
        handle: Callable[[J], Awaitable[None]],
        *,
        workers: int,
        worker_queue: int,
        lane_queue: int,
        on_fault: Callable[[BaseException], None],
        on_drop: Callable[[J], None] | None = None,
    ) -> None:
        self._handle = handle
        self._on_fault = on_fault
        self._on_drop = on_drop
        self._size = workers
        self._reserve = _reserve(workers)
        self._share = max(1, workers // SHARE)
        self._most_waiting = worker_queue
        self._most_in_lane = lane_queue
        self._waiting_share = max(1, worker_queue // SHARE)
        self._most_of_one = worker_queue - _reserve(worker_queue)
        self._lanes: dict[Hashable, _Lane[J]] = {}
        self._ready: deque[_Lane[J]] = deque()
        self._shares: dict[Hashable, _Share] = {}
        self._over: dict[_Share, None] = {}
        """Owners above their share, with lanes that are held back."""
        self._last: dict[_Lane[J], None] = {}
        """Lanes whose owners have gone; they are served last."""
        self._lost = 0
        """Running jobs that don't count."""
        self._lent = False
        """Whether there may be more workers than the pool's size, in place of those jobs'."""
        self._idle: deque[asyncio.Future[None]] = deque()
        self._waking = False
        self._workers: set[asyncio.Task[None]] = set()
        self._clean: Context | None = None
        """The context of every new worker; None before the start and after the stop."""
        self._running = 0
        self._quiet: asyncio.Event = asyncio.Event()
        self.waiting = 0
        """Jobs that no worker has taken yet."""

    @property
    def running(self) -> int:
        """How many jobs run."""
        return self._running

    @property
    def stopping(self) -> bool:
        """Whether the pool is stopped: then a cancelled job was cancelled by ``stop``."""
        return self._clean is None

    def start(self) -> None:
        """Start the workers on the running loop."""
        self._clean = copy_context()
        for _ in range(self._size):
            self._hire()

    async def stop(self) -> list[J]:
        """Cancel the workers and their running jobs.

        Returns the jobs that were not done: those that wait, and those that still run in
        spite of their cancellation after ``CANCEL_GRACE``.
        """
        self._clean = None
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers, timeout=CANCEL_GRACE)
        lanes = list(self._lanes.values())
        left = [lane.in_work for lane in lanes if lane.in_work is not None]
        left += [job for lane in lanes for job in lane.jobs]
        for lane in lanes:
            # A worker that still runs finds no more jobs, and removes no later lane.
            lane.key = lane
            lane.next = lane.later = lane.extra = None
        for share in self._shares.values():
            share.lost = 0
            share.held.clear()
        self._lanes.clear()
        self._ready.clear()
        self._shares.clear()
        self._over.clear()
        self._last.clear()
        self._lost = 0
        self._idle.clear()
        self._waking = False
        self.waiting = 0
        self._quiet.set()
        return left

    async def idle(self) -> None:
        """Wait until no job waits or runs."""
        while self.waiting or self._running:
            self._quiet.clear()
            await self._quiet.wait()

    def submit(self, key: Hashable, job: J, owner: Hashable = None) -> bool:
        """Queue a job in the lane of ``key``; False if a bound is reached and it was not taken.

        ``owner`` is given where ``key`` is not the owner itself.
        """
        if self.waiting >= self._most_waiting and not self._make_room():
            return False
        if owner is not None:
            return self._submit_for(owner, key, job)
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

    def waiting_in(self, key: Hashable) -> list[J]:
        """Return the jobs of one key that no worker has taken yet, in FIFO order."""
        lane = self._lanes.get(key)
        return [] if lane is None else lane.jobs

    def ended(self, owner: Hashable) -> None:
        """Note that an owner has gone: its running jobs must not delay the others."""
        lane, share = self._lanes.get(owner), self._shares.get(owner)
        if lane is not None:
            extra = lane.extra = lane.extra or _Extra()
            extra.gone = True
            if lane.in_work is None:
                self._last[lane] = None
            else:
                extra.lost = True
                self._lost += 1
        if share is not None:
            share.gone = True
            share.lost = share.running
            self._lost += share.lost
        if not self._waking and self._is_more():
            self._wake_one()

    # --- shares

    def _submit_for(self, owner: Hashable, key: Hashable, job: J) -> bool:
        """Queue a job in a lane that several owners may use; False if a bound is reached."""
        share = self._shares.get(owner) or _Share(owner)
        above = share.waiting >= self._waiting_share
        lane = self._lanes.get(key)
        if above and self.waiting >= self._most_of_one:
            return False
        if lane is None:
            lane = self._lanes[key] = _Lane(key, job)
            self._ready.append(lane)
        elif len(lane) >= self._most_in_lane:
            return False
        else:
            lane.add(job)
        self.waiting += 1
        self._shares[owner] = share
        share.waiting += 1
        extra = lane.extra = lane.extra or _Extra()
        extra.owners.append(share)
        if lane in self._last:
            del self._last[lane]
            self._ready.append(lane)
        elif extra.held_by is not None and share.running < self._share:
            self._let_on(lane, extra)
        if not self._waking:
            self._wake_one()
        return True

    def _begin(self, extra: _Extra[J]) -> _Share | None:
        """Take a lane's first job into account; returns the owner that it is charged to."""
        if not extra.owners:
            return None
        payer = extra.payer()
        payer.running += 1
        owner = extra.owners.popleft()
        owner.waiting -= 1
        self._tidy(owner)
        return payer

    def _give_back(self, extra: _Extra[J], payer: _Share | None) -> None:
        """Take the end of a job into account, which was charged to ``payer``."""
        if extra.lost:
            extra.lost = False
            self._lost -= 1
        if payer is None:
            return
        payer.running -= 1
        if payer.lost:
            payer.lost -= 1
            self._lost -= 1
        if payer.held and payer.running < self._share:
            lane = next(iter(payer.held))
            assert lane.extra is not None
            self._let_on(lane, lane.extra)
        self._tidy(payer)

    def _tidy(self, share: _Share) -> None:
        """Remove the share of an owner without jobs."""
        if not (share.running or share.waiting or share.held):
            self._shares.pop(share.owner, None)

    def _let_on(self, lane: _Lane[J], extra: _Extra[J]) -> None:
        self._unhold(lane, extra)
        self._ready.append(lane)

    def _unhold(self, lane: _Lane[J], extra: _Extra[J]) -> None:
        share = extra.held_by
        assert share is not None
        extra.held_by = None
        del share.held[lane], self._over[share]
        if share.held:
            self._over[share] = None  # behind the others

    # --- which lane is next

    @property
    def _limit(self) -> int:
        """How many jobs may run."""
        return self._size + min(self._lost, self._size)

    def _can_spare(self) -> bool:
        """Whether one more running job leaves the reserve to the owners below their share."""
        return self._limit - self._running > self._reserve

    def _is_more(self) -> bool:
        """Whether a worker that is woken finds a job."""
        return bool(self._ready) or (bool(self._over or self._last) and self._can_spare())

    def _choose(self, lane: _Lane[J] | None) -> _Lane[J] | None:
        """Return the lane to serve: ``lane``, the first one, unless it is held back."""
        while lane is not None:
            if lane.extra is None or self._may_begin(lane, lane.extra):
                return lane
            lane = self._ready.popleft() if self._ready else None
        if not (self._over or self._last) or not self._can_spare():
            return None
        if self._over:
            lane = next(iter(next(iter(self._over)).held))
            assert lane.extra is not None
            self._unhold(lane, lane.extra)
        else:
            lane = next(iter(self._last))
            del self._last[lane]
        return lane

    def _may_begin(self, lane: _Lane[J], extra: _Extra[J]) -> bool:
        """Whether a lane may be served now; otherwise it is put among the held or last lanes."""
        if lane.next is None or lane.in_work is not None or lane in self._last:
            return False  # a stale entry of ``_ready``
        if extra.is_last:
            self._last[lane] = None
            return False
        payer = extra.payer()
        if payer.running < self._share:
            return True
        extra.held_by = payer
        payer.held[lane] = None
        self._over.setdefault(payer)
        return False

    def _make_room(self) -> bool:
        """Evict the newest job of an owner that has gone; False if there is none."""
        lane = next(reversed(self._last), None)
        if lane is None or self._on_drop is None:
            return False
        assert lane.extra is not None
        if lane.later:
            job = lane.later.pop()
        else:
            assert lane.next is not None
            job, lane.next = lane.next, None
        self.waiting -= 1
        if lane.extra.owners:
            share = lane.extra.owners.pop()
            share.waiting -= 1
            self._tidy(share)
        if lane.next is None:
            del self._last[lane], self._lanes[lane.key]
        self._on_drop(job)
        return True

    # --- workers

    def _wake_one(self) -> None:
        while self._idle:
            wake = self._idle.popleft()
            if not wake.done():
                self._waking = True
                wake.set_result(None)
                return
        if self._clean is not None and len(self._workers) < self._limit:
            self._waking = True
            self._hire()

    def _hire(self) -> None:
        assert self._clean is not None
        task = asyncio.get_running_loop().create_task(self._work(), context=self._clean.copy())
        self._workers.add(task)
        self._lent = len(self._workers) > self._size
        task.add_done_callback(self._left)

    def _left(self, worker: asyncio.Task[None]) -> None:
        """Remove a worker that has ended. Another is hired only if a job waits: the loop may
        be about to close."""
        self._workers.discard(worker)
        self._waking = False
        if not worker.cancelled() and (error := worker.exception()) is not None:
            self._on_fault(error)
        if self._is_more():
            self._wake_one()

    async def _work(self) -> None:
        self._waking = False
        clean = copy_context()
        worker = asyncio.current_task()
        assert worker is not None
        # The next message must not see context variables that a handler has set: a worker
        # whose context was changed is replaced.
        while copy_context() == clean:
            lane: _Lane[J] | None
            if self._ready:
                lane = self._ready.popleft()
                if lane.extra is not None:
                    lane = self._choose(lane)
            else:
                lane = self._choose(None) if self._over or self._last else None
            if lane is None:
                await self._rest()
                continue
            await self._serve(lane, worker, clean)
            if self._lent and self._is_surplus():
                return

    def _is_surplus(self) -> bool:
        """Whether there are more workers than may run jobs."""
        count = len(self._workers)
        self._lent = count > self._size
        return count > self._limit

    async def _rest(self) -> None:
        """Wait to be woken."""
        wake = asyncio.get_running_loop().create_future()
        self._idle.append(wake)
        await wake
        self._waking = False

    async def _serve(self, lane: _Lane[J], worker: asyncio.Task[None], clean: Context) -> None:
        """Run a few jobs of one lane, one after the other."""
        self._running += 1
        payer: _Share | None = None
        try:
            for _ in range(MAX_JOBS_PER_TURN):
                if lane.extra is not None:
                    payer = self._begin(lane.extra)
                job = lane.in_work = lane.next
                assert job is not None
                lane.next = lane.later.popleft() if lane.later else None
                self.waiting -= 1
                if not self._waking and (
                    self._ready or ((self._over or self._last) and self._can_spare())
                ):
                    self._wake_one()
                try:
                    await self._handle(job)
                except BaseException as error:  # (it ends only this job)
                    if is_end(error):
                        raise
                    self._on_fault(error)
                if worker.cancelling():
                    # The job has cancelled its own task. The worker ends here: otherwise
                    # the cancellation would hit the next job.
                    raise asyncio.CancelledError
                if lane.next is None or lane.extra is not None or copy_context() != clean:
                    break
        finally:
            lane.in_work = None
            self._running -= 1
            if lane.extra is not None:
                self._give_back(lane.extra, payer)
            # The lane's later jobs find a worker, however this one ended.
            if lane.next is not None:
                self._ready.append(lane)
            else:
                self._lanes.pop(lane.key, None)
            if not self._running and not self.waiting:
                self._quiet.set()


def _reserve(size: int) -> int:
    """Return how much of ``size`` is reserved: a fraction, at least 1, less than ``size``."""
    return min(size - 1, max(1, size // RESERVE))
