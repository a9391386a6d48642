"""The hub, and the context in which a handler gets it. They delegate and decide nothing.

Every ``async`` method of the hub that names a user, a room or a connection acts on the whole
cluster, from any node. The plain methods see this node only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

from eyewall.application.concurrency.threads import call_from_thread
from eyewall.application.connections.hooks import Event
from eyewall.application.connections.registry import Connection
from eyewall.application.hub.arguments import check_options, check_user, several
from eyewall.application.hub.use_cases import AuthorizesAgain, UseCases
from eyewall.application.outbound.failures import Kind
from eyewall.application.outbound.recipients import Filter
from eyewall.application.ports.plugins import Logger
from eyewall.domain.ack_result import AckResult
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.duration import Seconds, count, seconds
from eyewall.domain.envelope import Envelope, Message
from eyewall.domain.errors import Misuse, Unauthorized
from eyewall.domain.history import HistoryPage, position_of
from eyewall.domain.identity import ById, ConnId, ConnMeta, RoomId, UserId, Where
from eyewall.domain.membership import Member, Membership, RoomInfo
from eyewall.domain.presence import PresenceState
from eyewall.domain.report import (
    AckOptions,
    BatchDeliveryReport,
    DeliveryReport,
    Failure,
    HubStats,
    PendingAck,
    SendOptions,
    Target,
    flag,
)
from eyewall.domain.retry import RetryPolicy, SendResult
from eyewall.domain.room import JoinOptions, RoomOptions, RoomRole

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H", bound=Callable[[Failure], Any])


class Context:
    """One message that is being handled. Its sender is the owner of the connection."""

    __slots__ = (
        "_loop",
        "_state",
        "authorization",
        "authorized_meta",
        "conn",
        "hub",
        "message",
        "owner",
        "route",
    )

    def __init__(
        self,
        hub: Hub,
        conn: Connection,
        message: Envelope,
        route: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.hub = hub
        self.conn = conn
        self.message = message
        self.route = route
        """The pattern that matched: bounded in number, so fit for labels."""
        self.owner: ConnMeta | None = None
        """The owner for whom ``auth_required`` or a command let the message pass; None if
        neither has decided."""
        self.authorization: AuthorizesAgain | None = None
        """Asks the access controller again; set by the ``Receiver``."""
        self.authorized_meta = conn.meta
        """The owner whom the access controller allowed to send the message."""
        self._loop = loop
        self._state: dict[str, Any] | None = None

    @property
    def user_id(self) -> UserId | None:
        """The user of the connection that sent the message; None for an anonymous one."""
        return self.conn.meta.user_id

    @property
    def meta(self) -> ConnMeta:
        """The current meta of the connection that sent the message."""
        return self.conn.meta

    @property
    def state(self) -> dict[str, Any]:
        """A dict in which middleware passes values on to the handler."""
        if self._state is None:
            self._state = {}
        return self._state

    def check_owner(self) -> None:
        """Raise ``Unauthorized`` if the connection's user or roles have changed since the
        message was let through: that decision is void."""
        owner, meta = self.owner, self.conn.meta
        if owner is None or owner is meta:
            return
        if owner.user_id != meta.user_id or owner.roles != meta.roles:
            raise Unauthorized("who asks this has changed meanwhile: ask again")

    async def authorize_again(self) -> None:
        """Ask the access controller again if the connection has another owner than the one
        whose message was let through. Raises ``Forbidden``."""
        if self.authorization is None or self.authorized_meta is self.conn.meta:
            return
        waits = self.authorization.again(self.conn, self.message, self.authorized_meta)
        if waits is not None:
            await waits
        # The present owner was let through: nothing has been awaited since.
        self.authorized_meta = self.conn.meta

    async def send(self, topic: str, event: str = "message", data: Any = None) -> None:
        """Send a message to the connection that sent this one.

        Raises ``ConnectionClosed``, ``QueueFull`` or ``SlowConsumer``.
        """
        await self.conn.send(topic, event, data)

    async def send_message(
        self, message: Message, options: SendOptions | None = None
    ) -> DeliveryReport:
        """Send a message to this connection with delivery options; returns what became of it."""
        return await self.hub.deliver(self.conn.id, message, options)

    async def reply(self, data: Any = None) -> None:
        """Send an answer with the request's topic and its id as ``ref``.

        Raises ``ConnectionClosed``, ``QueueFull`` or ``SlowConsumer``.
        """
        await self.hub.reply(self.conn, self.message, data)

    def from_thread(self, fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """From a plain handler's thread, run ``await fn(*args, **kwargs)`` on the loop.

        Blocks the thread until it is done; returns its result or raises its error. Raises
        ``Misuse`` when called on the loop itself: that would be a deadlock.
        """
        return call_from_thread(self._loop, fn, *args, **kwargs)


Handler = Callable[[Context, Envelope[Any]], Awaitable[Any]]
"""The type of ``next``, which a middleware awaits to go on."""


Middleware = Callable[[Context, Envelope[Any], Handler], Awaitable[Any]]
"""A function around handlers: ``async def timing(ctx, msg, next)``."""


OrderingKey = Callable[[Context, Envelope[Any]], Hashable]
"""Returns the key of a message's lane; messages with equal keys are handled in FIFO order."""


