"""Durations and counts."""

import math
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain.duration import count, seconds

relaxed = settings(deadline=None)


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        (0, 0.0),
        (3, 3.0),
        (0.25, 0.25),
        (timedelta(minutes=1, milliseconds=500), 60.5),
        (timedelta(0), 0.0),
    ],
)
def test_seconds_are_numbers_or_timedeltas(given_value, expected):
    found = seconds(given_value, "wait")

    assert found == expected
    assert type(found) is float


@pytest.mark.parametrize(
    "wrong", [True, False, "5", None, Decimal(1), [1], math.nan, math.inf, -math.inf]
)
def test_what_is_no_duration_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=r"^wait must be"):
        seconds(wrong, "wait")


@pytest.mark.parametrize("wrong", [-0.001, -1, timedelta(seconds=-1)])
def test_a_duration_is_never_negative(wrong):
    with pytest.raises(ValueError, match="wait must be at least 0 seconds"):
        seconds(wrong, "wait")


@pytest.mark.parametrize("wrong", [0, 0.0, -1.0, timedelta(0)])
def test_some_durations_must_be_more_than_nothing(wrong):
    with pytest.raises(ValueError, match="wait must be more than 0 seconds"):
        seconds(wrong, "wait", positive=True)


def test_the_least_positive_duration_passes():
    assert seconds(5e-324, "wait", positive=True) == 5e-324


@relaxed
@given(st.timedeltas(min_value=timedelta(0)))
def test_a_timedelta_means_its_seconds(value):
    assert seconds(value, "wait") == value.total_seconds()


@relaxed
@given(st.one_of(st.integers(-(10**6), 10**6), st.floats(), st.just("5"), st.none(), st.booleans()))
def test_a_duration_is_finite_and_not_negative_or_a_value_error(value):
    try:
        found = seconds(value, "wait")
    except ValueError:
        return

    assert 0.0 <= found < math.inf


def test_a_count_is_a_whole_number_of_at_least_one():
    assert count(1, "size") == 1
    assert count(10**9, "size") == 10**9


@pytest.mark.parametrize("wrong", [0, -1, 1.0, 2.5, "3", None, True, math.nan])
def test_what_is_no_count_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=r"^size must be a whole number of at least 1"):
        count(wrong, "size")


def test_a_count_may_begin_elsewhere():
    assert count(0, "retries", least=0) == 0

    with pytest.raises(ValueError, match="at least 0"):
        count(-1, "retries", least=0)
    with pytest.raises(ValueError, match="at least 5"):
        count(4, "retries", least=5)


def test_false_is_no_count_even_where_zero_is_one():
    with pytest.raises(ValueError, match="retries"):
        count(False, "retries", least=0)
