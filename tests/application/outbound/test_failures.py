import asyncio

import pytest

from eyewall.application.connections.stats import Stats
from eyewall.application.outbound.failures import BACKLOG, KIND_OF, SLICE, Failures, Kind
from eyewall.domain.envelope import Message
from eyewall.domain.report import Failure, FailureReason, Incident
from tests.application.fakes import FakeClock, RecordingLogger, settle


def failure(reason=FailureReason.QUEUE_FULL, recipient="ada"):
    return Failure(Message("t"), recipient, reason, None)


@pytest.fixture
def logger():
    return RecordingLogger()


@pytest.fixture
def failures(logger):
    return Failures(logger, Stats(FakeClock(), None, logger))


@pytest.fixture
def told(failures):
    """Which kinds of handlers were told of what."""
    told = []
    for kind in Kind:
        failures.add(kind, lambda f, kind=kind: told.append((kind, f.reason)))
    return told


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (FailureReason.QUEUE_FULL, Kind.QUEUE_FULL),
        (FailureReason.BROADCAST_FULL, Kind.QUEUE_FULL),
        (FailureReason.PENDING_FULL, Kind.QUEUE_FULL),
        (FailureReason.USER_OFFLINE, Kind.USER_OFFLINE),
        (FailureReason.CONN_ERROR, Kind.CONNECTION_ERROR),
        (FailureReason.CONN_CLOSED, Kind.CONNECTION_ERROR),
        (FailureReason.CHANNEL_CLOSED, Kind.CONNECTION_ERROR),
        (FailureReason.TIMEOUT, Kind.TIMEOUT),
        (FailureReason.SEND_TIMEOUT, Kind.TIMEOUT),
        (FailureReason.ACK_TIMEOUT, Kind.TIMEOUT),
    ],
)
async def test_the_specific_handler_runs_first_then_the_general_one(failures, told, reason, kind):
    await failures.tell(failure(reason))

    assert told == [(kind, reason), (Kind.SEND_FAILURE, reason)]


@pytest.mark.parametrize("reason", sorted(set(FailureReason) - set(KIND_OF)))
async def test_the_other_reasons_reach_only_the_general_handler(failures, told, reason):
    await failures.tell(failure(reason))

    assert told == [(Kind.SEND_FAILURE, reason)]


async def test_a_handler_may_wait_and_who_tells_waits_for_it(failures):
    told = []

    async def handler(found):
        await asyncio.sleep(0)
        told.append(found.recipient)

    failures.add(Kind.SEND_FAILURE, handler)
    await failures.tell(failure())

    assert told == ["ada"]


async def test_a_handler_that_raises_is_logged_and_changes_nothing(failures, logger):
    told = []

    def broken(found):
        raise RuntimeError("no")

    async def cancelled(found):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    failures.add(Kind.QUEUE_FULL, broken)
    failures.add(Kind.QUEUE_FULL, cancelled)
    failures.add(Kind.SEND_FAILURE, told.append)
    await failures.tell(failure())

    assert len(told) == 1
    assert logger.of("error") == ["failure_handler_failed"] * 2


async def test_a_handler_that_is_taken_back_hears_nothing_more(failures):
    told = []
    failures.add(Kind.QUEUE_FULL, told.append)
    failures.add(Kind.SEND_FAILURE, told.append)

    assert failures.remove(told.append)
    assert not failures.remove(told.append)
    await failures.tell(failure())
    assert told == []


# --- fan-outs


async def test_what_is_told_soon_is_told_in_order_and_not_at_once(failures):
    told = []
    failures.add(Kind.SEND_FAILURE, lambda f: told.append(f.recipient))

    failures.tell_soon(failure(recipient="a"))
    failures.tell_soon(failure(recipient="b"))
    assert told == []

    await failures.settled()
    assert told == ["a", "b"]


async def test_plain_handlers_let_the_loop_answer_others_in_between(failures):
    """A fan-out to ten thousand stalled members must not stop the node while it reports."""
    told = []
    failures.add(Kind.SEND_FAILURE, told.append)
    for _ in range(SLICE * 3):
        failures.tell_soon(failure())

    await asyncio.sleep(0)

    assert len(told) == SLICE
    await failures.settled()
    assert len(told) == SLICE * 3


async def test_what_is_too_much_to_report_is_counted(failures):
    told = []
    failures.add(Kind.SEND_FAILURE, told.append)
    for _ in range(BACKLOG + 3):
        failures.tell_soon(failure())

    await failures.settled()

    assert len(told) == BACKLOG
    assert failures._stats.incidents[Incident.UNREPORTED_FAILURES] == 3


async def test_with_no_handler_nothing_is_kept(failures):
    failures.tell_soon(failure())

    assert not failures._later
    await failures.settled()


async def test_a_failure_while_failures_are_told_is_told_too(failures):
    told = []

    def handler(found):
        told.append(found.recipient)
        if found.recipient == "a":
            failures.tell_soon(failure(recipient="b"))

    failures.add(Kind.SEND_FAILURE, handler)
    failures.tell_soon(failure(recipient="a"))
    await failures.settled()

    assert told == ["a", "b"]


async def test_close_ends_a_handler_that_does_not_end(failures):
    async def stuck(found):
        await asyncio.Event().wait()

    failures.add(Kind.SEND_FAILURE, stuck)
    failures.tell_soon(failure())
    failures.tell_soon(failure())
    await settle()

    await failures.close()

    assert not failures._later
