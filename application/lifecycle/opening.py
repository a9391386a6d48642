"""The life of a connection, as the web adapter reports it: handshake, opening, drain, end.

Rules of this file:

1. A connection opens in a fixed order: it is registered, the client is welcomed, the
   ``on_connect`` hooks run, the connection is admitted, stored messages are sent, reading
   begins.
2. A hook that raises refuses the connection.
3. A connection gets messages to rooms, to users and to all only when it is admitted. Only then
   does it count against its user's limit.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Protocol

from eyewall.application.concurrency.tasks import is_end
from eyewall.application.connections.hooks import Event, Hooks
from eyewall.application.connections.registry import CONNECTING, Connection, Connections
from eyewall.application.connections.token_expiry import TokenExpiry
from eyewall.application.delivery.replay import OfflineReplay
from eyewall.application.lifecycle.remote import RemoteConnections
from eyewall.application.lifecycle.resume import Resumer
from eyewall.application.lifecycle.sessions import new_name
from eyewall.application.outbound.sender import Sender
from eyewall.application.ports.logging import shown, told
from eyewall.application.ports.message import EncodedMessage
from eyewall.application.ports.plugins import Authenticator, Logger, MaybeAwaitable, method
from eyewall.application.ports.stores import AdapterFailed
from eyewall.application.ports.transport import ConnectionSlot, Link
from eyewall.application.rooms.membership import RoomMembership
from eyewall.application.rooms.presence import Presences
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.errors import Refused, ShuttingDown, Unauthorized, Unavailable
from eyewall.domain.handshake import Handshake
from eyewall.domain.identity import ConnId, ConnMeta, NodeId
from eyewall.domain.outbox import Offer
from eyewall.domain.report import FailureReason


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server's part of ``system:welcome``: heartbeat in seconds, message size in bytes."""

    heartbeat: float
    max_message_size: int
    server: str


class Received(Protocol):
    """Receives one whole message; never waits and never raises."""

    def __call__(self, link: Link, payload: bytes, *, binary: bool) -> None: ...


