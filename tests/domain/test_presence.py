"""Who is there, and who is typing."""

from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from eyewall.domain.presence import PresenceState, Typing

START = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


def at(second):
    return START + timedelta(seconds=second)


def test_a_state_has_its_fields_in_the_documented_order():
    state = PresenceState(True, 2, START, {"lab": at(5)})

    assert state.online is True
    assert state.connections == 2
    assert state.last_seen == START
    assert state.typing == {"lab": at(5)}


def test_a_state_types_nowhere_unless_told_and_does_not_change():
    state = PresenceState(online=False, connections=0, last_seen=None)

    assert state.typing == {}
    with pytest.raises(FrozenInstanceError):
        state.online = True


def test_two_states_do_not_share_where_they_type():
    one, other = PresenceState(False, 0, None), PresenceState(False, 0, None)

    one.typing["lab"] = START

    assert other.typing == {}


def test_starting_to_type_is_news_going_on_is_not():
    typing = Typing()

    assert typing.set("ada", "lab", at(5)) is True
    assert typing.set("ada", "lab", at(6)) is False
    assert typing.set("ada", "lab", at(6)) is False


def test_each_room_and_user_is_news_of_its_own():
    typing = Typing()
    typing.set("ada", "lab", at(5))

    assert typing.set("ada", "hall", at(5)) is True
    assert typing.set("bob", "lab", at(5)) is True
    assert len(typing) == 3


def test_until_must_be_aware():
    with pytest.raises(ValueError, match="aware"):
        Typing().set("ada", "lab", datetime(2024, 5, 1))  # noqa: DTZ001


def test_stopping_is_news_once():
    typing = Typing()
    typing.set("ada", "lab", at(5))

    assert typing.clear("ada", "lab") is True
    assert typing.clear("ada", "lab") is False
    assert typing.set("ada", "lab", at(5)) is True


def test_stopping_in_one_room_leaves_the_others():
    typing = Typing()
    typing.set("ada", "lab", at(5))
    typing.set("ada", "hall", at(6))

    assert typing.clear("ada", "attic") is False
    assert typing.clear("ada", "lab") is True
    assert typing.of("ada", at(0)) == {"hall": at(6)}


def test_typing_runs_out_at_its_time_not_before():
    typing = Typing()
    typing.set("ada", "lab", at(5))

    assert typing.due(at(4.999)) == []
    assert typing.due(at(5)) == [("ada", "lab")]
    assert typing.due(at(6)) == []
    assert len(typing) == 0


def test_those_who_stopped_come_in_the_order_in_which_they_did():
    typing = Typing()
    typing.set("ada", "lab", at(3))
    typing.set("bob", "lab", at(1))
    typing.set("eve", "lab", at(2))
    typing.set("dan", "lab", at(9))

    assert typing.due(at(5)) == [("bob", "lab"), ("eve", "lab"), ("ada", "lab")]
    assert typing.next_due() == at(9)


def test_typing_on_puts_off_the_end():
    typing = Typing()
    typing.set("ada", "lab", at(5))
    typing.set("ada", "lab", at(8))

    assert typing.due(at(5)) == []
    assert typing.due(at(8)) == [("ada", "lab")]


def test_the_newest_word_counts_also_when_it_ends_earlier():
    typing = Typing()
    typing.set("ada", "lab", at(8))
    typing.set("ada", "lab", at(5))

    assert typing.next_due() == at(5)
    assert typing.due(at(5)) == [("ada", "lab")]
    assert typing.due(at(9)) == []


def test_a_stop_and_a_new_start_run_out_once():
    typing = Typing()
    typing.set("ada", "lab", at(5))
    typing.clear("ada", "lab")
    typing.set("ada", "lab", at(5))

    assert typing.due(at(9)) == [("ada", "lab")]


def test_typing_on_before_the_stop_was_told_is_not_news():
    """The others were never told of a stop, so they need not be told of a start."""
    typing = Typing()
    typing.set("ada", "lab", at(5))

    assert typing.set("ada", "lab", at(20)) is False


def test_a_user_is_shown_typing_until_the_time_is_over():
    typing = Typing()
    typing.set("ada", "lab", at(5))
    typing.set("ada", "hall", at(7))

    assert typing.of("ada", at(4)) == {"lab": at(5), "hall": at(7)}
    assert typing.of("ada", at(5)) == {"hall": at(7)}
    assert typing.of("ada", at(7)) == {}
    assert typing.of("bob", at(0)) == {}


def test_looking_does_not_take_away_the_notice():
    typing = Typing()
    typing.set("ada", "lab", at(5))

    typing.of("ada", at(9))

    assert typing.due(at(9)) == [("ada", "lab")]


