"""A deadline and defined errors for every call of the bus and the stores.

Rules of this file:

1. A call that does not return within ``DEADLINE`` is cancelled, and raises ``Unavailable``.
   It may have taken effect: the caller can't know.
2. An error of an adapter that is not of ``eyewall.domain.errors`` is a bug of the adapter or
   its engine: it is logged, and the caller gets ``Unavailable``. An error that a room
   transaction raises is the caller's own, and is passed on unchanged.
3. A call that does not wait costs no timer: an adapter in memory returns at once.
4. The deadline counts the loop's time, not the ``Clock``'s: it is about the process. An answer
   that arrived while the loop was stalled is read before a call counts as late.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from types import CoroutineType, coroutine
from typing import Any, NoReturn, cast

from eyewall.application.concurrency.stalls import Alarm, has_come
from eyewall.application.concurrency.tasks import TaskSet, is_end
from eyewall.application.ports.bus import CountsSubscribers, PubSub, Subscription
from eyewall.application.ports.logging import shown
from eyewall.application.ports.plugins import Logger
from eyewall.application.ports.stores import (
    AdapterFailed,
    HistoryStore,
    KnowsOwned,
    OfflineStore,
    StateStore,
    has_methods_of,
    methods,
)
from eyewall.domain.errors import EyewallError, Unavailable

DEADLINE = 6.0
"""Seconds that a call may take. The ports promise five (``stores``), so an adapter that keeps
its promise raises its own error first. The caller may hold the lock of a connection, and a
client waits for the answer."""


class CallGuard:
    """Wraps the bus and the stores, so that each call has a deadline and defined errors."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def bus(self, bus: PubSub) -> PubSub:
        """Return the bus with each call guarded."""
        return _Bus(self, bus)

    def state(self, state: StateStore, on_away: Callable[[], None]) -> StateStore:
        """Return the state with each call guarded; ``on_away`` is called when one raises
        ``Unavailable``."""
        return cast("StateStore", _State(self, state, on_away))

    def history(self, history: HistoryStore) -> HistoryStore:
        """Return the history with each call guarded."""
        return cast("HistoryStore", _Store(self, history, HistoryStore))

    def offline(self, offline: OfflineStore) -> OfflineStore:
        """Return the offline store with each call guarded."""
        return cast("OfflineStore", _Store(self, offline, OfflineStore))

    def begin(self, what: str, method: Callable[..., Any], *args: Any) -> Any:
        """Call ``method``; returns its result, or a coroutine that must be awaited at once.

        ``what`` names the call in errors and in the log.
        """
        try:
            result = method(*args)
            if type(result) is not CoroutineType:
                if not inspect.isawaitable(result):
                    return result
                result = _awaited(result)
            waits = result.send(None)
        except StopIteration as done:
            return done.value
        except BaseException as error:  # noqa: BLE001  (an adapter's own)
            self.failed(what, error)
        return self._rest(what, result, waits)

    def failed(self, what: str, error: BaseException) -> NoReturn:
        """Raise the caller's error for an ``error`` of a call, and log an adapter's bug."""
        # A ``KeyboardInterrupt`` is for the program, not for the caller.
        if is_end(error) or isinstance(error, (EyewallError, KeyboardInterrupt)):
            raise error
        self.logger.error("adapter_failed", call=what, error=shown(error), exc_info=error)
        raise AdapterFailed(f"{what} failed") from error

    def late(self, what: str) -> Unavailable:
        """Return the caller's error for a call that has passed its deadline, and log it."""
        self.logger.warning("adapter_silent", call=what, seconds=DEADLINE)
        return Unavailable(f"{what} did not return within {DEADLINE:g} s")

    async def _rest(self, what: str, begun: Coroutine[Any, Any, Any], waits: Any) -> Any:
        """Run a call that has begun to wait, under the deadline."""
        task = asyncio.current_task()
        assert task is not None
        before, is_late = task.cancelling(), False

        def end() -> None:
            nonlocal is_late
            is_late = True
            task.cancel()

        timer = Alarm(DEADLINE, end)
        try:
            result = await _go_on(begun, waits)
        except BaseException as error:
            if is_late and task.uncancel() <= before:
                raise self.late(what) from error
            self.failed(what, error)
        finally:
            timer.cancel()
        if is_late:
            task.uncancel()  # the call returned in spite of its cancellation
        return result

    async def within(self, what: str, begun: Awaitable[Any], drop: Callable[[Any], None]) -> Any:
        """Await ``begun`` under the deadline, in a task of its own.

        A result that comes after the deadline, or after the caller's cancellation, is passed
        to ``drop``.
        """
        work = asyncio.ensure_future(_outcome(begun))
        try:
            if not await has_come(work, DEADLINE):
                raise self.late(what)
        finally:
            if not work.done():
                work.cancel()
                work.add_done_callback(partial(_dropped, drop))
        result, error = work.result()
        if error is not None:
            self.failed(what, error)
        return result


