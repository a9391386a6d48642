"""Messages to users, whether they are there or not.

Rules of this file:

1. What was asked to be stored, and no connection of the user has answered, is stored before
   the call returns. One ack settles it, and so does one nack.
2. Where nothing can be stored, the report says so: nobody is told of a message that is not
   kept that it is.
3. A message to a user whose stored messages are going out waits in line behind them.
4. What goes without having been delivered is counted, and reported to the failure handlers.
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
"""Seconds between two looks for messages that are too old. They are not delivered any more
anyway: this is about who is told, and about the room that they take."""


SWEPT = 1000
"""Messages that one step of the sweep removes, so that others come in between."""


Reports = list[DeliveryReport]


class Stored:
    """What a node with an offline store has more than others."""

    def __init__(self, store: OfflineStore, replays: OfflineReplay, late_acks: LateAcks) -> None:
        self.store = store
        self.replays = replays
        self.late_acks = late_acks


class Offline:
    """Sends to users by name, and keeps what they did not take."""

    def __init__(
        self,
        *,
        stored: Stored | None,
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
        """The options with the server's default; raises ``Misuse`` where nothing is stored."""
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
        """Send to all connections of all users but ``skip``; a user without one is
        reported as one. Raises ``Misuse`` where nothing is stored, and should be."""
        chosen = self.chosen(options)
        if self._stored is None:
            return await self._messages.to_users(user_ids, message, chosen, skip=skip)
        given: object = message
        if chosen.offline == STORE and isinstance(given, Message) and not message.id:
            message = replace(message, id=self._sender.new_id())  # one for all that follows
        lines = self._stored.replays.lines
        users = [UserId(user_id) for user_id in dict.fromkeys(user_ids)]
        behind = [user for user in users if user in lines]
        if not behind:
            return BatchDeliveryReport.of(await self._send(users, message, chosen, skip))
        free = [user for user in users if user not in lines]
        parts = await asyncio.gather(
            self._send(free, message, chosen, skip),
            *(self._send_behind(user, message, chosen, skip) for user in behind),
        )
        return BatchDeliveryReport.of(report for part in parts for report in part)

    async def with_ack(
        self, target: Target, message: Message, options: AckOptions | None = None
    ) -> AckResult:
        """Send, and wait for all acks, as ``DirectMessages.with_ack``; a user's stored messages
        come first."""
        given: object = target
        if (
            self._stored is not None
            and isinstance(given, Target)
            and target.kind is TargetKind.USER
            and not await self._stored.replays.lines.wait(UserId(target.id))
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
        """Send to a user to whom stored messages are going out, after these."""
        assert self._stored is not None
        begun, expires_at = self._clock.now(), self.end_of(options)
        if not await self._stored.replays.lines.wait(user):
            return await self._too_many(user, message, options, expires_at)
        if options.ttl is not None:
            left = seconds(options.ttl, "ttl") - (self._clock.now() - begun)
            if left <= 0:
                error = AckTimeout(f"{user} could not be sent it in time")
                report = await self._failed(user, message, FailureReason.TIMEOUT, error)
                return [_asked(report, options)]
            options = replace(options, ttl=left)
        return await self._send([user], message, options, skip)

    async def _too_many(
        self, user: UserId, message: Message, options: SendOptions, expires_at: datetime | None
    ) -> Reports:
        """The line is full. What may be stored comes last in what it waits for."""
        if options.offline == STORE:
            status = DeliveryStatus.STORED
            waits = DeliveryReport(user, status, attempts=0, user_id=user, acked=False)
            return await self.keep(user, message, expires_at, [waits])
        error = QueueFull(f"too many messages wait for what is stored for {user}")
        self._stats.dropped(FailureReason.QUEUE_FULL.value)
        report = await self._failed(user, message, FailureReason.QUEUE_FULL, error)
        return [_asked(replace(report, status=DeliveryStatus.DROPPED), options)]

    async def _failed(
        self, user: UserId, message: Message, reason: FailureReason, error: EyewallError
    ) -> DeliveryReport:
        frame = self._sender.encode(message, recipient=user)
        await self._sender.report(frame, Addressee(user_id=user), reason, error)
        return DeliveryReport(user, DeliveryStatus.FAILED, error, user_id=user)

    # --- storing

    def end_of(self, options: SendOptions) -> datetime | None:
        """When a message that is sent now is worthless; None: never."""
        if options.ttl is None:
            return None
        try:
            return self._clock.wall() + timedelta(seconds=seconds(options.ttl, "ttl"))
        except OverflowError:  # beyond every date
            return None

    async def keep(
        self, user: UserId, message: Message, expires_at: datetime | None, reports: Reports
    ) -> Reports:
        """Store what none of ``reports`` says was answered; returns the reports then.

        ``message`` has the id that it was sent with.
        """
        now = self._clock.wall()
        if any(_is_answer(report) for report in reports) or (
            expires_at is not None and expires_at <= now
        ):
            return reports
        assert self._stored is not None
        frame = self._sender.encode(message, ack=True, recipient=user)
        assert frame.envelope is not None
        message_id = str(frame.envelope.id)
        kept = StoredMessage(message_id, frame.payload, frame.priority, now, expires_at)
        try:
            evicted = await self._stored.store.store(user, kept)
        except Unavailable as error:
            await self._sender.report(
                frame, Addressee(user_id=user), FailureReason.CONN_ERROR, error
            )
            failed = DeliveryStatus.FAILED
            return [replace(report, status=failed, error=error) for report in reports]
        tried = {report.target for report in reports}
        await self._stored.late_acks.stored(user, message_id, tried)
        await self._stored.replays.look_again(user, tried)
        await self._tell(evicted)
        return [replace(r, status=DeliveryStatus.STORED, error=None) for r in reports]

    async def _tell(self, evicted: Iterable[Evicted]) -> None:
        """Count and report what had to go."""
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
                frame = read_message(self._codec, stored.payload, stored.priority)
            except MalformedMessage as problem:
                self._logger.error(
                    "stored_message_unreadable", id=one.message.id, error=told(problem)
                )
                continue
            await self._sender.report(frame, Addressee(user_id=one.user_id), one.reason, error)

    # --- what is too old

    def start(self) -> None:
        """Look for messages that are too old from now on."""
        if self._stored is not None:
            self._timer = self._clock.call_later(SWEEP, self._sweep_soon)

    def _sweep_soon(self) -> None:
        if not len(self._tasks):  # a store that hangs must not collect a task for each tick
            self._tasks.spawn(self._sweep())
        self.start()

    async def _sweep(self) -> None:
        assert self._stored is not None
        try:
            while True:
                evicted = await self._stored.store.expire(self._clock.wall(), SWEPT)
                await self._tell(evicted)
                if len(evicted) < SWEPT:
                    return
        except Unavailable as error:
            self._logger.warning("offline_not_swept", error=told(error))

    async def close(self) -> None:
        """End the sweep and the replays; what was not answered stays stored."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tasks.close()
        if self._stored is not None:
            await self._stored.replays.close()
            await self._stored.late_acks.close()


def _asked(report: DeliveryReport, options: SendOptions) -> DeliveryReport:
    """The report of what did not go out, with what became of the ack that was asked for."""
    return replace(report, acked=False) if options.require_ack else report


def _is_answer(report: DeliveryReport) -> bool:
    return report.status is DeliveryStatus.OK or isinstance(report.error, Nacked)