def test_a_user_who_goes_stops_everywhere():
    typing = Typing()
    typing.set("ada", "lab", at(5))
    typing.set("ada", "hall", at(6))
    typing.set("bob", "lab", at(7))

    assert typing.clear_user("ada") == ["lab", "hall"]
    assert typing.clear_user("ada") == []
    assert len(typing) == 1
    assert typing.due(at(9)) == [("bob", "lab")]


def test_all_can_be_forgotten():
    typing = Typing()
    typing.set("ada", "lab", at(5))

    typing.clear_all()

    assert (typing._until, typing._ends) == ({}, [])
    assert (len(typing), typing.next_due(), typing.due(at(9))) == (0, None, [])
    assert typing.set("ada", "lab", at(5)) is True


def test_the_next_time_to_look_is_the_earliest_that_still_holds():
    typing = Typing()
    assert typing.next_due() is None

    typing.set("ada", "lab", at(5))
    typing.set("bob", "lab", at(7))
    assert typing.next_due() == at(5)

    typing.clear("ada", "lab")
    assert typing.next_due() == at(7)

    typing.clear_user("bob")
    assert typing.next_due() is None


def test_times_of_other_zones_are_the_same_times():
    typing = Typing()
    elsewhere = timezone(timedelta(hours=-5))
    typing.set("ada", "lab", at(5).astimezone(elsewhere))

    assert typing.due(at(4)) == []
    assert typing.due(at(5)) == [("ada", "lab")]


def test_what_is_held_is_bounded_by_who_types_however_often_they_say_so():
    """A client that renews a far-off end at every key must not fill the memory."""
    typing = Typing()
    for key in range(10_000):
        typing.set("ada", "lab", at(1000 + key))
    assert len(typing._ends) < 200

    for key in range(10_000):
        typing.set("bob", "lab", at(1000 + key))
        typing.clear("bob", "lab")
    assert len(typing._ends) < 200

    typing.clear_user("ada")
    typing.due(at(10**6))
    assert (typing._until, typing._ends) == ({}, [])


@pytest.mark.parametrize("by_room", [True, False])
def test_a_crowd_that_goes_leaves_nothing_behind(by_room):
    typing = Typing()
    for user in range(1000):
        typing.set(f"u{user}", "lab", at(user))

    for user in range(1000):
        if by_room:
            typing.clear(f"u{user}", "lab")
        else:
            typing.clear_user(f"u{user}")

    assert len(typing._ends) < 200
    assert typing._until == {}


def test_tidying_up_keeps_the_order_of_the_ends():
    typing = Typing()
    for user in range(20):
        typing.set(f"u{user}", "lab", at(100 - user))

    for key in range(200):
        typing.set("ada", "lab", at(1000 + key))

    assert typing.next_due() == at(81)
    assert typing.due(at(100)) == [(f"u{user}", "lab") for user in reversed(range(20))]


users = st.sampled_from(["ada", "bob"])
rooms = st.sampled_from(["lab", "hall"])
seconds = st.integers(0, 20)


class TypingAgainstADict(RuleBasedStateMachine):
    """The table answers as a plain dictionary of ends would."""

    def __init__(self):
        super().__init__()
        self.typing = Typing()
        self.ends = {}
        self.now = 0

    @rule(user=users, room=rooms, ttl=seconds)
    def set(self, user, room, ttl):
        news = (user, room) not in self.ends
        self.ends[user, room] = at(self.now + ttl)
        assert self.typing.set(user, room, at(self.now + ttl)) == news

    @rule(user=users, room=rooms)
    def clear(self, user, room):
        news = self.ends.pop((user, room), None) is not None
        assert self.typing.clear(user, room) == news

    @rule(user=users)
    def clear_user(self, user):
        gone = {room for who, room in self.ends if who == user}
        assert set(self.typing.clear_user(user)) == gone
        self.ends = {pair: end for pair, end in self.ends.items() if pair[0] != user}

    @rule(passed=seconds)
    def due(self, passed):
        self.now += passed
        lapsed = {pair for pair, end in self.ends.items() if end <= at(self.now)}
        found = self.typing.due(at(self.now))
        assert len(found) == len(lapsed)
        assert set(found) == lapsed
        assert [self.ends[pair] for pair in found] == sorted(self.ends[pair] for pair in lapsed)
        self.ends = {pair: end for pair, end in self.ends.items() if pair not in lapsed}

    @invariant()
    def agrees(self):
        assert len(self.typing) == len(self.ends)
        assert self.typing.next_due() == min(self.ends.values(), default=None)
        for user in ("ada", "bob"):
            assert self.typing.of(user, at(self.now)) == {
                room: end
                for (who, room), end in self.ends.items()
                if who == user and end > at(self.now)
            }


TestTypingAgainstADict = TypingAgainstADict.TestCase
TestTypingAgainstADict.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
