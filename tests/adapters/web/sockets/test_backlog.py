"""What waits for a peer that does not read, without a socket."""

from __future__ import annotations

import pytest

from eyewall.adapters.web.sockets.backlog import (
    DRAIN_BYTES,
    DRAINS_PER_TURN,
    MAX_CONTROL_BYTES,
    Backlog,
)
from eyewall.domain.outbox import Offer, QueueConfig
from eyewall.domain.pool import Pool
from tests.adapters.web.support import raw


class BareWire:
    name = "bare"

    def build(self, frame):
        return frame.payload


class Pipe:
    """Takes ``room`` bytes, then no more."""

    def __init__(self, room):
        self.room = room
        self.data = b""

    def write(self, data):
        if not self.room:
            raise BlockingIOError
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.data += taken
        return len(taken)


def make(pool=None, **config):
    return Backlog(QueueConfig(**config), pool or Pool(1 << 30), BareWire(), now=1.0)


@pytest.fixture
def backlog():
    return make(size=4, max_bytes=10_000)


def test_a_half_written_frame_goes_first_then_control_frames_then_the_rest_then_goodbye(backlog):
    backlog.partial = memoryview(b"half ")
    backlog.close_frame = b"goodbye"
    backlog.offer(raw("frame "))
    backlog.add_control(b"pong ")
    pipe = Pipe(1000)

    assert backlog.drain(pipe.write, now=2.0)
    assert pipe.data == b"half pong frame goodbye"
    assert backlog.drain(pipe.write, now=3.0)
    assert pipe.data.endswith(b"goodbye")


def test_it_goes_on_where_the_socket_stopped(backlog):
    backlog.offer(raw("abc"))
    backlog.offer(raw("def"))
    first, second = Pipe(4), Pipe(100)

    assert not backlog.drain(first.write, now=2.0)
    assert (len(backlog), backlog.last_progress) == (1, 2.0)
    assert backlog.drain(second.write, now=3.0)

    assert first.data + second.data == b"abcdef"
    assert len(backlog) == 0


def test_a_write_that_takes_nothing_is_no_progress(backlog):
    backlog.offer(raw("abc"))

    assert not backlog.drain(Pipe(0).write, now=2.0)
    assert backlog.last_progress == 1.0


def test_a_socket_that_is_broken_says_so(backlog):
    def broken(_data):
        raise BrokenPipeError

    backlog.offer(raw("abc"))
    with pytest.raises(BrokenPipeError):
        backlog.drain(broken, now=2.0)


def test_one_turn_has_its_measure():
    backlog = make()
    for _ in range(DRAINS_PER_TURN + 5):
        backlog.offer(raw(b"x" * DRAIN_BYTES))
    pipe = Pipe(1 << 30)

    assert not backlog.drain(pipe.write, now=2.0)
    assert len(pipe.data) == DRAINS_PER_TURN * DRAIN_BYTES
    assert backlog.drain(pipe.write, now=2.0)


def test_what_does_not_fit_is_handed_back(backlog):
    frames = [raw(str(n)) for n in range(5)]
    outcomes = [backlog.offer(frame) for frame in frames]

    assert outcomes[:4] == [(Offer.QUEUED, ())] * 4
    assert outcomes[4] == (Offer.DROPPED_NEWEST, (frames[4],))


def test_it_is_crowded_from_half_of_either_bound(backlog):
    for _ in range(2):
        backlog.offer(raw("x"))
    assert not backlog.is_half_full
    backlog.offer(raw("x"))
    assert backlog.is_half_full

    large = make(size=100, max_bytes=1000)
    large.offer(raw("x" * 501))
    assert large.is_half_full


def test_urgent_frames_have_a_bound(backlog):
    for _ in range(1000):
        backlog.add_control(b"x" * 100)
    pipe = Pipe(1 << 20)
    backlog.drain(pipe.write, now=2.0)

    assert MAX_CONTROL_BYTES <= len(pipe.data) < MAX_CONTROL_BYTES + 100


def test_what_it_holds_counts_until_it_is_written_or_discarded():
    """A half-written message keeps the bytes that it is cut from, to its end."""
    pool = Pool(1 << 20)
    backlog = make(pool)
    whole = b"x" * 1000
    backlog.partial = memoryview(whole)[600:]
    backlog.offer(raw("y" * 100))
    assert (pool.bytes, backlog.held_bytes) == (1100, 1100)

    backlog.advance(399, now=2.0)
    assert pool.bytes == 1100
    backlog.advance(1, now=2.0)
    assert pool.bytes == 100
    backlog.prepare_next(0.0)
    assert (pool.bytes, backlog.held_bytes) == (100, 100)  # now it is what goes out next
    backlog.discard()
    assert (pool.bytes, backlog.held_bytes, len(backlog)) == (0, 0, 0)


def test_the_rest_of_one_message_to_many_is_held_once():
    pool = Pool(1 << 20)
    whole = b"x" * 1000
    backlogs = [make(pool) for _ in range(3)]
    for backlog in backlogs:
        backlog.partial = memoryview(whole)[500:]
    assert pool.bytes == 1000

    for backlog in backlogs:
        assert backlog.drain(Pipe(1000).write, now=2.0)
    assert pool.bytes == 0


def test_giving_way_is_the_queues():
    pool = Pool(1 << 20)
    backlog = make(pool)
    backlog.partial = memoryview(b"half")
    frames = [raw("a" * 10), raw("b" * 10)]
    for frame in frames:
        backlog.offer(frame)

    assert backlog.shed() == (Offer.DROPPED_NEWEST, [frames[1]])
    assert pool.bytes == 14
