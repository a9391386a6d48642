"""What the members of a room that announces are told of each other.

Who was cut off is missed only if the user is not back in time. The state knows who is
missing, so that a user may come back to any node; the node that had the connection
looks when the time is over (api.md, "Server").
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from eyewall.application.deadlines import Deadline, Deadlines
from eyewall.application.fanout import FanOut
from eyewall.application.logs import told
from eyewall.application.ports import Clock, Logger
from eyewall.application.seats import Left, Seats
from eyewall.application.stalls import Stalls
from eyewall.application.tasks import Tasks, briefly
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
        self._deadlines = Deadlines(clock, stalls)
        self._missing: dict[tuple[RoomId, ConnId], tuple[UserId | None, Deadline]] = {}
        self._tasks = Tasks(logger)

    def __len__(self) -> int:
        """How many leaves are held back."""
        return len(self._missing)

    async def join(
        self, room_id: RoomId, conn_id: ConnId, user_id: UserId | None, connections: int
    ) -> None:
        """Tell the other members; who joins knows it from the ack."""
        await self._tell(room_id, "join", conn_id, user_id, connections)

    async def leave(self, room_id: RoomId, conn_id: ConnId, left: Left) -> None:
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
