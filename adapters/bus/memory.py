"""A bus for servers in one process: tests, examples, several hubs behind one program."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

from eyewall.domain.errors import Unavailable

Handler = Callable[[bytes], None]


class _Subscription:
    """One handler on one channel, called on the loop that subscribed."""

    __slots__ = ("_bus", "channel", "context", "handler", "is_open", "loop")

    def __init__(
        self,
        bus: MemoryPubSub,
        channel: str,
        handler: Handler,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._bus = bus
        self.channel = channel
        self.handler = handler
        self.loop = loop
        # The handler runs in the context of the subscriber, not of the publisher.
        self.context = copy_context()
        self.is_open = True

    def close(self) -> None:
        self.is_open = False
        self._bus.discard(self)

    def deliver(self, payload: bytes) -> None:
        if self.is_open:  # it may have been closed since the message was published
            self.handler(payload)


class MemoryPubSub:
    """Implements ``PubSub``. Servers share it by sharing the object.

    The servers may run on different event loops (threads). A handler is called on the loop of
    its subscriber.
    """

    across_processes = False

    def __init__(self) -> None:
        self._channels: dict[str, tuple[_Subscription, ...]] = {}
        self._lock = threading.Lock()
        self._opened = 0

    async def open(self) -> None:
        """Count one more server that uses the bus."""
        with self._lock:
            self._opened += 1

    async def close(self) -> None:
        """Count one server less. The last one closes all subscriptions."""
        with self._lock:
            self._opened = max(0, self._opened - 1)
            if self._opened:
                return
            left = [s for subs in self._channels.values() for s in subs]
            self._channels.clear()
        for subscription in left:
            subscription.is_open = False

    async def publish(self, channel: str, payload: bytes) -> None:
        here = asyncio.get_running_loop()
        for subscription in self._channels.get(channel, ()):
            # Scheduled, because the publisher may hold a lock or be in the middle of a change.
            if subscription.loop is here:
                here.call_soon(subscription.deliver, payload, context=subscription.context)
                continue
            with suppress(RuntimeError):  # the subscriber's loop is closed
                subscription.loop.call_soon_threadsafe(
                    subscription.deliver, payload, context=subscription.context
                )

    def subscribe(self, channel: str, handler: Handler) -> _Subscription:
        subscription = _Subscription(self, channel, handler, asyncio.get_running_loop())
        with self._lock:
            if not self._opened:
                raise Unavailable("the bus is closed")
            self._channels[channel] = (*self._channels.get(channel, ()), subscription)
        return subscription

    def listeners(self, channel: str) -> int:
        """Return the number of subscriptions to ``channel``."""
        return len(self._channels.get(channel, ()))

    def discard(self, subscription: _Subscription) -> None:
        with self._lock:
            left = tuple(
                s for s in self._channels.get(subscription.channel, ()) if s is not subscription
            )
            if left:
                self._channels[subscription.channel] = left
            else:
                self._channels.pop(subscription.channel, None)
