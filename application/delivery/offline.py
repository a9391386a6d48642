"""Messages to users, online or offline.

Rules of this file:

1. A message with ``offline="store"`` that no connection of the user has answered is stored
   before the call returns. One ack settles it, and so does one nack.
2. A message is reported as stored only if the store has it.
3. A message to a user with a running replay waits behind the stored messages.
4. A stored message that is removed undelivered is counted, and reported to the failure handlers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.connections.stats import Stats
from eyewall.application.delivery.direct import DirectMessages
from eyewall.application.delivery.late_acks import LateAcks
from eyewall.application.delivery.replay import OfflineReplay
from eyewall.application.outbound.sender import Addressee, Sender
from eyewall.application.ports.clock import Clock, Timer
from eyewall.application.ports.logging import told
from eyewall.application.ports.message import Codec, MalformedMessage, read_message
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import OfflineStore
from eyewall.domain.ack_result import AckResult
from eyewall.domain.duration import seconds
from eyewall.domain.envelope import Message
from eyewall.domain.errors import AckTimeout, EyewallError, Misuse, Nacked, QueueFull, Unavailable
from eyewall.domain.identity import UserId
from eyewall.domain.mailbox import Evicted, StoredMessage
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

SWEEP = 60.0
"""Seconds between two sweeps for expired messages. These are not delivered in any case: the
sweep reports them and frees their space."""


SWEEP_STEP = 1000
"""Most messages that one step of the sweep removes: other tasks run between two steps."""


Reports = list[DeliveryReport]


class OfflineParts:
    """The parts that only a node with an offline store has."""

    def __init__(self, store: OfflineStore, replays: OfflineReplay, late_acks: LateAcks) -> None:
        self.store = store
        self.replays = replays
        self.late_acks = late_acks


class Offline:
    """Sends to users, and stores the messages that they did not answer."""

    def __init__(
        self,
        *,
        stored: OfflineParts | None,
        default: str,
        messages: DirectMessages,
        sender: Sender,
        codec: Codec,
        stats: Stats,
        clock: Clock,
        logger: Logger,
    ) -> None:
        self._stored = stored
        self._default = default
        self._messages = messages
        self._sender = sender
        self._codec = codec
        self._stats = stats
        self._clock = clock
        self._logger = logger
        self._tasks = TaskSet(logger)
        self._timer: Timer | None = None

    # --- the use cases

    def chosen(self, options: SendOptions | None) -> SendOptions:
        """Return the options with the server's default for ``offline``; raises ``Misuse`` for
        ``"store"`` without a store."""
        chosen = options or SendOptions()
        if chosen.offline is None and self._default == STORE:
            chosen = replace(chosen, offline=STORE)
        if chosen.offline == STORE and self._stored is None:
            raise Misuse("offline='store' needs a store: Server(offline=...)")
        return chosen

    async def to_users(
        self,
        user_ids: Iterable[str],
        message: Message,
        options: SendOptions | None = None,
        *,
        skip: Collection[str] = (),
    ) -> BatchDeliveryReport:
        """Send to all connections of all users, except ``skip``; a user without a connection has
        one report. Raises ``Misuse`` for ``"store"`` without a store."""
        chosen = self.chosen(options)
        if self._stored is None:
            return await self._messages.to_users(user_ids, message, chosen, skip=skip)
        given: object = message
        if chosen.offline == STORE and isinstance(given, Message) and not message.id:
            message = replace(message, id=self._sender.new_id())  # the same for all users
        barrier = self._stored.replays.barrier
        users = [UserId(user_id) for user_id in dict.fromkeys(user_ids)]
        behind = [user for user in users if user in barrier]
        if not behind:
            return BatchDeliveryReport.of(await self._send(users, message, chosen, skip))
        free = [user for user in users if user not in barrier]
        parts = await asyncio.gather(
            self._send(free, message, chosen, skip),
            *(self._send_behind(user, message, chosen, skip) for user in behind),
        )
        return BatchDeliveryReport.of(report for part in parts for report in part)

    async def with_ack(
        self, target: Target, message: Message, options: AckOptions | None = None
    ) -> AckResult:
        """Send and wait for all acks, as ``DirectMessages.with_ack`` does, after the stored
        messages of a user."""
        given: object = target
        if (
            self._stored is not None
            and isinstance(given, Target)
            and target.kind is TargetKind.USER
            and not await self._stored.replays.barrier.wait(UserId(target.id))
        ):
            (report,) = await self._too_many(UserId(target.id), message, SendOptions(), None)
            return ack_result([replace(report, acked=False)], timed_out=False)
        return await self._messages.with_ack(target, message, options)

    # --- sending

    async def _send(
        self, users: Sequence[UserId], message: Message, options: SendOptions, skip: Collection[str]
    ) -> Reports:
        expires_at = self.end_of(options)
        pairs = await self._messages.to_each(users, message, options, skip=skip)
        if options.offline != STORE:
            return [report for _, report in pairs]
        by_user: dict[str, Reports] = {}
        for user, report in pairs:
            by_user.setdefault(user, []).append(report)
        parts = await asyncio.gather(
            *(
                self.keep(UserId(user), message, expires_at, reports)
                for user, reports in by_user.items()
            )
        )
        return [report for part in parts for report in part]

    async def _send_behind(
        self, user: UserId, message: Message, options: SendOptions, skip: Collection[str]
    ) -> Reports:
        """Send to a user with a running replay, after the stored messages."""
        assert self._stored is not None
        begun, expires_at = self._clock.now(), self.end_of(options)
        if not await self._stored.replays.barrier.wait(user):
            return await self._too_many(user, message, options, expires_at)
        if options.ttl is not None:
            left = seconds(options.ttl, "ttl") - (self._clock.now() - begun)
            if left <= 0:
                error = AckTimeout(f"{user} could not be sent it in time")
                report = await self._failed(user, message, FailureReason.TIMEOUT, error)
                return [_with_ack(report, options)]
            options = replace(options, ttl=left)
        return await self._send([user], message, options, skip)

    async def _too_many(
        self, user: UserId, message: Message, options: SendOptions, expires_at: datetime | None
    ) -> Reports:
        """Store the message behind the others, or drop it: too many sends wait for the replay."""
        if options.offline == STORE:
            status = DeliveryStatus.STORED
            stored = DeliveryReport(user, status, attempts=0, user_id=user, acked=False)
            return await self.keep(user, message, expires_at, [stored])
        error = QueueFull(f"too many messages wait for what is stored for {user}")
        self._stats.dropped(FailureReason.QUEUE_FULL.value)
        report = await self._failed(user, message, FailureReason.QUEUE_FULL, error)
        return [_with_ack(replace(report, status=DeliveryStatus.DROPPED), options)]

    async def _failed(
        self, user: UserId, message: Message, reason: FailureReason, error: EyewallError
    ) -> DeliveryReport:
        encoded = self._sender.encode(message, recipient=user)
        await self._sender.report(encoded, Addressee(user_id=user), reason, error)
        return DeliveryReport(user, DeliveryStatus.FAILED, error, user_id=user)

    # --- storing

    def end_of(self, options: SendOptions) -> datetime | None:
        """Return when a message that is sent now expires (aware); None: never."""
        if options.ttl is None:
            return None
        try:
            return self._clock.wall() + timedelta(seconds=seconds(options.ttl, "ttl"))
        except OverflowError:  # beyond every date
            return None

    async def keep(
        self, user: UserId, message: Message, expires_at: datetime | None, reports: Reports
    ) -> Reports:
        """Store a message of which no report has an answer, and which has not expired.

        Returns the reports, changed to ``STORED``, or to ``FAILED`` if the store failed.
        ``message`` has the id under which it was sent.
        """
        now = self._clock.wall()
        if any(_is_answer(report) for report in reports) or (
            expires_at is not None and expires_at <= now
        ):
            return reports
        assert self._stored is not None
        encoded = self._sender.encode(message, ack=True, recipient=user)
        assert encoded.envelope is not None
        message_id = str(encoded.envelope.id)
        kept = StoredMessage(message_id, encoded.payload, encoded.priority, now, expires_at)
        try:
            evicted = await self._stored.store.store(user, kept)
        except Unavailable as error:
            await self._sender.report(
                encoded, Addressee(user_id=user), FailureReason.CONN_ERROR, error
            )
            failed = DeliveryStatus.FAILED
            return [replace(report, status=failed, error=error) for report in reports]
        tried = {report.target for report in reports}
        await self._stored.late_acks.stored(user, message_id, tried)
        await self._stored.replays.begin_for_others(user, tried)
        await self._report(evicted)
        return [replace(r, status=DeliveryStatus.STORED, error=None) for r in reports]

    async def _report(self, evicted: Iterable[Evicted]) -> None:
        """Count evicted messages and report them to the failure handlers."""
        for one in evicted:
            self._stats.dropped(one.reason.value)
            old = one.reason is FailureReason.TIMEOUT
            error = (
                AckTimeout(f"{one.user_id} did not come in time")
                if old
                else QueueFull(f"too much is stored for {one.user_id}")
            )
            try:
                stored = one.message
                encoded = read_message(self._codec, stored.payload, stored.priority)
            except MalformedMessage as problem:
                self._logger.error(
                    "stored_message_unreadable", id=one.message.id, error=told(problem)
                )
                continue
            await self._sender.report(encoded, Addressee(user_id=one.user_id), one.reason, error)

    # --- expired messages

    def start(self) -> None:
        """Start the sweeps, if there is a store."""
        if self._stored is not None:
            self._timer = self._clock.call_later(SWEEP, self._sweep_soon)

    def _sweep_soon(self) -> None:
        if not len(self._tasks):  # with a hanging store there is one task, not one for each tick
            self._tasks.spawn(self._sweep())
        self.start()

    async def _sweep(self) -> None:
        assert self._stored is not None
        try:
            while True:
                evicted = await self._stored.store.expire(self._clock.wall(), SWEEP_STEP)
                await self._report(evicted)
                if len(evicted) < SWEEP_STEP:
                    return
        except Unavailable as error:
            self._logger.warning("offline_not_swept", error=told(error))

    async def close(self) -> None:
        """End the sweeps and the replays; unanswered messages stay stored."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tasks.close()
        if self._stored is not None:
            await self._stored.replays.close()
            await self._stored.late_acks.close()


def _with_ack(report: DeliveryReport, options: SendOptions) -> DeliveryReport:
    """Return the report of an unsent message with ``acked`` False if an ack was asked for."""
    return replace(report, acked=False) if options.require_ack else report


def _is_answer(report: DeliveryReport) -> bool:
    return report.status is DeliveryStatus.OK or isinstance(report.error, Nacked)
