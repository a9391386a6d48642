"""The token bucket."""

import doctest
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain import rate
from eyewall.domain.rate import TICK, TokenBucket

relaxed = settings(deadline=None)


def test_the_examples_hold():
    assert doctest.testmod(rate).failed == 0


def test_a_new_bucket_is_full():
    bucket = TokenBucket(rate=1.0, burst=3.0)

    assert bucket.full(now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 1.0]


def test_tokens_come_back_at_the_rate():
    bucket = TokenBucket(rate=4.0, burst=1.0)
    bucket.take(10.0)

    assert bucket.take(10.125) == 0.125
    assert bucket.take(10.25) == 0.0


def test_being_sent_away_costs_nothing():
    bucket = TokenBucket(rate=1.0, burst=1.0)
    bucket.take(0.0)

    assert [bucket.take(0.5) for _ in range(3)] == [0.5, 0.5, 0.5]
    assert bucket.take(1.0) == 0.0


def test_a_pause_is_worth_no_more_than_the_burst():
    bucket = TokenBucket(rate=10.0, burst=2.0)
    bucket.take(0.0)

    assert [bucket.take(1000.0) for _ in range(3)] == [0.0, 0.0, 0.1]


def test_several_tokens_may_be_taken_at_once():
    bucket = TokenBucket(rate=2.0, burst=10.0)

    assert bucket.take(0.0, 8.0) == 0.0
    assert bucket.take(0.0, 4.0) == 1.0
    assert bucket.take(0.0, 2.0) == 0.0


def test_taking_no_tokens_is_free():
    bucket = TokenBucket(rate=1.0, burst=1.0)
    bucket.take(0.0)

    assert bucket.take(0.0, 0.0) == 0.0


def test_more_than_the_burst_is_given_when_full_and_owed_after():
    """A message larger than the burst of a limit on bytes must pass some day."""
    bucket = TokenBucket(rate=1.0, burst=2.0)

    assert bucket.take(0.0, 5.0) == 0.0
    assert bucket.take(0.0, 1.0) == 4.0
    assert bucket.take(0.0, 5.0) == 5.0
    assert bucket.take(5.0, 5.0) == 0.0


@pytest.mark.parametrize("tokens", [-1.0, -0.001, math.nan, math.inf])
def test_tokens_cannot_be_given_back_or_taken_without_end(tokens):
    with pytest.raises(ValueError, match="tokens"):
        TokenBucket(rate=1.0, burst=1.0).take(0.0, tokens)


def test_a_clock_that_goes_backwards_gives_nothing():
    bucket = TokenBucket(rate=1.0, burst=2.0)
    bucket.take(100.0, 2.0)

    assert bucket.take(50.0) > 0.0
    assert bucket.take(100.0) == 1.0


def test_a_second_that_was_paid_for_is_not_paid_again():
    """Back and forth over the same second earns one second's tokens."""
    bucket = TokenBucket(rate=1.0, burst=1.0)
    bucket.take(10.0)
    assert bucket.take(11.0) == 0.0

    bucket.take(10.0)
    bucket.take(10.0, 0.0)

    assert bucket.take(11.0) == 1.0


def test_the_wait_is_true_on_a_clock_that_went_backwards():
    bucket = TokenBucket(rate=1.0, burst=1.0)
    bucket.take(100.0)

    assert bucket.take(90.0) == 11.0


def test_a_bucket_is_full_again_after_a_while():
    bucket = TokenBucket(rate=2.0, burst=4.0)
    bucket.take(0.0, 3.0)

    assert not bucket.full(0.0)
    assert not bucket.full(1.25)
    assert bucket.full(1.5)


def test_a_bucket_is_not_full_on_a_clock_that_went_backwards():
    bucket = TokenBucket(rate=1.0, burst=1.0)
    bucket.take(100.0)

    assert not bucket.full(0.0)


@pytest.mark.parametrize("wrong", [0, 0.0, -1.0, math.nan, math.inf, True, "2", None, 10**400])
def test_a_rate_must_be_positive_and_finite(wrong):
    with pytest.raises(ValueError, match="rate must be"):
        TokenBucket(rate=wrong, burst=1.0)


@pytest.mark.parametrize("wrong", [0, 0.99, -1.0, math.nan, math.inf, True, "2", None])
def test_a_burst_must_hold_at_least_one(wrong):
    with pytest.raises(ValueError, match="burst must be"):
        TokenBucket(rate=1.0, burst=wrong)


rates = st.floats(0.01, 10_000.0)
bursts = st.floats(1.0, 1000.0)
starts = st.floats(0.0, 1e7)


@relaxed
@given(rates, bursts, starts, st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_no_more_than_the_burst_and_the_rate_is_given(per_second, burst, start, gaps):
    bucket = TokenBucket(per_second, burst)
    now, given_out = start, 0
    for gap in gaps:
        now += gap
        given_out += bucket.take(now) == 0.0

    allowed = burst + per_second * (now - start + TICK)
    assert given_out <= allowed * (1 + 1e-9)


@relaxed
@given(rates, bursts, starts, st.integers(1, 40), st.floats(0.0, 2000.0))
def test_whoever_waits_as_told_gets_it(per_second, burst, now, calls, tokens):
    bucket = TokenBucket(per_second, burst)
    for _ in range(calls):
        wait = bucket.take(now, tokens)
        if wait:
            now += wait
            assert bucket.take(now, tokens) == 0.0


@relaxed
@given(rates, bursts, st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 5.0)), max_size=40))
def test_any_clock_is_survived_and_earns_only_by_its_furthest(per_second, burst, calls):
    bucket = TokenBucket(per_second, burst)
    given_out = largest = 0.0
    for now, tokens in calls:
        wait = bucket.take(now, tokens)
        assert wait >= 0.0
        if wait == 0.0:
            given_out += tokens
            largest = max(largest, tokens)

    times = [now for now, _ in calls]
    span = max(times) - times[0] if times else 0.0
    allowed = max(burst, largest) + per_second * (max(0.0, span) + TICK)
    assert given_out <= allowed * (1 + 1e-9)


@relaxed
@given(rates, bursts, st.lists(st.floats(0.0, 5.0), max_size=20), st.lists(st.floats(0.0, 5.0)))
def test_a_full_bucket_is_as_good_as_a_new_one(per_second, burst, before, after):
    """So the bucket of an idle key may be forgotten."""
    used, new = TokenBucket(per_second, burst), TokenBucket(per_second, burst)
    for tokens in before:
        used.take(0.0, tokens)
    now = 1e6
    assert used.full(now)

    assert [used.take(now, t) for t in after] == [new.take(now, t) for t in after]
