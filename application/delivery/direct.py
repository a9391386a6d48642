"""Messages to named recipients: a connection, users, a room with acks. Each has a report.

The recipients are located once. A remote connection is reported like a local one if its ack
was asked for, else as ``FORWARDED``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from eyewall.application.cluster.peers import Cluster
from eyewall.application.cluster.protocol import DirectMessage, DirectText
from eyewall.application.concurrency.locks import KeyedLock
from eyewall.application.connections.registry import CONNECTING, Connection, Connections
from eyewall.application.delivery.acked import AckedDelivery
from eyewall.application.delivery.locator import Recipient, RecipientLocator
from eyewall.application.delivery.pending_acks import Outcome, is_unknown
from eyewall.application.outbound.recipients import (
    ANY_RECIPIENT,
    Filter,
    RecipientFilter,
    checked,
)
from eyewall.application.outbound.sender import Addressee, Sender
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.message import Codec, EncodedMessage, read_message, read_text
from eyewall.domain.ack_result import AckResult
from eyewall.domain.delivery import Plan
from eyewall.domain.duration import seconds
from eyewall.domain.envelope import Envelope, Message
from eyewall.domain.errors import (
    AckTimeout,
    ConnectionClosed,
    EyewallError,
    Misuse,
    ShuttingDown,
    Unavailable,
    UserOffline,
)
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId, Where
from eyewall.domain.report import (
    STORE,
    AckOptions,
    BatchDeliveryReport,
    DeliveryReport,
    DeliveryStatus,
    FailureReason,
    SendOptions,
    Target,
    TargetKind,
    ack_result,
)


class DirectMessages:
    """Sends to recipients by id, and reports what became of the messages."""

    def __init__(
        self,
        *,
        node: NodeId,
        cluster: Cluster,
        connections: Connections,
        locator: RecipientLocator,
        acks: AckedDelivery,
        sender: Sender,
        codec: Codec,
        clock: Clock,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._connections = connections
        self._locate = locator
        self._acks = acks
        self._sender = sender
        self._codec = codec
        self._clock = clock
        self._ordering = KeyedLock()
        cluster.on_event(DirectMessage, self._take_send)
        cluster.on_event(DirectText, self._take_text)

    # --- the use cases

    async def to_conn(
        self, conn_id: str, message: Message, options: SendOptions | None = None
    ) -> DeliveryReport:
        """Send to one connection on any node; an unknown one is reported as failed.

        Raises ``ValueError`` for ``offline="store"``, and ``Misuse`` for an ack of a connection
        in its own ``on_connect`` hook.
        """
        _check(options)
        if options is not None and options.require_ack:
            _check_readable(conn_id)
        acked = _not_acked(options)
        if not self._cluster.running:
            return await self._not_running(message, conn_id, Addressee(ConnId(conn_id)), acked)
        recipient = await self._locate.conn(conn_id)
        if not recipient.by_node:
            return await self._not_connected(self._sender.encode(message), conn_id, acked=acked)
        ((_, report),) = await self._send([recipient], message, options or SendOptions())
        return report

    async def to_users(
        self,
        user_ids: Iterable[str],
        message: Message,
        options: SendOptions | None = None,
        *,
        skip: Collection[str] = (),
    ) -> BatchDeliveryReport:
        """Send to all connections of all users, except ``skip``; a user without a connection has
        one report."""
        pairs = await self.to_each(user_ids, message, options or SendOptions(), skip=skip)
        return BatchDeliveryReport.of(report for _, report in pairs)

    async def to_each(
        self,
        user_ids: Iterable[str],
        message: Message,
        options: SendOptions,
        *,
        skip: Collection[str] = (),
    ) -> list[tuple[str, DeliveryReport]]:
        """Send to all connections of all users, except ``skip``; returns the reports, each with
        its user."""
        users = [UserId(user_id) for user_id in dict.fromkeys(user_ids)]
        acked = _not_acked(options)
        if not self._cluster.running:
            return [
                (user, await self._not_running(message, user, Addressee(user_id=user), acked))
                for user in users
            ]
        where = await self._locate.users(users)
        here = [r.without(skip) for r in where if r.by_node]
        reports = await self._send(here, message, options)
        for away in (UserId(r.name) for r in where if not r.by_node):
            error = UserOffline(f"{away} has no connection")
            encoded = self._sender.encode(message, recipient=away)
            missed = Addressee(user_id=away)
            await self._sender.report(encoded, missed, FailureReason.USER_OFFLINE, error)
            reports.append((away, _failed(away, error, missed, acked)))
        return reports

    async def with_ack(
        self, target: Target, message: Message, options: AckOptions | None = None
    ) -> AckResult:
        """Send to all connections of ``target``, and wait for all acks or the time-out.

        Raises ``AckTimeout`` under ``require_all`` if an answer did not come in time,
        ``ValueError`` for a bad target, and ``Misuse`` as ``to_conn`` does.
        """
        given: object = target
        if not isinstance(given, Target):
            raise ValueError(
                f"the target must be a Target, such as Target.user(id), not {given!r:.80}"
            )
        if target.kind is TargetKind.CONN:
            _check_readable(target.id)
        chosen = options or AckOptions()
        if not self._cluster.running:
            report = await self._not_running(message, target.id, _missed(target), acked=False)
            return ack_result([report], timed_out=False)
        recipient = await self._locate.target(target)
        if not recipient.by_node and target.kind is not TargetKind.ROOM:
            return await self._no_recipient(target, message)
        plan = Plan(seconds(chosen.timeout, "timeout"), 0, 0.0, None)
        if target.kind is TargetKind.ROOM:
            found = await self._acks.to_room(recipient, message, plan, keep=chosen.history)
        else:
            found = await self._acks.deliver([recipient], message, plan)
        outcomes = [outcome for _, outcome in found]
        late = sum(_is_late(outcome) for outcome in outcomes)
        result = ack_result((outcome.report() for outcome in outcomes), timed_out=late > 0)
        if late and chosen.require_all:
            text = f"{late} of {len(outcomes)} did not acknowledge in time"
            raise AckTimeout(text, result=result)
        return result

    async def request(self, conn_id: str, message: Message, timeout: float) -> Any:
        """Send a request to a client; returns the ``result`` of its ack, which has to come
        within ``timeout`` seconds.

        Raises ``Nacked``, ``AckTimeout``, ``ConnectionClosed``, and ``Misuse`` as ``to_conn``
        does.
        """
        _check_readable(conn_id)
        recipient = await self._locate.conn(conn_id)
        if not recipient.by_node:
            raise ConnectionClosed(f"{conn_id} is not connected")
        plan = Plan(timeout, 0, 0.0, None)
        ((_, outcome),) = await self._acks.deliver([recipient], message, plan, result=True)
        if is_unknown(outcome):
            raise AckTimeout(f"{conn_id} did not answer in time") from outcome.error
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    async def to_room_acked(
        self, room_id: RoomId, message: Message, options: SendOptions, skip: Collection[str] = ()
    ) -> int:
        """Send to a room's connections, except ``skip``, and wait for their acks; returns how
        many are on this node."""
        _check(options)
        plan = Plan.of(options, self._clock.now())
        everyone = await self._locate.room(room_id, skip)
        await self._acks.to_room(everyone, message, plan, skip, keep=options.history)
        return len(everyone.by_node.get(self._node, ()))

    async def to_fitting_acked(
        self, fits: Filter | Where, message: Message, options: SendOptions
    ) -> int:
        """Send to the connections that ``fits`` matches and wait for their acks; returns how
        many are on this node."""
        _check(options)
        plan = Plan.of(options, self._clock.now())
        everyone = await self._locate.fitting(checked(fits))
        await self._acks.deliver([everyone], message, plan)
        return len(everyone.by_node.get(self._node, ()))

    async def text_to_conn(self, conn_id: str, text: str) -> DeliveryReport:
        """Send one text frame without an envelope to a connection on any node."""
        encoded = self._sender.encode_text(text)
        recipient = await self._locate.conn(conn_id)
        for node in recipient.by_node:
            if node == self._node:
                return await self._to_local(ConnId(conn_id), encoded)
            return (await self._to_node(node, recipient, encoded, DirectText(ConnId(conn_id))))[0]
        return await self._not_connected(encoded, conn_id)

    async def reply(self, conn: Connection, request: Envelope, data: Any) -> None:
        """Answer a request with a message of its topic; raises as ``Sender.send`` does."""
        encoded = self._sender.encode_answer(request, data)
        error = await self._sender.try_send(conn, encoded)
        if error is not None:
            raise error

    # --- sending

    async def _send(
        self, recipients: list[Recipient], message: Message, options: SendOptions
    ) -> list[tuple[str, DeliveryReport]]:
        if options.ordering_key is not None:
            # Sends with the same key do not overlap: the later waits for the acks of the earlier.
            async with self._ordering.acquire(options.ordering_key):
                return await self._send_now(recipients, message, options)
        return await self._send_now(recipients, message, options)

    async def _send_now(
        self, recipients: list[Recipient], message: Message, options: SendOptions
    ) -> list[tuple[str, DeliveryReport]]:
        if options.require_ack:
            plan = Plan.of(options, self._clock.now())
            found = await self._acks.deliver(recipients, message, plan)
            return [(name, outcome.report()) for name, outcome in found]
        encoded = self._sender.encode(message)
        if options.ttl is not None:
            encoded.expires = self._clock.now() + seconds(options.ttl, "ttl")
        await self._sender.ready()
        reports: list[tuple[str, DeliveryReport]] = []
        for recipient in recipients:
            name = recipient.name
            reports += [(name, r) for r in await self._forward(recipient, encoded.addressed(name))]
        return reports

    async def _forward(self, recipient: Recipient, encoded: EncodedMessage) -> list[DeliveryReport]:
        reports = []
        for node, conn_ids in recipient.by_node.items():
            if node == self._node:
                reports += [
                    await self._to_local(conn_id, encoded, recipient.whom) for conn_id in conn_ids
                ]
            else:
                ttl = None if encoded.expires is None else encoded.expires - self._clock.now()
                sent = DirectMessage(tuple(conn_ids), encoded.priority, recipient.whom.named(), ttl)
                reports += await self._to_node(node, recipient, encoded, sent)
        return reports

    async def _to_node(
        self,
        node: NodeId,
        recipient: Recipient,
        encoded: EncodedMessage,
        sent: DirectMessage | DirectText,
    ) -> list[DeliveryReport]:
        """Forward an encoded message to the node that has the recipient's connections."""
        addressees = [Addressee(c, recipient.owner(c)) for c in recipient.by_node[node]]
        try:
            await self._cluster.notify_node(node, sent, encoded.payload)
        except Unavailable as error:
            for missed in addressees:
                await self._sender.report(encoded, missed, FailureReason.CONN_ERROR, error)
            return [_failed(str(missed.conn_id), error, missed) for missed in addressees]
        return [
            DeliveryReport(str(conn_id), DeliveryStatus.FORWARDED, user_id=user_id, conn_id=conn_id)
            for conn_id, user_id in addressees
        ]

    async def _not_connected(
        self,
        encoded: EncodedMessage,
        conn_id: str,
        whom: RecipientFilter = ANY_RECIPIENT,
        *,
        acked: bool | None = None,
    ) -> DeliveryReport:
        error = ConnectionClosed(f"{conn_id} is not connected")
        missed = Addressee(ConnId(conn_id), whom.user)
        await self._sender.report(encoded, missed, FailureReason.CONN_CLOSED, error)
        return _failed(conn_id, error, missed, acked)

    async def _not_running(
        self, message: Message, name: str, missed: Addressee, acked: bool | None
    ) -> DeliveryReport:
        """Report a message that was sent before the node started, or after it stopped."""
        encoded = self._sender.encode(message, recipient=name)
        error = ShuttingDown("the server is not running")
        await self._sender.report(encoded, missed, FailureReason.CHANNEL_CLOSED, error)
        return _failed(name, error, missed, acked)

    async def _to_local(
        self, conn_id: ConnId, encoded: EncodedMessage, whom: RecipientFilter = ANY_RECIPIENT
    ) -> DeliveryReport:
        conn = self._connections.get(conn_id)
        if conn is None or not whom.means(conn):
            return await self._not_connected(encoded, conn_id, whom)
        user_id = whom.user or conn.user_id
        refused = await self._sender.try_send(conn, encoded)
        status = DeliveryStatus.OK
        if refused is not None:
            closed = isinstance(refused, ConnectionClosed)
            status = DeliveryStatus.FAILED if closed else DeliveryStatus.DROPPED
        return DeliveryReport(conn_id, status, refused, user_id=user_id, conn_id=conn_id)

    async def _no_recipient(self, target: Target, message: Message) -> AckResult:
        """Report an offline user or an unknown connection: there is no ack to wait for."""
        encoded = self._sender.encode(message, recipient=target.id)
        if target.kind is TargetKind.USER:
            error: UserOffline | ConnectionClosed = UserOffline(f"{target.id} is offline")
            reason = FailureReason.USER_OFFLINE
        else:
            error = ConnectionClosed(f"{target.id} is not connected")
            reason = FailureReason.CONN_CLOSED
        missed = _missed(target)
        await self._sender.report(encoded, missed, reason, error)
        return ack_result([_failed(target.id, error, missed, acked=False)], timed_out=False)

    # --- requests of other nodes

    def _take_send(self, sent: DirectMessage, payload: bytes) -> None:
        encoded = read_message(self._codec, payload, sent.priority)
        if sent.ttl is not None:
            encoded.expires = self._clock.now() + sent.ttl
        whom = RecipientFilter.of(sent.recipients)
        for conn_id in sent.conns:
            conn = self._connections.get(conn_id)
            if conn is not None and whom.means(conn):
                self._sender.enqueue_or_report(conn, encoded)
            else:
                # The sender was told that it is forwarded: only this node can report more.
                self._sender.report_misrouted(encoded.addressed(whom.user or conn_id), conn_id)

    def _take_text(self, sent: DirectText, payload: bytes) -> None:
        encoded = self._sender.encode_text(read_text(payload))
        conn = self._connections.get(sent.conn)
        if conn is not None:
            self._sender.enqueue_or_report(conn, encoded)
        else:
            self._sender.report_misrouted(encoded.addressed(sent.conn), sent.conn)


