"""Operations on the connections of the whole cluster."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from eyewall.application.cluster.fields import texts
from eyewall.application.cluster.packet import BadPacket
from eyewall.application.cluster.peers import Cluster, NodeTimeout
from eyewall.application.cluster.protocol import (
    Disconnect,
    JoinRoom,
    LeaveAllRooms,
    LeaveRoom,
    LetIn,
)
from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.connections.hooks import Event, Hooks
from eyewall.application.connections.registry import Connection, Connections
from eyewall.application.delivery.locator import RecipientLocator
from eyewall.application.lifecycle.sessions import Sessions
from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import StateStore
from eyewall.application.rooms.membership import RoomMembership
from eyewall.domain.connection import COMES_BACK, DisconnectReason
from eyewall.domain.errors import ConnectionClosed, Unavailable
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId
from eyewall.domain.identity import name as check_name
from eyewall.domain.membership import Membership
from eyewall.domain.room import JoinOptions, RoomRole


class RemoteConnections:
    """Runs an operation on the node that has the connection, here or by a request."""

    def __init__(
        self,
        *,
        node: NodeId,
        state: StateStore,
        cluster: Cluster,
        connections: Connections,
        rooms: RoomMembership,
        sessions: Sessions,
        locator: RecipientLocator,
        hooks: Hooks,
        logger: Logger,
        max_per_user: int | None,
    ) -> None:
        self._node = node
        self._state = state
        self._cluster = cluster
        self._connections = connections
        self._rooms = rooms
        self._sessions = sessions
        self._locate = locator
        self._hooks = hooks
        self._logger = logger
        self._max_per_user = max_per_user
        self._tasks = TaskSet(logger)
        cluster.on_request(Disconnect, self._handle_disconnect)
        cluster.on_request(JoinRoom, self._handle_join)
        cluster.on_request(LeaveRoom, self._handle_leave)
        cluster.on_request(LeaveAllRooms, self._handle_leave_all)
        cluster.on_request(LetIn, self._handle_let_in)

    # --- ends

    async def disconnect_conn(self, conn_id: str, reason: DisconnectReason) -> bool:
        """End a connection of any node; False if no node has it. Raises ``Unavailable``."""
        conn = self._connections.get(conn_id)
        if conn is not None:
            return self._connections.end(conn, reason)
        node = await self._locate.remote(conn_id)
        return node is not None and bool(await self._end({node: [conn_id]}, reason, None))

    async def disconnect_user(self, user_id: str, reason: DisconnectReason) -> int:
        """End all of a user's connections; returns how many. A permanent reason drops the user's
        sessions, too. Raises ``Unavailable``."""
        permanent = reason not in COMES_BACK
        if permanent:
            await self._sessions.forget(UserId(user_id))
        (user,) = await self._locate.users([UserId(user_id)], only_in=False)
        ended = await self._end(user.by_node, reason, user_id)
        if permanent:  # again: connections may have been lost before their end was decided
            await self._sessions.drop(UserId(user_id))
        return ended

    async def keep_newest(self, user_id: UserId) -> None:
        """Disconnect a user's oldest connections beyond the user's limit.

        A connection that is not admitted yet does not count. Its node checks the limit again
        when it admits the connection. Never raises ``Unavailable``: a failure is logged.
        """
        limit = self._max_per_user
        if limit is None:
            return
        try:
            known = (await self._state.connections_of([user_id])).get(user_id, {})
            if len(known) <= limit:
                return
            by_node: dict[NodeId, list[str]] = defaultdict(list)
            for conn_id, node in known.items():
                by_node[node].append(conn_id)
            answers = await asyncio.gather(
                *(self._admitted_at(n, ids) for n, ids in by_node.items())
            )
            let_in = set().union(*answers)
            surplus: dict[NodeId, list[str]] = defaultdict(list)
            for conn_id in [c for c in known if c in let_in][: max(0, len(let_in) - limit)]:
                surplus[known[conn_id]].append(conn_id)
            await self._end(surplus, DisconnectReason.REPLACED, user_id)
        except Unavailable as error:
            self._logger.warning("user_limit_not_kept", error=told(error))

    async def _admitted_at(self, node: NodeId, conn_ids: Sequence[str]) -> Collection[str]:
        """Return the admitted ones of a node's connections; all of them if it does not answer."""
        asked = LetIn(tuple(ConnId(conn_id) for conn_id in conn_ids))
        if node == self._node:
            return await self._handle_let_in(asked, b"")
        try:
            return texts(await self._cluster.request(node, asked))
        except (NodeTimeout, BadPacket) as error:
            self._logger.warning("node_silent", asked=asked.kind, error=told(error))
            return conn_ids

    async def _handle_let_in(self, asked: LetIn, _: bytes) -> list[str]:
        found = [self._connections.get(conn_id) for conn_id in asked.conns]
        return [conn.id for conn in found if conn is not None and conn.is_admitted]

    async def _end(
        self, by_node: Mapping[NodeId, Sequence[str]], reason: DisconnectReason, user_id: str | None
    ) -> int:
        """End connections on all nodes concurrently; returns how many were ended.

        A connection that is no longer ``user_id``'s is left (None: any user's is ended). A node
        that does not answer is logged and counts as none.
        """
        parts = [
            self._end_at(node, conn_ids, reason, user_id) for node, conn_ids in by_node.items()
        ]
        ended = await asyncio.gather(*parts, return_exceptions=True)
        for result in ended:
            if isinstance(result, BaseException):
                raise result
        return sum(result for result in ended if isinstance(result, int))

    async def _end_at(
        self, node: NodeId, conn_ids: Sequence[str], reason: DisconnectReason, user_id: str | None
    ) -> int:
        conns = tuple(ConnId(conn_id) for conn_id in conn_ids)
        asked = Disconnect(conns, reason, None if user_id is None else UserId(user_id))
        if node == self._node:
            return await self._handle_disconnect(asked, b"")
        try:
            return int(await self._cluster.request(node, asked))
        except NodeTimeout as error:
            self._logger.warning("node_silent", asked=asked.kind, error=told(error))
            return 0

    async def _handle_disconnect(self, asked: Disconnect, _: bytes) -> int:
        conns = [c for conn_id in asked.conns if (c := self._connections.get(conn_id))]
        return sum(
            self._connections.end(conn, asked.reason)
            for conn in conns
            if asked.user is None or conn.user_id == asked.user
        )

    # --- rooms

    async def join(self, room_id: RoomId, conn_id: str, options: JoinOptions | None) -> Membership:
        """Join a connection of any node to a room. Raises as ``RoomMembership.join`` does."""
        check_name(room_id, "room_id")
        conn = self._connections.get(conn_id)
        if conn is not None:
            return await self._rooms.join(room_id, conn, options)
        node = await self._locate.remote(conn_id)
        if node is None:
            raise ConnectionClosed(f"{conn_id} is not connected")
        asked = JoinRoom(room_id, ConnId(conn_id), options)
        role, members, epoch, offset = await self._cluster.request(node, asked)
        return Membership(room_id, ConnId(conn_id), RoomRole(role), members, epoch, offset)

    async def leave(self, room_id: RoomId, conn_id: str) -> bool:
        """Remove a connection of any node from a room; False if it was not a member. Raises
        ``Unavailable``."""
        conn = self._connections.get(conn_id)
        if conn is not None:
            return await self._rooms.leave(room_id, conn)
        node = await self._locate.remote(conn_id)
        if node is None:
            return False
        return bool(await self._cluster.request(node, LeaveRoom(room_id, ConnId(conn_id))))

    async def leave_all(self, conn_id: str) -> int:
        """Remove a connection of any node from all its rooms; returns how many. Raises
        ``Unavailable``."""
        conn = self._connections.get(conn_id)
        if conn is not None:
            return await self._rooms.leave_all(conn)
        node = await self._locate.remote(conn_id)
        if node is None:
            return 0
        return int(await self._cluster.request(node, LeaveAllRooms(ConnId(conn_id))))

    async def _handle_join(self, asked: JoinRoom, _: bytes) -> list[Any]:
        conn = self._connections.get(asked.conn)
        if conn is None:
            raise ConnectionClosed(f"{asked.conn} is not connected")
        member = await self._rooms.join(asked.room, conn, asked.options)
        return [int(member.role), member.members, member.epoch, member.offset]

    async def _handle_leave(self, asked: LeaveRoom, _: bytes) -> bool:
        conn = self._connections.get(asked.conn)
        return conn is not None and await self._rooms.leave(asked.room, conn)

    async def _handle_leave_all(self, asked: LeaveAllRooms, _: bytes) -> int:
        conn = self._connections.get(asked.conn)
        return 0 if conn is None else await self._rooms.leave_all(conn)

    # --- errors

    def tell_error(self, conn: Connection, error: BaseException) -> None:
        """Run the ``on_error`` hooks with a connection's error; returns at once."""
        if self._hooks.of(Event.ERROR):
            self._tasks.spawn(self._hooks.tell(Event.ERROR, conn, error))

    async def close(self) -> None:
        """Cancel the running hooks."""
        await self._tasks.close()
