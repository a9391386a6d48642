import asyncio

import pytest

from eyewall.application.lifecycle.drain import RECONNECT_WINDOW, run_steps
from eyewall.domain.connection import DisconnectReason
from eyewall.domain.report import FailureReason
from tests.application.fakes import finished, settle


@pytest.fixture
def log():
    return []


def step(log, name, seconds=None, clock=None):
    async def run():
        log.append(f"{name} begins")
        if seconds is not None:
            passed = asyncio.Event()
            clock.call_later(seconds, passed.set)
            await passed.wait()
        log.append(f"{name} ends")

    return name, run


# --- the steps


async def test_the_steps_run_one_after_the_other(clock, log):
    steps = [step(log, "a", 1, clock), step(log, "b"), step(log, "c", 1, clock)]

    task = asyncio.ensure_future(run_steps(steps, clock=clock, until=clock.now() + 10))
    await clock.advance(5)

    assert await finished(task) == []
    assert log == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


async def test_what_does_not_finish_in_time_is_ended_and_named(clock, log):
    """There is one deadline for all; who comes after it has one turn all the same."""
    steps = [step(log, "slow", 100, clock), step(log, "late", 1, clock), step(log, "quick")]

    task = asyncio.ensure_future(run_steps(steps, clock=clock, until=clock.now() + 10))
    await clock.advance(10)

    assert await asyncio.wait_for(task, 5) == ["slow", "late"]
    assert log == ["slow begins", "late begins", "quick begins", "quick ends"]


async def test_a_step_that_fails_is_named_and_the_next_runs(clock, log):
    async def fail():
        raise RuntimeError("bus")

    steps = [("broken", fail), step(log, "next")]

    assert await finished(run_steps(steps, clock=clock, until=clock.now() + 10)) == [
        "broken: RuntimeError('bus')"
    ]
    assert log == ["next begins", "next ends"]


async def test_no_timer_is_left(clock, log):
    await finished(run_steps([step(log, "a")], clock=clock, until=clock.now() + 10))

    assert not clock.timers


async def test_who_ends_the_drain_ends_the_step_that_runs(clock, log):
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    task = asyncio.ensure_future(run_steps([("work", work)], clock=clock, until=clock.now() + 10))
    await settle()
    task.cancel()
    await settle()

    assert task.cancelled()
    assert ended == [1]
    assert not clock.timers


# --- the shutdown notice


async def test_each_client_is_told_its_own_time_to_come_back(node):
    clients = [await node.connect() for _ in range(20)]

    await node.parts.shutdown_notice.announce()

    notices = [client.heard()[0] for client in clients]
    assert {(n["topic"], n["event"]) for n in notices} == {("system:draining", "draining")}
    times = {n["data"]["reconnect_in"] for n in notices}
    assert len(times) > 10
    assert all(0 <= t <= RECONNECT_WINDOW for t in times)


async def test_a_notice_that_a_full_queue_drops_is_reported(node):
    told = []
    node.hub.on_queue_full(lambda failure: told.append((failure.message.topic, failure.reason)))
    ada = await node.connect("ada")
    ada.link.full = True

    await node.parts.shutdown_notice.announce()
    await settle()

    assert told == [("system:draining", FailureReason.QUEUE_FULL)]


async def test_close_ends_every_connection_with_1012(node):
    ends = []
    node.hub.on_disconnect(lambda conn, reason: ends.append(reason))
    ada, bob = await node.connect("ada"), await node.connect("bob")

    await node.parts.shutdown_notice.close()
    await settle()

    assert (ada.closed, bob.closed) == (DisconnectReason.SERVER_SHUTDOWN,) * 2
    assert ends == [DisconnectReason.SERVER_SHUTDOWN] * 2
    assert node.hub.connection_ids() == []
