"""What became of a message."""

import dataclasses
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyewall.domain.ack_result import MOST_NAMED, Acker, AckResult
from eyewall.domain.envelope import Message
from eyewall.domain.errors import AckTimeout, Nacked, QueueFull
from eyewall.domain.report import (
    AckOptions,
    BatchDeliveryReport,
    DeliveryReport,
    DeliveryStatus,
    Failure,
    FailureReason,
    HubStats,
    PendingAck,
    SendOptions,
    Target,
    TargetKind,
    ack_result,
)

relaxed = settings(deadline=None)
NOW = datetime(2024, 5, 1, tzinfo=UTC)


def test_the_statuses_are_those_of_the_api():
    names = {"OK", "DROPPED", "FAILED", "STORED", "FORWARDED", "UNKNOWN"}

    assert {status.name for status in DeliveryStatus} == names
    assert all(status.value == status.name.lower() for status in DeliveryStatus)


def test_the_reasons_are_those_of_the_api():
    names = {
        "QUEUE_FULL",
        "BROADCAST_FULL",
        "PENDING_FULL",
        "USER_OFFLINE",
        "TIMEOUT",
        "SEND_TIMEOUT",
        "ACK_TIMEOUT",
        "NACKED",
        "CONN_CLOSED",
        "CONN_ERROR",
        "CHANNEL_CLOSED",
        "VALIDATION",
        "PERMISSION",
        "UNKNOWN",
    }

    assert {reason.name for reason in FailureReason} == names
    assert all(reason.value == reason.name.lower() for reason in FailureReason)


# --- options


def test_sending_has_the_documented_defaults():
    options = SendOptions()

    assert options.require_ack is False
    assert (options.ack_timeout, options.retry_max, options.retry_backoff) == (5.0, 0, 0.05)
    assert options.ordering_key is options.ttl is options.offline is None
    assert options.history is AckOptions().history is True


def test_to_be_stored_is_to_be_acked():
    """Without an ack nobody would know whether it has to be."""
    assert SendOptions(offline="store").require_ack is True
    assert SendOptions(offline="drop").require_ack is False
    assert SendOptions(offline="drop", require_ack=True).require_ack is True


def test_sending_takes_timedeltas():
    second = timedelta(seconds=1)

    options = SendOptions(ack_timeout=second, retry_backoff=second, ttl=second)

    assert (options.ack_timeout, options.retry_backoff, options.ttl) == (1.0, 1.0, 1.0)
    assert type(options.ttl) is type(options.ack_timeout) is type(options.retry_backoff) is float


@pytest.mark.parametrize(
    "wrong",
    [
        {"ack_timeout": 0},
        {"ack_timeout": -1},
        {"ack_timeout": None},
        {"retry_backoff": -0.1},
        {"retry_max": -1},
        {"retry_max": 1.5},
        {"ttl": 0},
        {"ttl": "5"},
        {"offline": "keep"},
        {"offline": True},
        {"offline": ["store"]},
        {"history": None},
        {"history": 1},
        {"require_ack": "yes"},
    ],
    ids=str,
)
def test_nonsense_is_refused_where_it_is_written(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SendOptions(**wrong)


def test_no_pause_and_no_retry_may_be_asked_for():
    options = SendOptions(retry_backoff=0, retry_max=0)

    assert (options.retry_backoff, options.retry_max) == (0.0, 0)


def test_waiting_for_acks_has_the_documented_defaults():
    assert (AckOptions().timeout, AckOptions().require_all) == (5.0, False)
    assert AckOptions(timeout=timedelta(minutes=1)).timeout == 60.0


@pytest.mark.parametrize("wrong", [0, -1, None])
def test_acks_are_awaited_for_some_time(wrong):
    with pytest.raises(ValueError, match="timeout must be"):
        AckOptions(timeout=wrong)


# --- reports


def test_a_report_counts_each_status():
    reports = [DeliveryReport(str(n), status) for n, status in enumerate(DeliveryStatus)]

    batch = BatchDeliveryReport.of([*reports, DeliveryReport("again", DeliveryStatus.OK)])

    assert (batch.total, batch.success) == (7, 2)
    assert batch.dropped == batch.failed == batch.stored == batch.forwarded == batch.unknown == 1


@pytest.mark.parametrize(
    ("status", "field"),
    [
        (DeliveryStatus.OK, "success"),
        (DeliveryStatus.DROPPED, "dropped"),
        (DeliveryStatus.FAILED, "failed"),
        (DeliveryStatus.STORED, "stored"),
        (DeliveryStatus.FORWARDED, "forwarded"),
        (DeliveryStatus.UNKNOWN, "unknown"),
    ],
)
def test_a_status_is_counted_under_its_own_name(status, field):
    batch = BatchDeliveryReport.of([DeliveryReport("c1", status)])

    counts = dataclasses.asdict(batch)
    del counts["reports"], counts["total"]
    assert {name for name, number in counts.items() if number} == {field}


def test_a_report_of_nobody_is_empty():
    batch = BatchDeliveryReport.of([])

    assert (batch.total, batch.success, batch.reports) == (0, 0, ())


def test_reports_come_from_any_iterable_and_keep_their_order():
    reports = [DeliveryReport("b", DeliveryStatus.OK), DeliveryReport("a", DeliveryStatus.FAILED)]

    assert BatchDeliveryReport.of(iter(reports)).reports == tuple(reports)


@relaxed
@given(st.lists(st.sampled_from(DeliveryStatus)))
def test_every_target_is_counted_exactly_once(statuses):
    batch = BatchDeliveryReport.of(DeliveryReport("c", status) for status in statuses)

    tally = Counter(statuses)
    assert batch.total == len(statuses) == len(batch.reports)
    assert batch.success == tally[DeliveryStatus.OK]
    assert batch.total == (
        batch.success
        + batch.dropped
        + batch.failed
        + batch.stored
        + batch.forwarded
        + batch.unknown
    )


def test_a_report_is_of_one_attempt_without_an_error_unless_told():
    report = DeliveryReport("c1", DeliveryStatus.OK)

    assert (report.error, report.attempts) == (None, 1)


def test_a_report_carries_its_error():
    error = QueueFull()

    assert DeliveryReport("c1", DeliveryStatus.DROPPED, error, 3).error is error


def test_a_result_of_acks_has_errors_of_its_own():
    one, other = AckResult(2, 1, 0, True), AckResult(2, 2, 0, False)

    one.errors.append("no answer")

    assert (one.expected, one.received, one.nacked, one.timed_out) == (2, 1, 0, True)
    assert other.errors == []


# --- targets and records


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (Target.conn("x"), TargetKind.CONN),
        (Target.user("x"), TargetKind.USER),
        (Target.room("x"), TargetKind.ROOM),
    ],
)
def test_a_target_names_a_connection_a_user_or_a_room(target, kind):
    assert target == Target(kind, "x")