class Hub:
    """Rooms, presence and messages of one node and its cluster."""

    def __init__(self, node: UseCases) -> None:
        self._node = node
        self._stop: Callable[[float], Awaitable[None]] | None = None

    def _attach(self, node: UseCases, stop: Callable[[float], Awaitable[None]]) -> None:
        """Delegate to ``node`` from now on; ``stop(timeout)`` drains and stops it. The server
        calls this: a hub that an application keeps outlives a restart of its node."""
        self._node, self._stop = node, stop

    @property
    def logger(self) -> Logger:
        """The logger that was given to the server. It may raise; the server's own log lines go
        through a guard."""
        return self._node.ports.logger

    @property
    def node_id(self) -> str:
        """The id of this node in its cluster."""
        return self._node.config.node_id

    # --- lifecycle; every registration also works as a decorator

    def on_connect(self, hook: F) -> F:
        """Run ``hook(conn)`` for each new connection, before anything is read from it.

        A user comes online with the first of its connections: ``hub.presence`` counts them.

        The connection is closed if the hook raises: with 1008 for ``Refused``, and the client
        stays away; with 1013 for ``Unavailable`` or a refusal that may be retried
        (``Overloaded``, ``RateLimited``), and with 1011 for any other error: the client comes
        back then. Until its hooks have ended, a connection gets only messages that are sent to
        its id, none for a room, a user or everyone.
        """
        return self._node.hooks.add(Event.CONNECT, hook)

    def on_disconnect(self, hook: F) -> F:
        """Run ``hook(conn, reason)`` once for each connection that has ended. ``hub.presence``
        tells whether the user has others, on any node."""
        return self._node.hooks.add(Event.DISCONNECT, hook)

    def on_message(self, hook: F) -> F:
        """Run ``hook(conn, raw)`` on every text (``str``) or binary (``bytes``) message.

        A hook that returns True takes the message: it is not processed any further.
        """
        return self._node.hooks.add(Event.MESSAGE, hook)

    def on_error(self, hook: F) -> F:
        """Run ``hook(conn, error)`` when a connection or a handler fails."""
        return self._node.hooks.add(Event.ERROR, hook)

    def on_join(self, hook: F) -> F:
        """Run ``hook(room_id, conn)`` when a connection has joined a room."""
        return self._node.hooks.add(Event.JOIN, hook)

    def on_leave(self, hook: F) -> F:
        """Run ``hook(room_id, conn, reason)`` when a connection has left a room.

        The reason is ``left``, ``kicked``, ``banned``, ``disconnected`` or ``deleted``.
        """
        return self._node.hooks.add(Event.LEAVE, hook)

    def remove_hook(self, hook: Callable[..., Any]) -> bool:
        """Remove a hook or a failure handler; False if it was not registered."""
        removed = self._node.hooks.remove(hook)
        return self._node.failures.remove(hook) or removed

    # --- failures

    def on_send_failure(self, fn: H) -> H:
        """Run ``fn(failure)`` for every message that was not delivered."""
        return self._node.failures.add(Kind.SEND_FAILURE, fn)

    def on_queue_full(self, fn: H) -> H:
        """Run ``fn(failure)`` for each message that was dropped by a full queue."""
        return self._node.failures.add(Kind.QUEUE_FULL, fn)

    def on_user_offline(self, fn: H) -> H:
        """Run ``fn(failure)`` for each message that was sent to a user without a connection.

        A user who goes offline causes no call by itself: see ``on_disconnect``, ``presence``.
        """
        return self._node.failures.add(Kind.USER_OFFLINE, fn)

    def on_connection_error(self, fn: H) -> H:
        """Run ``fn(failure)`` for each message that was lost when its connection ended."""
        return self._node.failures.add(Kind.CONNECTION_ERROR, fn)

    def on_timeout(self, fn: H) -> H:
        """Run ``fn(failure)`` for each message that was not written or acknowledged in time."""
        return self._node.failures.add(Kind.TIMEOUT, fn)

    # --- routing

    def use(self, *middleware: Middleware) -> None:
        """Put middleware around all handlers, from the next message on."""
        self._node.router.use(*middleware)

    def handle(
        self,
        pattern: str,
        handler: Callable[..., Any],
        *middleware: Middleware,
        version: str | None = None,
        ordering_key: OrderingKey | None = None,
    ) -> None:
        """Register the handler for the topics of ``pattern``; raises ``ValueError``."""
        self._node.router.handle(
            pattern, handler, *middleware, version=version, ordering_key=ordering_key
        )

    # --- this node's connections

    def connection(self, conn_id: ConnId | str) -> Connection | None:
        """The connection of that id; None if this node has none."""
        return self._node.connections.get(conn_id)

    def connections(self) -> Iterator[Connection]:
        """Iterate over the open connections of this node."""
        return iter(self._node.connections)

    def connection_ids(self) -> list[ConnId]:
        """The ids of this node's connections."""
        return self._node.connections.ids()

    def users(self) -> list[UserId]:
        """The users who have a connection to this node."""
        return self._node.connections.roster.users()

    def set_meta(self, conn_id: ConnId | str, **changes: Any) -> ConnMeta:
        """Change the named fields of a connection's meta; returns the new meta. Raises
        ``ConnectionClosed`` if this node has no such connection."""
        return self._node.cluster_state.change_meta(conn_id, changes)

    def get_meta(self, conn_id: ConnId | str) -> ConnMeta | None:
        """The meta of a connection; None if this node has none of that id."""
        conn = self._node.connections.get(conn_id)
        return None if conn is None else conn.meta

    def find_by_tag(self, tag: str) -> list[ConnId]:
        """This node's connections with the tag; empty if there are none."""
        return self._node.connections.roster.of_tag(tag)

    def user_connections(self, user_id: UserId | str) -> list[ConnId]:
        """The user's connections to this node; empty for a user who has none here."""
        return self._node.connections.roster.of_user(UserId(user_id))

    # --- presence

    async def presence(self, user_id: UserId | str) -> PresenceState:
        """A user's presence in the cluster. An unknown user is offline and was never seen."""
        return (await self.presence_many([user_id]))[UserId(user_id)]

    async def presence_many(self, user_ids: Iterable[UserId | str]) -> ById[UserId, PresenceState]:
        """The presence of several users, by user id; each has an entry."""
        await self._node.cluster_state.settled()
        return ById(await self._node.presences.of([UserId(each) for each in several(user_ids)]))

    async def set_typing(
        self, user_id: UserId | str, room_id: RoomId | str, typing: bool = True, ttl: Seconds = 5.0
    ) -> None:
        """Tell the members of the room that the user types, for ``ttl`` seconds, or stopped."""
        await self._node.presences.set_typing(UserId(user_id), RoomId(room_id), typing, ttl)

    # --- rooms

    async def create_room(
        self, room_id: RoomId | str, options: RoomOptions | None = None
    ) -> RoomInfo:
        """Create a room. Raises ``RoomExists`` if it was created with other options."""
        given: object = options
        if given is not None and not isinstance(given, RoomOptions):
            raise ValueError(f"options must be RoomOptions, not {given!r:.80}")
        return await self._node.room_admin.create(RoomId(room_id), options)

    async def update_room(self, room_id: RoomId | str, **changes: Any) -> RoomInfo:
        """Change the named options of a room. Raises ``RoomNotFound`` or ``ValueError``."""
        return await self._node.room_admin.update(RoomId(room_id), changes)

    async def delete_room(self, room_id: RoomId | str) -> None:
        """Delete a room with its options, bans, roles, invites and history. Raises
        ``RoomNotFound``."""
        await self._node.room_admin.delete(RoomId(room_id))

    async def join(
        self,
        room_id: RoomId | str,
        conn_id: ConnId | str,
        options: JoinOptions | None = None,
    ) -> Membership:
        """Add a connection to a room. Idempotent.

        Raises ``ConnectionClosed``, ``JoinForbidden``, ``RoomFull``, ``Forbidden`` or
        ``RoomNotFound``.
        """
        return await self._node.operations.join(RoomId(room_id), conn_id, options)

    async def leave(self, room_id: RoomId | str, conn_id: ConnId | str) -> bool:
        """Remove a connection from a room; False if it was not in, or there is no such room or
        connection."""
        return await self._node.operations.leave(RoomId(room_id), conn_id)

    async def leave_all(self, conn_id: ConnId | str) -> int:
        """Remove a connection from all rooms; returns from how many, 0 for an unknown one."""
        return await self._node.operations.leave_all(conn_id)

    async def invite(
        self, room_id: RoomId | str, user_id: UserId | str, by: UserId | str | None = None
    ) -> None:
        """Let a user join an invite-only room. ``by`` is noted in the log.

        Creates the room if there is none, or raises ``RoomNotFound`` (``implicit_rooms=False``).
        """
        await self._node.room_admin.invite(RoomId(room_id), UserId(user_id))
        self._node.logger.info("invited", room=room_id, user_id=user_id, by=by)

    async def revoke_invite(self, room_id: RoomId | str, user_id: UserId | str) -> None:
        """Take an invite back. Without one, or without such a room, nothing changes."""
        await self._node.room_admin.revoke_invite(RoomId(room_id), UserId(user_id))

    async def set_role(self, room_id: RoomId | str, user_id: UserId | str, role: RoomRole) -> None:
        """Give a user a role in a room, now and whenever it joins.

        Creates the room if there is none, or raises ``RoomNotFound`` (``implicit_rooms=False``).
        """
        await self._node.room_admin.set_role(RoomId(room_id), UserId(user_id), role)

    async def kick(self, room_id: RoomId | str, user_id: UserId | str, reason: str = "") -> int:
        """Remove all of a user's connections from a room; returns how many.

        0: the user was not in, or there is no such room or user; nothing changes then. Each
        client gets ``system:kicked`` with the ``reason``; it may join again.
        """
        return await self._node.room_admin.kick(RoomId(room_id), UserId(user_id), reason)

    async def kick_user_from_room(
        self, user_id: UserId | str, room_id: RoomId | str, reason: str = ""
    ) -> int:
        """``kick`` with the user as the first argument."""
        return await self.kick(room_id, user_id, reason)

    async def ban(
        self, room_id: RoomId | str, user_id: UserId | str, duration: Seconds | None = None
    ) -> int:
        """Remove a user from a room and refuse its joins, for ``duration`` seconds or without
        end; returns how many connections were in.

        0: the user was not in. An unknown user is banned, too.
        Creates the room if there is none, or raises ``RoomNotFound`` (``implicit_rooms=False``).
        """
        return await self._node.room_admin.ban(RoomId(room_id), UserId(user_id), duration)

    async def unban(self, room_id: RoomId | str, user_id: UserId | str) -> None:
        """End a ban. Without a ban, or without such a room, nothing changes."""
        await self._node.room_admin.unban(RoomId(room_id), UserId(user_id))

    async def members(self, room_id: RoomId | str) -> list[Member]:
        """The members of a room in the order of joining; all anonymous connections count as one
        member without a user. Empty for an unknown room."""
        await self._node.cluster_state.settled()
        return await self._node.room_admin.members(RoomId(room_id))

    async def room(self, room_id: RoomId | str) -> RoomInfo | None:
        """A room's options and figures; None if there is none of that id."""
        return await self._node.room_admin.room(RoomId(room_id))

    async def rooms(self) -> list[RoomId]:
        """The rooms with members, and the created rooms without: those that were never joined,
        and those with ``auto_cleanup=False``."""
        return await self._node.room_admin.rooms()

    async def history(
        self, room_id: RoomId | str, since: Any = None, limit: int = 100
    ) -> HistoryPage:
        """The first ``limit`` messages after ``since``, oldest first; for None the newest.

        ``since`` is anything with an epoch and an offset: a message's ``stream``, a
        ``HistoryPage``, ``Membership`` or ``RoomInfo``, a mapping, or a pair of the two.
        Trimmed messages are left out. For a position of another epoch the page is empty: compare
        its ``epoch``. Raises ``RoomNotFound``, and ``ValueError`` for a bad position.
        """
        at = None if since is None else position_of(since)
        return await self._node.room_history.page(RoomId(room_id), at, count(limit, "limit"))

    # --- messages to many

    async def broadcast(self, topic: str, event: str = "message", data: Any = None) -> int:
        """Send to every connection; returns how many of them are on this node."""
        return await self._node.fanout.to_all(Message(topic, event, data))

    async def broadcast_room(
        self,
        room_id: RoomId | str,
        topic: str,
        event: str = "message",
        data: Any = None,
        *,
        history: bool = True,
    ) -> int:
        """Send to a room; returns for how many members on this node the message is meant: 0 for
        an unknown room. A drop does not lower it, ``on_send_failure`` hears of that.

        ``history=False`` is for messages that are worthless later, such as a read receipt.
        """
        keep = flag(history, "history")
        message = Message(topic, event, data)
        return await self._node.publisher.to_room(RoomId(room_id), message, keep=keep)

    async def broadcast_text(self, text: str) -> int:
        """Send a raw text frame, without an envelope, to every connection; returns how many of
        them are on this node."""
        return await self._node.fanout.text_to_all(text)

    async def broadcast_with_filter(
        self, message: Message, filter: Filter | Where, options: SendOptions | None = None
    ) -> int:
        """Send to the connections that ``filter`` matches: a callable on ``ConnMeta`` selects on
        this node, a ``Where`` in the cluster. Returns how many matched on this node.

        With ``require_ack`` it waits for the acks of all of them.
        """
        if options is not None and options.require_ack:
            return await self._node.messages.to_fitting_acked(filter, message, options)
        return await self._node.fanout.to_fitting(message, filter)

    async def emit_to_room(
        self, room_id: RoomId | str, message: Message, options: SendOptions | None = None
    ) -> int:
        """Send to a room; returns what ``broadcast_room`` returns. With ``require_ack`` it waits
        for the acks of all members; ``emit_with_ack`` names them. With ``history=False`` the
        message stays out of the room's history."""
        if options is not None and options.require_ack:
            return await self._node.messages.to_room_acked(RoomId(room_id), message, options)
        keep = options is None or options.history
        return await self._node.publisher.to_room(RoomId(room_id), message, keep=keep)

    async def emit_to_room_except(
        self,
        room_id: RoomId | str,
        conn_ids: Iterable[ConnId | str] | ConnId | str,
        message: Message,
        options: SendOptions | None = None,
    ) -> int:
        """Send to a room, except to ``conn_ids``; unknown ids are ignored. The options are those
        of ``emit_to_room``."""
        skip = [conn_ids] if isinstance(conn_ids, str) else list(conn_ids)
        if options is not None and options.require_ack:
            return await self._node.messages.to_room_acked(RoomId(room_id), message, options, skip)
        keep = options is None or options.history
        return await self._node.publisher.to_room(RoomId(room_id), message, skip=skip, keep=keep)

    # --- messages to some

    async def send_to_conn(
        self, conn_id: ConnId | str, topic: str, event: str = "message", data: Any = None
    ) -> DeliveryReport:
        """Send to one connection. An unknown connection is reported as failed, not raised."""
        return await self._node.messages.to_conn(conn_id, Message(topic, event, data))

    async def send_text_to_conn(self, conn_id: ConnId | str, text: str) -> DeliveryReport:
        """Send a raw text frame, without an envelope, to one connection. An unknown connection
        is reported as failed."""
        return await self._node.messages.text_to_conn(conn_id, text)

    async def deliver(
        self, conn_id: ConnId | str, message: Message, options: SendOptions | None = None
    ) -> DeliveryReport:
        """Send a message to one connection with delivery options. An unknown connection is
        reported as failed."""
        return await self._node.messages.to_conn(conn_id, message, options)

    async def send_to_user(
        self, user_id: UserId | str, message: Message, options: SendOptions | None = None
    ) -> BatchDeliveryReport:
        """Send to all connections of a user. An offline user is reported, not raised.

        Raises ``Misuse`` for ``offline="store"`` on a server without an offline store.
        """
        check_options(options, SendOptions, "options")
        return await self._node.offline.to_users([check_user(user_id)], message, options)

    async def send_to_users(
        self,
        user_ids: Iterable[UserId | str],
        message: Message,
        options: SendOptions | None = None,
    ) -> BatchDeliveryReport:
        """Send to all connections of all users, at the same time. Each user who is offline, or
        unknown, is reported.

        Raises what ``send_to_user`` raises.
        """
        check_options(options, SendOptions, "options")
        return await self._node.offline.to_users(several(user_ids), message, options)

    async def emit_with_ack(
        self, target: Target, message: Message, options: AckOptions | None = None
    ) -> AckResult:
        """Send, and wait for the acks of all connections of ``target``, or the time-out.

        The result names the connections that acked, that refused, and that did not answer. An
        unknown user or connection counts as one expected; an unknown room has no members.
        With ``history=False`` the message stays out of a room's history.

        With ``require_all`` it raises ``AckTimeout``, which has the result, if an answer did not
        come in time. A nack, a closed connection and an offline user raise nothing.
        """
        check_options(options, AckOptions, "options")
        return await self._node.offline.with_ack(target, message, options)

    async def request(self, conn_id: ConnId | str, message: Message, timeout: Seconds = 5.0) -> Any:
        """Send a request to a client and wait ``timeout`` seconds at most; returns the
        ``result`` of its ack.

        Raises ``Nacked``, ``AckTimeout`` or ``ConnectionClosed``; and ``Misuse`` at once in
        the connection's own ``on_connect`` hook: nothing is read before that hook has ended.
        """
        wait = seconds(timeout, "timeout", positive=True)
        return await self._node.messages.request(conn_id, message, wait)

    async def reply(self, conn: Connection, request: Envelope, data: Any) -> None:
        """Answer a message, with its topic and its id as ``ref``."""
        await self._node.messages.reply(conn, request, data)

    async def send_to_user_with_retry(
        self,
        user_id: UserId | str,
        message: Message,
        policy: RetryPolicy | None = None,
        options: SendOptions | None = None,
    ) -> SendResult:
        """Send to all connections of a user, and retry under the same id with those that did
        not take the message. Never raises for a message that was not delivered.

        Asks for an ack only when ``options`` do. ``success`` means that at least one
        connection took it, or that it was stored.
        """
        check_options(message, Message, "a message")
        check_options(policy, RetryPolicy, "policy")
        check_options(options, SendOptions, "options")
        return await self._node.retries.send(check_user(user_id), message, policy, options)

    def pending_acks(self, conn_id: ConnId | str) -> list[PendingAck]:
        """The messages in flight to a connection of this node that wait for its ack, oldest
        first; empty for any other."""
        return self._node.pending_acks.pending(ConnId(conn_id))

    # --- operations

    async def disconnect_user(
        self,
        user_id: UserId | str,
        reason: DisconnectReason | str = DisconnectReason.DISCONNECTED,
    ) -> int:
        """Close all of a user's connections; returns how many: 0 for a user who has none."""
        return await self._node.operations.disconnect_user(user_id, DisconnectReason(reason))

    async def disconnect_conn(
        self,
        conn_id: ConnId | str,
        reason: DisconnectReason | str = DisconnectReason.DISCONNECTED,
    ) -> bool:
        """Close a connection; False if there is none of that id."""
        return await self._node.operations.disconnect_conn(conn_id, DisconnectReason(reason))

    async def shutdown(self, timeout: Seconds = 10.0) -> None:
        """Drain and stop the node, within ``timeout`` seconds."""
        if self._stop is None:
            raise Misuse("the hub belongs to no server")
        await self._stop(seconds(timeout, "timeout"))

    def stats(self) -> HubStats:
        """The counters of this node."""
        node = self._node
        users = node.connections.roster.user_count
        return node.stats.snapshot(
            connections=len(node.connections), users=users, rooms=len(node.broadcast_groups)
        )

    def reset_stats(self) -> None:
        """Set the counters to 0; connections, users and rooms are not counters and stay."""
        self._node.stats.reset()
