"""The hub: what handlers and applications call. It delegates and decides nothing.

Every awaited method that names a user, a room or a connection means the whole cluster,
whichever node is asked. The plain ones see this node.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from eyewall.application.connections import Connection
from eyewall.application.messaging import Messaging, several
from eyewall.application.node import Node
from eyewall.application.ports import Logger
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.duration import Seconds, count, seconds
from eyewall.domain.errors import Misuse
from eyewall.domain.history import HistoryPage, position_of
from eyewall.domain.identity import ById, ConnId, ConnMeta, RoomId, UserId
from eyewall.domain.membership import Member, Membership, RoomInfo
from eyewall.domain.presence import PresenceState
from eyewall.domain.report import (
    HubStats,
)
from eyewall.domain.room import JoinOptions, RoomOptions, RoomRole


class Hub(Messaging):
    """Rooms, presence and messages of one node and its cluster."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._stop: Callable[[float], Awaitable[None]] | None = None
        node.receiver.hub = self

    @property
    def logger(self) -> Logger:
        """The logger that the server was given. It may raise; the server's own lines go
        through a guard."""
        return self._node.ports.logger

    @property
    def node_id(self) -> str:
        """What this node is called in its cluster."""
        return self._node.config.node_id

    # --- this node's connections

    def connection(self, conn_id: ConnId | str) -> Connection | None:
        """The connection; None if this node has none of that id."""
        return self._node.connections.get(conn_id)

    def connections(self) -> Iterator[Connection]:
        """The connections of this node, as they are now."""
        return iter(self._node.connections)

    def connection_ids(self) -> list[ConnId]:
        """The ids of this node's connections."""
        return self._node.connections.ids()

    def users(self) -> list[UserId]:
        """The users who have a connection at this node."""
        return self._node.connections.roster.users()

    def set_meta(self, conn_id: ConnId | str, **changes: Any) -> ConnMeta:
        """Merge ``changes`` into what is known of a connection; a field that is not
        named stays. Raises ``ConnectionClosed`` if it is not here."""
        return self._node.belongings.change_meta(conn_id, changes)

    def get_meta(self, conn_id: ConnId | str) -> ConnMeta | None:
        """What is known of a connection; None if this node has none of that id."""
        conn = self._node.connections.get(conn_id)
        return None if conn is None else conn.meta

    def find_by_tag(self, tag: str) -> list[ConnId]:
        """This node's connections with the tag; empty if there are none."""
        return self._node.connections.roster.of_tag(tag)

    def user_connections(self, user_id: UserId | str) -> list[ConnId]:
        """The user's connections at this node; empty for a user who has none here."""
        return self._node.connections.roster.of_user(UserId(user_id))

    # --- presence

    async def presence(self, user_id: UserId | str) -> PresenceState:
        """Whether the user is there, anywhere. One that nobody knows is offline, and was never
        seen."""
        return (await self.presence_many([user_id]))[UserId(user_id)]

    async def presence_many(self, user_ids: Iterable[UserId | str]) -> ById[UserId, PresenceState]:
        """The same for several users, each of whom has an entry."""
        await self._node.belongings.settled()
        return ById(await self._node.presences.of([UserId(each) for each in several(user_ids)]))

    async def set_typing(
        self, user_id: UserId | str, room_id: RoomId | str, typing: bool = True, ttl: Seconds = 5.0
    ) -> None:
        """Say that the user types in the room for ``ttl`` seconds, or that it has stopped.

        The members of the room hear it; in a room that nobody is in that is nobody.
        """
        await self._node.presences.set_typing(UserId(user_id), RoomId(room_id), typing, ttl)

    # --- rooms

    async def create_room(
        self, room_id: RoomId | str, options: RoomOptions | None = None
    ) -> RoomInfo:
        """Make a room. Raises ``RoomExists`` if it was created with other options."""
        given: object = options
        if given is not None and not isinstance(given, RoomOptions):
            raise ValueError(f"options must be RoomOptions, not {given!r:.80}")
        return await self._node.moderator.create(RoomId(room_id), options)

    async def update_room(self, room_id: RoomId | str, **changes: Any) -> RoomInfo:
        """Change some of a room's options. Raises ``RoomNotFound``."""
        return await self._node.moderator.update(RoomId(room_id), changes)

    async def delete_room(self, room_id: RoomId | str) -> None:
        """Forget a room with all that it keeps. Raises ``RoomNotFound``."""
        await self._node.moderator.delete(RoomId(room_id))

    async def join(
        self,
        room_id: RoomId | str,
        conn_id: ConnId | str,
        options: JoinOptions | None = None,
    ) -> Membership:
        """Let a connection into a room; being in already changes nothing.

        Raises ``ConnectionClosed``, ``JoinForbidden``, ``RoomFull``, ``Forbidden`` or
        ``RoomNotFound``.
        """
        return await self._node.operations.join(RoomId(room_id), conn_id, options)

    async def leave(self, room_id: RoomId | str, conn_id: ConnId | str) -> bool:
        """Take a connection out of a room; False if it was not in, or there is no such room or
        connection."""
        return await self._node.operations.leave(RoomId(room_id), conn_id)

    async def leave_all(self, conn_id: ConnId | str) -> int:
        """Take a connection out of all rooms; returns of how many: 0 too for a connection that
        is not there."""
        return await self._node.operations.leave_all(conn_id)

    async def invite(
        self, room_id: RoomId | str, user_id: UserId | str, by: UserId | str | None = None
    ) -> None:
        """Let a user into an invite-only room. ``by`` is noted in the log.

        A room that is not there is made, as by joining; with ``implicit_rooms=False`` that raises
        ``RoomNotFound``.
        """
        await self._node.moderator.invite(RoomId(room_id), UserId(user_id))
        self._node.logger.info("invited", room=room_id, user_id=user_id, by=by)

    async def revoke_invite(self, room_id: RoomId | str, user_id: UserId | str) -> None:
        """Take an invite back. Without one, or without such a room, nothing changes."""
        await self._node.moderator.revoke_invite(RoomId(room_id), UserId(user_id))

    async def set_role(self, room_id: RoomId | str, user_id: UserId | str, role: RoomRole) -> None:
        """Give a user a role in a room, now and whenever it joins.

        A room that is not there is made, as by joining; with ``implicit_rooms=False`` that raises
        ``RoomNotFound``.
        """
        await self._node.moderator.set_role(RoomId(room_id), UserId(user_id), role)

    async def kick(self, room_id: RoomId | str, user_id: UserId | str, reason: str = "") -> int:
        """Take all of a user's connections out of a room; returns how many.

        0 means that the user was not in, or that there is no such room or user: nothing
        changes then. Each client is told by ``system:kicked`` with the ``reason``, and may come
        back; ``ban`` keeps it out.
        """
        return await self._node.moderator.kick(RoomId(room_id), UserId(user_id), reason)

    async def kick_user_from_room(
        self, user_id: UserId | str, room_id: RoomId | str, reason: str = ""
    ) -> int:
        """The same as ``kick``, the user named first."""
        return await self.kick(room_id, user_id, reason)

    async def ban(
        self, room_id: RoomId | str, user_id: UserId | str, duration: Seconds | None = None
    ) -> int:
        """Remove a user from a room and keep it out, for ``duration`` or for ever; returns how
        many connections were in.

        0 means that the user was not in. A user whom nobody knows is banned all the same, and a
        room that is not there is made, as by joining; with ``implicit_rooms=False`` that raises
        ``RoomNotFound``.
        """
        return await self._node.moderator.ban(RoomId(room_id), UserId(user_id), duration)

    async def unban(self, room_id: RoomId | str, user_id: UserId | str) -> None:
        """End a ban. Without one, or without such a room, nothing changes."""
        await self._node.moderator.unban(RoomId(room_id), UserId(user_id))

    async def members(self, room_id: RoomId | str) -> list[Member]:
        """The users of a room, in the order in which they came; anonymous connections count
        together, as one without a user. Empty for a room that is not there."""
        await self._node.belongings.settled()
        return await self._node.moderator.members(RoomId(room_id))

    async def room(self, room_id: RoomId | str) -> RoomInfo | None:
        """What is known of a room; None if there is none of that id."""
        return await self._node.moderator.room(RoomId(room_id))

    async def rooms(self) -> list[RoomId]:
        """Rooms with members, created ones that nobody has joined yet, and created ones
        that are not cleaned up."""
        return await self._node.moderator.rooms()

    async def history(
        self, room_id: RoomId | str, since: Any = None, limit: int = 100
    ) -> HistoryPage:
        """The first ``limit`` messages after ``since``, oldest first; for None the newest.

        ``since`` is whatever has an epoch and an offset: a message's ``stream``, a
        ``HistoryPage``, ``Membership`` or ``RoomInfo``, a mapping, or a pair of the two.
        What was trimmed is left out, and of another epoch nothing is given: the page's
        ``epoch`` tells. Raises ``RoomNotFound``, and ``ValueError`` for no position.
        """
        at = None if since is None else position_of(since)
        return await self._node.histories.page(RoomId(room_id), at, count(limit, "limit"))

    # --- operations

    async def disconnect_user(
        self,
        user_id: UserId | str,
        reason: DisconnectReason | str = DisconnectReason.DISCONNECTED,
    ) -> int:
        """End all of a user's connections; returns how many: 0 for a user who has none."""
        return await self._node.operations.disconnect_user(user_id, DisconnectReason(reason))

    async def disconnect_conn(
        self,
        conn_id: ConnId | str,
        reason: DisconnectReason | str = DisconnectReason.DISCONNECTED,
    ) -> bool:
        """End a connection; False if there is none of that id."""
        return await self._node.operations.disconnect_conn(conn_id, DisconnectReason(reason))

    async def shutdown(self, timeout: Seconds = 10.0) -> None:
        """Drain and stop the node, within ``timeout`` seconds."""
        if self._stop is None:
            raise Misuse("the hub belongs to no server")
        await self._stop(seconds(timeout, "timeout"))

    def stats(self) -> HubStats:
        """The counters of this node."""
        node = self._node
        return node.stats.snapshot(
            connections=len(node.connections),
            users=node.connections.roster.user_count,
            rooms=len(node.audiences),
        )

    def reset_stats(self) -> None:
        """Begin to count anew; what is there (connections, users, rooms) is not counted."""
        self._node.stats.reset()


def turn(hub: Hub, node: Node, stop: Callable[[float], Awaitable[None]]) -> None:
    """Have ``hub`` mean ``node`` from now on, and end it by ``stop``: whoever has kept the hub
    reaches another node with it. For the server that the hub belongs to."""
    hub._node, hub._stop = node, stop  # noqa: SLF001  (no part of what users see)
