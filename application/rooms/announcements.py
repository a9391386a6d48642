"""Joins and leaves: announced to the room's members, and reported to the hooks in FIFO order.

The leave of a lost connection is announced after its grace period, unless the user is back by
then. The state keeps the absence, so that the user may come back to any node; the node that
had the connection reads the state when the grace period ends (api.md, "Server").

Rules of this file:

1. A notice is queued while the connection's lock is held and run when it is not: a hook may
   make any connection join or leave any room.
2. A task never waits for hooks that another task runs, which would be a deadlock for two hooks
   that make each other's connection leave. A task that finds the connection's queue being
   drained leaves its notice to the task that drains it.
3. Queued notices are run even if the task that drains the queue is cancelled: joins and leaves
   come in pairs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from eyewall.application.concurrency.stalls import Stalls
from eyewall.application.concurrency.tasks import TaskSet, briefly, is_end
from eyewall.application.concurrency.timers import Deadline, TimerQueue
from eyewall.application.connections.registry import Connection
from eyewall.application.outbound.broadcast import FanOut
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import shown, told
from eyewall.application.ports.plugins import Logger
from eyewall.application.rooms.seats import LeaveResult, Seats
from eyewall.domain.envelope import ROOM, Message
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import ConnId, RoomId, UserId

RETRY_DELAY = 5.0
"""Seconds until the state is read again that was away when a grace period ended."""


class Announcements:
    """Announces joins and leaves, and holds back the leaves of lost connections."""

    def __init__(
        self,
        *,
        seats: Seats,
        fanout: FanOut,
        clock: Clock,
        stalls: Stalls,
        logger: Logger,
        grace: float,
    ) -> None:
        self._seats = seats
        self._fanout = fanout
        self._clock = clock
        self._logger = logger
        self._grace = grace
        self._deadlines = TimerQueue(clock, stalls)
        self._held: dict[tuple[RoomId, ConnId], tuple[UserId | None, Deadline]] = {}
        self._tasks = TaskSet(logger)

    def __len__(self) -> int:
        """How many leaves are held back."""
        return len(self._held)

    async def join(
        self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None, connections: int
    ) -> None:
        """Announce a join to the other members; the joining client has the ack."""
        await self._announce(room_id, "join", conn_id, user_id, connections)

    async def leave(self, room_id: RoomId, conn_id: ConnId, left: LeaveResult) -> None:
        """Announce a leave, at once or when the grace period ends without the user."""
        if left.after_grace:
            self._hold_back(room_id, conn_id, left.user_id, self._grace)
        elif left.announce:
            await self._announce(room_id, "leave", conn_id, left.user_id, left.connections)

    async def close(self) -> None:
        """Announce all held-back leaves: this node can't do it later."""
        held, self._held = self._held, {}
        self._deadlines.close()
        with suppress(Unavailable):  # the others see them go with the lease
            await briefly(self._announce_all(held))
        await self._tasks.close()
        self._deadlines.close()
        self._held.clear()

    async def _announce_all(
        self, held: Mapping[tuple[RoomId, ConnId], tuple[UserId | None, Deadline]]
    ) -> None:
        for (room_id, conn_id), (user_id, _) in held.items():
            if not await self._announce_held(room_id, conn_id, user_id):
                return  # the state is away: each further leave would wait as long

    def _hold_back(
        self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None, seconds: float
    ) -> None:
        def over() -> None:
            del self._held[room_id, conn_id]
            self._tasks.spawn(self._retry_held(room_id, conn_id, user_id))

        deadline = self._deadlines.at(self._clock.now() + seconds, over)
        self._held[room_id, conn_id] = (user_id, deadline)

    async def _retry_held(self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None) -> None:
        """Announce a held-back leave; try again later if the state is away."""
        if not await self._announce_held(room_id, conn_id, user_id):
            self._hold_back(room_id, conn_id, user_id, RETRY_DELAY)

    async def _announce_held(
        self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None
    ) -> bool:
        """Announce a held-back leave if the user is not back; False if the state is away."""
        try:
            await self.leave(
                room_id, conn_id, await self._seats.end_absence(room_id, conn_id, user_id)
            )
        except Unavailable as error:
            self._logger.warning("absence_not_told", room=room_id, error=told(error))
            return False
        return True

    async def _announce(
        self, room_id: RoomId, event: str, conn_id: ConnId, user_id: UserId | None, connections: int
    ) -> None:
        data = {"user_id": user_id, "connections": connections}
        message = Message(f"{ROOM}{room_id}", event, data)
        await self._fanout.to_room(room_id, message, skip=[conn_id])


Notice = Callable[[], Awaitable[None]]


class _ConnectionNotices:
    """The queued notices of one connection."""

    __slots__ = ("done", "running", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Notice] = deque()
        self.running = False
        self.done = asyncio.Event()


class JoinLeaveQueue:
    """Runs the notices of each connection in FIFO order."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._tasks = TaskSet(logger)
        self._ending = False
        self._by_connection: dict[ConnId, _ConnectionNotices] = {}

    def __len__(self) -> int:
        return len(self._by_connection)

    def add(self, conn: Connection, notice: Notice) -> None:
        """Queue ``notice``; a call of ``run`` has to follow."""
        notices = self._by_connection.get(conn.id)
        if notices is None:
            notices = self._by_connection[conn.id] = _ConnectionNotices()
        notices.waiting.append(notice)

    async def run(self, conn: Connection) -> None:
        """Run the connection's notices, unless another task does so already."""
        notices = self._by_connection.get(conn.id)
        if notices is not None and not notices.running:
            notices.running = True
            await self._drain(conn.id, notices)

    async def settled(self, conn: Connection) -> None:
        """Return when the connection's notices have been run."""
        await self.run(conn)
        notices = self._by_connection.get(conn.id)
        if notices is not None:
            await notices.done.wait()

    async def close(self) -> None:
        """Cancel the notices that are in flight."""
        self._ending = True
        await self._tasks.close()
        self._ending = False
        self._by_connection.clear()

    async def _drain(self, conn_id: ConnId, notices: _ConnectionNotices) -> None:
        try:
            while notices.waiting:
                await self._run_logged(notices.waiting.popleft())
        except asyncio.CancelledError:
            # The task that joined is cancelled; another one runs the rest.
            if not self._ending:
                self._tasks.spawn(self._drain(conn_id, notices))
            raise
        del self._by_connection[conn_id]
        notices.done.set()

    async def _run_logged(self, notice: Notice) -> None:
        try:
            await notice()
        except BaseException as error:
            if is_end(error):
                raise
            self._logger.error("notice_failed", error=shown(error), exc_info=error)
