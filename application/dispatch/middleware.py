"""Middleware: functions around a handler, and the six that come with eyewall.

A middleware is ``async def m(ctx, msg, next)``: it calls ``await next(ctx, msg)`` and
returns the handler's result, or another one. If it does not call ``next``, the handler does not
run, and the result of the middleware is the answer. The first one added is the outermost;
``recover`` is outside of all others, in any order.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from eyewall.application.connections import rate_limits
from eyewall.application.hub.hub import Context, Handler, Middleware
from eyewall.application.ports import conformance
from eyewall.application.ports.logging import LogThrottle, guarded, shown
from eyewall.application.ports.plugins import Limiter, Logger, Tracer, Validator, method
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import EyewallError, Forbidden, Refused, Unauthorized, code_of


class Internal(EyewallError):
    """A handler raised an unexpected error, which has been logged.

    The client gets the code ``internal`` and no details; ``__cause__`` is the handler's error.
    """


def cause(error: BaseException) -> BaseException:
    """Return the error that the handler raised: the cause of an ``Internal``."""
    if isinstance(error, Internal) and error.__cause__ is not None:
        return error.__cause__
    return error


def chain(handler: Handler, middleware: Sequence[Middleware]) -> Handler:
    """Return ``handler`` with the middleware around it; the first is the outermost, after
    ``recover``."""
    ordered = sorted(middleware, key=lambda m: not getattr(m, "outermost", False))
    if ordered:
        handler = _check_owner_before(handler)
    for wrap in reversed(ordered):
        handler = _bind(wrap, handler)
    return handler


def _check_owner_before(handler: Handler) -> Handler:
    """Return ``handler`` behind a check that the decisions about the sender still hold: the
    connection may have another owner after a wait in the middleware."""

    def run(ctx: Context, msg: Envelope[Any]) -> Awaitable[Any]:
        if ctx.owner is not None:  # most messages have no such decision
            ctx.check_owner()
        if ctx.authorized_meta is not ctx.conn.meta:
            return _authorized_again(ctx, msg, handler)
        return handler(ctx, msg)

    return run


async def _authorized_again(ctx: Context, msg: Envelope[Any], handler: Handler) -> Any:
    await ctx.authorize_again()
    ctx.check_owner()
    return await handler(ctx, msg)


def _bind(wrap: Middleware, inner: Handler) -> Handler:
    # Not async: a second coroutine around that of the middleware would only await it.
    def run(ctx: Context, msg: Envelope[Any]) -> Awaitable[Any]:
        return wrap(ctx, msg, inner)

    return run


def recover(logger: Logger | None = None) -> Middleware:
    """Log a handler's unexpected errors with their traceback, and answer ``internal``.

    ``logger`` is the server's by default. Raises ``ValueError`` for an object that is no logger.
    """
    conformance.check("logger", logger)

    async def middleware(ctx: Context, msg: Envelope[Any], next: Handler) -> Any:
        try:
            return await next(ctx, msg)
        except EyewallError:
            raise
        except Exception as error:
            guarded(logger or ctx.hub.logger).error(
                "handler_failed",
                route=ctx.route,
                conn_id=ctx.conn.id,
                message_id=msg.id,
                error=shown(error),
                exc_info=error,
            )
            raise Internal("internal error") from error

    middleware.outermost = True  # type: ignore[attr-defined]
    return middleware


def log(logger: Logger | None = None) -> Middleware:
    """Log every message: route, event, user, outcome and seconds, never the payload.

    ``logger`` is the server's by default. Raises ``ValueError`` for an object that is no logger.
    """
    conformance.check("logger", logger)

    async def middleware(ctx: Context, msg: Envelope[Any], next: Handler) -> Any:
        out = guarded(logger or ctx.hub.logger)
        started = time.perf_counter()
        outcome = "ok"
        try:
            return await next(ctx, msg)
        except Refused as error:
            outcome = code_of(error)
            raise
        except BaseException:
            outcome = "failed"
            raise
        finally:
            out.info(
                "message",
                route=ctx.route,
                topic=msg.topic,
                message_event=msg.event,
                message_id=msg.id,
                user_id=ctx.user_id,
                conn_id=ctx.conn.id,
                outcome=outcome,
                seconds=round(time.perf_counter() - started, 6),
            )

    return middleware


def auth_required(*roles: str) -> Middleware:
    """Refuse anonymous connections with ``unauthorized``; with ``roles``, refuse users who have
    none of them with ``forbidden``.

    The log names the missing roles (``role_missing``); the answer does not.
    """
    wanted = frozenset(roles)
    throttle = LogThrottle()

    def tell(ctx: Context) -> None:
        more = throttle.next(time.monotonic())
        if more is not None:
            needs = {"needs": sorted(wanted), "route": ctx.route}
            about = {"user_id": ctx.user_id, "conn_id": ctx.conn.id}
            ctx.hub.logger.info("role_missing", **needs, **about, **more)

    async def middleware(ctx: Context, msg: Envelope[Any], next: Handler) -> Any:
        if ctx.user_id is None:
            raise Unauthorized("this needs a user")
        if wanted and wanted.isdisjoint(ctx.meta.roles):
            # The roles are logged, after the answer, and not sent to the client.
            asyncio.get_running_loop().call_soon(tell, ctx)
            raise Forbidden("this needs another role")
        if ctx.owner is None:
            ctx.owner = ctx.meta
        return await next(ctx, msg)

    return middleware


def validate(validator: Validator | Callable[..., Any]) -> Middleware:
    """Refuse the payloads that ``validator`` does not accept; it may be a function with the
    arguments of its method ``validate``."""
    conformance.check("validator", validator)
    check = method(validator, "validate")

    async def middleware(ctx: Context, msg: Envelope[Any], next: Handler) -> Any:
        result = check(msg.topic, msg.event, msg.data)
        if inspect.isawaitable(result):
            await result
        return await next(ctx, msg)

    return middleware


def trace(tracer: Tracer | Callable[..., AbstractContextManager[Any]]) -> Middleware:
    """Run every message in a span with the name of its route, as a child of the span that the
    message's headers name.

    A failing tracer is logged once, and does not affect the message.
    """
    conformance.check("tracer", tracer)
    open_span = method(tracer, "span")
    has_failed = False

    def failed(ctx: Context, error: BaseException) -> None:
        nonlocal has_failed
        if not has_failed:
            has_failed = True
            ctx.hub.logger.error("tracer_failed", error=shown(error), exc_info=error)

    async def middleware(ctx: Context, msg: Envelope[Any], next: Handler) -> Any:
        attributes = {"route": ctx.route, "event": msg.event, "conn_id": ctx.conn.id}
        try:
            span = open_span(ctx.route, msg.headers, attributes)
            span.__enter__()
        except BaseException as error:  # noqa: BLE001  (of the tracer)
            failed(ctx, error)
            return await next(ctx, msg)
        told: tuple[Any, Any, Any] = (None, None, None)
        try:
            return await next(ctx, msg)
        except BaseException as error:
            told = (type(error), error, error.__traceback__)
            raise
        finally:
            try:
                span.__exit__(*told)
            except BaseException as error:  # noqa: BLE001  (of the tracer)
                if error is not told[1]:
                    failed(ctx, error)

    return middleware


def rate_limit(
    limiter: Limiter | Callable[..., Any], key: Callable[..., str] | None = None
) -> Middleware:
    """Refuse messages above the rate of ``limiter`` with ``rate_limited``.

    Messages with the same ``key`` count together. It is a function of ``(ctx, msg)``, or of
    ``ctx`` alone; the default is the user, else the address (an IPv6 one with its /64), else
    the connection. Raises ``ValueError`` for an ``async`` key: it is not awaited.
    """
    conformance.check("limiter", limiter)
    allow = method(limiter, "allow")
    key_of: Callable[..., str] = _default_key if key is None else key
    if conformance.is_async(key_of):
        raise ValueError("the key of rate_limit() is not awaited, so it can't be async")
    context_only = not _takes(key_of, 2)

    async def middleware(ctx: Context, msg: Envelope[Any], next: Handler) -> Any:
        wait = allow(key_of(ctx) if context_only else key_of(ctx, msg))
        rate_limits.check(await wait if inspect.isawaitable(wait) else wait)
        return await next(ctx, msg)

    return middleware


def _default_key(ctx: Context) -> str:
    return rate_limits.key_of(ctx.conn)


def _takes(fn: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(fn).bind(*(None,) * count)
    except TypeError:
        return False
    return True
