"""``/healthz``, ``/readyz`` and ``/metrics``, for an orchestrator and a monitoring system."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from eyewall.adapters.web.http.request_target import RedactingHandler

Ready = Callable[[], list[str]]
"""Returns the reasons why the node is not ready for traffic; an empty list if it is."""

Render = Callable[[], tuple[bytes, str]]
"""Returns the metrics and their content type."""


class _UncachedHandler(RedactingHandler):
    """A handler whose answers must not be cached."""

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(body))


class HealthHandler(_UncachedHandler):
    """``/healthz``: always 200. A blocked event loop gives no answer."""

    def get(self) -> None:
        self.answer(200, {"status": "ok"})

    head = get


class ReadyHandler(_UncachedHandler):
    """``/readyz``: 200 if the node is ready for traffic, otherwise 503 with the reasons."""

    def initialize(self, ready: Ready) -> None:
        self._ready = ready

    def get(self) -> None:
        reasons = self._ready()
        if reasons:
            self.answer(503, {"status": "not ready", "reasons": reasons})
        else:
            self.answer(200, {"status": "ok", "reasons": []})

    head = get


class MetricsHandler(_UncachedHandler):
    """``/metrics``: the metrics of this node."""

    def initialize(self, render: Render) -> None:
        self._render = render

    def get(self) -> None:
        body, content_type = self._render()
        self.set_header("Content-Type", content_type)
        self.finish(body)

    head = get


def health_routes(ready: Ready, render: Render | None = None) -> list[Any]:
    """Return rules for a Tornado application; without ``render`` there is no ``/metrics``."""
    routes: list[Any] = [(r"/healthz", HealthHandler), (r"/readyz", ReadyHandler, {"ready": ready})]
    if render is not None:
        routes.append((r"/metrics", MetricsHandler, {"render": render}))
    return routes
