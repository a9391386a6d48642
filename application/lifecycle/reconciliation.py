"""What this node believes and what the state says, compared again.

Rules of this file:

1. After a failure what it was about is compared until that has succeeded: with a back-off
   and jitter, a few connections at a time. Nobody has to remember to try again.
2. Now and then everything is compared without a failure, page by page. What differs may
   be on its way: it is looked at again later, and only then put right.
3. The state is the truth about what others decided, the node about which connections it
   has. A seat that somebody else has taken meanwhile stays theirs.
4. A seat that the state no longer has was taken away, by a decision of which this node has
   not heard, where the state still knows the connection and no call has failed since all
   was last compared. Else the state has lost it, and it is put back.
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

FIRST = 0.25
"""Seconds before the first try: a moment's failure is over by then."""


MOST = 5.0
"""Seconds between tries, at most: one call to a state that is away costs nobody anything."""


STEP = 100
"""Connections that are compared before others have their turn."""


SWEEP = 60.0
"""Seconds between two comparisons of everything: a page costs some milliseconds."""


PAGE = 200
"""Connections in a page of a sweep."""


PACE = 0.1
"""Seconds between two pages: a sweep of 20,000 connections takes ten seconds."""


SECOND_LOOK = 10.0
"""Seconds after which what differs is looked at again: twice the time that another node's
decision takes to have its effect here, or is given up."""


Mend = Callable[[ConnId, Divergence], Awaitable[None]]


class StateReconciler:
    """Puts right what differs."""

    def __init__(
        self,
        *,
        node: NodeId,
        divergences: Divergences,
        mend: Mend,
        state: StateStore,
        connections: Connections,
        seats: Seats,
        clock: Clock,
        logger: Logger,
        luck: Callable[[], float],
    ) -> None:
        self._node = node
        self._divergences = divergences
        self._mend = mend
        self._owned = cast("KnowsOwned", state) if has_methods_of(state, KnowsOwned) else None
        self._connections = connections
        self._seats = seats
        self._clock = clock
        self._logger = logger
        self._luck = luck
        self._tasks = TaskSet(logger)
        self._mending: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._at = ""
        """Where the sweep of a state stands that can't say what it has."""
        self._trusting = True
        """Whether no call of the state had failed when the comparison of all began."""
        self._running = False

    # --- life

    def start(self) -> None:
        """Compare from now on."""
        self._running = True
        self._divergences.on_note = self._begin
        self._arm()
        if len(self._divergences):
            self._begin()

    async def close(self) -> None:
        """End what is under way: what the node leaves behind goes with its lease."""
        self._running = False
        self._divergences.on_note = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tasks.close()

    async def restore(self) -> None:
        """Put back what the state may have lost with this node's lease."""
        for conn in self._connections:
            self._divergences.everything(conn.id)
        await self._pass()

    # --- after a failure

    def _begin(self) -> None:
        if self._running and (self._mending is None or self._mending.done()):
            self._mending = self._tasks.spawn(self._until_certain())

    async def _until_certain(self) -> None:
        """Try until nothing is in doubt."""
        wait = FIRST
        while len(self._divergences):
            await self._pause(wait * (0.5 + self._luck()))
            wait = FIRST if await self._pass() else min(2 * wait, MOST)

    async def _pass(self) -> bool:
        """Compare what is in doubt now; False if the state is away."""
        went_well = True
        for number in range(len(self._divergences)):
            found = self._divergences.take()
            if found is None:
                break
            if number % STEP == STEP - 1:
                await asyncio.sleep(0)
            try:
                await self._mend(*found)
            except Unavailable as error:
                self._divergences.note(*found)
                self._logger.debug("state_not_compared", error=told(error))
                return False  # away: each of the others would have to wait as long
            except Exception as error:
                self._divergences.note(*found)
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

    # --- now and then

    def _arm(self) -> None:
        self._timer = self._clock.call_later(SWEEP, self._sweep_soon)

    def _sweep_soon(self) -> None:
        # A state that does not answer must not collect a task for each tick.
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = self._tasks.spawn(self._sweep())
        self._arm()

    async def _sweep(self) -> None:
        """Compare everything; what differs is in doubt after a second look's time."""
        try:
            found = await self._compare_all() if self._owned is not None else self._next_ones()
        except Unavailable as error:
            self._logger.debug("state_not_compared", error=told(error))
            return
        if found:
            await self._pause(SECOND_LOOK)
            for conn_id, doubt in found.items():
                if doubt.unsure and not self._trusts:
                    doubt.whole = True
                self._divergences.note(conn_id, doubt)

    @property
    def _trusts(self) -> bool:
        return self._trusting and not self._divergences.shaken

    def _begin_all(self) -> None:
        """From here on all is compared: what has failed before is made good by that."""
        self._trusting, self._divergences.shaken = not self._divergences.shaken, False

    async def _compare_all(self) -> dict[ConnId, Divergence]:
        assert self._owned is not None
        left = {conn.id for conn in self._connections if conn.user_id is not None or conn.roles}
        found: dict[ConnId, Divergence] = {}
        after = ""
        self._begin_all()
        while True:
            page = await self._owned.owned(self._node, after, PAGE)
            for owned in page:
                left.discard(owned.conn_id)
                self._compare(owned, found)
            if len(page) < PAGE:
                break
            after = page[-1].conn_id
            await self._pause(PACE)
        return found | {conn_id: Divergence(whole=True) for conn_id in left}

    def _compare(self, owned: Owned, found: dict[ConnId, Divergence]) -> None:
        """Note what the state has of a connection and this node has not, or the reverse."""
        conn = self._connections.get(owned.conn_id)
        doubt = Divergence()
        users = set() if conn is None or conn.user_id is None else {conn.user_id}
        doubt.users = users ^ set(owned.users)
        seats = set() if conn is None else self._seats.of(conn)
        there = {(room_id, user_of(key)) for room_id, key in owned.seats}
        doubt.seats = dict.fromkeys(there - seats, False)
        doubt.unsure = not seats <= there
        # Decisions about rooms leave presence as it is: where that is gone, it was lost, and
        # seats with it. An anonymous connection has none, and can't be kicked either.
        doubt.whole = doubt.unsure and not users & set(owned.users)
        if doubt.users or doubt.seats or doubt.unsure:
            found[owned.conn_id] = doubt

    def _next_ones(self) -> dict[ConnId, Divergence]:
        """The next connections of this node, for a state that can't say what it has."""
        ids = sorted(self._connections.ids())
        if not self._at:
            self._begin_all()
        page = [conn_id for conn_id in ids if conn_id > self._at][:PAGE]
        self._at = page[-1] if len(page) == PAGE else ""
        return {conn_id: Divergence(unsure=True) for conn_id in page}
