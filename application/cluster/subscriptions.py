"""The bus channels of this node: each is subscribed as long as a caller needs it.

Rules of this file:

1. One subscription per channel, however many callers need it. A caller that comes while the
   subscription is under way gets it at the same time as the first one.
2. Packets are taken from the moment the subscription stands until its last release, and only
   once: a packet from a subscription that is being closed is dropped.
3. Every subscription that was begun is closed, also if its callers have released it meanwhile.
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
    """One subscription, shared by all that need it."""

    __slots__ = ("ready", "users")

    def __init__(self) -> None:
        self.ready: asyncio.Future[Subscription]
        self.users = 0

    @property
    def stands(self) -> bool:
        done = self.ready.done() and not self.ready.cancelled()
        return done and self.ready.exception() is None


class BusSubscriptions:
    """Subscriptions by name, with the number of callers that need each."""

    def __init__(self, bus: PubSub, heard: Callable[[bytes], None], logger: Logger) -> None:
        self._bus = bus
        self._take = heard
        self._logger = logger
        self._channels: dict[str, _Channel] = {}
        self._closing = TaskSet(logger)

    def __len__(self) -> int:
        return len(self._channels)

    def hears(self, name: str) -> bool:
        """Whether what is published on the channel now arrives here."""
        channel = self._channels.get(name)
        return channel is not None and channel.stands

    async def acquire(self, name: str) -> None:
        """Return when the channel is heard. Raises ``Unavailable``, and needs it not."""
        channel = self._channels.get(name)
        if channel is None:
            channel = self._subscribe(name)
        channel.users += 1
        if channel.stands:
            return
        try:
            # Shielded: others may wait for the same subscription.
            await asyncio.shield(channel.ready)
        except BaseException:
            self._give_back(name, channel)
            raise

    def release(self, name: str) -> None:
        """Give one ``acquire`` back; the last one ends the subscription."""
        channel = self._channels.get(name)
        if channel is not None:
            self._give_back(name, channel)

    async def close(self) -> None:
        """Hear nothing more; returns when all subscriptions are closed."""
        for name, channel in list(self._channels.items()):
            channel.users = 1
            self._give_back(name, channel)
        await self._closing.settled()

    def _give_back(self, name: str, channel: _Channel) -> None:
        channel.users -= 1
        if channel.users <= 0 and self._channels.get(name) is channel:
            del self._channels[name]
            self._closing.spawn(self._close(name, channel))

    def _subscribe(self, name: str) -> _Channel:
        channel = _Channel()

        def heard(payload: bytes) -> None:
            if self._channels.get(name) is channel:
                self._take(payload)

        # A bus may call back before it returns, so it is there by then.
        self._channels[name] = channel
        channel.ready = asyncio.get_running_loop().create_future()
        try:
            subscription = self._bus.subscribe(name, heard)
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
            return  # it never stood: whoever asked for it has been told
        try:
            closed = subscription.close()
            if inspect.isawaitable(closed):
                await closed
        except EyewallError as error:
            self._logger.warning("unsubscribe_failed", channel=name, error=told(error))
