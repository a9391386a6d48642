"""The router: finds the handler of a message, with its middleware around it.

Middleware is bound when a message is routed, not when a handler is registered: later
middleware applies from the next message on. The bound chain is cached until it changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from eyewall.application.concurrency.threads import Threads
from eyewall.application.dispatch.handlers import adapt, check, payload_type
from eyewall.application.dispatch.middleware import chain
from eyewall.application.hub.hub import Context, Handler, Middleware, OrderingKey
from eyewall.application.ports.conformance import is_async
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import Misuse
from eyewall.domain.routing import RouteTable
from eyewall.domain.topic import Pattern

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Registration:
    """One registered handler with its options; raises ``ValueError`` or ``TypeError`` for a bad
    one."""

    pattern: str
    handler: Callable[..., Any]
    middleware: tuple[Middleware, ...]
    version: str | None
    ordering_key: OrderingKey | None

    def __post_init__(self) -> None:
        # Checked here for a traceback that names the registration, and again with the prefix
        # of the group.
        Pattern(self.pattern, allow_system=True)
        check(self.handler)
        checked(self.middleware)
        version: object = self.version
        if version is not None and not isinstance(version, str):
            raise ValueError(f"version must be a string, not {version!r:.80}")
        if self.ordering_key is not None and not callable(self.ordering_key):
            raise ValueError(f"an ordering_key must be callable, not {self.ordering_key!r:.80}")
        if self.ordering_key is not None and is_async(self.ordering_key):
            raise ValueError("an ordering_key is asked before anything waits: it can't be async")


def decorator(
    handle: Callable[..., None], pattern: str, *middleware: Middleware, **options: Any
) -> Callable[[F], F]:
    """Return a decorator that registers a handler by ``handle``, with these arguments, and returns
    it unchanged. Raises ``ValueError`` for a decorator that was used without its topic."""
    if not isinstance(pattern, str):
        raise ValueError('on() needs a topic: @server.on("chat:say")')

    def register(handler: F) -> F:
        handle(pattern, handler, *middleware, **options)
        return handler

    return register


def checked(middleware: tuple[Middleware, ...]) -> tuple[Middleware, ...]:
    """Return the middleware; raises ``ValueError`` if one of it can't be called."""
    for one in middleware:
        if not callable(one):
            raise ValueError(f"middleware is a function of (ctx, msg, next), not {one!r:.80}")
    return middleware


class Routes:
    """A group of routes with middleware of its own, to be included in a server.

    >>> routes = Routes()
    >>> @routes.on("chat:say")
    ... async def say(ctx, msg): ...
    """

    def __init__(self) -> None:
        self._registrations: list[Registration] = []
        self._middleware: tuple[Middleware, ...] = ()
        self._followers: list[Callable[[Registration], None]] = []

    def on(
        self,
        pattern: str,
        *middleware: Middleware,
        version: str | None = None,
        ordering_key: OrderingKey | None = None,
    ) -> Callable[[F], F]:
        """Register the decorated handler for the topics of ``pattern``.

        ``version``: for messages of this version only; ``ordering_key`` returns the key of the
        message's lane. Raises ``ValueError`` or ``TypeError`` for a bad argument.
        """
        return decorator(
            self.handle, pattern, *middleware, version=version, ordering_key=ordering_key
        )

    def handle(
        self,
        pattern: str,
        handler: Callable[..., Any],
        *middleware: Middleware,
        version: str | None = None,
        ordering_key: OrderingKey | None = None,
    ) -> None:
        """Register the handler for the topics of ``pattern``.

        Raises ``ValueError`` for a bad pattern or an ``async`` ordering key.
        """
        registration = Registration(pattern, handler, middleware, version, ordering_key)
        for follow in self._followers:
            follow(registration)
        self._registrations.append(registration)

    def use(self, *middleware: Middleware) -> None:
        """Put middleware around all handlers of the group, also those registered before."""
        self._middleware = (*self._middleware, *checked(middleware))

    @property
    def middleware(self) -> tuple[Middleware, ...]:
        """The group's current middleware: a new tuple after each ``use``."""
        return self._middleware

    def follow(self, step: Callable[[Registration], None]) -> None:
        """Call ``step`` for every registration, present and future."""
        for registration in self._registrations:
            step(registration)
        self._followers.append(step)


