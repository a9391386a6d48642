"""How long a client waits before it comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall.client.backoff import FIRST_DELAY, MAX_DELAY, STABLE_AFTER, Backoff

LUCK = st.floats(0, 1)


def test_the_waits_double_up_to_the_bound():
    backoff = Backoff()

    assert [backoff.next(1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


@given(st.lists(LUCK, max_size=200))
def test_no_wait_is_longer_than_the_bound_or_shorter_than_nothing(lucks):
    backoff = Backoff()

    assert all(0 <= backoff.next(luck) <= MAX_DELAY for luck in lucks)


@given(LUCK)
def test_the_jitter_is_full(luck):
    assert Backoff().next(luck) == pytest.approx(FIRST_DELAY * luck)


def test_a_connection_that_held_begins_anew():
    backoff = Backoff()
    for _ in range(5):
        backoff.next(1.0)
    backoff.record_uptime(STABLE_AFTER)

    assert backoff.next(1.0) == FIRST_DELAY


def test_a_connection_that_is_dropped_at_once_does_not():
    backoff = Backoff()
    backoff.next(1.0)
    backoff.record_uptime(STABLE_AFTER - 0.1)

    assert backoff.next(1.0) == 2 * FIRST_DELAY
