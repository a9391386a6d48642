"""Receiving: the way of one message from the socket to its handler (way-of-a-message.md).

decode -> an ack settles its delivery -> a retransmission gets its answer -> the limiter -> the
lane of the ordering key -> access controller -> validator -> handler -> answer.

Rules of this file:

1. Nothing before the lane awaits. Each refusal is answered with its code, and the connection
   stays open.
2. A message in a lane is handled also after its connection has ended, except for the server's
   own commands: they are about the connection. In a session such a command counts as not
   received, so that its retransmission from the next connection acts.
3. A message that an ``on_message`` hook still holds when its connection ends is dropped.
4. The access controller and the validator may be plain or ``async``. Their results are awaited
   only if they are awaitable: a message that needs no wait costs no coroutine.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Hashable, Iterator
from functools import partial
from typing import Any

from eyewall.application.concurrency.tasks import is_end
from eyewall.application.concurrency.worker_pool import LaneWorkers
from eyewall.application.connections.hooks import MESSAGE, Event, Hooks
from eyewall.application.connections.rate_limits import RateLimits, Rest
from eyewall.application.connections.registry import Connection, Connections
from eyewall.application.connections.stats import Stats
from eyewall.application.delivery.pending_acks import PendingAcks
from eyewall.application.dispatch.command_fields import PUBLISH, published, topic_and_event
from eyewall.application.dispatch.middleware import Internal, cause
from eyewall.application.dispatch.replies import ReservedKey, Responder, is_bound
from eyewall.application.dispatch.router import Route, Router
from eyewall.application.hub.hub import Context, Hub
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import AccessController, Logger, Validator, method
from eyewall.application.ports.transport import Link
from eyewall.application.rooms.membership import MAX_TRIES, USER_KEEPS_CHANGING
from eyewall.domain.envelope import REFRESH, SYSTEM, Envelope
from eyewall.domain.errors import (
    ConnectionClosed,
    Forbidden,
    HandlerNotFound,
    InvalidEnvelope,
    Overloaded,
    Refused,
    ShuttingDown,
    Unauthorized,
    Unavailable,
    UnsupportedData,
)
from eyewall.domain.identity import ConnMeta

Hook = Callable[[Connection, "str | bytes"], Any]


NO_ROUTE = "-"
"""The route of a message that none matched, for labels."""


DRAINING = ShuttingDown("the node is draining")


class _Job(Context):
    """A message in a lane. It is the context that its handler gets.

    ``found`` is its route. ``key_error`` was raised by the ordering key and is the answer; the
    message keeps its turn in the lane of its connection. ``limit`` awaits an async limiter, or
    raises the error of a limiter; it is unset without a limiter.
    """

    __slots__ = ("found", "key_error", "limit")

    found: Route | None
    key_error: BaseException | None
    limit: Rest | None


class _HookedMessage:
    """A message that passes through the ``on_message`` hooks."""

    __slots__ = ("binary", "conn", "hooks", "payload", "taken")

    def __init__(
        self,
        conn: Connection,
        payload: bytes,
        binary: bool,
        hooks: Iterator[Hook],
        taken: Awaitable[Any] | None = None,
    ) -> None:
        self.conn = conn
        self.payload = payload
        self.binary = binary
        self.hooks = hooks
        """The hooks that have not been called yet."""
        self.taken = taken
        """The awaitable result of the hook that was called last."""

    @property
    def raw(self) -> str | bytes:
        """The message as the hooks get it."""
        return self.payload if self.binary else self.payload.decode()


class Receiver:
    """Receives messages: routes them into lanes, runs their handlers and answers."""

    def __init__(
        self,
        *,
        hub: Hub,
        connections: Connections,
        router: Router,
        replies: Responder,
        pending_acks: PendingAcks,
        hooks: Hooks,
        stats: Stats,
        clock: Clock,
        logger: Logger,
        tell_error: Callable[[Connection, BaseException], None],
        authorization: MessageAuthorization,
        limits: RateLimits | None,
        workers: int,
        worker_queue: int,
        lane_queue: int,
    ) -> None:
        self.hub = hub
        """The ``ctx.hub`` of handlers."""
        self._connections = connections
        self._router = router
        self._replies = replies
        self._pending_acks = pending_acks
        self._hooks = hooks
        self._stats = stats
        self._metrics = stats.wanted
        self._clock = clock
        self._logger = logger
        self._tell_error = tell_error
        self._authorization = authorization
        self._authorize = authorization.ask
        self._limits = limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_hooks = 0
        """Messages that are in the hooks' lanes, because a hook is ``async``."""
        bounds: dict[str, Any] = {
            "workers": workers,
            "worker_queue": worker_queue,
            "lane_queue": lane_queue,
        }
        self._handling: LaneWorkers[_Job] = LaneWorkers(
            self._work, on_fault=self._fault, on_drop=self._dropped, **bounds
        )
        # Separate lanes: an ack that passes the hooks first must not wait for a handler, which
        # may be waiting for this ack (deadlock).
        self._watching: LaneWorkers[_HookedMessage] = LaneWorkers(
            self._run_hooks, on_fault=self._fault, **bounds
        )

    def start(self) -> None:
        """Start the workers, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._handling.start()
        self._watching.start()

    async def idle(self) -> None:
        """Return when all received messages are handled."""
        await self._watching.idle()
        await self._handling.idle()

    async def stop(self) -> None:
        """Stop the workers; running handlers are cancelled, and all that are left answer
        ``overloaded``."""
        await self._watching.stop()
        for job in await self._handling.stop():
            if not _is_void(job.conn, job.message):
                self._replies.refuse(job.conn, job.message, DRAINING)
        self._in_hooks = 0

    def ended(self, conn: Connection) -> None:
        """Note the end of a connection: its queued messages no longer delay those of others, and
        its queued commands are discarded, also from the request log of its session."""
        for job in self._handling.waiting_in(conn.id):
            if _is_void(conn, job.message):
                self._replies.discard(conn, job.message)
        self._handling.ended(conn.id)
        self._watching.ended(conn.id)

    @property
    def running(self) -> int:
        """The number of running handlers."""
        return self._handling.running

    # --- a message

    def received(self, link: Link, payload: bytes, *, binary: bool) -> None:
        """Receive one whole message: text, or ``binary``. Never waits, never raises."""
        conn: Connection | None = link.owner
        if conn is None or not conn.is_open:
            return
        try:
            hooks = self._hooks.of(MESSAGE)
            # A message that waits for an async hook is not overtaken, even if the hook has
            # been removed meanwhile.
            if hooks or self._in_hooks:
                self._offer_to_hooks(_HookedMessage(conn, payload, binary, iter(hooks)))
            else:
                self._take(conn, payload, binary)
        except BaseException as error:  # noqa: BLE001  (a fault here must not end the batch)
            self._fault(error)

    # --- the on_message hooks

    def _offer_to_hooks(self, hooked: _HookedMessage) -> None:
        """Call the ``on_message`` hooks: plain ones at once; from the first ``async`` one on in
        a lane, so that its wait delays no other connection."""
        if not self._in_hooks:
            for hook in hooked.hooks:
                taken = self._call(hook, hooked)
                if inspect.isawaitable(taken):
                    hooked.taken = taken
                    break
                if taken is True:
                    return
            else:
                self._take(hooked.conn, hooked.payload, hooked.binary)
                return
        if self._watching.submit(hooked.conn.id, hooked):
            self._in_hooks += 1
        else:
            self._take(hooked.conn, hooked.payload, hooked.binary, overloaded=True)

    def _call(self, hook: Hook, hooked: _HookedMessage) -> Any:
        try:
            return hook(hooked.conn, hooked.raw)
        except BaseException as error:  # noqa: BLE001  (a failed hook does not stop the message)
            self._hook_failed(hooked.conn, error)
            return None

    async def _run_hooks(self, hooked: _HookedMessage) -> None:
        """Await the hooks from the one on at which ``_offer_to_hooks`` had to wait."""
        try:
            if await self._is_taken(hooked, hooked.taken):
                return
            for hook in hooked.hooks:
                if await self._is_taken(hooked, self._call(hook, hooked)):
                    return
            if hooked.conn.is_open:
                self._take(hooked.conn, hooked.payload, hooked.binary)
        finally:
            self._in_hooks -= 1

    async def _is_taken(self, hooked: _HookedMessage, taken: Any) -> bool:
        try:
            return (await taken if inspect.isawaitable(taken) else taken) is True
        except BaseException as error:
            # A hook that fails, or cancels its own task, does not stop the message: it goes on,
            # and the worker ends after it.
            if is_end(error) and self._watching.stopping:
                raise
            self._hook_failed(hooked.conn, error)
            return False

    def _hook_failed(self, conn: Connection, error: BaseException) -> None:
        self._logger.error(
            "hook_failed", on="message", conn_id=conn.id, error=shown(error), exc_info=error
        )
        self._tell_error(conn, error)

    # --- before the lane: nothing waits

    def _take(
        self, conn: Connection, payload: bytes, binary: bool, *, overloaded: bool = False
    ) -> None:
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
        except BaseException as error:  # noqa: BLE001  (a fault of the codec)
            self._replies.refuse_unread(conn, error, None, None)
            self._fault(error)
            return
        self._stats.in_messages += 1
        if envelope.event == "ack":
            self._pending_acks.answered(conn, envelope)
        elif not self._replies.is_retransmission(conn, envelope):
            if overloaded:
                self._replies.refuse(conn, envelope, Overloaded("too much waits"))
                return
            try:
                self._dispatch(conn, envelope)
            except BaseException as error:  # noqa: BLE001  (a registered request is answered)
                self._replies.refuse(conn, envelope, error)
                self._fault(error)

    def _dispatch(self, conn: Connection, envelope: Envelope) -> None:
        route = self._router.find(envelope.topic, envelope.version)
        pattern = NO_ROUTE if route is None else route.pattern
        if self._metrics is not None:
            self._metrics.received(pattern)
        if self._connections.draining:
            self._replies.refuse(conn, envelope, DRAINING)
            return
        assert self._loop is not None
        job = _Job(self.hub, conn, envelope, pattern, self._loop)
        job.found = route
        job.key_error = None
        job.authorization = self._authorization
        if self._limits is not None and self._is_limited(job, self._limits):
            return
        key: Hashable = conn.id
        owner: Hashable = None
        if route is not None and route.ordering_key is not None:
            try:
                # The tuple is a name space: a key that equals a connection's id has its own lane.
                key, owner = ("key", route.key(job, envelope)), conn.id
                hash(key)
            except BaseException as error:  # noqa: BLE001  (the application's function)
                key, owner, job.key_error = conn.id, None, error
        if not self._handling.submit(key, job, owner):
            self._dropped(job)

    def _is_limited(self, job: _Job, limits: RateLimits) -> bool:
        """Whether the limiter refuses the message; the refusal is sent then."""
        try:
            job.limit = limits.ask(job.conn, job.message)
        except Refused as error:
            self._replies.refuse(job.conn, job.message, error)
            return True
        except BaseException as error:  # noqa: BLE001  (the limiter's own)
            # Answered in the lane, like an error of an async limiter.
            job.limit = partial(_fail, error)
        return False

    def _dropped(self, job: _Job) -> None:
        if _is_void(job.conn, job.message):
            return
        self._replies.refuse(job.conn, job.message, Overloaded("too much waits"))

    # --- in the lane

    async def _work(self, job: _Job) -> None:
        conn, message, route = job.conn, job.message, job.found
        if not conn.is_open and _is_void(conn, message):
            return
        metrics = self._metrics
        started = 0.0 if metrics is None else self._clock.now()
        reached = False
        try:
            if self._replies.was_answered(conn, message):
                return
            if self._limits is not None and job.limit is not None:
                await self._wait_for(job.limit, job)
            if conn.token_lapsed and message.topic != REFRESH:
                raise Unauthorized("the token has run out")
            if (waits := self._authorize(conn, message)) is not None:
                await waits
                if _is_void(conn, message):
                    raise ConnectionClosed(f"{conn.id} has ended")
            job.authorized_meta = conn.meta
            if route is None:
                raise HandlerNotFound(self._router.why_not(message.topic))
            if job.key_error is not None:
                raise job.key_error
            reached = True
            result = await route.bound(self._router.everywhere)(job, message)
            if not conn.is_open and is_bound(message):
                raise ConnectionClosed(f"{conn.id} has ended")  # its effect ended with it, too
            self._replies.accept(conn, message, result)
        except BaseException as error:  # noqa: BLE001  (every error is answered)
            await self._refuse(job, error, remember=reached)
        finally:
            if metrics is not None:
                metrics.handled(job.route, self._clock.now() - started)

    @staticmethod
    async def _wait_for(limit: Rest, job: _Job) -> None:
        await limit()
        if _is_void(job.conn, job.message):
            raise ConnectionClosed(f"{job.conn.id} has ended")

    # --- errors

    async def _refuse(self, job: _Job, error: BaseException, *, remember: bool) -> None:
        """Answer a message whose way ended with ``error``, in the handler or before it. The
        worker survives every error but the end of its task."""
        if is_end(error):
            # The node stops, or the handler itself raised a cancellation.
            ended = self._handling.stopping
            self._replies.refuse(job.conn, job.message, DRAINING if ended else error)
            raise error
        if isinstance(error, Refused) and self._is_void_for_successor(job, error):
            successor = self._replies.discard(job.conn, job.message)
            if successor is not None and not self._replies.is_retransmission(
                successor, job.message
            ):
                self._dispatch(successor, job.message)
        elif isinstance(error, Refused):
            self._replies.refuse(job.conn, job.message, error, remember=remember)
        else:
            await self._failed(job, error, remember=remember)

    @staticmethod
    def _is_void_for_successor(job: _Job, error: Refused) -> bool:
        """Whether the refusal of an ended connection must not answer its successor's
        retransmission."""
        if not _is_void(job.conn, job.message):
            return False
        return isinstance(error, ConnectionClosed) or is_bound(job.message)

    async def _failed(self, ctx: Context, error: BaseException, *, remember: bool) -> None:
        """Answer an unexpected error with ``internal``, log it and tell the error hooks."""
        # A request without an ack has no answer, so a reserved key in the result is harmless.
        if ctx.message.ack or not isinstance(error, ReservedKey):
            self._replies.refuse(ctx.conn, ctx.message, error, remember=remember)
        if not isinstance(error, (Internal, Unavailable)):
            self._logger.error(
                "handler_failed",
                route=ctx.route,
                conn_id=ctx.conn.id,
                message_id=ctx.message.id,
                error=shown(error),
                exc_info=error,
            )
        await self._hooks.tell(Event.ERROR, ctx.conn, cause(error))

    def _fault(self, error: BaseException) -> None:
        self._logger.error("receive_failed", error=shown(error), exc_info=error)


async def _fail(error: BaseException) -> None:
    raise error


def _is_void(conn: Connection, message: Envelope) -> bool:
    """Whether the message is a command of a connection that has ended."""
    return not conn.is_open and message.topic.startswith(SYSTEM)


class MessageAuthorization:
    """Asks the access controller, then the validator; each is optional.

    A refused message raises ``Forbidden``, or the validator's error. A ``system:publish`` is
    checked as the members will get it: topic ``room:<room>``, with its own event and data.
    """

    def __init__(self, access: AccessController | None, validator: Validator | None) -> None:
        self._can_publish = None if access is None else method(access, "can_publish")
        self._validate = None if validator is None else method(validator, "validate")

    def ask(self, conn: Connection, message: Envelope) -> Awaitable[None] | None:
        """Decide; returns what has to be awaited for the decision, or None if it is made.

        Raises ``Forbidden``, or the validator's error.
        """
        if self._can_publish is None:
            return self._check(message)
        topic, event = message.topic, message.event
        if topic == PUBLISH:
            topic, event = published(message)
        meta = conn.meta
        allowed = self._can_publish(meta, topic, event)
        if allowed is not True and inspect.isawaitable(allowed):
            return self._ask_on(conn, message, meta, allowed)
        if not allowed:
            raise Forbidden(f"you may not send to {topic}")
        if self._validate is None or (waits := self._check(message)) is None:
            return None
        return self._wait_on(conn, message, meta, waits)

    def again(self, conn: Connection, message: Envelope, meta: ConnMeta) -> Awaitable[None] | None:
        """Decide again for a message that was let through for ``meta``, if the connection has
        another owner now; returns what has to be awaited, None for the same owner."""
        if self._can_publish is None or conn.meta.is_same_owner(meta):
            return None
        return self._ask_on(conn, message, meta, allowed=True, checked=True)

    async def _wait_on(
        self, conn: Connection, message: Envelope, meta: ConnMeta, waits: Awaitable[None]
    ) -> None:
        """Await the validator, which is running. The controller has allowed ``meta``."""
        await waits
        if not conn.meta.is_same_owner(meta):
            await self._ask_on(conn, message, meta, allowed=True, checked=True)

    async def _ask_on(
        self,
        conn: Connection,
        message: Envelope,
        meta: ConnMeta,
        allowed: Awaitable[bool] | bool,
        *,
        checked: bool = False,
    ) -> None:
        """Await the controller's decision about ``meta``, and the validator's. Repeats until a
        decision holds for the owner that the connection has after the last wait."""
        assert self._can_publish is not None
        topic, event = message.topic, message.event
        if topic == PUBLISH:
            topic, event = published(message)
        for tried in range(MAX_TRIES):
            if tried:
                meta = conn.meta
                allowed = self._can_publish(meta, topic, event)
            said = await allowed if inspect.isawaitable(allowed) else allowed
            if conn.meta.is_same_owner(meta):
                if not said:
                    raise Forbidden(f"you may not send to {topic}")
                waits = None if checked else self._check(message)
                checked = True
                if waits is None:
                    return
                await waits
                if conn.meta.is_same_owner(meta):
                    return
        raise Forbidden(USER_KEEPS_CHANGING)

    def _check(self, message: Envelope) -> Awaitable[None] | None:
        if self._validate is None:
            return None
        topic, event, data = message.topic, message.event, message.data
        if topic == PUBLISH:
            topic, event = topic_and_event(data)
            if topic == PUBLISH:
                return None  # it names no room: the command refuses it
            data = data.get("data")
        result = self._validate(topic, event, data)
        return result if inspect.isawaitable(result) else None
