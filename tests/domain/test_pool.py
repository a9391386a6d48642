"""What all queues hold together: each thing counts once, for as long as anybody holds it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall.domain.pool import KEPT, Pool


def test_what_many_hold_counts_once_and_until_the_last_lets_go():
    pool = Pool(100)
    thing = object()
    for _ in range(3):
        pool.hold(thing, 40)
    assert pool.bytes == 40

    pool.release(thing, 40)
    pool.release(thing, 40)
    assert pool.bytes == 40
    pool.release(thing, 40)
    assert pool.bytes == 0


def test_equal_things_are_not_the_same_thing():
    pool = Pool(100)
    one, other = bytearray(b"abc"), bytearray(b"abc")
    pool.hold(one, 3)
    pool.hold(other, 3)

    assert pool.bytes == 6


def test_it_is_full_beyond_its_bound_and_roomy_again_a_good_part_below():
    pool = Pool(100)
    pool.hold("a", 100)
    assert not pool.full
    assert not pool.roomy

    pool.hold("b", 1)
    assert pool.full
    pool.release("b", 1)
    pool.hold("c", 0)
    pool.release("a", 100)
    pool.hold("d", int(100 * KEPT))
    assert pool.roomy
    pool.hold("e", 1)
    assert not pool.roomy


def test_nobody_lets_go_of_what_they_don_t_hold():
    with pytest.raises(KeyError):
        Pool(100).release(object(), 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_it_always_holds_the_sum_of_what_somebody_holds(steps):
    pool = Pool(1000)
    things = [(object(), size) for size in (1, 2, 4, 8, 16, 32)]
    holders = [0] * len(things)
    for which, hold in steps:
        thing, size = things[which]
        if hold:
            pool.hold(thing, size)
            holders[which] += 1
        elif holders[which]:
            pool.release(thing, size)
            holders[which] -= 1

        assert pool.bytes == sum(s for (_, s), n in zip(things, holders, strict=True) if n)
