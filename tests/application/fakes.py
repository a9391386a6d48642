"""A node without sockets: fakes of what is outside, and clients that speak to it.

Each fake behaves and remembers; it fails by a switch with a name (``link.full``,
``link.stalled``). Time stands still until a test calls ``advance``, and everything
that can happen at once has happened after ``settle``.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.codec.json import JsonCodec
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.connections import Connection
from eyewall.application.frames import Frame
from eyewall.application.hub import Hub
from eyewall.application.needs import NodeConfig, Ports
from eyewall.application.node import Node
from eyewall.application.ports import Codec
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.identity import ConnId, ConnMeta, NodeId
from eyewall.domain.outbox import Offer, Outbox, QueueConfig

TURNS = 10_000
"""Turns of the loop after which something is taken to go round in circles."""

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
"""The date and time at which every fake clock begins."""

CODEC = JsonCodec()


_settling: list[object] = []
"""Who waits in ``settle``: these turns of the loop are nobody's work."""


async def settle() -> None:
    """Return when nothing is left to do but to wait for somebody outside."""
    loop = asyncio.get_running_loop()
    me = object()
    _settling.append(me)
    try:
        for _ in range(TURNS):
            await asyncio.sleep(0)
            if len(loop._ready) < len(_settling):  # type: ignore[attr-defined]
                return
    finally:
        _settling.remove(me)
    raise AssertionError(f"the loop did not come to rest in {TURNS} turns")


async def finished(work: Awaitable[Any]) -> Any:
    """Return the result of ``work``, which has to end without any time passing."""
    task = asyncio.ensure_future(work)
    await settle()
    if not task.done():
        task.cancel()
        raise AssertionError("it waits for something that does not happen by itself")
    return task.result()


# --- time


class FakeTimer:
    """Implements ``Timer``."""

    def __init__(self, clock: FakeClock, when: float, fn: Callable[[], None]) -> None:
        self._clock = clock
        self.when = when
        self.fn = fn

    def cancel(self) -> None:
        self._clock.timers.discard(self)


class FakeClock:
    """Implements ``Clock``: time passes when a test says so."""

    def __init__(self, start: float = 1000.0) -> None:
        self._start = start
        self._now = start
        self._numbers = count()
        self._heap: list[tuple[float, int, FakeTimer]] = []
        self.timers: set[FakeTimer] = set()
        """Those that are neither due nor cancelled."""

    def now(self) -> float:
        return self._now

    def wall(self) -> datetime:
        return START + timedelta(seconds=self._now - self._start)

    def call_later(self, delay: float, fn: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self, self._now + delay, fn)
        self.timers.add(timer)
        heapq.heappush(self._heap, (timer.when, next(self._numbers), timer))
        return timer

    def pass_time(self, seconds: float) -> None:
        """Move on without letting anything but due timers run (for plain tests)."""
        for _ in self._through(seconds):
            pass

    async def advance(self, seconds: float) -> None:
        """Move on; what a due timer sets off has happened before time moves further."""
        await settle()
        for _ in self._through(seconds):
            await settle()
        await settle()

    def _through(self, seconds: float) -> Iterator[None]:
        until = self._now + seconds
        while self._heap and self._heap[0][0] <= until:
            when, _, timer = heapq.heappop(self._heap)
            if timer in self.timers:
                self.timers.discard(timer)
                self._now = max(self._now, when)
                timer.fn()
                yield
        self._now = until


# --- the sockets


