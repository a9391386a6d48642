"""What a room keeps: by named examples, and against a model that keeps everything."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from eyewall.domain.envelope import StreamPosition
from eyewall.domain.history import (
    MAX_OFFSET,
    Entry,
    HistoryPage,
    Log,
    Position,
    Retention,
    position_before,
    position_of,
    since_from,
    wire_since,
)
from eyewall.domain.room import RoomOptions

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIVE = Retention(5)


def entry(number):
    return Entry(b"%d" % number)


def filled(count, keeps=FIVE):
    log = Log("e")
    for n in range(1, count + 1):
        log.append(entry(n), keeps, NOW)
    return log


def payloads(page):
    return [int(e.payload) for e in page.entries]


# --- positions


def test_a_position_knows_what_is_next_to_it():
    here = Position("e", 2)

    assert here.before == Position("e", 1)
    assert Position("e", 0).before == Position("e", 0)
    assert Position("e", 3).follows(here)
    assert not Position("e", 4).follows(here)
    assert not Position("f", 3).follows(here)


def test_only_a_position_of_the_same_epoch_can_be_past_another():
    assert Position("e", 4).is_past(Position("e", 2))
    assert not Position("e", 2).is_past(Position("e", 2))
    assert not Position("f", 4).is_past(Position("e", 2))


@pytest.mark.parametrize(
    "value",
    [
        {"epoch": "e", "offset": 3},
        ("e", 3),
        ["e", 3],
        Position("e", 3),
        StreamPosition("lab", "e", 3),
        HistoryPage([], "e", 3),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_position_is_read_from_whatever_has_one(value):
    assert position_of(value) == Position("e", 3)


@pytest.mark.parametrize(
    "value",
    [
        *(3, "e3", "ab", None, (), ("e",), ("e", 1, 2), {}, {"epoch": "e"}, HistoryPage([])),
        *(("", 1), ("x" * 65, 1), (None, 1), ("e", -1), ("e", True), ("e", 1.0), ("e", "1")),
        ("e", MAX_OFFSET + 1),
    ],
    ids=repr,
)
def test_what_has_none_is_refused(value):
    with pytest.raises(ValueError, match="a position needs"):
        position_of(value)


# --- what is kept


def test_a_room_without_a_size_keeps_nothing():
    assert Retention.of(RoomOptions(history_ttl=5)) is None
    assert Retention.of(RoomOptions(history_size=2, history_ttl=5)) == Retention(2, 5.0)
    assert Retention.of(RoomOptions(history_size=2)) == Retention(2)


def test_the_oldest_give_way_and_the_offsets_go_on():
    log = filled(7)

    assert (log.first, log.position) == (3, Position("e", 7))


def test_a_message_is_too_old_at_its_ttl_not_before():
    log = Log("e")
    log.append(entry(1), Retention(5, 10.0), NOW)

    log.trim(NOW + timedelta(seconds=9.9))
    assert log.first == 1
    log.trim(NOW + timedelta(seconds=10))
    assert (log.first, log.last) == (2, 1)


def test_a_clock_that_goes_back_loses_nothing_and_leaves_no_hole():
    log = Log("e")
    keeps = Retention(5, 10.0)
    log.append(entry(1), keeps, NOW)
    log.append(entry(2), keeps, NOW - timedelta(seconds=60))

    log.trim(NOW + timedelta(seconds=1))

    assert log.first == 1


@pytest.mark.parametrize("ttl", [None, 60.0], ids=["for ever", "longer"])
def test_what_has_expired_does_not_come_back_with_another_ttl(ttl):
    """Nobody has read in between: the message is gone by the word that held until then."""
    log = Log("e")
    log.append(entry(1), Retention(5, 1.0), NOW)
    later = NOW + timedelta(seconds=1)

    log.append(entry(2), Retention(5, ttl), later)

    page = log.read(Position("e", 0), 10, later)
    assert (payloads(page), page.first, page.recovered) == ([2], 2, False)


def test_a_message_that_is_not_too_old_yet_lives_by_the_newest_word():
    log = Log("e")
    log.append(entry(1), Retention(5, 10.0), NOW)
    log.append(entry(2), Retention(5, None), NOW + timedelta(seconds=9))

    page = log.read(Position("e", 0), 10, NOW + timedelta(seconds=60))

    assert (payloads(page), page.recovered) == ([1, 2], True)


def test_what_a_reader_found_expired_is_gone_for_one_whose_clock_is_behind():
    log = Log("e")
    log.append(entry(1), Retention(5, 10.0), NOW)
    log.read(None, 10, NOW + timedelta(seconds=10))

    page = log.read(Position("e", 0), 10, NOW)

    assert (payloads(page), page.recovered) == ([], False)


def test_a_ttl_of_any_length_is_taken():
    log = Log("e")

    log.append(entry(1), Retention(5, 1e300), NOW)

    assert log.first == 1


@pytest.mark.parametrize(
    ("since", "recovered"),
    [
        (Position("e", 1), False),  # 2 is gone
        (Position("e", 2), True),
        (Position("e", 7), True),
        (Position("e", 8), False),  # was never reached
        (Position("f", 5), False),
    ],
    ids=str,
)
def test_a_position_is_recovered_if_nothing_after_it_is_missing(since, recovered):
    page = filled(7).read(since, 10, NOW)

    assert page.recovered is recovered


def test_a_page_says_where_each_of_its_entries_stands():
    page = filled(7).read(Position("e", 4), 2, NOW)

    assert [(at.offset, int(e.payload)) for at, e in page.with_positions()] == [(5, 5), (6, 6)]


def test_of_trimmed_messages_those_that_are_left_are_given():
    page = filled(7).read(Position("e", 0), 2, NOW)

    assert (payloads(page), page.first, page.recovered) == ([3, 4], 3, False)


# --- against a model


class HistoryModel(RuleBasedStateMachine):
    """A log next to a list of everything that was ever published."""

    def __init__(self):
        super().__init__()
        self.now = NOW
        self.epochs = 0
        self.begin()

    def begin(self):
        self.epochs += 1
        self.log = Log(f"e{self.epochs}")
        self.ever = []
        self.lost = 0
        """How many of them, from the first on, may not be given any more."""

    def lose_old(self, ttl):
        while (
            ttl is not None
            and self.lost < len(self.ever)
            and (self.now - self.ever[self.lost]).total_seconds() >= ttl
        ):
            self.lost += 1

    ttl = None

    @rule(size=st.integers(1, 6), ttl=st.none() | st.floats(1, 20))
    def publish(self, size, ttl):
        self.lose_old(self.ttl)
        self.ttl = ttl
        self.ever.append(self.now)
        at = self.log.append(entry(len(self.ever)), Retention(size, ttl), self.now)
        self.lost = max(self.lost, len(self.ever) - size)
        self.lose_old(ttl)

        assert at == Position(f"e{self.epochs}", len(self.ever))

    @rule(seconds=st.floats(-5, 15))
    def time_passes(self, seconds):
        """By another node's clock it may be earlier."""
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.ever)
    @rule()
    def remove(self):
        self.begin()

    @rule(back=st.integers(-2, 12), limit=st.integers(1, 8))
    def read_since(self, back, limit):
        self.lose_old(self.ttl)
        since = max(0, len(self.ever) - back)

        page = self.log.read(Position(self.log.epoch, since), limit, self.now)

        assert page.recovered is (self.lost <= since <= len(self.ever))
        left = range(max(self.lost, since) + 1, len(self.ever) + 1)
        assert payloads(page) == list(left[:limit])
        assert not page.entries or page.first == left[0]
        assert page.position.offset == len(self.ever)

    @rule(limit=st.integers(1, 8))
    def read_the_newest(self, limit):
        self.lose_old(self.ttl)

        page = self.log.read(None, limit, self.now)

        assert payloads(page) == list(range(self.lost + 1, len(self.ever) + 1))[-limit:]
        assert page.recovered

    @rule(offset=st.integers(0, 12))
    def read_from_another_epoch(self, offset):
        self.lose_old(self.ttl)

        page = self.log.read(Position("foreign", offset), 5, self.now)

        assert (payloads(page), page.recovered) == ([], False)


