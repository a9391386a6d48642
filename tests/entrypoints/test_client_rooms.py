"""How far a client has come in its rooms, and what it asks for."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall import StreamPosition
from eyewall.client.rooms import (
    MAX_BUFFERED,
    MAX_BUFFERED_BYTES,
    RecoveryResult,
    RoomTracker,
    Verdict,
)


class Queue:
    """A queue that is full when it is told so."""

    has_space = True


def at(offset: int, epoch: str = "e", room: str = "r") -> StreamPosition:
    return StreamPosition(room, epoch, offset)


def answer(offset: int, epoch: str = "e", *, recovered: bool = True) -> dict:
    return {"recovered": recovered, "epoch": epoch, "offset": offset}


@pytest.fixture
def rooms() -> RoomTracker[str]:
    """One room, in which the client has come to offset 3."""
    rooms: RoomTracker[str] = RoomTracker()
    rooms.joined("r", "e", 3)
    return rooms


# --- the rule for one message


def test_the_next_one_is_taken(rooms):
    assert rooms.classify(at(4)) is Verdict.TAKE
    assert not rooms.mark_taken(at(4))
    assert rooms.position("r") == {"epoch": "e", "offset": 4}


@pytest.mark.parametrize("offset", [1, 3])
def test_what_was_taken_is_a_repeat(rooms, offset):
    assert rooms.classify(at(offset)) is Verdict.DUPLICATE


def test_one_further_on_is_a_gap_that_is_asked_for(rooms):
    assert rooms.classify(at(5)) is Verdict.GAP
    rooms.buffer(at(5), "five", 1)

    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 3}}
    assert rooms.request_gaps() == {}, "once at a time"


def test_the_first_of_an_unknown_room_is_taken_and_the_room_is_known(rooms):
    assert rooms.classify(at(7, room="new")) is Verdict.TAKE
    rooms.mark_taken(at(7, room="new"))

    assert rooms.names() == {"r", "new"}
    assert rooms.position("new") == {"epoch": "e", "offset": 7}


def test_a_new_epoch_is_taken_and_told(rooms):
    assert rooms.classify(at(2, "f")) is Verdict.TAKE
    assert rooms.mark_taken(at(2, "f"))
    assert rooms.position("r") == {"epoch": "f", "offset": 2}


def test_history_that_begins_later_is_no_loss(rooms):
    rooms.joined("plain", None, None)

    assert rooms.position("plain") == {}
    assert not rooms.mark_taken(at(1, room="plain"))


# --- joining and leaving


def test_what_came_before_the_answer_to_a_join_is_not_forgotten(rooms):
    rooms.mark_taken(at(4))
    rooms.joined("r", "e", 3)

    assert rooms.position("r")["offset"] == 4


@pytest.mark.parametrize(("epoch", "offset"), [(5, 5), ("f", "5"), ("f", True), ("f", -1)])
def test_a_place_that_is_none_is_passed_over(rooms, epoch, offset):
    rooms.joined("r", epoch, offset)
    rooms.mark_gap("r", epoch, offset)

    assert rooms.position("r") == {"epoch": "e", "offset": 3}
    assert rooms.request_gaps() == {}


def test_a_room_that_was_left_is_not_asked_for(rooms):
    rooms.buffer(at(9), "nine", 1)
    rooms.left("r")
    rooms.left("r")

    assert rooms.request_all() == {}
    assert "r" not in rooms
    assert len(rooms) == 0


def test_an_answer_about_a_room_that_was_left_changes_nothing(rooms):
    rooms.request_all()
    rooms.left("r")

    assert rooms.apply_answer("r", answer(9)) == RecoveryResult()
    assert "r" not in rooms


# --- gaps


def test_a_gap_that_the_server_tells_of_is_asked_for_from_the_own_place(rooms):
    rooms.mark_gap("r", "e", 1)

    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 3}}


def test_a_gap_that_begins_at_once_in_an_unknown_room(rooms):
    rooms.mark_gap("new", "e", 0)

    assert rooms.request_gaps() == {"new": {"epoch": "e", "offset": 0}}


def test_what_the_client_had_no_place_for_is_asked_for_when_there_is_place(rooms):
    queue = Queue()
    queue.has_space = False
    rooms.mark_dropped(at(4), queue)
    assert rooms.classify(at(5)) is Verdict.GAP
    rooms.buffer(at(5), "five", 1)
    assert rooms.request_gaps() == {}
    queue.has_space = True

    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 3}}


def test_the_first_of_an_unknown_room_can_be_missed_too(rooms):
    rooms.mark_dropped(at(7, room="new"), Queue())

    assert rooms.request_gaps() == {"new": {"epoch": "e", "offset": 6}}


# --- the answer


def test_what_came_early_is_taken_once_its_turn_has_come(rooms):
    rooms.mark_gap("r", "e", 3)
    rooms.request_gaps()
    rooms.buffer(at(5), "five", 1)
    rooms.buffer(at(6), "six", 1)
    rooms.mark_taken(at(4))
    rooms.mark_taken(at(5))

    assert rooms.apply_answer("r", answer(6)) == RecoveryResult(buffered=["six"], upto=6)


def test_what_is_missing_after_the_answer_was_for_others(rooms):
    """A message to all but this client leaves a hole in its offsets."""
    rooms.mark_gap("r", "e", 3)
    rooms.request_gaps()
    rooms.buffer(at(5), "five", 1)

    found = rooms.apply_answer("r", answer(6))
    assert found == RecoveryResult(buffered=["five"], upto=6)
    rooms.advance("r", found.upto)
    assert rooms.classify(at(7)) is Verdict.TAKE
    assert rooms.request_gaps() == {}


def test_what_was_dropped_while_it_was_asked_for_is_asked_for_again(rooms):
    rooms.mark_gap("r", "e", 3)
    rooms.request_gaps()
    rooms.buffer(at(5), "five", 1)
    rooms.mark_dropped(at(6), Queue())
    rooms.buffer(at(7), "seven", 1)

    found = rooms.apply_answer("r", answer(7))
    assert found == RecoveryResult(buffered=["five"], upto=5)
    rooms.advance("r", found.upto)
    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 5}}


@pytest.mark.parametrize("size", [1, MAX_BUFFERED_BYTES // 4])
def test_what_is_kept_aside_is_bounded(rooms, size):
    rooms.mark_gap("r", "e", 3)
    rooms.request_gaps()
    most = min(MAX_BUFFERED, MAX_BUFFERED_BYTES // size)
    for offset in range(5, 5 + most + 2):
        rooms.buffer(at(offset), str(offset), size)

    found = rooms.apply_answer("r", answer(1000))
    assert len(found.buffered) == most
    assert found.upto == 4 + most
    rooms.request_gaps()
    rooms.buffer(at(1000), "place again", size)
    assert rooms.apply_answer("r", answer(1000)).buffered == ["place again"]


def test_one_that_is_kept_is_kept_once(rooms):
    rooms.mark_gap("r", "e", 3)
    rooms.request_gaps()
    for _ in range(MAX_BUFFERED + 1):
        rooms.buffer(at(5), "five", 1)

    assert rooms.apply_answer("r", answer(5)) == RecoveryResult(buffered=["five"], upto=5)


def test_what_can_not_be_recovered_is_lost_and_goes_on_where_the_room_stands(rooms):
    rooms.request_all()
    rooms.buffer(at(5), "five", 1)

    assert rooms.apply_answer("r", answer(9, "f", recovered=False)) == RecoveryResult(lost=True)
    assert rooms.position("r") == {"epoch": "f", "offset": 9}


def test_who_is_not_let_in_again_is_not_in_the_room(rooms):
    rooms.request_all()
    refused = {"recovered": False, "code": "join_forbidden"}

    assert rooms.apply_answer("r", refused) == RecoveryResult(lost=True, code="join_forbidden")
    assert "r" not in rooms


@pytest.mark.parametrize("code", ["unavailable", "overloaded", "rate_limited"])
def test_a_server_that_cannot_say_now_is_asked_again(rooms, code):
    rooms.request_all()

    assert rooms.apply_answer("r", {"recovered": False, "code": code}) == RecoveryResult(later=True)
    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 3}}


@pytest.mark.parametrize("wrong", [None, 5, {}, {"recovered": "yes"}, {"recovered": 1}])
def test_an_answer_that_says_nothing_recovers_nothing(rooms, wrong):
    rooms.request_all()

    assert rooms.apply_answer("r", wrong) == RecoveryResult(lost=True)
    assert rooms.position("r") == {"epoch": "e", "offset": 3}


def test_a_room_without_history_gets_its_place_when_it_has_one(rooms):
    rooms.joined("plain", None, None)
    assert rooms.request_all()["plain"] == {}

    assert rooms.apply_answer("plain", {"recovered": True}) == RecoveryResult()
    rooms.request_all()
    assert rooms.apply_answer("plain", answer(4)) == RecoveryResult()
    assert rooms.position("plain") == {"epoch": "e", "offset": 4}


def test_a_new_epoch_forgets_what_was_kept_of_the_old_one(rooms):
    rooms.mark_gap("r", "e", 3)
    rooms.request_gaps()
    rooms.buffer(at(5), "old", 1)
    rooms.mark_taken(at(1, "f"))

    assert rooms.apply_answer("r", answer(9, "f")).buffered == []


def test_what_was_asked_for_in_vain_is_asked_for_again(rooms):
    rooms.mark_gap("r", "e", 3)
    rooms.request_gaps()
    rooms.buffer(at(5), "five", 1)
    rooms.restore_gaps(["r", "left meanwhile"])

    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 3}}
    assert rooms.apply_answer("r", answer(5)).buffered == [], "it comes again with the replay"


def test_a_reconnect_asks_for_every_room(rooms):
    rooms.joined("plain", None, None)

    assert rooms.request_all() == {"r": {"epoch": "e", "offset": 3}, "plain": {}}
    assert set(rooms.request_all()) == {"r", "plain"}


def test_a_reconnect_forgets_what_was_kept_for_the_last_answer(rooms):
    rooms.mark_gap("r", "e", 3)
    rooms.request_gaps()
    rooms.buffer(at(5), "five", 1)
    rooms.request_all()

    assert rooms.apply_answer("r", answer(5)).buffered == []


def test_a_gap_that_is_told_while_the_room_is_asked_for_is_asked_for_afterwards(rooms):
    rooms.mark_gap("r", "e", 3)
    rooms.request_gaps()
    rooms.mark_gap("r", "e", 4)
    assert rooms.request_gaps() == {}
    rooms.advance("r", rooms.apply_answer("r", answer(4)).upto)

    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 4}}


# --- against a server that loses and repeats


class World:
    """A server with one room, its line to one client, and that client."""

    def __init__(self, room_for: int) -> None:
        self.log: list[bool] = []  # whether the message at this place is for the client
        self.line: deque = deque()
        self.asked: deque = deque()
        self.gap: int | None = None
        self.rooms: RoomTracker[StreamPosition] = RoomTracker()
        self.rooms.joined("r", "e", 0)
        self.queue = Queue()
        self.room_for = room_for
        self.waiting = 0
        self.taken: list[int] = []

    # the server

    def publish(self, *, meant: bool, dropped: bool) -> None:
        self.log.append(meant)
        offset = len(self.log)
        if meant and dropped:
            self.gap = min(self.gap if self.gap is not None else offset, offset - 1)
        elif meant:
            self.line.append(at(offset))

    def tell_gap(self) -> None:
        if self.gap is not None:
            self.line.append(("gap", self.gap))
            self.gap = None

    def serve(self) -> None:
        if self.asked:
            since = self.asked.popleft()["r"]["offset"]
            missed = range(since + 1, len(self.log) + 1)
            self.line.extend(at(offset) for offset in missed if self.log[offset - 1])
            self.line.append(answer(len(self.log)))

    # the client

    def take(self, place: StreamPosition) -> bool:
        if self.waiting >= self.room_for:
            self.queue.has_space = False
            self.rooms.mark_dropped(place, self.queue)
            return False
        self.waiting += 1
        self.taken.append(place.offset)
        assert not self.rooms.mark_taken(place)
        return True

    def empty(self) -> None:
        self.waiting = 0
        self.queue.has_space = True

    def ask(self) -> None:
        if places := self.rooms.request_gaps():
            self.asked.append(places)

    def read(self) -> None:
        if not self.line:
            return
        came = self.line.popleft()
        if isinstance(came, tuple):
            self.rooms.mark_gap("r", "e", came[1])
        elif isinstance(came, dict):
            found = self.rooms.apply_answer("r", came)
            for place in found.buffered:
                self.rooms.advance("r", place.offset - 1)
                if not self.take(place):
                    return
            self.rooms.advance("r", found.upto)
        else:
            verdict = self.rooms.classify(came)
            if verdict is Verdict.TAKE:
                self.take(came)
            elif verdict is Verdict.GAP:
                self.rooms.buffer(came, came, 1)

    def settle(self) -> None:
        for _ in range(20 * len(self.log) + 20):
            self.empty()
            self.tell_gap()
            self.read()
            self.serve()
            self.ask()


PONG_CHECKS = st.one_of(
    st.builds(lambda m, d: ("publish", m, d), st.booleans(), st.booleans()),
    st.sampled_from([("tell_gap",), ("serve",), ("empty",), ("ask",), ("read",), ("read",)]),
)


@given(st.lists(PONG_CHECKS, max_size=120), st.integers(1, 6))
def test_every_message_is_taken_once_and_in_order_whatever_gets_lost(steps, room_for):
    world = World(room_for)
    for name, *rest in steps:
        if name == "publish":
            world.publish(meant=rest[0], dropped=rest[1])
        else:
            getattr(world, name)()
    world.settle()

    assert world.taken == [n for n, meant in enumerate(world.log, 1) if meant]
    assert not world.line


# --- joining with what was said before


def replaying(rooms, since="start", room="r"):
    return rooms.begin_replay(room, since)


def test_a_replay_goes_back_to_its_first_and_each_message_is_wanted_once(rooms):
    replay = replaying(rooms)

    taken = []
    for offset in (4, 1, 2, 2, 3, 1, 4, 5):
        if rooms.classify(at(offset)) is Verdict.TAKE:
            rooms.mark_taken(at(offset))
            taken.append(offset)

    assert taken == [4, 1, 2, 3, 4, 5], "the first one was live"
    assert rooms.is_replayed(at(5))
    assert rooms.finish_replay("r", replay, answer(5)) == RecoveryResult(upto=5)


def test_when_it_is_over_nothing_goes_back_any_more(rooms):
    replay = replaying(rooms)
    rooms.finish_replay("r", replay, answer(3))

    assert rooms.classify(at(1)) is Verdict.DUPLICATE


def test_what_asks_for_an_ack_begins_no_replay(rooms):
    replaying(rooms)

    assert rooms.classify(at(2), live=True) is Verdict.DUPLICATE
    replaying(rooms, room="new")
    assert rooms.classify(at(9, room="new"), live=True) is Verdict.GAP
    rooms.buffer(at(9, room="new"), "nine", 1)
    assert "new" not in rooms
    assert rooms.classify(at(1, room="new")) is Verdict.TAKE


def test_of_what_was_replayed_ids_say_nothing_also_when_it_has_to_be_asked_for_again():
    """The client's own queue was full, and what comes then was handled before."""
    rooms: RoomTracker[str] = RoomTracker()
    replay = replaying(rooms)
    queue = Queue()
    rooms.classify(at(1))
    rooms.mark_taken(at(1))
    rooms.classify(at(2))
    rooms.mark_dropped(at(2), queue)
    rooms.classify(at(3))
    rooms.buffer(at(3), "three", 1)
    assert rooms.request_gaps() == {}, "it is being sent"

    assert rooms.finish_replay("r", replay, answer(3)) == RecoveryResult(upto=1)

    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 1}}
    assert rooms.is_replayed(at(2))
    assert rooms.is_replayed(at(3))
    assert not rooms.is_replayed(at(4))
    rooms.mark_taken(at(1, "f"))
    assert not rooms.is_replayed(at(2, "f"))