def test_targets_of_other_kinds_differ_under_the_same_id():
    assert len({Target.conn("x"), Target.user("x"), Target.room("x")}) == 3


def test_a_failure_knows_queue_and_duration_only_where_they_are_known():
    failure = Failure(Message("chat"), "ada", FailureReason.NACKED, None)

    assert (failure.queue, failure.duration) == (None, None)
    assert (failure.recipient, failure.reason) == ("ada", FailureReason.NACKED)


def test_records_do_not_change():
    message = Message("chat")
    records = [
        SendOptions(),
        AckOptions(),
        Acker("ada", "c1"),
        DeliveryReport("c1", DeliveryStatus.OK),
        BatchDeliveryReport.of([]),
        AckResult(0, 0, 0, False),
        Target.user("ada"),
        Failure(message, "ada", FailureReason.NACKED, None),
        PendingAck(message, "c1", 1, NOW, NOW),
        HubStats(0, 0, 0, 0, 0, 0, 0, NOW, 0.0),
    ]

    for record in records:
        first = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, first, None)


def test_the_fields_come_in_the_documented_order():
    """Programs that nobody here wrote build and unpack them by position."""
    fields = {
        Acker: "user_id conn_id",
        DeliveryReport: "target status error attempts user_id conn_id acked",
        BatchDeliveryReport: "total success dropped failed stored forwarded unknown reports",
        AckResult: "expected received nacked timed_out errors acked refused silent",
        Failure: "message recipient reason error queue duration conn_id user_id",
        PendingAck: "message conn_id attempt since deadline user_id",
        HubStats: (
            "connections users rooms in_messages out_messages errors drops started_at uptime "
            "refused unsent bad_packets foreign_epochs stray_acks unreported_failures "
            "loop_stalls accept_pauses"
        ),
    }

    for kind, names in fields.items():
        assert [field.name for field in dataclasses.fields(kind)] == names.split()


def report(number, **fields):
    conn = f"c{number}"
    return DeliveryReport(conn, DeliveryStatus.OK, user_id="ada", conn_id=conn, **fields)


def test_a_result_names_who_acked_who_refused_and_who_was_silent():
    """Each that was expected is in one of the three."""
    stored = replace(report(3, acked=False), status=DeliveryStatus.STORED)
    late = DeliveryReport("c4", DeliveryStatus.FAILED, AckTimeout("late"), acked=False)
    away = DeliveryReport("ben", DeliveryStatus.FAILED, user_id="ben", acked=False)
    reports = [
        report(1, acked=True),
        report(2, acked=False, error=Nacked("no")),
        stored,
        late,
        away,
    ]

    for found in (ack_result(reports, timed_out=True), BatchDeliveryReport.of(reports)):
        assert found.acked == (Acker("ada", "c1"),)
        assert found.refused == (Acker("ada", "c2"),)
        assert found.silent == (Acker("ada", "c3"), Acker(None, None), Acker("ben", None))
    result = ack_result(reports, timed_out=True)
    assert (result.expected, result.received, result.nacked) == (5, 1, 1)
    assert result.errors == ["no", "late"]


def test_nobody_is_silent_where_nobody_was_asked():
    batch = BatchDeliveryReport.of([report(1), DeliveryReport("c2", DeliveryStatus.DROPPED)])

    assert (batch.acked, batch.refused, batch.silent) == ((), (), ())


def test_a_result_names_so_many_and_counts_all():
    fates = [{"acked": True}, {"acked": False}, {"acked": False, "error": Nacked("no")}]
    reports = [report(n, **fate) for fate in fates for n in range(MOST_NAMED + 1)]

    result = ack_result(reports, timed_out=True)

    assert (result.expected, result.nacked) == (3 * (MOST_NAMED + 1), MOST_NAMED + 1)
    named = (result.acked, result.refused, result.silent, result.errors)
    assert [len(names) for names in named] == [MOST_NAMED] * 4 == [1000] * 4
