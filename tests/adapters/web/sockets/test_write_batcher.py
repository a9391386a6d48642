"""Collecting and writing, with outlets that are no sockets; then with sockets."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from eyewall.adapters.web.sockets import batch as batch_module
from eyewall.adapters.web.sockets.batch import (
    HIGH_WATER_BYTES,
    HIGH_WATER_FRAMES,
    MAX_JOINED_BYTES,
    WRITES_PER_SLICE,
    WriteBatcher,
)
from eyewall.application.ports.message import EncodedMessage
from tests.adapters.web.support import raw, served, turns


class BareWire:
    name = "bare"

    def build(self, frame: EncodedMessage) -> bytes:
        if frame.payload == b"unbuildable":
            raise ValueError("no form")
        return frame.payload


WIRE = BareWire()


class Sink:
    """A target whose socket takes what the test says."""

    def __init__(self, *, fails: Exception | None = None, takes: int | None = None) -> None:
        self.wire = WIRE
        self.pending = None
        self.writes: list[bytes] = []
        self.fails = fails
        self.takes = takes
        self.stalls: list[tuple[list[bytes], bytes, int]] = []
        self.failed: list[Exception] = []
        self.parted = False

    def write(self, data: bytes) -> int:
        if self.fails is not None:
            raise self.fails
        self.writes.append(data)
        return len(data) if self.takes is None else self.takes

    def on_partial_write(self, frames, data, sent):
        self.stalls.append(([frame.payload for frame in frames], data, sent))

    def on_write_error(self, frames, error):
        self.failed.append(error)

    def queue_close_frame(self, late=()):
        self.parted = True


def started() -> WriteBatcher:
    batcher = WriteBatcher()
    batcher.start()
    return batcher


def audience(batcher: WriteBatcher, *links):
    members = batcher.new_group()
    for link in links:
        members.add(link)
    return members


async def test_what_is_sent_in_one_turn_leaves_in_one_write():
    batcher, one, two = started(), Sink(), Sink()
    room = audience(batcher, one, two)

    room.broadcast(raw("a"))
    batcher.collect(one, raw("own"), 3)
    room.broadcast(raw("b"))
    assert one.writes == []
    await turns()

    assert (one.writes, two.writes) == ([b"aownb"], [b"ab"])


async def test_within_a_batch_nothing_is_written_before_its_end():
    batcher, link = started(), Sink()
    room = audience(batcher, link)

    batcher.expect_flush()
    room.broadcast(raw("a"))
    await turns()
    assert link.writes == []
    batcher.flush()

    assert link.writes == [b"a"]


async def test_who_joins_after_a_message_does_not_get_it_and_who_leaves_still_does():
    batcher, stays, leaves, joins = started(), Sink(), Sink(), Sink()
    room = audience(batcher, stays, leaves)

    room.broadcast(raw("a"))
    room.discard(leaves)
    room.add(joins)
    room.broadcast(raw("b"))
    batcher.flush_now()

    assert (stays.writes, leaves.writes, joins.writes) == ([b"ab"], [b"a"], [b"b"])


async def test_broadcast_counts_whom_it_reaches_and_skips_whom_it_should():
    batcher, one, two, stranger = started(), Sink(), Sink(), Sink()
    room = audience(batcher, one, two)

    assert audience(batcher).broadcast(raw("x")) == 0
    assert room.broadcast(raw("a")) == 2
    assert room.broadcast(raw("b"), skip=[one, stranger]) == 1
    batcher.flush_now()

    assert (one.writes, two.writes, stranger.writes) == ([b"a"], [b"ab"], [])


async def test_one_link_that_fails_or_stalls_does_not_stop_the_others():
    batcher = started()
    broken, blocked = Sink(fails=ConnectionResetError()), Sink(fails=BlockingIOError())
    short, odd, fine = Sink(takes=1), Sink(fails=RuntimeError("odd")), Sink()
    audience(batcher, broken, blocked, short, odd, fine).broadcast(raw("abc"))

    batcher.flush_now()

    assert fine.writes == [b"abc"]
    assert [type(error) for error in broken.failed + odd.failed] == [
        ConnectionResetError,
        RuntimeError,
    ]
    assert blocked.stalls == [([b"abc"], b"abc", 0)]
    assert short.stalls == [([b"abc"], b"abc", 1)]


async def test_a_message_that_has_no_form_is_the_senders_fault_and_nobody_elses():
    batcher, link = started(), Sink()
    room = audience(batcher, link)
    room.broadcast(raw("a"))

    with pytest.raises(ValueError, match="no form"):
        room.broadcast(raw("unbuildable"))
    room.broadcast(raw("b"))
    batcher.flush_now()

    assert link.writes == [b"ab"]


async def test_a_joined_write_has_a_bound_and_a_large_frame_goes_alone():
    batcher, link = started(), Sink()
    room = audience(batcher, link)
    for size in (MAX_JOINED_BYTES // 2, MAX_JOINED_BYTES // 2, 1, 3 * MAX_JOINED_BYTES, 1):
        room.broadcast(raw(b"x" * size))

    batcher.flush_now()

    assert [len(data) for data in link.writes] == [MAX_JOINED_BYTES, 1, 3 * MAX_JOINED_BYTES, 1]


async def test_a_large_fan_out_takes_several_turns_and_nothing_overtakes_it():
    """Between two slices others have their turn, but what they send waits its own."""
    batcher = started()
    links = [Sink() for _ in range(1000)]
    room = audience(batcher, *links)
    other = audience(batcher, *links[:10])
    room.broadcast(raw("1"))
    reached = []
    while not all(link.writes for link in links):
        await asyncio.sleep(0)
        reached.append(sum(bool(link.writes) for link in links))
        if len(reached) == 2:
            assert 0 < reached[-1] < 1000
            room.broadcast(raw("2"))
            batcher.collect(links[0], raw("3"), 1)
            other.broadcast(raw("4"))
            room.broadcast(raw("5"))
    assert max(b - a for a, b in pairwise(reached)) <= WRITES_PER_SLICE

    await turns(20)

    assert b"".join(links[0].writes) == b"12345"
    assert all(b"".join(link.writes) == b"1245" for link in links[1:10])
    assert all(b"".join(link.writes) == b"125" for link in links[10:])


async def test_what_must_be_written_now_takes_the_flush_in_flight_along():
    batcher = started()
    links = [Sink() for _ in range(3 * WRITES_PER_SLICE)]
    room = audience(batcher, *links)
    room.broadcast(raw("1"))
    await turns(2)
    assert not all(link.writes for link in links)
    room.broadcast(raw("2"))

    batcher.flush_now()

    assert all(b"".join(link.writes) == b"12" for link in links)
    await turns()
    assert all(b"".join(link.writes) == b"12" for link in links)


async def test_a_sender_waits_while_much_is_collected():
    for size, count in ((1, HIGH_WATER_FRAMES + 1), (HIGH_WATER_BYTES // 2 + 1, 2)):
        batcher, link = started(), Sink()
        room = audience(batcher, link)
        await asyncio.wait_for(batcher.ready(), 1)
        batcher.expect_flush()
        for _ in range(count):
            room.broadcast(raw(b"x" * size))
        waiting = asyncio.create_task(batcher.ready())
        await turns()
        assert not waiting.done()

        batcher.flush()
        await asyncio.wait_for(waiting, 1)


async def test_a_sender_in_a_loop_never_makes_much_be_collected():
    batcher, link = started(), Sink()
    room = audience(batcher, link)
    most = 0
    for _ in range(10 * HIGH_WATER_FRAMES):
        await batcher.ready()
        room.broadcast(raw("x"))
        most = max(most, batcher._frames)

    assert most <= HIGH_WATER_FRAMES + 1


async def test_nothing_is_lost_when_it_stops_and_it_can_start_again():
    batcher, link = started(), Sink()
    room = audience(batcher, link)
    room.broadcast(raw("a"))
    batcher.stop()
    assert link.writes == [b"a"]

    batcher.start()
    room.broadcast(raw("b"))
    await turns()

    assert link.writes == [b"a", b"b"]


async def test_an_audience_knows_its_members():
    batcher, one, two = started(), Sink(), Sink()
    room = audience(batcher, one, two)
    room.discard(two)
    room.discard(two)

    assert (len(room), list(room)) == (1, [one])


async def test_order_holds_across_rooms_direct_messages_and_slices(monkeypatch):
    """Many clients in overlapping rooms see the very order in which was sent to them."""
    monkeypatch.setattr(batch_module, "WRITES_PER_SLICE", 7)
    async with served() as here:
        clients = [await here.connect() for _ in range(30)]
        links = here.transport_events.links
        outbound = here.sockets.outbound
        rooms = [outbound.new_group() for _ in range(4)]
        members = [set(range(30)), set(range(0, 30, 2)), set(range(0, 30, 3)), {5}]
        for room, who in zip(rooms, members, strict=True):
            for i in who:
                room.add(links[i])
        expected: dict[int, list[str]] = {i: [] for i in range(30)}
        for n in range(200):
            i = n * 7 % 4
            rooms[i].broadcast(raw(str(n)), skip=[links[0]] if n % 5 == 0 else ())
            for j in members[i] - ({0} if n % 5 == 0 else set()):
                expected[j].append(str(n))
            if n % 3 == 0:
                j = n * 11 % 30
                links[j].send(raw(f"own {n}"))
                expected[j].append(f"own {n}")
            if n % 20 == 0:
                await asyncio.sleep(0)

        for i, client in enumerate(clients):
            assert await client.texts(len(expected[i])) == expected[i]
