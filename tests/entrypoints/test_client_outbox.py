"""What waits to be written."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyewall import Overloaded
from eyewall.client.outbox import Outbox, Outgoing
from tests.entrypoints.wire import soon


def item(text: str = "x") -> Outgoing:
    return Outgoing(text.encode())


def drained(box: Outbox) -> list[str]:
    found = []
    while (got := box.pop()) is not None:
        found.append(got.frame.decode())
    return found


@given(st.lists(st.integers(1, 60), max_size=40))
def test_it_is_bounded_in_number_and_in_bytes_and_keeps_the_order(sizes):
    box = Outbox(size=5, max_bytes=100)
    waiting: list[str] = []
    for number, size in enumerate(sizes):
        text = str(number).ljust(size, ".")
        fits = not waiting or (len(waiting) < 5 and sum(map(len, waiting)) + len(text) <= 100)
        assert box.has_space_for(item(text)) is fits
        if fits:
            box.put(item(text))
            waiting.append(text)
        else:
            with pytest.raises(Overloaded):
                box.put(item(text))

    assert drained(box) == waiting
    assert box.has_space_for(item("y" * 100))


def test_what_was_not_answered_goes_before_the_rest():
    box = Outbox()
    for text in "abcd":
        box.put(item(text))
    first, second = box.pop(), box.pop()
    assert first is not None
    assert second is not None
    assert first.written
    box.put_back([first, second])

    assert not first.written
    assert drained(box) == ["a", "b", "c", "d"]


def test_what_was_not_answered_needs_no_place():
    box = Outbox(size=1)
    box.put(item("a"))
    first = box.pop()
    assert first is not None
    box.put(item("b"))
    box.put_back([first])

    assert drained(box) == ["a", "b"]


def test_what_nobody_waits_for_is_not_written():
    box = Outbox()
    box.put(item("a"))
    given_up = item("b")
    box.put(given_up)
    given_up.dropped = True
    box.put(item("c"))

    assert drained(box) == ["a", "c"]


def test_who_writes_is_woken_for_as_long_as_he_wants():
    box = Outbox()
    woken = []
    box.set_waker(lambda: woken.append(1))
    box.put(item())
    box.set_waker(None)
    box.put(item())

    assert woken == [1]


@pytest.mark.parametrize("free", [Outbox.pop, Outbox.clear, Outbox.notify_waiters])
async def test_who_waits_for_place_looks_again(free):
    box = Outbox(size=1)
    box.put(item())
    waiting = [asyncio.ensure_future(box.wait_for_change()) for _ in range(2)]
    await asyncio.sleep(0)
    free(box)

    await soon(asyncio.gather(*waiting))


def test_what_is_cleared_is_gone():
    box = Outbox(size=1)
    box.put(item("a"))
    box.clear()

    assert len(box) == 0
    box.put(item("b"))
    assert drained(box) == ["b"]
