"""The connections of this node: their state, their registry and their end.

Rules of this file:

1. A connection ends when its close is decided, not when the socket is gone: in one step it
   leaves the registry, the rooms' broadcast groups and the pending acks.
2. Every end goes through ``end``, once. If a connect hook has begun for a connection, the
   disconnect hooks run after it.
3. A slot in the limits is acquired before the first await, and released once.
4. A connection is registered from its beginning, and admitted when no ``on_connect`` hook can
   refuse it any more. Messages to a user, a room or all go only to admitted connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from eyewall.application.concurrency.tasks import CANCEL_GRACE, is_end
from eyewall.application.connections.hooks import Event, Hooks
from eyewall.application.connections.limits import ConnectionLimits
from eyewall.application.connections.stats import Stats
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.transport import BroadcastGroup, ConnectionSlot, Link, MessageWriter
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import ShuttingDown
from eyewall.domain.identity import ConnId, ConnMeta, RoomId, UserId
from eyewall.domain.report import FailureReason, fate
from eyewall.domain.request_log import RequestLog
from eyewall.domain.room import RoomRole
from eyewall.domain.roster import Roster

_NO_ROOMS: dict[RoomId, RoomRole] = {}


_NONE_HELD = frozenset[RoomId]()


_NO_EXEMPTIONS: tuple[bool, datetime | None] = (False, None)


CONNECTING: ContextVar[Connection | None] = ContextVar("connecting", default=None)
"""The connection whose ``on_connect`` hooks run in this context."""


class SendsToConnection(Protocol):
    """Writes to one connection; raises ``ConnectionClosed``, ``QueueFull`` or ``SlowConsumer``."""

    async def send(self, conn: Connection, topic: str, event: str, data: Any) -> None:
        """Send a message."""

    async def send_raw(self, conn: Connection, data: str | bytes) -> None:
        """Send a text or binary frame without an envelope."""


class Connection:
    """One client's connection, as handlers and hooks see it."""

    __slots__ = (
        "_connected_at",
        "_user_data",
        "announced",
        "connections",
        "exemptions",
        "fate",
        "held",
        "id",
        "initial_meta",
        "is_admitted",
        "is_open",
        "link",
        "meta",
        "opening",
        "request_log",
        "reservation",
        "roles",
        "session",
        "token_lapsed",
    )

    def __init__(
        self,
        conn_id: ConnId,
        link: Link,
        meta: ConnMeta,
        connections: Connections,
        reservation: ConnectionSlot,
        session: str | None,
    ) -> None:
        self.id = conn_id
        self.link = link
        self.meta = meta
        self.initial_meta = meta
        """The identity from the handshake; ``meta`` is the current one."""
        self.connections = connections
        self.reservation: ConnectionSlot | None = reservation
        self.session = session
        """The session's secret name; None for a client without a subprotocol."""
        self.is_open = True
        self.is_admitted = False
        """Whether no ``on_connect`` hook can refuse it any more."""
        self.token_lapsed = False
        """Whether its token has expired, and only a refresh is accepted (``token_expiry``)."""
        self.fate = FailureReason.CONN_CLOSED
        """After its end: why messages that wait for it are not delivered."""
        self.opening: asyncio.Future[None] | None = None
        """Pending while it is being opened: its end waits for that."""
        self.announced = False
        """Whether an ``on_connect`` hook has begun: then the disconnect hooks run too."""
        self.roles = _NO_ROOMS
        """Its role in each of its rooms."""
        self.held = _NONE_HELD
        """Its rooms whose messages are held back; changed by ``HeldMembers`` only."""
        self.exemptions = _NO_EXEMPTIONS
        """Whether a resume was exempt from the limiter, and the end of the token whose refresh
        was exempt last (``rate_limits``)."""
        self._connected_at = connections.clock.wall().timestamp()
        self._user_data: dict[str, Any] | None = None
        self.request_log: RequestLog | None = None
        """The requests of its session; None until the first one."""

    @property
    def user_id(self) -> UserId | None:
        """Its user; None for an anonymous connection."""
        return self.meta.user_id

    @property
    def connected_at(self) -> datetime:
        """When the connection was opened, aware."""
        return datetime.fromtimestamp(self._connected_at, self.connections.clock.wall().tzinfo)

    @property
    def last_activity(self) -> datetime:
        """When bytes last came from the client, pongs included; aware."""
        clock = self.connections.clock
        return clock.wall() - timedelta(seconds=max(0.0, clock.now() - self.link.last_seen))

    @property
    def user_data(self) -> dict[str, Any]:
        """The application's own data about the connection; dropped with it."""
        if self._user_data is None:
            self._user_data = {}
        return self._user_data

    @property
    def rooms(self) -> frozenset[RoomId]:
        """Its rooms; in a disconnect hook, its rooms at the end."""
        return frozenset(self.roles)

    @property
    def opened_request_log(self) -> RequestLog | None:
        """The requests of its session, from the first one on; None without a session."""
        if self.session is not None and self.request_log is None:
            self.request_log = RequestLog()
        return self.request_log

    async def send(self, topic: str, event: str = "message", data: Any = None) -> None:
        """Send a message to this connection.

        Raises ``ConnectionClosed`` if it has ended, ``QueueFull`` if its queue is full, and
        ``SlowConsumer`` if it was disconnected because of that.
        """
        await self.connections.sender.send(self, topic, event, data)

    async def send_raw(self, data: str | bytes) -> None:
        """Send one text (``str``) or binary (``bytes``) frame as it is; raises as ``send``."""
        await self.connections.sender.send_raw(self, data)

    async def close(self, reason: DisconnectReason | str = DisconnectReason.NORMAL) -> None:
        """End the connection. Queued messages are written before the close frame."""
        self.connections.end(self, DisconnectReason(reason))

    def enter(self, room_id: RoomId, role: RoomRole) -> None:
        """Note the role in a room. To join a room, call ``hub.join``."""
        if self.roles is _NO_ROOMS:
            self.roles = {}
        self.roles[room_id] = role

    def __repr__(self) -> str:
        return f"<Connection {self.id} user={self.user_id!r} open={self.is_open}>"


