"""What a replay remembers of what it sent."""

import asyncio

import pytest

from eyewall.application.delivery.replay import MAX_IN_FLIGHT, ReplayWindow
from eyewall.domain.identity import ConnId, UserId
from tests.application.fakes import finished, settle

PHONE, LAPTOP = ConnId("phone"), ConnId("laptop")


@pytest.fixture
def window():
    return ReplayWindow(UserId("ada"))


def test_each_connection_is_sent_a_message_once(window):
    assert window.misses("1", [PHONE])
    window.sent("1", [PHONE])

    assert not window.misses("1", [PHONE])
    assert not window.may_send("1", PHONE)
    assert window.misses("1", [PHONE, LAPTOP])
    assert window.may_send("1", LAPTOP)


def test_what_was_answered_is_sent_to_nobody_more(window):
    window.sent("1", [PHONE])

    assert window.settle("1") is True
    assert window.settle("1") is False, "only the first answer has it removed"
    assert not window.misses("1", [LAPTOP])
    assert not window.may_send("1", LAPTOP)


def test_a_message_takes_one_place_however_many_get_it(window):
    for number in range(MAX_IN_FLIGHT):
        assert window.has_space(str(number))
        window.sent(str(number), [PHONE, LAPTOP])

    assert not window.has_space("more")
    assert window.has_space("0"), "it has one already"
    window.unanswered("0", PHONE, queue_full=False)
    assert not window.has_space("more"), "the other one may still answer"
    window.unanswered("0", LAPTOP, queue_full=False)
    assert window.has_space("more")


def test_the_first_answer_frees_the_window(window):
    for number in range(MAX_IN_FLIGHT):
        window.sent(str(number), [PHONE, LAPTOP])
    window.settle("3")

    assert window.has_space("more")
    window.unanswered("3", LAPTOP, queue_full=False)


def test_what_did_not_fit_is_not_overtaken(window):
    window.sent("1", [PHONE, LAPTOP])
    window.unanswered("1", PHONE, queue_full=True)

    assert not window.may_send("2", PHONE)
    assert window.may_send("2", LAPTOP)


async def test_it_is_quiet_when_all_is_answered_and_removed(window):
    window.must_restart = False
    window.sent("1", [PHONE])
    window.sent("2", [PHONE])
    quiet = asyncio.ensure_future(window.wait_settled())
    window.settle("1")
    window.removal_done()
    await settle()
    assert not quiet.done()
    window.settle("2")
    await settle()
    assert not quiet.done(), "it is still in the store"
    window.removal_done()

    await finished(quiet)


async def test_somebody_new_ends_the_quiet(window):
    window.must_restart = False
    window.written.set()
    window.sent("1", [PHONE])
    quiet = asyncio.ensure_future(window.wait_settled())
    await settle()
    window.restart()

    await finished(quiet)
    assert not window.written.is_set()
