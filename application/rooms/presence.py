"""The users who are online and the users who are typing, in the whole cluster."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from eyewall.application.concurrency.stalls import CHANCE, Stalls
from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.connections.registry import Connection, Connections
from eyewall.application.outbound.broadcast import FanOut
from eyewall.application.ports.clock import Clock, Timer
from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import StateStore
from eyewall.application.rooms.divergence import Divergences
from eyewall.domain.duration import Seconds, seconds
from eyewall.domain.envelope import ROOM, Message
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId
from eyewall.domain.identity import name as check_name
from eyewall.domain.presence import PresenceState, Typing

MAX_TYPING = 60.0
"""Seconds: the longest that one word of a client may keep a user typing."""


class Presences:
    """Presence in the cluster's state; typing, with its end, by the node that set it."""

    def __init__(
        self,
        *,
        node: NodeId,
        state: StateStore,
        connections: Connections,
        fanout: FanOut,
        clock: Clock,
        stalls: Stalls,
        logger: Logger,
        grace: float = 0.0,
        divergences: Divergences | None = None,
    ) -> None:
        self._divergences = Divergences() if divergences is None else divergences
        self._node = node
        self._state = state
        self._connections = connections
        self._fanout = fanout
        self._logger = logger
        self._clock = clock
        self._stalls = stalls
        self._grace = grace
        self._typing = Typing()
        self._timer: Timer | None = None
        self._waited = False  # for what has come during a stall
        self._tasks = TaskSet(logger)

    async def appear(self, conn: Connection) -> None:
        """A connection of a user is there, unless it has ended or become another's."""
        user_id = conn.user_id
        if user_id is None or not conn.is_open:
            return
        try:
            await self._state.appear(self._node, conn.id, user_id, self._clock.wall())
        except BaseException:
            self._divergences.note_presence(conn.id, user_id)
            raise
        if not conn.is_open or conn.user_id != user_id:
            # Whoever ended it may have taken it back before it was there.
            await self.vanish(conn.id, user_id)

    async def is_known(self, conn: Connection) -> bool:
        """Whether the state has the connection, as the user that it is."""
        user_id = conn.user_id
        if user_id is None:
            return False
        return conn.id in (await self._state.connections_of([user_id])).get(user_id, {})

    async def vanish(self, conn_id: ConnId, user_id: UserId) -> None:
        """It is gone, or no longer that user's."""
        try:
            await self._state.vanish(conn_id, user_id, self._clock.wall(), self._grace)
        except BaseException:
            self._divergences.note_presence(conn_id, user_id)
            raise

    async def of(self, user_ids: Sequence[UserId]) -> dict[UserId, PresenceState]:
        """The presence of every user asked for, the unknown too."""
        return await self._state.presence(list(user_ids), self._clock.wall())

    # --- typing

    async def set_typing(
        self, user_id: UserId, room_id: RoomId, typing: bool, ttl: Seconds
    ) -> None:
        """Say that the user types, for ``ttl`` seconds, or that it has stopped.

        The room's members hear it, except the user's own connections; they hear of
        the end too when the time has run out.
        """
        check_name(user_id, "user_id")
        check_name(room_id, "room_id")
        now = self._clock.wall()
        if typing:
            span = seconds(ttl, "ttl", positive=True)
            until = now + timedelta(seconds=span)
            self._typing.set(user_id, room_id, until)
            self._arm()
            await self._state.set_typing(user_id, room_id, until, now)
            if not self._typing.is_set(user_id, room_id):
                # It has left or stopped meanwhile, which the others have heard; the state
                # may have had that word before this one.
                await self._state.set_typing(user_id, room_id, None, now)
                return
        else:
            self._typing.clear(user_id, room_id)
            await self._state.set_typing(user_id, room_id, None, now)
        await self._tell(user_id, room_id, typing)

    def on_leave(self, conn: Connection, room_id: RoomId) -> None:
        """A connection is out of a room: its user types there no longer, unless it
        has another one in the room."""
        if conn.user_id is not None:
            self._stop(conn.user_id, room_id)

    def user_changed(self, conn: Connection, before: UserId | None) -> None:
        """The connection is another user's: the one before no longer types by it."""
        if before is None:
            return
        for room_id in conn.roles:
            self._stop(before, room_id)

    def _stop(self, user_id: UserId, room_id: RoomId) -> None:
        if not self._is_in(user_id, room_id) and self._typing.clear(user_id, room_id):
            self._tasks.spawn(self._stopped(user_id, room_id))

    def _is_in(self, user_id: UserId, room_id: RoomId) -> bool:
        return any(room_id in conn.roles for conn in self._connections.of_user(user_id))

    def _look(self) -> None:
        """Tell of those whose time has run out."""
        self._timer = None
        # Who types on may have said so while the loop stood still: that is read first.
        self._waited = not self._waited and self._stalls.is_recent
        if self._waited:
            self._timer = self._clock.call_later(CHANCE, self._look)
            return
        for user_id, room_id in self._typing.due(self._clock.wall()):
            self._tasks.spawn(self._ran_out(user_id, room_id))
        self._arm()

    def _arm(self) -> None:
        """Have one timer for whoever's time runs out first."""
        if self._waited:
            return  # it looks again, and arms, when what has come was read
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._typing.next_due()
        if due is not None:
            wait = (due - self._clock.wall()).total_seconds()
            self._timer = self._clock.call_later(max(0.0, wait), self._look)

    async def _ran_out(self, user_id: UserId, room_id: RoomId) -> None:
        try:
            states = await self._state.presence([user_id], self._clock.wall())
        except Unavailable:
            states = {}
        # It may type on by another node, which tells of the end then.
        if user_id not in states or room_id not in states[user_id].typing:
            await self._tell(user_id, room_id, typing=False)

    async def _stopped(self, user_id: UserId, room_id: RoomId) -> None:
        try:
            await self._state.set_typing(user_id, room_id, None, self._clock.wall())
        except Unavailable as error:
            # It runs out there by itself.
            self._logger.warning("typing_not_cleared", error=told(error))
        await self._tell(user_id, room_id, typing=False)

    async def _tell(self, user_id: UserId, room_id: RoomId, typing: bool) -> None:
        data: dict[str, Any] = {"user_id": user_id, "typing": typing}
        message = Message(f"{ROOM}{room_id}", "typing", data)
        await self._fanout.to_room(room_id, message, skip_user=user_id)

    async def close(self) -> None:
        """End the timer and what is under way."""
        self._typing.clear_all()
        self._waited = False
        self._arm()
        await self._tasks.close()