@coroutine
def _go_on(begun: Coroutine[Any, Any, Any], waits: Any) -> Generator[Any, Any, Any]:
    """``yield from`` for a coroutine that has begun and waits for ``waits``."""
    while True:
        try:
            sent = yield waits
        except GeneratorExit:
            begun.close()
            raise
        except BaseException as error:  # noqa: BLE001  (it is thrown into the call)
            step = partial(begun.throw, error)
        else:
            step = partial(begun.send, sent)
        try:
            waits = step()
        except StopIteration as done:
            return done.value


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


async def _outcome(begun: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Return the result or the error of a call. The error is not raised: a ``SystemExit`` in a
    task would end the loop."""
    try:
        return await begun, None
    except BaseException as error:
        if is_end(error) or isinstance(error, KeyboardInterrupt):
            raise
        return None, error


def _dropped(
    drop: Callable[[Any], None], work: asyncio.Future[tuple[Any, BaseException | None]]
) -> None:
    if not work.cancelled() and work.exception() is None:
        result, error = work.result()
        if error is None:
            drop(result)


# --- the ports


class _Store:
    """A store, all of whose methods are ``async``."""

    def __init__(
        self,
        guard: CallGuard,
        inner: Any,
        *ports: type,
        on_away: Callable[[], None] = lambda: None,
    ) -> None:
        for name in (name for port in ports for name in methods(port)):
            setattr(self, name, _guarded(guard, inner, name, on_away))


def _guarded(
    guard: CallGuard, inner: Any, name: str, on_away: Callable[[], None]
) -> Callable[..., Awaitable[Any]]:
    what = f"{type(inner).__name__}.{name}"

    async def call(*args: Any) -> Any:
        # The call begins when this is awaited: an adapter may read the current task.
        try:
            result = guard.begin(what, getattr(inner, name), *args)
            return await result if type(result) is CoroutineType else result
        except Unavailable:
            on_away()
            raise

    return call


class _State(_Store):
    """The state, whose ``decide`` runs transactions of the application."""

    def __init__(self, guard: CallGuard, inner: Any, on_away: Callable[[], None]) -> None:
        optional = (KnowsOwned,) if has_methods_of(inner, KnowsOwned) else ()
        super().__init__(guard, inner, StateStore, *optional, on_away=on_away)
        self._decide = cast("Callable[..., Awaitable[Any]]", vars(self)["decide"])
        self.decide = self._watched

    async def _watched(self, room_id: Any, member: Any, rule: Callable[..., Any]) -> Any:
        raised: list[Exception] = []

        def noted(room: Any, standing: Any) -> Any:
            try:
                return rule(room, standing)
            except EyewallError:
                raise
            except Exception as error:
                raised.append(error)
                raise _RuleFailed(repr(error)) from error

        try:
            return await self._decide(room_id, member, noted)
        except _RuleFailed:
            raise raised[-1] from None


class _RuleFailed(EyewallError):
    """Carries an error that a transaction raised through the adapter."""


class _Bus:
    """The bus, whose methods may be plain."""

    def __init__(self, guard: CallGuard, inner: PubSub) -> None:
        self._guard = guard
        self._inner = inner
        self._name = type(inner).__name__
        self._publishing = f"{self._name}.publish"
        self._closing = TaskSet(guard.logger)
        if has_methods_of(inner, CountsSubscribers):
            self.listeners = cast("CountsSubscribers", inner).listeners

    def publish(self, channel: str, payload: bytes) -> Any:
        return self._guard.begin(self._publishing, self._inner.publish, channel, payload)

    def subscribe(self, channel: str, handler: Callable[[bytes], None]) -> Any:
        what = f"{self._name}.subscribe"
        try:
            subscription = self._inner.subscribe(channel, handler)
        except BaseException as error:  # noqa: BLE001  (an adapter's own)
            self._guard.failed(what, error)
        if inspect.isawaitable(subscription):
            return self._stand(what, subscription)
        return _Subscription(self._guard, self._name, subscription)

    async def _stand(self, what: str, begun: Awaitable[Subscription]) -> _Subscription:
        subscription = await self._guard.within(what, begun, self._drop)
        return _Subscription(self._guard, self._name, subscription)

    def _drop(self, subscription: Subscription) -> None:
        """Close a subscription that became active after its caller had given up."""
        closing = _Subscription(self._guard, self._name, subscription)
        self._closing.spawn(_closed(closing))


class _Subscription:
    def __init__(self, guard: CallGuard, bus: str, inner: Subscription) -> None:
        self._guard = guard
        self._what = f"{bus}.unsubscribe"
        self._inner = inner

    def close(self) -> Any:
        return self._guard.begin(self._what, self._inner.close)


async def _closed(subscription: _Subscription) -> None:
    closing = subscription.close()
    if inspect.isawaitable(closing):
        await closing
