"""The stand-ins for sockets: what a peer gets that reads, and one that does not."""

from __future__ import annotations

import pytest

from eyewall.application.ports.message import EncodedMessage
from eyewall.application.ports.transport import BroadcastGroup, Link, MessageWriter
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.outbox import DropPolicy, Offer, QueueConfig
from eyewall.server.assemble import Transport
from eyewall.testing import FakeClock
from eyewall.testing.links import FakeAudience, FakeLink, FakeOutbound, NoTransport
from eyewall.testing.rest import finished, settle


class RecordedEvents:
    """Remembers what it is told."""

    def __init__(self):
        self.told = []
        self.drains = 0

    def received(self, link, payload, *, binary):
        self.told.append(("received", payload, binary))

    def dropped(self, link, frame, offer):
        self.told.append(("dropped", frame.payload, offer))

    def drained(self, link):
        self.drains += 1

    def lost(self, link, reason, error=None):
        self.told.append(("lost", reason))


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def transport_events():
    return RecordedEvents()


@pytest.fixture
def make(clock, transport_events):
    def make(policy=DropPolicy.DROP_NEWEST, size=2, **given):
        queue = QueueConfig(size=size, drop_policy=policy)
        return FakeLink(clock, transport_events, queue=queue, **given)

    return make


def frames(*names):
    return [EncodedMessage(name.encode()) for name in names]


def got(link):
    return [frame.payload.decode() for frame in link.frames]


def test_they_are_what_the_application_takes_them_for(make):
    link: Link = make()
    outbound: MessageWriter = FakeOutbound()
    audience: BroadcastGroup = outbound.new_group()
    transport: Transport = NoTransport()

    assert transport.routes("/ws") == []
    audience.add(link)
    assert list(audience) == [link]


def test_who_reads_gets_everything_at_once(make):
    link = make()

    assert [link.send(frame) for frame in frames("a", "b", "c")] == [Offer.QUEUED] * 3
    assert got(link) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("policy", "kept", "told"),
    [
        (DropPolicy.DROP_NEWEST, ["a", "b"], []),
        (DropPolicy.DROP_OLDEST, ["b", "c"], [("dropped", b"a", Offer.DROPPED_OLDEST)]),
        (DropPolicy.DROP_AND_DISCONNECT, ["a", "b"], [("lost", DisconnectReason.SLOW_CONSUMER)]),
    ],
)
async def test_who_is_stalled_gets_what_the_policy_kept(make, transport_events, policy, kept, told):
    link = make(policy)
    link.stalled = True
    offers = [link.send(frame) for frame in frames("a", "b", "c")]
    await settle()

    assert offers[:2] == [Offer.QUEUED] * 2
    assert (offers[2] is Offer.DROPPED_OLDEST) == (policy is DropPolicy.DROP_OLDEST)
    assert link.is_half_full or link.closed
    link.read()
    await settle()
    assert not link.is_half_full
    assert got(link) == kept
    assert transport_events.told == told
    assert (link.closed is not None) == (policy is DropPolicy.DROP_AND_DISCONNECT)
    assert transport_events.drains == (link.closed is None)


async def test_who_takes_nothing_for_too_long_is_closed(make, clock, transport_events):
    link = make(write_wait=10.0)
    link.stalled = True
    for frame in frames("a"):
        link.send(frame)
    await clock.advance(9.9)
    link.read()
    link.stalled = True
    await clock.advance(9.9)
    assert link.closed is None

    for frame in frames("b"):
        link.send(frame)
    await clock.advance(10)

    assert link.closed is DisconnectReason.SLOW_CONSUMER
    assert transport_events.told == [("lost", DisconnectReason.SLOW_CONSUMER)]


async def test_what_is_too_old_when_it_is_read_is_told(make, clock, transport_events):
    link = make()
    link.stalled = True
    old, new = frames("old", "new")
    old.expires = clock.now() + 5
    for frame in (old, new):
        link.send(frame)
    await clock.advance(5)
    link.read()
    await settle()

    assert got(link) == ["new"]
    assert transport_events.told == [("dropped", b"old", Offer.EXPIRED)]


async def test_what_a_vanished_peer_did_not_read_is_told_after_its_end(make, transport_events):
    link = make()
    link.stalled = True
    for frame in frames("a"):
        link.send(frame)
    link.vanish(DisconnectReason.CONNECTION_LOST)
    link.vanish(DisconnectReason.CONNECTION_LOST)
    await settle()

    assert got(link) == []
    assert transport_events.told == [
        ("lost", DisconnectReason.CONNECTION_LOST),
        ("dropped", b"a", Offer.CLOSED),
    ]
    assert link.send(frames("b")[0]) is Offer.CLOSED


async def test_a_message_over_the_limit_closes(make, transport_events):
    link = make(max_message_size=3)
    link.say(b"abc")
    link.say(b"abcd", binary=True)
    link.say(b"ab")
    await settle()

    assert transport_events.told == [
        ("received", b"abc", False),
        ("lost", DisconnectReason.MESSAGE_TOO_BIG),
    ]
    assert link.closed is DisconnectReason.MESSAGE_TOO_BIG


async def test_an_audience_skips_and_tells_drops_afterwards(make, transport_events):
    audience, reads, full, skipped = FakeAudience(), make(), make(), make()
    full.full = True
    for link in (reads, full, skipped):
        audience.add(link)

    assert audience.broadcast(frames("a")[0], skip=[skipped]) == 2
    assert transport_events.told == []
    await settle()

    assert (got(reads), got(skipped)) == (["a"], [])
    assert transport_events.told == [("dropped", b"a", Offer.DROPPED_NEWEST)]
    audience.discard(reads)
    assert len(audience) == 2


async def test_a_crowded_outbound_makes_publishers_wait():
    outbound = FakeOutbound()
    await finished(outbound.ready())
    outbound.crowded = True

    with pytest.raises(AssertionError):
        await finished(outbound.ready())