class FakeLink:
    """Implements ``Link`` for a peer that reads at once, or does not.

    * ``stalled``: the peer does not read; a queue with the bounds and policy of the
      real one takes what comes, until ``read``;
    * ``full``: nothing is taken any more, whatever the bounds.
    """

    def __init__(
        self, clock: FakeClock, *, codec: Codec = CODEC, queue: QueueConfig | None = None
    ) -> None:
        self._clock = clock
        self._config = queue or QueueConfig()
        self._outbox: Outbox[Frame] = Outbox(self._config)
        self.codec = codec
        self.owner: Any = None
        self.intake: Any = None
        self.last_seen = clock.now()
        self.frames: list[Frame] = []
        """What the peer has got, in order."""
        self.stalled = False
        self.full = False
        self.closed: DisconnectReason | None = None
        """Why it was closed by our side; None while it was not."""
        self.gone = False

    @property
    def crowded(self) -> bool:
        return len(self._outbox) * 2 > self._config.size

    @property
    def queued(self) -> int:
        return len(self._outbox)

    def send(self, frame: Frame) -> Offer:
        if self.closed is not None or self.gone:
            return Offer.CLOSED
        if self.full:
            return Offer.DROPPED_NEWEST
        if not self.stalled:
            self.frames.append(frame)
            return Offer.QUEUED
        offer, dropped = self._outbox.offer(frame)
        for lost in dropped:
            if lost is not frame:
                self._soon(self.intake.dropped, lost, offer)
        if offer is Offer.OVERFLOWED:
            self.close(DisconnectReason.SLOW_CONSUMER)
            self._soon(self.intake.lost, DisconnectReason.SLOW_CONSUMER)
        return offer

    def take_later(self, frame: Frame) -> None:
        """Take part in a fan-out, whose drops are told afterwards."""
        if self.closed is not None or self.gone:
            return
        offer = self.send(frame)
        if offer in (Offer.DROPPED_NEWEST, Offer.OVERFLOWED):
            self._soon(self.intake.dropped, frame, offer)

    def read(self) -> None:
        """The peer reads again: what was queued goes out."""
        self.stalled = False
        self.frames += self._outbox.clear()
        asyncio.get_running_loop().call_soon(self.intake.drained, self)

    def close(self, reason: DisconnectReason) -> None:
        if self.closed is None and not self.gone:
            self.frames += self._outbox.clear()
            self.closed = reason

    def _soon(self, tell: Callable[..., Any], *args: Any) -> None:
        asyncio.get_running_loop().call_soon(tell, self, *args)


class FakeAudience:
    """Implements ``Audience``."""

    def __init__(self) -> None:
        self._links: dict[FakeLink, None] = {}

    def add(self, link: FakeLink) -> None:
        self._links[link] = None

    def discard(self, link: FakeLink) -> None:
        self._links.pop(link, None)

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[FakeLink]:
        return iter(self._links)

    def publish(self, frame: Frame, skip: Collection[FakeLink] = ()) -> int:
        meant = [link for link in self._links if link not in skip]
        for link in meant:
            link.take_later(frame)
        return len(meant)


class FakeOutbound:
    """Implements ``Outbound``. ``crowded``: too much waits to be written."""

    def __init__(self) -> None:
        self._room = asyncio.Event()
        self._room.set()

    @property
    def crowded(self) -> bool:
        return not self._room.is_set()

    @crowded.setter
    def crowded(self, value: bool) -> None:
        (self._room.clear if value else self._room.set)()

    def audience(self) -> FakeAudience:
        return FakeAudience()

    async def ready(self) -> None:
        await self._room.wait()


# --- watching


class RecordingLogger:
    """Implements ``Logger``."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:
        self.entries.append(("debug", event, fields))

    def info(self, event: str, **fields: Any) -> None:
        self.entries.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.entries.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self.entries.append(("error", event, fields))

    def of(self, level: str) -> list[str]:
        """The events of one level."""
        return [event for found, event, _ in self.entries if found == level]

    def fields(self, event: str) -> dict[str, Any]:
        """The fields of the newest entry of an event."""
        return next(f for _, e, f in reversed(self.entries) if e == event)


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
        self.link.last_seen = self._harness.clock.now()
        text = json.dumps(what) if isinstance(what, dict) else what
        payload = text if isinstance(text, bytes) else text.encode()
        self._harness.intake.received(self.link, payload, binary=isinstance(text, bytes))

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

    async def vanish(
        self,
        reason: DisconnectReason = DisconnectReason.CONNECTION_LOST,
        error: BaseException | None = None,
    ) -> None:
        """The socket ends by itself."""
        self.link.gone = True
        self._harness.intake.lost(self.link, reason, error)
        await settle()


def _shown(frame: Frame) -> Any:
    if frame.raw:
        return frame.payload if frame.binary else frame.payload.decode()
    return json.loads(frame.payload)


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
        self.outbound: Any = given.setdefault("outbound", FakeOutbound())
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
        self.hub = Hub(self.node)
        self.intake = self.node.intake
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
        link = FakeLink(self.clock, codec=codec, queue=queue)
        link.intake = self.intake
        return link

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
        reservation = self.intake.reserve(meta.ip)
        await self.intake.open(link, meta, reservation, session=session)  # type: ignore[arg-type]
        await settle()
        client = Client(self, link, link.owner)
        if session:
            client._read = 1
            client.welcome = _shown(link.frames[0])["data"]
        return client
