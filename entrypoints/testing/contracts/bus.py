"""What every bus promises, as tests: for who writes a ``PubSub`` of their own.

Take the class over, say how a client of your bus is made, and run pytest on it::

    from eyewall.testing.contracts import BusContract

    class TestMyBus(BusContract):
        @pytest.fixture
        def connect(self):
            return lambda: MyPubSub("my://localhost")

``connect()`` returns a new client that is not open yet; all of a test's clients are on
one bus. A client that has ``open`` and ``close`` is opened and closed by the tests, each
test may use channels of any name, and what is published goes nowhere else. Tests are
``async`` and need pytest-asyncio with ``asyncio_mode = auto``.

Nothing here measures time: ``patience`` is how long a payload may be on its way before
it counts as lost.
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
"""Published last: what was published before it on the channel has been heard by then."""


async def done(value: Any) -> Any:
    """Await what a port's method returned, if it may be awaited."""
    return await value if inspect.isawaitable(value) else value


def opens(client: Any) -> bool:
    """Whether there is anything to open and to close."""
    return has_methods_of(client, Lifecycle)


@asynccontextmanager
async def opened(client: Any) -> AsyncIterator[Any]:
    """The client, open as long as the context."""
    if opens(client):
        await client.open()
    try:
        yield client
    finally:
        if opens(client):
            await client.close()


class Ear:
    """A handler that remembers what it heard."""

    def __init__(self, patience: float) -> None:
        self.heard: list[bytes] = []
        self._patience = patience
        self._news = asyncio.Event()

    def __call__(self, payload: bytes) -> None:
        self.heard.append(payload)
        self._news.set()

    async def until_end(self) -> list[bytes]:
        """Return what was heard before ``END``; fails if that does not come."""
        async with asyncio.timeout(self._patience):
            while END not in self.heard:
                self._news.clear()
                await self._news.wait()
        self.heard.remove(END)
        return self.heard


