"""Requests that are sent again: answered again, and not handled again."""

import pytest

from eyewall.domain.repeats import LIMIT, MAX_BYTES, MOST_WAITING, RequestLog, Seen


@pytest.fixture
def repeats():
    return RequestLog()


def test_a_request_is_new_once(repeats):
    assert repeats.look("r1") is Seen.NEW
    assert repeats.look("r1") is Seen.IN_WORK


def test_a_request_that_was_answered_has_its_answer(repeats):
    repeats.look("r1")
    repeats.answered("r1", b"yes")

    assert repeats.look("r1") == b"yes"


def test_an_empty_answer_is_an_answer(repeats):
    repeats.look("r1")
    repeats.answered("r1", b"")

    assert repeats.look("r1") == b""


def test_repeats_that_wait_are_counted_once(repeats):
    repeats.look("r1")
    repeats.look("r1")
    repeats.look("r1")

    assert repeats.answered("r1", b"yes") == 2
    assert repeats.answered("r1", b"yes") == 0


def test_a_burst_of_repeats_earns_a_bounded_number_of_answers(repeats):
    for _ in range(MOST_WAITING * 3):
        repeats.look("r1")

    assert repeats.answered("r1", b"yes") == MOST_WAITING


def test_a_request_that_was_not_handled_is_new_again(repeats):
    repeats.look("r1")
    repeats.look("r1")

    assert repeats.forgotten("r1") == 1
    assert repeats.look("r1") is Seen.NEW


def test_forgetting_what_nobody_asked_changes_nothing(repeats):
    assert repeats.forgotten("r1") == 0
    assert len(repeats) == 0


def test_the_last_256_answers_are_remembered(repeats):
    for number in range(LIMIT + 1):
        repeats.look(str(number))
        repeats.answered(str(number), b"yes")

    assert LIMIT == 256
    assert len(repeats) == LIMIT
    assert repeats.look("1") == b"yes"
    assert repeats.look("0") is Seen.NEW


def test_answers_are_bounded_in_bytes_and_the_oldest_go_first(repeats):
    half = b"x" * (MAX_BYTES // 2)
    for number in ("a", "b", "c"):
        repeats.look(number)
        repeats.answered(number, half)

    assert repeats.look("a") is Seen.NEW
    assert repeats.look("b") == half
    assert repeats.look("c") == half


def test_the_newest_answer_is_remembered_however_long_it_is(repeats):
    repeats.look("a")
    repeats.answered("a", b"x" * (MAX_BYTES + 1))

    assert len(repeats) == 1


def test_an_answer_that_is_replaced_counts_once(repeats):
    """Otherwise the bytes would drift, and answers go before their time."""
    for _ in range(10):
        repeats.answered("a", b"x" * (MAX_BYTES // 4))
    repeats.answered("b", b"x" * (MAX_BYTES // 4))

    assert repeats.look("a") != Seen.NEW
    assert repeats.look("b") != Seen.NEW


def test_a_request_in_work_is_never_forgotten(repeats):
    repeats.look("slow")
    for number in range(LIMIT * 2):
        repeats.look(str(number))
        repeats.answered(str(number), b"yes")

    assert repeats.look("slow") is Seen.IN_WORK


def test_requests_in_work_are_bounded_and_the_oldest_goes_first(repeats):
    for number in range(LIMIT + 1):
        assert repeats.look(str(number)) is Seen.NEW

    assert repeats.in_work == LIMIT
    assert repeats.look("1") is Seen.IN_WORK
    assert repeats.look("0") is Seen.NEW


def test_one_that_was_let_go_is_answered_and_remembered_all_the_same(repeats):
    for number in range(LIMIT + 1):
        repeats.look(str(number))

    assert repeats.answered("0", b"yes") == 0
    assert repeats.look("0") == b"yes"


def test_one_whose_repeats_wait_is_not_let_go(repeats):
    repeats.look("0")
    repeats.look("0")
    for number in range(1, LIMIT + 1):
        repeats.look(str(number))

    assert repeats.in_work == LIMIT
    assert repeats.answered("0", b"yes") == 1
    assert repeats.look("1") is Seen.NEW


def test_where_repeats_wait_for_all_no_more_are_taken_in(repeats):
    for number in range(LIMIT):
        repeats.look(str(number))
        repeats.look(str(number))

    assert repeats.look("more") is Seen.TOO_MANY
    assert repeats.in_work == LIMIT
    repeats.answered("0", b"yes")
    assert repeats.look("more") is Seen.NEW


@pytest.mark.parametrize("waits", [False, True])
def test_what_is_added_is_bounded_too(repeats, waits):
    later = RequestLog()
    for number in range(LIMIT):
        repeats.look(f"a{number}")
        later.look(f"b{number}")
        if waits:
            repeats.look(f"a{number}")

    repeats.take_in(later)

    assert repeats.in_work == LIMIT


# --- a session that goes on with another connection


def test_what_was_asked_later_is_added(repeats):
    later = RequestLog()
    for mine, ids in ((repeats, "ab"), (later, "bc")):
        for request_id in ids:
            mine.look(request_id)
            mine.answered(request_id, request_id.encode())
    later.look("d")

    repeats.take_in(later)

    assert [request_id for request_id, _ in repeats.answers()] == ["a", "b", "c"]
    assert repeats.look("d") is Seen.IN_WORK
    assert repeats.size == 3


def test_a_request_in_work_on_both_waits_once(repeats):
    later = RequestLog()
    for mine in (repeats, later, repeats):
        mine.look("r1")

    repeats.take_in(later)

    assert repeats.in_work == 1
    assert repeats.answered("r1", b"yes") == 1


def test_the_last_answer_is_told(repeats):
    idle = []
    for request_id in ("r1", "r2"):
        repeats.look(request_id)
    repeats.when_idle = lambda: idle.append(repeats.in_work)

    repeats.answered("r1", b"yes")
    early = list(idle)
    repeats.forgotten("r2")

    assert early == []
    assert idle == [0]


def test_what_was_true_of_one_connection_is_not_of_the_next(repeats):
    for request_id, bound in (("join", True), ("pay", False)):
        repeats.look(request_id)
        repeats.answered(request_id, b"yes", bound=bound)

    repeats.unbind()

    assert repeats.look("join") is Seen.NEW
    assert repeats.look("pay") == b"yes"
    assert repeats.size == 3
