"""The locator: finds the connections of a recipient in the cluster."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from eyewall.application.cluster.fields import texts
from eyewall.application.cluster.packet import BadPacket
from eyewall.application.cluster.peers import Cluster
from eyewall.application.cluster.protocol import FindConnections
from eyewall.application.connections.registry import BroadcastGroups, Connection, Connections
from eyewall.application.outbound.recipients import (
    ANY_RECIPIENT,
    Filter,
    RecipientFilter,
)
from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import StateStore
from eyewall.application.rooms.seats import user_of
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId, Where, node_of
from eyewall.domain.report import Target, TargetKind

ConnectionsByNode = dict[NodeId, list[ConnId]]


_NO_USERS: Mapping[ConnId, UserId] = {}


@dataclass(frozen=True, slots=True)
class Recipient:
    """A recipient that the caller named, and its connections by node."""

    name: str
    by_node: ConnectionsByNode
    whom: RecipientFilter = ANY_RECIPIENT
    """The condition that a connection has to meet when it is written to."""
    users: Mapping[ConnId, UserId] = field(default_factory=dict)
    """The user of each connection when it was located, if ``whom`` names none."""

    def owner(self, conn_id: ConnId) -> UserId | None:
        """Return the user of the connection when it was located; None if it is not known."""
        return self.whom.user or self.users.get(conn_id)

    def without(self, skip: Collection[str]) -> Recipient:
        """Return the recipient without the connections in ``skip``."""
        if not skip:
            return self
        left = {
            node: [conn_id for conn_id in conn_ids if conn_id not in skip]
            for node, conn_ids in self.by_node.items()
        }
        by_node = {node: conn_ids for node, conn_ids in left.items() if conn_ids}
        return Recipient(self.name, by_node, self.whom, self.users)


def _owners(conns: Iterable[Connection]) -> dict[ConnId, UserId]:
    return {conn.id: conn.user_id for conn in conns if conn.user_id is not None}


class RecipientLocator:
    """Finds connections: those of this node in memory, those of other nodes in the state.

    All methods but ``remote`` raise ``Unavailable`` if the state can't be reached.
    """

    def __init__(
        self,
        *,
        node: NodeId,
        state: StateStore,
        cluster: Cluster,
        connections: Connections,
        broadcast_groups: BroadcastGroups,
        logger: Logger,
    ) -> None:
        self._node = node
        self._state = state
        self._cluster = cluster
        self._connections = connections
        self._broadcast_groups = broadcast_groups
        self._logger = logger
        cluster.on_request(FindConnections, self._take_find)

    async def remote(self, conn_id: str) -> NodeId | None:
        """Return the node of a connection if it is another node, and alive; else None."""
        node = node_of(conn_id)
        if not node or node == self._node or not await self._cluster.is_alive(node):
            return None
        return node

    async def conn(self, conn_id: str) -> Recipient:
        """Locate one connection."""
        conn = self._connections.get(conn_id)
        if conn is not None:
            return Recipient(conn_id, {self._node: [conn.id]}, users=_owners([conn]))
        node = await self.remote(conn_id)
        return Recipient(conn_id, {} if node is None else {node: [ConnId(conn_id)]})

    async def users(self, users: Sequence[UserId], *, only_in: bool = True) -> list[Recipient]:
        """Locate the connections of each user; with ``only_in`` those of this node only after
        their ``on_connect`` hooks."""
        known = await self._state.connections_of(users)
        found = []
        for user in users:
            by_node: ConnectionsByNode = defaultdict(list)
            for conn_id, node in known.get(user, {}).items():
                if node != self._node:
                    by_node[node].append(conn_id)
            here = [c for c in self._connections.of_user(user) if c.is_admitted or not only_in]
            found.append(self._with_local(user, here, by_node, RecipientFilter(user=user)))
        return found

    async def target(self, target: Target) -> Recipient:
        """Locate the connections of a target."""
        match target.kind:
            case TargetKind.CONN:
                return await self.conn(target.id)
            case TargetKind.USER:
                return (await self.users([UserId(target.id)]))[0]
            case TargetKind.ROOM:
                return await self.room(RoomId(target.id))

    async def room(self, room_id: RoomId, skip: Collection[str] = ()) -> Recipient:
        """Locate the members of a room, except ``skip``."""
        by_node: ConnectionsByNode = defaultdict(list)
        users: dict[ConnId, UserId] = {}
        found: set[ConnId] = set()
        for key, standing in (await self._state.standings(room_id)).items():
            user_id = user_of(key)
            for conn_id, seat in standing.seats.items():
                # A connection that is changing its user may have a seat under both users.
                if seat.node != self._node and conn_id not in skip and conn_id not in found:
                    found.add(conn_id)
                    by_node[seat.node].append(conn_id)
                    if user_id is not None:
                        users[conn_id] = user_id
        whom = RecipientFilter(room=room_id)
        members = self._broadcast_groups.members(room_id)
        here = [conn for conn in members if whom.means(conn) and conn.id not in skip]
        return self._with_local(room_id, here, by_node, whom, users)

    async def fitting(self, fits: Filter | Where) -> Recipient:
        """Locate the connections that match: a callable on this node, a ``Where`` in the
        cluster."""
        by_node: ConnectionsByNode = {}
        if isinstance(fits, Where):
            asked = FindConnections(fits)
            asked.header()  # raises before any node is asked
            nodes = await self._cluster.others()
            answers = await asyncio.gather(*(self._matches_on(node, asked) for node in nodes))
            by_node = {node: found for node, found in zip(nodes, answers, strict=True) if found}
        here = [conn for conn in self._connections if conn.is_admitted and fits(conn.meta)]
        return self._with_local("*", here, by_node, RecipientFilter(fits=fits))

    def _with_local(
        self,
        name: str,
        here: Collection[Connection],
        by_node: ConnectionsByNode,
        whom: RecipientFilter,
        users: Mapping[ConnId, UserId] = _NO_USERS,
    ) -> Recipient:
        """Return a recipient with this node's connections first. ``here`` is newer than
        ``by_node``, which was awaited."""
        local = [conn.id for conn in here]
        owners = users if whom.user is not None else {**users, **_owners(here)}
        return Recipient(name, ({self._node: local} if local else {}) | by_node, whom, owners)

    async def _matches_on(self, node: NodeId, asked: FindConnections) -> list[ConnId]:
        try:
            return [ConnId(c) for c in texts(await self._cluster.request(node, asked))]
        except (Unavailable, BadPacket) as error:
            # The matches of this node are unknown; those of the other nodes get the message.
            self._logger.warning("node_silent", asked=asked.kind, error=told(error))
            return []

    async def _take_find(self, asked: FindConnections, _: bytes) -> list[ConnId]:
        return [
            conn.id for conn in self._connections if conn.is_admitted and asked.where(conn.meta)
        ]
