"""A node without sockets: fakes of what is outside, and clients that speak to it.

Each fake behaves and remembers; it fails by a switch with a name (``link.full``,
``link.stalled``). Time stands still until a test calls ``advance``, and everything
that can happen at once has happened after ``settle``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.config import NodeConfig, Ports
from eyewall.application.connections.registry import Connection
from eyewall.application.node import Node
from eyewall.application.ports.message import Codec, EncodedMessage
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.identity import ConnId, ConnMeta, NodeId
from eyewall.domain.outbox import QueueConfig
from eyewall.testing import clock
from eyewall.testing.links import CODEC, FakeLink, FakeOutbound
from eyewall.testing.logs import RecordingLogger
from eyewall.testing.rest import finished, settle

__all__ = [
    "CODEC",
    "START",
    "Client",
    "FakeClock",
    "FakeLink",
    "FakeOutbound",
    "Harness",
    "RecordingLogger",
    "RecordingMetrics",
    "finished",
    "settle",
]

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
"""The date and time at which every fake clock begins."""


class FakeClock(clock.FakeClock):
    """Begins at ``START``."""

    def __init__(self, start: float = 1000.0) -> None:
        super().__init__(start, START)


# --- watching


class RecordingMetrics:
    """Implements ``Metrics``: the facts, as tuples."""

    def __init__(self) -> None:
        self.facts: list[tuple[Any, ...]] = []

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [fact[1:] for fact in self.facts if fact[0] == kind]

    def connected(self) -> None:
        self.facts.append(("connected",))

    def disconnected(self, reason: DisconnectReason) -> None:
        self.facts.append(("disconnected", reason))

    def received(self, route: str) -> None:
        self.facts.append(("received", route))

    def sent(self, messages: int) -> None:
        self.facts.append(("sent", messages))

    def dropped(self, reason: str, messages: int) -> None:
        self.facts.append(("dropped", reason, messages))

    def failed(self, code: str) -> None:
        self.facts.append(("failed", code))

    def handled(self, route: str, seconds: float) -> None:
        self.facts.append(("handled", route, seconds))

    def acked(self, outcome: str, seconds: float) -> None:
        self.facts.append(("acked", outcome, seconds))

    def published(self, messages: int) -> None:
        self.facts.append(("published", messages))

    def consumed(self, messages: int) -> None:
        self.facts.append(("consumed", messages))


# --- a client


class Client:
    """What is at the other end of a fake link."""

    def __init__(self, harness: Harness, link: FakeLink, conn: Connection) -> None:
        self._harness = harness
        self._read = 0
        self.link = link
        self.conn = conn
        self.welcome: dict[str, Any] | None = None
        """The data of ``system:welcome``, which ``heard`` leaves out."""

    @property
    def id(self) -> ConnId:
        return self.conn.id

    @property
    def closed(self) -> DisconnectReason | None:
        """Why the server closed the connection; None while it did not."""
        return self.link.closed

    def say(self, what: dict[str, Any] | str | bytes) -> None:
        """Send an envelope, or any text (``str``) or binary (``bytes``) message."""
        text = json.dumps(what) if isinstance(what, dict) else what
        payload = text if isinstance(text, bytes) else text.encode()
        self.link.say(payload, binary=isinstance(text, bytes))

    async def ask(self, what: dict[str, Any] | str | bytes) -> list[Any]:
        """Say it; return what was heard when everything had come to rest."""
        self.say(what)
        await settle()
        return self.heard()

    def heard(self) -> list[Any]:
        """Take what came since the last call: envelopes as they stand on the wire, raw
        frames as ``str`` or ``bytes``."""
        new = self.link.frames[self._read :]
        self._read = len(self.link.frames)
        return [_shown(frame) for frame in new]

    def ack(self, message: dict[str, Any], result: Any = None) -> None:
        """Acknowledge a message that was heard."""
        data = {"message_id": message["id"], "status": "ok"}
        if result is not None:
            data["result"] = result
        self.say({"ref": message["id"], "topic": message["topic"], "event": "ack", "data": data})

    def nack(self, message: dict[str, Any], error: str = "no") -> None:
        data = {"message_id": message["id"], "status": "nack", "error": error}
        self.say({"ref": message["id"], "topic": message["topic"], "event": "ack", "data": data})

    async def read_in_steps(self, steps: int = 20) -> None:
        """Read as a slow client does: empty the queue, and stall until it has filled again."""
        for _ in range(steps):
            self.link.read()
            self.link.stalled = True
            await settle()
        self.link.read()
        await settle()

    async def vanish(
        self,
        reason: DisconnectReason = DisconnectReason.CONNECTION_LOST,
        error: BaseException | None = None,
    ) -> None:
        """The socket ends by itself."""
        self.link.vanish(reason, error)
        await settle()


def _shown(frame: EncodedMessage) -> Any:
    if frame.raw:
        return frame.payload if frame.binary else frame.payload.decode()
    return json.loads(frame.payload)


# --- packets that no node sends


def raw_kind(name: str) -> type[Any]:
    """A kind of event or request whose fields are not looked at."""

    class Raw:
        kind = name

        def __init__(self, header: Mapping[str, Any]) -> None:
            self._header = dict(header)

        def header(self) -> dict[str, Any]:
            return self._header

        @classmethod
        def read(cls, header: Mapping[str, Any]) -> Mapping[str, Any]:
            return header

    return Raw


def raw(kind: str, header: Mapping[str, Any]) -> Any:
    """An event or request of a name and with fields of the test's choice."""
    return raw_kind(kind)(header)


