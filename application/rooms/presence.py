"""Online users and typing users of the whole cluster."""

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
"""Seconds: the longest that one request of a client may keep a user typing."""


class Presences:
    """Presence in the cluster's state. Typing is ended by the node that set it."""

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
        self._waited = False  # whether the timer waits for messages that arrived during a stall
        self._tasks = TaskSet(logger)

    async def appear(self, conn: Connection) -> None:
        """Set the presence of a connection's user; nothing for an ended or anonymous connection.

        Raises ``Unavailable``.
        """
        user_id = conn.user_id
        if user_id is None or not conn.is_open:
            return
        try:
            await self._state.appear(self._node, conn.id, user_id, self._clock.wall())
        except BaseException:
            self._divergences.note_presence(conn.id, user_id)
            raise
        if not conn.is_open or conn.user_id != user_id:
            # The presence may have been removed before it was set: remove it again.
            await self.vanish(conn.id, user_id)

    async def is_known(self, conn: Connection) -> bool:
        """Whether the state has the connection under its user. Raises ``Unavailable``."""
        user_id = conn.user_id
        if user_id is None:
            return False
        return conn.id in (await self._state.connections_of([user_id])).get(user_id, {})

    async def vanish(self, conn_id: ConnId, user_id: UserId) -> None:
        """Remove the connection's presence under the user: it has ended or changed its user.

        Raises ``Unavailable``.
        """
        try:
            await self._state.vanish(conn_id, user_id, self._clock.wall(), self._grace)
        except BaseException:
            self._divergences.note_presence(conn_id, user_id)
            raise

    async def of(self, user_ids: Sequence[UserId]) -> dict[UserId, PresenceState]:
        """Return the presence of each given user, unknown ones included. Raises ``Unavailable``."""
        return await self._state.presence(list(user_ids), self._clock.wall())

    # --- typing

    async def set_typing(
        self, user_id: UserId, room_id: RoomId, typing: bool, ttl: Seconds
    ) -> None:
        """Set the user typing in a room for ``ttl`` seconds, or end it.

        The room's members are notified, except the user's own connections; also when the
        time has run out. Raises ``Unavailable``.
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
                # The user has left or stopped meanwhile, and the members are notified. The
                # state may have got the two calls in the other order: clear it again.
                await self._state.set_typing(user_id, room_id, None, now)
                return
        else:
            self._typing.clear(user_id, room_id)
            await self._state.set_typing(user_id, room_id, None, now)
        await self._announce(user_id, room_id, typing)

    def on_leave(self, conn: Connection, room_id: RoomId) -> None:
        """End the typing of a connection that has left a room, unless another connection of its
        user is in the room."""
        if conn.user_id is not None:
            self._stop(conn.user_id, room_id)

    def user_changed(self, conn: Connection, before: UserId | None) -> None:
        """End the typing of the user that the connection had before, as ``on_leave`` does."""
        if before is None:
            return
        for room_id in conn.roles:
            self._stop(before, room_id)

    def _stop(self, user_id: UserId, room_id: RoomId) -> None:
        if not self._is_in(user_id, room_id) and self._typing.clear(user_id, room_id):
            self._tasks.spawn(self._announce_stopped(user_id, room_id))

    def _is_in(self, user_id: UserId, room_id: RoomId) -> bool:
        return any(room_id in conn.roles for conn in self._connections.of_user(user_id))

    def _end_due(self) -> None:
        """End the typing of users whose time has run out."""
        self._timer = None
        # A request to type on may have arrived while the loop was stalled: read it first.
        self._waited = not self._waited and self._stalls.is_recent
        if self._waited:
            self._timer = self._clock.call_later(CHANCE, self._end_due)
            return
        for user_id, room_id in self._typing.due(self._clock.wall()):
            self._tasks.spawn(self._announce_expired(user_id, room_id))
        self._arm()

    def _arm(self) -> None:
        """Set the timer to the typing that ends first."""
        if self._waited:
            return  # the timer is armed again when those messages are read
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._typing.next_due()
        if due is not None:
            wait = (due - self._clock.wall()).total_seconds()
            self._timer = self._clock.call_later(max(0.0, wait), self._end_due)

    async def _announce_expired(self, user_id: UserId, room_id: RoomId) -> None:
        try:
            states = await self._state.presence([user_id], self._clock.wall())
        except Unavailable:
            states = {}
        # The user may type on by another node: that node announces the end.
        if user_id not in states or room_id not in states[user_id].typing:
            await self._announce(user_id, room_id, typing=False)

    async def _announce_stopped(self, user_id: UserId, room_id: RoomId) -> None:
        try:
            await self._state.set_typing(user_id, room_id, None, self._clock.wall())
        except Unavailable as error:
            # The state's entry expires.
            self._logger.warning("typing_not_cleared", error=told(error))
        await self._announce(user_id, room_id, typing=False)

    async def _announce(self, user_id: UserId, room_id: RoomId, typing: bool) -> None:
        data: dict[str, Any] = {"user_id": user_id, "typing": typing}
        message = Message(f"{ROOM}{room_id}", "typing", data)
        await self._fanout.to_room(room_id, message, skip_user=user_id)

    async def close(self) -> None:
        """Cancel the timer and the announcements that are in flight."""
        self._typing.clear_all()
        self._waited = False
        self._arm()
        await self._tasks.close()
