"""The server: a hub, the sockets before it, and the order in which both begin and end."""

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
from eyewall.application.dispatch.router import Routes, named
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
from eyewall.server.assemble import Front, assemble, own_node_id
from eyewall.server.background import Background, BackgroundTask, Work, call
from eyewall.server.descriptors import (
    Shortage,
    drop_unwritten,
    fill_standard_streams,
    raise_limit,
    warn,
)
from eyewall.server.listener import CannotListen, Listener, check_port, place
from eyewall.server.ops import OpsAddress
from eyewall.server.options import Options
from eyewall.server.registry import F, Hook, Inside, Registry, checked
from eyewall.server.runner import check_no_loop, check_not_importing, run_until_signal
from eyewall.server.safety import RUNNING, allowed
from eyewall.server.start_page import start_page
from eyewall.settings.hosts import LOOPBACK
from eyewall.settings.settings import Settings, source_of

P = ParamSpec("P")

PLAIN = Settings()
"""Where a server listens that has no settings of its own."""
CLOSE_SHARE = 0.2
"""The part of a shutdown's time that is kept for flushing and closing connections."""
LETTING_GO = 5.0
"""Seconds that the adapters and the port have to close, whatever was left of the time: an
engine that does not answer must not keep the process."""


class Server:
    """A real-time hub and its WebSocket server. See ``docs`` for the whole story.

    Limits of None are off; times are seconds. What is left out of ``pubsub``, ``state``
    and ``history`` is in memory, for this server alone. ``client_commands`` says what clients
    may do by themselves: True, False, or a set of ``join``, ``leave``, ``publish``, ``members``,
    ``presence``, ``typing`` and ``history``. Without ``offline`` nothing is kept for
    users who are away, and asking for it raises ``Misuse``. ``pages`` are Tornado rules, such
    as ``("/login", Login)``, that a server which listens itself serves beside the sockets.

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
        allowed(self.options.allow_unsafe)
        self.settings: Settings | None = None
        """What it was built from; None for one that was built by keywords alone."""
        self._is_embedded = False
        """Whether another application lets clients in."""
        self._metrics = metrics
        self._ops = None if ops_port is None else OpsAddress(ops_host, ops_port)
        self._handshake_timeout = seconds(handshake_timeout, "handshake_timeout")
        self._stand_before(*assemble(self.options))
        self._pages = tuple(pages)
        if tracer is not None:
            self.use(trace(tracer))

    def _stand_before(self, node: Node, sockets: Front) -> None:
        """Begin anew, with nothing registered."""
        self._node, self._sockets = node, sockets
        # An application that is there already may accept before the node has started.
        node.parts.connections.draining = True
        self.logger: Logger = node.ports.logger
        """What the server writes its lines with, for those of the application too:
        ``server.logger.info("order_paid", order=7)``. It is what was given as ``logger``, else
        the one of the settings."""
        self._logger = node.parts.logger
        self._clock = node.ports.clock
        self._background = Background(self._logger)
        self._registry = Registry(Inside(node, self._background, self._end))
        self._listener: Listener | None = None
        self._process = os.getpid()
        """The process that the node belongs to."""
        self._is_fresh = True
        """Whether the node has not been started yet."""
        self._started = False
        self._starting: asyncio.Future[None] | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()

    @classmethod
    def from_settings(cls, settings: Settings | None = None, **overrides: Any) -> Server:
        """Build a server from ``settings`` (None reads file and environment).

        ``overrides`` are ``Server``'s own keywords. Raises ``SettingsError``, and ``ImportError``
        where extras are missing that the settings need.
        """
        from eyewall.container import Container, check_extras  # noqa: PLC0415  (it builds servers)

        settings = settings or Settings.load()
        check_extras(settings)
        container = Container(settings=settings)
        server: Server = container.server(**overrides)
        return server

    @property
    def hub(self) -> Hub:
        """Rooms, presence and messages: what handlers have as ``ctx.hub``."""
        return self._registry.hub

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
        self._registry.asked.node.parts.router.include(routes, prefix)

    def on_startup(self, fn: F) -> F:
        """Run ``fn()`` when the hub is up and before anybody is let in.

        Raises ``ValueError`` for what can't be called.
        """
        self._registry.startup.append(checked(fn))
        return fn

    def on_shutdown(self, fn: F) -> F:
        """Run ``fn()`` when all connections are closed, before the adapters are.

        Raises ``ValueError`` for what can't be called.
        """
        self._registry.shutdown.append(checked(fn))
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
        registry = self._registry
        run = registry.asked.background.add(fn, *args, **kwargs)
        return BackgroundTask(run, lambda: registry.asked.background)

    # --- where clients come in

    def routes(self, path: str = "/ws") -> list[Any]:
        """Return Tornado rules that let clients in at ``path``.

        For an application that is there already; ``await server.start()`` then starts
        what runs beside the sockets, and listens nowhere itself.
        """
        self._is_embedded = True
        return self._sockets.routes(path)

    # --- life

    @property
    def port(self) -> int | None:
        """The port that it listens on; None while it does not."""
        return None if self._listener is None else self._listener.port

    @property
    def ops_port(self) -> int | None:
        """The port of the ops address; None while there is none."""
        return None if self._ops is None else self._ops.port

    @property
    def url(self) -> str:
        """Where clients connect; raises ``RuntimeError`` while it does not listen."""
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

        Left out, ``host`` is 127.0.0.1, and there is no port and no TLS. A server from settings
        listens where they say, unless its ``routes`` were given to an application; what is
        given here counts more, and ``port=None`` does not listen.

        Each start is a life of its own: unless ``node_id`` was given, the node gets a new
        id with each further life, and in each process that was forked from this one.

        With ``ops_port`` it listens there in any case, for what an orchestrator and a monitor ask.

        ``pages`` are further Tornado rules to serve, before those of ``Server``.

        Raises ``OSError`` if the port can't be had, ``Unavailable`` if an adapter can't be
        opened, what a startup hook raised, ``RuntimeError`` if it was started or was shut
        down meanwhile,
        ``UnsafeConfiguration`` for adapters that would split a cluster (unless
        ``allow_unsafe`` has ``"split_state"``), and ``Misuse`` in a fork of the process
        that has started it, and where ``eyewall serve`` imports its module. Then nothing is
        left behind, and it may be tried again.
        """
        await self._begin(host, port, ssl, [*pages, *self._pages])

    async def _begin(
        self,
        host: str | EllipsisType,
        port: int | EllipsisType | None,
        ssl: tls.SSLContext | EllipsisType | None,
        pages: Sequence[Any],
    ) -> None:
        check_not_importing()
        self._check_process()
        if self._started:
            raise RuntimeError("the server has been started")
        if not self._is_fresh or self._process != os.getpid():
            self._begin_anew()
        self._is_fresh = False
        ports, channel = self._node.ports, self.options.cluster_channel
        RUNNING.enter(ports, channel, allowed(self.options.allow_unsafe), self.logger)
        try:
            self._take_ports(self._listen(host, port, ssl))
        except BaseException:
            RUNNING.leave(ports, channel)
            raise
        self._started = True
        self._stopping = None
        self._background.open()
        self._ended = asyncio.Event()
        warn(self._logger, self.options.max_connections)
        # A task of its own, so that a shutdown can end it wherever it is.
        self._starting = asyncio.ensure_future(self._start(pages))
        try:
            await self._starting
        except BaseException as error:
            was_stopped = self._stopping is not None
            await self._stop(0)
            if was_stopped and not is_cancelled():
                raise RuntimeError("the server was shut down while it started") from error
            raise

    def _listen(
        self,
        host: str | EllipsisType,
        port: int | EllipsisType | None,
        ssl: tls.SSLContext | EllipsisType | None,
    ) -> Listener | None:
        """Listen where ``start`` was told to, or the settings say."""
        if port is ... and (self.settings is None or self._is_embedded):
            return None
        return None if port is None else Listener(*place(self.settings or PLAIN, host, port, ssl))

    def _take_ports(self, listener: Listener | None) -> None:
        """Take the ops address, too, if there is one; or neither of them."""
        try:
            if self._ops is not None:
                self._ops.listen(None if listener is None else listener.port)
        except BaseException:
            if listener is not None:
                listener.release()
            raise
        self._listener = listener

    def _check_process(self) -> None:
        """Raise ``Misuse`` in a fork of the process in which the server runs: the sockets,
        connections and adapters are that one's."""
        if self._started and self._process != os.getpid():
            raise Misuse(
                f"the server was started in process {self._process}, of which this one "
                f"({os.getpid()}) is a fork: start it after the fork, in each process"
            )

    def _begin_anew(self) -> None:
        """Have a new node, before the same sockets: the one before has had its life, or
        belongs to the process that this one was forked from."""
        self._process = os.getpid()
        self._node = self._node.successor(own_node_id(self.options))
        self._node.parts.connections.draining = True
        self._sockets.intake = self._node.intake
        if self._sockets.refusals is not None:
            self._sockets.refusals.count = self._node.parts.stats.refused
        self._registry.become(Inside(self._node, self._background, self._end))

    async def _start(self, pages: Sequence[Any]) -> None:
        paused = Shortage(self._node.parts.stats, self._logger, self._clock).paused
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
        self._sockets.start()
        for hook in self._registry.startup:
            try:
                await call(hook)
            except Exception:
                raise
            except BaseException as error:
                if is_end(error):
                    raise
                raise RuntimeError(f"a startup hook raised {shown(error)}") from error
        if self._stopping is not None:
            raise asyncio.CancelledError  # which a hook has swallowed
        # In another folder it is another file, or none: then authentication is off.
        settings = self.settings
        read_from = {} if settings is None else {"settings": source_of(settings)}
        if self._listener is not None:
            rules = [*self._sockets.routes("/ws"), *client_routes(), *ops, *pages]
            self._listener.serve(
                rules,
                self._handshake_timeout,
                hosts=self._sockets.hosts,
                refusals=self._sockets.refusals,
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
        """Drain and stop, within ``timeout`` seconds: clients are told and let in no more,
        running handlers finish, what is queued is written, every connection closes with 1012.

        May be called twice: the second call waits for the first. A handler or hook that
        awaits it is among those that it waits for, until the deadline; there,
        ``server.background(server.shutdown)`` does not wait.
        """
        await self._registry.asked.stop(seconds(timeout, "timeout"))

    async def _end(self, timeout: float) -> None:
        await self._stop(timeout)
        self._background.drop_coroutines()

    async def _stop(self, timeout: float) -> None:
        self._check_process()
        if self._stopping is None and self._started:
            self._stopping = asyncio.ensure_future(self._shut_down(timeout))
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    async def _shut_down(self, timeout: float) -> None:
        node, clock = self._node, self._clock
        begun = clock.now()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting], timeout=CANCEL_GRACE)
        node.parts.connections.draining = True
        self._sockets.refuse_new()
        work_until = begun + timeout * (1 - CLOSE_SHARE)
        unfinished = await run_steps(
            [
                ("tell", node.parts.shutdown_notice.announce),
                ("read", self._sockets.drain_input),
                ("work", node.finish_work),
            ],
            clock=clock,
            until=work_until,
        )
        await node.cut_work()
        await node.parts.shutdown_notice.close()
        left = max(0.1, begun + timeout - clock.now())
        unfinished += await run_steps(
            [("hooks", node.finish_hooks), ("close", lambda: self._sockets.stop(left))],
            clock=clock,
            until=clock.now() + left + 0.1,
        )
        # The application's own clean-up may take as long as a client's goodbye.
        unfinished += await run_steps(
            [("on_shutdown", partial(self._quietly, hook)) for hook in self._registry.shutdown],
            clock=clock,
            until=clock.now() + max(0.1, begun + timeout - clock.now()),
        )
        await self._background.close()
        last: list[Step] = [("stop", node.stop)]
        if self._listener is not None:
            last.append(("listener", self._listener.close))
        if self._ops is not None:
            last.append(("ops", self._ops.close))
        unfinished += await run_steps(last, clock=clock, until=clock.now() + LETTING_GO)
        RUNNING.leave(node.ports, self.options.cluster_channel)
        self._listener = None
        self._started = False
        self._ended.set()
        if unfinished:
            self._logger.warning("unfinished_at_shutdown", steps=unfinished)
        self._logger.info("stopped", node_id=self.hub.node_id)

    async def _quietly(self, hook: Hook) -> None:
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

        What is left out is as the settings say that the server was built from; without any
        it is 127.0.0.1, 8080 and no TLS. A browser on this machine is shown a page at ``/``
        (``start_page``), unless one of ``pages`` stands there: these, and then those of ``Server``.

        Returns too when it was shut down in another way. In a thread that is not the main
        one it takes no signals: there, that is how it ends. It changes its process: the limit
        of descriptors is raised as far as allowed (``RLIMIT_NOFILE``), and what Tornado and the
        standard library log is written as the server's own lines, unless the application
        has set up ``logging`` or brought a logger of its own.

        Where the port can't be had it says so on standard error, and raises ``SystemExit(1)``;
        ``start`` raises ``OSError`` instead. Whatever else ``start`` raises, it raises too, and
        ``RuntimeError`` where an event loop runs in this thread already: ``start`` is for that.
        """
        try:
            serve(self, host, port, ssl, pages=pages)
        except CannotListen as error:
            # Standard error may be closed, broken, or none at all.
            with suppress(AttributeError, OSError, ValueError):
                sys.stderr.write(f"eyewall: {error.why('port=')}\n")
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
            where = place(self.settings or PLAIN, host, port, ssl)
            check_port(where[1])  # of None start() would make a server that nobody can reach
            first = start_page() if self.options.start_page else ()
            shown = [*pages, *self._pages, *first]
            with written_as(self.logger):
                asyncio.run(
                    run_until_signal(
                        start=lambda: self._begin(*where, shown),
                        ended=lambda: self._ended.wait(),
                        stop=self.shutdown,
                    )
                )
        finally:
            self._background.drop_coroutines()
            drop_unwritten()


def behind(server: Server) -> Registry:
    """Return the registry of a server, in which the test kit lets a node of its own stand in."""
    return server._registry  # noqa: SLF001  (the other half of this module)


def rebuilt(server: Server, build: Callable[[Options], tuple[Node, Front]]) -> Server:
    """Return a server of the same options and with what is registered so far, before what
    ``build`` makes of the options. This is the test kit's way to one without sockets."""
    other = copy.copy(server)
    other._ops = None  # noqa: SLF001  (it listens nowhere)
    other._stand_before(*build(server.options))  # noqa: SLF001
    behind(other).adopt(behind(server))
    return other


def serve(
    server: Server,
    host: str | EllipsisType = ...,
    port: int | EllipsisType = ...,
    ssl: tls.SSLContext | EllipsisType | None = ...,
    *,
    pages: Sequence[Any] = (),
) -> None:
    """Do what ``server.run`` does, but raise ``CannotListen`` for a port that can't be had, for a
    caller with a message of its own."""
    server._run(host, port, ssl, pages)  # noqa: SLF001  (the other half of this module)
