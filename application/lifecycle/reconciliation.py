"""Reconciliation: compares this node's connections with the state, and corrects
differences.

Rules of this file:

1. After a failed call its entries are compared until the comparison succeeds: with
   exponential back-off and jitter, in batches. The caller does not try again.
2. A periodic sweep compares everything, page by page. A difference may be in flight: it is
   compared again later and corrected only then.
3. The state is the authority on the decisions of other nodes, the node on its own connections.
   A seat that another connection has taken meanwhile stays with that connection.
4. If the state lacks a seat, either a decision removed it or the state lost it. It was
   removed if the state still has the connection, and no call has failed since the previous
   sweep began; the node then removes it, too. Otherwise it was lost, and the node restores it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.connections.registry import Connections
from eyewall.application.ports.clock import Clock, Timer
from eyewall.application.ports.logging import shown, told
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import KnowsOwned, Owned, StateStore, has_methods_of
from eyewall.application.rooms.divergence import Divergence, Divergences
from eyewall.application.rooms.seats import Seats, user_of
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import ConnId, NodeId

FIRST_RETRY_DELAY = 0.25
"""Seconds before the first try: a transient failure is over by then."""


MAX_RETRY_DELAY = 5.0
"""Seconds between tries, at most: one call to an unavailable state costs next to nothing."""


COMPARISONS_PER_SLICE = 100
"""Connections that are compared before the event loop runs other tasks."""


SWEEP_PERIOD = 60.0
"""Seconds between two comparisons of everything: a page costs some milliseconds."""


PAGE_SIZE = 200
"""Connections in a page of a sweep: one call of the store, of some milliseconds."""


PAGE_INTERVAL = 0.1
"""Seconds between two pages: a sweep of 20,000 connections takes ten seconds."""


RECHECK_DELAY = 10.0
"""Seconds before a difference is compared again: twice the time-out of a call between nodes,
within which another node's decision takes effect here."""


Reconcile = Callable[[ConnId, Divergence], Awaitable[None]]


