"""What waits at a gate, and what may pass."""

import pytest

from eyewall.application.ports.message import EncodedMessage
from eyewall.application.rooms import stream
from eyewall.application.rooms.stream import BufferedMessage, RoomSequencer
from eyewall.domain.history import Position


def at(offset, epoch="e"):
    return Position(epoch, offset)


def arrival(on_release=None):
    return BufferedMessage(EncodedMessage(b"{}"), on_release=on_release)


@pytest.fixture
def gate():
    return RoomSequencer("lab", None, at(2))


def test_only_the_next_one_may_pass(gate):
    gate.hold(at(4), arrival())
    assert gate.next() is None

    third = arrival()
    gate.hold(at(3), third)

    assert gate.next() == (at(3), third)
    gate.position = at(3)
    assert gate.next()[0] == at(4)
    assert gate.waiting == {}


def test_nothing_passes_before_the_position_is_known():
    gate = RoomSequencer("lab", None, None)
    gate.hold(at(1), arrival())

    assert gate.next() is None


def test_the_next_of_another_epoch_is_not_the_next(gate):
    gate.hold(at(3, "f"), arrival())

    assert gate.next() is None


def test_what_waits_is_bounded(gate, monkeypatch):
    monkeypatch.setattr(stream, "MAX_WAITING", 2)

    for offset in (5, 6, 7):
        gate.hold(at(offset), arrival())

    assert list(gate.waiting) == [at(5), at(6)]


def test_one_with_a_turn_waits_in_any_case(gate, monkeypatch):
    """The store has its message, but not who waits for the outcome."""
    monkeypatch.setattr(stream, "MAX_WAITING", 1)
    gate.hold(at(5), arrival())

    gate.hold(at(6), arrival(on_release=object()))

    assert list(gate.waiting) == [at(5), at(6)]


def test_the_same_message_from_the_bus_does_not_take_the_turn(gate):
    mine = arrival(on_release=object())
    gate.hold(at(5), mine)

    gate.hold(at(5), arrival())

    assert gate.waiting[at(5)] is mine


def test_what_no_reading_will_bring_is_given_up(gate):
    """Had already, of another epoch, or past what the store knows."""
    before = [at(1), at(2), at(3, "f"), at(5), at(9)]
    for place in before:
        gate.hold(place, arrival())
    gate.hold(at(10), arrival())

    given_up = gate.take_stale(before, at(7))

    assert [place for place, _ in given_up] == [at(1), at(2), at(3, "f"), at(9)]
    assert list(gate.waiting) == [at(5), at(10)], "asked for since, or to be read next"


def test_what_a_reading_has_brought_meanwhile_is_not_given_up(gate):
    gate.hold(at(3), arrival())
    due = list(gate.waiting)
    gate.position, _ = gate.next()

    assert gate.take_stale(due, at(7)) == []
