"""Sent again until somebody has it, or the tries are used up."""

import asyncio

import pytest

from eyewall.domain.envelope import Message
from eyewall.domain.errors import (
    AckTimeout,
    ConnectionClosed,
    Misuse,
    Nacked,
    QueueFull,
    UserOffline,
)
from eyewall.domain.outbox import QueueConfig
from eyewall.domain.report import FailureReason, SendOptions
from eyewall.domain.retry import RetryPolicy
from tests.application.fakes import settle

NEWS = Message("news", data=1)
ACKED = SendOptions(require_ack=True, ack_timeout=3.0)
EVEN = RetryPolicy(base_delay=1.0, jitter=0)


async def through(node, call, seconds=60.0):
    """Let the time pass that the call takes."""
    task = asyncio.ensure_future(call)
    await settle()
    for _ in range(int(seconds)):
        if task.done():
            break
        await node.advance(1.0)
    return await task


async def test_what_arrives_at_once_is_not_tried_again(one):
    ada = await one.connect("ada")

    result = await one.hub.send_to_user_with_retry("ada", NEWS)

    assert result.success
    assert (len(result.attempts), result.total_retries, result.final_error) == (1, 0, None)
    assert len(ada.heard()) == 1


async def test_a_full_queue_is_tried_again_until_there_is_room(one):
    ada = await one.connect("ada", queue=QueueConfig(size=1))
    ada.link.stalled = True
    await one.hub.send_to_user("ada", NEWS)

    sending = asyncio.ensure_future(one.hub.send_to_user_with_retry("ada", NEWS, EVEN))
    await settle()
    await one.advance(1.0)
    ada.link.read()
    await one.advance(2.0)
    result = await sending

    assert result.success
    assert [attempt.success for attempt in result.attempts] == [False, False, True]
    assert isinstance(result.attempts[0].error, QueueFull)
    assert result.total_retries == 2
    assert result.total_time == 3.0


async def test_when_the_tries_are_used_up_the_last_error_stands(one):
    ada = await one.connect("ada")

    result = await through(one, one.hub.send_to_user_with_retry("ada", NEWS, EVEN, ACKED))

    assert not result.success
    assert [attempt.number for attempt in result.attempts] == [1, 2, 3, 4]
    assert isinstance(result.final_error, AckTimeout)
    assert [attempt.duration for attempt in result.attempts] == [3.0] * 4
    assert len({message["id"] for message in ada.heard()}) == 1, "all tries carry one id"


async def test_an_ack_is_asked_for_only_when_the_options_do(one):
    ada = await one.connect("ada")

    await one.hub.send_to_user_with_retry("ada", NEWS)

    assert "ack" not in ada.heard()[0]


async def test_who_has_it_does_not_get_it_again(one):
    """One silent device costs the others nothing."""
    phone, laptop = await one.connect("ada"), await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_user_with_retry("ada", NEWS, EVEN, ACKED))
    await settle()
    phone.ack(phone.heard()[0])
    await one.advance(4.0)

    [again] = laptop.heard()[1:]
    laptop.ack(again)
    await settle()
    result = await sending

    assert phone.heard() == []
    assert result.success
    assert [attempt.success for attempt in result.attempts] == [True, True]


@pytest.mark.parametrize("user", ["ada", "nobody"])
async def test_what_no_retry_mends_is_not_tried_again(one, user):
    ada = await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_user_with_retry(user, NEWS, EVEN, ACKED))
    await settle()
    for message in ada.heard():
        ada.nack(message)

    result = await through(one, sending)

    assert not result.success
    assert len(result.attempts) == 1
    assert isinstance(result.final_error, Nacked if user == "ada" else UserOffline)


async def test_the_policy_says_what_is_tried_again(one):
    policy = RetryPolicy(base_delay=1.0, retryable={FailureReason.USER_OFFLINE})
    sending = asyncio.ensure_future(one.hub.send_to_user_with_retry("ada", NEWS, policy))
    await settle()
    ada = await one.connect("ada")

    result = await through(one, sending)

    assert result.success
    assert len(result.attempts) == 2
    assert len(ada.heard()) == 1


async def test_the_time_to_live_counts_from_the_call(one):
    await one.connect("ada")
    options = SendOptions(require_ack=True, ack_timeout=3.0, ttl=5.0)

    result = await through(one, one.hub.send_to_user_with_retry("ada", NEWS, EVEN, options))

    assert not result.success
    assert [attempt.duration for attempt in result.attempts] == [3.0, 1.0]


async def test_every_try_that_failed_is_told(one):
    told = []
    one.hub.on_timeout(lambda failure: told.append((failure.reason, failure.recipient)))
    await one.connect("ada")

    await through(one, one.hub.send_to_user_with_retry("ada", NEWS, EVEN, ACKED))

    assert told == [(FailureReason.ACK_TIMEOUT, "ada")] * 4


async def test_a_message_that_can_be_nobodys_is_raised(one):
    await one.connect("ada")

    with pytest.raises(Misuse):
        await one.hub.send_to_user_with_retry("ada", Message("news", data=object()))


async def test_a_caller_that_gives_up_leaves_no_timer(one):
    sending = asyncio.ensure_future(
        one.hub.send_to_user_with_retry(
            "ada", NEWS, RetryPolicy(retryable={FailureReason.USER_OFFLINE}, base_delay=99)
        )
    )
    await settle()
    before = len(one.clock.timers)

    sending.cancel()
    await settle()

    assert len(one.clock.timers) == before - 1


async def test_who_said_no_is_not_asked_again(one):
    """Another device's silence is no reason to."""
    phone, laptop = await one.connect("ada"), await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_user_with_retry("ada", NEWS, EVEN, ACKED))
    await settle()
    phone.nack(phone.heard()[0])
    await one.advance(4.0)

    laptop.ack(laptop.heard()[-1])
    await settle()
    result = await sending

    assert phone.heard() == []
    assert result.success
    assert len(result.attempts) == 2


async def test_when_who_was_to_be_asked_again_has_gone_the_result_has_an_error(one):
    """Of those that are left each has said no: a failure is never one without a reason."""
    phone, laptop = await one.connect("ada"), await one.connect("ada")
    sending = asyncio.ensure_future(one.hub.send_to_user_with_retry("ada", NEWS, EVEN, ACKED))
    await settle()
    phone.nack(phone.heard()[0])
    await one.advance(3.0)
    await one.hub.disconnect_conn(laptop.id)

    result = await through(one, sending)

    assert not result.success
    assert [attempt.success for attempt in result.attempts] == [False, False]
    assert isinstance(result.final_error, ConnectionClosed)
    assert result.attempts[-1].error is result.final_error
