"""What an application registers with its server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, overload

from eyewall.application.hub import Hub
from eyewall.application.middleware import Middleware
from eyewall.application.node import Node
from eyewall.application.routes import OrderingKey, Routes, named
from eyewall.background import Background, BackgroundTask, Work

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])
Hook = Callable[[], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Inside:
    """What stands behind a server: what is asked of the server and its hub reaches this."""

    node: Node
    background: Background
    stop: Callable[[float], Awaitable[None]]


class Registry:
    """The part of the server that takes in callables of the application."""

    def __init__(self, inside: Inside) -> None:
        self.hub = Hub(inside.node)
        self.hub.stops_by(inside.stop)
        self.inside = inside
        self._stand_ins: list[Inside] = []
        self._on_startup: list[Hook] = []
        self._on_shutdown: list[Hook] = []

    def become(self, inside: Inside) -> None:
        """Have ``inside`` behind the server from now on."""
        self.inside = inside
        self.hub.serve(inside.node)
        self._turn()

    # --- for tests: what was built and registered once, used without its sockets

    def adopt(self, other: Registry) -> None:
        """Take over what the application has registered with ``other`` so far."""
        self.inside.node.adopt(other.inside.node)
        self.inside.background.adopt(other.inside.background)
        self._on_startup += other._on_startup
        self._on_shutdown += other._on_shutdown

    def stand_in(self, inside: Inside) -> None:
        """Let ``inside`` get what is asked of the server and its hub, until ``stand_back``.

        Of several, the last one does.
        """
        self._stand_ins.append(inside)
        self._turn()

    def stand_back(self, inside: Inside) -> None:
        self._stand_ins.remove(inside)
        self._turn()

    @property
    def _asked(self) -> Inside:
        return self._stand_ins[-1] if self._stand_ins else self.inside

    def _turn(self) -> None:
        self.hub.turn_to(self._asked.node)
        self.hub.stops_by(self._asked.stop)

    # --- what an application registers

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
        self._asked.node.router.include(routes, prefix)

    def on_startup(self, fn: F) -> F:
        """Run ``fn()`` when the hub is up and before anybody is let in.

        Raises ``ValueError`` for what can't be called.
        """
        self._on_startup.append(_checked(fn))
        return fn

    def on_shutdown(self, fn: F) -> F:
        """Run ``fn()`` when all connections are closed, before the adapters are.

        Raises ``ValueError`` for what can't be called.
        """
        self._on_shutdown.append(_checked(fn))
        return fn

    @overload
    def background(self, fn: Coroutine[Any, Any, Any]) -> BackgroundTask: ...
    @overload
    def background(
        self, fn: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> BackgroundTask: ...
    def background(self, fn: Work, *args: Any, **kwargs: Any) -> BackgroundTask:
        """Run ``fn(*args, **kwargs)``, or a coroutine, as a task that the server owns: its
        failure is logged, shutdown ends it, and so does ``cancel()`` of the handle.

        ``fn`` may be a coroutine function, or a plain one, which is called on the event loop and
        must not block it. Before the start the work waits for the start; a function then runs
        in each life of the server, a coroutine in one. What is given to a running server, which
        may be done in any thread, runs at once and in this life only. Raises ``ValueError`` for
        what can't be run, or not with these arguments.
        """
        run = self._asked.background.add(fn, *args, **kwargs)
        return BackgroundTask(run, lambda: self._asked.background)


def _checked(hook: F) -> F:
    if not callable(hook):
        raise ValueError(f"a hook must be callable, not {hook!r:.80}")
    return hook
