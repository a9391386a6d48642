"""When to try again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall.domain.errors import Nacked, QueueFull, Unavailable
from eyewall.domain.report import FailureReason, reason_of
from eyewall.domain.retry import RetryPolicy


def test_each_pause_is_twice_the_one_before():
    policy = RetryPolicy(jitter=0)

    assert [policy.delay(n, 0.5) for n in (1, 2, 3)] == [0.1, 0.2, 0.4]


def test_no_pause_is_longer_than_the_longest():
    policy = RetryPolicy(base_delay=1, max_delay=5)

    assert policy.delay(10, 1.0) == 5
    assert policy.delay(100_000, 1.0) == 5


def test_luck_moves_a_pause_within_the_jitter():
    policy = RetryPolicy(base_delay=10, jitter=0.2)

    assert [policy.delay(1, luck) for luck in (0.0, 0.5, 1.0)] == [8.0, 10.0, 12.0]


@given(
    retry=st.integers(1, 10_000),
    luck=st.floats(0, 1),
    base=st.floats(0, 1e6),
    factor=st.floats(1, 1e3),
    most=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
)
def test_a_pause_is_never_negative_and_never_too_long(retry, luck, base, factor, most, jitter):
    policy = RetryPolicy(base_delay=base, backoff_factor=factor, max_delay=most, jitter=jitter)

    assert 0 <= policy.delay(retry, luck) <= most


def test_reasons_may_be_named_by_their_values():
    assert RetryPolicy(retryable=["nacked"]).retryable == {FailureReason.NACKED}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QueueFull("x"), FailureReason.QUEUE_FULL),
        (Nacked("x"), FailureReason.NACKED),
        (Unavailable("x"), FailureReason.CONN_ERROR),
        (None, FailureReason.UNKNOWN),
    ],
)
def test_an_error_in_a_report_stands_for_a_reason(error, reason):
    assert reason_of(error) is reason