class StateReconciler:
    """Corrects divergences, and sweeps for those that were not noted."""

    def __init__(
        self,
        *,
        node: NodeId,
        divergences: Divergences,
        reconcile: Reconcile,
        state: StateStore,
        connections: Connections,
        seats: Seats,
        clock: Clock,
        logger: Logger,
        luck: Callable[[], float],
    ) -> None:
        self._node = node
        self._divergences = divergences
        self._reconcile = reconcile
        self._owned = cast("KnowsOwned", state) if has_methods_of(state, KnowsOwned) else None
        self._connections = connections
        self._seats = seats
        self._clock = clock
        self._logger = logger
        self._luck = luck
        self._tasks = TaskSet(logger)
        self._reconciling: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._at = ""
        """Last connection of the sweep so far, for a store that can't list its entries."""
        self._trusting = True
        """Whether no call of the state had failed between the last two sweeps' beginnings."""
        self._running = False

    # --- start and end

    def start(self) -> None:
        """Begin to compare: noted divergences now, all entries every ``SWEEP_PERIOD`` seconds."""
        self._running = True
        self._divergences.on_add = self._begin
        self._arm()
        if len(self._divergences):
            self._begin()

    async def close(self) -> None:
        """Cancel all comparisons: entries that are left expire with the node's lease."""
        self._running = False
        self._divergences.on_add = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tasks.close()

    async def restore(self) -> None:
        """Restore the entries that the state may have lost with this node's lease."""
        for conn in self._connections:
            self._divergences.note_all(conn.id)
        await self._pass()

    # --- after a failure

    def _begin(self) -> None:
        if self._running and (self._reconciling is None or self._reconciling.done()):
            self._reconciling = self._tasks.spawn(self._reconcile_until_done())

    async def _reconcile_until_done(self) -> None:
        """Compare, with back-off, until there is no divergence."""
        wait = FIRST_RETRY_DELAY
        while len(self._divergences):
            await self._pause(wait * (0.5 + self._luck()))
            wait = FIRST_RETRY_DELAY if await self._pass() else min(2 * wait, MAX_RETRY_DELAY)

    async def _pass(self) -> bool:
        """Compare the divergences noted so far; False if a comparison failed."""
        went_well = True
        for number in range(len(self._divergences)):
            found = self._divergences.pop()
            if found is None:
                break
            if number % COMPARISONS_PER_SLICE == COMPARISONS_PER_SLICE - 1:
                await asyncio.sleep(0)
            try:
                await self._reconcile(*found)
            except Unavailable as error:
                self._divergences.add(*found)
                self._logger.debug("state_not_compared", error=told(error))
                return False  # each other call would wait for its deadline, too
            except Exception as error:
                self._divergences.add(*found)
                self._logger.error(
                    "state_not_mended", conn_id=found[0], error=shown(error), exc_info=error
                )
                went_well = False
        return went_well

    async def _pause(self, seconds: float) -> None:
        over = asyncio.Event()
        timer = self._clock.call_later(seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    # --- the periodic sweep

    def _arm(self) -> None:
        self._timer = self._clock.call_later(SWEEP_PERIOD, self._sweep_soon)

    def _sweep_soon(self) -> None:
        # One sweep at a time: tasks must not pile up while the state does not answer.
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = self._tasks.spawn(self._sweep())
        self._arm()

    async def _sweep(self) -> None:
        """Compare everything; note the differences after ``RECHECK_DELAY`` seconds."""
        try:
            found = await self._compare_all() if self._owned is not None else self._next_page()
        except Unavailable as error:
            self._logger.debug("state_not_compared", error=told(error))
            return
        if found:
            await self._pause(RECHECK_DELAY)
            for conn_id, divergence in found.items():
                if divergence.seats_missing and not self._trusts:
                    divergence.everything = True
                self._divergences.add(conn_id, divergence)

    @property
    def _trusts(self) -> bool:
        return self._trusting and not self._divergences.state_failed

    def _begin_all(self) -> None:
        """Note that a sweep begins: it covers the calls that have failed before."""
        self._trusting, self._divergences.state_failed = not self._divergences.state_failed, False

    async def _compare_all(self) -> dict[ConnId, Divergence]:
        assert self._owned is not None
        left = {conn.id for conn in self._connections if conn.user_id is not None or conn.roles}
        found: dict[ConnId, Divergence] = {}
        after = ""
        self._begin_all()
        while True:
            page = await self._owned.owned(self._node, after, PAGE_SIZE)
            for owned in page:
                left.discard(owned.conn_id)
                self._compare(owned, found)
            if len(page) < PAGE_SIZE:
                break
            after = page[-1].conn_id
            await self._pause(PAGE_INTERVAL)
        return found | {conn_id: Divergence(everything=True) for conn_id in left}

    def _compare(self, owned: Owned, found: dict[ConnId, Divergence]) -> None:
        """Add to ``found`` what differs between the state and this node for a connection."""
        conn = self._connections.get(owned.conn_id)
        divergence = Divergence()
        users = set() if conn is None or conn.user_id is None else {conn.user_id}
        divergence.users = users ^ set(owned.users)
        seats = set() if conn is None else self._seats.of(conn)
        there = {(room_id, user_of(key)) for room_id, key in owned.seats}
        divergence.seats = dict.fromkeys(there - seats, False)
        divergence.seats_missing = not seats <= there
        # A decision about a room leaves presence alone: missing presence was lost, and the
        # seats with it. An anonymous connection has no presence, and can't be kicked either.
        divergence.everything = divergence.seats_missing and not users & set(owned.users)
        if divergence.users or divergence.seats or divergence.seats_missing:
            found[owned.conn_id] = divergence

    def _next_page(self) -> dict[ConnId, Divergence]:
        """Return this node's next page of connections, for a store that can't list its entries."""
        ids = sorted(self._connections.ids())
        if not self._at:
            self._begin_all()
        page = [conn_id for conn_id in ids if conn_id > self._at][:PAGE_SIZE]
        self._at = page[-1] if len(page) == PAGE_SIZE else ""
        return {conn_id: Divergence(seats_missing=True) for conn_id in page}
