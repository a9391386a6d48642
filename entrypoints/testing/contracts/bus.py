"""The promises of a ``PubSub`` as tests, for authors of a bus.

Derive a class, return a client of your bus from its fixture, and run pytest::

    from eyewall.testing.contracts import BusContract

    class TestMyBus(BusContract):
        @pytest.fixture
        def connect(self):
            return lambda: MyPubSub("my://localhost")

``connect()`` returns a new client that is not open yet. All clients of a test are on one bus, which
no other test uses at the same time. The tests open and close a client that has ``open`` and
``close``, and use channels of any name. They are ``async`` and need pytest-asyncio with
``asyncio_mode = auto``.

The tests measure no time: a payload that has not arrived after ``patience`` seconds is lost.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from eyewall.application.ports.bus import PubSub, Subscription
from eyewall.application.ports.stores import Lifecycle, has_methods_of
from eyewall.domain.errors import Unavailable

Connect = Callable[[], Any]

END = b"<end>"
"""Published last: every earlier payload of the channel arrives before it."""


async def done(value: Any) -> Any:
    """Return the result of a port's method, awaited if it is awaitable."""
    return await value if inspect.isawaitable(value) else value


def opens(client: Any) -> bool:
    """Whether a client has ``open`` and ``close``."""
    return has_methods_of(client, Lifecycle)


@asynccontextmanager
async def opened(client: Any) -> AsyncIterator[Any]:
    """Open a client for the duration of the context."""
    if opens(client):
        await client.open()
    try:
        yield client
    finally:
        if opens(client):
            await client.close()


class RecordingHandler:
    """A handler that records the payloads that it receives."""

    def __init__(self, patience: float) -> None:
        self.payloads: list[bytes] = []
        self._patience = patience
        self._news = asyncio.Event()

    def __call__(self, payload: bytes) -> None:
        self.payloads.append(payload)
        self._news.set()

    async def until_end(self) -> list[bytes]:
        """Return the payloads before ``END``; raises ``TimeoutError`` if it does not arrive."""
        async with asyncio.timeout(self._patience):
            while END not in self.payloads:
                self._news.clear()
                await self._news.wait()
        self.payloads.remove(END)
        return self.payloads


