"""Retries: sends a message to a user with a ``RetryPolicy``.

Rules of this file:

1. All attempts have the same id: a client can recognise a duplicate.
2. A retry goes to the user's connections at that time, except those that have taken the message
   or refused it.
3. A message with ``offline="store"`` is stored, before the call returns, when no retry is left
   or would help.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace

from eyewall.application.delivery.offline import Offline
from eyewall.application.ports.clock import Clock
from eyewall.domain.duration import seconds
from eyewall.domain.envelope import Message
from eyewall.domain.errors import ConnectionClosed, Nacked
from eyewall.domain.identity import UserId
from eyewall.domain.report import (
    DROP,
    STORE,
    DeliveryReport,
    DeliveryStatus,
    FailureReason,
    SendOptions,
    reason_of,
)
from eyewall.domain.retry import RetryPolicy, SendAttempt, SendResult

_TAKEN = (DeliveryStatus.OK, DeliveryStatus.FORWARDED, DeliveryStatus.STORED)


class Retries:
    """Sends to users with a ``RetryPolicy``; ``luck`` returns a random number from 0 to 1."""

    def __init__(
        self,
        *,
        offline: Offline,
        clock: Clock,
        new_id: Callable[[], str],
        luck: Callable[[], float],
    ) -> None:
        self._offline = offline
        self._clock = clock
        self._new_id = new_id
        self._luck = luck

    async def send(
        self,
        user_id: UserId,
        message: Message,
        policy: RetryPolicy | None,
        options: SendOptions | None,
    ) -> SendResult:
        """Send until all connections have taken the message, or no retry is left or would help.

        Never raises for an undelivered message; ``Misuse`` for ``"store"`` without a store.
        """
        policy = policy or RetryPolicy()
        chosen = self._offline.chosen(options)
        expires_at = self._offline.end_of(chosen)
        options = replace(chosen, offline=DROP)
        if not message.id:
            message = replace(message, id=self._new_id())
        begun = self._clock.now()
        attempts: list[SendAttempt] = []
        last: dict[str, DeliveryReport] = {}
        while True:
            left = self._left(options, begun)
            # A nack is final, too: there is no retry to that connection.
            answered = {target for target, report in last.items() if _is_over(report)}
            attempt, reports = await self._attempt(
                len(attempts) + 1, user_id, message, left, answered
            )
            attempts.append(attempt)
            last.pop(user_id, None)  # the report of an offline user, who may be online now
            last.update((report.target, report) for report in reports)
            missed = [report for report in reports if report.status not in _TAKEN]
            if not self._may_retry(policy, len(attempts), missed):
                break
            pause = policy.delay(len(attempts), self._luck())
            if left.ttl is not None and self._left_of(options, begun) <= pause:
                break
            await self._sleep(pause)
        reports = list(last.values())
        if chosen.offline == STORE and not any(map(_is_over, reports)):
            kept = await self._offline.keep(user_id, message, expires_at, reports)
            if kept is not reports:  # it was stored, or could not be
                success, error = _is_taken(kept), kept[0].error
                attempts[-1] = replace(attempts[-1], success=success, error=error)
            reports = kept
        return _result(attempts, reports, self._clock.now() - begun)

    async def _attempt(
        self,
        number: int,
        user_id: UserId,
        message: Message,
        options: SendOptions,
        skip: set[str],
    ) -> tuple[SendAttempt, list[DeliveryReport]]:
        """Try once; returns what came of it, all in all and for each connection."""
        started, started_at = self._clock.now(), self._clock.wall()
        reports = (await self._offline.to_users([user_id], message, options, skip=skip)).reports
        errors = [report.error for report in reports if report.status not in _TAKEN]
        if not reports:  # the connections without an answer have ended
            errors = [ConnectionClosed(f"every connection of {user_id} that is left has answered")]
        took = self._clock.now() - started
        success = len(errors) < len(reports)
        error = errors[0] if errors else None
        return SendAttempt(number, started_at, took, success, error), list(reports)

    @staticmethod
    def _may_retry(policy: RetryPolicy, tries: int, missed: list[DeliveryReport]) -> bool:
        return tries <= policy.max_retries and any(
            _reason(report) in policy.retryable for report in missed
        )

    def _left(self, options: SendOptions, begun: float) -> SendOptions:
        """Return the options with the rest of the ``ttl``, which counts from the call."""
        if options.ttl is None or self._clock.now() == begun:
            return options
        return replace(options, ttl=self._left_of(options, begun))

    def _left_of(self, options: SendOptions, begun: float) -> float:
        assert options.ttl is not None
        return seconds(options.ttl, "ttl") - (self._clock.now() - begun)

    async def _sleep(self, pause: float) -> None:
        over = asyncio.Event()
        timer = self._clock.call_later(pause, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()


def _result(
    attempts: list[SendAttempt], reports: list[DeliveryReport], total_time: float
) -> SendResult:
    success = _is_taken(reports)
    return SendResult(
        success=success,
        attempts=tuple(attempts),
        total_retries=len(attempts) - 1,
        total_time=total_time,
        final_error=None if success else attempts[-1].error,
        reports=tuple(reports),
    )


def _is_taken(reports: Iterable[DeliveryReport]) -> bool:
    """Whether a connection has taken it, or it is stored."""
    return any(report.status in _TAKEN for report in reports)


def _is_over(report: DeliveryReport) -> bool:
    return report.status in _TAKEN or isinstance(report.error, Nacked)


def _reason(report: DeliveryReport) -> FailureReason:
    if report.status is DeliveryStatus.UNKNOWN:
        return FailureReason.UNKNOWN
    return reason_of(report.error)
