"""Operations on connections, wherever in the cluster they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eyewall.application.cluster import Cluster
from eyewall.application.connections import Connection, Connections
from eyewall.application.hooks import Event, Hooks
from eyewall.application.locate import Locator
from eyewall.application.ports import Logger, StateStore
from eyewall.application.rooms import Rooms
from eyewall.application.tasks import Tasks
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import ConnectionClosed
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId
from eyewall.domain.identity import name as check_name
from eyewall.domain.membership import Membership
from eyewall.domain.room import JoinOptions, RoomRole

_DISCONNECT, _JOIN, _LEAVE, _LEAVE_ALL = "disconnect", "join", "leave", "leave_all"


class Operations:
    """Does at the right node what is asked for a connection or a user."""

    def __init__(
        self,
        *,
        node: NodeId,
        state: StateStore,
        cluster: Cluster,
        connections: Connections,
        rooms: Rooms,
        locator: Locator,
        hooks: Hooks,
        logger: Logger,
    ) -> None:
        self._node = node
        self._state = state
        self._cluster = cluster
        self._connections = connections
        self._rooms = rooms
        self._locate = locator
        self._hooks = hooks
        self._tasks = Tasks(logger)
        cluster.on_call(_DISCONNECT, self._take_disconnect)
        cluster.on_call(_JOIN, self._take_join)
        cluster.on_call(_LEAVE, self._take_leave)
        cluster.on_call(_LEAVE_ALL, self._take_leave_all)

    # --- ends

    async def disconnect_conn(self, conn_id: str, reason: DisconnectReason) -> bool:
        conn = self._connections.get(conn_id)
        if conn is not None:
            return self._connections.end(conn, reason)
        node = await self._locate.remote(conn_id)
        return node is not None and bool(await self._disconnect_at(node, [conn_id], reason))

    async def disconnect_user(self, user_id: str, reason: DisconnectReason) -> int:
        ended = 0
        for conn in self._connections.of_user(user_id):
            ended += self._connections.end(conn, reason)
        known = await self._state.connections_of([UserId(user_id)])
        by_node: dict[NodeId, list[str]] = {}
        for conn_id, node in known.get(UserId(user_id), {}).items():
            if node != self._node:
                by_node.setdefault(node, []).append(conn_id)
        for node, conn_ids in by_node.items():
            ended += await self._disconnect_at(node, conn_ids, reason)
        return ended

    async def keep_newest(self, user_id: UserId, limit: int) -> None:
        """Disconnect a user's oldest connections until ``limit`` are left."""
        known = (await self._state.connections_of([user_id])).get(user_id, {})
        surplus = list(known)[: max(0, len(known) - limit)]
        for conn_id in surplus:
            await self.disconnect_conn(conn_id, DisconnectReason.REPLACED)

    async def _disconnect_at(
        self, node: NodeId, conn_ids: list[str], reason: DisconnectReason
    ) -> int:
        header = {"conns": conn_ids, "reason": reason.value}
        return int(await self._cluster.call(node, _DISCONNECT, header))

    async def _take_disconnect(self, header: Mapping[str, Any], _: bytes) -> int:
        reason = DisconnectReason(header["reason"])
        conns = [c for conn_id in header["conns"] if (c := self._connections.get(conn_id))]
        return sum(self._connections.end(conn, reason) for conn in conns)

    # --- rooms

    async def join(self, room_id: RoomId, conn_id: str, options: JoinOptions | None) -> Membership:
        check_name(room_id, "room_id")
        conn = self._connections.get(conn_id)
        if conn is not None:
            return await self._rooms.join(room_id, conn, options)
        node = await self._locate.remote(conn_id)
        if node is None:
            raise ConnectionClosed(f"{conn_id} is not connected")
        header = {"room": room_id, "conn": conn_id, "options": _options_out(options)}
        role, members, epoch, offset = await self._cluster.call(node, _JOIN, header)
        return Membership(room_id, ConnId(conn_id), RoomRole(role), members, epoch, offset)

    async def leave(self, room_id: RoomId, conn_id: str) -> bool:
        conn = self._connections.get(conn_id)
        if conn is not None:
            return await self._rooms.leave(room_id, conn)
        node = await self._locate.remote(conn_id)
        if node is None:
            return False
        return bool(await self._cluster.call(node, _LEAVE, {"room": room_id, "conn": conn_id}))

    async def leave_all(self, conn_id: str) -> int:
        conn = self._connections.get(conn_id)
        if conn is not None:
            return await self._rooms.leave_all(conn)
        node = await self._locate.remote(conn_id)
        return (
            0
            if node is None
            else int(await self._cluster.call(node, _LEAVE_ALL, {"conn": conn_id}))
        )

    async def _take_join(self, header: Mapping[str, Any], _: bytes) -> list[Any]:
        options = _options_in(header["options"])
        member = await self._rooms.join(RoomId(header["room"]), self._here(header), options)
        return [int(member.role), member.members, member.epoch, member.offset]

    async def _take_leave(self, header: Mapping[str, Any], _: bytes) -> bool:
        return await self._rooms.leave(RoomId(header["room"]), self._here(header))

    async def _take_leave_all(self, header: Mapping[str, Any], _: bytes) -> int:
        return await self._rooms.leave_all(self._here(header))

    def _here(self, header: Mapping[str, Any]) -> Connection:
        conn = self._connections.get(header["conn"])
        if conn is None:
            raise ConnectionClosed(f"{header['conn']} is not connected")
        return conn

    # --- errors

    def tell_error(self, conn: Connection, error: BaseException) -> None:
        """Tell the ``on_error`` hooks what went wrong with a connection."""
        if self._hooks.of(Event.ERROR):
            self._tasks.spawn(self._hooks.tell(Event.ERROR, conn, error))

    async def close(self) -> None:
        await self._tasks.close()


def _options_out(options: JoinOptions | None) -> dict[str, Any] | None:
    if options is None:
        return None
    return {
        "role": int(options.role),
        "invited_by": options.invited_by,
        "force": options.force,
    }


def _options_in(fields: Any) -> JoinOptions | None:
    return None if fields is None else JoinOptions(**fields)
