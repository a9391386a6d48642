"""Counters of one node, and the metrics that hear of the same facts."""

from __future__ import annotations

from datetime import datetime

from eyewall.application.ports import Clock, Metrics
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.report import HubStats


class NoMetrics:
    """Implements ``Metrics`` for who does not want any."""

    def connected(self) -> None:
        """Count nothing."""

    def disconnected(self, reason: DisconnectReason) -> None:
        """Count nothing."""

    def received(self, route: str) -> None:
        """Count nothing."""

    def sent(self, messages: int) -> None:
        """Count nothing."""

    def dropped(self, reason: str, messages: int) -> None:
        """Count nothing."""

    def failed(self, code: str) -> None:
        """Count nothing."""

    def handled(self, route: str, seconds: float) -> None:
        """Count nothing."""

    def acked(self, outcome: str, seconds: float) -> None:
        """Count nothing."""

    def published(self, messages: int) -> None:
        """Count nothing."""

    def consumed(self, messages: int) -> None:
        """Count nothing."""


class Stats:
    """What ``hub.stats()`` counts. Each fact is told here once, and nowhere else."""

    __slots__ = (
        "_clock",
        "_since",
        "drops",
        "errors",
        "in_messages",
        "metrics",
        "out_messages",
        "started_at",
        "stray_acks",
        "wanted",
    )

    def __init__(self, clock: Clock, metrics: Metrics | None) -> None:
        self._clock = clock
        self.wanted = metrics
        """None if nobody wants any: what would be told of every message is not even
        looked up then."""
        self.metrics: Metrics = NoMetrics() if metrics is None else metrics
        self.reset()

    def reset(self) -> None:
        """Start again from zero; the uptime too."""
        self.in_messages = 0
        self.out_messages = 0
        self.errors = 0
        self.drops = 0
        self.stray_acks = 0
        """Acks of ids that nobody waits for."""
        self.started_at: datetime = self._clock.wall()
        self._since = self._clock.now()

    def sent(self, messages: int) -> None:
        self.out_messages += messages
        if self.wanted is not None:
            self.wanted.sent(messages)

    def unsent(self) -> None:
        """A message that was counted as sent did not fit after all."""
        self.out_messages = max(0, self.out_messages - 1)  # it may have been reset since

    def dropped(self, reason: str, messages: int = 1) -> None:
        self.drops += messages
        self.metrics.dropped(reason, messages)

    def failed(self, code: str) -> None:
        """An error or nack was sent."""
        self.errors += 1
        self.metrics.failed(code)

    def snapshot(self, *, connections: int, users: int, rooms: int) -> HubStats:
        return HubStats(
            connections=connections,
            users=users,
            rooms=rooms,
            in_messages=self.in_messages,
            out_messages=self.out_messages,
            errors=self.errors,
            drops=self.drops,
            started_at=self.started_at,
            uptime=self._clock.now() - self._since,
        )
