"""What waits for a peer that does not read, without a socket."""

from __future__ import annotations

import pytest

from eyewall.adapters.web.backlog import DRAIN, DRAINS, URGENT_BYTES, Backlog
from eyewall.domain.outbox import Offer, QueueConfig
from tests.adapters.web_support import raw


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


@pytest.fixture
def backlog():
    return Backlog(QueueConfig(size=4, max_bytes=10_000), BareWire(), now=1.0)


def test_a_half_written_frame_goes_first_then_control_frames_then_the_rest_then_goodbye(backlog):
    backlog.rest = memoryview(b"half ")
    backlog.goodbye = b"goodbye"
    backlog.offer(raw("frame "))
    backlog.add_urgent(b"pong ")
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
    assert (len(backlog), backlog.since) == (1, 2.0)
    assert backlog.drain(second.write, now=3.0)

    assert first.data + second.data == b"abcdef"
    assert len(backlog) == 0


def test_a_write_that_takes_nothing_is_no_progress(backlog):
    backlog.offer(raw("abc"))

    assert not backlog.drain(Pipe(0).write, now=2.0)
    assert backlog.since == 1.0


def test_a_socket_that_is_broken_says_so(backlog):
    def broken(_data):
        raise BrokenPipeError

    backlog.offer(raw("abc"))
    with pytest.raises(BrokenPipeError):
        backlog.drain(broken, now=2.0)


def test_one_turn_has_its_measure():
    backlog = Backlog(QueueConfig(), BareWire(), now=1.0)
    for _ in range(DRAINS + 5):
        backlog.offer(raw(b"x" * DRAIN))
    pipe = Pipe(1 << 30)

    assert not backlog.drain(pipe.write, now=2.0)
    assert len(pipe.data) == DRAINS * DRAIN
    assert backlog.drain(pipe.write, now=2.0)


def test_what_does_not_fit_is_handed_back(backlog):
    frames = [raw(str(n)) for n in range(5)]
    outcomes = [backlog.offer(frame) for frame in frames]

    assert outcomes[:4] == [(Offer.QUEUED, ())] * 4
    assert outcomes[4] == (Offer.DROPPED_NEWEST, (frames[4],))


def test_it_is_crowded_from_half_of_either_bound(backlog):
    for _ in range(2):
        backlog.offer(raw("x"))
    assert not backlog.crowded
    backlog.offer(raw("x"))
    assert backlog.crowded

    large = Backlog(QueueConfig(size=100, max_bytes=1000), BareWire(), now=1.0)
    large.offer(raw("x" * 501))
    assert large.crowded


def test_urgent_frames_have_a_bound(backlog):
    for _ in range(1000):
        backlog.add_urgent(b"x" * 100)
    pipe = Pipe(1 << 20)
    backlog.drain(pipe.write, now=2.0)

    assert URGENT_BYTES <= len(pipe.data) < URGENT_BYTES + 100
