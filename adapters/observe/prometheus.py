"""Metrics for Prometheus, by prometheus_client.

Rules of this file:

1. A label is the pattern of a route or a word of a fixed list, never a client's text. So the
   number of series does not grow with clients, rooms and topics.
2. Counting adds to a plain number, on the event loop only. The client library's own counters
   take a lock, which costs as much as the rest of a message. The numbers are converted into its
   form when Prometheus scrapes them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator

from eyewall.application.ports.extras import needs
from eyewall.domain.connection import DisconnectReason

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(needs("PrometheusMetrics", "prometheus"), name="prometheus_client") from error

BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds. A handler that awaits nothing takes 10 µs, the timeout of an ack is 5 s."""


class _Histogram:
    """The number of times in each bucket of ``BUCKETS``, and their sum in seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return each bound with the number of times up to it, as Prometheus requires."""
        pairs: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.counts, strict=True):
            below += count
            pairs.append((bound, below))
        return pairs


class PrometheusMetrics(Collector):
    """Implements ``Metrics`` and ``WatchesNode``. The default registry is a new one, so that
    several servers fit into one process.

    >>> metrics = PrometheusMetrics()
    >>> metrics.received("chat:*")
    >>> b'eyewall_messages_received_total{route="chat:*"} 1.0' in metrics.render()[0]
    True

    Raises ``ValueError`` if the registry has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._connections = self._connects = 0
        self._sent = self._published = self._consumed = 0
        self._loop_lag = 0.0
        self._disconnects: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._incidents: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._handled: defaultdict[str, _Histogram] = defaultdict(_Histogram)
        self._acked: defaultdict[str, _Histogram] = defaultdict(_Histogram)
        self.registry = CollectorRegistry() if registry is None else registry
        self.registry.register(self)

    def render(self) -> tuple[bytes, str]:
        """Return the metrics in Prometheus' text format, and their content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics in the client library's form. Called by the registry."""
        yield GaugeMetricFamily(
            "eyewall_connections", "Connections that are open.", self._connections
        )
        yield GaugeMetricFamily(
            "eyewall_loop_lag_seconds", "How late the event loop is.", self._loop_lag
        )
        for name, text, number in (
            ("connects", "Connections since the start.", self._connects),
            ("messages_sent", "Messages to clients.", self._sent),
            ("bus_published", "Messages to other nodes.", self._published),
            ("bus_consumed", "Messages from other nodes.", self._consumed),
        ):
            yield CounterMetricFamily(f"eyewall_{name}", text, number)
        yield _counted("disconnects", "Connections that ended.", "reason", self._disconnects)
        yield _counted("refused", "Handshakes that were refused.", "reason", self._refused)
        yield _counted("incidents", "What went wrong on the node.", "incident", self._incidents)
        yield _counted("messages_received", "Messages from clients.", "route", self._received)
        yield _counted("messages_dropped", "Messages that were lost.", "reason", self._dropped)
        yield _counted("errors", "Errors and nacks that were sent.", "code", self._errors)
        yield _timed("handler_seconds", "Time in handlers.", "route", self._handled)
        yield _timed("ack_seconds", "Time until an ack was settled.", "outcome", self._acked)

    def describe(self) -> Iterator[Metric]:
        """Return the metrics, by whose names a registry finds duplicates."""
        return self.collect()

    def connected(self) -> None:
        self._connections += 1
        self._connects += 1

    def disconnected(self, reason: DisconnectReason) -> None:
        self._connections -= 1
        self._disconnects[reason.value] += 1

    def received(self, route: str) -> None:
        self._received[route] += 1

    def sent(self, messages: int) -> None:
        self._sent += messages

    def dropped(self, reason: str, messages: int) -> None:
        self._dropped[reason] += messages

    def failed(self, code: str) -> None:
        self._errors[code] += 1

    def handled(self, route: str, seconds: float) -> None:
        self._handled[route].observe(seconds)

    def acked(self, outcome: str, seconds: float) -> None:
        self._acked[outcome].observe(seconds)

    def published(self, messages: int) -> None:
        self._published += messages

    def consumed(self, messages: int) -> None:
        self._consumed += messages

    def refused(self, reason: str) -> None:
        self._refused[reason] += 1

    def incident(self, name: str, count: int) -> None:
        self._incidents[name] += count

    def loop_lag(self, seconds: float) -> None:
        self._loop_lag = seconds


def _counted(name: str, text: str, label: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(f"eyewall_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _timed(name: str, text: str, label: str, times: dict[str, _Histogram]) -> Metric:
    family = HistogramMetricFamily(f"eyewall_{name}", text, labels=[label])
    for value, histogram in times.items():
        family.add_metric([value], histogram.buckets(), histogram.total)
    return family
