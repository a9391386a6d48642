"""How outcomes and messages travel between nodes."""

import json
from dataclasses import replace

import pytest

from eyewall.adapters.codec.json import JsonCodec
from eyewall.application.cluster.packet import MAX_HEADER, BadPacket
from eyewall.application.delivery.pending_acks import (
    Outcome,
    is_unknown,
    outcome_in,
    outcome_out,
    outcomes_in,
    outcomes_out,
    unknown,
)
from eyewall.application.ports.message import MalformedMessage, read_message, read_text
from eyewall.domain.envelope import Priority
from eyewall.domain.errors import AckTimeout, Misuse, Nacked, QueueFull, Unavailable
from eyewall.domain.identity import UserId
from eyewall.domain.report import DeliveryStatus, FailureReason

CODEC = JsonCodec()

OK = Outcome("c1", True, 2, result={"n": 1}, seconds=0.5)
SILENT = Outcome("c2", False, 3, FailureReason.ACK_TIMEOUT, AckTimeout("late"), seconds=9.0)
NO = Outcome("c3", False, 1, FailureReason.NACKED, Nacked("busy"))
FULL = Outcome("c4", False, 1, FailureReason.QUEUE_FULL, QueueFull("full"))


def travelled(outcome, **how):
    return outcome_in(json.loads(json.dumps(outcome_out(outcome, **how))))


@pytest.mark.parametrize("outcome", [OK, SILENT, NO, FULL], ids=lambda o: o.conn_id)
def test_an_outcome_arrives_as_it_was(outcome):
    found = travelled(outcome, result=True)

    assert (found.conn_id, found.delivered, found.attempts) == (
        outcome.conn_id,
        outcome.delivered,
        outcome.attempts,
    )
    assert (found.reason, found.result, found.seconds) == (
        outcome.reason,
        outcome.result,
        outcome.seconds,
    )
    assert type(found.error) is type(outcome.error)
    assert str(found.error) == str(outcome.error)


def test_what_the_client_said_stays_where_nobody_asked_for_it():
    assert "result" not in outcome_out(OK)
    assert travelled(OK).result is None


def test_an_answer_that_fits_is_told_as_it_is():
    outcomes = [replace(NO, error=Nacked("no" * 100), user_id=UserId("ada"))] * 1000

    assert outcomes_out(outcomes) == [outcome_out(outcome) for outcome in outcomes]


@pytest.mark.parametrize("text", ["x" * 1000, "\U0001fae9" * 1000, '"' * 1000], ids=repr)
@pytest.mark.parametrize("user", ["u" * 200, "\U0001fae9" * 200], ids=repr)
@pytest.mark.parametrize("node", ["n1", "\U0001fae9" * 200], ids=repr)
def test_an_answer_fits_a_packet_whatever_is_said(text, user, node):
    no = Outcome(f"c1@{node}", False, 1, FailureReason.NACKED, Nacked(text), None, 0.123456789)
    no.user_id = UserId(user)
    answers = json.dumps(outcomes_out([no] * 1000))

    assert len(answers) < MAX_HEADER - 1000
    found = outcomes_in(json.loads(answers), [no.conn_id])[0]
    assert (found.reason, found.error.code) == (FailureReason.NACKED, "nacked")
    assert text.startswith(found.error.text)
    assert found.user_id in (user, None)


def test_one_answer_is_never_cut():
    no = replace(NO, error=Nacked("\U0001fae9" * 1000), user_id=UserId("\U0001fae9" * 200))

    assert outcomes_out([no]) == [outcome_out(no)]
    assert travelled(no).user_id == no.user_id


@pytest.mark.parametrize("user", [None, 5, ["ada"], "u" * 201], ids=repr)
def test_a_user_that_can_be_none_is_not_known(user):
    assert outcome_in({**outcome_out(OK), "user": user}).user_id is None


def test_our_own_mistakes_arrive_as_a_plain_refusal():
    outcome = Outcome("c1", False, 1, FailureReason.UNKNOWN, Misuse("twice"))

    assert travelled(outcome).report().status is DeliveryStatus.FAILED


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        "x",
        {},
        {"conn": "c1", "tries": 1},
        {"conn": "c1", "tries": None, "took": 0},
        {"conn": "c1", "tries": 1, "took": 0, "reason": "bored"},
        {"conn": "c1", "tries": 1, "took": 0, "reason": "nacked", "error": ["x"]},
        {"conn": "c1", "tries": 1, "took": 0, "error": {}},
    ],
    ids=repr,
)
def test_what_is_no_outcome_is_refused(fields):
    with pytest.raises(BadPacket):
        outcome_in(fields)


def test_a_node_answers_for_those_it_was_asked_about():
    answers = [outcome_out(SILENT), outcome_out(OK), outcome_out(NO)]

    found = outcomes_in(answers, ["c1", "c2", "c9"])

    assert [outcome.conn_id for outcome in found] == ["c1", "c2", "c9"]
    assert [is_unknown(outcome) for outcome in found] == [False, False, True]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (OK, DeliveryStatus.OK),
        (SILENT, DeliveryStatus.FAILED),
        (NO, DeliveryStatus.FAILED),
        (FULL, DeliveryStatus.DROPPED),
        (unknown("c5", Unavailable("silent")), DeliveryStatus.UNKNOWN),
    ],
    ids=lambda value: getattr(value, "conn_id", value),
)
def test_the_report_of_an_outcome(outcome, status):
    report = outcome.report()

    assert (report.target, report.status, report.error) == (
        outcome.conn_id,
        status,
        outcome.error,
    )


def test_a_message_is_taken_over_byte_for_byte():
    payload = b'{ "id":"m","topic":"t","data":{"n":1.00} }'

    frame = read_message(CODEC, payload, 2, recipient="lab", fan_out=True)

    assert frame.payload is payload
    assert frame.priority is Priority.HIGH
    assert (frame.recipient, frame.fan_out) == ("lab", True)
    assert (frame.message.topic, frame.message.id) == ("t", "m")
    assert frame.message.data.data == b'{"n":1.00}'


@pytest.mark.parametrize(("priority", "payload"), [(3, b'{"topic":"t"}'), (1, b"x"), (1, b"{}")])
def test_what_is_no_message_is_refused(priority, payload):
    with pytest.raises(MalformedMessage):
        read_message(CODEC, payload, priority)


def test_a_text_is_text():
    assert read_text("ü".encode()) == "ü"
    with pytest.raises(MalformedMessage):
        read_text(b"\xff")
