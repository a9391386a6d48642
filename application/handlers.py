"""What users register, made uniform: one ``async`` callable ``(ctx, msg)``.

A plain function runs in a thread. A handler annotated ``msg: Envelope[T]`` gets the
payload decoded and validated as ``T``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from eyewall.application.context import Context
from eyewall.application.middleware import Handler
from eyewall.domain.envelope import Envelope


class Threads:
    """The pool in which plain handlers run; made when the first one is called."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._size, thread_name_prefix="eyewall")
        call = functools.partial(copy_context().run, fn, *args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Let the threads end; calls that have not begun are cancelled."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def adapt(handler: Callable[..., Any], threads: Threads) -> Handler:
    """Return ``handler`` as a coroutine function of ``(ctx, msg)``."""
    if not callable(handler):
        raise TypeError(f"a handler must be callable, not {handler!r}")
    run = handler if is_async(handler) else _in_thread(handler, threads)
    into = payload_type(handler)
    return run if into is None else _typed(run, into)


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether calling ``handler`` gives a coroutine; callable objects count too."""
    call = getattr(handler, "__call__", None)  # noqa: B004  (its signature is wanted)
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


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
    annotations = getattr(target, "__annotations__", {})
    if not any("Envelope[" in str(a) for a in annotations.values()):
        return None
    for hint in _hints(target).values():
        if typing.get_origin(hint) is Envelope:
            (into,) = typing.get_args(hint)
            return None if into is Any or isinstance(into, typing.TypeVar) else into
    return None


def _hints(target: Any) -> dict[str, Any]:
    """Resolve a handler's annotations, also those that name a local class."""
    local: dict[str, Any] = {}
    frame = sys._getframe(1)  # noqa: SLF001  (the only way to the scope that registers)
    while frame is not None:
        for name, value in frame.f_locals.items():
            local.setdefault(name, value)
        if frame.f_code.co_name == "<module>":
            break
        frame = frame.f_back  # type: ignore[assignment]
    # What the handler's own module says comes before the scopes it is registered in.
    local.update(getattr(target, "__globals__", {}))
    return typing.get_type_hints(target, localns=local)
