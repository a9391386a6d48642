"""The hub's messages: to many, to some, and to those who have to answer.

It delegates and decides nothing, as all of the hub does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eyewall.application.connections import Connection
from eyewall.application.register import Registrations
from eyewall.application.whom import Filter
from eyewall.domain.duration import Seconds, seconds
from eyewall.domain.envelope import Envelope, Message
from eyewall.domain.identity import ConnId, RoomId, UserId, Where
from eyewall.domain.identity import name as check_name
from eyewall.domain.report import (
    AckOptions,
    AckResult,
    BatchDeliveryReport,
    DeliveryReport,
    PendingAck,
    SendOptions,
    Target,
    flag,
)
from eyewall.domain.retry import RetryPolicy, SendResult


class Messaging(Registrations):
    """The part of the hub that sends."""

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
        _check(options, SendOptions, "options")
        return await self._node.offline.to_users([_user(user_id)], message, options)

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
        _check(options, SendOptions, "options")
        return await self._node.offline.to_users(several(user_ids), message, options)

    async def emit_with_ack(
        self, target: Target, message: Message, options: AckOptions | None = None
    ) -> AckResult:
        """Send, and wait for the acks of all whom ``target`` means, or the time-out.

        The result names who has acked, who has refused, and of whom no answer came. A user or
        connection that is not there counts as one that was expected; a room that is not there has
        nobody. With ``history=False`` a room does not keep the message.

        Raises ``AckTimeout``, which has the result, under ``require_all`` if an answer did not
        come in time; a nack, a connection that closes and a user who is away raise nothing.
        """
        _check(options, AckOptions, "options")
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
        _check(message, Message, "a message")
        _check(policy, RetryPolicy, "policy")
        _check(options, SendOptions, "options")
        return await self._node.retries.send(_user(user_id), message, policy, options)

    def pending_acks(self, conn_id: ConnId | str) -> list[PendingAck]:
        """What waits for an ack of a connection of this node, oldest first; empty for any other."""
        return self._node.deliveries.pending(ConnId(conn_id))


def several(user_ids: Iterable[UserId | str]) -> list[UserId | str]:
    """Notice one id in the place of several: a string would be read letter by letter."""
    if isinstance(user_ids, str):
        raise ValueError(f"user_ids must be several ids, not one: {user_ids!r:.80}")
    return [_user(user_id) for user_id in user_ids]


def _user(user_id: UserId | str) -> UserId:
    """Notice what can't be a user, such as an anonymous connection's None, before anything
    is kept for it."""
    return UserId(check_name(user_id, "user_id"))


def _check(given: object, kind: type, what: str) -> None:
    """Notice the wrong kind of options here, not where a part of them is first needed."""
    if given is not None and not isinstance(given, kind):
        article = "an" if kind is AckOptions else "a"
        raise ValueError(f"{what} must be {article} {kind.__name__}, not {given!r:.80}")
