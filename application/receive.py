"""In: what becomes of one received message (architecture.md, "The way of a message").

decode -> an ack? settle it: done -> a repeat? answer it: done -> into the lane of its
ordering key -> access -> validate -> handler -> answer. Nothing before the lane waits;
each refusal is answered with its code, and the connection stays open.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Hashable
from typing import TYPE_CHECKING

from eyewall.application.connections import Connection, Connections
from eyewall.application.context import Context
from eyewall.application.deliveries import Deliveries
from eyewall.application.handlers import is_async
from eyewall.application.hooks import Event, Hooks
from eyewall.application.lanes import Lanes
from eyewall.application.middleware import Internal, method
from eyewall.application.ports import AccessController, Clock, Link, Logger, Validator
from eyewall.application.replies import Replies
from eyewall.application.routes import Route, Router
from eyewall.application.stats import Stats
from eyewall.domain.envelope import ROOM, Envelope
from eyewall.domain.errors import (
    Forbidden,
    HandlerNotFound,
    InvalidEnvelope,
    Overloaded,
    Refused,
    ShuttingDown,
    Unavailable,
    UnsupportedData,
)

if TYPE_CHECKING:
    from eyewall.application.hub import Hub

PUBLISH = "system:publish"
NO_ROUTE = "-"
"""The route of a message that none matched, for labels."""


class _Job:
    """A message on its way to its handler, or raw bytes on their way to a hook."""

    __slots__ = ("ctx", "hook", "route")

    def __init__(
        self,
        ctx: Context | None,
        route: Route | None,
        hook: tuple[Connection, bytes, bool] | None = None,
    ) -> None:
        self.ctx = ctx
        self.route = route
        self.hook = hook


class Receiver:
    """Takes messages in, and has them handled."""

    def __init__(
        self,
        *,
        connections: Connections,
        router: Router,
        replies: Replies,
        deliveries: Deliveries,
        hooks: Hooks,
        stats: Stats,
        clock: Clock,
        logger: Logger,
        access: AccessController | None,
        validator: Validator | None,
        workers: int,
        worker_queue: int,
        lane_queue: int,
    ) -> None:
        self.hub: Hub
        """Set when the node is put together: handlers reach it through the context."""
        self._connections = connections
        self._router = router
        self._replies = replies
        self._deliveries = deliveries
        self._hooks = hooks
        self._stats = stats
        self._clock = clock
        self._logger = logger
        self._can_publish = None if access is None else method(access, "can_publish")
        self._validate = None if validator is None else method(validator, "validate")
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lanes: Lanes[_Job] = Lanes(
            self._work,
            workers=workers,
            worker_queue=worker_queue,
            lane_queue=lane_queue,
            on_fault=self._fault,
        )

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.lanes.start()

    # --- before the lane: nothing waits

    def received(self, link: Link, payload: bytes, *, binary: bool) -> None:
        """Take one whole message in. Never waits, never raises."""
        conn: Connection | None = link.owner
        if conn is None or not conn.is_open:
            return
        try:
            if self._hooks.of(Event.MESSAGE):
                self._ask_hooks(conn, payload, binary)
            else:
                self._take(conn, payload, binary)
        except Exception as error:  # noqa: BLE001  (a fault here must not end the batch)
            self._fault(error)

    def _ask_hooks(self, conn: Connection, payload: bytes, binary: bool) -> None:
        """Let the ``on_message`` hooks see the message first.

        Plain hooks are asked at once. If one of them may wait, the message goes
        through a lane of its own kind, so that an ack never waits behind a handler.
        """
        if any(is_async(hook) for hook in self._hooks.of(Event.MESSAGE)):
            job = _Job(None, None, (conn, payload, binary))
            if not self.lanes.submit(("hook", conn.id), job):
                self._replies.refuse_unread(conn, Overloaded("too much waits"), None, None)
            return
        raw = payload if binary else payload.decode()
        for hook in self._hooks.of(Event.MESSAGE):
            if hook(conn, raw) is True:
                return
        self._take(conn, payload, binary)

    def _take(self, conn: Connection, payload: bytes, binary: bool) -> None:
        codec = conn.link.codec
        try:
            if binary is not codec.binary:
                kind = "binary" if binary else "text"
                raise UnsupportedData(f"{codec.name} does not travel in {kind} frames")
            envelope = codec.decode(payload)
        except InvalidEnvelope as error:
            self._stats.in_messages += 1
            self._replies.refuse_unread(conn, error, error.ref, error.topic)
            return
        except Refused as error:
            self._replies.refuse_unread(conn, error, None, None)
            return
        self._stats.in_messages += 1
        if envelope.event == "ack":
            self._deliveries.answered(conn, envelope)
        elif not self._replies.is_repeat(conn, envelope):
            self._dispatch(conn, envelope)

    def _dispatch(self, conn: Connection, envelope: Envelope) -> None:
        route = self._router.find(envelope.topic, envelope.version)
        pattern = NO_ROUTE if route is None else route.pattern
        self._stats.metrics.received(pattern)
        assert self._loop is not None
        ctx = Context(self.hub, conn, envelope, pattern, self._loop)
        if self._connections.draining:
            self._replies.refuse(conn, envelope, ShuttingDown("the node is draining"))
            return
        try:
            key = self._key(ctx, route)
        except Exception as error:  # noqa: BLE001  (the user's function)
            self._failed(ctx, error)
            return
        if not self.lanes.submit(key, _Job(ctx, route)):
            self._replies.refuse(conn, envelope, Overloaded("too much waits"))

    @staticmethod
    def _key(ctx: Context, route: Route | None) -> Hashable:
        if route is None or route.ordering_key is None:
            return ctx.conn.id
        key = route.ordering_key(ctx, ctx.message)
        hash(key)
        # In a name space of their own: a key that looks like an id is another lane.
        return ("key", key)

    # --- in the lane

    async def _work(self, job: _Job) -> None:
        if job.hook is not None:
            await self._ask_async_hooks(*job.hook)
            return
        ctx = job.ctx
        assert ctx is not None
        started = self._clock.now()
        reached = False
        try:
            await self._admit(ctx)
            if job.route is None:
                raise HandlerNotFound(f"nothing handles {ctx.message.topic}")
            reached = True
            result = await self._router.bound(job.route)(ctx, ctx.message)
            self._replies.accept(ctx.conn, ctx.message, result)
        except Refused as error:
            self._replies.refuse(ctx.conn, ctx.message, error, remember=reached)
        except Exception as error:  # noqa: BLE001  (the user's handler)
            self._failed(ctx, error)
            await self._hooks.tell(Event.ERROR, ctx.conn, _cause(error))
        except asyncio.CancelledError as error:
            self._replies.refuse(ctx.conn, ctx.message, error)
            raise
        finally:
            self._stats.metrics.handled(ctx.route, self._clock.now() - started)

    async def _admit(self, ctx: Context) -> None:
        """Ask the access controller and the validator, as far as there are any."""
        message = ctx.message
        if self._can_publish is not None:
            topic = message.topic
            if topic == PUBLISH:
                topic = published_topic(message)
            allowed = self._can_publish(ctx.meta, topic, message.event)
            if allowed is not True and inspect.isawaitable(allowed):
                allowed = await allowed
            if not allowed:
                raise Forbidden(f"you may not send to {topic}")
        if self._validate is not None:
            result = self._validate(message.topic, message.event, message.data)
            if result is not None and inspect.isawaitable(result):
                await result

    async def _ask_async_hooks(self, conn: Connection, payload: bytes, binary: bool) -> None:
        raw = payload if binary else payload.decode()
        for hook in self._hooks.of(Event.MESSAGE):
            taken = hook(conn, raw)
            if inspect.isawaitable(taken):
                taken = await taken
            if taken is True:
                return
        if conn.is_open:
            self._take(conn, payload, binary)

    # --- what went wrong

    def _failed(self, ctx: Context, error: BaseException) -> None:
        """Answer for an unexpected error; its text stays here."""
        if not isinstance(error, (Internal, Unavailable)):
            self._logger.error(
                "handler_failed",
                route=ctx.route,
                conn_id=ctx.conn.id,
                message_id=ctx.message.id,
                error=repr(error),
                exc_info=error,
            )
        self._replies.refuse(ctx.conn, ctx.message, error, remember=True)

    def _fault(self, error: BaseException) -> None:
        self._logger.error("receive_failed", error=repr(error), exc_info=error)


def published_topic(message: Envelope) -> str:
    """The topic that ``system:publish`` means to the access controller."""
    data = message.data
    room = data.get("room") if isinstance(data, dict) else None
    return f"{ROOM}{room}" if isinstance(room, str) else PUBLISH


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, Internal) and error.__cause__ is not None:
        return error.__cause__
    return error
