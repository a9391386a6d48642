"""The server: its hub and its sockets, and the order in which they start and stop.

Rules of this file:

1. A start either succeeds as a whole or leaves nothing behind; it may then be repeated.
2. Each start begins a *life* of the server with a node of its own. Registrations (handlers,
   hooks, background functions) hold for all lives.
3. A shutdown has one deadline for all its steps: clients are told, input is read, handlers
   finish, connections close, hooks run, adapters close.
"""

from __future__ import annotations

import asyncio
import copy
import os
import ssl as tls
import sys
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from types import EllipsisType
from typing import Any, ParamSpec, overload

from eyewall.adapters.observe.records import written_as
from eyewall.adapters.web.http.health import health_routes
from eyewall.adapters.web.http.origin import OriginRule
from eyewall.adapters.web.protocol.deflate import CompressionConfig
from eyewall.application.concurrency.tasks import CANCEL_GRACE, is_cancelled, is_end
from eyewall.application.dispatch.middleware import trace
from eyewall.application.dispatch.router import Routes, decorator
from eyewall.application.hub.hub import Hub, Middleware, OrderingKey
from eyewall.application.lifecycle.drain import Step, run_steps
from eyewall.application.node import Node
from eyewall.application.ports.bus import PubSub
from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import (
    AccessController,
    Authenticator,
    Limiter,
    Logger,
    Metrics,
    Tracer,
    Validator,
)
from eyewall.application.ports.stores import HistoryStore, OfflineStore, StateStore
from eyewall.browser import client_routes
from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.duration import Seconds, seconds
from eyewall.domain.errors import Misuse
from eyewall.domain.outbox import QueueConfig
from eyewall.server.assemble import Transport, assemble, own_node_id
from eyewall.server.background import Background, BackgroundTask, Work, call
from eyewall.server.descriptors import (
    AcceptPauses,
    discard_unwritten_output,
    fill_standard_streams,
    raise_limit,
    warn_if_too_few,
)
from eyewall.server.listener import (
    CannotListen,
    ListenArguments,
    Listener,
    check_port,
    listen_address,
)
from eyewall.server.ops import OpsAddress
from eyewall.server.options import Options
from eyewall.server.registry import F, Hook, Registry, Runtime, check_hook
from eyewall.server.runner import check_no_loop, check_not_importing, run_until_signal
from eyewall.server.safety import RUNNING, allowed_unsafe
from eyewall.server.start_page import start_page
from eyewall.settings.hosts import LOOPBACK
from eyewall.settings.settings import Settings, source_of

P = ParamSpec("P")

DEFAULT_SETTINGS = Settings()
"""Where a server listens that was built without settings."""
CLOSE_SHARE = 0.2
"""The part of a shutdown's timeout that is reserved for flushing and closing connections."""
RELEASE_TIMEOUT = 5.0
"""Seconds that the adapters and the port have to close, beyond the shutdown's timeout: a store
that does not answer must not keep the process alive."""