def test_what_was_kept_aside_is_next_when_it_is_over():
    rooms: RoomTracker[str] = RoomTracker()
    replay = replaying(rooms)
    rooms.mark_taken(at(1))
    rooms.buffer(at(4), "four", 1)
    rooms.buffer(at(3), "three", 1)

    assert rooms.finish_replay("r", replay, answer(5, recovered=False)) == RecoveryResult(
        buffered=["three", "four"], upto=5
    )
    assert rooms._buffered == rooms._buffered_bytes == 0


def test_a_replay_whose_first_had_no_place_is_asked_for_from_before_it(rooms):
    replay = replaying(rooms)
    assert rooms.classify(at(1)) is Verdict.TAKE
    rooms.mark_dropped(at(1), Queue())
    assert rooms.classify(at(2)) is Verdict.GAP
    rooms.buffer(at(2), "two", 1)

    rooms.finish_replay("r", replay, answer(3))

    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 0}}


def test_two_replays_are_one_after_the_other(rooms):
    first, second = replaying(rooms), replaying(rooms, 2)
    taken = []

    def come(*offsets):
        for offset in offsets:
            if rooms.classify(at(offset)) is Verdict.TAKE:
                rooms.mark_taken(at(offset))
                taken.append(offset)

    come(1, 2, 3)
    rooms.finish_replay("r", first, answer(3))
    come(2, 3)
    rooms.finish_replay("r", second, answer(3))
    come(1, 4)

    assert taken == [1, 2, 3, 2, 3, 4]