class BusContract:
    """The promises of ``PubSub``, one test each."""

    patience = 10.0
    """Seconds after which a payload that has not arrived is lost."""

    @pytest.fixture
    def connect(self) -> Connect:
        """A function that returns a new client of the bus, not open yet."""
        raise NotImplementedError

    @pytest.fixture
    async def bus(self, connect: Connect) -> AsyncIterator[PubSub]:
        async with opened(connect()) as client:
            yield client

    @pytest.fixture
    async def other(self, connect: Connect) -> AsyncIterator[PubSub]:
        """Another server's client of the same bus."""
        async with opened(connect()) as client:
            yield client

    async def listen(self, bus: PubSub, channel: str) -> Ear:
        ear = Ear(self.patience)
        await done(bus.subscribe(channel, ear))
        return ear

    async def test_what_is_published_reaches_the_others(self, bus: Any, other: Any) -> None:
        ear = await self.listen(other, "room:lab")

        await done(bus.publish("room:lab", b"hello"))
        await done(bus.publish("room:lab", END))

        assert await ear.until_end() == [b"hello"]

    async def test_the_publisher_hears_itself(self, bus: Any) -> None:
        ear = await self.listen(bus, "room:lab")

        await done(bus.publish("room:lab", b"hello"))
        await done(bus.publish("room:lab", END))

        assert await ear.until_end() == [b"hello"]

    async def test_every_subscription_hears_it_once(self, bus: Any, other: Any) -> None:
        ears = [await self.listen(client, "room:lab") for client in (bus, other, other)]

        await done(bus.publish("room:lab", b"hello"))
        await done(bus.publish("room:lab", END))

        for ear in ears:
            assert await ear.until_end() == [b"hello"]

    async def test_payloads_of_one_sender_arrive_in_order(self, bus: Any, other: Any) -> None:
        ear = await self.listen(other, "room:lab")
        sent = [b"%d" % number for number in range(200)]

        for payload in sent:
            await done(bus.publish("room:lab", payload))
        await done(bus.publish("room:lab", END))

        assert await ear.until_end() == sent

    async def test_a_subscription_stands_when_subscribe_returns(self, bus: Any, other: Any) -> None:
        """What is published in the next moment is heard: there is no gap to wait out."""
        for number in range(20):
            ear = await self.listen(other, f"room:{number}")
            await done(bus.publish(f"room:{number}", END))
            assert await ear.until_end() == []

    async def test_nobody_hears_another_channel(self, bus: Any, other: Any) -> None:
        """A channel's name is a name: no part of it, and no character in it, means more."""
        ears = {
            channel: await self.listen(other, channel)
            for channel in ("room", "room:lab", "room:lab:1", "room:*", "room:ü b?[a]", "ROOM")
        }

        for channel in ears:
            await done(bus.publish(channel, channel.encode()))
            await done(bus.publish(channel, END))

        for channel, ear in ears.items():
            assert await ear.until_end() == [channel.encode()]

    async def test_publishing_where_nobody_listens_is_not_an_error(self, bus: Any) -> None:
        await done(bus.publish("room:empty", b"anyone?"))

    @pytest.mark.parametrize(
        "payload",
        [b"", b"\x00", bytes(range(256)), "ü€😀".encode(), b"x" * (1 << 20)],
        ids=["empty", "zero", "every byte", "utf-8", "1 MiB"],
    )
    async def test_bytes_arrive_as_they_are(self, bus: Any, other: Any, payload: bytes) -> None:
        ear = await self.listen(other, "room:lab")

        await done(bus.publish("room:lab", payload))
        await done(bus.publish("room:lab", END))

        assert await ear.until_end() == [payload]

    async def test_a_closed_subscription_hears_nothing(self, bus: Any, other: Any) -> None:
        deaf, ear = Ear(self.patience), await self.listen(other, "room:lab")
        subscription: Subscription = await done(other.subscribe("room:lab", deaf))

        await done(subscription.close())
        await done(bus.publish("room:lab", b"hello"))
        await done(bus.publish("room:lab", END))

        assert await ear.until_end() == [b"hello"]
        assert deaf.heard == []

    async def test_a_channel_can_be_left_and_heard_again(self, bus: Any, other: Any) -> None:
        for _ in range(3):
            ear = Ear(self.patience)
            subscription = await done(other.subscribe("room:lab", ear))
            await done(bus.publish("room:lab", END))
            assert await ear.until_end() == []
            await done(subscription.close())

    async def test_the_handler_is_called_on_the_subscribers_loop(
        self, bus: Any, other: Any
    ) -> None:
        loops = []
        ear = Ear(self.patience)

        def handler(payload: bytes) -> None:
            loops.append(asyncio.get_running_loop())
            ear(payload)

        await done(other.subscribe("room:lab", handler))
        await done(bus.publish("room:lab", END))

        await ear.until_end()
        assert loops == [asyncio.get_running_loop()]

    async def test_a_handler_is_never_called_within_publish(self, bus: Any) -> None:
        """Who publishes is in the middle of something."""
        ear = await self.listen(bus, "room:lab")

        publishing = bus.publish("room:lab", END)
        assert ear.heard == []
        await done(publishing)

        assert await ear.until_end() == []

    async def test_one_client_may_serve_several_servers(self, connect: Connect) -> None:
        """What several have opened stays open until the last has closed it."""
        client = connect()
        if not opens(client):
            pytest.skip("it has nothing to open")
        async with opened(client):
            async with opened(client):
                pass
            ear = await self.listen(client, "room:lab")
            await done(client.publish("room:lab", END))
            assert await ear.until_end() == []

    async def test_a_closed_client_can_be_opened_again(self, connect: Connect) -> None:
        client = connect()
        if not opens(client):
            pytest.skip("it has nothing to open")
        async with opened(client):
            old = await self.listen(client, "room:lab")
        with pytest.raises(Unavailable):
            await done(client.subscribe("room:lab", old))

        async with opened(client):
            ear = await self.listen(client, "room:lab")
            await done(client.publish("room:lab", END))
            assert await ear.until_end() == []

        assert old.heard == []
