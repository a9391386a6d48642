"""Requests that are sent again: answered again, and not handled again."""

import pytest

from eyewall.domain.request_log import LIMIT, MAX_BYTES, MAX_WAITING, RequestLog, RequestState


@pytest.fixture
def log():
    return RequestLog()


def test_a_request_is_new_once(log):
    assert log.register("r1") is RequestState.NEW
    assert log.register("r1") is RequestState.IN_FLIGHT


def test_a_request_that_was_answered_has_its_answer(log):
    log.register("r1")
    log.record("r1", b"yes")

    assert log.register("r1") == b"yes"


def test_an_empty_answer_is_an_answer(log):
    log.register("r1")
    log.record("r1", b"")

    assert log.register("r1") == b""


def test_retransmissions_that_wait_are_counted_once(log):
    log.register("r1")
    log.register("r1")
    log.register("r1")

    assert log.record("r1", b"yes") == 2
    assert log.record("r1", b"yes") == 0


def test_a_burst_of_retransmissions_earns_a_bounded_number_of_answers(log):
    for _ in range(MAX_WAITING * 3):
        log.register("r1")

    assert log.record("r1", b"yes") == MAX_WAITING


def test_a_request_that_was_not_handled_is_new_again(log):
    log.register("r1")
    log.register("r1")

    assert log.discard("r1") == 1
    assert log.register("r1") is RequestState.NEW


def test_forgetting_what_nobody_asked_changes_nothing(log):
    assert log.discard("r1") == 0
    assert len(log) == 0


def test_the_last_256_answers_are_remembered(log):
    for number in range(LIMIT + 1):
        log.register(str(number))
        log.record(str(number), b"yes")

    assert LIMIT == 256
    assert len(log) == LIMIT
    assert log.register("1") == b"yes"
    assert log.register("0") is RequestState.NEW


def test_answers_are_bounded_in_bytes_and_the_oldest_go_first(log):
    half = b"x" * (MAX_BYTES // 2)
    for number in ("a", "b", "c"):
        log.register(number)
        log.record(number, half)

    assert log.register("a") is RequestState.NEW
    assert log.register("b") == half
    assert log.register("c") == half


def test_the_newest_answer_is_remembered_however_long_it_is(log):
    log.register("a")
    log.record("a", b"x" * (MAX_BYTES + 1))

    assert len(log) == 1


def test_an_answer_that_is_replaced_counts_once(log):
    """Otherwise the bytes would drift, and answers go before their time."""
    for _ in range(10):
        log.record("a", b"x" * (MAX_BYTES // 4))
    log.record("b", b"x" * (MAX_BYTES // 4))

    assert log.register("a") != RequestState.NEW
    assert log.register("b") != RequestState.NEW


def test_a_request_in_work_is_never_forgotten(log):
    log.register("slow")
    for number in range(LIMIT * 2):
        log.register(str(number))
        log.record(str(number), b"yes")

    assert log.register("slow") is RequestState.IN_FLIGHT


def test_requests_in_work_are_bounded_and_the_oldest_goes_first(log):
    for number in range(LIMIT + 1):
        assert log.register(str(number)) is RequestState.NEW

    assert log.in_flight == LIMIT
    assert log.register("1") is RequestState.IN_FLIGHT
    assert log.register("0") is RequestState.NEW


def test_one_that_was_let_go_is_answered_and_remembered_all_the_same(log):
    for number in range(LIMIT + 1):
        log.register(str(number))

    assert log.record("0", b"yes") == 0
    assert log.register("0") == b"yes"


def test_one_whose_retransmissions_wait_is_not_evicted(log):
    log.register("0")
    log.register("0")
    for number in range(1, LIMIT + 1):
        log.register(str(number))

    assert log.in_flight == LIMIT
    assert log.record("0", b"yes") == 1
    assert log.register("1") is RequestState.NEW


def test_where_retransmissions_wait_for_all_no_more_are_registered(log):
    for number in range(LIMIT):
        log.register(str(number))
        log.register(str(number))

    assert log.register("more") is RequestState.TOO_MANY
    assert log.in_flight == LIMIT
    log.record("0", b"yes")
    assert log.register("more") is RequestState.NEW


@pytest.mark.parametrize("waits", [False, True])
def test_what_is_added_is_bounded_too(log, waits):
    later = RequestLog()
    for number in range(LIMIT):
        log.register(f"a{number}")
        later.register(f"b{number}")
        if waits:
            log.register(f"a{number}")

    log.merge(later)

    assert log.in_flight == LIMIT


# --- a session that goes on with another connection


def test_what_was_asked_later_is_added(log):
    later = RequestLog()
    for mine, ids in ((log, "ab"), (later, "bc")):
        for request_id in ids:
            mine.register(request_id)
            mine.record(request_id, request_id.encode())
    later.register("d")

    log.merge(later)

    assert [request_id for request_id, _ in log.answers()] == ["a", "b", "c"]
    assert log.register("d") is RequestState.IN_FLIGHT
    assert log.size == 3


def test_a_request_in_work_on_both_waits_once(log):
    later = RequestLog()
    for mine in (log, later, log):
        mine.register("r1")

    log.merge(later)

    assert log.in_flight == 1
    assert log.record("r1", b"yes") == 1


def test_the_last_answer_is_told(log):
    idle = []
    for request_id in ("r1", "r2"):
        log.register(request_id)
    log.when_idle = lambda: idle.append(log.in_flight)

    log.record("r1", b"yes")
    early = list(idle)
    log.discard("r2")

    assert early == []
    assert idle == [0]


def test_what_was_true_of_one_connection_is_not_of_the_next(log):
    for request_id, bound in (("join", True), ("pay", False)):
        log.register(request_id)
        log.record(request_id, b"yes", bound=bound)

    log.forget_bound()

    assert log.register("join") is RequestState.NEW
    assert log.register("pay") == b"yes"
    assert log.size == 3
