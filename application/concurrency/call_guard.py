"""Every call of the bus and the stores has an end, and fails in a way that is known.

Rules of this file:

1. A call that does not return within ``DEADLINE`` is ended, and is ``Unavailable``. It may
   have been done all the same: whoever asked knows neither that nor the opposite.
2. What an adapter raises beside the families of ``eyewall.domain.errors`` is its bug or
   its engine's: logged here, and ``Unavailable`` for whoever asked. What a decision's
   rule raises is the caller's own, and goes back to it as it is.
3. A call that does not wait costs no timer: an adapter in memory is run through at once.
4. The deadline is the loop's time, not the ``Clock``'s: it is about the process. An answer
   that came while the loop stood still is read before a call is late.
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
"""Seconds that a call may take. The ports promise five (``stores``): an adapter that keeps
its promise can say itself what it waited for. Whoever waits here may hold the turn of a
connection, and a client waits for the answer."""


class CallGuard:
    """Sees calls of adapters through, or to their end."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def bus(self, bus: PubSub) -> PubSub:
        """The bus, each call of it guarded."""
        return _Bus(self, bus)

    def state(self, state: StateStore, on_away: Callable[[], None]) -> StateStore:
        """The state, each call of it guarded; ``on_away`` is called when one is
        ``Unavailable``."""
        return cast("StateStore", _State(self, state, on_away))

    def history(self, history: HistoryStore) -> HistoryStore:
        """The history, each call of it guarded."""
        return cast("HistoryStore", _Store(self, history, HistoryStore))

    def offline(self, offline: OfflineStore) -> OfflineStore:
        """The store of messages to users who are away, each call of it guarded."""
        return cast("OfflineStore", _Store(self, offline, OfflineStore))

    def begin(self, what: str, method: Callable[..., Any], *args: Any) -> Any:
        """Call, and return the result, or what has to be awaited at once for it."""
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
        """Raise what the caller is to know of an error that came out of a call."""
        # A ``KeyboardInterrupt`` is somebody else's.
        if is_end(error) or isinstance(error, (EyewallError, KeyboardInterrupt)):
            raise error
        self.logger.error("adapter_failed", call=what, error=shown(error), exc_info=error)
        raise AdapterFailed(f"{what} failed") from error

    def late(self, what: str) -> Unavailable:
        """What the caller is to know of a call that has taken too long."""
        self.logger.warning("adapter_silent", call=what, seconds=DEADLINE)
        return Unavailable(f"{what} did not return within {DEADLINE:g} s")

    async def _rest(self, what: str, begun: Coroutine[Any, Any, Any], waits: Any) -> Any:
        """Go through with a call that waits for something."""
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
            task.uncancel()  # it has returned all the same
        return result

    async def within(self, what: str, begun: Awaitable[Any], drop: Callable[[Any], None]) -> Any:
        """The same in a task of its own, whose result goes to ``drop`` if it comes when
        nobody waits for it any more."""
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
    """``yield from`` for a coroutine that has been begun, and waits for ``waits``."""
    while True:
        try:
            sent = yield waits
        except GeneratorExit:
            begun.close()
            raise
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is for the call)
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
    """What became of a call. It is not raised: a ``SystemExit`` would end the loop with the
    task, whoever awaits that."""
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
        # Begun when this is awaited: an adapter may look which task it is in.
        try:
            result = guard.begin(what, getattr(inner, name), *args)
            return await result if type(result) is CoroutineType else result
        except Unavailable:
            on_away()
            raise

    return call


class _State(_Store):
    """The state, within whose calls rules of the application run."""

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
    """Carries what a rule raised through the adapter."""


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
        """It stands, but nobody wants it any more."""
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
