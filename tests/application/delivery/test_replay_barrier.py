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

    def __init__(self, lines):
        self.lines = lines
        self.out = []

    def send(self, what, user=ADA):
        return asyncio.ensure_future(self._send(what, user))

    async def _send(self, what, user):
        if await self.lines.wait(user):
            self.out.append(what)


@pytest.fixture
def lines():
    return ReplayBarrier()


async def test_nobody_waits_where_there_is_no_line(lines):
    lines.shut(BOB)

    assert ADA not in lines
    assert await finished(lines.wait(ADA))


async def test_who_waits_goes_on_in_order(lines):
    writer = Writer(lines)
    lines.shut(ADA)
    for number in range(5):
        writer.send(number)
    await settle()
    assert writer.out == []

    lines.open(ADA)
    await settle()

    assert writer.out == [0, 1, 2, 3, 4]
    assert ADA not in lines, "a line that nobody needs is gone"


async def test_nobody_who_comes_later_goes_before(lines):
    """The line has been opened, and those who waited have not had their turn yet."""
    writer = Writer(lines)
    lines.shut(ADA)
    for number in range(3):
        writer.send(number)
    await settle()

    lines.open(ADA)
    writer.send("later")
    await settle()

    assert writer.out == [0, 1, 2, "later"]


async def test_a_line_that_is_shut_again_holds_who_has_not_gone(lines):
    writer = Writer(lines)
    lines.shut(ADA)
    for number in range(3):
        writer.send(number)
    await settle()
    lines.open(ADA)
    lines.shut(ADA)
    await settle()
    assert writer.out == [0], "who had the turn already"

    lines.open(ADA)
    await settle()

    assert writer.out == [0, 1, 2]


async def test_one_who_gives_up_holds_up_nobody(lines):
    writer = Writer(lines)
    lines.shut(ADA)
    tasks = [writer.send(number) for number in range(4)]
    await settle()
    tasks[1].cancel()
    lines.open(ADA)
    tasks[0].cancel()  # whose turn it is
    await settle()

    assert writer.out == [2, 3]
    assert ADA not in lines


async def test_a_line_has_a_length(lines, monkeypatch):
    monkeypatch.setattr(module, "LENGTH", 2)
    lines.shut(ADA)
    lines.shut(BOB)
    waiting = [asyncio.ensure_future(lines.wait(ADA)) for _ in range(2)]
    await settle()

    assert await finished(lines.wait(ADA)) is False
    lines.open(ADA)
    assert await asyncio.gather(*waiting) == [True, True]


def test_opening_what_is_not_there_is_nothing(lines):
    lines.open(ADA)

    assert ADA not in lines
