"""What one join has asked for, and what a client may say of it."""

from __future__ import annotations

import pytest

from eyewall import StreamPosition
from eyewall.client.rooms import Replay
from eyewall.domain.history import Position


def at(offset: int, epoch: str = "e") -> StreamPosition:
    return StreamPosition("r", epoch, offset)


def answer(offset: int, epoch: str = "e", *, recovered: object = True) -> dict:
    return {"recovered": recovered, "epoch": epoch, "offset": offset}


HERE = {"epoch": "e", "offset": 9}


@pytest.mark.parametrize("said", [True, False, None, "true", 1])
def test_on_one_connection_the_server_says_whether_it_was_all(said):
    replay = Replay("start")
    replay.since_for({})
    replay.received(at(5), begins=True)

    assert replay.is_whole(answer(9, recovered=said)) is (said is True)


def test_it_is_asked_for_from_the_beginning_until_it_has_begun():
    replay = Replay(Position("e", 4))

    assert replay.since_for({}) == {"epoch": "e", "offset": 4}
    assert replay.since_for(HERE) == {"epoch": "e", "offset": 4}
    replay.received(at(10))  # live
    assert replay.since_for(HERE) == {"epoch": "e", "offset": 4}
    replay.received(at(5), begins=True)
    assert replay.since_for(HERE) == HERE


def test_it_is_asked_for_anew_where_the_client_is_nowhere():
    replay = Replay("start")
    replay.received(at(5), begins=True)
    replay.since_for(HERE)

    assert replay.since_for({}) == "start"
    assert not replay.has_begun
    assert replay.is_whole(answer(9))


@pytest.mark.parametrize(
    ("since", "first", "whole"),
    [
        ("start", 1, True),
        ("start", 2, False),
        (9, 1, True),
        (20, 1, True),
        (5, 5, True),
        (6, 5, False),
        (Position("e", 4), 5, True),
        (Position("e", 3), 5, False),
        (Position("o", 4), 5, False),
    ],
)
def test_after_a_cut_it_is_all_where_it_began_where_it_should(since, first, whole):
    replay = Replay(since)
    replay.received(at(first), begins=True)
    replay.since_for(HERE)

    assert replay.is_whole(answer(9)) is whole


def test_not_so_where_something_was_lost_or_an_epoch_has_ended():
    replay = Replay("start")
    replay.received(at(1), begins=True)
    replay.since_for(HERE)

    assert not replay.is_whole(answer(9, "f"))
    replay.is_lost = True
    assert not replay.is_whole(answer(9))


def test_its_first_is_what_stands_before_all_that_has_come():
    replay = Replay(3)
    assert replay.starts_at(at(5))
    replay.received(at(5))

    assert not replay.starts_at(at(5))
    assert replay.starts_at(at(4))
    assert replay.starts_at(at(9, "f"))
