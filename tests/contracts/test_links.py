"""The contract of ``Link`` and its ``TransportEvents``, over a real socket and over the fake one.

Most tests of the application use the fake link: what it does differently from the real one, they
do not test.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import pytest

from eyewall.adapters.web.sockets.poller import WRITE
from eyewall.application.ports.message import EncodedMessage
from eyewall.application.ports.transport import BroadcastGroup, Link
from eyewall.domain.connection import DisconnectReason, HeartbeatConfig, close_frame
from eyewall.domain.envelope import Priority
from eyewall.domain.outbox import DropPolicy, Offer, QueueConfig
from eyewall.testing import FakeClock
from eyewall.testing.links import FakeLink, FakeOutbound
from eyewall.testing.rest import settle
from tests.adapters.web import support
from tests.adapters.web.support import CLOSE, TEXT, masked, raw, served, turns, until

MAX_MESSAGE_SIZE = 1000
WRITE_WAIT = 10.0
END = "<end>"


class Peer(Protocol):
    """A link, and what is at its other end."""

    link: Link
    group: BroadcastGroup
    """The link is its only member."""
    told: list[tuple[Any, ...]]
    """The calls of ``TransportEvents``, in order."""
    code: int | None
    """The code of the close frame, once ``received`` has met it."""

    async def settle(self) -> None:
        """Return when everything that can happen at once has happened."""

    async def advance(self, seconds: float) -> None:
        """Let time pass."""

    def now(self) -> float:
        """The time by which messages expire."""

    def stop_reading(self) -> None:
        """Take no more bytes from the server."""

    async def read(self) -> None:
        """Take bytes again; return when the link's queue is empty."""

    async def received(self) -> list[str]:
        """Return the messages that have arrived since the last call, up to the close frame."""

    async def say(self, text: str) -> None:
        """Send a message."""

    async def vanish(self) -> None:
        """Lose the connection without a close frame."""


