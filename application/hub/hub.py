"""The hub, and the context in which a handler gets it. They delegate and decide nothing.

Every awaited method of the hub that names a user, a room or a connection means the whole
cluster, whichever node is asked. The plain ones see this node.
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
    """One message being handled. Who sent it comes from the connection."""

    __slots__ = (
        "_loop",
        "_state",
        "admission",
        "admitted",
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
        """For whom ``auth_required`` or a command has decided that the message may go on;
        None where nobody did."""
        self.admission: AuthorizesAgain | None = None
        """What lets messages through; set by who takes this one in."""
        self.admitted = conn.meta
        """Whom the access controller has let send it."""
        self._loop = loop
        self._state: dict[str, Any] | None = None

    @property
    def user_id(self) -> UserId | None:
        """The user that sent it; None for an anonymous connection."""
        return self.conn.meta.user_id

    @property
    def meta(self) -> ConnMeta:
        """What is known of the connection that sent it, as it is now."""
        return self.conn.meta

    @property
    def state(self) -> dict[str, Any]:
        """What middleware passes on to the handler."""
        if self._state is None:
            self._state = {}
        return self._state

    def check_owner(self) -> None:
        """Raise ``Unauthorized`` if the connection is not, any more, whose it was when the
        message was let through: what was decided for that one is void."""
        owner, meta = self.owner, self.conn.meta
        if owner is None or owner is meta:
            return
        if owner.user_id != meta.user_id or owner.roles != meta.roles:
            raise Unauthorized("who asks this has changed meanwhile: ask again")

    async def admit_again(self) -> None:
        """Where the connection has become another's since the access controller let the
        message through: ask it for that one. Raises ``Forbidden``."""
        if self.admission is None or self.admitted is self.conn.meta:
            return
        waits = self.admission.again(self.conn, self.message, self.admitted)
        if waits is not None:
            await waits
        # Whoever it is by now was let through: nothing waits in between.
        self.admitted = self.conn.meta

    async def send(self, topic: str, event: str = "message", data: Any = None) -> None:
        """Send a message to the connection that sent this one.

        Raises ``ConnectionClosed``, ``QueueFull`` or ``SlowConsumer``.
        """
        await self.conn.send(topic, event, data)

    async def send_message(
        self, message: Message, options: SendOptions | None = None
    ) -> DeliveryReport:
        """Send a message to this connection with delivery options; see the report."""
        return await self.hub.deliver(self.conn.id, message, options)

    async def reply(self, data: Any = None) -> None:
        """Send an answer: topic and ``ref`` are the request's.

        Raises ``ConnectionClosed``, ``QueueFull`` or ``SlowConsumer``.
        """
        await self.hub.reply(self.conn, self.message, data)

    def from_thread(self, fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """From a plain handler's thread, run ``await fn(*args, **kwargs)`` on the loop.

        Blocks the thread; returns the result or raises. Raises ``Misuse`` on the loop
        itself, which would wait for itself for ever.
        """
        return call_from_thread(self._loop, fn, *args, **kwargs)


Handler = Callable[[Context, Envelope[Any]], Awaitable[Any]]
"""What a middleware gets as ``next``."""


Middleware = Callable[[Context, Envelope[Any], Handler], Awaitable[Any]]
"""What goes around handlers: ``async def timing(ctx, msg, next)``."""


OrderingKey = Callable[[Context, Envelope[Any]], Hashable]
"""Names the lane of a message; messages with equal keys are handled one after another."""


class Hub:
    """Rooms, presence and messages of one node and its cluster."""

    def __init__(self, node: UseCases) -> None:
        self._node = node
        self._stop: Callable[[float], Awaitable[None]] | None = None

    def _attach(self, node: UseCases, stop: Callable[[float], Awaitable[None]]) -> None:
        """Call ``node`` from now on, and end it by ``stop``. For the server that the hub
        belongs to: a hub that an application keeps outlives a restart of its node."""
        self._node, self._stop = node, stop

    @property
    def logger(self) -> Logger:
        """The logger that the server was given. It may raise; the server's own lines go
        through a guard."""
        return self._node.ports.logger

    @property
    def node_id(self) -> str:
        """What this node is called in its cluster."""
        return self._node.config.node_id

    # --- lifecycle; every registration also works as a decorator

    def on_connect(self, hook: F) -> F:
        """Run ``hook(conn)`` for each new connection, before anything is read from it.

        A user has come with the first of its connections: ``hub.presence`` counts them.

        A hook that raises ``Refused`` ends the connection with 1008, and the client stays
        away; with 1013 if it is ``Unavailable`` or a refusal that may be retried
        (``Overloaded``, ``RateLimited``), and with 1011 for whatever else it raises: the client
        comes back then. Until its hooks have let it in, a connection gets what is sent to it by
        name, and nothing that is for many, for a room or for a user.
        """
        return self._node.hooks.add(Event.CONNECT, hook)

    def on_disconnect(self, hook: F) -> F:
        """Run ``hook(conn, reason)`` once for each connection that has ended. ``hub.presence``
        says whether the user has others, on any node."""
        return self._node.hooks.add(Event.DISCONNECT, hook)

    def on_message(self, hook: F) -> F:
        """Run ``hook(conn, raw)`` on every text (``str``) or binary (``bytes``) message.

        When it returns True it has taken the message, and nothing else happens with it.
        """
        return self._node.hooks.add(Event.MESSAGE, hook)

    def on_error(self, hook: F) -> F:
        """Run ``hook(conn, error)`` when something goes wrong with a connection or handler."""
        return self._node.hooks.add(Event.ERROR, hook)

    def on_join(self, hook: F) -> F:
        """Run ``hook(room_id, conn)`` when a connection is in a room."""
        return self._node.hooks.add(Event.JOIN, hook)

    def on_leave(self, hook: F) -> F:
        """Run ``hook(room_id, conn, reason)`` when it is out again.

        The reason is ``left``, ``kicked``, ``banned``, ``disconnected`` or ``deleted``.
        """
        return self._node.hooks.add(Event.LEAVE, hook)

    def remove_hook(self, hook: Callable[..., Any]) -> bool:
        """Take back a hook or a failure handler; False if it was not registered."""
        removed = self._node.hooks.remove(hook)
        return self._node.failures.remove(hook) or removed

    # --- failures

    def on_send_failure(self, fn: H) -> H:
        """Run ``fn(failure)`` for every message that did not arrive."""
        return self._node.failures.add(Kind.SEND_FAILURE, fn)

    def on_queue_full(self, fn: H) -> H:
        """Run it for what a full queue did not take."""
        return self._node.failures.add(Kind.QUEUE_FULL, fn)

    def on_user_offline(self, fn: H) -> H:
        """Run ``fn(failure)`` for each message that was sent to a user without a connection.

        A user who goes offline causes no call by itself: see ``on_disconnect``, ``presence``.
        """
        return self._node.failures.add(Kind.USER_OFFLINE, fn)

    def on_connection_error(self, fn: H) -> H:
        """Run it for what a connection's end lost."""
        return self._node.failures.add(Kind.CONNECTION_ERROR, fn)

    def on_timeout(self, fn: H) -> H:
        """Run it for what was not written or acknowledged in time."""
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
        return self._node.cluster_state.change_meta(conn_id, changes)

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
        """Whether the user is online, anywhere. An unknown user is offline and was never seen."""
        return (await self.presence_many([user_id]))[UserId(user_id)]

    async def presence_many(self, user_ids: Iterable[UserId | str]) -> ById[UserId, PresenceState]:
        """The same for several users, each of whom has an entry."""
        await self._node.cluster_state.settled()
        return ById(await self._node.presences.of([UserId(each) for each in several(user_ids)]))

    async def set_typing(
        self, user_id: UserId | str, room_id: RoomId | str, typing: bool = True, ttl: Seconds = 5.0
    ) -> None:
        """Tell the members of the room that the user types, for ``ttl`` seconds, or has stopped."""
        await self._node.presences.set_typing(UserId(user_id), RoomId(room_id), typing, ttl)

    # --- rooms

    async def create_room(
        self, room_id: RoomId | str, options: RoomOptions | None = None
    ) -> RoomInfo:
        """Make a room. Raises ``RoomExists`` if it was created with other options."""
        given: object = options
        if given is not None and not isinstance(given, RoomOptions):
            raise ValueError(f"options must be RoomOptions, not {given!r:.80}")
        return await self._node.room_admin.create(RoomId(room_id), options)

    async def update_room(self, room_id: RoomId | str, **changes: Any) -> RoomInfo:
        """Change some of a room's options. Raises ``RoomNotFound``."""
        return await self._node.room_admin.update(RoomId(room_id), changes)

    async def delete_room(self, room_id: RoomId | str) -> None:
        """Forget a room with all that it keeps. Raises ``RoomNotFound``."""
        await self._node.room_admin.delete(RoomId(room_id))

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
        """Take a connection out of all rooms; returns of how many, 0 if it is not there."""
        return await self._node.operations.leave_all(conn_id)

    async def invite(
        self, room_id: RoomId | str, user_id: UserId | str, by: UserId | str | None = None
    ) -> None:
        """Let a user into an invite-only room. ``by`` is noted in the log.

        Makes the room if there is none, or raises ``RoomNotFound`` (``implicit_rooms=False``).
        """
        await self._node.room_admin.invite(RoomId(room_id), UserId(user_id))
        self._node.logger.info("invited", room=room_id, user_id=user_id, by=by)

    async def revoke_invite(self, room_id: RoomId | str, user_id: UserId | str) -> None:
        """Take an invite back. Without one, or without such a room, nothing changes."""
        await self._node.room_admin.revoke_invite(RoomId(room_id), UserId(user_id))

    async def set_role(self, room_id: RoomId | str, user_id: UserId | str, role: RoomRole) -> None:
        """Give a user a role in a room, now and whenever it joins.

        Makes the room if there is none, or raises ``RoomNotFound`` (``implicit_rooms=False``).
        """
        await self._node.room_admin.set_role(RoomId(room_id), UserId(user_id), role)

    async def kick(self, room_id: RoomId | str, user_id: UserId | str, reason: str = "") -> int:
        """Take all of a user's connections out of a room; returns how many.

        0 means that the user was not in, or that there is no such room or user: nothing
        changes then. Each client gets ``system:kicked`` with the ``reason``; it may join again.
        """
        return await self._node.room_admin.kick(RoomId(room_id), UserId(user_id), reason)

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

        0 means that the user was not in; an unknown user is banned all the same.
        Makes the room if there is none, or raises ``RoomNotFound`` (``implicit_rooms=False``).
        """
        return await self._node.room_admin.ban(RoomId(room_id), UserId(user_id), duration)

    async def unban(self, room_id: RoomId | str, user_id: UserId | str) -> None:
        """End a ban. Without one, or without such a room, nothing changes."""
        await self._node.room_admin.unban(RoomId(room_id), UserId(user_id))

    async def members(self, room_id: RoomId | str) -> list[Member]:
        """The users of a room in the order of joining, all anonymous connections as one without
        a user; empty for a room that is not there."""
        await self._node.cluster_state.settled()
        return await self._node.room_admin.members(RoomId(room_id))

    async def room(self, room_id: RoomId | str) -> RoomInfo | None:
        """What is known of a room; None if there is none of that id."""
        return await self._node.room_admin.room(RoomId(room_id))

    async def rooms(self) -> list[RoomId]:
        """Rooms with members, created ones that nobody has joined yet, and created ones
        that are not cleaned up."""
        return await self._node.room_admin.rooms()

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
        return await self._node.room_history.page(RoomId(room_id), at, count(limit, "limit"))

    # --- messages to many

    async def broadcast(self, topic: str, event: str = "message", data: Any = None) -> int:
        """Send to every connection; returns how many of this node were meant."""
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
        """Send to a room; returns how many connections of this node were meant: 0 for a room
        that is not there, or that has its members at other nodes.

        ``history=False`` is for what nobody has to see later, such as a read receipt: it takes
        no place in the history of a room that keeps one.
        """
        keep = flag(history, "history")
        message = Message(topic, event, data)
        return await self._node.publisher.to_room(RoomId(room_id), message, keep=keep)

    async def broadcast_text(self, text: str) -> int:
        """Send a raw text frame, without an envelope, to every connection."""
        return await self._node.fanout.text_to_all(text)

    async def broadcast_with_filter(
        self, message: Message, filter: Filter | Where, options: SendOptions | None = None
    ) -> int:
        """Send to whom ``filter`` fits: a callable on ``ConnMeta`` means this node, a
        ``Where`` the cluster. Returns how many of this node were meant.

        With ``require_ack`` it waits for the acks of all of them.
        """
        if options is not None and options.require_ack:
            return await self._node.messages.to_fitting_acked(filter, message, options)
        return await self._node.fanout.to_fitting(message, filter)

    async def emit_to_room(
        self, room_id: RoomId | str, message: Message, options: SendOptions | None = None
    ) -> int:
        """Send to a room; returns as ``broadcast_room``. With ``require_ack`` it waits for the
        acks of all members; ``emit_with_ack`` says whose came. With ``history=False`` the
        room does not keep it."""
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
        """Send to a room, except to some connections; ids that are not there are no error. The
        options are those of ``emit_to_room``."""
        skip = [conn_ids] if isinstance(conn_ids, str) else list(conn_ids)
        if options is not None and options.require_ack:
            return await self._node.messages.to_room_acked(RoomId(room_id), message, options, skip)
        keep = options is None or options.history
        return await self._node.publisher.to_room(RoomId(room_id), message, skip=skip, keep=keep)

    # --- messages to some

    async def send_to_conn(
        self, conn_id: ConnId | str, topic: str, event: str = "message", data: Any = None
    ) -> DeliveryReport:
        """Send to one connection. One that is not there is reported as failed, not raised."""
        return await self._node.messages.to_conn(conn_id, Message(topic, event, data))

    async def send_text_to_conn(self, conn_id: ConnId | str, text: str) -> DeliveryReport:
        """Send a raw text frame, without an envelope, to one connection. One that is not there
        is reported as failed."""
        return await self._node.messages.text_to_conn(conn_id, text)

    async def deliver(
        self, conn_id: ConnId | str, message: Message, options: SendOptions | None = None
    ) -> DeliveryReport:
        """Send a message to one connection with delivery options. One that is not there is
        reported as failed."""
        return await self._node.messages.to_conn(conn_id, message, options)

    async def send_to_user(
        self, user_id: UserId | str, message: Message, options: SendOptions | None = None
    ) -> BatchDeliveryReport:
        """Send to all connections of a user. A user who is away is reported, not raised.

        Raises ``Misuse`` if it is to be stored and the server has no store.
        """
        check_options(options, SendOptions, "options")
        return await self._node.offline.to_users([check_user(user_id)], message, options)

    async def send_to_users(
        self,
        user_ids: Iterable[UserId | str],
        message: Message,
        options: SendOptions | None = None,
    ) -> BatchDeliveryReport:
        """Send to all connections of all users, at the same time. Each user who is away, or whom
        nobody knows, is reported.

        Raises as ``send_to_user``.
        """
        check_options(options, SendOptions, "options")
        return await self._node.offline.to_users(several(user_ids), message, options)

    async def emit_with_ack(
        self, target: Target, message: Message, options: AckOptions | None = None
    ) -> AckResult:
        """Send, and wait for the acks of all whom ``target`` means, or the time-out.

        The result names who has acked, who has refused, and of whom no answer came. A user or
        connection that is not there counts as one that was expected; a room that is not there has
        nobody. With ``history=False`` a room does not keep the message.

        With ``require_all`` it raises ``AckTimeout``, which has the result, if an answer did not
        come in time. A nack, a closed connection and a user who is away raise nothing.
        """
        check_options(options, AckOptions, "options")
        return await self._node.offline.with_ack(target, message, options)

    async def request(self, conn_id: ConnId | str, message: Message, timeout: Seconds = 5.0) -> Any:
        """Ask a client; returns the ``result`` of its ack.

        Raises ``Nacked``, ``AckTimeout`` or ``ConnectionClosed``; and ``Misuse`` at once when
        a connection's own ``on_connect`` hook asks it, which is not read before that has ended.
        """
        patience = seconds(timeout, "timeout", positive=True)
        return await self._node.messages.request(conn_id, message, patience)

    async def reply(self, conn: Connection, request: Envelope, data: Any) -> None:
        """Answer a message: topic and ``ref`` are the request's."""
        await self._node.messages.reply(conn, request, data)

    async def send_to_user_with_retry(
        self,
        user_id: UserId | str,
        message: Message,
        policy: RetryPolicy | None = None,
        options: SendOptions | None = None,
    ) -> SendResult:
        """Send to all connections of a user, again and again to those that have not
        taken it, under one id. Never raises for a message that did not arrive.

        Asks for an ack only when ``options`` do. ``success`` means that at least one
        connection took it, or that it was stored.
        """
        check_options(message, Message, "a message")
        check_options(policy, RetryPolicy, "policy")
        check_options(options, SendOptions, "options")
        return await self._node.retries.send(check_user(user_id), message, policy, options)

    def pending_acks(self, conn_id: ConnId | str) -> list[PendingAck]:
        """What waits for an ack of a connection of this node, oldest first; empty for any other."""
        return self._node.pending_acks.pending(ConnId(conn_id))

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
        users = node.connections.roster.user_count
        return node.stats.snapshot(
            connections=len(node.connections), users=users, rooms=len(node.broadcast_groups)
        )

    def reset_stats(self) -> None:
        """Begin to count anew; what is there (connections, users, rooms) is not counted."""
        self._node.stats.reset()