# --- a node


class Harness:
    """A node with its hub. Keywords are those of ``NodeConfig`` and ``Ports``.

    >>> async with Harness(client_commands=True) as h:
    ...     ada = await h.connect(user="ada")
    ...     [ack] = await ada.ask({"id": "1", "topic": "echo", "ack": True})
    """

    def __init__(self, node_id: str = "n1", *, clock: FakeClock | None = None, **given: Any):
        self.clock = clock or FakeClock()
        self.logger: Any = given.setdefault("logger", RecordingLogger())
        self.outbound: Any = given.setdefault("writer", FakeOutbound())
        self.bus: Any = given.setdefault("pubsub", MemoryPubSub())
        self.state: Any = given.setdefault("state", MemoryState(clock=self.clock.now))
        self.history: Any = given.setdefault("history", MemoryHistory())
        given.setdefault("codec", CODEC)
        given.setdefault("workers", 8)  # quicker than 64 to start and to end
        names = {field.name for field in fields(Ports)}
        ports = {name: value for name, value in given.items() if name in names}
        config = {name: value for name, value in given.items() if name not in names}
        self.node = Node(
            NodeConfig(node_id=NodeId(node_id), **config), Ports(clock=self.clock, **ports)
        )
        self.parts = self.node.parts
        self.hub = self.node.hub
        self.transport_events = self.node.transport_events
        self._is_running = False

    async def __aenter__(self) -> Harness:
        await self.node.start()
        self._is_running = True
        await settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End the node in order. May be called again."""
        if self._is_running:
            self._is_running = False
            await self.node.stop()

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    def on(self, pattern: str, *middleware: Any, **options: Any) -> Callable[[Any], Any]:
        """Decorate the handler of ``pattern``."""

        def register(handler: Any) -> Any:
            self.hub.handle(pattern, handler, *middleware, **options)
            return handler

        return register

    def link(self, *, queue: QueueConfig | None = None, codec: Codec = CODEC) -> FakeLink:
        """A new link of this node, not yet opened."""
        return FakeLink(self.clock, self.transport_events, codec=codec, queue=queue)

    async def connect(
        self,
        user: str | None = None,
        *,
        session: bool = False,
        roles: Iterable[str] = (),
        tags: Iterable[str] = (),
        ip: str | None = None,
        queue: QueueConfig | None = None,
        link: FakeLink | None = None,
        meta: ConnMeta | None = None,
        **known: Any,
    ) -> Client:
        """Let a client in, whatever the hooks then do to it (see ``client.closed``).

        ``known`` are further fields of its ``ConnMeta``.
        """
        link = link or self.link(queue=queue)
        if meta is None:
            meta = ConnMeta(user_id=user, roles=roles, tags=tags, ip=ip, **known)  # type: ignore[arg-type]
        reservation = self.transport_events.reserve(meta.ip)
        await self.transport_events.open(link, meta, reservation, session=session)  # type: ignore[arg-type]
        await settle()
        client = Client(self, link, link.owner)
        if session:
            client._read = 1
            client.welcome = _shown(link.frames[0])["data"]
        return client
