"""Where in the cluster a recipient's connections are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eyewall.application.cluster import Cluster
from eyewall.application.connections import Connections
from eyewall.application.fanout import Audiences
from eyewall.application.ports import StateStore
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId
from eyewall.domain.report import Target, TargetKind

By = dict[NodeId, list[ConnId]]


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom the caller named, and where its connections are."""

    name: str
    by_node: By


def node_of(conn_id: str) -> NodeId:
    """The node that gave a connection its id; empty for what is no id of ours."""
    return NodeId(conn_id.partition("@")[2])


class Locator:
    """Finds connections. This node knows its own best; the state knows the others'."""

    def __init__(
        self,
        *,
        node: NodeId,
        state: StateStore,
        cluster: Cluster,
        connections: Connections,
        audiences: Audiences,
    ) -> None:
        self._node = node
        self._state = state
        self._cluster = cluster
        self._connections = connections
        self._audiences = audiences

    async def remote(self, conn_id: str) -> NodeId | None:
        """The other node that has the connection, if that node is alive."""
        node = node_of(conn_id)
        if not node or node == self._node or not await self._cluster.is_alive(node):
            return None
        return node

    async def conn(self, conn_id: str) -> Recipient:
        if self._connections.get(conn_id) is not None:
            return Recipient(conn_id, {self._node: [ConnId(conn_id)]})
        node = await self.remote(conn_id)
        return Recipient(conn_id, {} if node is None else {node: [ConnId(conn_id)]})

    async def users(self, users: Sequence[UserId]) -> list[Recipient]:
        known = await self._state.connections_of(users)
        found = []
        for user in users:
            by_node: By = defaultdict(list)
            local = [conn.id for conn in self._connections.of_user(user)]
            if local:
                by_node[self._node] = local
            for conn_id, node in known.get(user, {}).items():
                if node != self._node:
                    by_node[node].append(conn_id)
            found.append(Recipient(user, dict(by_node)))
        return found

    async def target(self, target: Target) -> Recipient:
        match target.kind:
            case TargetKind.CONN:
                return await self.conn(target.id)
            case TargetKind.USER:
                return (await self.users([UserId(target.id)]))[0]
            case TargetKind.ROOM:
                return await self.room(RoomId(target.id))

    async def room(self, room_id: RoomId) -> Recipient:
        by_node: By = defaultdict(list)
        for standing in (await self._state.standings(room_id)).values():
            for conn_id, seat in standing.seats.items():
                if seat.node != self._node:
                    by_node[seat.node].append(conn_id)
        local = [conn.id for conn in self._audiences.members(room_id)]
        if local:
            by_node[self._node] = local
        return Recipient(room_id, dict(by_node))
