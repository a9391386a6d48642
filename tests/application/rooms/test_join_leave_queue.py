"""Hooks of joins and leaves: in order, in pairs, and never waiting for each other."""

import asyncio

import pytest

from eyewall.application.rooms.announcements import JoinLeaveQueue
from tests.application.fakes import RecordingLogger, finished, settle


class Conn:
    def __init__(self, conn_id):
        self.id = conn_id


@pytest.fixture
def logger():
    return RecordingLogger()


@pytest.fixture
async def notices(logger):
    notices = JoinLeaveQueue(logger)
    yield notices
    await notices.close()


@pytest.fixture
def told():
    return []


def says(told, what, gate=None):
    async def notice():
        told.append(what)
        if gate is not None:
            await gate.wait()
            told.append(f"{what} done")

    return notice


async def test_what_is_noted_is_told_in_order(notices, told):
    conn = Conn("c1")
    for number in range(3):
        notices.add(conn, says(told, number))
    assert told == []

    await notices.run(conn)

    assert told == [0, 1, 2]
    assert len(notices) == 0


async def test_telling_what_nobody_noted_is_nothing(notices):
    await notices.run(Conn("c1"))
    await notices.settled(Conn("c1"))


async def test_who_finds_it_being_told_leaves_its_own_to_that(notices, told):
    """The second returns at once: the first's hooks may be waiting for it."""
    conn, gate = Conn("c1"), asyncio.Event()
    notices.add(conn, says(told, "join", gate))
    first = asyncio.create_task(notices.run(conn))
    await settle()

    notices.add(conn, says(told, "leave"))
    await finished(notices.run(conn))
    assert told == ["join"]

    gate.set()
    await first
    assert told == ["join", "join done", "leave"]


async def test_connections_do_not_wait_for_each_other(notices, told):
    gate = asyncio.Event()
    notices.add(Conn("c1"), says(told, "slow", gate))
    slow = asyncio.create_task(notices.run(Conn("c1")))
    await settle()
    notices.add(Conn("c2"), says(told, "quick"))

    await finished(notices.run(Conn("c2")))

    assert told == ["slow", "quick"]
    gate.set()
    await slow


async def test_settled_waits_for_whoever_tells(notices, told):
    conn, gate = Conn("c1"), asyncio.Event()
    notices.add(conn, says(told, "join", gate))
    first = asyncio.create_task(notices.run(conn))
    await settle()
    notices.add(conn, says(told, "leave"))
    waiting = asyncio.create_task(notices.settled(conn))
    await settle()
    assert not waiting.done()

    gate.set()
    await waiting

    assert told == ["join", "join done", "leave"]
    await first


async def test_a_teller_that_is_cancelled_leaves_nothing_untold(notices, told):
    conn, gate = Conn("c1"), asyncio.Event()
    notices.add(conn, says(told, "join", gate))
    notices.add(conn, says(told, "leave"))
    first = asyncio.create_task(notices.run(conn))
    await settle()

    first.cancel()
    await settle()

    assert first.cancelled()
    assert told == ["join", "leave"]
    assert len(notices) == 0


async def test_one_that_raises_keeps_back_nobody(notices, told, logger):
    async def fails():
        raise RuntimeError("secret")

    conn = Conn("c1")
    notices.add(conn, fails)
    notices.add(conn, says(told, "next"))

    await notices.run(conn)

    assert told == ["next"]
    assert logger.of("error") == ["notice_failed"]


async def test_close_ends_what_is_under_way(notices, told):
    conn = Conn("c1")
    notices.add(conn, says(told, "join", asyncio.Event()))
    first = asyncio.create_task(notices.run(conn))
    await settle()
    first.cancel()
    notices.add(conn, says(told, "leave", asyncio.Event()))
    await settle()

    await finished(notices.close())

    assert told == ["join", "leave"]
    assert len(notices) == 0
