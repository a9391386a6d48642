"""Rate limits in memory: who waits how long, and what is remembered."""

from __future__ import annotations

import gc

import pytest

from eyewall.adapters.limits.memory import TokenBucketLimiter
from eyewall.application.ports.clock import ruled_by
from eyewall.testing import FakeClock


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_passes_and_then_the_rate_counts(clock):
    limiter = TokenBucketLimiter(rate=2.0, burst=3, clock=clock)

    assert [limiter.allow("ada") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_whoever_waits_as_told_goes_on(clock):
    limiter = TokenBucketLimiter(rate=3.0, burst=1, clock=clock)
    limiter.allow("ada")
    clock.now += limiter.allow("ada")

    assert limiter.allow("ada") == 0.0


def test_one_key_does_not_use_up_another(clock):
    limiter = TokenBucketLimiter(rate=1.0, burst=1, clock=clock)
    limiter.allow("ada")

    assert limiter.allow("bob") == 0.0


def test_idle_keys_are_forgotten(clock):
    """A thousand users who came by once do not stay in memory until the next restart."""
    limiter = TokenBucketLimiter(rate=1.0, burst=2, clock=clock)
    for n in range(1000):
        limiter.allow(f"user {n}")
    assert len(limiter) == 1000

    clock.now += 2.0
    for _ in range(1000):
        limiter.allow("ada")

    assert len(limiter) == 1


def test_whoever_is_limited_is_not_forgotten(clock):
    limiter = TokenBucketLimiter(rate=1.0, burst=1, clock=clock)
    limiter.allow("ada")
    for n in range(100):
        limiter.allow(f"user {n}")

    assert limiter.allow("ada") == 1.0


def test_the_number_of_keys_is_bounded(clock):
    """A flood of names costs no more memory than ``max_keys`` of them."""
    limiter = TokenBucketLimiter(rate=1.0, burst=1, clock=clock, max_keys=10)
    for n in range(100):
        limiter.allow(f"user {n}")

    assert len(limiter) == 10


def test_at_the_bound_the_key_that_was_longest_idle_gives_way(clock):
    limiter = TokenBucketLimiter(rate=1.0, burst=1, clock=clock, max_keys=2)
    for key in ("ada", "bob", "ada", "eve"):
        limiter.allow(key)

    assert limiter.allow("ada") == 1.0
    assert limiter.allow("bob") == 0.0  # forgotten, and so new


def test_a_bound_of_one_still_limits(clock):
    limiter = TokenBucketLimiter(rate=1.0, burst=1, clock=clock, max_keys=1)
    limiter.allow("ada")

    assert limiter.allow("ada") == 1.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rate": 0, "burst": 1}, "rate"),
        ({"rate": -1, "burst": 1}, "rate"),
        ({"rate": float("nan"), "burst": 1}, "rate"),
        ({"rate": 1, "burst": 0}, "burst"),
        ({"rate": 1, "burst": 1, "max_keys": 0}, "max_keys"),
    ],
)
def test_a_wrong_value_is_told_where_it_is_built(options, told):
    with pytest.raises(ValueError, match=told):
        TokenBucketLimiter(**options)


def test_the_machine_s_clock_is_the_default():
    limiter = TokenBucketLimiter(rate=0.001, burst=1)

    assert limiter.allow("ada") == 0.0
    assert 900 < limiter.allow("ada") <= 1000


def test_what_was_counted_by_a_clock_is_forgotten_with_it():
    limiter = TokenBucketLimiter(rate=1.0, burst=1)
    with ruled_by(FakeClock()):
        limiter.allow("ada")
        assert len(limiter) == 1
    gc.collect()

    assert len(limiter._apart) == 0
