"""Newer messages wait in the order in which they came."""

import asyncio

import pytest

from eyewall.application.delivery import replay as module
from eyewall.application.delivery.replay import ReplayBarrier
from eyewall.domain.identity import UserId
from tests.application.fakes import finished, settle

ADA, BOB = UserId("ada"), UserId("bob")


class Writer:
    """Sends that wait in a line, and the order in which they went out."""

    def __init__(self, barrier):
        self.barrier = barrier
        self.out = []

    def send(self, what, user=ADA):
        return asyncio.ensure_future(self._send(what, user))

    async def _send(self, what, user):
        if await self.barrier.wait(user):
            self.out.append(what)


@pytest.fixture
def barrier():
    return ReplayBarrier()


async def test_nobody_waits_where_there_is_no_line(barrier):
    barrier.close(BOB)

    assert ADA not in barrier
    assert await finished(barrier.wait(ADA))


async def test_who_waits_goes_on_in_order(barrier):
    writer = Writer(barrier)
    barrier.close(ADA)
    for number in range(5):
        writer.send(number)
    await settle()
    assert writer.out == []

    barrier.open(ADA)
    await settle()

    assert writer.out == [0, 1, 2, 3, 4]
    assert ADA not in barrier, "an empty queue is gone"


async def test_nobody_who_comes_later_goes_before(barrier):
    """The barrier is open, and the waiting sends have not been released yet."""
    writer = Writer(barrier)
    barrier.close(ADA)
    for number in range(3):
        writer.send(number)
    await settle()

    barrier.open(ADA)
    writer.send("later")
    await settle()

    assert writer.out == [0, 1, 2, "later"]


async def test_a_line_that_is_shut_again_holds_who_has_not_gone(barrier):
    writer = Writer(barrier)
    barrier.close(ADA)
    for number in range(3):
        writer.send(number)
    await settle()
    barrier.open(ADA)
    barrier.close(ADA)
    await settle()
    assert writer.out == [0], "who had the turn already"

    barrier.open(ADA)
    await settle()

    assert writer.out == [0, 1, 2]


async def test_one_who_gives_up_holds_up_nobody(barrier):
    writer = Writer(barrier)
    barrier.close(ADA)
    tasks = [writer.send(number) for number in range(4)]
    await settle()
    tasks[1].cancel()
    barrier.open(ADA)
    tasks[0].cancel()  # the next one to be released
    await settle()

    assert writer.out == [2, 3]
    assert ADA not in barrier


async def test_a_line_has_a_length(barrier, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    barrier.close(ADA)
    barrier.close(BOB)
    waiting = [asyncio.ensure_future(barrier.wait(ADA)) for _ in range(2)]
    await settle()

    assert await finished(barrier.wait(ADA)) is False
    barrier.open(ADA)
    assert await asyncio.gather(*waiting) == [True, True]


def test_opening_what_is_not_there_is_nothing(barrier):
    barrier.open(ADA)

    assert ADA not in barrier
