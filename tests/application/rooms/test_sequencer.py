"""The messages that a room's sequencer buffers, and those that it releases."""

import pytest

from eyewall.application.ports.message import EncodedMessage
from eyewall.application.rooms import stream
from eyewall.application.rooms.stream import BufferedMessage, RoomSequencer
from eyewall.domain.history import Position


def at(offset, epoch="e"):
    return Position(epoch, offset)


def buffered(on_release=None):
    return BufferedMessage(EncodedMessage(b"{}"), on_release=on_release)


@pytest.fixture
def sequencer():
    return RoomSequencer("lab", None, at(2))


def test_only_the_next_one_may_pass(sequencer):
    sequencer.hold(at(4), buffered())
    assert sequencer.next() is None

    third = buffered()
    sequencer.hold(at(3), third)

    assert sequencer.next() == (at(3), third)
    sequencer.position = at(3)
    assert sequencer.next()[0] == at(4)
    assert sequencer.waiting == {}


def test_nothing_passes_before_the_position_is_known():
    sequencer = RoomSequencer("lab", None, None)
    sequencer.hold(at(1), buffered())

    assert sequencer.next() is None


def test_the_next_of_another_epoch_is_not_the_next(sequencer):
    sequencer.hold(at(3, "f"), buffered())

    assert sequencer.next() is None


def test_what_waits_is_bounded(sequencer, monkeypatch):
    monkeypatch.setattr(stream, "MAX_WAITING", 2)

    for offset in (5, 6, 7):
        sequencer.hold(at(offset), buffered())

    assert list(sequencer.waiting) == [at(5), at(6)]


def test_one_whose_release_is_awaited_is_buffered_in_any_case(sequencer, monkeypatch):
    """The store has its message, but not who waits for the outcome."""
    monkeypatch.setattr(stream, "MAX_WAITING", 1)
    sequencer.hold(at(5), buffered())

    sequencer.hold(at(6), buffered(on_release=object()))

    assert list(sequencer.waiting) == [at(5), at(6)]


def test_the_same_message_from_the_bus_does_not_replace_it(sequencer):
    mine = buffered(on_release=object())
    sequencer.hold(at(5), mine)

    sequencer.hold(at(5), buffered())

    assert sequencer.waiting[at(5)] is mine


def test_what_no_reading_will_bring_is_given_up(sequencer):
    """Had already, of another epoch, or past what the store knows."""
    before = [at(1), at(2), at(3, "f"), at(5), at(9)]
    for position in before:
        sequencer.hold(position, buffered())
    sequencer.hold(at(10), buffered())

    given_up = sequencer.take_stale(before, at(7))

    assert [position for position, _ in given_up] == [at(1), at(2), at(3, "f"), at(9)]
    assert list(sequencer.waiting) == [at(5), at(10)], "asked for since, or to be read next"


def test_what_a_reading_has_brought_meanwhile_is_not_given_up(sequencer):
    sequencer.hold(at(3), buffered())
    due = list(sequencer.waiting)
    sequencer.position, _ = sequencer.next()

    assert sequencer.take_stale(due, at(7)) == []