class Connections:
    """The registry of this node's connections, with its indexes and limits."""

    def __init__(
        self,
        *,
        writer: MessageWriter,
        clock: Clock,
        hooks: Hooks,
        stats: Stats,
        logger: Logger,
        max_connections: int | None = None,
        max_per_address: int | None = None,
    ) -> None:
        self.clock = clock
        self.sender: SendsToConnection
        """Set when the node is built: the sender needs the registry too."""
        self.hooks = hooks
        self.everyone: BroadcastGroup = writer.new_group()
        self.roster = Roster()
        self.draining = False
        self._stats = stats
        self._logger = logger
        self._limits = ConnectionLimits(max_connections, max_per_address)
        self._by_id: dict[ConnId, Connection] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._on_end: list[Callable[[Connection, DisconnectReason], None]] = []
        self._after_end: Callable[[Connection], Any] | None = None

    # --- limits

    def reserve(self, ip: str | None) -> ConnectionSlot:
        """Acquire a slot for a handshake; raises ``ShuttingDown`` or ``Overloaded``."""
        if self.draining:
            raise ShuttingDown("the node is draining")
        return self._limits.acquire(ip)

    # --- the registry

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._by_id.values()))

    def get(self, conn_id: str) -> Connection | None:
        """Return the connection of that id; None if it is not here."""
        return self._by_id.get(ConnId(conn_id))

    def ids(self) -> list[ConnId]:
        """Return the ids of all connections."""
        return list(self._by_id)

    def of_user(self, user_id: str) -> list[Connection]:
        """Return the connections of a user on this node."""
        return [self._by_id[c] for c in self.roster.of_user(UserId(user_id))]

    def add(self, conn: Connection) -> None:
        """Register a connection, which is not admitted yet."""
        conn.link.owner = conn
        self._by_id[conn.id] = conn
        self.roster.add(conn.id, conn.meta)
        self._stats.metrics.connected()
        self._logger.debug("connected", conn_id=conn.id, user_id=conn.user_id)

    def admit(self, conn: Connection) -> None:
        """Precheck a connection: it gets messages to all and to its user from now on."""
        conn.is_admitted = True
        self.everyone.add(conn.link)

    def set_meta(self, conn: Connection, changes: dict[str, Any]) -> ConnMeta:
        """Merge ``changes`` into the connection's identity and update the indexes.

        Returns the new identity.
        """
        conn.meta = replace(conn.meta, **changes)
        self.roster.change(conn.id, conn.meta)
        return conn.meta

    # --- the end

    def on_end(self, step: Callable[[Connection, DisconnectReason], None]) -> None:
        """Call ``step``, which must not wait, when a connection's end is decided."""
        self._on_end.append(step)

    def after_end(self, step: Callable[[Connection], Any]) -> None:
        """Await ``step`` before the disconnect hooks: it removes the connection's cluster state."""
        self._after_end = step

    def end(
        self,
        conn: Connection,
        reason: DisconnectReason,
        *,
        close_link: bool = True,
        error: BaseException | None = None,
    ) -> bool:
        """End a connection for ``reason``; False if its end was decided before.

        ``close_link`` is False if the link has ended, or is ending, because of ``error``.
        """
        if not conn.is_open:
            return False
        conn.is_open = False
        conn.fate = fate(reason, error)
        self._by_id.pop(conn.id, None)
        self.roster.remove(conn.id)
        self.everyone.discard(conn.link)
        for step in self._on_end:
            step(conn, reason)
        if close_link:
            conn.link.close(reason)
        if conn.reservation is not None:
            conn.reservation.release()
            conn.reservation = None
        self._stats.metrics.disconnected(reason)
        self._logger.debug(
            "disconnected", conn_id=conn.id, user_id=conn.user_id, reason=str(reason)
        )
        task = asyncio.get_running_loop().create_task(self._finish(conn, reason))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return True

    async def _finish(self, conn: Connection, reason: DisconnectReason) -> None:
        try:
            if conn.opening is not None:
                await asyncio.wait([conn.opening])
            if self._after_end is not None:
                await self._after_end(conn)
        except BaseException as error:  # (the hooks run in any case)
            if is_end(error):
                raise
            self._logger.error("leaving_failed", conn_id=conn.id, error=shown(error))
        if conn.announced:
            await self.hooks.tell(Event.DISCONNECT, conn, reason)

    async def settled(self) -> None:
        """Wait until all ends are complete, disconnect hooks included."""
        while self._ending:
            await asyncio.wait(list(self._ending))

    async def close(self) -> None:
        """Cancel the hooks that still run; one that ignores that is abandoned."""
        ending = list(self._ending)
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending, timeout=CANCEL_GRACE)


class BroadcastGroups:
    """The broadcast groups of the rooms that have members on this node."""

    def __init__(self, writer: MessageWriter) -> None:
        self._writer = writer
        self.of: dict[RoomId, BroadcastGroup] = {}
        """Read directly on the hot path; changed only here."""

    def __len__(self) -> int:
        return len(self.of)

    def get(self, room_id: str) -> BroadcastGroup | None:
        """Return a room's group; None if no member is here."""
        return self.of.get(RoomId(room_id))

    def add(self, room_id: RoomId, link: Link) -> None:
        """Add a link to a room's group."""
        group = self.of.get(room_id)
        if group is None:
            group = self.of[room_id] = self._writer.new_group()
        group.add(link)

    def discard(self, room_id: RoomId, link: Link) -> None:
        """Remove a link from a room's group. Idempotent."""
        group = self.of.get(room_id)
        if group is None:
            return
        group.discard(link)
        if not len(group):
            del self.of[room_id]

    def members(self, room_id: str) -> Iterator[Connection]:
        """Iterate over the connections of this node that are in the room."""
        for link in list(self.of.get(RoomId(room_id), ())):
            yield link.owner
