"""In: what becomes of one received message (way-of-a-message.md).

decode -> an ack? settle it: done -> a repeat? answer it: done -> the limiter -> into the lane of
its ordering key -> access -> validate -> handler -> answer. Nothing before the lane waits;
each refusal is answered with its code, and the connection stays open.

What is in a lane when its connection ends is handled all the same, but for the server's own
commands: they are about the connection, and don't act when it has ended. In a session they
count as not asked yet, so that the next connection's repeat acts. What an ``on_message`` hook
still looks at has not been taken in, and is forgotten.


May this message go to its handler? The access controller and the validator say.

Both may be plain or ``async``. Most are plain, and most messages should not cost a
coroutine for a question that is answered already: what is returned is awaited only if
there is something to wait for.
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
from eyewall.application.dispatch.command_fields import PUBLISH, _meant, published
from eyewall.application.dispatch.middleware import Internal, cause
from eyewall.application.dispatch.replies import ReservedKey, Responder, is_bound
from eyewall.application.dispatch.router import Route, Router
from eyewall.application.hub.hub import Context, Hub
from eyewall.application.ports.clock import Clock
from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import AccessController, Logger, Validator, method
from eyewall.application.ports.transport import Link
from eyewall.application.rooms.membership import CHANGING, TRIES
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
    """A message on its way to its handler, which gets it as its context.

    ``found`` is where it goes. ``fault`` is what its ordering key raised: the answer, in
    the lane where it would have been without one. ``limit``
    awaits an async limiter, or raises what a limiter raised; it is unset without a limiter.
    """

    __slots__ = ("fault", "found", "limit")

    found: Route | None
    fault: BaseException | None
    limit: Rest | None


class _Asked:
    """A message on its way through the ``on_message`` hooks, as far as it has come."""

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
        """Those that have not been asked yet."""
        self.taken = taken
        """What the last one that was asked is still about."""

    @property
    def raw(self) -> str | bytes:
        return self.payload if self.binary else self.payload.decode()


class Receiver:
    """Takes messages in, and has them handled."""

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
        admission: MessageAuthorization,
        limits: RateLimits | None,
        workers: int,
        worker_queue: int,
        lane_queue: int,
    ) -> None:
        self.hub = hub
        """What handlers have as ``ctx.hub``."""
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
        self._admission = admission
        self._admit = admission.ask
        self._limits = limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asking = 0
        """Messages that wait for an ``async`` hook."""
        bounds: dict[str, Any] = {
            "workers": workers,
            "worker_queue": worker_queue,
            "lane_queue": lane_queue,
        }
        self._handling: LaneWorkers[_Job] = LaneWorkers(
            self._work, on_fault=self._fault, on_drop=self._dropped, **bounds
        )
        # Lanes of their own: an ack that a hook has to see first never waits for a
        # handler, which may be waiting for this very ack.
        self._watching: LaneWorkers[_Asked] = LaneWorkers(self._ask, on_fault=self._fault, **bounds)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handling.start()
        self._watching.start()

    async def idle(self) -> None:
        """Return when what has come in is handled."""
        await self._watching.idle()
        await self._handling.idle()

    async def stop(self) -> None:
        """End the handlers; those that run and those that wait answer ``overloaded``."""
        await self._watching.stop()
        for job in await self._handling.stop():
            if not _is_void(job.conn, job.message):
                self._replies.refuse(job.conn, job.message, DRAINING)
        self._asking = 0

    def ended(self, conn: Connection) -> None:
        """A connection has gone: what it left behind holds up nobody else, and its commands
        that have not begun don't act. They are no requests in work of its session then."""
        for job in self._handling.waiting_in(conn.id):
            if _is_void(conn, job.message):
                self._replies.discard(conn, job.message)
        self._handling.ended(conn.id)
        self._watching.ended(conn.id)

    @property
    def running(self) -> int:
        """Handlers that are at work."""
        return self._handling.running

    # --- a message

    def received(self, link: Link, payload: bytes, *, binary: bool) -> None:
        """Take one whole message in. Never waits, never raises."""
        conn: Connection | None = link.owner
        if conn is None or not conn.is_open:
            return
        try:
            hooks = self._hooks.of(MESSAGE)
            # Who has to wait for an async hook is not overtaken, also if that has been
            # taken back meanwhile.
            if hooks or self._asking:
                self._consult(_Asked(conn, payload, binary, iter(hooks)))
            else:
                self._take(conn, payload, binary)
        except BaseException as error:  # noqa: BLE001  (a fault here must not end the batch)
            self._fault(error)

    # --- the hooks that see it first

    def _consult(self, asked: _Asked) -> None:
        """Let the ``on_message`` hooks see the message: plain ones at once, and from the
        first ``async`` one on in a lane, so that what it waits for holds up nobody."""
        if not self._asking:
            for hook in asked.hooks:
                taken = self._call(hook, asked)
                if inspect.isawaitable(taken):
                    asked.taken = taken
                    break
                if taken is True:
                    return
            else:
                self._take(asked.conn, asked.payload, asked.binary)
                return
        if self._watching.submit(asked.conn.id, asked):
            self._asking += 1
        else:
            self._take(asked.conn, asked.payload, asked.binary, overloaded=True)

    def _call(self, hook: Hook, asked: _Asked) -> Any:
        try:
            return hook(asked.conn, asked.raw)
        except BaseException as error:  # noqa: BLE001  (a watcher can't break what it watches)
            self._hook_failed(asked.conn, error)
            return None

    async def _ask(self, asked: _Asked) -> None:
        """Go on where ``_consult`` had to wait."""
        try:
            if await self._is_taken(asked, asked.taken):
                return
            for hook in asked.hooks:
                if await self._is_taken(asked, self._call(hook, asked)):
                    return
            if asked.conn.is_open:
                self._take(asked.conn, asked.payload, asked.binary)
        finally:
            self._asking -= 1

    async def _is_taken(self, asked: _Asked, taken: Any) -> bool:
        try:
            return (await taken if inspect.isawaitable(taken) else taken) is True
        except BaseException as error:
            # A watcher can't break what it watches, also not by ending its own task: the
            # message goes on, and the worker ends behind it.
            if is_end(error) and self._watching.stopping:
                raise
            self._hook_failed(asked.conn, error)
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
        except BaseException as error:  # noqa: BLE001  (a codec that fails)
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
            except BaseException as error:  # noqa: BLE001  (what was taken in is answered)
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
        job.fault = None
        job.admission = self._admission
        if self._limits is not None and self._is_limited(job, self._limits):
            return
        key: Hashable = conn.id
        owner: Hashable = None
        if route is not None and route.ordering_key is not None:
            try:
                # In a name space of their own: a key that looks like an id is another lane.
                key, owner = ("key", route.key(job, envelope)), conn.id
                hash(key)
            except BaseException as error:  # noqa: BLE001  (the user's function)
                key, owner, job.fault = conn.id, None, error
        if not self._handling.submit(key, job, owner):
            self._dropped(job)

    def _is_limited(self, job: _Job, limits: RateLimits) -> bool:
        """Whether the limiter says no, and that has been answered."""
        try:
            job.limit = limits.ask(job.conn, job.message)
        except Refused as error:
            self._replies.refuse(job.conn, job.message, error)
            return True
        except BaseException as error:  # noqa: BLE001  (the limiter's own)
            # Answered in the lane, as an error of an async limiter is.
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
            if (waits := self._admit(conn, message)) is not None:
                await waits
                if _is_void(conn, message):
                    raise ConnectionClosed(f"{conn.id} has ended")
            job.admitted = conn.meta
            if route is None:
                raise HandlerNotFound(self._router.why_not(message.topic))
            if job.fault is not None:
                raise job.fault
            reached = True
            result = await route.bound(self._router.everywhere)(job, message)
            if not conn.is_open and is_bound(message):
                raise ConnectionClosed(f"{conn.id} has ended")  # what was done went with it
            self._replies.accept(conn, message, result)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is answered)
            await self._refuse(job, error, remember=reached)
        finally:
            if metrics is not None:
                metrics.handled(job.route, self._clock.now() - started)

    @staticmethod
    async def _wait_for(limit: Rest, job: _Job) -> None:
        await limit()
        if _is_void(job.conn, job.message):
            raise ConnectionClosed(f"{job.conn.id} has ended")

    # --- what went wrong

    async def _refuse(self, job: _Job, error: BaseException, *, remember: bool) -> None:
        """Answer for what came out of a handler, or stood before it: whatever it is, it must
        not take the worker along, or the server."""
        if is_end(error):
            # By the end of the node, or by the handler itself.
            ended = self._handling.stopping
            self._replies.refuse(job.conn, job.message, DRAINING if ended else error)
            raise error
        if isinstance(error, Refused) and self._is_void(job, error):
            heir = self._replies.discard(job.conn, job.message)
            if heir is not None and not self._replies.is_retransmission(heir, job.message):
                self._dispatch(heir, job.message)
        elif isinstance(error, Refused):
            self._replies.refuse(job.conn, job.message, error, remember=remember)
        else:
            await self._failed(job, error, remember=remember)

    @staticmethod
    def _is_void(job: _Job, error: Refused) -> bool:
        """Whether a refusal is no answer for who goes on with the session."""
        if not _is_void(job.conn, job.message):
            return False
        return isinstance(error, ConnectionClosed) or is_bound(job.message)

    async def _failed(self, ctx: Context, error: BaseException, *, remember: bool) -> None:
        """Answer for an unexpected error; its text stays here."""
        # A result that nobody asked for does no harm: there is nothing to answer.
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
    """Asks the access controller, then the validator, as far as there are any.

    A message that is not let through raises ``Forbidden``, or what the validator raised.
    What a client publishes into a room is looked at as its members will get it: topic
    ``room:<room>``, and its own event and data.
    """

    def __init__(self, access: AccessController | None, validator: Validator | None) -> None:
        self._can_publish = None if access is None else method(access, "can_publish")
        self._validate = None if validator is None else method(validator, "validate")

    def ask(self, conn: Connection, message: Envelope) -> Awaitable[None] | None:
        """Decide, or return what has to be awaited for the decision."""
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
        """What has to be awaited for the word on who the connection is by now, where the
        message was let through for ``meta``; None if that is the same owner."""
        if self._can_publish is None or conn.meta.is_same_owner(meta):
            return None
        return self._ask_on(conn, message, meta, allowed=True, checked=True)

    async def _wait_on(
        self, conn: Connection, message: Envelope, meta: ConnMeta, waits: Awaitable[None]
    ) -> None:
        """Wait for the validator, which has begun. The controller has said yes to ``meta``."""
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
        """Go on from what the controller said, or is about to say, to ``meta``. Whoever the
        connection is when nothing is waited for any more has to be let through."""
        assert self._can_publish is not None
        topic, event = message.topic, message.event
        if topic == PUBLISH:
            topic, event = published(message)
        for tried in range(TRIES):
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
        raise Forbidden(CHANGING)

    def _check(self, message: Envelope) -> Awaitable[None] | None:
        if self._validate is None:
            return None
        topic, event, data = message.topic, message.event, message.data
        if topic == PUBLISH:
            topic, event = _meant(data)
            if topic == PUBLISH:
                return None  # into no room: the command refuses it
            data = data.get("data")
        result = self._validate(topic, event, data)
        return result if inspect.isawaitable(result) else None
