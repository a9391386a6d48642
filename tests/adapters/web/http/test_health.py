"""Health, readiness and metrics over HTTP."""

from __future__ import annotations

import json

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from eyewall.adapters.web.http.health import health_routes


class Node:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.port = 0

    async def get(self, path, **options):
        url = f"http://127.0.0.1:{self.port}{path}"
        return await AsyncHTTPClient(force_instance=True).fetch(url, raise_error=False, **options)


@pytest.fixture
async def node():
    node = Node()
    app = Application(
        health_routes(lambda: node.reasons, lambda: (b"up 1\n", "text/plain; version=0.0.4"))
    )
    server = HTTPServer(app)
    sockets = bind_sockets(0, "127.0.0.1")
    node.port = sockets[0].getsockname()[1]
    server.add_sockets(sockets)
    yield node
    server.stop()
    await server.close_all_connections()


async def test_a_living_node_is_healthy_also_when_it_is_not_ready(node):
    node.reasons = ["draining"]
    assert (await node.get("/healthz")).code == 200
    assert (await node.get("/healthz", method="HEAD")).code == 200


async def test_readiness_names_the_reasons(node):
    answer = await node.get("/readyz")
    assert (answer.code, json.loads(answer.body)) == (200, {"status": "ok", "reasons": []})
    assert answer.headers["Cache-Control"] == "no-store"

    node.reasons = ["draining", "redis"]
    answer = await node.get("/readyz")
    assert answer.code == 503
    assert json.loads(answer.body) == {"status": "not ready", "reasons": ["draining", "redis"]}
    assert (await node.get("/readyz", method="HEAD")).code == 503


async def test_metrics_are_passed_through(node):
    assert (await node.get("/metrics", method="HEAD")).code == 200
    answer = await node.get("/metrics")
    assert (answer.code, answer.body) == (200, b"up 1\n")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"


def test_without_metrics_there_is_no_such_page():
    assert len(health_routes(list)) == 2
