"""What a cluster runs on, so that it can be slow, lossy or away.

Both work on the memory ones, and fail by a switch with a name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.state.memory import MemoryState
from eyewall.domain.errors import Unavailable


class Engine:
    """A ``StateStore`` or ``HistoryStore`` that may be away, or slow before or after it does
    what is asked.

    * ``away``: every call raises ``Unavailable``;
    * ``before``, ``after``: names of methods that wait there until ``go_on``;
    * ``lost``: names of methods whose answer is lost: done, and ``Unavailable`` raised.
    """

    def __init__(self, inner: MemoryState | MemoryHistory) -> None:
        self.inner = inner
        self.away = False
        self.before: set[str] = set()
        self.after: set[str] = set()
        self.lost: set[str] = set()
        self.calls: list[str] = []
        self._gate = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._call, name)

    async def _call(self, name: str, *args: Any) -> Any:
        self.calls.append(name)
        if name in self.before:
            await self._gate.wait()
        if self.away and name not in ("open", "close"):
            raise Unavailable("the engine is away")
        result = await getattr(self.inner, name)(*args)
        if name in self.after:
            await self._gate.wait()
        if name in self.lost:
            raise Unavailable("the answer was lost")
        return result

    def go_on(self) -> None:
        """Let what waits go on, and nothing wait from now on."""
        self.before.clear()
        self.after.clear()
        self._gate.set()
        self._gate = asyncio.Event()


class Bus:
    """A ``PubSub`` that does not count its listeners.

    * ``away``: publishing and subscribing raise ``Unavailable``;
    * ``deaf``: channels whose messages are lost;
    * ``published``: all channels and payloads.
    """

    def __init__(self) -> None:
        self.inner = MemoryPubSub()
        self.away = False
        self.deaf: set[str] = set()
        self.published: list[tuple[str, bytes]] = []
        self.subscribed: list[str] = []
        self.slow: asyncio.Event | None = None
        """Subscriptions wait for it."""

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def publish(self, channel: str, payload: bytes) -> None:
        if self.away:
            raise Unavailable("the bus is away")
        self.published.append((channel, payload))
        if channel not in self.deaf:
            await self.inner.publish(channel, payload)

    async def subscribe(self, channel: str, handler: Callable[[bytes], None]) -> Any:
        if self.slow is not None:
            await self.slow.wait()
        if self.away:
            raise Unavailable("the bus is away")
        self.subscribed.append(channel)
        return self.inner.subscribe(channel, handler)

    def listeners_of(self, channel: str) -> int:
        return self.inner.listeners(channel)
