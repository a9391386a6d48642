"""Health, readiness and metrics over HTTP."""

from __future__ import annotations

import json

import pytest
from tornado.web import Application

from eyewall.adapters.observe.prometheus import PrometheusMetrics
from eyewall.adapters.web.http.health import health_routes


@pytest.fixture
def reasons() -> list[str]:
    """Why the node is not ready."""
    return []


@pytest.fixture
def app(reasons) -> Application:
    return Application(
        health_routes(lambda: reasons, lambda: (b"up 1\n", "text/plain; version=0.0.4"))
    )


@pytest.mark.gen_test
async def test_a_living_node_is_healthy_also_when_it_is_not_ready(fetch, reasons):
    reasons.append("draining")

    answer = await fetch("/healthz")

    assert (answer.code, json.loads(answer.body)) == (200, {"status": "ok"})
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.gen_test
async def test_readiness_names_the_reasons(fetch, reasons):
    answer = await fetch("/readyz")
    assert (answer.code, json.loads(answer.body)) == (200, {"status": "ok", "reasons": []})

    reasons += ["draining", "redis"]
    answer = await fetch("/readyz")
    assert answer.code == 503
    assert json.loads(answer.body) == {"status": "not ready", "reasons": ["draining", "redis"]}
    assert (await fetch("/readyz", method="HEAD")).code == 503


@pytest.mark.gen_test
async def test_metrics_are_passed_through(fetch):
    answer = await fetch("/metrics")

    assert (answer.code, answer.body) == (200, b"up 1\n")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.gen_test
async def test_an_answer_may_be_asked_for_without_its_body_and_is_never_kept(fetch, path):
    answer = await fetch(path, method="HEAD")

    assert (answer.code, answer.body) == (200, b"")
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.gen_test
async def test_nothing_can_be_changed_there(fetch, path):
    assert (await fetch(path, method="POST", body="")).code == 405


class TestPrometheus:
    """The metrics as a monitoring system reads them."""

    @pytest.fixture
    def app(self) -> Application:
        metrics = PrometheusMetrics()
        metrics.connected()
        return Application(health_routes(list, metrics.render))

    @pytest.mark.gen_test
    async def test_what_was_measured_is_on_the_page(self, fetch):
        answer = await fetch("/metrics")

        assert answer.code == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert "eyewall_connections 1.0" in answer.body.decode().splitlines()


class TestWithoutMetrics:
    @pytest.fixture
    def app(self) -> Application:
        return Application(health_routes(list))

    @pytest.mark.gen_test
    async def test_there_is_no_such_page(self, fetch):
        answers = [await fetch(path) for path in ("/healthz", "/readyz", "/metrics")]

        assert [answer.code for answer in answers] == [200, 200, 404]