def _check(options: SendOptions | None) -> None:
    if options is not None and options.offline == STORE:
        raise ValueError("offline='store' is for messages to users: only they can be away")


def _check_readable(conn_id: str) -> None:
    """Raise ``Misuse`` in the ``on_connect`` hook of this connection: its answer is not read
    before the hook has ended (deadlock)."""
    conn = CONNECTING.get()
    if conn is not None and conn.id == conn_id and conn.opening is not None:
        raise Misuse(
            f"on_connect can't wait for an answer of {conn_id}: it is read when the hook has ended"
        )


def _missed(target: Target) -> Addressee:
    """Return the connection or user of a target; neither for a room."""
    if target.kind is TargetKind.CONN:
        return Addressee(ConnId(target.id))
    return Addressee(user_id=UserId(target.id)) if target.kind is TargetKind.USER else Addressee()


def _not_acked(options: SendOptions | None) -> bool | None:
    """Return ``acked`` for the report of an undelivered message: None if no ack was asked for."""
    return False if options is not None and options.require_ack else None


def _failed(
    target: str, error: EyewallError, missed: Addressee, acked: bool | None = None
) -> DeliveryReport:
    return DeliveryReport(
        target,
        DeliveryStatus.FAILED,
        error,
        user_id=missed.user_id,
        conn_id=missed.conn_id,
        acked=acked,
    )


def _is_late(outcome: Outcome) -> bool:
    return outcome.reason is FailureReason.ACK_TIMEOUT or is_unknown(outcome)
