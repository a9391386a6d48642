"""Requests and their answers, without a connection."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

from eyewall import (
    ConnectionClosed,
    Envelope,
    Forbidden,
    Nacked,
    Overloaded,
    RateLimited,
    Refused,
    Unavailable,
    ValidationError,
)
from eyewall.client import wire
from eyewall.client.requests import Requests


def reply(ref: str | None, event: str = "ack", **data) -> Envelope:
    return wire.decode(json.dumps({"topic": "t", "event": event, "ref": ref, "data": data}))


@pytest.fixture
def requests():
    return Requests()


async def test_a_request_is_answered_under_its_id(requests):
    with requests.open("t", 1) as one, requests.open("t", 2) as two:
        assert requests.settle(reply(two.id, message_id=two.id, status="ok", sum=3))

        assert (await two.answer)["sum"] == 3
        assert not one.answer.done()
    assert len(requests) == 0


async def test_no_two_clients_have_the_same_ids():
    with Requests().open("t", 1) as one, Requests().open("t", 1) as two:
        assert one.id != two.id


async def test_the_short_form_of_an_ack_means_ok(requests):
    with requests.open("t", 1) as one:
        requests.settle(wire.decode(json.dumps({"event": "ack", "ref": one.id})))

        assert await one.answer == {}


async def test_the_message_id_counts_where_it_differs_from_ref(requests):
    with requests.open("t", 1) as one, requests.open("t", 2) as two:
        requests.settle(reply(one.id, message_id=two.id, status="ok"))

        assert two.answer.done()
        assert not one.answer.done()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("forbidden", Forbidden),
        ("unavailable", Unavailable),
        ("overloaded", Overloaded),
        ("internal", Refused),
        ("never_heard_of", Refused),
    ],
)
async def test_a_refusal_is_the_error_of_its_code(requests, code, kind):
    with requests.open("t", 1) as one:
        requests.settle(reply(one.id, status="nack", code=code, error="because"))
        with pytest.raises(kind, match="because") as raised:
            await one.answer

    assert type(raised.value) is kind


async def test_a_refusal_has_the_fields_of_its_error(requests):
    with requests.open("t", 1) as one, requests.open("t", 2) as two:
        fields = {"text": ["too long"]}
        requests.settle(reply(one.id, status="nack", code="validation", fields=fields))
        requests.settle(reply(two.id, status="nack", code="rate_limited", retry_after=2.5))

        with pytest.raises(ValidationError) as wrong:
            await one.answer
        with pytest.raises(RateLimited) as limited:
            await two.answer
    assert wrong.value.fields == fields
    assert limited.value.retry_after == 2.5


@pytest.mark.parametrize("data", [{"status": "nack"}, {"status": "nack", "code": 5, "error": 5}])
async def test_a_nack_without_a_code_is_a_nack(requests, data):
    with requests.open("t", 1) as one:
        requests.settle(reply(one.id, **data))
        with pytest.raises(Nacked):
            await one.answer


async def test_an_error_message_answers_too(requests):
    """Some mistakes are answered with an error, whatever the frame asked for."""
    with requests.open("t", 1) as one:
        requests.settle(reply(one.id, "error", code="forbidden", error="no"))
        with pytest.raises(Forbidden):
            await one.answer


async def test_an_answer_that_python_cannot_hold_is_a_nack(requests):
    with requests.open("t", 1) as one:
        frame = f'{{"topic": "t", "event": "ack", "ref": "{one.id}", "data": 1e999}}'
        requests.settle(wire.decode(frame))
        with pytest.raises(Nacked):
            await one.answer


@pytest.mark.parametrize("ref", [None, "", "another"])
async def test_an_answer_to_nobody_is_not_taken(requests, ref):
    with requests.open("t", 1):
        assert not requests.settle(Envelope("t", "ack", ref=ref))


async def test_a_second_answer_changes_nothing(requests):
    with requests.open("t", 1) as one:
        assert requests.settle(reply(one.id, status="ok", n=1))
        assert not requests.settle(reply(one.id, status="ok", n=2))

        assert (await one.answer)["n"] == 1


async def test_what_an_answer_means_is_done_before_anything_later_is_read(requests):
    came = []
    with requests.open("t", 1, on_answer=came.append) as one:
        requests.settle(reply(one.id, status="ok", n=1))
        assert came[0]["n"] == 1


async def test_a_refusal_means_nothing_to_who_waits_for_an_answer(requests):
    came = []
    with requests.open("t", 1, on_answer=came.append) as one:
        requests.settle(reply(one.id, status="nack", code="forbidden"))
        assert one.answer.done()
    assert came == []


async def test_what_was_written_and_not_answered_is_sent_again(requests):
    with (
        requests.open("t", 1) as written,
        requests.open("t", 2) as waiting,
        requests.open("t", 3) as answered,
        requests.open("t", 4, survives=False) as own,
    ):
        for pending in (written, answered, own):
            pending.written = True
        requests.settle(reply(answered.id, status="ok"))

        assert requests.unanswered() == [written]
        assert not waiting.answer.done()


async def test_what_is_about_the_connection_is_asked_anew_in_its_turn(requests):
    with (
        requests.open("system:join", {"room": "r"}) as joining,
        requests.open("system:publish", {"room": "r"}) as saying,
        requests.open("system:leave", {"room": "r"}) as leaving,
    ):
        opened = [joining, saying, leaving]
        before = [pending.id for pending in opened]
        for _ in range(2):
            for pending in opened:
                pending.written = True
            assert requests.unanswered() == opened

        after = [pending.id for pending in opened]
        assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, False]
        assert [json.loads(pending.frame)["id"] for pending in opened] == after
        assert not requests.settle(reply(before[0], status="ok"))
        assert requests.settle(reply(after[0], status="ok"))
    assert len(requests) == 0


async def test_when_no_connection_comes_all_fail(requests):
    with requests.open("t", 1) as one, requests.open("t", 2) as two:
        requests.close("closed for good")
        for pending in (one, two):
            with pytest.raises(ConnectionClosed, match="closed for good"):
                await pending.answer


async def test_who_has_left_is_not_sent_again_nor_told(requests):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    with requests.open("t", 1) as one:
        requests.settle(reply(one.id, status="nack"))

    assert one.dropped
    del one
    gc.collect()
    assert told == []