class BusContract:
    """The promises of ``PubSub``, one test per promise."""

    patience = 10.0
    """Seconds after which a payload that has not arrived counts as lost."""

    @pytest.fixture
    def connect(self) -> Connect:
        """Return a function that makes a client of the bus, not open yet. To be overridden."""
        raise NotImplementedError("return a function that makes a client of your bus")

    @pytest.fixture
    async def bus(self, connect: Connect) -> AsyncIterator[PubSub]:
        async with opened(connect()) as client:
            yield client

    @pytest.fixture
    async def other(self, connect: Connect) -> AsyncIterator[PubSub]:
        """The client of another server on the same bus."""
        async with opened(connect()) as client:
            yield client

    async def listen(self, bus: PubSub, channel: str) -> RecordingHandler:
        received = RecordingHandler(self.patience)
        await done(bus.subscribe(channel, received))
        return received

    async def test_what_is_published_reaches_the_others(self, bus: Any, other: Any) -> None:
        received = await self.listen(other, "room:lab")

        await done(bus.publish("room:lab", b"hello"))
        await done(bus.publish("room:lab", END))

        assert await received.until_end() == [b"hello"]

    async def test_the_publisher_hears_itself(self, bus: Any) -> None:
        received = await self.listen(bus, "room:lab")

        await done(bus.publish("room:lab", b"hello"))
        await done(bus.publish("room:lab", END))

        assert await received.until_end() == [b"hello"]

    async def test_every_subscription_hears_it_once(self, bus: Any, other: Any) -> None:
        handlers = [await self.listen(client, "room:lab") for client in (bus, other, other)]

        await done(bus.publish("room:lab", b"hello"))
        await done(bus.publish("room:lab", END))

        for received in handlers:
            assert await received.until_end() == [b"hello"]

    async def test_payloads_of_one_sender_arrive_in_order(self, bus: Any, other: Any) -> None:
        received = await self.listen(other, "room:lab")
        sent = [b"%d" % number for number in range(200)]

        for payload in sent:
            await done(bus.publish("room:lab", payload))
        await done(bus.publish("room:lab", END))

        assert await received.until_end() == sent

    async def test_a_subscription_stands_when_subscribe_returns(self, bus: Any, other: Any) -> None:
        """A payload that is published right after ``subscribe`` returns arrives."""
        for number in range(20):
            received = await self.listen(other, f"room:{number}")
            await done(bus.publish(f"room:{number}", END))
            assert await received.until_end() == []

    async def test_nobody_hears_another_channel(self, bus: Any, other: Any) -> None:
        """The name of a channel is compared as a whole: it is no pattern and has no hierarchy."""
        handlers = {
            channel: await self.listen(other, channel)
            for channel in ("room", "room:lab", "room:lab:1", "room:*", "room:ü b?[a]", "ROOM")
        }

        for channel in handlers:
            await done(bus.publish(channel, channel.encode()))
            await done(bus.publish(channel, END))

        for channel, received in handlers.items():
            assert await received.until_end() == [channel.encode()]

    async def test_publishing_where_nobody_listens_is_not_an_error(self, bus: Any) -> None:
        await done(bus.publish("room:empty", b"anyone?"))

    @pytest.mark.parametrize(
        "payload",
        [b"", b"\x00", bytes(range(256)), "ü€😀".encode(), b"x" * (1 << 20)],
        ids=["empty", "zero", "every byte", "utf-8", "1 MiB"],
    )
    async def test_bytes_arrive_as_they_are(self, bus: Any, other: Any, payload: bytes) -> None:
        received = await self.listen(other, "room:lab")

        await done(bus.publish("room:lab", payload))
        await done(bus.publish("room:lab", END))

        assert await received.until_end() == [payload]

    async def test_a_closed_subscription_hears_nothing(self, bus: Any, other: Any) -> None:
        closed, received = RecordingHandler(self.patience), await self.listen(other, "room:lab")
        subscription: Subscription = await done(other.subscribe("room:lab", closed))

        await done(subscription.close())
        await done(bus.publish("room:lab", b"hello"))
        await done(bus.publish("room:lab", END))

        assert await received.until_end() == [b"hello"]
        assert closed.payloads == []

    async def test_a_channel_can_be_left_and_heard_again(self, bus: Any, other: Any) -> None:
        for _ in range(3):
            received = RecordingHandler(self.patience)
            subscription = await done(other.subscribe("room:lab", received))
            await done(bus.publish("room:lab", END))
            assert await received.until_end() == []
            await done(subscription.close())

    async def test_the_handler_is_called_on_the_subscribers_loop(
        self, bus: Any, other: Any
    ) -> None:
        loops = []
        received = RecordingHandler(self.patience)

        def handler(payload: bytes) -> None:
            loops.append(asyncio.get_running_loop())
            received(payload)

        await done(other.subscribe("room:lab", handler))
        await done(bus.publish("room:lab", END))

        await received.until_end()
        assert loops == [asyncio.get_running_loop()]

    async def test_a_handler_is_never_called_within_publish(self, bus: Any) -> None:
        """The publisher would be re-entered in the middle of its work."""
        received = await self.listen(bus, "room:lab")

        publishing = bus.publish("room:lab", END)
        assert received.payloads == []
        await done(publishing)

        assert await received.until_end() == []

    async def test_one_client_may_serve_several_servers(self, connect: Connect) -> None:
        """A client that several servers have opened stays open until the last one closes it."""
        client = connect()
        if not opens(client):
            pytest.skip("it has nothing to open")
        async with opened(client):
            async with opened(client):
                pass
            received = await self.listen(client, "room:lab")
            await done(client.publish("room:lab", END))
            assert await received.until_end() == []

    async def test_a_closed_client_can_be_opened_again(self, connect: Connect) -> None:
        client = connect()
        if not opens(client):
            pytest.skip("it has nothing to open")
        async with opened(client):
            old = await self.listen(client, "room:lab")
        with pytest.raises(Unavailable):
            await done(client.subscribe("room:lab", old))

        async with opened(client):
            received = await self.listen(client, "room:lab")
            await done(client.publish("room:lab", END))
            assert await received.until_end() == []

        assert old.payloads == []
