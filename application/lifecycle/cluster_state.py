"""Keeps the cluster's state (presence and seats) in step with each connection.

Rules of this file:

1. The end of a connection, its change of user and the reconciliation of a divergence hold the
   connection's lock: each of them awaits several calls of the state.
2. An entry that was made under a user is removed under that user.
"""

from __future__ import annotations

from typing import Any

from eyewall.application.concurrency.locks import KeyedLock
from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.connections.registry import Connection, Connections
from eyewall.application.connections.token_expiry import TokenExpiry
from eyewall.application.delivery.pending_acks import PendingAcks
from eyewall.application.delivery.replay import OfflineReplay
from eyewall.application.lifecycle.remote import RemoteConnections
from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.application.rooms.divergence import Divergence
from eyewall.application.rooms.membership import RoomMembership
from eyewall.application.rooms.presence import Presences
from eyewall.application.rooms.seats import Seats
from eyewall.domain.errors import ConnectionClosed, Unavailable
from eyewall.domain.identity import ConnId, ConnMeta, UserId


class ClusterStateSync:
    """Presence and seats of this node's connections in the cluster's state."""

    def __init__(
        self,
        *,
        connections: Connections,
        presences: Presences,
        rooms: RoomMembership,
        seats: Seats,
        expiry: TokenExpiry,
        operations: RemoteConnections,
        pending_acks: PendingAcks,
        logger: Logger,
        replays: OfflineReplay | None,
    ) -> None:
        self._connections = connections
        self._presences = presences
        self._rooms = rooms
        self._seats = seats
        self._expiry = expiry
        self._operations = operations
        self._pending_acks = pending_acks
        self._logger = logger
        self._replays = replays
        self._locks = KeyedLock()
        self._tasks = TaskSet(logger)
        self._notice_tasks = TaskSet(logger)
        """Hooks of changes. A hook may wait for ``settled``, so ``settled`` does not wait for
        hooks: that would be a deadlock."""

    async def leave(self, conn: Connection) -> None:
        """Remove the entries of a connection that has ended, before its hooks run."""
        async with self._locks.acquire(conn.id):
            await self._rooms.after_end(conn)
            try:
                if conn.user_id is not None:
                    await self._presences.vanish(conn.id, conn.user_id)
            except Unavailable as error:
                # Noted as a divergence: removed when the state is available again.
                self._logger.warning("presence_not_released", conn_id=conn.id, error=told(error))

    def change_meta(self, conn_id: str, changes: dict[str, Any]) -> ConnMeta:
        """Change fields of a connection's ``ConnMeta`` and return the new one.

        The cluster's state follows later (see ``settled``). Raises ``ConnectionClosed`` if the
        connection is not on this node.
        """
        conn = self._connections.get(conn_id)
        if conn is None:
            raise ConnectionClosed(f"{conn_id} is not connected here")
        before = conn.meta
        meta = self._connections.set_meta(conn, changes)
        if meta.expires_at != before.expires_at:
            self._expiry.watch(conn)
        if meta.user_id != before.user_id:
            self._rooms.user_changed(conn, before.user_id)
            self._presences.user_changed(conn, before.user_id)
            self._pending_acks.changed(conn)
            self._tasks.spawn(self._change_user(conn, before.user_id))
        return meta

    async def _change_user(self, conn: Connection, before: UserId | None) -> None:
        """Move presence and seats to the connection's new user."""
        async with self._locks.acquire(conn.id):
            try:
                if before is not None:
                    await self._presences.vanish(conn.id, before)
                await self._presences.appear(conn)
                await self._rooms.change_user(conn)
            except Unavailable as error:
                self._logger.warning("user_not_changed", conn_id=conn.id, error=told(error))
        self._notice_tasks.spawn(self._rooms.run_notices(conn))
        if conn.user_id is None or not conn.is_open or not conn.is_admitted:
            return  # the opening does the rest when it admits the connection
        if self._replays is not None:
            self._replays.begin(conn.user_id)  # a login by a message, too
        await self._operations.keep_newest(conn.user_id)

    async def reconcile(self, conn_id: ConnId, divergence: Divergence) -> None:
        """Compare a connection's divergence with the state and correct it. The connection may have
        ended. Raises ``Unavailable``; the rest is not corrected then."""
        async with self._locks.acquire(conn_id):
            conn = self._connections.get(conn_id)
            if (
                conn is not None
                and divergence.seats_missing
                and not await self._presences.is_known(conn)
            ):
                divergence.everything = True
            for user_id in divergence.users:
                if conn is None or conn.user_id != user_id:
                    await self._presences.vanish(conn_id, user_id)
            if conn is not None:
                await self._presences.appear(conn)
            await self._rooms.reconcile(conn_id, conn, divergence)

    async def settled(self) -> None:
        """Wait until all changes of user are in the state.

        ``set_meta`` does not wait for them; a caller that reads the state next does.
        """
        await self._tasks.settled()

    async def close(self) -> None:
        """Cancel the changes and hooks that are in flight."""
        await self._tasks.close()
        await self._notice_tasks.close()