class Route:
    """A registered handler, ready to run."""

    __slots__ = (
        "_around",
        "_bound",
        "_everywhere",
        "_group",
        "_handler",
        "_own",
        "ordering_key",
        "pattern",
    )

    def __init__(
        self,
        pattern: str,
        handler: Handler,
        own: tuple[Middleware, ...],
        group: Routes | None,
        ordering_key: OrderingKey | None,
    ) -> None:
        self.pattern = pattern
        self.ordering_key = ordering_key
        self._handler = handler
        self._own = own
        self._group = group
        self._bound: Handler | None = None
        self._everywhere: tuple[Middleware, ...] = ()
        self._around: tuple[Middleware, ...] = ()

    def key(self, ctx: Context, msg: Envelope[Any]) -> Hashable:
        """Return the message's ordering key; raises ``Misuse`` for an awaitable one, and
        whatever the application's function raises."""
        assert self.ordering_key is not None
        key = self.ordering_key(ctx, msg)
        given: Any = key
        if type(given) is not str and inspect.isawaitable(given):
            if inspect.iscoroutine(given):
                given.close()
            raise Misuse("an ordering_key can't be async")
        return key

    def bound(self, everywhere: tuple[Middleware, ...]) -> Handler:
        """Return the handler with all middleware around it: ``everywhere``, which is outermost,
        the group's, and its own. Cached while these are the same tuples."""
        around = () if self._group is None else self._group.middleware
        bound = self._bound
        if bound is None or everywhere is not self._everywhere or around is not self._around:
            bound = self._bound = chain(self._handler, (*everywhere, *around, *self._own))
            self._everywhere, self._around = everywhere, around
        return bound


class Router:
    """All routes of a node."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._table: RouteTable[Route] = RouteTable()
        self._given: list[tuple[Registration, Routes | None, Any]] = []
        """The application's registrations, each with its group and payload type."""
        self._missing: dict[str, str] = {}
        """The error text for each topic of the server that is switched off."""
        self.everywhere: tuple[Middleware, ...] = ()
        """The middleware around all handlers: a new tuple after each ``use``."""
        self.find = self._table.find

    def use(self, *middleware: Middleware) -> None:
        """Put middleware around all handlers, also those registered before; raises
        ``ValueError``."""
        self.everywhere = (*self.everywhere, *checked(middleware))

    def add(self, registration: Registration, group: Routes | None = None) -> None:
        """Add a handler of the application; raises ``ValueError`` if its pattern and version
        have one already."""
        self._add(registration, group, payload_type(registration.handler))

    def _add(self, registration: Registration, group: Routes | None, into: Any) -> None:
        route = Route(
            registration.pattern,
            adapt(registration.handler, self._threads, into),
            registration.middleware,
            group,
            registration.ordering_key,
        )
        self._table.add(registration.pattern, route, registration.version)
        self._given.append((registration, group, into))

    def adopt(self, other: Router) -> None:
        """Copy the application's routes and middleware from ``other``."""
        self.use(*other.everywhere)
        for registration, group, into in other._given:
            self._add(registration, group, into)

    def handle(
        self,
        pattern: str,
        handler: Callable[..., Any],
        *middleware: Middleware,
        version: str | None = None,
        ordering_key: OrderingKey | None = None,
    ) -> None:
        """Register a handler of the application; raises ``ValueError``."""
        self.add(Registration(pattern, handler, middleware, version, ordering_key))

    def add_command(self, topic: str, handler: Handler) -> None:
        """Add one of the server's own commands."""
        self._table.add(topic, Route(topic, handler, (), None, None), system=True)

    def miss(self, topic: str, text: str) -> None:
        """Set the error text for a topic of the server that is switched off."""
        self._missing[topic] = text

    def why_not(self, topic: str) -> str:
        """Return the error text for a message that no route matches."""
        return self._missing.get(topic) or f"nothing handles {topic}"

    def include(self, routes: Routes, prefix: str) -> None:
        """Add the routes of a group, present and future, with ``prefix`` before each pattern."""

        def take(registration: Registration) -> None:
            pattern = prefix + registration.pattern
            self.add(replace(registration, pattern=pattern), routes)

        routes.follow(take)