class Server:
    """A real-time hub and its WebSocket server.

    Times are seconds or ``timedelta``; a limit of None is off. Without ``pubsub``, ``state`` or
    ``history`` the server has one of its own in memory. ``client_commands`` are the ``system:``
    requests that clients may send: True (all), False (none), or a set of ``join``, ``leave``,
    ``publish``, ``members``, ``presence``, ``typing`` and ``history``. Without ``offline`` no
    message is stored for users who are away, and a message that asks for it raises ``Misuse``.
    ``pages`` are Tornado rules, such as ``("/login", Login)``, that are served beside the
    sockets when the server listens. Raises ``ValueError`` for a wrong option.

    ``logger``, here and as ``server.logger``, writes lines with fields:
    ``server.logger.info("order_paid", order=7)``.

    >>> server = Server()
    >>> @server.on("echo:ping")
    ... async def ping(ctx, msg):
    ...     await ctx.send("echo:pong", "message", {"echo": msg.data["text"]})
    >>> server.run(port=8080)
    """

    def __init__(
        self,
        *,
        workers: int = 64,
        worker_queue: int = 2048,
        lane_queue: int = 64,
        check_origin: OriginRule = None,
        queue: QueueConfig | None = None,
        heartbeat: HeartbeatConfig | None = None,
        max_message_size: int = 1 << 20,
        max_connections: int | None = None,
        max_connections_per_user: int | None = None,
        max_connections_per_address: int | None = None,
        compression: CompressionConfig | None = None,
        handshake_timeout: Seconds = 10.0,
        authenticator: Authenticator | Callable[..., Any] | None = None,
        access_controller: AccessController | None = None,
        validator: Validator | Callable[..., Any] | None = None,
        metrics: Metrics | None = None,
        logger: Logger | None = None,
        tracer: Tracer | Callable[..., Any] | None = None,
        pubsub: PubSub | None = None,
        state: StateStore | None = None,
        history: HistoryStore | None = None,
        offline: OfflineStore | None = None,
        offline_default: str = "drop",
        node_id: str | None = None,
        cluster_channel: str = "eyewall",
        lease: Seconds = 10.0,
        session_ttl: Seconds = 120.0,
        presence_grace: Seconds = 0.0,
        client_commands: bool | Collection[str] = False,
        implicit_rooms: bool = True,
        trusted_proxies: Collection[str] = (),
        allowed_hosts: Collection[str] | None = None,
        refuse_with: str = "http",
        limiter: Limiter | Callable[..., Any] | None = None,
        start_page: bool = True,
        pages: Collection[Any] = (),
        ops_host: str = LOOPBACK,
        ops_port: int | None = None,
        allow_unsafe: Collection[str] = (),
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "tracer")}
        self.options = Options(given)
        allowed_unsafe(self.options.allow_unsafe)
        self.settings: Settings | None = None
        """The settings that the server was built from; None without settings."""
        self._is_embedded = False
        """Whether another Tornado application has the server's routes."""
        self._metrics = metrics
        self._ops = None if ops_port is None else OpsAddress(ops_host, ops_port)
        self._handshake_timeout = seconds(handshake_timeout, "handshake_timeout")
        self._attach(*assemble(self.options))
        self._pages = tuple(pages)
        if tracer is not None:
            self.use(trace(tracer))

    def _attach(self, node: Node, transport: Transport) -> None:
        """Use a node and its transport, with nothing registered and nothing started."""
        self._node, self._transport = node, transport
        # An embedding application may accept connections before the node has started.
        node.parts.connections.draining = True
        self.logger: Logger = node.ports.logger
        """The logger of the server, for lines of the application too:
        ``server.logger.info("order_paid", order=7)``. It is the one given as ``logger``, else
        the one that the settings describe."""
        self._logger = node.parts.logger
        self._clock = node.ports.clock
        self._background = Background(self._logger)
        self._registry = Registry(Runtime(node, self._background, self._stop_and_drop))
        self._listener: Listener | None = None
        self._process = os.getpid()
        """The process that the node belongs to."""
        self._is_fresh = True
        """Whether the node has never been started."""
        self._started = False
        self._starting: asyncio.Future[None] | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()

    @classmethod
    def from_settings(cls, settings: Settings | None = None, **overrides: Any) -> Server:
        """Return a server built from ``settings``; None reads file and environment.

        ``overrides`` are keywords of ``Server`` that replace settings. Raises ``SettingsError``
        for wrong settings, and ``ImportError`` if an extra that they need is not installed.
        """
        from eyewall.container import Container, check_extras  # noqa: PLC0415  (it builds servers)

        settings = settings or Settings.load()
        check_extras(settings)
        container = Container(settings=settings)
        server: Server = container.server(**overrides)
        return server

    @property
    def hub(self) -> Hub:
        """The hub for rooms, presence and messages; the same as ``ctx.hub`` in handlers."""
        return self._registry.hub

    # --- what an application registers

    def on(
        self,
        pattern: str,
        *middleware: Middleware,
        version: str | None = None,
        ordering_key: OrderingKey | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator that registers a handler for the topics of ``pattern``.

        ``pattern`` is a topic, or ends with ``*`` (``chat:*``). Handlers of messages with the
        same ``ordering_key`` run one after another (default: per connection). Raises
        ``ValueError`` for a wrong pattern.
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
        """Register a handler for the topics of ``pattern``, as ``on`` does.

        Raises ``ValueError`` for a wrong pattern, handler or middleware.
        """
        self.hub.handle(pattern, handler, *middleware, version=version, ordering_key=ordering_key)

    def use(self, *middleware: Middleware) -> None:
        """Add middleware around all handlers; the first one is the outermost."""
        self.hub.use(*middleware)

    def include(self, routes: Routes, prefix: str = "") -> None:
        """Register the routes of a group, with ``prefix`` before each pattern."""
        self._registry.current.node.parts.router.include(routes, prefix)

    def on_startup(self, fn: F) -> F:
        """Call ``fn()``, plain or async, when the hub is up, before clients are accepted.

        Returns ``fn``. Raises ``ValueError`` if it can't be called.
        """
        self._registry.startup.append(check_hook(fn))
        return fn

    def on_shutdown(self, fn: F) -> F:
        """Call ``fn()``, plain or async, when all connections are closed, before the adapters.

        Returns ``fn``. Raises ``ValueError`` if it can't be called.
        """
        self._registry.shutdown.append(check_hook(fn))
        return fn

    @overload
    def background(self, fn: Coroutine[Any, Any, Any]) -> BackgroundTask: ...
    @overload
    def background(
        self, fn: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> BackgroundTask: ...
    def background(self, fn: Work, *args: Any, **kwargs: Any) -> BackgroundTask:
        """Run ``fn(*args, **kwargs)``, or a coroutine, as a task that the server owns.

        Returns a handle with ``cancel()`` and ``done``. A failure is logged; shutdown cancels the
        task. ``fn`` may be a coroutine function, or a plain one, which is called on the event loop
        and must not block it. Before the start the task waits for the start; a function then runs
        in each life of the server, a coroutine in one. On a running server, and from any thread,
        the task runs at once and in this life only. Raises ``ValueError`` for work that can't be
        run, or not with these arguments.
        """
        registry = self._registry
        run = registry.current.background.add(fn, *args, **kwargs)
        return BackgroundTask(run, lambda: registry.current.background)

    # --- where clients come in

    def routes(self, path: str = "/ws") -> list[Any]:
        """Return Tornado rules that accept clients at ``path``, for a Tornado application.

        ``await server.start()`` then starts the hub, and does not listen itself.
        """
        self._is_embedded = True
        return self._transport.routes(path)

    # --- life

    @property
    def port(self) -> int | None:
        """The port that the server listens on; None while it does not."""
        return None if self._listener is None else self._listener.port

    @property
    def ops_port(self) -> int | None:
        """The port of the ops address; None while there is none."""
        return None if self._ops is None else self._ops.port

    @property
    def url(self) -> str:
        """The address for clients; raises ``RuntimeError`` while the server does not listen."""
        if self._listener is None:
            raise RuntimeError("the server does not listen: start it with a port")
        return self._listener.url

    async def start(
        self,
        host: str | EllipsisType = ...,
        port: int | EllipsisType | None = ...,
        ssl: tls.SSLContext | EllipsisType | None = ...,
        *,
        pages: Sequence[Any] = (),
    ) -> None:
        """Start the hub; with a ``port`` (0: a free one), listen there too.

        By default ``host`` is 127.0.0.1, and there is no port and no TLS. A server built from
        settings listens where they say, unless ``routes`` was called; arguments override the
        settings, and ``port=None`` does not listen. With ``ops_port`` the server listens there
        in any case, for an orchestrator and a monitor. ``pages`` are further Tornado rules to
        serve, before those of ``Server``.

        A server may be started again after a shutdown. Unless ``node_id`` was given, the node
        has a new id after each further start, and in each forked process.

        Raises ``OSError`` if the port is not available, ``Unavailable`` if an adapter can't be
        opened, the error of a startup hook, ``RuntimeError`` if the server runs already or is
        shut down meanwhile, ``UnsafeConfiguration`` for adapters that would split a cluster
        (unless ``allow_unsafe`` has ``"split_state"``), and ``Misuse`` in a fork of the process
        that has started the server, or while ``eyewall serve`` imports its module. After an
        error nothing is left behind, and ``start`` may be called again.
        """
        await self._start((host, port, ssl), [*pages, *self._pages])

    async def _start(self, where: ListenArguments, pages: Sequence[Any]) -> None:
        check_not_importing()
        self._check_process()
        if self._started:
            raise RuntimeError("the server has been started")
        if not self._is_fresh or self._process != os.getpid():
            self._renew_node()
        self._is_fresh = False
        ports, channel = self._node.ports, self.options.cluster_channel
        RUNNING.enter(ports, channel, allowed_unsafe(self.options.allow_unsafe), self.logger)
        try:
            self._claim_ports(self._listen(where))
        except BaseException:
            RUNNING.leave(ports, channel)
            raise
        self._started = True
        self._stopping = None
        self._background.open()
        self._ended = asyncio.Event()
        warn_if_too_few(self._logger, self.options.max_connections)
        # A task of its own: a shutdown can cancel it at any point.
        self._starting = asyncio.ensure_future(self._run_startup(pages))
        try:
            await self._starting
        except BaseException as error:
            was_stopped = self._stopping is not None
            await self._stop(0)
            if was_stopped and not is_cancelled():
                raise RuntimeError("the server was shut down while it started") from error
            raise

    def _listen(self, where: ListenArguments) -> Listener | None:
        """Return a listener at the address of the arguments or the settings; None for none."""
        host, port, ssl = where
        if port is None or (port is ... and (self.settings is None or self._is_embedded)):
            return None
        return Listener(*listen_address(self.settings or DEFAULT_SETTINGS, host, port, ssl))

    def _claim_ports(self, listener: Listener | None) -> None:
        """Listen on the ops address too; on an error release both."""
        try:
            if self._ops is not None:
                self._ops.listen(None if listener is None else listener.port)
        except BaseException:
            if listener is not None:
                listener.release()
            raise
        self._listener = listener

    def _check_process(self) -> None:
        """Raise ``Misuse`` in a fork of the process in which the server runs: that process owns
        the sockets, connections and adapters."""
        if self._started and self._process != os.getpid():
            raise Misuse(
                f"the server was started in process {self._process}, of which this one "
                f"({os.getpid()}) is a fork: start it after the fork, in each process"
            )

    def _renew_node(self) -> None:
        """Attach a new node to the same transport: the previous one has been used, or belongs
        to the parent process."""
        self._process = os.getpid()
        self._node = self._node.successor(own_node_id(self.options))
        self._node.parts.connections.draining = True
        self._transport.transport_events = self._node.transport_events
        if self._transport.refusals is not None:
            self._transport.refusals.count = self._node.parts.stats.refused
        self._registry.attach(Runtime(self._node, self._background, self._stop_and_drop))

    async def _run_startup(self, pages: Sequence[Any]) -> None:
        paused = AcceptPauses(self._node.parts.stats, self._logger, self._clock).paused
        ops = health_routes(self._not_ready, getattr(self._metrics, "render", None))
        if self._ops is not None:
            self._ops.serve(
                ops,
                self._handshake_timeout,
                logger=self._logger,
                paused=paused,
                stalls=self._node.parts.stalls,
            )
            ops = []
        await self._node.start()
        self._transport.start()
        await self._registry.call_startup_hooks()
        if self._stopping is not None:
            raise asyncio.CancelledError  # a hook has swallowed the cancellation
        # The file depends on the working folder; without it authentication may be off.
        settings = self.settings
        read_from = {} if settings is None else {"settings": source_of(settings)}
        if self._listener is not None:
            rules = [*self._transport.routes("/ws"), *client_routes(), *ops, *pages]
            self._listener.serve(
                rules,
                self._handshake_timeout,
                hosts=self._transport.hosts,
                refusals=self._transport.refusals,
                paused=paused,
                stalls=self._node.parts.stalls,
            )
            self._logger.info(
                "listening",
                url=self.url,
                addresses=self._listener.addresses,
                families=self._listener.families,
                node_id=self.hub.node_id,
                **read_from,
            )
        elif settings is not None:
            self._logger.info("started", node_id=self.hub.node_id, **read_from)
        self._background.start()

    def _not_ready(self) -> list[str]:
        if not self._started:
            return ["not started"]
        if self._starting is not None and not self._starting.done():
            return ["starting"]
        return ["draining"] if self._node.parts.connections.draining else []

    async def shutdown(self, timeout: Seconds = 10.0) -> None:
        """Drain and stop within ``timeout`` seconds.

        Clients are told, and no more are accepted; running handlers finish, queued messages are
        written, every connection closes with 1012. A second call waits for the first. A handler
        or hook that awaits ``shutdown`` is itself waited for, until the deadline;
        ``server.background(server.shutdown)`` does not wait.
        """
        await self._registry.current.stop(seconds(timeout, "timeout"))

    async def _stop_and_drop(self, timeout: float) -> None:
        await self._stop(timeout)
        self._background.drop_coroutines()

    async def _stop(self, timeout: float) -> None:
        self._check_process()
        if self._stopping is None and self._started:
            self._stopping = asyncio.ensure_future(self._run_shutdown(timeout))
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    async def _run_shutdown(self, timeout: float) -> None:
        node, clock = self._node, self._clock
        begun = clock.now()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting], timeout=CANCEL_GRACE)
        node.parts.connections.draining = True
        self._transport.refuse_new()
        work_until = begun + timeout * (1 - CLOSE_SHARE)
        unfinished = await run_steps(
            [
                ("tell", node.parts.shutdown_notice.announce),
                ("read", self._transport.drain_input),
                ("work", node.finish_work),
            ],
            clock=clock,
            until=work_until,
        )
        await node.cut_work()
        await node.parts.shutdown_notice.close()
        left = max(0.1, begun + timeout - clock.now())
        unfinished += await run_steps(
            [("hooks", node.finish_hooks), ("close", lambda: self._transport.stop(left))],
            clock=clock,
            until=clock.now() + left + 0.1,
        )
        # Shutdown hooks have at least as long as a connection has to close.
        unfinished += await run_steps(
            [
                ("on_shutdown", partial(self._call_shutdown_hook, hook))
                for hook in self._registry.shutdown
            ],
            clock=clock,
            until=clock.now() + max(0.1, begun + timeout - clock.now()),
        )
        await self._background.close()
        last: list[Step] = [("stop", node.stop)]
        if self._listener is not None:
            last.append(("listener", self._listener.close))
        if self._ops is not None:
            last.append(("ops", self._ops.close))
        unfinished += await run_steps(last, clock=clock, until=clock.now() + RELEASE_TIMEOUT)
        RUNNING.leave(node.ports, self.options.cluster_channel)
        self._listener = None
        self._started = False
        self._ended.set()
        if unfinished:
            self._logger.warning("unfinished_at_shutdown", steps=unfinished)
        self._logger.info("stopped", node_id=self.hub.node_id)

    async def _call_shutdown_hook(self, hook: Hook) -> None:
        try:
            await call(hook)
        except BaseException as error:
            if is_end(error):
                raise
            self._logger.error("on_shutdown_failed", error=shown(error), exc_info=error)

    async def __aenter__(self) -> Server:
        try:
            await self.start(port=None)
        except BaseException:
            self._background.drop_coroutines()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    def run(
        self,
        host: str | EllipsisType = ...,
        port: int | EllipsisType = ...,
        ssl: tls.SSLContext | EllipsisType | None = ...,
        *,
        pages: Sequence[Any] = (),
    ) -> None:
        """Serve until SIGTERM or SIGINT, drain, and return. A second signal ends at once.

        Arguments that are left out come from the settings that the server was built from;
        without settings they are 127.0.0.1, 8080 and no TLS. A browser on this machine gets a
        page at ``/`` (``start_page``), unless one of ``pages``, here or of ``Server``, is there.

        ``run`` returns too when ``shutdown`` was called, which is the only way outside the main
        thread: Python delivers signals to that one. ``run`` changes its process: it raises the
        limit of descriptors (``RLIMIT_NOFILE``) as far as allowed, and writes the log of Tornado
        and the standard library as the server's own lines, unless the application has set up
        ``logging`` or has a logger of its own.

        If the port is not available, ``run`` says so on standard error and raises
        ``SystemExit(1)`` (``start`` raises ``OSError``). It raises the other errors of ``start``,
        and ``RuntimeError`` if an event loop runs in this thread already: use ``start`` there.
        """
        try:
            serve(self, host, port, ssl, pages=pages)
        except CannotListen as error:
            # Standard error may be closed, broken, or missing.
            with suppress(AttributeError, OSError, ValueError):
                sys.stderr.write(f"eyewall: {error.explain('port=')}\n")
            raise SystemExit(1) from None

    def _run(
        self,
        host: str | EllipsisType,
        port: int | EllipsisType,
        ssl: tls.SSLContext | EllipsisType | None,
        pages: Sequence[Any],
    ) -> None:
        check_not_importing()
        check_no_loop()
        fill_standard_streams()
        raise_limit()
        try:
            where = listen_address(self.settings or DEFAULT_SETTINGS, host, port, ssl)
            check_port(where[1])  # start() takes None for a server that does not listen
            first = start_page() if self.options.start_page else ()
            rules = [*pages, *self._pages, *first]
            with written_as(self.logger):
                asyncio.run(
                    run_until_signal(
                        start=lambda: self._start(where, rules),
                        ended=lambda: self._ended.wait(),
                        stop=self.shutdown,
                    )
                )
        finally:
            self._background.drop_coroutines()
            discard_unwritten_output()


def registry_of(server: Server) -> Registry:
    """Return the registry of a server, in which the test kit overrides the runtime."""
    return server._registry  # noqa: SLF001  (of this module)


def rebuilt(server: Server, build: Callable[[Options], tuple[Node, Transport]]) -> Server:
    """Return a copy of a server, with its registrations, on the node and transport that
    ``build`` makes of its options. The test kit builds a server without sockets in this way."""
    other = copy.copy(server)
    other._ops = None  # noqa: SLF001  (the copy does not listen)
    other._attach(*build(server.options))  # noqa: SLF001
    registry_of(other).adopt(registry_of(server))
    return other


def serve(
    server: Server,
    host: str | EllipsisType = ...,
    port: int | EllipsisType = ...,
    ssl: tls.SSLContext | EllipsisType | None = ...,
    *,
    pages: Sequence[Any] = (),
) -> None:
    """Do what ``server.run`` does, but raise ``CannotListen`` if the port is not available, for
    a caller with a message of its own."""
    server._run(host, port, ssl, pages)  # noqa: SLF001  (of this module)