def test_a_replay_that_nobody_waits_for_any_more_is_made_whole(rooms):
    replay = replaying(rooms)
    rooms.classify(at(1))
    rooms.mark_taken(at(1))
    rooms.buffer(at(3), "three", 1)

    rooms.abandon_replay("r", replay)
    rooms.abandon_replay("r", replay)

    assert rooms.request_gaps() == {"r": {"epoch": "e", "offset": 1}}
    assert rooms.is_replayed(at(2))
    assert rooms._buffered == 0


def test_one_that_was_refused_leaves_nothing(rooms):
    rooms.abandon_replay("r", replaying(rooms))
    rooms.abandon_replay("new", replaying(rooms, room="new"))

    assert rooms.names() == {"r"}
    assert rooms.request_gaps() == {}
    assert not rooms.is_replayed(at(4))
    assert rooms._replays == {}


def test_a_room_without_history_has_no_place(rooms):
    rooms.finish_replay("plain", replaying(rooms, room="plain"), {})

    assert rooms.position("plain") == {}


def test_the_answers_epoch_counts(rooms):
    rooms.finish_replay("r", replaying(rooms), answer(7, "f"))

    assert rooms.position("r") == {"epoch": "f", "offset": 7}


@given(st.lists(st.tuples(st.sampled_from(["live", "join", "answer", "leave"]), st.integers(0, 9))))
def test_against_a_server_each_replay_is_one_piece_and_what_is_live_comes_once(steps):
    """The server answers later than it is asked; what is said meanwhile comes before."""
    rooms: RoomTracker[str] = RoomTracker()
    last, member, asked = 0, False, []
    got: list[list[int]] = [[]]

    def come(offset):
        if rooms.classify(at(offset)) is Verdict.TAKE:
            rooms.mark_taken(at(offset))
            got[-1].append(offset)

    for step, number in steps:
        if step == "live":
            last += 1
            if member:
                come(last)
        elif step == "join":
            since = "start" if number > 4 else number
            asked.append((since, rooms.begin_replay("r", since)))
        elif step == "answer" and asked:
            since, replay = asked.pop(0)
            first = 1 if since == "start" else max(1, last - since + 1)
            before = len(got[-1])
            for offset in range(first, last + 1):
                come(offset)
            new = got[-1][before:]
            live = set(got[-1][:before]) if before else set()
            assert new == [n for n in range(first, last + 1) if n in new]
            assert set(range(first, last + 1)) <= set(new) | live
            rooms.finish_replay("r", replay, answer(last))
            member = True
            got.append([])
        elif step == "leave" and not asked:
            rooms.left("r")
            member = False
            got.append([])
    for piece in got:
        assert all(n <= last for n in piece)
