"""Retries: the policy (when, how often) and the result of each attempt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from eyewall.domain.duration import Seconds, count, seconds
from eyewall.domain.errors import EyewallError
from eyewall.domain.report import DeliveryReport, FailureReason

RETRYABLE: Final = frozenset(
    {
        FailureReason.QUEUE_FULL,
        FailureReason.TIMEOUT,
        FailureReason.SEND_TIMEOUT,
        FailureReason.ACK_TIMEOUT,
        FailureReason.CONN_ERROR,
        FailureReason.CONN_CLOSED,
    }
)
"""Failures that pass by themselves: a queue drains, a device comes back."""

_MOST_GROWTH: Final = 1e300
"""Beyond it the pause is ``max_delay`` anyway, and a float would overflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to retry. Times in seconds.

    The first pause is ``base_delay``; each is ``backoff_factor`` times the one before, and
    at most ``max_delay``. ``jitter`` is the share by which a pause may be longer or shorter:
    it spreads the retries of sends that failed together. ``retryable`` names the failures
    after which a retry makes sense.
    """

    max_retries: int = 3
    base_delay: Seconds = 0.1
    backoff_factor: float = 2.0
    max_delay: Seconds = 30.0
    jitter: float = 0.1
    retryable: Collection[FailureReason] = RETRYABLE

    def __post_init__(self) -> None:
        put = object.__setattr__
        count(self.max_retries, "max_retries", least=0)
        put(self, "base_delay", seconds(self.base_delay, "base_delay"))
        put(self, "max_delay", seconds(self.max_delay, "max_delay"))
        put(self, "backoff_factor", _number(self.backoff_factor, "backoff_factor", 1.0))
        put(self, "jitter", _number(self.jitter, "jitter", 0.0, 1.0))
        put(self, "retryable", frozenset(FailureReason(reason) for reason in self.retryable))

    def delay(self, retry: int, luck: float) -> float:
        """Return the pause in seconds before the retry of that number, counted from 1.

        ``luck``, a random number from 0 to 1, sets the position within the jitter.
        """
        base, most = seconds(self.base_delay, "base_delay"), seconds(self.max_delay, "max_delay")
        try:
            growth = min(self.backoff_factor ** (retry - 1), _MOST_GROWTH)
        except OverflowError:
            growth = _MOST_GROWTH
        return min(base * growth * (1.0 + self.jitter * (2.0 * luck - 1.0)), most)


def _number(value: float, name: str, least: float, most: float = _MOST_GROWTH) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        bound = f"at least {least:g}" if most == _MOST_GROWTH else f"{least:g} to {most:g}"
        raise ValueError(f"{name} must be a number of {bound}, not {value!r:.40}")
    return float(value)


@dataclass(frozen=True, slots=True)
class SendAttempt:
    """One attempt. ``number`` counts from 1, ``duration`` is in seconds.

    ``success`` means that at least one connection took the message, or that it was stored;
    ``error`` is that of the first connection that did not take it.
    """

    number: int
    started_at: datetime
    duration: float
    success: bool
    error: EyewallError | None = None


@dataclass(frozen=True, slots=True)
class SendResult:
    """The result of all attempts. ``total_time`` is in seconds, pauses included.

    ``final_error`` is that of the last attempt, None if any connection took the message.
    ``reports`` has the last report of each connection.
    """

    success: bool
    attempts: tuple[SendAttempt, ...]
    total_retries: int
    total_time: float
    final_error: EyewallError | None = None
    reports: tuple[DeliveryReport, ...] = ()
