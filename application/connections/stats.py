"""The counters of one node, and the metrics that get the same facts.

Rule of this file: an error of the metrics is logged, once per method, and has no other effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

from eyewall.application.ports.clock import Clock
from eyewall.application.ports.plugins import Logger, Metrics
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.report import HubStats, Incident


class GuardedMetrics:
    """Implements ``Metrics`` and ``WatchesNode`` on top of the application's metrics, which may
    be None, lack any method, and raise anything."""

    __slots__ = (
        "acked",
        "connected",
        "consumed",
        "disconnected",
        "dropped",
        "failed",
        "handled",
        "incident",
        "loop_lag",
        "published",
        "received",
        "refused",
        "sent",
    )

    connected: Callable[[], None]
    disconnected: Callable[[DisconnectReason], None]
    received: Callable[[str], None]
    sent: Callable[[int], None]
    dropped: Callable[[str, int], None]
    failed: Callable[[str], None]
    handled: Callable[[str, float], None]
    acked: Callable[[str, float], None]
    published: Callable[[int], None]
    consumed: Callable[[int], None]
    refused: Callable[[str], None]
    incident: Callable[[str, int], None]
    loop_lag: Callable[[float], None]

    def __init__(self, metrics: Metrics | None, logger: Logger) -> None:
        for name in self.__slots__:
            method = getattr(metrics, name, None)
            setattr(self, name, _ignore if method is None else _guarded(name, method, logger))


def _ignore(*_facts: Any) -> None:
    """Stand in for a method that the metrics lack."""


def _guarded(name: str, method: Callable[..., Any], logger: Logger) -> Callable[..., None]:
    has_failed = False

    def call(*facts: Any) -> None:
        nonlocal has_failed
        try:
            method(*facts)
        except BaseException as error:
            if not has_failed:
                has_failed = True
                logger.error("metrics_failed", method=name, exc_info=error)

    return call


class Stats:
    """The counters of ``hub.stats()``. Each fact is counted here, once."""

    __slots__ = (
        "_clock",
        "_since",
        "drops",
        "errors",
        "in_messages",
        "incidents",
        "metrics",
        "out_messages",
        "refusals",
        "started_at",
        "wanted",
    )

    def __init__(self, clock: Clock, metrics: Metrics | None, logger: Logger) -> None:
        self._clock = clock
        self.metrics = GuardedMetrics(metrics, logger)
        self.wanted = None if metrics is None else self.metrics
        """None without metrics: then the hot path skips the call."""
        self.reset()

    def begin(self) -> None:
        """Start the uptime: the node starts now."""
        self.started_at: datetime = self._clock.wall()
        self._since = self._clock.now()

    def reset(self) -> None:
        """Set all counters and the uptime to zero."""
        self.in_messages = 0
        self.out_messages = 0
        self.errors = 0
        self.drops = 0
        self.incidents: Counter[Incident] = Counter()
        self.refusals: Counter[str] = Counter()
        """Refused handshakes by reason."""
        self.begin()

    def sent(self, messages: int) -> None:
        """Count messages that were queued for clients."""
        self.out_messages += messages
        if self.wanted is not None:
            self.wanted.sent(messages)

    def take_back_sent(self) -> None:
        """Uncount a message that was queued and then not written."""
        self.out_messages = max(0, self.out_messages - 1)  # the counters may have been reset

    def dropped(self, reason: str, messages: int = 1) -> None:
        """Count messages that a full queue has dropped."""
        self.drops += messages
        self.metrics.dropped(reason, messages)

    def failed(self, code: str) -> None:
        """Count an error or nack that was sent."""
        self.errors += 1
        self.metrics.failed(code)

    def refused(self, reason: str) -> None:
        """Count a refused handshake; ``reason`` is a word of a fixed list."""
        self.refusals[reason] += 1
        self.metrics.refused(reason)

    def happened(self, incident: Incident, times: int = 1) -> None:
        """Count an incident that concerns no single client."""
        self.incidents[incident] += times
        self.metrics.incident(incident.value, times)

    def snapshot(self, *, connections: int, users: int, rooms: int) -> HubStats:
        """Return the counters, with the given numbers of the current state."""
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
            refused=dict(self.refusals),
            **{incident.value: self.incidents[incident] for incident in Incident},
        )