class Events:
    """Implements those methods of ``TransportEvents`` that a link calls."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def received(self, link: Any, payload: bytes, *, binary: bool) -> None:
        self.told.append(("received", payload.decode()))

    def dropped(self, link: Any, frame: EncodedMessage, offer: Offer) -> None:
        self.told.append(("dropped", frame.payload.decode(), offer))

    def drained(self, link: Any) -> None:
        self.told.append(("drained",))

    def lost(self, link: Any, reason: DisconnectReason, error: BaseException | None = None) -> None:
        self.told.append(("lost", reason))


# --- the fake link


class FakePeer:
    def __init__(self, queue: QueueConfig) -> None:
        events = Events()
        self._clock = FakeClock()
        self.link: FakeLink = FakeLink(
            self._clock,
            events,
            queue=queue,
            write_wait=WRITE_WAIT,
            max_message_size=MAX_MESSAGE_SIZE,
        )
        self.group: Any = FakeOutbound().new_group()
        self.group.add(self.link)
        self.told = events.told
        self.code: int | None = None

    async def settle(self) -> None:
        await settle()

    async def advance(self, seconds: float) -> None:
        await self._clock.advance(seconds)

    def now(self) -> float:
        return self._clock.now()

    def stop_reading(self) -> None:
        self.link.stalled = True

    async def read(self) -> None:
        self.link.read()
        await settle()

    async def received(self) -> list[str]:
        await settle()
        if self.link.closed is not None and not self.link.stalled:
            self.code = close_frame(self.link.closed)[0]
        new, self.link.frames = self.link.frames, []
        return [frame.payload.decode() for frame in new]

    async def say(self, text: str) -> None:
        self.link.say(text.encode())
        await settle()

    async def vanish(self) -> None:
        self.link.vanish(DisconnectReason.CONNECTION_LOST)
        await settle()


@contextlib.asynccontextmanager
async def fake(queue: QueueConfig) -> AsyncIterator[Peer]:
    yield FakePeer(queue)


# --- the link of a socket


class Gate:
    """The socket and the poller of a link. While it is shut, the socket takes no bytes and is not
    ready for any, as when the peer does not read."""

    def __init__(self, link: Any) -> None:
        self._link, self._socket, self._poller = link, link._socket, link.io.poller
        self.is_shut = False
        link._socket = self
        link.io.poller = self
        link.write = self.send

    def set(self, *, shut: bool) -> None:
        self.is_shut = shut
        self.watch(self._link._fd, self._link, self._link._interest)

    def send(self, data: Any) -> int:
        if self.is_shut:
            raise BlockingIOError
        return self._socket.send(data)  # type: ignore[no-any-return]

    def watch(self, fd: int, link: Any, interest: int) -> None:
        self._poller.watch(fd, link, interest & ~WRITE if self.is_shut else interest)

    def __getattr__(self, name: str) -> Any:
        owner = self._socket if hasattr(self._socket, name) else self._poller
        return getattr(owner, name)


class SocketPeer:
    def __init__(self, here: support.Served, client: support.Client, link: Any) -> None:
        self._here = here
        self._client = client
        self._gate = Gate(link)
        self.link: Any = link
        self.group: Any = here.sockets.outbound.new_group()
        self.group.add(link)
        events: Any = Events()
        for name in ("received", "dropped", "drained", "lost"):
            setattr(here.transport_events, name, getattr(events, name))
        self.told = events.told
        self.code: int | None = None

    async def settle(self) -> None:
        await turns(20)

    async def advance(self, seconds: float) -> None:
        self._here.clock.advance(seconds)
        await turns(20)

    def now(self) -> float:
        return self._here.clock.now()

    def stop_reading(self) -> None:
        self._gate.set(shut=True)

    async def read(self) -> None:
        self._gate.set(shut=False)
        await until(lambda: self.link.queued == 0)
        await turns()

    async def received(self) -> list[str]:
        texts: list[str] = []
        if self._gate.is_shut or self.code is not None:
            return texts
        await turns()
        self.link.send(raw(END, priority=Priority.LOW))
        while True:
            opcode, payload = await self._client.frame()
            if opcode == CLOSE:
                self.code = int.from_bytes(payload[:2], "big")
                self._client.write(masked(payload[:2], 0x88))
                self._client.leave()
                await until(lambda: self.link not in self._here.io.links)
                return texts
            if opcode == TEXT:
                if payload.decode() == END:
                    return texts
                texts.append(payload.decode())

    async def say(self, text: str) -> None:
        before = self._here.io.received_count
        self._client.send(text)
        await until(lambda: self._here.io.received_count > before or self.told)
        await turns()

    async def vanish(self) -> None:
        self._client.abort()
        await until(lambda: self.link not in self._here.io.links)
        await turns()


@contextlib.asynccontextmanager
async def socket(queue: QueueConfig) -> AsyncIterator[Peer]:
    async with served(
        queue=queue,
        clock=support.Clock(by_hand=True),
        heartbeat=HeartbeatConfig(write_wait=WRITE_WAIT),
        max_message_size=MAX_MESSAGE_SIZE,
    ) as here:
        yield SocketPeer(here, *await here.pair())


# --- the contract

Make = Callable[..., AbstractAsyncContextManager[Peer]]


@pytest.fixture(params=[fake, socket], ids=["fake", "socket"])
def make(request: pytest.FixtureRequest) -> Make:
    def make(policy: DropPolicy = DropPolicy.DROP_NEWEST, size: int = 3, **limits: Any) -> Any:
        return request.param(QueueConfig(size=size, drop_policy=policy, **limits))

    return make


async def stall(peer: Peer) -> None:
    """Have the peer stop reading, and the link notice it by a message that is queued: ``0``."""
    peer.stop_reading()
    peer.link.send(raw("0"))
    await peer.settle()


def send(peer: Peer, *texts: str, **fields: Any) -> list[Offer]:
    return [peer.link.send(raw(text, **fields)) for text in texts]


def broadcast(peer: Peer, *texts: str) -> None:
    for text in texts:
        assert peer.group.broadcast(raw(text)) == 1


class TestOrder:
    async def test_messages_leave_in_the_order_of_sending(self, make):
        async with make() as peer:
            assert send(peer, "a") == [Offer.QUEUED]
            broadcast(peer, "b")
            assert send(peer, "c", "d") == [Offer.QUEUED] * 2
            broadcast(peer, "e")

            assert await peer.received() == ["a", "b", "c", "d", "e"]
            assert (peer.link.queued, peer.link.is_half_full) == (0, False)
            assert peer.told == []

    async def test_also_those_of_a_stalled_link(self, make):
        async with make(size=10) as peer:
            await stall(peer)
            send(peer, "a")
            broadcast(peer, "b")
            await peer.settle()
            send(peer, "c")
            assert peer.link.queued == 4
            assert await peer.received() == []
            await peer.read()

            assert await peer.received() == ["0", "a", "b", "c"]
            assert peer.link.queued == 0

    async def test_a_higher_priority_overtakes_in_the_queue(self, make):
        async with make(size=10) as peer:
            await stall(peer)
            send(peer, "low", priority=Priority.LOW)
            send(peer, "normal")
            send(peer, "high", priority=Priority.HIGH)
            await peer.read()

            assert await peer.received() == ["high", "0", "normal", "low"]

    async def test_a_skipped_member_gets_nothing(self, make):
        async with make() as peer:
            assert peer.group.broadcast(raw("a"), skip=[peer.link]) == 0
            peer.group.discard(peer.link)
            assert peer.group.broadcast(raw("b")) == 0

            assert await peer.received() == []


class TestFullQueue:
    @pytest.mark.parametrize(
        ("policy", "offer", "kept", "told"),
        [
            (DropPolicy.DROP_NEWEST, Offer.DROPPED_NEWEST, ["0", "a", "b"], []),
            (
                DropPolicy.DROP_OLDEST,
                Offer.DROPPED_OLDEST,
                ["b", "c", "late"],
                [("dropped", "0", Offer.DROPPED_OLDEST)],
            ),
            (
                DropPolicy.DROP_AND_DISCONNECT,
                Offer.OVERFLOWED,
                ["0", "a", "b"],
                [("lost", DisconnectReason.SLOW_CONSUMER)],
            ),
        ],
    )
    async def test_a_sender_gets_the_outcome(self, make, policy, offer, kept, told):
        """The events tell of other messages only, and later."""
        ends = policy is DropPolicy.DROP_AND_DISCONNECT
        async with make(policy) as peer:
            await stall(peer)
            assert send(peer, "a", "b") == [Offer.QUEUED] * 2
            assert send(peer, "c") == [offer]
            assert peer.told == []
            await peer.settle()
            assert peer.told == told
            assert peer.link.queued == 3
            assert send(peer, "late") == [Offer.CLOSED if ends else offer]
            await peer.settle()
            del peer.told[:]
            await peer.read()

            assert await peer.received() == kept
            assert peer.told == ([] if ends else [("drained",)])
            assert (peer.code == 4413) == ends

    @pytest.mark.parametrize(
        ("policy", "told"),
        [
            (
                DropPolicy.DROP_NEWEST,
                [
                    ("dropped", "c", Offer.DROPPED_NEWEST),
                    ("dropped", "d", Offer.DROPPED_NEWEST),
                ],
            ),
            (
                DropPolicy.DROP_OLDEST,
                [
                    ("dropped", "0", Offer.DROPPED_OLDEST),
                    ("dropped", "a", Offer.DROPPED_OLDEST),
                ],
            ),
            (
                DropPolicy.DROP_AND_DISCONNECT,
                [
                    ("dropped", "c", Offer.OVERFLOWED),
                    ("lost", DisconnectReason.SLOW_CONSUMER),
                    ("dropped", "d", Offer.OVERFLOWED),
                ],
            ),
        ],
    )
    async def test_a_broadcast_tells_of_its_own_drops(self, make, policy, told):
        async with make(policy) as peer:
            await stall(peer)
            broadcast(peer, "a", "b", "c", "d")
            assert peer.told == []
            await peer.settle()

            assert peer.told == told

    async def test_one_message_above_the_limit_in_bytes_fits_an_empty_queue(self, make):
        async with make(size=10, max_bytes=100) as peer:
            peer.stop_reading()
            send(peer, "x" * 500)
            await peer.settle()
            assert peer.link.is_half_full
            assert send(peer, "a") == [Offer.DROPPED_NEWEST]
            await peer.read()

            assert await peer.received() == ["x" * 500]

    async def test_a_queue_is_half_full_in_messages_or_bytes(self, make):
        async with make(size=6, max_bytes=100) as peer:
            await stall(peer)
            send(peer, "a", "b")
            assert not peer.link.is_half_full
            send(peer, "c")
            assert peer.link.is_half_full
            await peer.read()
            await stall(peer)
            assert not peer.link.is_half_full
            send(peer, "x" * 60)
            assert peer.link.is_half_full

    async def test_a_link_that_was_never_stalled_is_never_drained(self, make):
        async with make() as peer:
            peer.stop_reading()
            await peer.settle()
            await peer.read()
            send(peer, "a")

            assert await peer.received() == ["a"]
            assert peer.told == []


class TestExpiry:
    async def test_an_expired_message_is_dropped_when_it_would_be_written(self, make):
        async with make() as peer:
            await stall(peer)
            old, new = raw("old"), raw("new")
            old.expires, new.expires = peer.now() + 5, peer.now() + 6
            peer.link.send(old)
            peer.link.send(new)
            await peer.advance(5)
            assert peer.told == []
            assert peer.link.queued == 3
            await peer.read()

            assert await peer.received() == ["0", "new"]
            assert peer.told == [("dropped", "old", Offer.EXPIRED), ("drained",)]

    async def test_also_by_a_link_that_is_closing(self, make):
        async with make() as peer:
            await stall(peer)
            old = raw("old")
            old.expires = peer.now() + 5
            peer.link.send(old)
            peer.link.close(DisconnectReason.NORMAL)
            await peer.advance(5)
            await peer.read()

            assert await peer.received() == ["0"]
            assert peer.told == [("dropped", "old", Offer.EXPIRED)]


class TestClose:
    async def test_the_close_frame_comes_last(self, make):
        async with make() as peer:
            send(peer, "a")
            broadcast(peer, "b")
            peer.link.close(DisconnectReason.REPLACED)
            assert send(peer, "c") == [Offer.CLOSED]
            broadcast(peer, "d")

            assert await peer.received() == ["a", "b"]
            assert peer.code == close_frame(DisconnectReason.REPLACED)[0]
            assert peer.told == [("dropped", "d", Offer.CLOSED)]

    async def test_a_group_message_behind_it_is_told_whatever_the_link_waits_for(self, make):
        """A link leaves its groups only when its end is told."""
        async with make() as peer:
            peer.link.close(DisconnectReason.NORMAL)
            broadcast(peer, "a")
            await peer.settle()
            broadcast(peer, "b")
            await peer.settle()
            assert peer.told == [("dropped", text, Offer.CLOSED) for text in "ab"]
            assert peer.group.broadcast(raw("c"), skip=[peer.link]) == 0
            await peer.settle()
            assert await peer.received() == []
            broadcast(peer, "d")
            await peer.settle()

            assert peer.told == [("dropped", text, Offer.CLOSED) for text in "abd"]

    async def test_behind_an_overflow_group_messages_are_told_as_dropped(self, make):
        async with make(DropPolicy.DROP_AND_DISCONNECT, size=1) as peer:
            await stall(peer)
            broadcast(peer, "a")
            await peer.settle()
            broadcast(peer, "b")
            await peer.settle()

            assert peer.told == [
                ("dropped", "a", Offer.OVERFLOWED),
                ("lost", DisconnectReason.SLOW_CONSUMER),
                ("dropped", "b", Offer.OVERFLOWED),
            ]

    async def test_a_stalled_link_writes_its_queue_first(self, make):
        async with make() as peer:
            await stall(peer)
            send(peer, "a")
            peer.link.close(DisconnectReason.NORMAL)
            await peer.settle()
            assert send(peer, "b") == [Offer.CLOSED]
            assert peer.link.queued == 2
            assert await peer.received() == []
            assert peer.code is None
            await peer.read()

            assert await peer.received() == ["0", "a"]
            assert peer.code == 1000
            assert peer.told == []

    async def test_the_first_reason_counts(self, make):
        async with make() as peer:
            peer.link.close(DisconnectReason.REPLACED)
            peer.link.close(DisconnectReason.NORMAL)

            assert await peer.received() == []
            assert peer.code == close_frame(DisconnectReason.REPLACED)[0]
            assert peer.told == []

    async def test_later_input_is_discarded(self, make):
        async with make() as peer:
            peer.link.close(DisconnectReason.NORMAL)
            await peer.settle()
            await peer.say("late")
            await peer.say("x" * (MAX_MESSAGE_SIZE + 1))
            await peer.received()

            assert peer.told == []

    async def test_a_peer_that_never_reads_its_queue_is_cut_off(self, make):
        async with make() as peer:
            await stall(peer)
            send(peer, "x" * 20_000)
            peer.link.close(DisconnectReason.NORMAL)
            await peer.advance(WRITE_WAIT + 1)

            assert peer.told[-1:] == [("dropped", "x" * 20_000, Offer.CLOSED)]
            assert peer.told[:-1] in ([("dropped", "0", Offer.CLOSED)], [])  # it may be begun
            assert peer.link.queued == 0


class TestEnd:
    async def test_a_lost_connection_is_told_once(self, make):
        async with make() as peer:
            await peer.vanish()
            peer.link.close(DisconnectReason.NORMAL)
            assert send(peer, "a") == [Offer.CLOSED]
            broadcast(peer, "b")
            await peer.settle()

            assert peer.told == [
                ("lost", DisconnectReason.CONNECTION_LOST),
                ("dropped", "b", Offer.CLOSED),
            ]

    async def test_a_message_that_the_lost_connection_was_left_out_of_is_not_told(self, make):
        async with make() as peer:
            await stall(peer)
            assert peer.group.broadcast(raw("a"), skip=[peer.link]) == 0
            await peer.vanish()

            assert ("dropped", "a", Offer.CLOSED) not in peer.told

    async def test_the_queue_of_a_lost_connection_is_told_after_it(self, make):
        async with make(size=10) as peer:
            await stall(peer)
            send(peer, "a")
            await peer.vanish()

            assert peer.told == [
                ("lost", DisconnectReason.CONNECTION_LOST),
                ("dropped", "0", Offer.CLOSED),
                ("dropped", "a", Offer.CLOSED),
            ]
            assert peer.link.queued == 0
            assert not peer.link.is_half_full

    async def test_the_end_of_a_closed_connection_is_not_told(self, make):
        """Only the messages that it took along."""
        async with make(size=10) as peer:
            await stall(peer)
            peer.link.close(DisconnectReason.NORMAL)
            await peer.settle()
            await peer.vanish()

            assert peer.told == [("dropped", "0", Offer.CLOSED)]
            assert peer.link.queued == 0

    async def test_a_peer_that_does_not_read_in_time_is_lost(self, make):
        async with make() as peer:
            await stall(peer)
            await peer.advance(WRITE_WAIT - 1)
            assert peer.told == []
            await peer.advance(2)
            assert peer.told == [("lost", DisconnectReason.SLOW_CONSUMER)]
            assert send(peer, "a") == [Offer.CLOSED]
            await peer.read()

            assert await peer.received() == ["0"]
            assert peer.code == 4413
            assert len(peer.told) == 1

    async def test_a_message_that_is_too_big_ends_the_connection(self, make):
        async with make() as peer:
            await peer.say("x" * MAX_MESSAGE_SIZE)
            assert peer.told.pop() == ("received", "x" * MAX_MESSAGE_SIZE)
            await peer.say("x" * (MAX_MESSAGE_SIZE + 1))
            assert send(peer, "a") == [Offer.CLOSED]

            assert await peer.received() == []
            assert peer.code == 1009
            assert peer.told == [("lost", DisconnectReason.MESSAGE_TOO_BIG)]

    async def test_a_lost_connection_has_no_more_input(self, make):
        async with make() as peer:
            await peer.vanish()
            with contextlib.suppress(ConnectionError):
                await peer.say("late")

            assert peer.told == [("lost", DisconnectReason.CONNECTION_LOST)]
