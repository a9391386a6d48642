"""What Prometheus is told."""

from __future__ import annotations

import importlib
import sys

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from eyewall.adapters.observe.prometheus import BUCKETS, PrometheusMetrics
from eyewall.domain.connection import DisconnectReason


def samples(metrics: PrometheusMetrics) -> dict[tuple, float]:
    """What a scrape reads: the numbers by name and labels."""
    text = metrics.render()[0].decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics()


def test_a_server_that_has_done_nothing_says_zero(metrics):
    """A series that is missing can't be told from a server that is."""
    found = samples(metrics)

    assert found["eyewall_connections",] == 0
    assert found["eyewall_messages_sent_total",] == 0


def test_connections_are_those_that_are_open(metrics):
    metrics.connected()
    metrics.connected()
    metrics.disconnected(DisconnectReason.SLOW_CONSUMER)

    found = samples(metrics)

    assert found["eyewall_connections",] == 1
    assert found["eyewall_connects_total",] == 2
    assert found["eyewall_disconnects_total", "slow_consumer"] == 1


@pytest.mark.parametrize(
    ("call", "arguments", "series", "by"),
    [
        ("received", ("chat:*",), ("eyewall_messages_received_total", "chat:*"), 1),
        ("received", ("-",), ("eyewall_messages_received_total", "-"), 1),
        ("sent", (3,), ("eyewall_messages_sent_total",), 3),
        ("dropped", ("queue_full", 2), ("eyewall_messages_dropped_total", "queue_full"), 2),
        ("failed", ("forbidden",), ("eyewall_errors_total", "forbidden"), 1),
        ("published", (4,), ("eyewall_bus_published_total",), 4),
        ("consumed", (5,), ("eyewall_bus_consumed_total",), 5),
        ("handled", ("chat:*", 0.3), ("eyewall_handler_seconds_sum", "chat:*"), 0.3),
        ("handled", ("chat:*", 0.3), ("eyewall_handler_seconds_count", "chat:*"), 1),
        ("acked", ("timeout", 5.0), ("eyewall_ack_seconds_sum", "timeout"), 5.0),
        ("acked", ("ok", 0.1), ("eyewall_ack_seconds_count", "ok"), 1),
    ],
)
def test_every_fact_has_its_series(metrics, call, arguments, series, by):
    getattr(metrics, call)(*arguments)
    getattr(metrics, call)(*arguments)

    assert samples(metrics)[series] == pytest.approx(2 * by)


def test_a_time_counts_in_every_bucket_that_reaches_as_far(metrics):
    """Prometheus' buckets are cumulative, and a bound belongs to its own bucket."""
    for seconds in (0.0, 0.005, 0.0051, 99.0):
        metrics.handled("r", seconds)

    text = metrics.render()[0].decode()

    assert 'eyewall_handler_seconds_bucket{le="0.0001",route="r"} 1.0' in text
    assert 'eyewall_handler_seconds_bucket{le="0.005",route="r"} 2.0' in text
    assert 'eyewall_handler_seconds_bucket{le="0.01",route="r"} 3.0' in text
    assert 'eyewall_handler_seconds_bucket{le="10.0",route="r"} 3.0' in text
    assert 'eyewall_handler_seconds_bucket{le="+Inf",route="r"} 4.0' in text
    assert list(BUCKETS) == sorted(BUCKETS)


def test_the_content_type_is_the_one_that_prometheus_asks_for(metrics):
    assert metrics.render()[1].startswith("text/plain; version=")


def test_several_servers_fit_into_one_process():
    one, other = PrometheusMetrics(), PrometheusMetrics()
    one.connected()

    assert samples(other)["eyewall_connections",] == 0


def test_a_registry_of_the_user_s_own_is_used():
    registry = CollectorRegistry()
    PrometheusMetrics(registry).sent(7)

    assert registry.get_sample_value("eyewall_messages_sent_total") == 7


def test_one_registry_does_not_take_two():
    registry = CollectorRegistry()
    PrometheusMetrics(registry)

    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusMetrics(registry)


def test_without_the_client_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "eyewall.adapters.observe.prometheus")

    with pytest.raises(ImportError, match=r"eyewall\[prometheus\]"):
        importlib.import_module("eyewall.adapters.observe.prometheus")
