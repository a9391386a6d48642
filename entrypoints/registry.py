"""What an application registers with its server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from eyewall.application.hub import Hub
from eyewall.application.middleware import Middleware
from eyewall.application.routes import OrderingKey, Router, Routes, named
from eyewall.background import Background, Work

F = TypeVar("F", bound=Callable[..., Any])
Hook = Callable[[], Any]


class Registry:
    """The part of the server that takes in callables of the application."""

    def __init__(self, hub: Hub, router: Router, background: Background) -> None:
        self.hub = hub
        self._router = router
        self._background = background
        self._on_startup: list[Hook] = []
        self._on_shutdown: list[Hook] = []

    def on(
        self,
        pattern: str,
        *middleware: Middleware,
        version: str | None = None,
        ordering_key: OrderingKey | None = None,
    ) -> Callable[[F], F]:
        """Decorate the handler for the topics of ``pattern`` (``chat:*`` at the widest)."""
        named(pattern)

        def register(handler: F) -> F:
            self.handle(pattern, handler, *middleware, version=version, ordering_key=ordering_key)
            return handler

        return register

    def handle(
        self,
        pattern: str,
        handler: Callable[..., Any],
        *middleware: Middleware,
        version: str | None = None,
        ordering_key: OrderingKey | None = None,
    ) -> None:
        """Register the handler for the topics of ``pattern``; raises ``ValueError``."""
        self.hub.handle(pattern, handler, *middleware, version=version, ordering_key=ordering_key)

    def use(self, *middleware: Middleware) -> None:
        """Put middleware around all handlers; the first one is the outermost."""
        self.hub.use(*middleware)

    def include(self, routes: Routes, prefix: str = "") -> None:
        """Take in a group of routes, with ``prefix`` before its patterns."""
        self._router.include(routes, prefix)

    def on_startup(self, hook: F) -> F:
        """Run ``hook()`` when the hub is up and before anybody is let in."""
        self._on_startup.append(hook)
        return hook

    def on_shutdown(self, hook: F) -> F:
        """Run ``hook()`` when all connections are closed, before the adapters are."""
        self._on_shutdown.append(hook)
        return hook

    def background(self, work: Work) -> None:
        """Run a task that the server owns: its failure is logged, shutdown ends it.

        Before the start it waits for the start. Raises ``ValueError`` for what can't be run.
        """
        self._background.add(work)
