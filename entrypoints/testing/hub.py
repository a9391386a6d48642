"""A server in a test, without sockets and real time.

Rules of this file:

1. The server itself does not change: each ``TestHub`` has a node of its own, built from the
   server's options, with the registrations of the moment when it is opened.
2. Time passes only by ``advance``. When an await of the kit returns, everything has happened that
   needs no time to pass.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from eyewall.adapters.web.http.origin import Origins
from eyewall.adapters.web.http.proxies import TrustedProxies
from eyewall.application.hub.hub import Hub
from eyewall.application.node import Node
from eyewall.domain.connection import HeartbeatConfig
from eyewall.domain.duration import Seconds, seconds
from eyewall.domain.errors import ConnectionClosed, Forbidden
from eyewall.domain.handshake import Fields, Handshake, Headers
from eyewall.domain.identity import ConnMeta, UserId
from eyewall.server.assemble import Transport, build_node
from eyewall.server.options import Options
from eyewall.server.server import Server, rebuilt, registry_of
from eyewall.testing.client import TestClient, story
from eyewall.testing.links import CODEC, FakeLink, FakeOutbound, NoTransport
from eyewall.testing.logs import RecordingLogger
from eyewall.testing.world import World

MAX_WORKERS = 8
"""Handlers that run at the same time: nearly all tests have fewer clients, and 64 workers take
as long to start and stop as the rest of a test."""

CONNECT_TIMEOUT = 5.0
"""Real seconds that an authenticator or ``on_connect`` hook may wait for something outside."""


class TestHub:
    """Runs a server in a test: an async context manager, from start to shutdown.

    ``beside`` an open ``TestHub`` it is a further node of that cluster: both share the time, the
    bus and the stores. ``at`` is the date and time at which the test begins (None: now).
    ``patience`` is the number of real seconds that ``receive`` and ``request`` wait for results
    from outside, such as a database; by default they fail at once. ``options`` are keywords of
    ``Server`` that override its own. Unless given here, the bus and the stores are in memory
    (``offline`` only if the server has one), and there are at most 8 ``workers``.

    >>> async with TestHub(server) as th:
    ...     alice = await th.connect(user="alice")
    ...     await alice.send("echo:ping", {"text": "hello"})
    ...     assert (await alice.receive()).data == {"echo": "hello"}
    """

    __test__ = False  # pytest takes classes of such a name for tests

    def __init__(
        self,
        server: Server,
        *,
        beside: TestHub | None = None,
        at: datetime | None = None,
        patience: Seconds = 0.0,
        **options: Any,
    ) -> None:
        self.logs = RecordingLogger()
        """The log of the server in the test; its own logger gets nothing."""
        self.clients: list[TestClient] = []
        """All clients that have connected, refused ones too."""
        self.patience = seconds(patience, "patience")
        self.world: World = World(at) if beside is None else beside.world
        self._original = server
        self._changes = options
        self._options = server.options
        self._server: Server | None = None

    async def __aenter__(self) -> TestHub:
        if self._server is not None:
            raise RuntimeError("the hub is open")
        server = self._server = rebuilt(self._original, self._build)
        self.world.pools.append(self._node.parts.threads)
        registry_of(self._original).override(registry_of(server).runtime)
        try:
            with self.world.using_clock():
                await server.start(port=None)
        except BaseException:
            self._detach()
            raise
        self.world.install_clock()
        try:
            await self.settle()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        server = self._open
        try:
            await self.world.end(server.shutdown(0))
        finally:
            self._detach()

    def _detach(self) -> None:
        server = self._open
        registry_of(self._original).restore(registry_of(server).runtime)
        self.world.pools.remove(self._node.parts.threads)
        self.world.restore_clock()
        self._server = None

    def _build(self, options: Options) -> tuple[Node, Transport]:
        self.world.hubs += 1
        number = self.world.hubs
        kept = options.node_id if number == 1 else None
        given: dict[str, Any] = {
            "node_id": kept or f"test-{number}",
            "logger": self.logs,
            "workers": min(options.workers, MAX_WORKERS),
            "pubsub": self.world.bus,
            "state": self.world.state,
            "history": self.world.history,
            "offline": None if options.offline is None else self.world.offline,
        }
        self._options = options.changed(given | self._changes)
        self._origins = Origins(self._options.check_origin)
        self._proxies = TrustedProxies(self._options.trusted_proxies)
        node = build_node(
            self._options,
            FakeOutbound(),
            clock=self.world.clock,
            codec=CODEC,
            logger=self._options.logger or self.logs,
        )
        return node, NoTransport()

    @property
    def _open(self) -> Server:
        if self._server is None:
            raise RuntimeError('the hub is not open: "async with TestHub(server) as th"')
        return self._server

    @property
    def _node(self) -> Node:
        return registry_of(self._open).runtime.node

    # --- for the test

    @property
    def name(self) -> str:
        """The id of its node."""
        return self._options.node_id or ""

    @property
    def hub(self) -> Hub:
        """The hub; the same as ``ctx.hub`` in handlers."""
        return self.world.paced(self._open.hub)

    @property
    def running(self) -> int:
        """The number of running handlers."""
        return 0 if self._server is None else self._node.parts.receiver.running

    def now(self) -> datetime:
        """Return the date and time of the test, aware, in UTC."""
        return self.world.clock.wall()

    def advance(self, by: Seconds) -> asyncio.Task[None]:
        """Let ``by`` seconds pass for all hubs of the cluster.

        Due work happens in its order, each with everything that it causes. Time passes at the
        next await of the test: ``await th.advance(30)`` returns when it has passed, and so does
        the next await of the kit.
        """
        return self.world.advance(by)

    async def settle(self) -> None:
        """Return when everything has happened that needs no time to pass."""
        await self.world.settle()

    # --- clients

    async def connect(
        self,
        user: str | None = None,
        *,
        meta: ConnMeta | None = None,
        token: str | None = None,
        path: str = "/ws",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        ip: str | None = "127.0.0.1",
        session: bool = False,
        **known: Any,
    ) -> TestClient:
        """Connect a client and return it.

        Its identity is ``user`` with ``known`` (``roles``, ``tags``, ``attributes``,
        ``device_id``, ``expires_at``: fields of ``ConnMeta``), or ``meta``. Without these the
        server's authenticator decides, with ``token`` as a bearer token. ``session`` negotiates a
        session, as a client does that offers a subprotocol.

        Raises the error of a refused handshake (``Unauthorized``, ``Forbidden`` for the origin,
        ``Overloaded``, ``ShuttingDown``, or what the authenticator raised), and
        ``ConnectionClosed`` if an ``on_connect`` hook refused the client, which is then the last
        one of ``clients``.
        """
        node = self._node
        await self.world.passed()
        if meta is None and (user is not None or known):
            meta = ConnMeta(user_id=None if user is None else UserId(user), **known)
        elif meta is not None and (user is not None or known):
            raise ValueError("give meta, or its fields, not both")
        if meta is not None and token is not None:
            raise ValueError("give meta or its fields, or a token, not both")
        fields = Headers(headers or {})
        if token is not None:
            fields = Headers([*_pairs(fields), ("Authorization", f"Bearer {token}")])
        handshake = Handshake(
            path=path,
            query=Fields(query or {}),
            headers=fields,
            cookies=cookies or {},
            ip=self._proxies.client(ip, fields.all("X-Forwarded-For")),
            subprotocols=(CODEC.subprotocol,) if session else (),
        )
        hosts = self._proxies.hosts(ip, fields.all("Host"), fields.all("X-Forwarded-Host"))
        with self.world.using_clock():
            task = asyncio.ensure_future(
                self._open_connection(node, handshake, hosts, meta, session=session)
            )
        await self.settle()
        await asyncio.wait([task], timeout=CONNECT_TIMEOUT)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            raise AssertionError("the authenticator or an on_connect hook waits for something")
        client = task.result()
        await self.settle()
        return client

    async def _open_connection(
        self,
        node: Node,
        handshake: Handshake,
        hosts: Sequence[str],
        meta: ConnMeta | None,
        *,
        session: bool,
    ) -> TestClient:
        transport_events = node.transport_events
        allowed = self._origins.allow(handshake.headers.all("Origin"), handshake, hosts)
        if not (await allowed if inspect.isawaitable(allowed) else allowed):
            raise Forbidden("this origin is not allowed")
        reservation = transport_events.reserve(handshake.ip)
        try:
            if meta is None:
                found = transport_events.authenticate(handshake)
                meta = await found if inspect.isawaitable(found) else found
            else:
                meta = replace(meta, ip=meta.ip or handshake.ip)
        except BaseException:
            reservation.release()
            raise
        link = self._link()
        client = TestClient(self, link, meta.user_id or f"client {len(self.clients) + 1}")
        self.clients.append(client)
        opened = await transport_events.open(link, meta, reservation, session=session)
        client.welcomed(session=session)
        if not opened:
            assert client.closed is not None
            raise ConnectionClosed(f"{client.label} was refused: {client.closed.reason}")
        return client

    def _link(self) -> FakeLink:
        heartbeat = self._options.heartbeat or HeartbeatConfig()
        return FakeLink(
            self.world.clock,
            self._node.transport_events,
            queue=self._options.queue,
            write_wait=seconds(heartbeat.write_wait, "write_wait"),
            max_message_size=self._options.max_message_size,
        )

    def raised_by(self, message_id: str | None) -> BaseException | None:
        """Return what the handler of a message raised unexpectedly; None if it did not."""
        for _, event, fields in reversed(self.logs.entries):
            if event == "handler_failed" and fields.get("message_id") == message_id:
                error: BaseException | None = fields.get("exc_info")
                return error
        return None

    def story(self) -> str:
        """Return what the clients received and what went wrong, for the report of a test."""
        return story(self.clients, self.logs)


def _pairs(fields: Fields) -> Iterable[tuple[str, str]]:
    return [(name, value) for name in fields for value in fields.all(name)]
