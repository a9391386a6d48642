"""Handlers: adapts any registered function to one ``async`` callable ``(ctx, msg)``.

A plain function runs in a thread. A handler with the annotation ``msg: Envelope[T]`` gets the
payload decoded and validated as ``T``.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from eyewall.application.concurrency.threads import Threads
from eyewall.application.hub.hub import Context, Handler
from eyewall.application.ports.conformance import is_async
from eyewall.domain.envelope import Envelope


def adapt(handler: Callable[..., Any], threads: Threads, into: Any | None) -> Handler:
    """Return ``handler`` as a coroutine function of ``(ctx, msg)``.

    ``into`` is its ``payload_type``, which has to be resolved where it is registered.
    """
    run = handler if is_async(handler) else _in_thread(handler, threads)
    return run if into is None else _typed(run, into)


def check(handler: Callable[..., Any]) -> None:
    """Raise ``TypeError`` unless ``handler`` can be called with ``(ctx, msg)``: at the
    registration, not at the first message."""
    generates = inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler)
    if isinstance(handler, type) or generates or not callable(handler):
        raise TypeError(f"a handler must be callable with (ctx, msg), not {handler!r:.80}")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # a built-in without a signature
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(f"a handler takes (ctx, msg), not {signature}") from None


def _in_thread(handler: Callable[..., Any], threads: Threads) -> Handler:
    async def run(ctx: Context, msg: Envelope[Any]) -> Any:
        result = await threads.run(handler, ctx, msg)
        return await result if inspect.isawaitable(result) else result

    return run


def _typed(handler: Handler, into: Any) -> Handler:
    async def run(ctx: Context, msg: Envelope[Any]) -> Any:
        return await handler(ctx, msg.with_data(msg.load(into)))

    return run


def payload_type(handler: Callable[..., Any]) -> Any | None:
    """Return ``T`` of a handler's ``Envelope[T]``; None where it names no type."""
    target: Any = inspect.unwrap(handler) if inspect.isroutine(handler) else handler
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target):
        target = type(target).__call__
    annotations = dict(getattr(target, "__annotations__", {}))
    annotations.pop("return", None)
    for annotation in annotations.values():
        hint = _resolved(annotation, target)
        if typing.get_origin(hint) is Envelope:
            (into,) = typing.get_args(hint)
            return None if into is Any or isinstance(into, typing.TypeVar) else into
    return None


def _resolved(annotation: Any, target: Any) -> Any:
    """Return the type of one annotation, also one that names a local class; None for another
    one that can't be resolved: it may exist for type checkers only.

    Raises ``ValueError`` for an ``Envelope[T]`` whose ``T`` can't be resolved.
    """
    if isinstance(annotation, str) and "[" not in annotation:
        return None  # no T: nothing to find
    stub = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        hints = typing.get_type_hints(stub, getattr(target, "__globals__", {}), _scope(target))
    except Exception as error:
        if "Envelope[" not in str(annotation):
            return None
        raise ValueError(f"{target.__qualname__}: {annotation!r} means nothing: {error}") from error
    return hints["it"]


def _scope(target: Any) -> dict[str, Any]:
    """Return the names that the handler's annotations may use: those of its module, and of the
    scopes in which it is registered."""
    local: dict[str, Any] = {}
    frame = sys._getframe(1)  # noqa: SLF001  (the only way to the scope that registers)
    while frame is not None:
        for name, value in frame.f_locals.items():
            local.setdefault(name, value)
        if frame.f_code.co_name == "<module>":
            break
        frame = frame.f_back  # type: ignore[assignment]
    # The handler's own module has precedence.
    local.update(getattr(target, "__globals__", {}))
    return local
