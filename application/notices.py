"""What is told of joins and leaves: for each connection in order, one after the other.

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
from collections.abc import Awaitable, Callable

from eyewall.application.connections import Connection
from eyewall.application.logs import shown
from eyewall.application.ports import Logger
from eyewall.application.tasks import Tasks, is_end
from eyewall.domain.identity import ConnId

Notice = Callable[[], Awaitable[None]]


class _Line:
    """The notices of one connection that wait to be told."""

    __slots__ = ("being_told", "over", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Notice] = deque()
        self.being_told = False
        self.over = asyncio.Event()


class Notices:
    """Tells, per connection, what was noted."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._tasks = Tasks(logger)
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
