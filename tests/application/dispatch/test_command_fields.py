"""What a client wrote, read or refused by field."""

import pytest

from eyewall.application.dispatch.command_fields import beginning_of, positions_of, since_of
from eyewall.domain.errors import ValidationError
from eyewall.domain.history import Position


def test_a_room_to_resume_says_where_it_stands_or_does_not():
    data = {"rooms": {"a": {"epoch": "e", "offset": 3}, "b": {}, "c": {"epoch": None}}}

    assert positions_of(data, 3) == {"a": Position("e", 3), "b": None, "c": None}


def test_nothing_to_resume_is_nothing():
    assert positions_of({}, 3) == {}


@pytest.mark.parametrize(
    "rooms", ["a", ["a"], {"a": None}, {"a": {"epoch": "e", "offset": "3"}}, {"a\n": {}}]
)
def test_what_is_no_place_is_refused(rooms):
    with pytest.raises(ValidationError):
        positions_of({"rooms": rooms}, 3)


def test_more_than_may_be_is_refused():
    with pytest.raises(ValidationError):
        positions_of({"rooms": {"a": {}, "b": {}}}, 1)


def test_since_is_a_place_or_left_out():
    assert since_of({}) is None
    assert since_of({"since": {"epoch": "e", "offset": 0}}) == Position("e", 0)
    with pytest.raises(ValidationError):
        since_of({"since": None})


def test_a_join_says_from_where_on_or_does_not():
    assert beginning_of({}) is None
    assert beginning_of({"since": "start"}) == "start"
    assert beginning_of({"since": 0}) == 0
    assert beginning_of({"since": {"epoch": "e", "offset": 3}}) == Position("e", 3)
    for wrong in (None, ["e", 3], True, "3"):
        with pytest.raises(ValidationError):
            beginning_of({"since": wrong})
