"""What links share: the spare parser, the stamp of time, who is there."""

from __future__ import annotations

import asyncio
import contextlib

from eyewall.adapters.web.protocol.deflate import CompressionConfig
from eyewall.adapters.web.sockets.loop import MAX_QUEUED_BYTES
from eyewall.adapters.web.sockets.poller import WRITE, EpollSource
from eyewall.domain.connection import DisconnectReason as Reason
from eyewall.domain.outbox import Offer, QueueConfig
from tests.adapters.web.support import masked, raw, served, turns, until


async def test_links_read_with_one_parser_while_they_hold_nothing():
    async with served() as here:
        spare = here.io.parser
        one, first = await here.pair()
        two, second = await here.pair()
        one.send("1")
        two.send("2")
        assert (await one.text(), await two.text()) == ("1", "2")
        assert here.io.parser is spare

        one.write(masked("half")[:4])
        await until(lambda: first._parser)
        assert first._parser is spare
        assert here.io.parser is not spare
        two.send("whole")
        assert await two.text() == "whole"
        one.write(masked("half")[4:])
        assert await one.text() == "half"
        assert first._parser is None
        assert second._parser is None


async def test_links_that_inflate_share_a_parser_of_their_own():
    offer = {"Sec_WebSocket_Extensions": "permessage-deflate"}
    async with served(compression=CompressionConfig()) as here:
        spare, plain = here.io.inflating_parser, here.io.parser
        client, link = await here.pair(**offer)
        client.write(masked("half")[:4])
        await until(lambda: link._parser)
        assert link._parser is spare
        assert here.io.inflating_parser is not spare
        assert here.io.parser is plain


async def test_a_violation_does_not_spoil_the_parser_of_the_others():
    async with served() as here:
        bad = await here.connect()
        good = await here.connect()
        bad.write(masked("x", 0xFF))
        good.send("fine")
        assert await good.text() == "fine"
        assert (await bad.closed())[0] == 1002
        good.send("still fine")
        assert await good.text() == "still fine"


async def test_it_knows_when_the_last_link_is_gone():
    async with served() as here:
        await asyncio.wait_for(here.io.wait_closed(), 1)
        client, link = await here.pair()
        waiting = asyncio.create_task(here.io.wait_closed())
        await turns()
        assert not waiting.done()
        client.leave()
        await asyncio.wait_for(waiting, 5)
        assert link not in here.io.links


async def test_reading_waits_while_too_much_is_to_be_written(monkeypatch):
    async with served() as here:
        client = await here.connect()
        monkeypatch.setattr("eyewall.adapters.web.sockets.batch.STOP_READING_FRAMES", -1)
        client.send("hello")
        await turns(50)
        assert here.transport_events.messages == []
        monkeypatch.undo()

        assert await client.text() == "hello"


# --- what all queues hold


class Deaf(EpollSource):
    """Never tells that a socket takes bytes again: who is stalled stays so."""

    def watch(self, fd, interest):
        super().watch(fd, interest & ~WRITE)


@contextlib.asynccontextmanager
async def bounded(policy="drop_newest"):
    queue = QueueConfig(size=1000, max_bytes=1 << 20, drop_policy=policy)
    async with served(queue=queue, max_queued=100_000, source=Deaf()) as here:
        yield here


async def stalled(here, count, size):
    """Return a client and its link, with so many messages of so many bytes in the queue."""
    client, link = await here.pair()
    link.on_partial_write([raw("." * size) for _ in range(count)], b"", 0)
    return client, link


async def test_when_all_queues_hold_too_much_those_that_hold_the_most_give_way():
    async with bounded() as here:
        _, small = await stalled(here, 10, 1000)
        _, large = await stalled(here, 80, 1000)
        assert here.io.pool.bytes == 90_000
        small.send(raw("." * 10_001))
        await turns()

        assert small.held_bytes == 20_001
        assert large.held_bytes == 40_000
        assert here.io.pool.bytes == 60_001
        assert {link for link, _, _ in here.transport_events.drops} == {large}
        assert len(here.transport_events.drops) == 40
        assert {offer for _, _, offer in here.transport_events.drops} == {Offer.DROPPED_NEWEST}
        assert [event for level, event, _ in here.log.entries] == ["queues_full"]


async def test_a_sender_who_does_not_pause_does_not_get_beyond_the_bound():
    async with bounded() as here:
        links = [(await stalled(here, 1, 1000))[1] for _ in range(5)]
        for _ in range(100):
            for link in links:
                link.send(raw("." * 1000))
                assert here.io.pool.bytes <= 100_000

        assert all(link.held_bytes > 1000 for link in links)


async def test_what_is_written_to_many_is_bounded_in_the_next_turn():
    async with bounded() as here:
        for _ in range(3):
            await stalled(here, 50, 1000)
        await turns()

        assert here.io.pool.bytes <= 75_000


async def test_a_broadcast_that_many_do_not_read_is_held_once():
    async with bounded() as here:
        room = here.sockets.outbound.new_group()
        for _ in range(5):
            room.add((await stalled(here, 1, 10))[1])
        for _ in range(50):
            room.broadcast(raw("." * 1000))
        here.sockets.outbound.flush_now()
        await turns()

        assert here.io.pool.bytes == 50_050
        assert here.transport_events.drops == []


async def test_under_the_disconnecting_policy_giving_way_is_the_end():
    async with bounded("drop_and_disconnect") as here:
        client, large = await stalled(here, 80, 1000)
        _, small = await stalled(here, 10, 1000)
        small.send(raw("." * 10_001))
        await turns()

        assert small.held_bytes == 20_001
        assert len(here.transport_events.drops) == 80
        assert here.transport_events.reasons() == [Reason.SLOW_CONSUMER]
        assert here.transport_events.reasons(large) == [Reason.SLOW_CONSUMER]
        large.on_writable()
        assert await client.closed() == (4413, "slow_consumer")


async def test_half_written_messages_that_hold_too_much_end_with_their_connections():
    """They can't be dropped: the peer has their beginning."""
    async with bounded() as here:
        links = []
        for size in (30_000, 60_000):
            _, link = await here.pair()
            frame = raw("." * size)
            link.on_partial_write([frame], frame.for_wire(link.wire), 1)
            links.append(link)
        small, large = links
        small.send(raw("." * 20_000))
        await turns()

        assert here.transport_events.reasons() == [Reason.SLOW_CONSUMER]
        assert here.transport_events.reasons(large) == [Reason.SLOW_CONSUMER]
        assert large not in here.io.links
        assert here.io.pool.bytes == small.held_bytes


async def test_the_largest_of_many_half_written_messages_ends_in_the_next_turn():
    async with bounded() as here:
        links = []
        for size in (30_000, 31_000, 41_000):
            _, link = await here.pair()
            links.append(link)
            frame = raw("." * size)
            link.on_partial_write([frame], frame.for_wire(link.wire), 1)
        assert here.io.pool.full
        await turns()

        assert here.transport_events.reasons() == [Reason.SLOW_CONSUMER]
        assert here.io.links == set(links[:2])


async def test_nothing_is_held_for_who_is_gone():
    async with bounded() as here:
        _, link = await stalled(here, 10, 1000)
        link.abort()

        assert here.io.pool.bytes == 0
        assert here.io.pool._holders == {}


async def test_the_bound_has_room_for_two_of_the_largest_queues():
    async with served(queue=QueueConfig(max_bytes=1 << 30)) as here:
        assert here.io.pool.max_bytes == 1 << 31
    async with served() as here:
        assert here.io.pool.max_bytes == MAX_QUEUED_BYTES == 256 * 2**20