class ConnectionLifecycle:
    """Opens and ends connections; implements ``TransportEvents``."""

    def __init__(
        self,
        *,
        node: NodeId,
        connections: Connections,
        received: Received,
        presences: Presences,
        rooms: RoomMembership,
        operations: RemoteConnections,
        expiry: TokenExpiry,
        hooks: Hooks,
        sender: Sender,
        resumer: Resumer,
        logger: Logger,
        authenticator: Authenticator | None,
        welcome: Welcome,
        replays: OfflineReplay | None,
    ) -> None:
        self._node = node
        self._connections = connections
        self._presences = presences
        self._rooms = rooms
        self._operations = operations
        self._expiry = expiry
        self._hooks = hooks
        self._sender = sender
        self._resumer = resumer
        self._logger = logger
        self._authenticate = (
            None if authenticator is None else method(authenticator, "authenticate")
        )
        self._welcome = welcome
        self._replays = replays
        self.received = received

    # --- before there is a connection

    def reserve(self, ip: str | None) -> ConnectionSlot:
        """Count a handshake against the limits; raises ``ShuttingDown`` or ``Overloaded``."""
        return self._connections.reserve(ip)

    def authenticate(self, handshake: Handshake) -> MaybeAwaitable[ConnMeta]:
        """Return the identity of a handshake; raises ``Unauthorized``, ``ShuttingDown``.

        Without an authenticator the identity is anonymous.
        """
        meta = ConnMeta() if self._authenticate is None else self._authenticate(handshake)
        if inspect.isawaitable(meta):
            return self._await_owner(meta, handshake)
        return self._owner(meta, handshake)

    async def _await_owner(
        self, meta: Awaitable[ConnMeta | None], handshake: Handshake
    ) -> ConnMeta:
        return self._owner(await meta, handshake)

    def _owner(self, meta: ConnMeta | None, handshake: Handshake) -> ConnMeta:
        if meta is None:
            raise Unauthorized("the authenticator returned None")
        if self._connections.draining:
            raise ShuttingDown("the node is draining")  # the drain began during the handshake
        agent = handshake.headers.get("User-Agent")
        return replace(
            meta,
            ip=meta.ip or handshake.ip,
            user_agent=meta.user_agent or (agent[:256] if agent else None),
        )

    # --- opening

    async def open(
        self, link: Link, meta: ConnMeta, reservation: ConnectionSlot, *, session: bool
    ) -> bool:
        """Register the link, welcome the client and run the hooks; see ``TransportEvents.open``."""
        if self._connections.draining:
            # The handshake began before the drain, which has closed its connections already.
            reservation.release()
            link.close(DisconnectReason.SERVER_SHUTDOWN)
            return False
        conn_id = ConnId(f"{secrets.token_urlsafe(9)}@{self._node}")
        name = new_name(conn_id) if session else None
        conn = Connection(conn_id, link, meta, self._connections, reservation, name)
        opening = conn.opening = asyncio.get_running_loop().create_future()
        try:
            await self._begin(conn)
        except BaseException:
            self._connections.end(conn, DisconnectReason.INTERNAL_ERROR)
            raise
        finally:
            opening.set_result(None)
            conn.opening = None
        return conn.is_open

    async def _begin(self, conn: Connection) -> None:
        self._connections.add(conn)
        if conn.meta.expires_at is not None:
            self._expiry.watch(conn)
        if conn.session is not None:
            self._sender.enqueue(conn.link, self._welcome_frame(conn))
        stored_first = self._replays is not None and conn.user_id is not None
        if not self._hooks.of(Event.CONNECT) and not stored_first:
            self._connections.admit(conn)  # nothing can refuse it
        await self._appear(conn)
        if conn.is_open:
            await self._run_connect_hooks(conn)
        if conn.is_open:
            await self._admit(conn)

    async def _admit(self, conn: Connection) -> None:
        """Admit the connection; returns when the messages that precede its first read are
        sent."""
        if not conn.is_admitted:
            self._connections.admit(conn)
        positions = self._rooms.admit(conn)
        # No await before this: a message sent to the user now must follow the stored ones.
        stored = None
        if self._replays is not None and conn.user_id is not None:
            stored = self._replays.begin(conn.user_id).written
        if conn.user_id is not None:
            await self._operations.keep_newest(conn.user_id)
        if positions:
            await self._resumer.catch_up(conn, positions)
        if stored is not None:
            await stored.wait()

    def _welcome_frame(self, conn: Connection) -> EncodedMessage:
        data = {
            "conn_id": conn.id,
            "user_id": conn.user_id,
            "node_id": self._node,
            "session": conn.session,
            "heartbeat": self._welcome.heartbeat,
            "max_message_size": self._welcome.max_message_size,
            "server": self._welcome.server,
        }
        return self._sender.encode_notice("system:welcome", "welcome", data)

    async def _appear(self, conn: Connection) -> None:
        try:
            await self._presences.appear(conn)
        except AdapterFailed:
            raise  # a bug, not an outage: the connection ends with 1011
        except Unavailable as error:
            self._logger.warning("presence_not_set", conn_id=conn.id, error=told(error))

    async def _run_connect_hooks(self, conn: Connection) -> None:
        """Run the ``on_connect`` hooks; one that raises refuses the connection."""
        conn.announced = True
        asked = CONNECTING.set(conn)
        try:
            await self._hooks.ask(Event.CONNECT, conn)
        except BaseException as error:
            if is_end(error):
                raise
            self._refuse(conn, error)
        finally:
            CONNECTING.reset(asked)

    def _refuse(self, conn: Connection, error: BaseException) -> None:
        """End a connection whose ``on_connect`` hook raised ``error``.

        The close code tells the client whether to reconnect: it should after a transient
        failure.
        """
        passes = isinstance(error, Refused | Unavailable) and error.retryable
        passes = passes and not isinstance(error, AdapterFailed)
        if passes:
            reason = DisconnectReason.OVERLOADED
        elif isinstance(error, Refused):
            reason = DisconnectReason.POLICY_VIOLATION
        else:
            reason = DisconnectReason.INTERNAL_ERROR
        self._connections.end(conn, reason)
        about = {"conn_id": conn.id, "reason": reason.value, "error": shown(error)}
        if reason is DisconnectReason.INTERNAL_ERROR:
            self._logger.error("on_connect_failed", **about, exc_info=error)
            self._operations.tell_error(conn, error)
        elif passes:
            self._logger.warning("on_connect_put_off", **about)
        else:
            self._logger.info("on_connect_refused", **about)

    # --- events of an open link

    def dropped(self, link: Link, encoded: EncodedMessage, offer: Offer) -> None:
        """Count and report a message that the link had accepted and will not write."""
        conn: Connection | None = link.owner
        if conn is None:
            return
        match offer:
            case Offer.CLOSED:
                self._sender.lost(conn, encoded, conn.fate)
            case Offer.EXPIRED:
                self._sender.lost(conn, encoded, FailureReason.TIMEOUT)
            case _:
                self._sender.dropped(conn, encoded)

    def drained(self, link: Link) -> None:
        """Send the pending gaps, and go on with a resume, when the client has read its queue."""
        conn: Connection | None = link.owner
        if conn is not None and conn.is_open:
            self._sender.send_gaps(conn)
            self._resumer.drained(conn)

    def lost(
        self, link: Link, reason: DisconnectReason, error: BaseException | None = None
    ) -> None:
        """End the connection of a link that has ended; tell the ``on_error`` hooks of ``error``."""
        conn: Connection | None = link.owner
        if conn is None:
            return
        ended = self._connections.end(conn, reason, close_link=False, error=error)
        if ended and error is not None:
            self._operations.tell_error(conn, error)
