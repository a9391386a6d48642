"""What the members of a room that announces are told of each other.

Who was cut off is missed only if the user is not back in time. The state knows who is
missing, so that a user may come back to any node; the node that had the connection
looks when the time is over (api.md, "Server").


What is told of joins and leaves: for each connection in order, one after the other.

Rules of this file:

1. A notice is noted while its decision's turn is held, and told when it is not: a hook
   may make any connection join or leave any room.
2. Nobody waits for hooks that others have begun: two hooks, each of which makes the
   other's connection leave, would wait for each other for ever. Who finds the
   connection's notices being told leaves its own to whoever tells them.
3. What was noted is told, also when the task that tells it is cancelled: joins and
   leaves come in pairs.
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

AGAIN = 5.0
"""Seconds until the state is asked again that was away when an absence was over."""


class Announcements:
    """Tells of joins and leaves, and holds back the leaves that may be made good."""

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
        self._missing: dict[tuple[RoomId, ConnId], tuple[UserId | None, Deadline]] = {}
        self._tasks = TaskSet(logger)

    def __len__(self) -> int:
        """How many leaves are held back."""
        return len(self._missing)

    async def join(
        self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None, connections: int
    ) -> None:
        """Tell the other members; who joins knows it from the ack."""
        await self._tell(room_id, "join", conn_id, user_id, connections)

    async def leave(self, room_id: RoomId, conn_id: ConnId, left: LeaveResult) -> None:
        """Tell the members that are left, at once or when nobody has come back."""
        if left.quietly:
            self._miss(room_id, conn_id, left.user_id, self._grace)
        elif left.announce:
            await self._tell(room_id, "leave", conn_id, left.user_id, left.connections)

    async def close(self) -> None:
        """Tell of all who are missing: nobody would do it later."""
        missing, self._missing = self._missing, {}
        self._deadlines.close()
        with suppress(Unavailable):  # the others see them go with the lease
            await briefly(self._tell_all(missing))
        await self._tasks.close()
        self._deadlines.close()
        self._missing.clear()

    async def _tell_all(
        self, missing: Mapping[tuple[RoomId, ConnId], tuple[UserId | None, Deadline]]
    ) -> None:
        for (room_id, conn_id), (user_id, _) in missing.items():
            if not await self._look(room_id, conn_id, user_id):
                return  # away: each of the others would have to wait as long

    def _miss(
        self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None, seconds: float
    ) -> None:
        def over() -> None:
            del self._missing[room_id, conn_id]
            self._tasks.spawn(self._look_again(room_id, conn_id, user_id))

        deadline = self._deadlines.at(self._clock.now() + seconds, over)
        self._missing[room_id, conn_id] = (user_id, deadline)

    async def _look_again(self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None) -> None:
        """The others hear of it in the end, also if the state is away just now."""
        if not await self._look(room_id, conn_id, user_id):
            self._miss(room_id, conn_id, user_id, AGAIN)

    async def _look(self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None) -> bool:
        """Tell of one who is missing; False if the state can't be asked."""
        try:
            await self.leave(
                room_id, conn_id, await self._seats.stays_away(room_id, conn_id, user_id)
            )
        except Unavailable as error:
            self._logger.warning("absence_not_told", room=room_id, error=told(error))
            return False
        return True

    async def _tell(
        self, room_id: RoomId, event: str, conn_id: ConnId, user_id: UserId | None, connections: int
    ) -> None:
        data = {"user_id": user_id, "connections": connections}
        message = Message(f"{ROOM}{room_id}", event, data)
        await self._fanout.to_room(room_id, message, skip=[conn_id])


Notice = Callable[[], Awaitable[None]]


class _Line:
    """The notices of one connection that wait to be told."""

    __slots__ = ("being_told", "over", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Notice] = deque()
        self.being_told = False
        self.over = asyncio.Event()


class JoinLeaveQueue:
    """Tells, per connection, what was noted."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._tasks = TaskSet(logger)
        self._ending = False
        self._lines: dict[ConnId, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def note(self, conn: Connection, notice: Notice) -> None:
        """Have ``notice`` awaited after those before it. ``tell`` has to follow."""
        line = self._lines.get(conn.id)
        if line is None:
            line = self._lines[conn.id] = _Line()
        line.waiting.append(notice)

    async def tell(self, conn: Connection) -> None:
        """Tell what was noted of a connection, unless somebody is at it already."""
        line = self._lines.get(conn.id)
        if line is not None and not line.being_told:
            line.being_told = True
            await self._drain(conn.id, line)

    async def settled(self, conn: Connection) -> None:
        """Return when what was noted of the connection has been told."""
        await self.tell(conn)
        line = self._lines.get(conn.id)
        if line is not None:
            await line.over.wait()

    async def close(self) -> None:
        """End what is under way."""
        self._ending = True
        await self._tasks.close()
        self._ending = False
        self._lines.clear()

    async def _drain(self, conn_id: ConnId, line: _Line) -> None:
        try:
            while line.waiting:
                await self._quietly(line.waiting.popleft())
        except asyncio.CancelledError:
            # The handler that joined is cancelled; the rest is told all the same.
            if not self._ending:
                self._tasks.spawn(self._drain(conn_id, line))
            raise
        del self._lines[conn_id]
        line.over.set()

    async def _quietly(self, notice: Notice) -> None:
        try:
            await notice()
        except BaseException as error:
            if is_end(error):
                raise
            self._logger.error("notice_failed", error=shown(error), exc_info=error)