TestHistoryModel = HistoryModel.TestCase


@given(size=st.integers(1, 9), count=st.integers(0, 30))
def test_never_more_is_kept_than_asked_for(size, count):
    log = filled(count, Retention(size))

    assert payloads(log.read(None, 100, NOW)) == list(range(1, count + 1))[-size:]


# --- from where on


@pytest.mark.parametrize("value", ["start", 0, 7, MAX_OFFSET])
def test_the_start_and_a_number_are_a_beginning_as_they_are(value):
    assert since_from(value) == value
    assert wire_since(value) == value


@pytest.mark.parametrize(
    "value",
    [
        Position("e", 3),
        {"epoch": "e", "offset": 3},
        StreamPosition("r", "e", 3),
        HistoryPage([], "e", 3),
        ("e", 3),
    ],
)
def test_so_is_whatever_has_a_position(value):
    assert since_from(value) == Position("e", 3)
    assert wire_since(value) == {"epoch": "e", "offset": 3}


@pytest.mark.parametrize(
    "value", [None, "", "end", "START", True, -1, 1.5, MAX_OFFSET + 1, [], {"epoch": "e"}, b"start"]
)
def test_anything_else_is_none(value):
    with pytest.raises(ValueError, match=r"since|position"):
        since_from(value)


@pytest.mark.parametrize(
    ("since", "place"), [("start", 0), (0, 9), (4, 5), (9, 0), (99, 0), (Position("o", 2), None)]
)
def test_the_place_before_the_first_one_wanted(since, place):
    before = since if place is None else Position("e", place)

    assert position_before(since, Position("e", 9)) == before
