"""The bus channels of this node: each is subscribed as long as a caller needs it.

Rules of this file:

1. One subscription per channel, however many callers need it. A caller that comes while the
   bus subscribes waits for the same subscription.
2. Packets are taken from the moment the subscription is active until its last release, and
   only once: a packet from a subscription that is being closed is dropped.
3. Every subscription is closed, also if its callers released it before it was active.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

from eyewall.application.concurrency.tasks import TaskSet
from eyewall.application.ports.bus import PubSub, Subscription
from eyewall.application.ports.logging import told
from eyewall.application.ports.plugins import Logger
from eyewall.domain.errors import EyewallError


class _Channel:
    """One subscription, shared by all callers that need it."""

    __slots__ = ("ready", "users")

    def __init__(self) -> None:
        self.ready: asyncio.Future[Subscription]
        self.users = 0

    @property
    def is_active(self) -> bool:
        done = self.ready.done() and not self.ready.cancelled()
        return done and self.ready.exception() is None


class BusSubscriptions:
    """Subscriptions by name, with the number of callers that need each."""

    def __init__(self, bus: PubSub, on_packet: Callable[[bytes], None], logger: Logger) -> None:
        self._bus = bus
        self._on_packet = on_packet
        self._logger = logger
        self._channels: dict[str, _Channel] = {}
        self._closing = TaskSet(logger)

    def __len__(self) -> int:
        return len(self._channels)

    def is_subscribed(self, name: str) -> bool:
        """Whether this node gets the packets that are published on the channel now."""
        channel = self._channels.get(name)
        return channel is not None and channel.is_active

    async def acquire(self, name: str) -> None:
        """Return when the channel is subscribed. Raises ``Unavailable``; the caller then has
        nothing to release."""
        channel = self._channels.get(name)
        if channel is None:
            channel = self._subscribe(name)
        channel.users += 1
        if channel.is_active:
            return
        try:
            # Shielded: other callers may wait for the same subscription.
            await asyncio.shield(channel.ready)
        except BaseException:
            self._release(name, channel)
            raise

    def release(self, name: str) -> None:
        """Undo one ``acquire``; the last one ends the subscription."""
        channel = self._channels.get(name)
        if channel is not None:
            self._release(name, channel)

    async def close(self) -> None:
        """End all subscriptions; returns when they are closed."""
        for name, channel in list(self._channels.items()):
            channel.users = 1
            self._release(name, channel)
        await self._closing.settled()

    def _release(self, name: str, channel: _Channel) -> None:
        channel.users -= 1
        if channel.users <= 0 and self._channels.get(name) is channel:
            del self._channels[name]
            self._closing.spawn(self._close(name, channel))

    def _subscribe(self, name: str) -> _Channel:
        channel = _Channel()

        def on_packet(payload: bytes) -> None:
            if self._channels.get(name) is channel:
                self._on_packet(payload)

        # Before the call: a bus may deliver a packet before ``subscribe`` returns.
        self._channels[name] = channel
        channel.ready = asyncio.get_running_loop().create_future()
        try:
            subscription = self._bus.subscribe(name, on_packet)
        except BaseException:
            del self._channels[name]
            raise
        if inspect.isawaitable(subscription):
            channel.ready = asyncio.ensure_future(subscription)
        else:
            channel.ready.set_result(subscription)
        return channel

    async def _close(self, name: str, channel: _Channel) -> None:
        try:
            subscription = await channel.ready
        except EyewallError:
            return  # it never was active: its callers got the error
        try:
            closed = subscription.close()
            if inspect.isawaitable(closed):
                await closed
        except EyewallError as error:
            self._logger.warning("unsubscribe_failed", channel=name, error=told(error))
